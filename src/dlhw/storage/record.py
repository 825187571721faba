"""Write the files of a run directory. Checkpoints are in :mod:`dlhw.storage.checkpoint`.

``metrics.csv`` has one row per finished epoch. It holds no times, so equal runs have equal files; times are in
``timing.csv``. During training the rows of both files are buffered for up to 0.2 seconds, longer with many runs at
once, and written when training ends or is interrupted (:meth:`Record.buffered`). ``summary.json`` is written last:
status ``finished`` means that the run is complete.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import io
import itertools
import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dlhw.errors import UsageError
from dlhw.runtime.files import LOCK_FILE, locked, when_closed, write_atomically
from dlhw.runtime.paths import is_reserved
from dlhw.storage.stored import Unreadable, complete_lines, read_seconds, read_summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

Row = dict[str, float]
_BEFORE_THE_RUN = {".hydra", "run.log", ".config.yaml.partial", ".multirun.yaml.partial", LOCK_FILE}
"""The entries that a run directory may have before its run begins."""
_TIMING_HEADER = "epoch,seconds\n"


def claim_directory(requested: Path, *, exact: bool) -> Path:
    """Create a new directory: ``requested``, or the first of ``requested-2``, ``requested-3``, ... that is free.

    With ``exact``, a directory that exists is an error, unless a process that was killed left nothing of a run in it.
    Creation is exclusive, so two runs that start at the same moment get different directories. Raise UsageError.
    """
    try:
        requested.parent.mkdir(parents=True, exist_ok=True)
        for attempt in itertools.count(1):
            path = requested if attempt == 1 else requested.with_name(f"{requested.name}-{attempt}")
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return path
            if exact:
                _require_nothing_of_a_run(path)
                return path
    except FileExistsError as error:
        raise UsageError(f"{error.filename}: a file or a broken link; expected a directory for runs") from error
    except OSError as error:
        raise UsageError(
            f"{error.filename or requested}: the run directory cannot be created ({error.strerror})"
        ) from error
    raise AssertionError


def _require_nothing_of_a_run(path: Path) -> None:
    """Raise UsageError unless a directory is empty or holds only what Hydra writes before a run begins."""
    if not path.is_dir():
        raise UsageError(f"{path}: a file; expected a directory for a run")
    if any((path / name).exists() for name in ("config.yaml", "multirun.yaml")):
        raise UsageError(
            f"{path}: already exists, and runs are never overwritten; choose another directory, or use resume={path}"
        )
    if not _has_nothing_of_a_run(path):
        raise UsageError(f"{path}: is not empty, and runs are never written into other files; choose another directory")
    if not os.access(path, os.W_OK | os.X_OK):
        raise UsageError(f"{path}: not writable; choose another directory")
    with Record(path).locked():
        pass


def release_directories(paths: Sequence[Path]) -> None:
    """Remove directories in which no run has begun, in this order; one with other content or a lock is kept."""
    for path in paths:
        with contextlib.suppress(OSError, UsageError):
            if not _has_nothing_of_a_run(path):
                continue
            with Record(path).locked():
                if _has_nothing_of_a_run(path):
                    shutil.rmtree(path / ".hydra", ignore_errors=True)
                    for name in _BEFORE_THE_RUN - {".hydra", LOCK_FILE}:
                        (path / name).unlink(missing_ok=True)
            path.rmdir()  # fails if it has other content, or if another process has locked it by now


def _has_nothing_of_a_run(path: Path) -> bool:
    return {entry.name for entry in path.iterdir()} <= _BEFORE_THE_RUN


class Follower(Protocol):
    """Is told what a record writes, after it is written."""

    def rows(self, rows: Sequence[Row]) -> None:
        """Rows of ``metrics.csv`` were written."""

    def end(self) -> None:
        """``summary.json`` was written."""

    def close(self) -> None:
        """Nothing more will be written."""


class Record:
    """A run directory, open for writing.

    ``rows`` holds one row per finished epoch, including those before an interruption.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        self._ahead: list[str] = []  # lines of metrics.csv for epochs after the checkpoint that training resumed from
        self._pending: dict[str, list[str]] = {}  # for each file its header, then the lines not written yet
        self._every_seconds = 0.0
        self._written = 0.0
        self._follower: Follower | None = None
        self._followed = 0  # the number of rows that the follower has

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the directory until the block or the process ends. Raise UsageError if another process holds it.

        At the end of the block, the follower is closed.
        """
        with locked(self.path / LOCK_FILE, wait=False, busy=f"{self.path}: another process is training this run"):
            try:
                yield
            finally:
                if self._follower is not None:
                    self._follower.close()

    def follow(self, follower: Follower) -> None:
        """Tell a follower the rows so far, and from now on everything that is written."""
        self._follower, self._followed = follower, 0
        self._tell_rows()

    def _tell_rows(self) -> None:
        if self._follower is not None and self._followed < len(self.rows):
            self._follower.rows(self.rows[self._followed :])
            self._followed = len(self.rows)

    def write_config(self, text: str, *, new: bool) -> None:
        """Write ``config.yaml``. Raise UsageError if the run is ``new`` but the directory already contains one."""
        if new and (self.path / "config.yaml").exists():
            raise UsageError(f"{self.path}: already contains a run; runs are never overwritten")
        write_atomically(self.path / "config.yaml", text.encode())

    @property
    def finished(self) -> bool:
        """Whether the run is complete. An invalid summary is logged, and the run counts as incomplete."""
        try:
            return read_summary(self.path).get("status") == "finished"
        except Unreadable as error:
            log.warning("%s (the run is completed again)", error)
            return False

    def restore(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Continue after ``rows``, the rows of a checkpoint.

        Later rows stay in ``metrics.csv`` until their epochs are computed again.
        """
        self.rows = [dict(row) for row in rows]
        known = _lines(self.rows)
        lines = complete_lines(self.path / "metrics.csv")
        if lines[: len(known)] != known:  # the file lacks rows of the checkpoint, or they differ
            lines = known
        self._ahead = lines[len(known) or 1 :]
        self._write("metrics.csv", lines if self._ahead else known)
        times = [_timing(epoch, seconds) for epoch, seconds in read_seconds(self.path).items()]
        self._write("timing.csv", [_TIMING_HEADER, *times] if times else [])

    def append(self, row: Row, *, seconds: float) -> None:
        """Add the row of a finished epoch. ``seconds`` is its wall time, including evaluation."""
        self.rows.append(row)
        line = _numbers(row)
        if self._ahead and self._ahead[0] == line:
            self._ahead.pop(0)
        elif self._ahead:  # the results differ, for example on other hardware, so the later rows are no longer valid
            log.warning(
                "epoch %d: the results differ from those before the interruption; rows from this epoch on are replaced",
                row["epoch"],
            )
            self._ahead = []
            self.flush()
            self._write("metrics.csv", _lines(self.rows))
        else:
            self._append("metrics.csv", line)
        self._append("timing.csv", _timing(row["epoch"], seconds))
        if time.monotonic() - self._written >= self._every_seconds:
            self.flush()

    def _write(self, name: str, lines: Sequence[str]) -> None:
        if lines or os.path.lexists(self.path / name):
            write_atomically(self.path / name, "".join(lines).encode())

    def _append(self, name: str, line: str) -> None:
        self._pending.setdefault(name, []).append(line)

    def flush(self) -> None:
        """Write the rows that are buffered."""
        while self._pending:
            name, lines = self._pending.popitem()
            path = self.path / name
            with when_closed(functools.partial(path.open, "a", newline="", encoding="utf-8"), path) as file:
                if not file.tell():
                    file.write(_TIMING_HEADER if name == "timing.csv" else _line(self.rows[0]))
                file.write("".join(lines))
        self._written = time.monotonic()
        self._tell_rows()

    @contextlib.contextmanager
    def buffered(self, *, every_seconds: float = 0.2) -> Iterator[None]:
        """Within this context, write rows at most every ``every_seconds``, and the remaining ones at its end.

        Opening the files for each row would take longer than a small epoch.
        """
        self._every_seconds = every_seconds
        try:
            yield
        finally:
            self._every_seconds = 0.0
            self.flush()

    def seconds(self) -> list[float]:
        """Return the wall time of each epoch, as last computed; only of those that ``timing.csv`` has."""
        return list(read_seconds(self.path).values())

    def table(self, name: str, rows: Sequence[Mapping[str, object]]) -> Path:
        """Write ``tables/<name>.csv``."""
        return self._csv(self.path / "tables" / f"{name}.csv", rows)

    def csv(self, name: str, rows: Sequence[Mapping[str, object]]) -> Path:
        """Write ``<name>.csv`` in the run directory itself."""
        return self._csv(self.path / f"{name}.csv", rows)

    def probe(self, name: str, rows: Sequence[Mapping[str, object]]) -> Path:
        """Write ``probes/<name>.csv``."""
        return self._csv(self.path / "probes" / f"{name}.csv", rows)

    @staticmethod
    def _csv(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
        path.parent.mkdir(exist_ok=True)
        text = "".join([_line(rows[0]), *(_line(row.values()) for row in rows)]) if rows else ""
        write_atomically(path, text.encode())
        return path

    def figure(self, name: str, figure: Figure) -> Path:
        """Write ``<name>.png``; ``name`` may start with ``figures/``."""
        path = self.path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        image = io.BytesIO()
        figure.savefig(image, format="png", pil_kwargs={"compress_level": 1})  # a file 10 % larger, written faster
        write_atomically(path, image.getbuffer())
        return path

    def figure_file(self, name: str, content: bytes) -> None:
        """Write ``figures/<name>``, a file of any format."""
        (self.path / "figures").mkdir(exist_ok=True)
        write_atomically(self.path / "figures" / name, content)

    def png(self, name: str, content: bytes) -> None:
        """Write ``<name>.png``."""
        write_atomically(self.path / f"{name}.png", content)

    def summary(self, content: Mapping[str, Any]) -> None:
        """Write ``summary.json``. A number that is not finite is written as null, because JSON cannot represent it."""
        text = json.dumps(_finite(content), indent=2, allow_nan=False)
        write_atomically(self.path / "summary.json", f"{text}\n".encode())
        if self._follower is not None:
            self._follower.end()

    def fail(self, error: Exception) -> None:
        """Write a summary with status ``failed`` and the error as its reason."""
        with contextlib.suppress(OSError):  # fails on a full disk; the caller raises the error
            self.summary({"status": "failed", "reason": f"{type(error).__name__}: {error}"})

    def reopen(self) -> None:
        """Remove ``summary.json`` before training continues."""
        summary = self.path / "summary.json"
        when_closed(lambda: summary.unlink(missing_ok=True), summary)

    def discard(self) -> None:
        """Remove the directory if the run never started, so that it has no metrics, checkpoint, trials or summary."""
        if not any((self.path / name).exists() for name in ("metrics.csv", "last.pt", "trials", "summary.json")):
            shutil.rmtree(self.path, ignore_errors=True)


def _finite(content: Any) -> Any:
    """Return nested mappings and lists with None for numbers that are not finite."""
    if isinstance(content, Mapping):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return list(map(_finite, content))
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.10g}"
    return str(value)


def as_written(row: Row) -> Row:
    """Return a row with the digits that ``metrics.csv`` has."""
    return {name: float(_cell(value)) for name, value in row.items()}


def _line(values: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([_cell(value) for value in values])
    return text.getvalue()


def _lines(rows: Sequence[Row]) -> list[str]:
    """Format ``rows`` as the lines of metrics.csv, with the header."""
    return [_line(rows[0]), *map(_numbers, rows)] if rows else []


def _numbers(row: Row) -> str:
    """Format a line of metrics.csv. Numbers need no quotes, so this is quicker than :func:`_line`."""
    return f"{','.join(map(_cell, row.values()))}\n"


def _timing(epoch: float, seconds: float) -> str:
    """Format a line of timing.csv."""
    return f"{epoch:.0f},{seconds:.4f}\n"


def directory_name(overrides: Sequence[str], *, longest: int = 120) -> str:
    """Return a directory name for a sweep's job, made from its overrides.

    The name is valid on every file system, differs between jobs with different overrides (where the file system
    distinguishes upper and lower case), and has at most ``longest`` bytes.
    """

    def size(text: str) -> int:
        return len(text.encode())  # file systems limit bytes

    plain = [override.lstrip("+") for override in overrides]
    parts = [re.sub(r"[^\w=.,+-]+", "_", override).strip("._,") for override in plain]
    name = ""
    for part in parts:  # whole overrides only, because a truncated value would look like another value
        name = ",".join(filter(None, [name, part])) if size(name) + size(part) < longest - 9 else name
    if name != ",".join(plain):
        name = f"{name}-{hashlib.sha256(','.join(plain).encode()).hexdigest()[:8]}".lstrip("-")
    return f"_{name}" if is_reserved(name) else name or "defaults"
