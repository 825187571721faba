"""A launcher that chooses among others: ``hydra/launcher=automatic``, which declared sweeps use.

The choice depends on the size of the network, the number of training steps of the jobs that are left, the usable cores
and, for processes, the free memory, but on no measurement of time. The bounds were measured (docs/speed.md).
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

from dlhw.cli.assembly import assemble
from dlhw.errors import UsageError
from dlhw.runtime.devices import free_memory
from dlhw.runtime.threads import usable_cores
from dlhw.studies.cost import cost
from dlhw.sweeps.vectorized import convolves

log = logging.getLogger("dlhw")

TINY, SMALL = 2**21, 2**23
"""Multiply-adds of a forward pass on one batch. Tiny networks gain more from training at once than from several
processes, and small ones still gain from it."""
LONG = 2**41
"""Multiply-adds of the forward passes of all jobs, a minute on two cores, from which on the start of processes pays."""


@dataclass(frozen=True)
class Load:
    """What the jobs of a sweep compute.

    Args:
        jobs: their number.
        multiply_adds: of the forward pass of one job on a batch; the largest of all jobs.
        steps: training steps of one job.
        on_cpu: whether they train on the CPU.
        convolves: whether a network has convolutions.
    """

    jobs: int
    multiply_adds: int
    steps: int
    on_cpu: bool
    convolves: bool


@dataclass(frozen=True)
class Choice:
    """A launcher, why it is chosen, and the number of processes for joblib."""

    launcher: Literal["basic", "vectorized", "joblib"]
    reason: str
    processes: int = 1


def choose(load: Load, *, cores: int) -> Choice:
    """Return the fastest launcher for these jobs on this many cores."""
    if load.jobs == 1:
        return Choice("basic", "one job")
    if not load.on_cpu:
        return Choice("vectorized", "a GPU trains several networks at once")
    vectorizable = not load.convolves
    if vectorizable and load.multiply_adds <= TINY:
        return Choice("vectorized", "tiny networks")
    processes = min(cores, load.jobs)
    if processes > 1 and load.jobs * load.steps * load.multiply_adds >= LONG:
        return Choice("joblib", f"{processes} processes with one thread each, for long jobs", processes)
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
        compose = self.context.config_loader.load_sweep_config
        cfgs = [compose(self.config, list(lines)) for lines in job_overrides[:: max(1, jobs - 1)]]
        loads = [load for cfg in cfgs if jobs > 1 and (load := _load(cfg, jobs=jobs)) is not None]
        if not loads:
            return Choice("basic", "nothing to train at once")
        choice = choose(max(loads, key=lambda load: load.multiply_adds), cores=usable_cores())
        if choice.processes * psutil.Process().memory_info().rss > free_memory(torch.device("cpu")):
            return Choice("basic", f"not enough free memory for {choice.processes} processes")
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


def _load(cfg: DictConfig, *, jobs: int) -> Load | None:
    """Return the load of a sweep whose jobs are like this one; None if it is invalid or a study."""
    if cfg.study.get("_target_") is not None:
        return None
    try:
        parts = assemble(cfg)
    except UsageError:  # the job reports it
        return None
    data, trainer = parts.trained_on, parts.trainer
    of_one_sample = cost(data=data, model=parts.trained).numbers["multiply_adds"]
    return Load(
        jobs=jobs,
        multiply_adds=int(of_one_sample) * trainer.batch_size,
        steps=trainer.epochs * (trainer.steps_per_epoch or -(-len(data.train) // trainer.batch_size)),
        on_cpu=parts.precision.device.type == "cpu",
        convolves=convolves(parts.trained),
    )
