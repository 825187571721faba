"""What the files of a run or sweep must contain: keys, types and plausible sizes.

Each function raises :class:`Invalid`, whose message says what is wrong, unless the content is what dlhw writes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dlhw.runtime.bounds import LARGEST_COUNT, LARGEST_SEED

GROUPS = (
    *("dataset", "augmentation", "model", "init", "loss", "regularization", "optimizer", "scheduler", "trainer"),
    *("probe", "study", "report", "comparison"),
)
"""The groups of every config."""
STATUSES = ("finished", "failed", "unfinished")
DEEPEST = 50
"""The largest number of nested mappings and lists."""


class Invalid(ValueError):
    """The content of a file is not what dlhw writes. The message says what is wrong."""


def require(condition: object, reason: str) -> None:
    """Raise Invalid with this reason unless the condition is true."""
    if not condition:
        raise Invalid(reason)


def is_whole(value: object, *, smallest: int, largest: int) -> bool:
    """Return whether the value is a whole number in this range; a boolean is not."""
    return isinstance(value, int) and not isinstance(value, bool) and smallest <= value <= largest


def is_number(value: object) -> bool:
    """Return whether the value is a finite number; a boolean is not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 2**1000 if isinstance(value, int) else math.isfinite(value)


def check_config(content: Any) -> None:
    """Check the content of a ``config.yaml``. All its values are resolved."""
    require(isinstance(content, Mapping), "not the config of a run")
    require("hydra" not in content, "not the config of a run (it has the key hydra)")
    _check_any_config(content, "run")
    require(
        is_whole(content["seed"], smallest=0, largest=LARGEST_SEED),
        f"seed must be a whole number from 0 to {LARGEST_SEED}",
    )
    require(
        is_whole(content["trainer"].get("epochs"), smallest=1, largest=LARGEST_COUNT),
        f"trainer.epochs must be a whole number from 1 to {LARGEST_COUNT}",
    )
    for name, value in _leaves(content):
        require(
            not isinstance(value, str) or ("${" not in value and value != "???"),
            f"{name} must be a value without ${{...}} or ???",
        )


def check_multirun(content: Any) -> None:
    """Check the content of a ``multirun.yaml``: a config that is not resolved, with Hydra's overrides and choices."""
    require(isinstance(content, Mapping) and isinstance(content.get("hydra"), Mapping), "not the config of a sweep")
    _check_any_config(content, "sweep")
    require("${" not in content["data_dir"], "data_dir must be a path without ${...}")
    overrides, runtime = content["hydra"].get("overrides"), content["hydra"].get("runtime")
    for name in ("hydra", "task"):
        lines = overrides.get(name) if isinstance(overrides, Mapping) else None
        valid = isinstance(lines, list) and all(isinstance(line, str) and line.strip() for line in lines)
        require(valid, f"hydra.overrides.{name} must be a list of overrides")
    choices = runtime.get("choices") if isinstance(runtime, Mapping) else None
    require(isinstance(choices, Mapping), "hydra.runtime.choices must be a mapping")
    _check_sources(runtime)


def check_hydra(content: Any) -> None:
    """Check the working directory and the folders of config files in a ``.hydra/hydra.yaml``."""
    hydra = content.get("hydra", {}) if isinstance(content, Mapping) else None
    runtime = hydra.get("runtime", {}) if isinstance(hydra, Mapping) else None
    if not isinstance(runtime, Mapping):
        raise Invalid("hydra.runtime must be a mapping")
    require(isinstance(runtime.get("cwd", ""), str), "hydra.runtime.cwd must be a path")
    _check_sources(runtime)


def _check_sources(runtime: Any) -> None:
    sources = runtime.get("config_sources", []) if isinstance(runtime, Mapping) else None
    valid = isinstance(sources, list) and all(
        isinstance(source, Mapping) and all(isinstance(source.get(name), str) for name in ("path", "provider"))
        for source in sources
    )
    require(valid, "hydra.runtime.config_sources must be a list of folders with path and provider")


def _check_any_config(content: Mapping[Any, Any], kind: str) -> None:
    missing = [name for name in ("seed", "name", "data_dir", "output_dir", *GROUPS) if name not in content]
    require(not missing, f"not the config of a {kind} (without {_listed(missing)})")
    for name in ("name", "data_dir", "output_dir"):
        require(isinstance(content[name], str) and content[name], f"{name} must be text")
    for name in GROUPS:
        require(isinstance(content[name], Mapping), f"{name} must be a mapping")
    require(isinstance(content.get("logger", {}), Mapping), "logger must be a mapping")  # earlier versions had none
    for name, value in _leaves(content):
        valid = value is None or isinstance(value, bool | int | float | str)
        require(valid, f"{name} must not be a {type(value).__name__}")


def _leaves(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all values in nested mappings and lists, with their dotted names."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            require(isinstance(key, str | int | float), f"{name or 'the config'} has the key {key}")
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(content, list):
        for value in content:
            yield from _leaves(value, name)
    else:
        yield name, content


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def check_summary(content: Any) -> None:
    """Check the content of a ``summary.json``, of a run, a study or a sweep."""
    require(not is_deep(content), f"nested more than {DEEPEST} levels deep")
    require(isinstance(content, dict), "not the summary of a run")
    status, data = content.get("status"), content.get("data", {})
    require(status in STATUSES, f"status must be one of {', '.join(STATUSES)}")
    require(isinstance(content.get("reason", ""), str), "reason must be text")
    require(isinstance(data, dict), "data must be a mapping")
    classes = data.get("classes", [])
    valid = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    require(valid, "data.classes must be a list of names")
    if not {"best", "final", "stopped"} & content.keys():  # of a study, a sweep or a failed run
        return
    for name in ("best", "final"):
        row = content.get(name)
        valid = isinstance(row, dict) and is_whole(row.get("epoch"), smallest=1, largest=LARGEST_COUNT)
        require(valid, f"{name} must be a row of metrics with its epoch")
        for column, value in content[name].items():
            require(is_number(value), f"{name}.{column} must be a number")
    require(content.get("stopped") in ("epochs", "patience"), "stopped must be epochs or patience")
    monitor = content.get("monitor")
    require(isinstance(monitor, str) and monitor in content["best"], "monitor must be a metric of the best row")


def is_deep(content: Any) -> bool:
    """Return whether the content has more than ``DEEPEST`` levels of mappings and lists."""
    level = [content]
    for _ in range(DEEPEST):
        parents = [node for node in level if isinstance(node, dict | list)]
        level = [child for node in parents for child in (node.values() if isinstance(node, dict) else node)]
    return any(isinstance(node, dict | list) for node in level)


def check_metrics(rows: Sequence[Mapping[str, Any]]) -> None:
    """Check rows of metrics: one for each epoch from the first on, with the same named columns and numbers only."""
    for name in rows[0] if rows else ():
        require(isinstance(name, str) and re.fullmatch(r"\w+", name), f"invalid name of a column: {name!r}")
    for number, row in enumerate(rows, 1):
        require(row.get("epoch") == number and all(map(is_number, row.values())), f"row {number} is not that of epoch "
                f"{number}, with numbers only")  # fmt: skip
        require(row.keys() == rows[0].keys(), f"row {number} has other columns than row 1")


def check_sweep(rows: Sequence[Mapping[str, str]]) -> None:
    """Check the rows of a ``sweep.csv``: each has a job, which is a directory below it, and a status."""
    for row in rows:
        valid = list(row)[:3] == ["job", "status", "reason"]
        require(valid, "not the table of a sweep (its first columns must be job, status, reason)")
        job = Path(row["job"])
        require(row["job"] and not job.is_absolute() and ".." not in job.parts, f"job {job} is not a directory in it")
        require(row["status"] in STATUSES, f"the status of job {job} must be one of {', '.join(STATUSES)}")
