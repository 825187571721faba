"""How many processor threads a run uses, and how long they wait actively for each other.

Matrix products and most operations on large tensors are split among OpenMP threads. A thread that has finished its part
first spins, which is quick if the others finish soon, and then sleeps. GNU's library, which torch's Linux wheels
contain, spins 300,000 turns, some milliseconds. If the thread that it waits for is not running, because other programs
use its core, the spinning thread wastes the time that the scheduler gives to the process, in every one of the thousands
of parallel parts of an epoch: training beside busy programs becomes many times slower than its share of the cores
explains. :data:`SPIN_TURNS` turns are long enough for the gaps between parallel parts.

This module imports only the standard library, because it must run before torch is loaded: OpenMP reads the environment
once. ``dlhw/__init__.py`` calls :func:`limit_spinning`, so it holds for every way to start dlhw and for all processes
that it starts.
"""

from __future__ import annotations

import math
import os

from dlhw.runtime import cgroups

SPIN_TURNS = 10_000
"""How often a waiting thread of libgomp looks for work before it sleeps."""
_CHOSEN_BY_USER = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def limit_spinning() -> None:
    """Set ``GOMP_SPINCOUNT`` for this process and those that it starts, unless the user has chosen a way of waiting.

    If torch is loaded already, this affects only new processes.
    """
    if not any(name in os.environ for name in _CHOSEN_BY_USER):
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_TURNS)


def usable_cores() -> int:
    """Return the number of cores that this process can keep busy: its affinity, limited by a quota of its cgroups.

    A quota of 1.5 cores counts as 2: two threads use all of it.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroups.cpu_quota()
    return cores if quota is None else min(cores, math.ceil(quota))


def default_threads(torch_threads: int) -> int:
    """Return the number of threads without ``trainer.threads``, where ``torch_threads`` is torch's own default.

    torch counts cores but not quotas; before version 2.14 not the affinity either. A number in the environment is
    the user's or a launcher's choice, and torch uses it.
    """
    if os.environ.keys() & {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}:
        return torch_threads
    return min(torch_threads, usable_cores())
