"""Determine which settings vary among runs, from their configs and overrides.

The values come from the configs; overrides only show which settings vary. Values are compared after parsing, so that
``0.10`` equals ``1e-1``.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dlhw.storage import stored
from dlhw.storage.identity import NOT_SETTINGS
from dlhw.storage.schemas import Invalid, check_config
from dlhw.storage.stored import Unreadable

_COLUMNS = 5
"""Columns for settings that differ without an override. There are more only if these do not separate the runs."""


def varying_settings(
    directories: Sequence[Path],
    overridden: Sequence[Mapping[str, str]],
    configs: Sequence[Mapping[str, str]],
    seeds: Sequence[int | None],
) -> dict[str, list[str]]:
    """Return the settings that vary among runs, with the value in each run as written; empty where a run has none.

    Settings are the keys that any run overrides. If configs differ in other keys than these and the seed, those keys
    are settings, too. A key that is missing in a config counts as another value.

    Args:
        overridden: the overrides of each run, see :func:`overrides_of`.
        configs: the leaves of each run's config, see :func:`config_leaves`.
        seeds: the seed of each run.
    """
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
    return columns


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


def _is_setting(name: str) -> bool:
    return name.partition(".")[0].partition("/")[0] not in NOT_SETTINGS


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


def overrides_of(path: Path, default: Sequence[str]) -> dict[str, str]:
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


def _hydra_file(path: Path) -> Any:
    """Return the content of one of Hydra's files; None if it is missing or invalid."""
    try:
        text = stored.read_text(path, remedy="", largest=stored.LARGEST_CONFIG)
        return None if text is None else stored.parse_yaml(text)
    except (Unreadable, Invalid):
        return None
