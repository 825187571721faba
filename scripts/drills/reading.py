"""Read results of dlhw: in a child through its Python functions, and in the drill to compare what was read."""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import yaml


def read_run(name: str) -> None:
    """Print every part of a run as JSON, or the message of its UsageError."""
    from omegaconf import OmegaConf

    import dlhw

    def weights(which: Literal["best", "last"]) -> str:
        sha256 = hashlib.sha256()
        for key, value in opened().model(which).state_dict().items():
            sha256.update(f"{key} {value.dtype} {value.tolist()}".encode())
        return sha256.hexdigest()

    opened = functools.partial(dlhw.load_run, name)
    parts: dict[str, Callable[[], object]] = {
        "config": lambda: OmegaConf.to_container(opened().config, resolve=True),
        "metrics": lambda: opened().metrics.sort_index(axis=1).to_csv(),  # in any order of the columns
        "summary": lambda: opened().summary,
        "model best": lambda: weights("best"),
        "model last": lambda: weights("last"),
        "representation": lambda: str(opened()).startswith("Run("),
    }
    print_parts(parts)


def read_sweep(name: str) -> None:
    """Print the table of a sweep as JSON, or the message of its UsageError."""
    import dlhw

    def jobs() -> str:
        return dlhw.load_sweep(name).jobs.to_csv()

    print_parts({"table": jobs})


def print_parts(parts: dict[str, Callable[[], object]]) -> None:
    """Print the values of functions as one line of JSON, with the message instead of the value after a UsageError."""
    from dlhw.errors import UsageError

    results: dict[str, dict[str, Any]] = {}
    for name, part in parts.items():
        try:
            results[name] = {"value": part()}
        except UsageError as error:
            results[name] = {"error": str(error)}
    print(json.dumps(results, default=str))


def with_argument(function: Callable[[str], object], name: str) -> Callable[[], object]:
    """Return the call of a function with a name."""
    result = functools.partial(function, name)
    result.__qualname__ = getattr(function, "__name__", "")  # type: ignore[attr-defined]
    return result


def first_difference(ours: object, theirs: object) -> str:
    """Return the parts of two values around the first place where they differ."""
    one, other = json.dumps(ours, sort_keys=True), json.dumps(theirs, sort_keys=True)
    same = next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
    start = max(0, same - 30)
    return f"...{one[start : start + 70]}... instead of ...{other[start : start + 70]}..."


def wrong_in_table(path: Path, expected: Path) -> list[str]:
    """Describe what a table of runs lacks, and its numbers that differ from those of the expected one."""
    ours, theirs = table(path), table(expected)
    wrong = []
    for job, row in theirs.items():
        rows = [ours[name] for name in ours if re.fullmatch(rf"{re.escape(job)}(-\d+)?", name)]
        cells = [[text for column in row if (text := _other_cell(own, row, column))] for own in rows]
        if not rows:
            wrong.append(f"{path.name} lacks {job}")
        elif all(cells):
            wrong.append(f"{path.name}: {job}, {cells[0][0]}")
    return wrong


def _other_cell(ours: dict[str, str], theirs: dict[str, str], column: str) -> str | None:
    """Describe how a number of a job differs from the expected one; None if it is equal or missing."""
    if column in ("job", "status", "reason") or ours.get(column, "") in ("", theirs[column]):
        return None
    return f"{column}: {ours[column]} instead of {theirs[column]}"


def table(path: Path) -> dict[str, dict[str, str]]:
    """Return the rows of a CSV file by job."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {Path(row["job"]).name: row for row in csv.DictReader(file)}


def epochs(directory: Path) -> int | None:
    """Return the number of epochs in the config of a run."""
    try:
        number = yaml.safe_load((directory / "config.yaml").read_bytes())["trainer"]["epochs"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return None
    return number if isinstance(number, int) else None


def mapping_in(path: Path) -> object:
    """Return the content of a YAML or JSON file, with the types of JSON. Return None if it has none."""
    try:
        return json.loads(json.dumps(yaml.safe_load(path.read_bytes()), default=str))
    except (OSError, ValueError, yaml.YAMLError, RecursionError, TypeError):
        return None


def not_a_mapping(path: Path) -> str | None:
    """Return why a YAML file does not contain a mapping. Return None if it does, or if it is empty."""
    if not path.is_file():
        return "is not a file"
    if path.stat().st_rdev or path.is_symlink():
        return None
    try:
        content = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError:
        return "is not YAML"
    except (RecursionError, ValueError):
        return "cannot be read"
    return None if content is None or isinstance(content, dict) else f"holds {type(content).__name__}"
