"""Make run directories and sweeps with given results, without training."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlhw.storage.schemas import GROUPS
from dlhw.views.comparison import Comparison

CONFIG: dict[str, Any] = {"name": "tiny", "data_dir": "/data", "output_dir": "outputs", "resume": None}
CONFIG |= {group: {"_target_": None} for group in GROUPS} | {"trainer": {"epochs": 3, "monitor": "val_error_percent"}}
"""The smallest valid config of a run, without its seed."""
MULTIRUN: dict[str, Any] = {
    "seed": 0,
    **CONFIG,
    "hydra": {"overrides": {"hydra": [], "task": []}, "runtime": {"choices": {"hydra/launcher": "basic"}}},
}
"""The smallest valid ``multirun.yaml``."""

CURVES = Comparison(
    curves=["train_loss", "val_error_percent"], x="epoch", log_x=False, overlay=None, against=[], probes=[]
)
NO_CURVES = Comparison(curves=[], x="epoch", log_x=False, overlay=None, against=[], probes=[])


def make_run(
    path: Path,
    *overrides: str,
    val: float = 2.0,
    test: float = 3.0,
    monitor: str = "val_error_percent",
    status: str = "finished",
    config: Mapping[str, Any] | None = None,
    choices: Mapping[str, str] | None = None,
    **summary: Any,
) -> Path:
    """Make a minimal run directory of three epochs, with validation error ``val`` at the best epoch, the second.

    ``choices`` are the options of config groups. ``summary`` are more entries of ``summary.json``.
    """
    (path / ".hydra").mkdir(parents=True)
    (path / ".hydra" / "overrides.yaml").write_text(json.dumps(list(overrides)))  # JSON is YAML
    (path / ".hydra" / "hydra.yaml").write_text(json.dumps({"hydra": {"runtime": {"choices": dict(choices or {})}}}))
    seed = next((int(line.partition("=")[2]) for line in overrides if line.startswith("seed=")), 0)
    write_config(path, seed=seed, **(config or {}))
    rows = [
        {
            "epoch": epoch,
            "train_loss": 1 / epoch,
            "val_loss": val / 10 + abs(epoch - 2),
            "val_error_percent": val + abs(epoch - 2),
            "test_loss": test / 10,
            "test_error_percent": test,
        }
        for epoch in range(1, 4)
    ]
    with (path / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    content: dict[str, Any] = {"status": status, "monitor": monitor, "stopped": "epochs", "best": rows[1]}
    content |= {"final": rows[-1], "seconds": 9.5, "seconds_per_epoch": 0.5, "experiment": "tiny", "seed": seed}
    content |= {"parameters": 7, **summary}
    if status == "failed":
        content = {"status": "failed", "reason": summary.get("reason", "TrainingFailed: loss nan")}
    if status != "unfinished":
        (path / "summary.json").write_text(json.dumps(content))
    return path


def write_config(path: Path, **values: Any) -> None:
    """Write a valid ``config.yaml`` with these values. Those of groups are added to the group's others."""
    content = {"seed": 0, **CONFIG}
    for name, value in values.items():
        is_group = isinstance(value, Mapping) and isinstance(content.get(name), Mapping)
        content[name] = {**content[name], **value} if is_group else value
    (path / "config.yaml").write_text(json.dumps(content))  # JSON is YAML


def make_study_run(path: Path, *overrides: str, **numbers: float) -> Path:
    """Make the directory of a study, which has ``numbers`` instead of metrics."""
    make_run(path, *overrides, **numbers)
    content = json.loads((path / "summary.json").read_text())
    for name in ("monitor", "best", "final", "stopped", "seconds", "seconds_per_epoch"):
        del content[name]
    (path / "summary.json").write_text(json.dumps(content))
    return path


def make_sweep(path: Path, results: Mapping[str, Sequence[float]], **run: Any) -> list[Path]:
    """Make a run per setting and seed, for validation errors by setting and seed, such as ``{"b=0.1": [2.0, 4.0]}``.

    The test error is 10 minus the validation error. ``run`` are options of ``make_run``.
    """
    path.mkdir(parents=True, exist_ok=True)
    (path / "multirun.yaml").write_text(json.dumps(MULTIRUN))
    return [
        make_run(
            path / f"{overrides.replace(' ', ',')},seed={seed}",
            *overrides.split(),
            f"seed={seed}",
            val=val,
            test=10 - val,
            **run,
        )
        for overrides, seeds in results.items()
        for seed, val in enumerate(seeds)
    ]


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
