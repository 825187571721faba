"""Tell whether a changed file is as valid as before, so that no program could notice the change."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml


def is_plain_edit(before: bytes, path: Path) -> bool:
    """Return whether a changed file is as valid as before, so that no program could notice that a value was edited.

    The values of a JSON or YAML file may differ but not its keys, types or lengths; the numbers of a CSV file may
    differ, and a column may be missing, but not its other columns or its number of rows.
    """
    if not path.is_file() or path.is_symlink():
        return False
    after = path.read_bytes()
    try:
        if path.suffix == ".json":
            return _same_form(json.loads(before), json.loads(after))
        if path.suffix == ".yaml":
            return len(after) < 2 * len(before) + 1000 and _same_form(yaml.safe_load(before), yaml.safe_load(after))
        if path.suffix == ".csv":
            ours, theirs = (list(csv.reader(io.StringIO(text.decode()))) for text in (before, after))
            kept = [index for index, name in enumerate(ours[0]) if name in theirs[0]]
            remaining = [[row[index] for index in kept] for row in ours]
            return (
                len(remaining) == len(theirs)
                and remaining[0] == theirs[0]
                and all(map(_same_cells, remaining[1:], theirs[1:]))
                and after.endswith(b"\n")
            )
    except (ValueError, yaml.YAMLError, RecursionError, csv.Error, IndexError, TypeError, AttributeError):
        return False
    return path.suffix in (".log", ".png", ".jpg")


def _same_form(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same_form(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same_form, one, other))
    numbers = (int, float)
    if (
        isinstance(one, numbers)
        and isinstance(other, numbers)
        and not isinstance(one, bool)
        and not isinstance(other, bool)
    ):
        return math.isfinite(other)
    return type(one) is type(other)


def _same_cells(one: Sequence[str], other: Sequence[str]) -> bool:
    return len(one) == len(other) and all(
        a == b or (_is_finite(a) and _is_finite(b)) for a, b in zip(one, other, strict=True)
    )


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
