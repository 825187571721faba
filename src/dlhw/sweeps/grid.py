"""The default sweeper: train every combination of the values once, even over several calls.

It validates all jobs before the first starts, names their directories by the keys that vary, skips the jobs that an
earlier call in the same directory has finished, gives the others to any launcher, and compares all runs at the end.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import platform
import shlex
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from dlhw.runs.directories import is_sweep_of_dlhw
from dlhw.runs.identity import without_hydra
from dlhw.runs.record import Record
from dlhw.runtime import signals
from dlhw.runtime.files import write_atomically
from dlhw.runtime.progress import tracked
from dlhw.sweeps.expansion import Plan, UnreadParams, expand
from dlhw.sweeps.jobs import PlannedJob, failure_reason, job_directories, mark_unfinished, obstacle

log = logging.getLogger("dlhw")


class Grid(Sweeper):
    """All combinations of the values in ``params`` and on the command line, which replaces keys of ``params``.

    Values are written as for Hydra's own sweeper: ``1,2``, ``choice(1,2)``, ``range(...)``, ``glob(...)``. With
    ``fail_fast`` the sweep stops after the first job that fails.
    """

    def __init__(self, params: Mapping[str, Any] | None = None, *, fail_fast: bool = False) -> None:
        if not isinstance(params, Mapping | None):
            raise UsageError(f"hydra.sweeper.params={params}: must be a mapping of keys to values")
        if not isinstance(fail_fast, bool):
            raise UsageError(f"hydra.sweeper.fail_fast={fail_fast}: must be true or false")
        self.params = params or {}
        self.fail_fast = fail_fast

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        assert isinstance(task_function, Program)
        self.context = hydra_context
        self.program = task_function
        self.cfg = config

    @signals.stoppable()
    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs. Ends the program with code 1 if one failed."""
        if any(line.startswith("hydra.sweep.subdir=") for line in override_lines(self.cfg.hydra, "hydra")):
            raise UsageError("hydra.sweep.subdir: must not be set; the values of a job name its directory")
        lines = [composition.quoted(f"{name}={value}") for name, value in self.params.items() if value is not None]
        unread: dict[str, None] = {}
        jobs = self._compose(
            expand(lines, arguments, loader=self.context.config_loader, unread_params=self._unread_params(unread))
        )
        self._launcher(len(jobs))
        for name in unread:
            log.info("%s varies only in jobs that read it", name)
        with self._directory() as directory:
            reasons = self._run(jobs, directory)
        if reasons:
            sys.exit(1)

    def _unread_params(self, collected: dict[str, None]) -> UnreadParams:
        """Return the function with which :func:`expand` finds ``params`` that a job does not read. It collects them."""
        loader = self.context.config_loader
        assert isinstance(loader, composition.Loader)
        by_structure: dict[tuple[str, ...], frozenset[str]] = {}

        def unread_params(lines: Sequence[str]) -> frozenset[str]:
            overrides = [composition.parsed(line) for line in lines]
            structure = loader.structure(overrides)
            if structure not in by_structure:
                by_structure[structure] = loader.unread_params(self.cfg, list(self.params), overrides)
                collected.update(dict.fromkeys(sorted(by_structure[structure])))
            return by_structure[structure]

        return unread_params

    def _compose(self, plans: Sequence[Plan]) -> list[PlannedJob]:
        """Compose every job. Raise UsageError for a value that is invalid in every job that has it."""
        jobs = []
        for plan in tracked(plans, total=len(plans), what="composing the jobs"):
            try:
                cfg = self.context.config_loader.load_sweep_config(self.cfg, list(plan.overrides))
                jobs.append(PlannedJob(plan, without_hydra(cfg)))
            except UsageError as error:
                jobs.append(PlannedJob(plan, None, error))

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
        with contextlib.ExitStack() as locks:
            try:
                locks.enter_context(Record(directory).locked())
            except UsageError as error:
                raise UsageError(f"{directory}: another process is running this sweep") from error
            self.cfg.data_dir = str(Path(self.cfg.data_dir).absolute())  # as in config.yaml
            loader = self.context.config_loader
            assert isinstance(loader, composition.Loader)
            content = self.cfg if loader.resumed is None else resuming.resumed_multirun(directory, self.cfg)
            write_atomically(directory / "multirun.yaml", OmegaConf.to_yaml(content).encode())
            yield directory

    def _run(self, jobs: Sequence[PlannedJob], directory: Path) -> dict[Path, str]:
        """Launch the jobs that are not finished, then compare all. Return the reasons of failed jobs by directory."""
        started = time.monotonic()
        paths = job_directories(jobs, directory)
        finished = {path for path in paths if Record(path).finished}
        note = f", {len(finished)} of them already finished" if finished else ""
        log.info("%d job%s%s, in %s", len(jobs), "" if len(jobs) == 1 else "s", note, directory)
        todo = []
        for job, path in zip(jobs, paths, strict=True):
            if path in finished:
                continue
            if reason := obstacle(path):
                log.error("%s", reason)
                continue
            Record(path).reopen()
            if job.error is None:
                todo.append((job, path))
            else:
                path.mkdir(exist_ok=True)
                Record(path).fail(job.error)
        mark_unfinished(directory, [path.name for path in paths if path not in finished])
        ended: str | None = None
        try:
            ended = self._launch(todo)
        except KeyboardInterrupt:
            ended = ""
            raise
        finally:
            concluded = False
            try:
                reasons = {path: reason for path in paths if (reason := failure_reason(path, ended))}
                planned = dict(zip(paths, jobs, strict=True))
                log.info("%s", self._conclude(directory, planned, reasons, seconds=time.monotonic() - started))
                concluded = True
            except (OSError, UsageError) as error:  # this error must not replace an interruption
                log.debug("the comparison failed", exc_info=True)
                log.error("%s", failures.one_line(error, directory))
            if ended == "":
                log.warning("stopped early; resume with %s", shlex.quote(f"resume={directory}"))
        if not concluded:
            sys.exit(1)
        return reasons

    def _launch(self, jobs: Sequence[tuple[PlannedJob, Path]]) -> str | None:
        """Run the jobs. Return None, or why this ended early: the launcher's error, or ``""`` after a failed job."""
        if not jobs:
            return None
        launcher = self._launcher(len(jobs))
        if not self.cfg.hydra.verbose:
            for name in ("hydra", "hydra_plugins"):  # launchers log a line per job, as Worker does
                logging.getLogger(name).setLevel(logging.WARNING)
        lines = [[*job.plan.overrides, f"hydra.sweep.subdir='{path.name}'"] for job, path in jobs]
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

    def _launcher(self, jobs: int) -> Launcher:
        """Return the launcher that the config names, for this number of jobs. Raise UsageError if it is invalid."""
        worker = Worker(self.program, jobs, platform.node(), os.getpid())
        try:
            return Plugins.instance().instantiate_launcher(self.context, worker, self.cfg)
        except Exception as error:
            if isinstance(error.__cause__, UsageError):  # raised by dlhw's own launcher
                raise error.__cause__ from error
            name = self.cfg.hydra.runtime.choices["hydra/launcher"]
            reason = " ".join(str(error.__cause__ or error).split())
            raise UsageError(f"hydra/launcher={name}: cannot be used ({reason})") from error

    def _conclude(
        self, directory: Path, jobs: Mapping[Path, PlannedJob], reasons: Mapping[Path, str], **about: Any
    ) -> str:
        """Compare the jobs and the runs of earlier calls in the directory. Return the table that ends the log."""
        from dlhw.cli.build import build
        from dlhw.views.comparison import compare_runs, run_directories

        try:
            earlier_runs = [path for path in run_directories(directory) if path not in jobs]
        except UsageError:  # no job has begun
            earlier_runs = []
        conclusion = compare_runs(
            directory,
            [*jobs, *earlier_runs],
            comparison=build(self.cfg, "comparison"),
            failures=reasons,
            about={"experiment": self.cfg.name, **about},
            overrides={path: job.plan.overrides for path, job in jobs.items()},
        )
        return str(conclusion)


@dataclass(frozen=True)
class Worker:
    """The function that a launcher calls for each job, in any process. A local process ends when the sweeper's ends."""

    program: Program
    jobs: int
    host: str
    sweeper: int
    """The id of the sweeper's process."""

    def __call__(self, cfg: DictConfig) -> str | None:
        """Run one job. Return why it failed as text, because not every exception can be sent between processes."""
        composition.prepare()
        if platform.node() == self.host and os.getpid() != self.sweeper:
            _end_with(self.sweeper)
        settings = HydraConfig.get()
        log.info("job %d of %d: %s", settings.job.num + 1, self.jobs, settings.sweep.subdir)
        error = failures.failure_of(lambda: self.program(cfg))
        return None if error is None else f"{type(error).__name__}: {error}"


@functools.cache
def _end_with(process: int) -> None:
    """End this process when another one has ended for any reason. Its run can be resumed afterwards."""
    is_child = os.getppid() == process

    def watch() -> None:
        """Check twice a second whether the other process exists."""
        while True:
            time.sleep(0.5)
            try:
                os.kill(process, 0)
            except ProcessLookupError:
                os._exit(1)
            if is_child and os.getppid() != process:  # a zombie, which os.kill still finds
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
