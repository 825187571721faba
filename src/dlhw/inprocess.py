"""The command line inside of a Python process: for scripts, notebooks and debuggers."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.core.singleton import Singleton
from torch import nn

from dlhw import train
from dlhw.cli import assembly, build, composition, failures, program
from dlhw.errors import UsageError
from dlhw.runtime import progress, signals
from dlhw.runtime.devices import Precision


def execute(lines: tuple[str, ...], values: Mapping[str, Any], *, config_dir: str | Path | None, sweep: bool) -> Path:
    """Run ``dlhw train`` with these overrides in this process. Return the directory of the run or sweep.

    Raise UsageError for an invalid override, and the error of a run that fails.
    """
    arguments = [*overrides(lines, values, sweep=sweep)]
    arguments += ["-m"] if sweep else []
    arguments += [] if config_dir is None else ["--config-dir", os.fspath(config_dir)]
    with restored(), failures.raised(), signals.stoppable():
        sys.argv = ["dlhw", *arguments]  # the run's summary has the command
        directory = program.execute(program.Program(train.task, train.check), arguments)
    if directory is None:
        directory = next(Path(line.partition("=")[2]) for line in arguments if line.startswith("resume="))
    return directory


def overrides(lines: tuple[str, ...], values: Mapping[str, Any], *, sweep: bool = False) -> Iterator[str]:
    """Yield overrides as on a command line: the words of ``lines``, then ``key=value`` for each of the values.

    In a sweep, a list or range holds the values to try.
    """
    for line in lines:
        yield from shlex.split(line)
    for key, value in values.items():
        if sweep and isinstance(value, list | tuple | range):
            yield f"{key}={','.join(as_written(item) for item in value)}"
        else:
            yield f"{key}={as_written(value)}"


def as_written(value: Any) -> str:
    """Return a value as it is written on the command line. Raise UsageError for an object."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        return text if text.isidentifier() else "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{as_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple | range):
        return "[" + ",".join(map(as_written, value)) + "]"
    raise UsageError(f"{type(value).__name__}: not a value of a config; expected a number, text, list or mapping")


def make_model(
    lines: tuple[str, ...], values: Mapping[str, Any], *, shape: tuple[int, ...] | None, outputs: int | None
) -> nn.Module:
    """Build and initialize the model of a config; its dataset is loaded only if shape or outputs are not given."""
    with restored():
        components = build.validate(program.compose(*overrides(lines, values)))
        if shape is None or outputs is None:
            data = assembly.load_data(components, Precision("fp32", torch.device("cpu")))
            shape, outputs = shape or data.shape, outputs or data.outputs
        return assembly.build_model(components, shape=shape, outputs=outputs)


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Restore what a command line changes in its process: its arguments, logging, signals, threads, Hydra's state."""
    composition.prepare()  # finds Hydra's plugins, which register their configs only the first time
    singletons, root, threads = Singleton.get_state(), logging.getLogger(), torch.get_num_threads()
    handlers, level, argv = list(root.handlers), root.level, sys.argv
    levels = {name: logging.getLogger(name).level for name in ("hydra", "hydra_plugins")}
    in_main_thread = threading.current_thread() is threading.main_thread()
    signal_handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    if in_main_thread:
        signals.install()
    progress.console.cache_clear()
    try:
        yield
    finally:
        sys.argv = argv
        torch.set_num_threads(threads)
        logging.disable(logging.NOTSET)
        if in_main_thread:
            signals.install()  # forgets a signal that ended the run
            for number, handler in signal_handlers.items():
                signal.signal(number, handler)
        for log_handler in root.handlers:
            if log_handler not in handlers:
                log_handler.close()
        root.handlers[:], root.level = handlers, level
        for name, other in levels.items():
            logging.getLogger(name).setLevel(other)
        Singleton.set_state(singletons)
        composition.prepare()
        progress.console.cache_clear()
