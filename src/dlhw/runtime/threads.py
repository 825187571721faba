"""How many processor threads a run uses, and how long they spin while they wait for each other.

Matrix products and most operations on large tensors are split among OpenMP threads. A thread that has finished its part
first spins, which is quick if the others finish soon, and then sleeps. If the thread that it waits for cannot run,
because another program uses the core, a spinning thread wastes the time that the scheduler gives to the process, in
every one of the thousands of parallel parts of an epoch. Then an epoch can take many times as long as the share of the
cores explains. The time to spin is therefore long enough for the gaps between parallel parts, but shorter than the
time for which the scheduler lets a program run (some milliseconds).

OpenMP reads the environment when it is loaded, so :func:`limit_spinning` must run before torch is imported.
``dlhw/__init__.py`` calls it, and processes inherit it. This module imports only the standard library.
"""

from __future__ import annotations

import math
import os
import sys

from dlhw.runtime import cgroups

SPINNING = {
    "GOMP_SPINCOUNT": "10000",  # GNU's library, in torch's wheels: 0.3 ms instead of 9 ms on an AMD EPYC
    "KMP_BLOCKTIME": "1",  # Intel's and LLVM's, in Conda's packages: 1 ms instead of 200 ms
    "KMP_USE_YIELD": "0",  # the same: a thread that yields its core gets it back only after the other programs
}
_WAITING = {*SPINNING, "OMP_WAIT_POLICY", "KMP_LIBRARY"}


def limit_spinning() -> None:
    """Set how long threads spin in this process and those that it starts, unless the environment says how they wait.

    Only on Linux on x86. GNU's library counts turns, which take tens of nanoseconds there but about one on ARM, where
    its default is short. LLVM's library does not spin on Apple's processors. Windows has not been measured. If torch is
    loaded already, only new processes are affected.
    """
    if sys.platform == "linux" and os.uname().machine == "x86_64" and _WAITING.isdisjoint(os.environ):
        os.environ.update(SPINNING)


def usable_cores() -> int:
    """Return the number of cores that this process can keep busy: its affinity, limited by a quota of its cgroups.

    A quota of 1.5 cores counts as 2, because one thread would leave a third of it unused.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroups.cpu_quota()
    return cores if quota is None else min(cores, math.ceil(quota))


def default_threads(of_torch: int) -> int:
    """Return the number of threads without ``trainer.threads``, where ``of_torch`` is torch's own default.

    torch ignores quotas, and before version 2.14 the affinity. A number in the environment is the choice of the user or
    of a launcher, and torch uses it.
    """
    if os.environ.get("OMP_NUM_THREADS") or os.environ.get("MKL_NUM_THREADS"):
        return of_torch
    return min(of_torch, usable_cores())
