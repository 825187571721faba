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

import numpy as np
import torch
from hydra.core.singleton import Singleton
from torch import nn

from dlhw import train
from dlhw.cli import assembly, build, composition, failures, program
from dlhw.errors import UsageError
from dlhw.runtime import devices, progress, signals
from dlhw.runtime.devices import Precision
from dlhw.runtime.paths import shortened

_busy = threading.RLock()
"""Held while a command line runs: logging, Hydra and torch have one state for all threads."""


def execute(lines: tuple[str, ...], values: Mapping[str, Any], *, config_dir: str | Path | None, sweep: bool) -> Path:
    """Run ``dlhw train`` with these overrides in this process. Return the directory of the run or sweep.

    Raise UsageError for an invalid override, and the error of a run that fails; a sweep records those of its jobs.
    """
    arguments = [*overrides(lines, values, sweep=sweep)]
    arguments += ["-m"] if sweep else []
    arguments += [] if config_dir is None else ["--config-dir", os.fspath(config_dir)]
    with restored(), signals.stoppable():
        sys.argv = ["dlhw", *arguments]  # the run's summary has the command
        with failures.raised():
            program.execute(program.Program(train.task, train.check), arguments)
        directory = program.directory()
    if directory is None:
        raise UsageError(f"{' '.join(arguments)}: trains nothing; expected overrides, key=value")
    return directory


def overrides(lines: tuple[str, ...], values: Mapping[str, Any], *, sweep: bool = False) -> Iterator[str]:
    """Yield overrides as on a command line: the words of ``lines``, then ``key=value`` for each of the values.

    In a sweep, a list or range holds the values to try.
    """
    for line in lines:
        if not isinstance(line, str):
            raise UsageError(f"{shortened(line)}: a {type(line).__name__}; expected text, such as 'seed=1', or seed=1")
        words = shlex.shlex(line, posix=True, punctuation_chars=False)
        words.whitespace_split, words.commenters, words.escape = True, "", ""  # paths of Windows have backslashes
        try:
            yield from words
        except ValueError as error:
            raise UsageError(f"{shortened(line)}: a quotation mark is not closed") from error
    for key, value in values.items():
        plain = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        items = plain if sweep and isinstance(plain, list | tuple | range) else [plain]
        if not items:
            raise UsageError(f"{key}: no values")
        try:
            yield f"{key}={','.join(map(as_written, items))}"
        except UsageError as error:
            raise UsageError(f"{key}: {error}") from error


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
    raise UsageError(f"a {type(value).__name__}; expected a number, text, list or mapping")


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
    """Restore at the end what a command line changes in its process. Raise UsageError in a second thread."""
    with _only_thread(), _hydra_restored(), _logging_restored(), _signals_restored(), devices.restored():
        arguments = sys.argv
        try:
            yield
        finally:
            sys.argv = arguments


@contextlib.contextmanager
def _only_thread() -> Iterator[None]:
    if not _busy.acquire(blocking=False):
        raise UsageError("another thread of this process uses dlhw; start runs that train side by side as processes")
    try:
        yield
    finally:
        _busy.release()


@contextlib.contextmanager
def _hydra_restored() -> Iterator[None]:
    composition.prepare()  # finds Hydra's plugins, which register their configs only the first time
    singletons = Singleton.get_state()
    try:
        yield
    finally:
        Singleton.set_state(singletons)
        composition.prepare()


@contextlib.contextmanager
def _logging_restored() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in (None, "hydra", "hydra_plugins")]
    root, levels = loggers[0], [logger.level for logger in loggers]
    handlers = list(root.handlers)
    progress.console.cache_clear()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()
        root.handlers[:] = handlers
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        progress.console.cache_clear()


@contextlib.contextmanager
def _signals_restored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signals.install()
    try:
        yield
    finally:
        signals.install()  # forgets a signal that ended the run
        for number, handler in handlers.items():
            signal.signal(number, handler)
