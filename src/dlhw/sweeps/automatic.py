"""A launcher that chooses among others: ``hydra/launcher=automatic``, which declared sweeps use.

The choice depends on the size of the network, the number of training steps of the jobs that are left, the usable cores
and, for processes, the free memory, but never on a measured time. docs/speed.md has the measurements behind the bounds
for a CPU.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psutil
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict, read_write

from dlhw.cli import ensembles
from dlhw.errors import UsageError
from dlhw.runtime.devices import free_memory, pick_device
from dlhw.runtime.threads import usable_cores
from dlhw.studies.cost import cost
from dlhw.sweeps.vectorized import valid_parts

log = logging.getLogger("dlhw")

TINY, SMALL = 2**21, 2**23
"""Multiply-adds of a forward pass on one batch. Tiny networks gain more from training at once than from several
processes, and small ones still gain from it."""
LONG = 2**41
"""Multiply-adds of the forward passes of all jobs, about a minute on two cores: the start of a process takes some
seconds."""


@dataclass(frozen=True)
class Load:
    """What the jobs of a sweep compute.

    Args:
        jobs: their number.
        multiply_adds: of the forward pass of one job on a batch; the largest of all jobs.
        total: multiply-adds of the forward passes of all training steps of all jobs.
        on_cpu: whether they train on the CPU.
        convolves: whether a network has convolutions.
    """

    jobs: int
    multiply_adds: int
    total: int
    on_cpu: bool
    convolves: bool


@dataclass(frozen=True)
class Choice:
    """A launcher, why it is chosen, and the number of processes for joblib."""

    launcher: Literal["basic", "vectorized", "joblib"]
    reason: str
    processes: int = 1


def choose(load: Load, *, cores: int) -> Choice:
    """Return a launcher for several jobs on this many cores."""
    if not load.on_cpu:
        return Choice("vectorized", "a GPU trains several networks at once")
    vectorizable = not load.convolves
    if vectorizable and load.multiply_adds <= TINY:
        return Choice("vectorized", "tiny networks")
    processes = min(cores, load.jobs)
    if processes > 1 and load.total >= LONG:
        return Choice("joblib", f"{processes} processes, for long jobs", processes)
    if vectorizable and load.multiply_adds <= SMALL:
        return Choice("vectorized", "small networks")
    return Choice("basic", "large networks, short jobs" if cores > 1 else "large networks, one core")


class Automatic(Launcher):
    """Passes the jobs to the launcher that :func:`choose` returns, and logs which one and why."""

    def setup(self, *, hydra_context: HydraContext, task_function: Callable[..., Any], config: DictConfig) -> None:
        self.context = hydra_context
        self.program = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs."""
        choice = self._choice(job_overrides)
        if len(job_overrides) > 1:
            log.info("hydra/launcher=%s is chosen: %s", choice.launcher, choice.reason)
        return self._launcher(choice).launch(job_overrides, initial_job_idx)

    def _choice(self, job_overrides: Sequence[Sequence[str]]) -> Choice:
        """Choose by the first and the last job, which have the first and the last value of every key of a grid."""
        jobs = len(job_overrides)
        if jobs == 1:
            return Choice("basic", "one job")
        compose = self.context.config_loader.load_sweep_config
        cfgs = [compose(self.config, list(lines)) for lines in (job_overrides[0], job_overrides[-1])]
        if any(cfg.study.get("_target_") is not None for cfg in cfgs):
            return Choice("basic", "studies")
        try:
            load = load_of(cfgs, jobs=jobs)
        except Exception:  # the jobs report it; a model may be unable to compute a single sample
            log.debug("the load is unknown", exc_info=True)
            return Choice("basic", "the size of the networks is unknown")
        choice = choose(load, cores=usable_cores())
        needed = choice.processes * psutil.Process().memory_info().rss
        if choice.launcher == "joblib" and needed > free_memory(torch.device("cpu")):
            choice = choose(load, cores=1)
            reason = f"{choice.reason}, and too little free memory for several processes"
            return Choice(choice.launcher, reason)
        return choice

    def _launcher(self, choice: Choice) -> Launcher:
        config = copy.deepcopy(self.config)
        if choice.launcher == "vectorized":
            options: Any = {"_target_": "dlhw.sweeps.vectorized.Vectorized"}
        else:
            options = ConfigStore.instance().load(f"hydra/launcher/{choice.launcher}.yaml").node
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.launcher = options
            if choice.launcher == "joblib":
                config.hydra.launcher.n_jobs = choice.processes
        return Plugins.instance().instantiate_launcher(self.context, self.program, config)


def load_of(cfgs: Sequence[DictConfig], *, jobs: int) -> Load:
    """Return the load of this number of jobs, from the configs of some of them. Raise UsageError if none is valid."""
    if pick_device(cfgs[0].trainer.device).type != "cpu":  # the sizes do not matter
        return Load(jobs, 0, 0, on_cpu=False, convolves=False)
    sizes, totals, convolve = [], [], []
    for parts in valid_parts(cfgs):
        data, trainer = parts.trained_on, parts.trainer
        of_one_sample = cost(data=data, model=parts.trained).numbers["multiply_adds"]
        sizes.append(int(of_one_sample) * trainer.batch_size)
        steps = trainer.steps_per_epoch or -(-len(data.train) // trainer.batch_size)
        totals.append(sizes[-1] * trainer.epochs * steps)
        convolve.append(ensembles.convolves(parts.trained))
    if not sizes:
        raise UsageError("no job is valid")
    return Load(jobs, max(sizes), jobs * sum(totals) // len(totals), on_cpu=True, convolves=any(convolve))
