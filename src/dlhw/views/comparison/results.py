"""Reading finished runs: which directories are runs, what each one found, and which settings vary among them.

A run's config says what its settings are, its overrides only which of them were meant to vary. Values are compared by
what they mean, not by how they are written. Reading takes no torch and no pandas, so that a thousand runs are listed in
about a second.
"""

from __future__ import annotations

import csv
import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from dlhw.errors import UsageError
from dlhw.runs.identity import NOT_SETTINGS
from dlhw.runs.record import read_summary

_NOT_RESULTS = (
    "status",
    "seed",
    "threads",
    "parameters",
)  # numbers at the top level of summary.json that no study measured
_COLUMNS = 5  # for what runs of equal overrides differ by; more only where these leave such runs together
_UNREADABLE = (OSError, yaml.YAMLError, ValueError, AttributeError, RecursionError)  # the last three also from yaml
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
    known: bool = True  # whether there is a config, so that a key that has no value is known to be absent
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
        """What a study found: the numbers at the top level of its summary. Empty for a trained run."""
        if self.best:
            return {}
        return {name: value for name, value in _numbers(self.summary).items() if name not in _NOT_RESULTS}

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

    Settings are the keys that any run was given and, where configs differ by more than those and the seed, the keys
    that they differ by. A key that a config has not is one more value of it.

    Args:
        failures: reasons of jobs whose directory does not tell, or does not exist.
        overrides: the overrides of jobs whose directory does not tell.
    """
    given = [_overrides(path, (overrides or {}).get(path, ())) for path in directories]
    configs = [_leaves(path / "config.yaml") for path in directories]
    summaries = [read_summary(path) for path in directories]
    seeds = [
        _seed(config.get("seed", summary.get("seed", line.get("seed"))))
        for summary, config, line in zip(summaries, configs, given, strict=True)
    ]
    nodes = {name[: dot.start()] for name in set().union(*configs) for dot in re.finditer(r"\.", name)}

    def value(name: str, path: Path, line: Mapping[str, str], config: Mapping[str, str]) -> str:
        if name in config and name not in nodes:
            return config[name]
        return line[name] if name in line else _choice(path, name) if config and "." not in name else ""

    def column(name: str) -> list[str]:
        return [value(name, *run) for run in zip(directories, given, configs, strict=True)]

    columns: dict[str, list[str]] = {}
    for name in dict.fromkeys(key for line in given for key in line):
        if _is_setting(name) and not _interpolated({line[name] for line in given if name in line}):
            values = column(name)
            if len({canonical(text) for text, config in zip(values, configs, strict=True) if text or config}) > 1:
                columns[name] = values
    for name in _unexplained(columns, configs, seeds):
        columns[name] = column(name)
    results: list[Result] = []
    finished: dict[tuple[Any, ...], Path] = {}
    for i, (path, summary, config) in enumerate(zip(directories, summaries, configs, strict=True)):
        own = {name: values[i] for name, values in columns.items()}
        status = summary.get("status")
        reason = _text(summary.get("reason", ""))
        if status != "finished" and path in (failures or {}):
            status, reason = "failed", reason or _text((failures or {})[path])
        status = status if status in ("finished", "failed") else "unfinished"
        repeats = None
        if status == "finished" and config and seeds[i] is not None:
            first = finished.setdefault((seeds[i], *map(canonical, own.values())), path)
            repeats = None if first == path else first
        results.append(Result(path, own, seeds[i], status, reason, summary, bool(config), repeats))
    return results


def _unexplained(
    columns: Mapping[str, Sequence[str]], configs: Sequence[Mapping[str, str]], seeds: Sequence[int | None]
) -> list[str]:
    """Keys that tell apart the runs whose configs differ although ``columns`` do not; the shortest of equal ones."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, config in enumerate(configs):
        if config:
            groups.setdefault(tuple(canonical(values[i]) for values in columns.values()), []).append(i)
    found: dict[str, None] = {}
    for members in groups.values():
        compared = [{name: text for name, text in configs[i].items() if _is_setting(name)} for i in members]
        if all(config == compared[0] for config in compared):
            continue
        told: list[tuple[Any, ...]] = []
        for name in sorted(set().union(*compared), key=lambda name: (name.count("."), len(name), name)):
            texts = [config.get(name, "") for config in compared]
            values = tuple(map(canonical, texts))
            mirrored = {_without_seed(text, seeds[i]) for text, i in zip(texts, members, strict=True)}
            if len(set(values)) == 1 or len(mirrored) == 1 or values in told:
                continue
            splits = len(set(zip(*told, values, strict=True))) > len(set(zip(*told, strict=True)))
            if len(told) < _COLUMNS or splits:
                told.append(values)
                found[name] = None
    return list(found)


def _without_seed(text: str, seed: int | None) -> str:
    return text if seed is None else re.sub(rf"(?<!\d)(?<!\d\.){seed}(?!\.?\d)", "{seed}", text)


def _interpolated(texts: set[str]) -> bool:
    """Whether an override follows other keys, in the same way in all runs."""
    return len(texts) == 1 and "${" in next(iter(texts))


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
    """The rows of a sweep's ``sweep.csv``; none when there is no such file. Raises UsageError when it is no table."""
    try:
        with (directory / "sweep.csv").open(newline="", encoding="utf-8-sig") as file:
            return [row for row in csv.DictReader(file) if row.get("job") and None not in row]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{directory / 'sweep.csv'}: is not CSV in UTF-8; repair or delete it") from error


def declared(runs: Iterable[Path]) -> dict[str, Any]:
    """The ``comparison`` of the first run's config; empty where it has none."""
    first = next(iter(runs), None)
    node = None if first is None else _load(first / "config.yaml").get("comparison")
    return {name: value for name, value in node.items() if name != "_target_"} if isinstance(node, dict) else {}


@functools.lru_cache(maxsize=2**14)
def canonical(text: str) -> Any:
    """What a value as written stands for, to compare by: ``0.10`` is ``1e-1``, and ``[8]`` is ``[8.0]``."""
    try:
        return _hashable(yaml.load(text, _Loader))
    except _UNREADABLE:
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
    return name.partition(".")[0].partition("/")[0] not in NOT_SETTINGS


def _is_run(path: Path) -> bool:
    # A job whose config was refused has Hydra's files, but none of its own.
    return (path / "config.yaml").is_file() or (path / ".hydra" / "overrides.yaml").is_file()


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_bytes(), _Loader)
    except _UNREADABLE:
        return {}
    return content if isinstance(content, dict) else {}


def _leaves(path: Path) -> dict[str, str]:
    """``{"optimizer.lr": "0.1"}``: a config's keys and values as written; empty when it cannot be read."""
    try:
        text = path.read_bytes().decode()
    except _UNREADABLE:
        return {}
    blocks = [_block_leaves(block) for block in re.split(r"^(?=[^\s#-])", text, flags=re.MULTILINE)]
    if None in blocks:  # more than a plain mapping of blocks
        blocks = [_block_leaves(text)]
    return {name: value for block in blocks for name, value in (block or {}).items()}


@functools.lru_cache(maxsize=2**13)
def _block_leaves(text: str) -> dict[str, str] | None:
    """Of one top-level key of a config, which most runs of a sweep share; None when it is no mapping."""
    try:
        content = yaml.load(text, _Loader)
    except _UNREADABLE:
        return None
    if content is None:
        return {}
    return dict(_flat(content, "")) if isinstance(content, dict) else None


def _flat(node: Mapping[Any, Any], prefix: str) -> Iterable[tuple[str, str]]:
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _written(value)


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value
    return yaml.dump(value, default_flow_style=True, width=math.inf).removesuffix("\n...\n").strip()


def _overrides(path: Path, otherwise: Sequence[str]) -> dict[str, str]:
    """Override key: value as written."""
    try:
        lines = yaml.load((path / ".hydra" / "overrides.yaml").read_bytes(), _Loader)
    except _UNREADABLE:
        lines = None
    split = [str(line).lstrip("+").partition("=") for line in (lines if isinstance(lines, list) else otherwise)]
    return {name.removeprefix("~"): "null" if name.startswith("~") else value for name, _, value in split}


def _choice(path: Path, group: str) -> str:
    """Which file of a config group a run had without an override of it; empty when that cannot be said."""
    node: Any = _load(path / ".hydra" / "hydra.yaml")
    for part in ("hydra", "runtime", "choices", group):
        node = node.get(part) if isinstance(node, Mapping) else None
    return str(node or "")


def _seed(value: object) -> int | None:
    return int(str(value)) if str(value).isdecimal() else None


def _text(value: object) -> str:
    """In one line, and such that it can be written."""
    return " ".join(str(value).encode(errors="replace").decode().split())


def _numbers(node: object) -> dict[str, float]:
    """The entries of a part of a summary that are numbers."""
    items = node.items() if isinstance(node, Mapping) else ()
    return {
        name: value
        for name, value in items
        if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1000)
    }


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
