"""The progress of a run on the console.

At a terminal, there is a live progress bar below the log lines, and in a notebook a table that is updated. Elsewhere,
such as in a Slurm log or a pipe, occasional log lines replace it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dlhw.errors import UsageError
from dlhw.runtime.notebook import EpochTable, in_notebook
from dlhw.runtime.paths import printable, printable_lines

T = TypeVar("T")

_log = logging.getLogger("dlhw")
_OF_AN_EPOCH = {"epoch": True}
"""Marks the log lines about epochs."""
QUIET_SECONDS = 60.0
_STYLES = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "bold red"}


@functools.cache
def console() -> Console:
    """Return the console of the process. It writes to stderr: stdout is for results."""
    # With FORCE_COLOR, rich treats any stream as a terminal; a bar in a log file is still noise.
    at_terminal = sys.stderr is not None and sys.stderr.isatty() and "JPY_PARENT_PID" not in os.environ  # !dlhw
    return Console(stderr=True, force_interactive=None if at_terminal else False)


class ConsoleHandler(logging.Handler):
    """Writes log records above the progress bar, without markup, wrapping or truncation.

    What is said about a dataset is shown once, although the dataset may be loaded for each of many seeds.
    """

    def __init__(self) -> None:
        super().__init__()
        self._about_data: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record. An error is reported by :mod:`logging` and does not stop the run."""
        if _hidden(record):
            return
        try:
            text = printable_lines(self.format(record))
            if record.name.startswith("dlhw.data."):
                if text in self._about_data:
                    return
                self._about_data.add(text)
            if in_notebook():
                if not getattr(record, "epoch", False):  # the table shows it
                    print(text)
                return
            output = console()
            if output.is_interactive:
                style = _STYLES.get(record.levelno, "")
                output.print(Text(text, style=style), soft_wrap=True)
            else:
                # rich ends the process on a broken pipe and keeps text that it cannot encode, so it is not used here.
                output.file.write(text + "\n")
                output.file.flush()
        except RecursionError:
            raise
        except Exception:
            self.handleError(record)


class _Quiet:
    """Whether only some records are shown in this process, and when one was shown last."""

    active = False
    shown = 0.0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Show only warnings and, once a minute, the results of an epoch; ``run.log`` has all lines."""
    before, _Quiet.active, _Quiet.shown = _Quiet.active, True, time.monotonic()
    try:
        yield
    finally:
        _Quiet.active = before


def _hidden(record: logging.LogRecord) -> bool:
    if not _Quiet.active or record.levelno >= logging.WARNING:
        return False
    if not getattr(record, "epoch", False) or time.monotonic() - _Quiet.shown < QUIET_SECONDS:
        return True
    _Quiet.shown = time.monotonic()
    return False


class RunLog(logging.FileHandler):
    """Writes log records to ``run.log``.

    A pipe or device in its place is an OSError instead of an endless wait. If a write fails, for example on a full
    disk, one line on stderr says so.
    """

    _has_failed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            super().emit(record)
        except OSError:  # from opening the file
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Report the first failed write."""
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._has_failed:
            self._has_failed = True
            print(printable(f"{self.baseFilename}: {error.strerror or error}"), file=sys.stderr)

    def _open(self) -> TextIOWrapper:
        path = Path(self.baseFilename)
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return super()._open()


def close_run_logs() -> None:
    """Remove the handlers of all run logs. Windows does not remove a directory that contains an open file."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, RunLog)]:
        root.removeHandler(handler)
        handler.close()


class Progress:
    """A progress bar for the epochs of a run, and a log line for the first, the last and some other epochs.

    There is at most one line per ``log_every_seconds``. Use it as a context manager; ``clock`` returns seconds.
    """

    def __init__(
        self,
        epochs: int,
        steps_per_epoch: int,
        *,
        start_epoch: int = 0,
        label: str = "",
        log_every_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._epoch = start_epoch
        self._first_step = self._steps = start_epoch * steps_per_epoch
        self._label = label
        self._log_every_seconds = log_every_seconds
        self._clock = clock
        self._started = clock()
        self._logged: float | None = None
        self._unlogged: str | None = None
        self._results = ""
        self._live: Live | None = None
        self._table: EpochTable | None = None

    def __enter__(self) -> Self:
        self._started = self._clock()
        output = console()
        if in_notebook():
            self._table = EpochTable(self._epochs, label=self._label)
        elif output.is_interactive:
            self._live = Live(
                console=output,
                get_renderable=self._render,
                refresh_per_second=4,
                transient=True,
                # A redirected stdout contains results, which must not appear on the console.
                redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
            )
            self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._unlogged is not None:  # the run stopped early, so this was the last epoch
                _log.info(self._unlogged, extra=_OF_AN_EPOCH)
        finally:
            if self._table is not None:
                self._table.close()
            if self._live is not None:
                with contextlib.suppress(OSError):  # a closed terminal does not end the run
                    self._live.stop()
                self._live = None

    def step(self) -> None:
        """Count one optimizer step. This only adds 1 to a counter, which the thread of the bar reads."""
        self._steps += 1

    def epoch(self, row: Mapping[str, float]) -> None:
        """Show the results of a finished epoch: training and validation loss and error, if present."""
        self._epoch += 1
        self._steps = self._epoch * self._steps_per_epoch
        self._results = _results(row)
        digits = len(str(self._epochs))
        parts = [
            f"epoch {self._epoch:>{digits}}/{self._epochs}",
            self._results,
            f"left {short_time(self._left)}",
        ]
        line = "  ".join(filter(None, [self._label, *parts]))
        if self._table is not None:
            self._table.add(row, left=short_time(self._left))
        now = self._clock()
        due = self._logged is None or now - self._logged >= self._log_every_seconds
        if due or self._epoch >= self._epochs:
            _log.info(line, extra=_OF_AN_EPOCH)
            self._logged = now
            self._unlogged = None
            if self._live is not None:
                self._live.refresh()
        else:
            self._unlogged = line

    @property
    def _elapsed(self) -> float:
        return self._clock() - self._started

    @property
    def _left(self) -> float:
        """Seconds left at the mean speed since the start; nan before the first step."""
        done = self._steps - self._first_step
        remaining = self._epochs * self._steps_per_epoch - self._steps
        return self._elapsed / done * max(0, remaining) if done else math.nan

    def _render(self) -> RenderableType:
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True, overflow="ellipsis")
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        bar.add_row(
            Text(f"{self._label} epoch {min(self._epoch + 1, self._epochs)}/{self._epochs}".lstrip()),
            ProgressBar(total=max(1, self._epochs * self._steps_per_epoch), completed=self._steps),
            Text(f"{clock_time(self._elapsed)}, left {clock_time(self._left)}"),
        )
        return Group(bar, Text(self._results, no_wrap=True, overflow="ellipsis")) if self._results else bar


def tracked(items: Iterable[T], *, total: int, what: str, log_every_seconds: float = 10.0) -> Iterator[T]:
    """Yield the items, with a progress bar at a terminal and occasional log lines elsewhere."""
    if console().is_interactive:
        from rich.progress import Progress as Bars

        with Bars(console=console(), transient=True) as bars:
            yield from bars.track(items, total=total, description=what)
        return
    logged = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - logged > log_every_seconds:
            _log.info("%s: %d of %d", what, count, total)
            logged = time.monotonic()


def _results(row: Mapping[str, float]) -> str:
    """Return loss and error, training before validation, short enough for a line of 80 columns."""
    parts = []
    for name, form, unit in (("loss", "#.3g", ""), ("error_percent", ".2f", " %")):
        values = [f"{prefix}{row[f'{part}_{name}']:{form}}" for part, prefix in _PARTS if f"{part}_{name}" in row]
        if values:
            parts.append(f"{name.removesuffix('_percent')} {', '.join(values)}{unit}")
    return "  ".join(parts)


_PARTS = (("train", ""), ("val", "val "))
"""The parts whose results are shown, and how a validation result begins."""


@contextlib.contextmanager
def repeated(line: Callable[[], str], *, every_seconds: float) -> Iterator[None]:
    """Log a line every some seconds, while this context trains something that takes long."""
    ended = threading.Event()

    def log_lines() -> None:
        while not ended.wait(every_seconds):
            with contextlib.suppress(OSError, UsageError):  # a file that another process is writing
                _log.info("%s", line())

    thread = threading.Thread(target=log_lines, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def short_time(seconds: float) -> str:
    """Return a duration as minutes and seconds, with hours only if there are some."""
    return clock_time(seconds).removeprefix("0:")


def clock_time(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds))) if math.isfinite(seconds) else "-:--:--"
