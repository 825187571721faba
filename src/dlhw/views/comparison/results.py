"""Read run directories: find them, read their results, and determine which settings vary among them.

The values of the settings come from the runs' configs; overrides only show which settings vary. Values are compared
after parsing, so that ``0.10`` equals ``1e-1``. This module uses neither torch nor pandas, so that reading a thousand
runs takes about a second.
"""

from __future__ import annotations

import functools
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from dlhw.errors import UsageError
from dlhw.runs import stored
from dlhw.runs.directories import explanation, has_config, is_run_of_dlhw, is_sweep_of_dlhw
from dlhw.runs.identity import NOT_SETTINGS
from dlhw.runs.schemas import Invalid, check_config
from dlhw.runs.stored import Unreadable

log = logging.getLogger(__name__)

_NOT_RESULTS = (
    "status",
    "seed",
    "threads",
    "parameters",
)  # entries at the top level of summary.json that are not results of a study
_COLUMNS = 5  # columns for settings that differ without an override; more only if these do not separate the runs


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

    Settings are the keys that any run overrides. If configs differ in other keys than these and the seed, those keys
    are settings, too. A key that is missing in a config counts as another value.

    Args:
        failures: reasons for failed jobs whose directory does not exist or has no reason.
        overrides: the overrides of jobs whose directory does not have them.
    """
    overridden = [_overrides(path, (overrides or {}).get(path, ())) for path in directories]
    configs, summaries, mistakes = _stored(directories)
    seeds = [
        _seed(config.get("seed", summary.get("seed", line.get("seed"))))
        for summary, config, line in zip(summaries, configs, overridden, strict=True)
    ]
    nodes = {name[: dot.start()] for name in set().union(*configs) for dot in re.finditer(r"\.", name)}

    def value(name: str, path: Path, line: Mapping[str, str], config: Mapping[str, str]) -> str:
        if name in config and name not in nodes:
            return config[name]
        return line[name] if name in line else _config_group_choice(path, name) if config and "." not in name else ""

    def column(name: str) -> list[str]:
        return [value(name, *run) for run in zip(directories, overridden, configs, strict=True)]

    columns: dict[str, list[str]] = {}
    for name in dict.fromkeys(key for line in overridden for key in line):
        if _is_setting(name) and not _same_interpolation({line[name] for line in overridden if name in line}):
            values = column(name)
            if len({canonical(text) for text, config in zip(values, configs, strict=True) if text or config}) > 1:
                columns[name] = values
    for name in _distinguishing_keys(columns, configs, seeds):
        columns[name] = column(name)
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


def _stored(
    directories: Sequence[Path],
) -> tuple[list[Mapping[str, str]], list[Mapping[str, Any]], dict[Path, str]]:
    """Return the leaves of the config and the summary of each run, and why those of some runs cannot be used."""
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


def _distinguishing_keys(
    columns: Mapping[str, Sequence[str]], configs: Sequence[Mapping[str, str]], seeds: Sequence[int | None]
) -> list[str]:
    """Return keys that distinguish runs with equal ``columns`` but different configs; shorter keys are preferred."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, config in enumerate(configs):
        if config:
            groups.setdefault(tuple(canonical(values[i]) for values in columns.values()), []).append(i)
    keys: dict[str, None] = {}
    for members in groups.values():
        compared = [{name: text for name, text in configs[i].items() if _is_setting(name)} for i in members]
        if all(config == compared[0] for config in compared):
            continue
        separating: list[tuple[Any, ...]] = []
        for name in sorted(set().union(*compared), key=lambda name: (name.count("."), len(name), name)):
            texts = [config.get(name, "") for config in compared]
            values = tuple(map(canonical, texts))
            mirrored = {_without_seed(text, seeds[i]) for text, i in zip(texts, members, strict=True)}
            if len(set(values)) == 1 or len(mirrored) == 1 or values in separating:
                continue
            splits = len(set(zip(*separating, values, strict=True))) > len(set(zip(*separating, strict=True)))
            if len(separating) < _COLUMNS or splits:
                separating.append(values)
                keys[name] = None
    return list(keys)


def _without_seed(text: str, seed: int | None) -> str:
    return text if seed is None else re.sub(rf"(?<!\d)(?<!\d\.){seed}(?!\.?\d)", "{seed}", text)


def _same_interpolation(texts: set[str]) -> bool:
    """Return whether an override is the same interpolation of other keys in all runs."""
    return len(texts) == 1 and "${" in next(iter(texts))


def run_directories(directory: Path) -> list[Path]:
    """Return ``[directory]`` if it is a run, else the runs directly in it, in the order of ``sweep.csv``, then by name.

    In the directory of a sweep, a run with an invalid config is one, too. Raise UsageError if there is no run.
    """
    if has_config(directory):
        stored.read_config(directory)
        return [directory]
    is_run = _began if is_sweep_of_dlhw(directory) else is_run_of_dlhw
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


def declared_options(runs: Iterable[Path]) -> dict[str, Any]:
    """Return the ``comparison`` options in the first run's config; empty if there are none."""
    first = next(iter(runs), None)
    try:
        config = None if first is None else stored.read_config(first)
    except Unreadable:
        config = None
    return {name: value for name, value in config["comparison"].items() if name != "_target_"} if config else {}


@functools.lru_cache(maxsize=2**14)
def canonical(text: str) -> Any:
    """Parse a value as written, for comparison: ``0.10`` equals ``1e-1``, and ``[8]`` equals ``[8.0]``."""
    try:
        return _hashable(stored.parse_yaml(text))
    except Invalid:
        return text.strip()


def number(text: str) -> float | None:
    """Return a value as a number, also from a list of one number (``model.hidden=[100]``); else None."""
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


def _began(path: Path) -> bool:
    """Return whether the directory is that of a job. One with an invalid config has only Hydra's files."""
    return has_config(path) or (path / ".hydra" / "overrides.yaml").is_file()


def _hydra_file(path: Path) -> Any:
    """Return the content of one of Hydra's files; None if it is missing or invalid."""
    try:
        text = stored.read_text(path, remedy="", largest=stored.LARGEST_CONFIG)
        return None if text is None else stored.parse_yaml(text)
    except (Unreadable, Invalid):
        return None


def config_leaves(directory: Path) -> dict[str, str]:
    """Return the keys of a run's config with values as written, such as ``{"optimizer.lr": "0.1"}``.

    Return nothing without a ``config.yaml``. Raise Unreadable.
    """
    path = directory / "config.yaml"
    text = stored.read_text(path, remedy=stored.RESTORE, largest=stored.LARGEST_CONFIG)
    if text is None:
        return {}
    blocks = [_block(block) for block in re.split(r"^(?=[^\s#-])", text, flags=re.MULTILINE)]
    names = [name for block in blocks if block is not None for name in block[0]]
    if None in blocks or len(set(names)) < len(names):  # not a sequence of top-level keys in block style
        stored.parse_config(path, text)
        blocks = [_block(text)]
    content = {name: value for block in blocks if block is not None for name, value in block[0].items()}
    try:
        check_config(content)
    except Invalid as error:
        raise Unreadable(path, str(error), stored.RESTORE) from error
    return {name: value for block in blocks if block is not None for name, value in block[1].items()}


@functools.lru_cache(maxsize=2**13)
def _block(text: str) -> tuple[dict[str, Any], dict[str, str]] | None:
    """Return the content and the leaves of one top-level key; None if it is not a mapping.

    Cached, because runs share most keys.
    """
    try:
        content = stored.parse_yaml(text)
    except Invalid:
        return None
    if content is None:
        return {}, {}
    return (content, dict(_flat(content, ""))) if isinstance(content, dict) else None


def _flat(node: Mapping[Any, Any], prefix: str) -> Iterable[tuple[str, str]]:
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _as_written(value)


def _as_written(value: Any) -> str:
    if isinstance(value, str):
        return value
    return yaml.dump(value, default_flow_style=True, width=math.inf).removesuffix("\n...\n").strip()


def _overrides(path: Path, default: Sequence[str]) -> dict[str, str]:
    """Return the overrides of a run, with values as written."""
    lines = _hydra_file(path / ".hydra" / "overrides.yaml")
    split = [str(line).lstrip("+").partition("=") for line in (lines if isinstance(lines, list) else default)]
    return {name.removeprefix("~"): "null" if name.startswith("~") else value for name, _, value in split}


def _config_group_choice(path: Path, group: str) -> str:
    """Return the option of a config group that a run used by default; empty if it is unknown."""
    node = _hydra_file(path / ".hydra" / "hydra.yaml")
    for part in ("hydra", "runtime", "choices", group):
        node = node.get(part) if isinstance(node, Mapping) else None
    return str(node or "")


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
