"""Read the files of a run or sweep back: its config, overrides, summary, metrics, times and table.

Every reader checks the file before it uses the content: that it is a regular file of a plausible size, UTF-8, not
nested too deep, and that it has the keys and types in :mod:`dlhw.storage.schemas`. Otherwise it raises
:class:`Unreadable`. What a reader returns for a file that does not exist is in its docstring. Checkpoints are read by
:mod:`dlhw.storage.checkpoint`.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from dlhw.errors import UsageError
from dlhw.runtime.paths import printable, shortened
from dlhw.storage.schemas import (
    DEEPEST,
    Invalid,
    check_config,
    check_hydra,
    check_metrics,
    check_multirun,
    check_summary,
    check_sweep,
)

LARGEST_CONFIG = 4 * 2**20
"""The largest ``config.yaml`` or ``multirun.yaml`` in bytes."""
LARGEST_SUMMARY = 64 * 2**20
LARGEST_TABLE = 2**30

RESTORE = "restore it, or start again in a new directory"
RESUME = "delete it, then resume the run, which writes it again"
RESUME_FINISHED = "delete it and summary.json, then resume the run, which writes both again"
COMPARE = "delete it, then compare the runs again, which writes it"
COMPARE_ELSEWHERE = "restore it, or compare the runs again into a new directory"

INVALID_VALUES = (TypeError, ValueError, AttributeError, LookupError)
"""What PyYAML raises for a value that is invalid for its tag, such as ``!!timestamp x``."""


class Unreadable(UsageError):
    """A file of a run or sweep cannot be used. The message is ``FILE: what is wrong; what to do``."""

    def __init__(self, path: Path, reason: str, remedy: str) -> None:
        super().__init__(f"{printable(path)}: {printable(' '.join(reason.split()))}; {remedy}")


def irregular(path: Path) -> str | None:
    """Return what the file at ``path`` is if reading it could fail or never end; None for a regular file.

    Raise FileNotFoundError if there is nothing.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if os.path.lexists(path):
            return "a link to a file that does not exist"
        raise
    except NotADirectoryError as error:
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
    except OSError as error:
        return f"not accessible ({error.strerror})"
    kinds = {stat.S_IFREG: None, stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    kind = kinds.get(stat.S_IFMT(mode), "a device")
    return kind and f"{kind}, not a file"


def read_text(path: Path, *, remedy: str, largest: int) -> str | None:
    """Return the text of a file, without a byte order mark; None if it does not exist. Raise Unreadable."""
    try:
        reason = irregular(path)
        if reason:
            raise Unreadable(path, reason, remedy)
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unreadable(path, f"cannot be read ({error.strerror})", remedy) from error
    if len(content) > largest:
        raise Unreadable(path, f"too large (more than {largest:,} bytes)", remedy)
    if b"\0" in content:
        raise Unreadable(path, "not a text file (it contains a null character)", remedy)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(path, f"not UTF-8 text (byte {error.start})", remedy) from error


# YAML


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's safe loader, in C if available. As OmegaConf's it reads ``1e-5`` as a number and has unique keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        repeated = next((key for key in keys if keys.count(key) > 1), None) if len(set(keys)) < len(keys) else None
        if repeated is not None:
            raise yaml.constructor.ConstructorError(None, None, f"found duplicate key {repeated}", node.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d[\d_]*)(?:\.[\d_]*)?[eE][-+]?\d+$|[-+]?\.[\d_]+[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str) -> Any:
    """Return the content of a YAML text. Raise Invalid if it has a mistake or an alias, or is nested too deep."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):  # first, because the loader itself fails on such texts
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                raise Invalid("YAML anchors and aliases are not supported")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > DEEPEST:
                raise Invalid(f"nested more than {DEEPEST} levels deep")
        try:
            return yaml.load(text, _Loader)
        except INVALID_VALUES as error:
            raise yaml.YAMLError(str(error)) from error
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise Invalid(f"not valid YAML ({error.problem}{where})") from error
    except yaml.YAMLError as error:
        raise Invalid(f"not valid YAML ({str(error).splitlines()[0]})") from error


def read_config(directory: Path) -> dict[str, Any] | None:
    """Return the ``config.yaml`` of the run in ``directory``; None if it does not exist. Raise Unreadable."""
    path = directory / "config.yaml"
    text = read_text(path, remedy=RESTORE, largest=LARGEST_CONFIG)
    return None if text is None else parse_config(path, text)


def parse_config(path: Path, text: str) -> dict[str, Any]:
    """Return the content of the ``config.yaml`` at ``path``, which has this text. Raise Unreadable."""
    return _parsed_yaml(path, text, check_config)


def read_multirun(directory: Path) -> dict[str, Any] | None:
    """Return the ``multirun.yaml`` of a sweep: the config of its call with the key ``hydra``, not resolved.

    Return None if it does not exist. Raise Unreadable.
    """
    path = directory / "multirun.yaml"
    text = read_text(path, remedy=RESTORE, largest=LARGEST_CONFIG)
    return None if text is None else _parsed_yaml(path, text, check_multirun)


def code_folders(directory: Path) -> list[str]:
    """Return the folders with the user's own code when a run was started: --config-dir, then the working directory.

    Return an empty list if ``.hydra/hydra.yaml`` is missing or unreadable.
    """
    path = directory / ".hydra" / "hydra.yaml"
    try:
        text = read_text(path, remedy=RESTORE, largest=LARGEST_CONFIG)
        content = {} if text is None else _parsed_yaml(path, text, check_hydra)
    except Unreadable:
        return []
    runtime = content.get("hydra", {}).get("runtime", {})
    folders = [source["path"] for source in runtime.get("config_sources", []) if source["provider"] == "command-line"]
    return [*folders, *([runtime["cwd"]] if "cwd" in runtime else [])]


def _parsed_yaml(path: Path, text: str, check: Callable[[Any], None]) -> dict[str, Any]:
    try:
        content: dict[str, Any] = parse_yaml(text)
        check(content)
    except Invalid as error:
        raise Unreadable(path, str(error), RESTORE) from error
    return content


# JSON


def _remedy_of_conclusion(path: Path) -> str:
    """Return what to do about the invalid ``summary.json`` of a run or sweep, or its ``sweep.csv``."""
    if os.path.lexists(path.with_name("config.yaml")):
        return RESUME
    if os.path.lexists(path.with_name("multirun.yaml")):
        return COMPARE
    return COMPARE_ELSEWHERE if os.path.lexists(path.with_name("sweep.csv")) else RESUME


def read_summary(directory: Path) -> dict[str, Any]:
    """Return the ``summary.json`` of a run or sweep; empty if it does not exist, so the run has not ended.

    Raise Unreadable if it is invalid.
    """
    path = directory / "summary.json"
    remedy = _remedy_of_conclusion(path)
    text = read_text(path, remedy=remedy, largest=LARGEST_SUMMARY)
    if text is None:
        return {}
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise Unreadable(path, "nested too deep", remedy) from error
    except json.JSONDecodeError as error:
        raise Unreadable(path, f"not valid JSON (line {error.lineno}: {error.msg})", remedy) from error
    except ValueError as error:
        raise Unreadable(path, f"not valid JSON ({error})", remedy) from error
    try:
        check_summary(content)
    except Invalid as error:
        raise Unreadable(path, str(error), remedy) from error
    summary: dict[str, Any] = content
    return summary


def _refuse_constant(name: str) -> None:
    raise Invalid(f"{name} is not a number")


# CSV


def complete_lines(path: Path) -> list[str]:
    """Return the lines of a file that end in a newline; empty if it cannot be read.

    A crash may have truncated the last line, which is dropped.
    """
    try:
        text = read_text(path, remedy="", largest=LARGEST_TABLE) or ""
    except Unreadable:
        return []
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


def read_metrics(directory: Path) -> list[dict[str, float]] | None:
    """Return the rows of ``metrics.csv``, one per epoch; None if it does not exist. Raise Unreadable.

    The last line is left out if a crash truncated it.
    """
    path = directory / "metrics.csv"
    remedy = RESUME_FINISHED if os.path.lexists(directory / "summary.json") else RESUME
    text = read_text(path, remedy=remedy, largest=LARGEST_TABLE)
    if text is None:
        return None
    rows: list[dict[str, float]] = []
    try:
        for cells in _table(path, text[: text.rfind("\n") + 1], remedy=remedy):
            rows.append({name: _number(cell) for name, cell in cells.items()})
        check_metrics(rows)
    except Invalid as error:
        raise Unreadable(path, str(error), remedy) from error
    return rows


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError as error:
        raise Invalid(f"{shortened(cell, longest=40)} is not a number") from error


def read_seconds(directory: Path) -> dict[int, float]:
    """Return the seconds of each epoch in ``timing.csv``, as last computed; lines that are not such rows are left out.

    Times are not results, so a damaged file is never an error.
    """
    rows: dict[int, float] = {}
    for line in complete_lines(directory / "timing.csv"):
        match = re.fullmatch(r"(\d{1,10}),(\d{1,15}(?:\.\d{1,20})?)\n", line)
        if match:
            rows[int(match[1])] = float(match[2])
    return rows


def read_sweep(directory: Path) -> list[dict[str, str]] | None:
    """Return the rows of a sweep's ``sweep.csv``, one per job; None if it does not exist. Raise Unreadable."""
    path = directory / "sweep.csv"
    remedy = _remedy_of_conclusion(path)
    text = read_text(path, remedy=remedy, largest=LARGEST_TABLE)
    if text is None:
        return None
    rows = _table(path, text, remedy=remedy)
    try:
        check_sweep(rows)
    except Invalid as error:
        raise Unreadable(path, str(error), remedy) from error
    return rows


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of another table of a run; empty if it does not exist. Raise Unreadable."""
    text = read_text(path, remedy=RESTORE, largest=LARGEST_TABLE)
    return [] if text is None else _table(path, text, remedy=RESTORE)


def _table(path: Path, text: str, *, remedy: str) -> list[dict[str, str]]:
    """Return the rows of a CSV text with a header. Raise Unreadable if a row has other columns."""
    try:
        header, *lines = csv.reader(io.StringIO(text, newline=""), strict=True) if text else [[]]
    except csv.Error as error:
        raise Unreadable(path, f"not a CSV file ({error})", remedy) from error
    if len(set(header)) < len(header):
        raise Unreadable(path, "a column name is repeated", remedy)
    for number, cells in enumerate(lines, 2):
        if len(cells) != len(header):
            raise Unreadable(path, f"row {number} has {len(cells)} columns, and the header {len(header)}", remedy)
    return [dict(zip(header, cells, strict=True)) for cells in lines]
