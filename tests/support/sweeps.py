"""Run small sweeps, and read which jobs started, how each ended and what the sweep compared."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dlhw.views import comparison
from support.commands import SMALL, Ended, summary

QUICK = (*SMALL, "trainer.epochs=1", "trainer.batch_size=500", "hydra.sweep.dir=S")


def started_jobs(result: Ended) -> list[str]:
    """The directory names of the jobs that a sweep has trained, or that have failed."""
    return [line.split(": ")[1] for line in result.lines if line.startswith("job ")]


def summary_statuses(sweep: Path) -> dict[str, str]:
    """The status in each job's summary.json; a job that has none is left out."""
    return {path.parent.name: summary(path.parent)["status"] for path in sweep.glob("*/summary.json")}


def table_statuses(sweep: Path) -> dict[str, str]:
    """The status of each job in sweep.csv, in the order of the table."""
    with (sweep / "sweep.csv").open(newline="") as file:
        return {row["job"]: row["status"] for row in csv.DictReader(file)}


class Comparison(NamedTuple):
    """One call of ``compare_runs``: the directory, the jobs that have a config, and the reasons of failed jobs."""

    directory: Path
    jobs: list[str]
    failures: dict[str, str]


def replace_comparison(monkeypatch: pytest.MonkeyPatch) -> list[Comparison]:
    """Replace ``compare_runs`` by a function that writes no files. Return the list of its calls."""
    comparisons = []

    def compare_runs(
        directory: Path,
        runs: Sequence[Path],
        *,
        failures: Mapping[Path, str],
        overrides: Mapping[Path, Sequence[str]],
        **options: Any,
    ) -> str:
        jobs = [path.name for path in overrides if (path / "config.yaml").exists()]
        reasons = {path.name: reason for path, reason in failures.items()}
        comparisons.append(Comparison(directory, jobs, reasons))
        return "\n".join(["the table", *(f"{name}: failed: {reason}" for name, reason in reasons.items())])

    monkeypatch.setattr(comparison, "compare_runs", compare_runs)
    return comparisons
