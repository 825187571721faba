"""The command line: the function that Hydra calls for every run, and the directory of the run.

This module does not import torch, so that help and completion answer at once.
"""

from __future__ import annotations

import atexit
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

import dlhw
from dlhw.cli import failures, hydra_internals
from dlhw.cli.composition import CONFIG_NAME, PLUGINS, conf_dir, flag_hint, prepare, quoted
from dlhw.cli.failures import stop
from dlhw.cli.messages import first_line
from dlhw.cli.origins import override_lines
from dlhw.errors import UsageError
from dlhw.runtime import processes
from dlhw.runtime.progress import close_run_logs
from dlhw.storage.record import claim_directory, release_directories


@dataclass(frozen=True)
class Program:
    """The function that Hydra calls for every config.

    Args:
        task: ``task(cfg, directory, overrides, in_sweep)`` executes one run with these overrides of the command line.
        check: ``check(cfg, overrides)`` raises UsageError for an invalid config.
    """

    task: Callable[[DictConfig, Path, Sequence[str], bool], None]
    check: Callable[[DictConfig, Sequence[str]], object]

    def __call__(self, cfg: DictConfig) -> None:
        settings = HydraConfig.get()
        in_sweep = settings.mode == RunMode.MULTIRUN
        try:
            self.task(cfg, Path(settings.runtime.output_dir), override_lines(settings, "task"), in_sweep)
        except UsageError as error:
            if in_sweep:
                raise
            stop(error)


def command_line(program: Program) -> None:
    """Run the program with the arguments in ``sys.argv``.

    A UsageError ends it with the error's message and exit code 1, Ctrl-C with 130, SIGTERM with 143.
    """
    with failures.end_program():
        arguments = sys.argv[1:]
        if "--version" in arguments:
            print(f"dlhw {dlhw.__version__}")
            return
        if (unknown := hydra_internals.unknown_flag(arguments)) is not None:
            following = arguments[arguments.index(unknown) + 1 :]
            raise UsageError(f"{unknown}: unknown flag{flag_hint(unknown, following)}")
        execute(program, arguments, ends_program=True)


def execute(program: Program, arguments: Sequence[str], *, ends_program: bool = False) -> None:
    """Run the program with these arguments of a command line; :func:`directory` is then that of its run or sweep.

    Raise UsageError, and SystemExit with the error as its cause where Hydra would not pass on the error itself. With
    ``ends_program`` an invalid command line ends the program with a message.
    """
    _created.clear()
    _used.clear()
    prepare(ends_program=ends_program)
    in_order = sorted(arguments, key=lambda text: text not in ("-m", "--multirun"))  # argparse needs it first
    try:
        hydra_internals.run(program, in_order, config_dir=conf_dir(), config_name=CONFIG_NAME)
    except OSError:
        raise
    except Exception as error:
        if hydra_internals.raised_by_library(error):
            raise UsageError(first_line(error)) from error
        raise error.with_traceback(hydra_internals.without_library_frames(error.__traceback__)) from error.__cause__
    finally:
        close_run_logs()
        for directories in _created:
            release_directories(directories)


def directory() -> Path | None:
    """Return the directory of the run or sweep that the last command line has started or resumed, if any."""
    return _used[0] if _used else None


def compose(*overrides: str) -> DictConfig:
    """Return the config of a command line with these overrides, for scripts, notebooks and tests. Raise UsageError."""
    prepare()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra.compose(CONFIG_NAME, overrides=list(overrides))


_used: list[Path] = []
"""The directory of the run or sweep of this command line, as soon as it is known."""
_created: list[list[Path]] = []
"""For each run and sweep of this command line, the directories that it has created, the innermost first."""


class ClaimDirectory(Callback):
    """Creates the directory of every run, and of every sweep whose sweeper is not dlhw's."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Create the run's directory; a process that does not write the run gets a temporary one."""
        if processes.rank():  # only the first process writes the run
            logging.disable()
            config.hydra.run.dir = tempfile.mkdtemp(prefix="dlhw-")
            atexit.register(shutil.rmtree, config.hydra.run.dir, ignore_errors=True)
        elif config.resume is None:
            _claim_or_stop(config, "run")
        use(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse what is invalid with ``-m``, and create the directory of the sweep."""
        if processes.world_size() > 1:
            stop(
                UsageError(
                    "torchrun: invalid with -m, because it trains a single run; start the sweep without torchrun"
                )
            )
        if config.resume is not None:
            stop(UsageError(f"resume={config.resume}: invalid with -m; resume a single run without -m"))
        if config.hydra.sweeper._target_ not in PLUGINS:  # dlhw's sweeper checks the jobs first
            _claim_or_stop(config, "sweep")
            use(Path(config.hydra.sweep.dir))


def use(path: Path) -> None:
    """Note the directory of the run or sweep, for :func:`directory`."""
    _used.append(path.absolute())


def _claim_or_stop(config: DictConfig, kind: str) -> None:
    """Claim a directory, or end the program: Hydra turns the errors of a callback into warnings."""
    try:
        claim(config, kind)
    except UsageError as error:
        stop(error)


def claim(config: DictConfig, kind: str) -> Path:
    """Create the directory of a ``run`` or ``sweep`` and set it in its config.

    Raise UsageError if the command line names a directory that exists.
    """
    named = names_directory(config, kind)
    requested = Path(config.hydra[kind].dir).absolute()
    created = [path for path in (requested, *requested.parents) if not path.exists()]
    _created.append(created)
    directory = claim_directory(Path(config.hydra[kind].dir), exact=named)
    if directory.absolute() != requested:
        created.insert(0, directory.absolute())
    config.hydra[kind].dir = str(directory)
    if kind == "sweep" and not named:
        config.hydra.overrides.hydra.append(quoted(f"hydra.sweep.dir={directory}"))  # the same for every job
    return directory


def names_directory(config: DictConfig, kind: str) -> bool:
    """Return whether the command line names the directory of the ``run`` or ``sweep``."""
    return any(line.startswith(f"hydra.{kind}.dir=") for line in override_lines(config.hydra, "hydra"))
