"""The run directory: the only writer under ``outputs/``.

``metrics.csv`` has one row per finished epoch and nothing in it depends on the clock, so that equal
runs have equal files; the clock is in ``timing.csv``. ``summary.json`` comes last: where it says
``finished``, the run is whole.
"""

from __future__ import annotations

import contextlib
import csv
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
from typing import TYPE_CHECKING, Any

from dlhw.errors import UsageError
from dlhw.runtime.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

Row = dict[str, float]


def claim_directory(wanted: Path, *, exact: bool) -> Path:
    """Create a directory that no other run has: ``wanted``, or the first free of ``wanted-2``, ``wanted-3`` ...

    With ``exact`` a name already taken is an error. Creation is exclusive, so two runs started in the
    same moment get two directories.
    """
    for attempt in itertools.count(1):
        path = wanted if attempt == 1 else wanted.with_name(f"{wanted.name}-{attempt}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if exact:
                _claim_empty(path)
                return path
        except OSError as error:
            raise UsageError(f"{path}: the run directory cannot be created ({error.strerror})") from error
        else:
            return path
    raise AssertionError


def _claim_empty(path: Path) -> None:
    """Take over an empty folder; making ``.hydra`` in it decides between two who try at once."""
    try:
        if path.is_dir() and not any(path.iterdir()):
            (path / ".hydra").mkdir()
            return
    except FileExistsError:
        pass
    raise UsageError(
        f"{path}: exists already, and runs are never overwritten; choose another directory, or resume={path}"
    )


class Record:
    """One run's directory, opened for writing.

    ``rows`` are the finished epochs, those of an interrupted run first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        self._ahead: list[str] = []  # lines of metrics.csv from epochs after the checkpoint resumed from
        self._pending: dict[str, list[str]] = {}  # of each file: its header, lines that are not written yet
        self._every_seconds = 0.0
        self._written = 0.0

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for this process alone; the lock ends with the process, however that ends.

        Raises UsageError when another process holds it.
        """
        try:
            import fcntl
        except ImportError:  # Windows has no such locks
            yield
            return
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise UsageError(f"{self.path}: another process is training this run") from error
        try:
            yield
        finally:
            os.close(descriptor)

    def write_config(self, text: str, *, new: bool) -> None:
        """Write ``config.yaml``. Raises UsageError when the run is ``new`` and the directory holds one already."""
        if new and (self.path / "config.yaml").exists():
            raise UsageError(f"{self.path}: holds a run already; runs are never overwritten")
        write_atomically(self.path / "config.yaml", text.encode())

    @property
    def finished(self) -> bool:
        """Whether the run ended as its config says it should."""
        return read_summary(self.path).get("status") == "finished"

    def restore(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Go on after ``rows``, those of a checkpoint. Rows written later than it stay until computed again."""
        self.rows = [dict(row) for row in rows]
        known = _lines(self.rows)
        lines = _complete_lines(self.path / "metrics.csv")
        if lines[: len(known)] != known:  # the file lost or changed what the checkpoint knows
            lines = known
        self._ahead = lines[len(known) or 1 :]
        self._write("metrics.csv", lines if self._ahead else known)
        self._write("timing.csv", _complete_lines(self.path / "timing.csv"))

    def append(self, row: Row, *, seconds: float) -> None:
        """Add a finished epoch. ``seconds`` is the wall time of the epoch, evaluation included."""
        self.rows.append(row)
        line = _line(row.values())
        if self._ahead and self._ahead[0] == line:
            self._ahead.pop(0)
        elif self._ahead:  # computed again elsewhere or otherwise: what was written does not hold for this run
            log.warning(
                "epoch %d differs from what the interrupted run had written; its row is replaced",
                row["epoch"],
            )
            self._ahead = []
            self._flush()
            self._write("metrics.csv", _lines(self.rows))
        else:
            self._append("metrics.csv", line, header=_line(row))
        self._append("timing.csv", f"{row['epoch']:.0f},{seconds:.4f}\n", header="epoch,seconds\n")
        if time.monotonic() - self._written >= self._every_seconds:
            self._flush()

    def _write(self, name: str, lines: Sequence[str]) -> None:
        if lines or (self.path / name).exists():
            write_atomically(self.path / name, "".join(lines).encode())

    def _append(self, name: str, line: str, *, header: str) -> None:
        self._pending.setdefault(name, [header]).append(line)

    def _flush(self) -> None:
        while self._pending:
            name, (header, *lines) = self._pending.popitem()
            with (self.path / name).open("a", newline="") as file:
                file.write("".join(lines if file.tell() else [header, *lines]))
        self._written = time.monotonic()

    @contextlib.contextmanager
    def buffered(self, *, every_seconds: float = 0.2) -> Iterator[None]:
        """Write rows at most so often, and all of them at the end: opening files costs more than a small epoch."""
        self._every_seconds = every_seconds
        try:
            yield
        finally:
            self._every_seconds = 0.0
            self._flush()

    def seconds(self) -> list[float]:
        """Wall time of each epoch as last computed; empty when the times were lost."""
        if not (self.path / "timing.csv").exists():
            return []
        with (self.path / "timing.csv").open(newline="") as file:
            return list({int(line["epoch"]): float(line["seconds"]) for line in csv.DictReader(file)}.values())

    def table(self, name: str, rows: Sequence[Mapping[str, object]]) -> Path:
        """Write ``tables/<name>.csv``."""
        return self._csv(self.path / "tables" / f"{name}.csv", rows)

    def csv(self, name: str, rows: Sequence[Mapping[str, object]]) -> Path:
        """Write ``<name>.csv`` into the directory itself."""
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
        """Write ``<name>.png``; ``name`` may begin with ``figures/``."""
        path = self.path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        image = io.BytesIO()
        figure.savefig(image, format="png", pil_kwargs={"compress_level": 1})  # a tenth larger, sooner
        write_atomically(path, image.getbuffer())
        return path

    def summary(self, content: Mapping[str, Any]) -> None:
        write_atomically(self.path / "summary.json", (json.dumps(content, indent=2) + "\n").encode())

    def fail(self, error: Exception) -> None:
        """Leave word of what ended the run."""
        with contextlib.suppress(OSError):  # no room for it on a full disk: the error itself is on its way
            self.summary({"status": "failed", "reason": f"{type(error).__name__}: {error}"})

    def reopen(self) -> None:
        """Take back the claim to be finished, before training goes on."""
        (self.path / "summary.json").unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove the directory of a run that never began: nothing in it but its config and log."""
        if not any((self.path / name).exists() for name in ("metrics.csv", "last.pt", "summary.json")):
            shutil.rmtree(self.path, ignore_errors=True)
            with contextlib.suppress(OSError):  # the experiment's folder, when this was the only run in it
                self.path.parent.rmdir()


def read_summary(path: Path) -> dict[str, Any]:
    """``summary.json`` of a run directory; empty when there is none yet, or none that can be made sense of."""
    try:
        content = json.loads((path / "summary.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):  # not JSON, not UTF-8
        return {}
    return content if isinstance(content, dict) else {}


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.10g}"
    return str(value)


def _line(values: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([_cell(value) for value in values])
    return text.getvalue()


def _lines(rows: Sequence[Row]) -> list[str]:
    """The lines of metrics.csv that stand for ``rows``, header first."""
    return [_line(rows[0]), *(_line(row.values()) for row in rows)] if rows else []


def _complete_lines(path: Path) -> list[str]:
    """Lines of a file that end in a newline; a last one cut off by a crash is left out."""
    try:
        text = path.read_text()
    except (FileNotFoundError, UnicodeDecodeError):
        return []
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


def directory_name(overrides: Sequence[str], *, longest: int = 120) -> str:
    """A directory name for a job of a sweep, from its overrides: safe on every file system, distinct.

    It has ``longest`` bytes at most.
    """

    def size(text: str) -> int:
        return len(text.encode())  # file systems limit bytes

    told = [override.lstrip("+") for override in overrides]
    parts = [re.sub(r"[^\w=.,+-]+", "_", override).strip("._,") for override in told]
    name = ""
    for part in parts:  # whole overrides only: half a value would be another value
        name = ",".join(filter(None, [name, part])) if size(name) + size(part) < longest - 9 else name
    if name != ",".join(told):
        name = f"{name}-{hashlib.sha256(','.join(told).encode()).hexdigest()[:8]}".lstrip("-")
    return name or "defaults"
