"""The default sweeper: every combination of the values given, each trained once, whatever happens in between.

It finds mistakes before anything starts, names the jobs' directories by what varies, leaves out what an earlier call
in the same directory has finished, hands the rest to any launcher, and compares what there is at the end.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import os
import platform
import random
import shlex
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString, RangeSweep, Transformer
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from dlhw.cli import composition, program
from dlhw.cli.program import Program
from dlhw.errors import UsageError

log = logging.getLogger("dlhw")


class Grid(Sweeper):
    """All combinations of ``params`` and of the command line, where a key given again replaces that of ``params``.

    Values are written as for Hydra's own sweeper: ``1,2``, ``choice(1,2)``, ``range(...)``, ``glob(...)``. With
    ``fail_fast`` the first job that fails is the last.
    """

    def __init__(self, params: Mapping[str, Any] | None = None, *, fail_fast: bool = False) -> None:
        self.params = params or {}
        self.fail_fast = fail_fast

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        assert isinstance(task_function, Program)
        self.context = hydra_context
        self.program = task_function
        self.cfg = config

    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs. Ends the program with code 1 when one failed; an interruption passes through."""
        try:
            lines = [composition.quoted(f"{name}={value}") for name, value in self.params.items() if value is not None]
            left_out: dict[str, None] = {}
            jobs = self._compose(expand(lines, arguments, self.context.config_loader, self._left_over(left_out)))
            self._launcher(len(jobs))
            for name in left_out:
                log.info("%s is swept only where something reads it", name)
            with self._directory() as directory:
                failures = self._run(jobs, directory)
        except UsageError as error:
            composition.stop(error)
        except OSError as error:
            composition.stop(UsageError(_line(error, self.cfg.hydra.sweep.dir)))
        if failures:
            sys.exit(1)

    def _left_over(self, noted: dict[str, None]) -> LeftOver:
        """What :func:`expand` asks which of ``params`` nothing reads in a job; those are noted."""
        loader = self.context.config_loader
        assert isinstance(loader, composition.Loader)
        known: dict[tuple[str, ...], frozenset[str]] = {}

        def left_over(given: Sequence[str]) -> frozenset[str]:
            overrides = [composition.parsed(line) for line in given]
            structure = loader.structure(overrides)
            if structure not in known:
                known[structure] = loader.left_over(self.cfg, list(self.params), overrides)
                noted.update(dict.fromkeys(sorted(known[structure])))
            return known[structure]

        return left_over

    def _compose(self, plans: Sequence[Plan]) -> list[Job]:
        """Compose every job. Raises UsageError for a value that no job can do with; a combination may fail alone."""
        jobs = []
        for plan in plans:
            try:
                cfg = self.context.config_loader.load_sweep_config(self.cfg, list(plan.overrides))
                jobs.append(Job(plan, program.without_hydra(cfg)))
            except UsageError as error:
                jobs.append(Job(plan, None, error))

        @functools.cache
        def mistake(number: int) -> UsageError | None:
            job = jobs[number]
            try:
                if job.config is not None:
                    self.program.check(job.config, job.plan.overrides)
            except UsageError as error:
                return error
            return job.error

        with_value: dict[str, list[int]] = defaultdict(list)
        for number, job in enumerate(jobs):
            for override in job.plan.overrides:
                with_value[override].append(number)
        for numbers in with_value.values():
            if all(mistake(number) for number in numbers):  # asks the first alone, if that is right
                raise mistake(numbers[0])  # type: ignore[misc]
        return jobs

    @contextlib.contextmanager
    def _directory(self) -> Iterator[Path]:
        """The sweep's directory, an earlier sweep's if it is named, held for this process. Raises UsageError."""
        from dlhw.runs.record import Record
        from dlhw.runtime.files import write_atomically

        directory = Path(self.cfg.hydra.sweep.dir)
        if not (program.names_directory(self.cfg, "sweep") and (directory / "multirun.yaml").is_file()):
            directory = program.claim(self.cfg, "sweep")
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(Record(directory).locked())
            except UsageError as error:
                raise UsageError(f"{directory}: another process is running this sweep") from error
            self.cfg.data_dir = str(Path(self.cfg.data_dir).expanduser().absolute())  # as a run's config.yaml
            write_atomically(directory / "multirun.yaml", OmegaConf.to_yaml(self.cfg).encode())
            yield directory

    def _run(self, jobs: Sequence[Job], directory: Path) -> dict[Path, str]:
        """Launch what is not finished, compare all. Returns why jobs failed, by their directories."""
        from dlhw.runs.record import Record

        started = time.monotonic()
        paths = _directories(jobs, directory)
        finished = sum(Record(path).finished for path in paths)
        before = f", {finished} of them finished before" if finished else ""
        log.info("%d job%s%s, in %s", len(jobs), "" if len(jobs) == 1 else "s", before, directory)
        todo = []
        for job, path in zip(jobs, paths, strict=True):
            if Record(path).finished:
                continue
            Record(path).reopen()
            if job.error is None:
                todo.append((job, path))
            else:
                path.mkdir(exist_ok=True)
                Record(path).fail(job.error)
        ended: str | None = None
        try:
            ended = self._launch(todo)
        except KeyboardInterrupt:
            ended = ""
            raise
        finally:
            concluded = False
            try:
                failures = {path: reason for path in paths if (reason := _reason(path, ended))}
                planned = dict(zip(paths, jobs, strict=True))
                log.info("%s", self._conclude(directory, planned, failures, seconds=time.monotonic() - started))
                concluded = True
            except (OSError, UsageError) as error:  # an interruption is not to be lost to it
                log.debug("the comparison failed", exc_info=True)
                log.error("%s", _line(error, directory))
            if ended == "":
                log.warning("stopped early; go on with %s", shlex.quote(f"resume={directory}"))
        if not concluded:
            sys.exit(1)
        return failures

    def _launch(self, jobs: Sequence[tuple[Job, Path]]) -> str | None:
        """Run the jobs. Returns what ended it early: None, nothing (``""``) or the launcher's own failure."""
        if not jobs:
            return None
        launcher = self._launcher(len(jobs))
        if not self.cfg.hydra.verbose:
            for name in ("hydra", "hydra_plugins"):  # launchers' lines about each job, of which ours says more
                logging.getLogger(name).setLevel(logging.WARNING)
        lines = [[*job.plan.overrides, f"hydra.sweep.subdir='{path.name}'"] for job, path in jobs]
        try:
            if not self.fail_fast:
                launcher.launch(lines, initial_job_idx=0)
                return None
            for number, (line, (_, path)) in enumerate(zip(lines, jobs, strict=True)):
                launcher.launch([line], initial_job_idx=number)
                if _reason(path, None):
                    return ""
        except Exception as error:
            log.debug("the launcher failed", exc_info=True)
            return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return None

    def _launcher(self, jobs: int) -> Launcher:
        """The launcher that the config names, for so many jobs. Raises UsageError when it cannot be made."""
        program = Worker(self.program, jobs, platform.node(), os.getpid())
        try:
            return Plugins.instance().instantiate_launcher(self.context, program, self.cfg)
        except Exception as error:
            if isinstance(error.__cause__, UsageError):  # ours say it all
                raise error.__cause__ from error
            name = self.cfg.hydra.runtime.choices["hydra/launcher"]
            reason = " ".join(str(error.__cause__ or error).split())
            raise UsageError(f"hydra/launcher={name}: cannot be used ({reason})") from error

    def _conclude(self, directory: Path, jobs: Mapping[Path, Job], reasons: Mapping[Path, str], **about: Any) -> str:
        """Compare the jobs, and runs of other calls beside theirs. Returns the table that the sweep ends with."""
        from dlhw.cli.build import build
        from dlhw.views.comparison import compare_runs, run_directories

        try:
            others = [path for path in run_directories(directory) if path not in jobs]
        except UsageError:  # no job has begun
            others = []
        conclusion = compare_runs(
            directory,
            [*jobs, *others],
            comparison=build(self.cfg, "comparison"),
            failures=reasons,
            about={"experiment": self.cfg.name, **about},
            overrides={path: job.plan.overrides for path, job in jobs.items()},
        )
        return str(conclusion)


@dataclass(frozen=True)
class Plan:
    """A job as asked for: its overrides, and its directory's name."""

    overrides: tuple[str, ...]
    label: str


@dataclass(frozen=True)
class Job:
    """A job with its config, or with the reason that it has none."""

    plan: Plan
    config: DictConfig | None
    error: UsageError | None = None


@dataclass(frozen=True)
class Worker:
    """The program as a launcher's processes call it: it says which job it is, and ends with the sweep."""

    program: Program
    jobs: int
    host: str
    sweeper: int

    def __call__(self, cfg: DictConfig) -> str | None:
        """Run one job. Returns why it failed; an exception might not survive its way between processes."""
        composition.prepare()
        if platform.node() == self.host and os.getpid() != self.sweeper:
            _end_with(self.sweeper)
        settings = HydraConfig.get()
        log.info("job %d of %d: %s", settings.job.num + 1, self.jobs, settings.sweep.subdir)
        try:
            self.program(cfg)
        except Exception as error:  # told by the program already
            return f"{type(error).__name__}: {error}"
        return None


@functools.cache
def _end_with(process: int) -> None:
    """End this process when the other one is gone, however that ended. Runs are to be resumed after any end."""
    child = os.getppid() == process

    def watch() -> None:
        """Look twice a second whether the other process is there."""
        while True:
            time.sleep(0.5)
            try:
                os.kill(process, 0)
            except ProcessLookupError:
                os._exit(1)
            if child and os.getppid() != process:  # it is dead, but nobody has asked for its exit code
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


LeftOver = Callable[[Sequence[str]], frozenset[str]]


def expand(
    params: Sequence[str], given: Sequence[str], loader: ConfigLoader | None = None, left_over: LeftOver | None = None
) -> list[Plan]:
    """Every combination of the overrides' values, the last override's varying fastest; equal ones once.

    Numbers are equal as numbers, and the first way of writing one stays. An override in ``given`` replaces the one of
    ``params`` for the same key. A range is without its stop, for
    fractions as for whole numbers and whatever their rounding: ``range(0,0.2,0.01)`` has 20 values, of 12 digits at
    most. A job's label tells its values of the keys that have, or had in ``params``, several. Of ``params``, a job is
    without the keys that ``left_over`` says for its overrides from ``given``. Raises UsageError.
    """
    from dlhw.runs.record import directory_name

    axes: dict[str, tuple[Override, bool]] = {}
    declared = set()
    for override in _parse(params, loader):
        if override.is_hydra_override():
            raise UsageError(f"{override.input_line}: Hydra's own settings are no parameters of a sweep")
        axes[override.key_or_group] = (override, override.is_sweep_override())
        declared.add(override.key_or_group)
    for override in _parse(given, loader):
        name = override.key_or_group
        name = name if name in axes else override.get_key_element()
        axes[name] = (override, override.is_sweep_override() or (name in axes and axes[name][1]))
        declared.discard(name)
    values = [_values(override) for override, _ in axes.values()]
    varies = [several for _, several in axes.values()]
    plans: dict[tuple[str, ...], str] = {}
    for combination in itertools.product(*values):
        lines = dict(zip(axes, combination, strict=True))
        if left_over is not None and declared:
            without = left_over([line for name, line in lines.items() if name not in declared]) & declared
            lines = {name: line for name, line in lines.items() if name not in without}
        told = [lines[name] for name, several in zip(axes, varies, strict=True) if several and name in lines]
        told = told or [line for name, line in lines.items() if name not in program.NOT_COMPARED]
        plans.setdefault(tuple(lines.values()), directory_name(told))
    return [Plan(overrides, name) for overrides, name in plans.items()]


def _parse(lines: Sequence[str], loader: ConfigLoader | None) -> list[Override]:
    parsed = []
    for line in lines:
        try:
            parsed += OverridesParser.create(config_loader=loader).parse_overrides([line])
        except HydraException as error:
            raise UsageError(f"{line}: cannot be read as the values of a sweep; write 1,2,3 or range(3)") from error
    return parsed


def _values(override: Override) -> list[str]:
    """The override for each of its values, as a job's override list has it."""
    key, value = override.get_key_element(), override.value()
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        raise UsageError(
            f"{override.input_line}: a grid needs single values, as in {key}=0.1,0.2 or {key}=range(0,1,0.1)"
        )
    if isinstance(value, RangeSweep):
        texts = [str(number) for number in _range(value, str(override.input_line))]
    else:
        distinct: dict[Any, Any] = {}
        for element in override.sweep_iterator():
            distinct.setdefault(_meaning(element), element)
        texts = [_written(element) for element in distinct.values()]
    if not texts:
        raise UsageError(f"{override.input_line}: has no values")
    return [f"{key}={text}" for text in texts]


def _meaning(value: Any) -> Any:
    """Of a parsed value, what is equal for ways of writing the same: 1 and 1.0, but neither true nor '1'."""
    if isinstance(value, list):
        return tuple(map(_meaning, value))
    if isinstance(value, dict):
        return frozenset((_meaning(name), _meaning(entry)) for name, entry in value.items())
    if isinstance(value, QuotedString):
        return value.text
    return (bool, value) if isinstance(value, bool) else value


def _range(sweep: RangeSweep, line: str) -> list[int] | list[float]:
    start, stop, step = sweep.start, sweep.stop, sweep.step
    assert start is not None
    assert stop is not None
    if step == 0 or not all(map(math.isfinite, (start, stop, step))):
        raise UsageError(f"{line}: a range needs finite ends and a step that is not 0")
    numbers: list[Any]
    if all(isinstance(number, int) for number in (start, stop, step)):
        numbers = list(range(start, stop, step))  # type: ignore[arg-type]
    else:
        first, last, width = (Decimal(repr(number)) for number in (start, stop, step))  # as written
        count = math.ceil((last - first) / width - Decimal("1e-9"))
        numbers = [float(f"{first + index * width:.12g}") for index in range(count)]
    if sweep.shuffle:
        random.shuffle(numbers)
    return numbers


def _written(value: Any) -> str:
    """A parsed value as on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(Transformer.str(value))


def _directories(jobs: Sequence[Job], directory: Path) -> list[Path]:
    """Each job's directory: the one where an earlier call began it, whatever its name, else one that holds no run.

    Of jobs with the same config, those begun under their own names have these again.
    """
    runs = {path.parent: program.identity_of_run(path.parent) for path in sorted(directory.glob("*/config.yaml"))}
    begun: list[list[Path]] = []
    taken: dict[Path, Job] = {}
    for job in jobs:
        wanted = program.identity(job.config) if runs and job.config is not None else None
        begun.append([path for path, stored in runs.items() if wanted is not None and stored == wanted])
        own = directory / job.plan.label
        if own in begun[-1]:
            taken.setdefault(own, job)
    paths = []
    for job, earlier in zip(jobs, begun, strict=True):
        own = directory / job.plan.label
        if taken.get(own) is not job:
            others = (own.with_name(f"{own.name}-{attempt}") for attempt in itertools.count(2))
            new = (path for path in itertools.chain([own], others) if path not in runs)
            own = next(path for path in itertools.chain(earlier, new) if path not in taken)
            taken[own] = job
        paths.append(own)
    return paths


def _line(error: OSError | UsageError, directory: str | Path) -> str:
    """An error of the sweep in this directory in one line, an operating system's with the file that it is about."""
    return f"{error.filename or directory}: {error.strerror or error}" if isinstance(error, OSError) else str(error)


def _reason(path: Path, ended: str | None) -> str | None:
    """Why the job in this directory failed; None for one that is finished or was never to be."""
    from dlhw.runs.record import read_summary

    summary = read_summary(path)
    if summary.get("status") == "failed":
        return str(summary.get("reason"))
    if summary.get("status") == "finished":
        return None
    return "it ended without a word; see its run.log" if ended is None else ended
