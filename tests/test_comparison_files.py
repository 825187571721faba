"""The files of a comparison: ``sweep.csv`` and ``summary.json``, also for incomplete or invalid runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from dlhw.compare import compare
from dlhw.views.comparison import compare_runs
from support.run_directories import CURVES, NO_CURVES, make_run, make_sweep, read_rows


def test_sweep_csv_does_not_depend_on_directory_or_run_times(tmp_path: Path) -> None:
    texts = []
    for name, seconds in (("first", 1.0), ("second", 2.0)):
        runs = make_sweep(tmp_path / name, {"b=0": [2.0, 3.0], "b=0.5": [1.0]}, seconds=seconds)
        runs.append(make_run(tmp_path / name / "failed", "b=9", "seed=0", status="failed"))
        compare_runs(tmp_path / name, runs, comparison=NO_CURVES, about={"seconds": seconds})
        texts.append((tmp_path / name / "sweep.csv").read_bytes())
    assert texts[0] == texts[1]
    rows = read_rows(tmp_path / "first" / "sweep.csv")
    assert [row["job"] for row in rows] == ["b=0,seed=0", "b=0,seed=1", "b=0.5,seed=0", "failed"]
    assert [row["status"] for row in rows] == ["finished"] * 3 + ["failed"]
    assert list(rows[0])[:7] == ["job", "status", "reason", "b", "seed", "epochs", "best_epoch"]
    assert rows[1] | {"epochs": "3", "best_epoch": "2", "best_val_error_percent": "3"} == rows[1]
    assert rows[1]["final_val_error_percent"] == "4"
    assert not any("seconds" in name for name in rows[0])


def test_job_without_a_directory_has_a_failed_row(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, {"b=0": [2.0], "b=1": [1.0]})
    missing = tmp_path / "b=1,seed=1"
    conclusion = compare_runs(
        tmp_path,
        [*runs, missing],
        comparison=NO_CURVES,
        failures={missing: "UsageError: b=1: no"},
        overrides={missing: ["b=1", "seed=1"]},
        about={"command": "c"},
    )
    row = read_rows(tmp_path / "sweep.csv")[2]
    assert (row["job"], row["status"], row["reason"]) == ("b=1,seed=1", "failed", "UsageError: b=1: no")
    assert (row["b"], row["seed"]) == ("1", "1")
    assert conclusion.winner is not None
    assert conclusion.winner.values == {"b": "0"}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary | {"status": "failed", "jobs": 3, "finished": 2, "failed": 1, "command": "c"} == summary


def test_comparison_of_no_runs_writes_sweep_csv(tmp_path: Path) -> None:
    conclusion = compare_runs(tmp_path, [], comparison=CURVES)
    assert (tmp_path / "sweep.csv").exists()
    assert "no winner: no run finished" in str(conclusion)


DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"\xff", b'{"status": ', b'{"status": 3, "best": 1}', b'{"status": "finished", "final": null}', DEEP],
    ids=lambda content: repr(content[:40]),
)
def test_run_with_an_invalid_summary_counts_as_failed(tmp_path: Path, content: bytes) -> None:
    runs = make_sweep(tmp_path, {"b=0": [5.0], "b=1": [1.0]})
    (runs[1] / "summary.json").write_bytes(content)
    compare_runs(tmp_path, runs, comparison=NO_CURVES)
    assert f"b=1,seed=0: failed: {runs[1] / 'summary.json'}: " in compare([tmp_path])
    rows = read_rows(tmp_path / "sweep.csv")
    assert [row["status"] for row in rows] == ["finished", "failed"]
    assert rows[1]["reason"].startswith(f"{runs[1] / 'summary.json'}: ")


def test_invalid_numbers_are_ignored(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, {"b=0": [5.0], "b=1": [1.0, 2.0]}, seconds_per_epoch="long", parameters=[])
    invalid = {
        "status": "finished",
        "monitor": "val_error_percent",
        "best": {"val_error_percent": "x"},
        "final": 10**400,
    }
    (runs[0] / "summary.json").write_text(json.dumps(invalid))
    (runs[1] / "summary.json").write_text(json.dumps(invalid | {"best": {"val_error_percent": -math.inf}}))
    (runs[2] / "summary.json").write_text(json.dumps(invalid | {"best": {"val_error_percent": math.inf}}))
    (runs[2] / "config.yaml").write_text("b: 2001-99-99\n")
    (runs[2] / ".hydra" / "hydra.yaml").write_text("hydra: null")
    conclusion = compare_runs(tmp_path, [*runs, tmp_path / "\udcff"], comparison=NO_CURVES)
    assert conclusion.winner is None
    assert len(read_rows(tmp_path / "sweep.csv")) == 4
