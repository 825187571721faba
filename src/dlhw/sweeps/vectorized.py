"""A launcher that trains many jobs of a sweep at once, as one ensemble: ``hydra/launcher=vectorized``.

The training loop for single runs trains all jobs of one structure at once. Each job gets the directory, files and
results of a single run. All other jobs are trained one at a time, and the log says why.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import logging
import typing
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, configure_log, env_override, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from dlhw.cli import ensembles, failures, lifecycle
from dlhw.cli.assembly import Parts, assemble
from dlhw.cli.origins import override_lines
from dlhw.errors import UsageError
from dlhw.storage.identity import copied, yaml_text
from dlhw.storage.record import Record
from dlhw.training.run import TrainingRun
from dlhw.training.variants import NotVectorizable

log = logging.getLogger("dlhw")
_job_log = logging.getLogger("dlhw.job")  # for the run.log of one job, not for the console
_job_log.propagate = False

SHARED = ("dataset", "augmentation", "model", "loss", "trainer", "probe", "study")
"""Groups of the config that are equal for all jobs trained at once, except for the dropout rate."""
COMBINED = {"dlhw.data.playground.playground": ("kind", "noise")}
"""Options of datasets that may differ between jobs trained at once, because samples of any value have one shape."""


@dataclass
class GroupedJob:
    """A job of a sweep, which is composed, then begun, then ended."""

    cfg: DictConfig
    parts: Parts | None = None
    run: TrainingRun | None = None
    returned: JobReturn | None = None
    ended: bool = False


class Vectorized(Launcher):
    """Groups the jobs of a sweep, and trains the jobs of each group at once.

    On a CPU, one kernel for the convolutions of several networks takes three to four times as long as one kernel per
    network (docs/speed.md). There, convolutional networks are trained one at a time.

    Args:
        largest: the largest number of jobs to train at once; None for as many as fit into half of the free memory.
        even_if_slower: train convolutional networks at once on a CPU too.
    """

    def __init__(self, largest: int | None = None, *, even_if_slower: bool = False) -> None:
        if largest is not None and (not isinstance(largest, int) or largest < 1):
            raise UsageError(f"hydra.launcher.largest={largest}: must be a whole number, 1 or greater, or null")
        if not isinstance(even_if_slower, bool):
            raise UsageError(f"hydra.launcher.even_if_slower={even_if_slower}: must be true or false")
        self.largest = largest
        self.even_if_slower = even_if_slower

    def setup(self, *, hydra_context: HydraContext, task_function: Callable[..., Any], config: DictConfig) -> None:
        self.context = hydra_context
        self.program = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs. The directory of a failed job records why it failed."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        groups: dict[str, list[GroupedJob]] = defaultdict(list)
        with _few_collections():
            for number, overrides in enumerate(job_overrides, initial_job_idx):
                cfg = self.context.config_loader.load_sweep_config(self.config, list(overrides))
                with open_dict(cfg):
                    cfg.hydra.job.id = cfg.hydra.job.num = number
                groups[group_key(cfg)].append(GroupedJob(cfg))
        for group in groups.values():
            self._run(group)
        return [job.returned for group in groups.values() for job in group if job.returned is not None]

    def _run(self, group: Sequence[GroupedJob]) -> None:
        """Train the jobs of a group at once if possible, and the rest of them one at a time."""
        try:
            if len(group) > 1:
                self._train_group(group)
        except UsageError as error:
            log.info("%d jobs are trained one at a time: %s", len(group), error)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            log.warning(
                "training at once failed (%s); the jobs are trained one at a time",
                reason,
                exc_info=log.isEnabledFor(logging.DEBUG),
            )
        for job in group:
            if not job.ended:
                job.returned = run_job(
                    task_function=self.program,
                    config=job.cfg,
                    job_dir_key="hydra.sweep.dir",
                    job_subdir_key="hydra.sweep.subdir",
                    hydra_context=self.context,
                )
                configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)

    def _train_group(self, group: Sequence[GroupedJob]) -> None:
        """Train a group at once. Raise NotVectorizable if that is not possible."""
        if group[0].cfg.trainer.get("frozen_views") is not None:
            raise NotVectorizable("augmented features depend on the seed (trainer.frozen_views)")
        if group[0].cfg.get("debug"):
            raise NotVectorizable("with debug=true, each job is checked by itself")
        if group[0].cfg.study.get("_target_") is not None:
            raise NotVectorizable("a study does not train")
        first_two = list(itertools.islice(valid_parts(job.cfg for job in group), 2))
        if len(first_two) < 2:
            raise NotVectorizable("fewer than two of them are valid")
        first = first_two[0]
        on_cpu = first.precision.device.type == "cpu"
        if on_cpu and not self.even_if_slower and ensembles.convolves(first.trained):
            raise NotVectorizable(
                "on a CPU, training convolutional networks at once is slower (hydra.launcher.even_if_slower)"
            )
        largest = min(len(group), ensembles.largest_that_fits(first_two), self.largest or len(group))
        del first, first_two
        while remaining := [job for job in group if not job.ended]:
            largest = min(largest, len(remaining))
            if not self._train_chunk(remaining[:largest]):
                log.info("%d jobs at once do not fit into memory; continuing with %d", largest, largest // 2)
                largest //= 2
                gc.collect()  # the models that did not fit

    def _train_chunk(self, jobs: Sequence[GroupedJob]) -> bool:
        """Train jobs at once, or those of each group of :meth:`_begin`. Return whether they fit into memory."""
        try:
            with contextlib.ExitStack() as locks, _few_collections():
                for begun in self._begin(jobs, locks):
                    log.info("training %d job%s at once", len(begun), "" if len(begun) == 1 else "s")
                    with _log_into(begun):
                        train_at_once(begun)
                    for job in begun:
                        _finish(job)
                        job.parts = job.run = None
        except torch.OutOfMemoryError:
            if len(jobs) == 1:
                raise
            for job in jobs:
                job.parts = job.run = None
            return False
        return True

    def _begin(self, jobs: Sequence[GroupedJob], locks: contextlib.ExitStack) -> list[list[GroupedJob]]:
        """Create the jobs' directories and parts. Return the jobs without an error.

        They are grouped by finished epochs, and by what must be equal in their datasets.
        """
        groups: dict[tuple[int, Hashable], list[GroupedJob]] = defaultdict(list)

        def begin(cfg: DictConfig) -> tuple[Parts, TrainingRun]:
            record = Record(Path(HydraConfig.get().runtime.output_dir))
            locks.enter_context(record.locked())
            with failures.recorded(cfg, record, in_sweep=True):
                lifecycle.resume_same_run(cfg, record)
                parts = assemble(cfg)
                return parts, lifecycle.begin(cfg, record, parts)

        for job in jobs:
            returned = self._enter_quickly(job.cfg, begin)
            job.returned, job.ended = returned, returned.status != JobStatus.COMPLETED
            if not job.ended:
                job.parts, job.run = returned.return_value
                returned.return_value = None
                groups[len(job.run.record.rows), ensembles.must_be_equal(job.parts.trained_on)].append(job)
        return list(groups.values())

    def _enter_quickly(self, cfg: DictConfig, function: Callable[[DictConfig], Any]) -> JobReturn:
        """Call a function in the job's directory, as Hydra's ``run_job`` does but with fewer copies of the config."""
        current, earlier = HydraConfig.instance(), HydraConfig.instance().cfg
        current.cfg = typing.cast(HydraConf, cfg)  # the directory may refer to it
        try:
            directory = Path(str(cfg.hydra.sweep.dir), str(cfg.hydra.sweep.subdir))
            with read_write(cfg.hydra), open_dict(cfg.hydra):
                cfg.hydra.runtime.output_dir = str(directory.absolute())
            OmegaConf.set_readonly(cfg.hydra, True)
            task_cfg, hydra_cfg = copied(cfg), copied(cfg)
            for part, has_hydra in ((task_cfg, False), (hydra_cfg, True)):
                with read_write(part), open_dict(part):
                    for name in [name for name in part if (name == "hydra") != has_hydra]:
                        del part[name]
            lines = override_lines(cfg.hydra, "task")
            returned = JobReturn(
                overrides=lines,
                cfg=task_cfg,
                hydra_cfg=hydra_cfg,
                working_dir=str(Path.cwd()),
                task_name=JobRuntime.instance().get("name"),
            )
            directory.mkdir(parents=True, exist_ok=True)
            if cfg.hydra.output_subdir is not None:
                _write_configs(directory / cfg.hydra.output_subdir, cfg, task_cfg)
            with env_override(dict(cfg.hydra.job.env_set)):
                self.context.callbacks.on_job_start(config=cfg, task_function=function)
                try:
                    returned.return_value = function(task_cfg)
                    returned.status = JobStatus.COMPLETED
                except Exception as error:
                    returned.return_value = error
                    returned.status = JobStatus.FAILED
            self.context.callbacks.on_job_end(config=cfg, job_return=returned)
            return returned
        finally:
            current.cfg = earlier


def _write_configs(directory: Path, cfg: DictConfig, task_cfg: DictConfig) -> None:
    """Write the same files as Hydra into the ``.hydra`` of a job."""
    directory.mkdir(exist_ok=True)
    contents = [OmegaConf.to_container(part, enum_to_str=True) for part in (task_cfg, cfg.hydra)]
    for name, text in (
        ("config.yaml", yaml_text(typing.cast("dict[str, Any]", contents[0]))),
        ("hydra.yaml", yaml_text({"hydra": contents[1]})),
        ("overrides.yaml", OmegaConf.to_yaml(cfg.hydra.overrides.task)),
    ):
        (directory / name).write_text(text, encoding="utf-8")


def group_key(cfg: DictConfig) -> str:
    """Return a key that is equal for jobs that can be trained as one ensemble."""
    shared: dict[str, Any] = {name: OmegaConf.to_container(cfg[name], resolve=True) for name in SHARED}
    rate = shared["model"].get("dropout", 0)
    for option in COMBINED.get(shared["dataset"].get("_target_"), ()):
        del shared["dataset"][option]
    shared["model"]["dropout"] = "some" if isinstance(rate, float) and rate > 0 else rate
    optimizer = [cfg.optimizer.get(name) for name in ("_target_", "name", "fused", "foreach")]
    return json.dumps([shared, str(cfg.data_dir), optimizer], sort_keys=True, default=str)


def valid_parts(cfgs: Iterable[DictConfig]) -> Iterator[Parts]:
    """Yield the parts of each valid config."""
    for cfg in cfgs:
        try:
            parts = assemble(cfg)
        except UsageError:  # the job reports it
            continue
        yield parts


def _as_text(node: DictConfig) -> str:
    """Format a group of the config as text, which is equal for equal values."""
    return OmegaConf.to_yaml(node, resolve=True)


def train_at_once(jobs: Sequence[GroupedJob]) -> None:
    """Train jobs that have begun as one ensemble. They have the same group key and number of finished epochs."""
    jobs = sorted(jobs, key=lambda job: (_as_text(job.cfg.optimizer), _as_text(job.cfg.scheduler)))
    schedules = {_as_text(job.cfg.scheduler): job.parts.schedule for job in jobs if job.parts is not None}
    begun = [(job.parts, job.run) for job in jobs if job.parts is not None and job.run is not None]
    training = ensembles.training_at_once(
        [parts for parts, _ in begun],
        [run for _, run in begun],
        [schedules[_as_text(job.cfg.scheduler)] for job in jobs],  # the same object for equal schedulers
    )
    with ensembles.quiet():
        training.fit()


def _finish(job: GroupedJob) -> None:
    """Write the files of a trained job."""
    parts, run = job.parts, job.run
    assert parts is not None
    assert run is not None
    assert job.returned is not None

    def finish() -> None:
        with failures.recorded(job.cfg, run.record, in_sweep=True), _log_into([job], _job_log):
            _job_log.info("%s", lifecycle.finish(job.cfg, parts, run))

    error = failures.failure_of(finish)
    if error is not None:
        job.returned.status = JobStatus.FAILED
        job.returned.return_value = error
    job.ended = True


@contextlib.contextmanager
def _log_into(jobs: Sequence[GroupedJob], logger: logging.Logger | None = None) -> Iterator[None]:
    """Write everything that is logged in this context into the run.log of every job too."""

    class RunLogs(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            for job in jobs:
                if job.run is not None:
                    path = job.run.record.path / "run.log"
                    with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as file:
                        file.write(self.format(record) + "\n")

    handler = RunLogs(logging.INFO)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logger or logging.getLogger()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def _few_collections() -> Iterator[None]:
    """Collect garbage rarely while many jobs are composed, begun and ended, and all of it afterwards.

    The configs of the jobs and the imported modules are hundreds of thousands of objects. Visiting them again and again
    takes a seventh of the time of a sweep of small networks. Models and optimizers are in reference cycles, so only a
    collection frees their memory.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(100_000, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.collect()
        gc.unfreeze()
