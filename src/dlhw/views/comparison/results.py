"""Read run directories: find them, and read their results and the settings that vary among them.

This module uses neither torch nor pandas, so that reading a thousand runs takes about a second.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dlhw.errors import UsageError
from dlhw.storage import stored
from dlhw.storage.directories import explanation, has_config, is_run_or_damaged, is_sweep_of_dlhw
from dlhw.storage.stored import Unreadable
from dlhw.views.comparison.settings import canonical, config_leaves, overrides_of, varying_settings

log = logging.getLogger(__name__)

_BUDGET = ("trainer.epochs", "scheduler.epochs")
_NOT_RESULTS = ("status", "seed", "threads", "parameters")
"""Entries at the top level of ``summary.json`` that are not results of a study."""


@dataclass(frozen=True)
class Result:
    """One run directory. Files other than the summary are read when they are first used."""

    path: Path
    settings: Mapping[str, str]  # the settings that vary among the runs, with values as written
    seed: int | None
    status: str  # finished, failed, unfinished
    reason: str  # of a failed run
    summary: Mapping[str, Any]
    known: bool = True  # whether it has a config, so that a missing key is known to be absent
    repeats: Path | None = None  # an earlier finished run with the same settings and the same seed

    @cached_property
    def best(self) -> Mapping[str, float]:
        """Metrics at the best epoch; empty for a study."""
        return _numbers(self.summary.get("best"))

    @cached_property
    def final(self) -> Mapping[str, float]:
        return _numbers(self.summary.get("final"))

    @cached_property
    def numbers(self) -> dict[str, float]:
        """The results of a study: numbers at the top level of its summary. Empty for a training run."""
        if self.best:
            return {}
        return {name: value for name, value in _numbers(self.summary).items() if name not in _NOT_RESULTS}

    @cached_property
    def rows(self) -> list[dict[str, float]]:
        """The rows of ``metrics.csv``, one per epoch; empty if the file is missing or invalid, which is logged."""
        try:
            return stored.read_metrics(self.path) or []
        except Unreadable as error:
            log.warning("%s (the run is not drawn)", error)
            return []

    def probes(self, column: str) -> list[tuple[int, list[float], list[str]]]:
        """Return epoch, values and names of the layers from the first and the last probe, if they have the column."""
        probes = []
        files = sorted(file for file in (self.path / "probes").glob("epoch_*.csv") if file.stem[6:].isdecimal())
        for file in files[:1] + files[1:][-1:]:
            try:
                rows = stored.read_table(file)
            except Unreadable as error:
                log.warning("%s (the run is not drawn)", error)
                return []
            if rows and column in rows[0]:
                values = [_number(row[column]) for row in rows]
                names = [row.get("name", "") for row in rows]
                probes.append((int(file.stem[6:]), values, names))
        return probes

    @property
    def probed_columns(self) -> list[str]:
        """The columns of the first probe; empty without one."""
        file = min((self.path / "probes").glob("epoch_*.csv"), default=None)
        try:
            rows = stored.read_table(file) if file is not None else []
        except Unreadable:
            rows = []
        return list(rows[0]) if rows else []


def read(
    directories: Sequence[Path],
    *,
    failures: Mapping[Path, str] | None = None,
    overrides: Mapping[Path, Sequence[str]] | None = None,
) -> list[Result]:
    """Read the runs in ``directories``, in this order, with the settings that vary among them.

    Args:
        failures: reasons for failed jobs whose directory does not exist or has no reason.
        overrides: the overrides of jobs whose directory does not have them.
    """
    overridden = [overrides_of(path, (overrides or {}).get(path, ())) for path in directories]
    configs, summaries, mistakes = _stored(directories)
    seeds = [
        _seed(config.get("seed", summary.get("seed", line.get("seed"))))
        for summary, config, line in zip(summaries, configs, overridden, strict=True)
    ]
    columns = varying_settings(directories, overridden, configs, seeds)
    results: list[Result] = []
    finished: dict[tuple[Any, ...], Path] = {}
    for i, (path, summary, config) in enumerate(zip(directories, summaries, configs, strict=True)):
        settings = {name: values[i] for name, values in columns.items()}
        status = summary.get("status")
        reason = _text(summary.get("reason", ""))
        if path in mistakes:
            status, reason = "failed", _text(mistakes[path])
        elif status != "finished" and path in (failures or {}):
            status, reason = "failed", reason or _text((failures or {})[path])
        status = status if status in ("finished", "failed") else "unfinished"
        repeats = None
        if status == "finished" and config and seeds[i] is not None:
            first = finished.setdefault((seeds[i], *map(canonical, settings.values())), path)
            repeats = None if first == path else first
        results.append(Result(path, settings, seeds[i], status, reason, summary, bool(config), repeats))
    return results


def without_budget(results: Sequence[Result]) -> list[Result]:
    """Return the results of a search without the settings that it chose itself: how long each run is trained."""
    return [
        replace(result, settings={key: text for key, text in result.settings.items() if key not in _BUDGET})
        for result in results
    ]


def _stored(
    directories: Sequence[Path],
) -> tuple[list[Mapping[str, str]], list[Mapping[str, Any]], dict[Path, str]]:
    """Return for each run the leaves of its config, its summary, and what is wrong with its files."""
    configs: list[Mapping[str, str]] = []
    summaries: list[Mapping[str, Any]] = []
    mistakes: dict[Path, str] = {}
    for path in directories:
        for content, read_file in ((configs, config_leaves), (summaries, stored.read_summary)):
            try:
                content.append(read_file(path))
            except Unreadable as error:
                content.append({})
                mistakes.setdefault(path, str(error))
    return configs, summaries, mistakes


def run_directories(directory: Path) -> list[Path]:
    """Return ``[directory]`` if it is a run, else the runs directly in it, in the order of ``sweep.csv``, then by name.

    In the directory of a sweep, a run with an invalid config is one, too. Raise UsageError if there is no run.
    """
    if has_config(directory):
        stored.read_config(directory)
        return [directory]
    is_run = _began if is_sweep_of_dlhw(directory) else is_run_or_damaged
    subdirectories = sorted(path for path in directory.iterdir() if is_run(path)) if directory.is_dir() else []
    try:
        rows = stored.read_sweep(directory) or []
    except Unreadable as error:
        log.warning("%s (the runs are sorted by name)", error)
        rows = []
    place = {row["job"]: i for i, row in enumerate(rows)}
    runs = sorted(subdirectories, key=lambda path: place.get(path.name, len(place)))
    if not runs:
        raise UsageError(explanation(directory, expected="run or sweep"))
    return runs


def place(path: Path) -> Path:
    """Return the absolute path of a directory with its own name, and without links or ``..`` above it.

    Paths of the same directory have the same place; a link to a directory has another one.
    """
    return path.parent.resolve() / path.name if path.name not in ("", "..") else path.resolve()


def declared_options(run: Path) -> dict[str, Any]:
    """Return the ``comparison`` options in a run's config; empty if it has no valid one."""
    try:
        config = stored.read_config(run)
    except Unreadable:
        config = None
    return dict(config["comparison"]) if config else {}


def _began(path: Path) -> bool:
    """Return whether the directory is that of a job. One with an invalid config has only Hydra's files."""
    return has_config(path) or (path / ".hydra" / "overrides.yaml").is_file()


def _seed(value: object) -> int | None:
    return int(str(value)) if str(value).isdecimal() else None


def _text(value: object) -> str:
    """Format a value as one line that UTF-8 can encode."""
    return " ".join(str(value).encode(errors="replace").decode().split())


def _numbers(node: object) -> dict[str, float]:
    """Return the entries of a part of a summary that are numbers."""
    items = node.items() if isinstance(node, Mapping) else ()
    return {
        name: value
        for name, value in items
        if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1000)
    }


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
