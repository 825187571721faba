"""The line about each job of a sweep when it ends."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dlhw.sweeps import job_lines
from dlhw.sweeps.job_lines import JobLines

STARTED = 1_000_000.0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty seconds have passed since the sweep started."""
    monkeypatch.setattr(job_lines.time, "time", lambda: STARTED + 20)


def end(sweep: Path, job: str, error: float | None, *, seconds: float = 5.0, at: float = STARTED + 1) -> None:
    """Write the summary of a job with this val error, or of a failed one."""
    (sweep / job).mkdir(exist_ok=True)
    row = {"epoch": 3, "val_error_percent": error}
    content: dict[str, object] = {"status": "failed", "reason": "no"}
    if error is not None:
        content = {"status": "finished", "monitor": "val_error_percent", "best": row, "final": row, "stopped": "epochs"}
        content["seconds"] = seconds
    path = sweep / job / "summary.json"
    path.write_text(json.dumps(content))
    os.utime(path, (at, at))


def test_line_has_result_time_left_and_the_best_so_far(tmp_path: Path) -> None:
    lines = JobLines(tmp_path, 4, STARTED)
    end(tmp_path, "b=0", 2.5)
    assert lines.line(1, "b=0") == "job 1 of 4: b=0: val error 2.50 %, 00:05; 01:00 left"
    end(tmp_path, "b=1", 3.5)
    assert lines.line(2, "b=1") == "job 2 of 4: b=1: val error 3.50 %, 00:05; 00:20 left; best 2.50 % (b=0)"
    end(tmp_path, "b=2", 1.5)
    assert lines.line(3, "b=2") == "job 3 of 4: b=2: val error 1.50 %, 00:05; 00:07 left"
    end(tmp_path, "b=3", None)
    assert lines.line(4, "b=3") == "job 4 of 4: b=3: failed; best 1.50 % (b=2)"


def test_ties_are_counted(tmp_path: Path) -> None:
    for job in ("b=0", "b=1"):
        end(tmp_path, job, 2.5)
    assert JobLines(tmp_path, 2, STARTED).line(2, "b=1").endswith("; best 2.50 % (2 jobs)")


def test_jobs_of_earlier_calls_do_not_change_the_time_left(tmp_path: Path) -> None:
    end(tmp_path, "b=0", 2.5, at=STARTED - 100)
    end(tmp_path, "b=1", 3.5)
    assert "; 00:20 left; best 2.50 % (b=0)" in JobLines(tmp_path, 2, STARTED).line(1, "b=1")


def test_job_that_is_trained_again_has_its_new_result(tmp_path: Path) -> None:
    lines = JobLines(tmp_path, 1, STARTED)
    end(tmp_path, "b=0", 2.5)
    lines.line(1, "b=0")
    end(tmp_path, "b=0", 0.5, at=STARTED + 2)
    assert "val error 0.50 %" in lines.line(1, "b=0")


def test_killed_job_has_no_result(tmp_path: Path) -> None:
    assert JobLines(tmp_path, 3, STARTED).line(1, "b=0") == "job 1 of 3: b=0: unfinished"


def test_names_of_the_best_jobs_are_left_out_of_long_lines(tmp_path: Path) -> None:
    for job, error in (("b=0.0001,optimizer.lr=0.01", 2.5), ("b=0.0002,optimizer.lr=0.01", 3.5)):
        end(tmp_path, job, error)
    line = JobLines(tmp_path, 20, STARTED).line(2, "b=0.0002,optimizer.lr=0.01")
    assert line == "job 2 of 20: b=0.0002,optimizer.lr=0.01: val error 3.50 %, 00:05; 03:00 left; best 2.50 %"


def test_jobs_of_a_confirmation_are_compared_with_each_other(tmp_path: Path) -> None:
    (tmp_path / "confirmation").mkdir()
    end(tmp_path, "b=0", 0.5)
    for seed, error in ((1, 2.5), (2, 3.5)):
        end(tmp_path, f"confirmation/b=0,seed={seed}", error)
    line = JobLines(tmp_path, 2, STARTED).line(2, "confirmation/b=0,seed=2")
    assert "val error 3.50 %" in line
    assert "; best 2.50 %" in line
