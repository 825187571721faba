"""The runs and sweeps below a folder, with what their files say about them.

Listing reads only ``summary.json`` and names of files, so that a thousand runs take about a second.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from dlhw.errors import UsageError
from dlhw.runtime.files import LOCK_FILE, is_locked
from dlhw.runtime.paths import printable
from dlhw.storage import stored
from dlhw.storage.directories import DEBUG_FOLDER, explanation, has_config, is_output, is_sweep

log = logging.getLogger(__name__)

Kind = Literal["run", "sweep"]
Wanted = Literal["run", "sweep", "run or sweep"]
DEEPEST = 5
"""Folders inside of folders that are searched for runs."""
_TIMESTAMP = "%Y-%m-%d_%H-%M-%S"
_NAME = re.compile(rb"^name: *['\"]?([^'\"\n]*)", re.MULTILINE)


@dataclass(frozen=True)
class Entry:
    """A run or sweep."""

    path: Path
    kind: Kind
    experiment: str
    started: datetime
    status: str
    """``finished``, ``failed``, ``running`` or ``unfinished``; ``unreadable`` if its summary is damaged."""
    summary: Mapping[str, Any] = field(repr=False)
    """The content of ``summary.json``; empty without one."""

    @property
    def best(self) -> Mapping[str, Any]:
        """The row of the best epoch; empty for studies, sweeps and unfinished runs."""
        best: Mapping[str, Any] = self.summary.get("best") or {}
        return best

    @property
    def monitor(self) -> str | None:
        """The metric that selects the best epoch or setting."""
        return self.summary.get("monitor")

    @property
    def epochs(self) -> int | None:
        """The number of finished epochs of a run; None for studies and sweeps."""
        final = self.summary.get("final")
        if final is not None:
            return int(final["epoch"])
        return max(0, len(stored.complete_lines(self.path / "metrics.csv")) - 1) or None if self.kind == "run" else None

    @property
    def metric(self) -> float | None:
        """The monitored metric: of the best epoch, or the mean of a sweep's best setting."""
        if self.kind == "run":
            return self.best.get(self.monitor or "")
        winner = self.summary.get("winner") or {}
        value: float | None = (winner.get(self.monitor) or {}).get("mean")
        return value

    @property
    def test_metric(self) -> float | None:
        """The same metric on the test part."""
        monitor = (self.monitor or "").replace("val_", "test_", 1)
        if self.kind == "run":
            return self.best.get(monitor)
        value: float | None = ((self.summary.get("winner") or {}).get(monitor) or {}).get("mean")
        return value

    @property
    def content(self) -> dict[str, Any]:
        """The run or sweep as a mapping of plain values."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "experiment": self.experiment,
            "started": self.started.isoformat(sep=" "),
            "status": self.status,
            "monitor": self.monitor,
            "validation": self.metric,
            "test": self.test_metric,
            "best_epoch": self.best.get("epoch"),
            "epochs": self.epochs,
            "seconds": self.summary.get("seconds"),
            "seed": self.summary.get("seed"),
            "parameters": self.summary.get("parameters"),
        }


def entries(folder: Path, *, jobs: bool = False) -> list[Entry]:
    """Return the runs and sweeps in a folder and its subfolders, those that started last first.

    Those in subfolders called ``debug`` are no results, and are left out. With ``jobs``, return the runs of sweeps
    instead of the sweeps. Raise UsageError if the folder does not exist.
    """
    if not folder.is_dir():
        raise UsageError(explanation(folder, expected="run or sweep"))
    found = [_entry(path, kind) for path, kind in _walk(folder, jobs=jobs, deepest=DEEPEST)]
    return sorted(found, key=lambda entry: (entry.started, str(entry.path)), reverse=True)


def entry_of(path: Path) -> Entry:
    """Return the run or sweep at ``path``. Raise UsageError if it is neither."""
    kind = _kind_of(path)
    if kind is None:
        raise UsageError(explanation(path, expected="run or sweep"))
    return _entry(path, kind)


def newest(folder: Path, wanted: Wanted) -> Path | None:
    """Return the run or sweep in a folder and its subfolders that was written last; None if there is none."""
    paths = [path for path, kind in _walk(folder, jobs=False, deepest=DEEPEST) if kind in wanted]
    last_first = sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return next(filter(is_output, last_first), None)


def locate(path: Path, wanted: Wanted = "run", *, output_dir: Path = Path("outputs")) -> Path:
    """Return the directory of the run or sweep that a person means by ``path``.

    That is ``path`` itself, the newest one in the folder ``path``, or for the word ``last`` the newest one in
    ``output_dir``. If there is none, it is ``path`` or ``output_dir``, which the caller then refuses.
    """
    folder = output_dir if str(path) == "last" and not os.path.lexists(path) else path
    if not folder.is_dir() or _kind_of(folder) is not None:
        return folder
    return newest(folder, wanted) or folder


def chosen(path: Path, wanted: Wanted) -> Path:
    """Return what :func:`locate` returns. If that is another directory than ``path``, log which one."""
    directory = locate(path, wanted)
    if str(path) == "last" and directory != path and _kind_of(directory) is None:
        raise UsageError(f"last: no {wanted} in {printable(directory)}")
    if directory != path and _kind_of(directory) is not None:
        log.warning("%s: the newest %s is %s", printable(path), wanted, printable(directory))
    return directory


def _walk(folder: Path, *, jobs: bool, deepest: int) -> Iterator[tuple[Path, Kind]]:
    kind = _kind_of(folder)
    if kind is not None:
        yield folder, kind
    if (kind is None or (jobs and kind == "sweep")) and deepest:
        with os.scandir(folder) as children:
            names = [child.name for child in children if child.is_dir() and not child.name.startswith(".")]
            names = [name for name in names if name != DEBUG_FOLDER]
        for name in sorted(names):
            yield from _walk(folder / name, jobs=jobs, deepest=deepest - 1)


def _kind_of(folder: Path) -> Kind | None:
    if has_config(folder):
        return "run"
    return "sweep" if is_sweep(folder) else None


def _entry(path: Path, kind: Kind) -> Entry:
    try:
        summary = stored.read_summary(path)
        status = summary.get("status") or ("running" if is_locked(path / LOCK_FILE) else "unfinished")
    except stored.Unreadable:
        summary, status = {}, "unreadable"
    config = path / ("config.yaml" if kind == "run" else "multirun.yaml")
    return Entry(path, kind, summary.get("experiment") or _experiment(config), _started(path), status, summary)


def _started(path: Path) -> datetime:
    """Return the time in the name of the directory or of the sweep's; else when its config was written."""
    for name in (path.name, path.parent.name):
        try:
            return datetime.strptime(name[:19], _TIMESTAMP)
        except ValueError:
            pass
    return datetime.fromtimestamp(path.stat().st_mtime)


def _experiment(config: Path) -> str:
    """Return the name in a config file, which is not parsed because that takes several milliseconds."""
    try:
        with config.open("rb") as file:
            found = _NAME.search(file.read(stored.LARGEST_CONFIG))
    except OSError:
        return ""
    return printable(found[1].decode(errors="replace")) if found else ""
