"""Reading finished runs: which directories are runs, what each one found, and which settings vary among them.

Overrides and configs are compared by what their values mean, not by how they are written. Reading takes no torch and
no pandas, so that a thousand runs are listed in about a second.
"""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from dlhw import UsageError
from dlhw.record import read_summary

NO_SETTINGS = ("seed", "resume", "data_dir", "output_dir", "name", "comparison", "hydra")
_NOT_RESULTS = ("seed", "threads", "parameters")  # numbers at the top level of summary.json that no study measured
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as quick


@dataclass(frozen=True)
class Result:
    """What one run directory holds for a comparison; files other than the summary are read when asked for."""

    path: Path
    settings: Mapping[str, str]  # the keys that vary among the runs, with their values as written
    seed: int | None
    status: str  # finished, failed, unfinished
    reason: str  # what a failed run failed by
    summary: Mapping[str, Any]

    @property
    def best(self) -> Mapping[str, float]:
        """Metrics at the best epoch; empty for a study."""
        return self.summary.get("best") or {}

    @property
    def final(self) -> Mapping[str, float]:
        return self.summary.get("final") or {}

    @property
    def numbers(self) -> dict[str, float]:
        """What a study found: the numbers at the top level of its summary. Empty for a trained run."""
        if self.best:
            return {}
        return {
            name: value
            for name, value in self.summary.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and name not in _NOT_RESULTS
        }

    @cached_property
    def rows(self) -> list[dict[str, float]]:
        """``metrics.csv``, a row per epoch; nothing when there is none."""
        return _read_csv(self.path / "metrics.csv")

    def probes(self, column: str) -> list[tuple[int, list[float], list[str]]]:
        """The first and the last ``probes/epoch_*.csv`` with the column: epoch, value of each layer, layers' names."""
        found = []
        files = sorted((self.path / "probes").glob("epoch_*.csv"))
        for file in files[:1] + files[1:][-1:]:
            with file.open(newline="") as text:
                rows = list(csv.DictReader(text))
            if rows and column in rows[0]:
                values = [_number(row[column]) for row in rows]
                names = [row.get("name", "") for row in rows]
                found.append((int(file.stem.rpartition("_")[2]), values, names))
        return found


def read(
    directories: Sequence[Path],
    *,
    failures: Mapping[Path, str] | None = None,
    overrides: Mapping[Path, Sequence[str]] | None = None,
) -> list[Result]:
    """The runs in ``directories``, in this order, with those settings that vary among them.

    Args:
        failures: reasons of jobs whose directory does not tell, or does not exist.
        overrides: the overrides of jobs whose directory does not tell.
    """
    given = [_overrides(path, (overrides or {}).get(path, ())) for path in directories]
    configs = [functools.cache(functools.partial(_load, path / "config.yaml")) for path in directories]
    names = [name for name in dict.fromkeys(key for line in given for key in line) if _is_setting(name)]
    settings: list[dict[str, str]] = [{} for _ in directories]
    for name in names:
        column = [
            line[name] if name in line else _from_config(path, config(), name)
            for path, line, config in zip(directories, given, configs, strict=True)
        ]
        if len({canonical(value) for value in column if value}) > 1:
            for own, value in zip(settings, column, strict=True):
                own[name] = value
    results = []
    for path, line, config, own in zip(directories, given, configs, settings, strict=True):
        try:
            summary = read_summary(path)
        except ValueError:  # not JSON
            summary = {}
        status = summary.get("status", "unfinished")
        reason = str(summary.get("reason", ""))
        if status != "finished" and path in (failures or {}):
            status, reason = "failed", reason or (failures or {})[path]
        seed = summary.get("seed", line.get("seed") or config().get("seed"))
        results.append(
            Result(
                path, own, int(str(seed)) if str(seed).isdecimal() else None, status, " ".join(reason.split()), summary
            )
        )
    return results


def run_directories(directory: Path) -> list[Path]:
    """``directory`` if it is a run's, else the runs right below it: in the order of its ``sweep.csv``, then by name.

    Raises UsageError when there is none.
    """
    if _is_run(directory):
        return [directory]
    below = sorted(path for path in directory.iterdir() if _is_run(path)) if directory.is_dir() else []
    jobs = [row["job"] for row in past_jobs(directory)]
    place = {name: i for i, name in enumerate(jobs)}
    found = sorted(below, key=lambda path: place.get(path.name, len(place)))
    if not found:
        raise UsageError(f"{directory}: neither a run nor a sweep (no config.yaml in it or right below it)")
    return found


def past_jobs(directory: Path) -> list[dict[str, str]]:
    """The rows of a sweep's ``sweep.csv``; none when there is no such file."""
    try:
        with (directory / "sweep.csv").open(newline="") as file:
            reader = csv.DictReader(file)
            return [row for row in reader if row.get("job") and None not in row]
    except FileNotFoundError:
        return []


def declared(runs: Iterable[Path]) -> dict[str, Any]:
    """The ``comparison`` of the first run's config; empty where it has none."""
    first = next(iter(runs), None)
    node = {} if first is None else _load(first / "config.yaml").get("comparison")
    return {name: value for name, value in (node or {}).items() if name != "_target_"}


def canonical(text: str) -> Any:
    """What a value as written stands for, to compare by: ``0.10`` is ``1e-1``, and ``[8]`` is ``[8.0]``."""
    try:
        return _hashable(yaml.load(text, _Loader))
    except yaml.YAMLError:
        return text.strip()


def number(text: str) -> float | None:
    """The number that a value is, also as the only one of a list (``model.hidden=[100]``); None for anything else."""
    value = canonical(text)
    if isinstance(value, tuple) and len(value) == 1:
        (value,) = value
    return value if isinstance(value, float) else None


def _hashable(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return tuple(
            (str(name), _hashable(item)) for name, item in sorted(value.items(), key=lambda pair: str(pair[0]))
        )
    if isinstance(value, bool):
        return str(value)  # True is not 1
    try:
        return float(value) if math.isfinite(float(value)) else str(value)
    except (TypeError, ValueError, OverflowError):
        return value if value is None else str(value)


def _is_setting(name: str) -> bool:
    return name.partition(".")[0].partition("/")[0] not in NO_SETTINGS


def _is_run(path: Path) -> bool:
    # A job whose config was refused has Hydra's files, but none of its own.
    return (path / "config.yaml").is_file() or (path / ".hydra" / "overrides.yaml").is_file()


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_bytes(), _Loader)
    except (OSError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _overrides(path: Path, otherwise: Sequence[str]) -> dict[str, str]:
    """Override key: value as written."""
    try:
        lines = yaml.load((path / ".hydra" / "overrides.yaml").read_bytes(), _Loader)
    except (OSError, yaml.YAMLError):
        lines = otherwise
    split = [str(line).lstrip("+").partition("=") for line in lines or ()]
    return {name.removeprefix("~"): "null" if name.startswith("~") else value for name, _, value in split}


def _from_config(path: Path, config: Mapping[str, Any], name: str) -> str:
    """What a run without an override of ``name`` had there; empty when that cannot be said."""
    node: Any = config
    for part in name.split("."):
        node = node.get(part, "") if isinstance(node, Mapping) else ""
    if isinstance(node, Mapping) or (node == "" and "." not in name):
        choices = _load(path / ".hydra" / "hydra.yaml").get("hydra", {}).get("runtime", {}).get("choices", {})
        return str(choices.get(name) or "")
    if isinstance(node, str):
        return node
    return yaml.dump(node, default_flow_style=True, width=math.inf).removesuffix("\n...\n").strip()


def _read_csv(path: Path) -> list[dict[str, float]]:
    try:
        with path.open(newline="") as file:
            return [{name: _number(text) for name, text in row.items()} for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
