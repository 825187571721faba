"""What the sweepers share: the directory of a sweep, the launch of its jobs, and the comparison at the end."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import platform
import sys
import threading
import time
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from dlhw.cli import composition, failures, program, resuming
from dlhw.cli.origins import override_lines
from dlhw.cli.program import Program
from dlhw.errors import UsageError
from dlhw.runtime import progress, signals
from dlhw.runtime.files import write_atomically
from dlhw.runtime.paths import printable, shell_line
from dlhw.runtime.progress import tracked
from dlhw.storage import stored
from dlhw.storage.directories import is_sweep_of_dlhw
from dlhw.storage.identity import without_hydra
from dlhw.storage.record import Record, directory_name
from dlhw.sweeps.expansion import MOST_JOBS, Plan
from dlhw.sweeps.job_lines import JobLines
from dlhw.sweeps.jobs import JobDirectories, PlannedJob, failure_reason, mark_unfinished, obstacle

if TYPE_CHECKING:
    from dlhw.views.comparison import Conclusion

log = logging.getLogger("dlhw")

Conclude = Callable[[Mapping[Path, str], float], str]
"""Writes the files of a comparison and returns its table, from the reasons of failed jobs and the seconds of all."""


class JobSweeper(Sweeper):
    """Runs jobs in the directory of a sweep, with any launcher. A subclass chooses the jobs.

    Args:
        params: values to sweep over by key, as on the command line.
        space: domains to search by key.
        fail_fast: stop after the first job that fails.
        confirm: the number of other seeds with which the best setting is trained at the end, because the metric by
            which it was selected is biased; None for none.
    """

    def __init__(self, *, params: Any, space: Any, fail_fast: bool, confirm: int | None) -> None:
        for name, value in (("params", params), ("space", space)):
            if not isinstance(value, Mapping | None):
                raise UsageError(f"hydra.sweeper.{name}={value}: must be a mapping of keys to values")
        if not isinstance(fail_fast, bool):
            raise UsageError(f"hydra.sweeper.fail_fast={fail_fast}: must be true or false")
        if confirm is not None and (type(confirm) is not int or not 1 <= confirm <= MOST_JOBS):
            raise UsageError(f"hydra.sweeper.confirm={confirm}: must be a whole number from 1 to {MOST_JOBS}, or null")
        self.params: Mapping[str, Any] = params or {}
        self.space: Mapping[str, Any] = space or {}
        self.fail_fast = fail_fast
        self.confirm = confirm
        self.ended: str | None = None
        """Why the launcher ended early: its error, or ``""`` after a failed job or a signal; None if it did not."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        assert isinstance(task_function, Program)
        self.context = hydra_context
        self.program = task_function
        self.cfg = config

    @signals.stoppable()
    def sweep(self, arguments: list[str]) -> None:
        """Validate the sweep, then run its jobs. Ends the program with code 1 if it failed."""
        if any(line.startswith("hydra.sweep.subdir=") for line in override_lines(self.cfg.hydra, "hydra")):
            raise UsageError("hydra.sweep.subdir: must not be set; the values of a job name its directory")
        self.prepare(arguments)
        with self._directory() as directory:
            succeeded = self.run(directory)
        if not succeeded:
            sys.exit(1)
        log.info("next: dlhw show %s", shell_line([str(directory)]))

    @abstractmethod
    def prepare(self, arguments: list[str]) -> None:
        """Read the overrides of the command line, before anything is written. Raise UsageError."""

    @abstractmethod
    def open(self, directory: Path) -> None:
        """Read what an earlier call left in the sweep's directory. Raise UsageError if this sweep does not fit."""

    @abstractmethod
    def run(self, directory: Path) -> bool:
        """Run the jobs in the sweep's directory. Return whether the sweep succeeded."""

    def planned(self, plan: Plan) -> PlannedJob:
        """Compose a job, which keeps the error of an invalid one."""
        try:
            cfg = self.context.config_loader.load_sweep_config(self.cfg, list(plan.overrides))
        except UsageError as error:
            return PlannedJob(plan, None, error)
        return PlannedJob(plan, without_hydra(cfg))

    def compose(self, plans: Sequence[Plan]) -> list[PlannedJob]:
        """Compose every job. Raise UsageError for a value that is invalid in every job that has it."""
        jobs = [self.planned(plan) for plan in tracked(plans, total=len(plans), what="composing the jobs")]

        @functools.cache
        def error_of(number: int) -> UsageError | None:
            job = jobs[number]
            try:
                if job.config is not None:
                    self.program.check(job.config, job.plan.overrides)
            except UsageError as error:
                return error
            return job.error

        numbers_by_override: dict[str, list[int]] = defaultdict(list)
        for number, job in enumerate(jobs):
            for override in job.plan.overrides:
                numbers_by_override[override].append(number)
        for numbers in numbers_by_override.values():
            if all(error_of(number) for number in numbers):  # checks only the first job if that one is valid
                raise error_of(numbers[0])  # type: ignore[misc]
        return jobs

    @contextlib.contextmanager
    def _directory(self) -> Iterator[Path]:
        """Lock the sweep's directory: a new one, or that of an earlier call if it is named. Raise UsageError."""
        directory = Path(self.cfg.hydra.sweep.dir)
        if not (program.names_directory(self.cfg, "sweep") and is_sweep_of_dlhw(directory)):
            directory = program.claim(self.cfg, "sweep")
        program.use(directory)
        with contextlib.ExitStack() as locks:
            try:
                locks.enter_context(Record(directory).locked())
            except UsageError as error:
                raise UsageError(f"{directory}: another process is running this sweep") from error
            self._require_same_sweeper(directory)
            self.open(directory)
            self.cfg.data_dir = str(Path(self.cfg.data_dir).absolute())  # as in config.yaml
            loader = self.context.config_loader
            assert isinstance(loader, composition.Loader)
            content = self.cfg if loader.resumed is None else resuming.resumed_multirun(directory, self.cfg)
            write_atomically(directory / "multirun.yaml", OmegaConf.to_yaml(content).encode())
            yield directory

    def _require_same_sweeper(self, directory: Path) -> None:
        """Raise UsageError if the directory is that of a sweep with another sweeper."""
        content = stored.read_multirun(directory)
        if content is None:
            return
        other = content["hydra"]["sweeper"]["_target_"]
        if other != self.cfg.hydra.sweeper._target_:
            raise UsageError(
                f"{printable(directory)}: the directory of a sweep with hydra.sweeper._target_={other}; choose another "
                "directory"
            )

    def compare(
        self,
        directory: Path,
        jobs: Mapping[Path, PlannedJob],
        reasons: Mapping[Path, str],
        *,
        seconds: float,
        earlier_runs: Sequence[Path] = (),
    ) -> Conclusion:
        """Compare jobs and the runs of earlier calls, and write tables, figures and summary to a directory."""
        from dlhw.cli.build import build
        from dlhw.views.comparison import compare_runs

        return compare_runs(
            directory,
            [*jobs, *earlier_runs],
            comparison=build(self.cfg, "comparison"),
            failures=reasons,
            about={"experiment": self.cfg.name, "seconds": seconds},
            overrides={path: job.plan.overrides for path, job in jobs.items()},
        )

    def train_confirmation(
        self, directory: Path, best: Sequence[PlannedJob], *, among: Collection[PlannedJob], first_seed: int
    ) -> bool:
        """Train the ``best`` of some jobs with ``confirm`` other seeds in ``confirmation/``, and compare them there.

        Runs of earlier calls are not compared: their seeds may have been used to select. Return whether all jobs have
        finished.
        """
        assert self.confirm is not None
        plans = []
        fixed = set.intersection(*(set(job.plan.overrides) for job in among))
        for job in best:
            lines = [line for line in job.plan.overrides if line.lstrip("+").partition("=")[0] != "seed"]
            varied = [line for line in lines if line not in fixed]
            plans += [
                Plan((*lines, f"seed={seed}"), directory_name([*varied, f"seed={seed}"]))
                for seed in range(first_seed, first_seed + self.confirm)
            ]
        confirmation = directory / "confirmation"
        confirmation.mkdir(exist_ok=True)
        planned = [self.planned(plan) for plan in plans]
        jobs = dict(zip(JobDirectories(confirmation).of(planned), planned, strict=True))
        settings, seeds = (
            f"{n} {word}{'' if n == 1 else 's'}" for n, word in ((len(best), "setting"), (self.confirm, "seed"))
        )
        log.info("confirming %s with %s that were not used before, in %s", settings, seeds, confirmation)

        def conclude(reasons: Mapping[Path, str], seconds: float) -> str:
            return self.compare(confirmation, jobs, reasons, seconds=seconds).text(with_verdict=False)

        with self.concluding(confirmation, jobs, conclude) as reasons:
            self.start([(job, path) for path, job in jobs.items() if not Record(path).finished], confirmation)
        return not reasons

    @contextlib.contextmanager
    def concluding(
        self, directory: Path, jobs: Mapping[Path, PlannedJob], conclude: Conclude
    ) -> Iterator[dict[Path, str]]:
        """Conclude at the end, even after an interruption. Yield the dict for the reasons of failed jobs."""
        started = time.monotonic()
        reasons: dict[Path, str] = {}
        try:
            yield reasons
        except KeyboardInterrupt:
            self.ended = ""
            raise
        finally:
            concluded = False
            try:
                reasons |= {path: reason for path in jobs if (reason := failure_reason(path, self.ended))}
                log.info("%s", conclude(reasons, time.monotonic() - started))
                concluded = True
            except (OSError, UsageError) as error:  # this error must not replace an interruption
                log.debug("the comparison failed", exc_info=True)
                log.error("%s", failures.one_line(error, directory))
            if self.ended == "":
                log.warning("stopped early; next: %s", shell_line(["dlhw", f"resume={self.cfg.hydra.sweep.dir}"]))
        if not concluded:
            sys.exit(1)

    def start(self, jobs: Sequence[tuple[PlannedJob, Path]], directory: Path) -> None:
        """Prepare the directories of jobs that are not finished, then launch those that can be launched."""
        todo = []
        for job, path in jobs:
            if reason := obstacle(path):
                log.error("%s", reason)
                continue
            Record(path).reopen()
            if job.error is None:
                todo.append((job, path))
            else:
                path.mkdir(exist_ok=True)
                Record(path).fail(job.error)
        mark_unfinished(directory, [path.name for _, path in jobs])
        self.ended = self._launch(todo)

    def _launch(self, jobs: Sequence[tuple[PlannedJob, Path]]) -> str | None:
        """Run the jobs. Return None, or why this ended early: the launcher's error, or ``""`` after a failed job."""
        if not jobs:
            return None
        launcher = self.launcher_for(len(jobs))
        if not self.cfg.hydra.verbose:
            for name in ("hydra", "hydra_plugins"):  # launchers log a line per job, as Worker does
                logging.getLogger(name).setLevel(logging.WARNING)
        lines = [
            [*job.plan.overrides, f"hydra.sweep.subdir='{path.relative_to(self.cfg.hydra.sweep.dir).as_posix()}'"]
            for job, path in jobs
        ]
        try:
            if not self.fail_fast:
                launcher.launch(lines, initial_job_idx=0)
                return None
            for number, (line, (_, path)) in enumerate(zip(lines, jobs, strict=True)):
                launcher.launch([line], initial_job_idx=number)
                if failure_reason(path, None):
                    return ""
        except Exception as error:
            signals.raise_received()
            log.debug("the launcher failed", exc_info=True)
            return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return None

    def launcher_for(self, jobs: int) -> Launcher:
        """Return the launcher that the config names, for this number of jobs. Raise UsageError if it is invalid."""
        lines = JobLines(Path(self.cfg.hydra.sweep.dir), jobs, time.time())
        worker = Worker(self.program, lines, platform.node(), os.getpid())
        try:
            return Plugins.instance().instantiate_launcher(self.context, worker, self.cfg)
        except Exception as error:
            if isinstance(error.__cause__, UsageError):  # raised by dlhw's own launcher
                raise error.__cause__ from error
            name = self.cfg.hydra.runtime.choices["hydra/launcher"]
            reason = " ".join(str(error.__cause__ or error).split())
            raise UsageError(f"hydra/launcher={name}: cannot be used ({reason})") from error


@dataclass(frozen=True)
class Worker:
    """The function that a launcher calls for each job, in any process. A local process ends when the sweeper's ends."""

    program: Program
    lines: JobLines
    host: str
    sweeper: int
    """The id of the sweeper's process."""

    def __call__(self, cfg: DictConfig) -> str | None:
        """Run one job. Return why it failed as text, because not every exception can be sent between processes."""
        composition.prepare()
        if platform.node() == self.host and os.getpid() != self.sweeper:
            _end_with(self.sweeper)
        settings = HydraConfig.get()
        with progress.quiet():
            error = failures.failure_of(lambda: self.program(cfg))
        log.info("%s", self.lines.line(settings.job.num + 1, settings.sweep.subdir))
        return None if error is None else f"{type(error).__name__}: {error}"


@functools.cache
def _end_with(process: int) -> None:
    """End this process when another one has ended for any reason. Its run can be resumed afterwards."""
    is_child = os.getppid() == process

    def watch() -> None:
        """Check twice a second whether the other process exists; a child is given to another parent before that."""
        while psutil.pid_exists(process) and (not is_child or os.getppid() == process):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
