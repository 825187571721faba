"""Failures during a sweep: invalid jobs, errors, unwritable files and interruptions, and what a resumed sweep runs."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from dlhw import train
from dlhw.cli import composition
from dlhw.errors import UsageError
from dlhw.storage.record import Record
from dlhw.sweeps import grid
from dlhw.views import comparison
from support.commands import SMALL, dlhw
from support.sweeps import QUICK, Comparison, replace_comparison, started_jobs, summary_statuses, table_statuses


@pytest.fixture
def comparisons(monkeypatch: pytest.MonkeyPatch) -> list[Comparison]:
    """The calls of ``compare_runs``, which writes no files in this test."""
    return replace_comparison(monkeypatch)


def test_invalid_combinations_fail_and_other_jobs_run(
    tmp_path: Path, comparisons: list[Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    compose = composition.Loader.load_sweep_config

    def load_sweep_config(loader: composition.Loader, master: DictConfig, overrides: list[str]) -> DictConfig:
        if {"seed=1", "+optimizer.nesterov=false"} <= set(overrides):
            raise UsageError("cannot be composed")
        return compose(loader, master, overrides)

    monkeypatch.setattr(composition.Loader, "load_sweep_config", load_sweep_config)
    torch_sgd = ("optimizer=torch", "optimizer.name=SGD", "+optimizer.momentum=0,0.9", "+optimizer.nesterov=true,false")
    result = dlhw("-m", *QUICK, *torch_sgd, "seed=0,1", at=tmp_path)
    assert result.code == 1
    message = "UsageError: optimizer=torch: Nesterov momentum requires a momentum and zero dampening"
    assert comparisons[0].failures == {
        "optimizer.momentum=0,optimizer.nesterov=true,seed=0": message,
        "optimizer.momentum=0,optimizer.nesterov=true,seed=1": message,
        "optimizer.momentum=0,optimizer.nesterov=false,seed=1": "UsageError: cannot be composed",
        "optimizer.momentum=0.9,optimizer.nesterov=false,seed=1": "UsageError: cannot be composed",
    }
    assert sorted(summary_statuses(tmp_path / "S").values()) == ["failed"] * 4 + ["finished"] * 4
    monkeypatch.setattr(composition.Loader, "load_sweep_config", compose)
    again = dlhw("resume=S", at=tmp_path)
    assert len(started_jobs(again)) == 4
    assert list(comparisons[1].failures.values()) == [message, message]


def test_fail_fast_stops_the_sweep_at_the_first_failed_job(tmp_path: Path, comparisons: list[Comparison]) -> None:
    line = ("-m", *QUICK, "trainer.epochs=2", "optimizer.lr=0.1,1e35,0.2")
    result = dlhw(*line, "hydra.sweeper.fail_fast=true", at=tmp_path)
    assert result.code == 1
    assert summary_statuses(tmp_path / "S") == {"optimizer.lr=0.1": "finished", "optimizer.lr=1e+35": "failed"}
    assert list(comparisons[0].failures) == ["optimizer.lr=1e+35"]
    assert result.lines[-1] == "stopped early; next: dlhw resume=S"


def test_unexpected_error_is_logged_with_its_traceback_and_the_job_can_be_resumed(
    tmp_path: Path, comparisons: list[Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train.run

    def run_or_raise(cfg: DictConfig, *others: Any) -> None:
        if cfg.seed == 1:
            raise ZeroDivisionError("in seed 1")
        run(cfg, *others)

    monkeypatch.setattr(train, "run", run_or_raise)
    result = dlhw("-m", *QUICK, "seed=0,1,2", at=tmp_path)
    assert result.code == 1
    assert summary_statuses(tmp_path / "S") == {"seed=0": "finished", "seed=1": "failed", "seed=2": "finished"}
    assert "Traceback" not in result.err
    log = (tmp_path / "S" / "seed=1" / "run.log").read_text()
    assert "Traceback" in log
    assert log.splitlines()[-2].endswith(f"(traceback in {tmp_path / 'S' / 'seed=1' / 'run.log'})")
    assert comparisons[0].failures == {"seed=1": "ZeroDivisionError: in seed 1"}
    monkeypatch.setattr(train, "run", run)
    again = dlhw("resume=S", at=tmp_path)
    assert (again.code, started_jobs(again)) == (0, ["seed=1"])
    assert summary_statuses(tmp_path / "S")["seed=1"] == "finished"


def test_unwritable_file_is_reported_in_one_line(tmp_path: Path) -> None:
    line = ("-m", *QUICK, "seed=0,1")
    dlhw("-m", *QUICK, "seed=0", at=tmp_path)
    (tmp_path / "S" / "seed=1" / "summary.json").mkdir(parents=True)
    result = dlhw(*line, at=tmp_path)
    assert (result.code, result.lines[-1]) == (1, "S/seed=1/summary.json: Is a directory")
    assert result.lines[0].endswith(
        "a folder, not a file; delete it, then resume the run, which writes it again (the run is completed again)"
    )
    (tmp_path / "S" / "seed=1" / "summary.json").rmdir()
    shutil.rmtree(tmp_path / "S" / "tables")
    (tmp_path / "S" / "tables").touch()
    result = dlhw(*line, at=tmp_path)
    assert (result.code, result.lines[-1]) == (1, "S/tables: File exists")
    assert set(summary_statuses(tmp_path / "S").values()) == {"finished"}


def test_interruption_is_reported_even_if_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def raise_disk_full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(grid.Grid, "_launch", interrupt)
    monkeypatch.setattr(comparison, "compare_runs", raise_disk_full)
    result = dlhw("-m", *QUICK, "seed=0,1", at=tmp_path)
    assert (result.code, result.lines[1:]) == (
        143,
        ["S: No space left on device", "stopped early; next: dlhw resume=S"],
    )


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_interrupted_sweep_resumes_to_the_same_metrics(
    tmp_path: Path, comparisons: list[Comparison], monkeypatch: pytest.MonkeyPatch, sent: signal.Signals, code: int
) -> None:
    append = Record.append
    line = ("-m", *SMALL, "trainer.epochs=3", "trainer.checkpoint_seconds=0", "seed=0,1,2")

    def append_and_signal(record: Record, row: dict[str, float], *, seconds: float) -> None:
        append(record, row, seconds=seconds)
        if record.path.name == "seed=1" and row["epoch"] == 2:
            signal.raise_signal(sent)

    with monkeypatch.context() as patch:
        patch.setattr(Record, "append", append_and_signal)
        result = dlhw(*line, "hydra.sweep.dir=S", at=tmp_path)
    assert result.code == code
    assert result.lines[-1] == "stopped early; next: dlhw resume=S"
    assert summary_statuses(tmp_path / "S") == {"seed=0": "finished"}
    assert comparisons == [(Path("S"), ["seed=0", "seed=1"], {})]

    again = dlhw("resume=S", at=tmp_path)
    assert (again.code, started_jobs(again)) == (0, ["seed=1", "seed=2"])
    times = (tmp_path / "S" / "seed=1" / "timing.csv").read_text().splitlines()
    assert len(times) in (4, 5)  # a header and a line per epoch; at most epoch 2 is trained again
    assert dlhw(*line, "hydra.sweep.dir=T", at=tmp_path).code == 0
    for seed in range(3):
        resumed, uninterrupted = (tmp_path / name / f"seed={seed}" / "metrics.csv" for name in "ST")
        assert resumed.read_bytes() == uninterrupted.read_bytes()


def test_sweep_interrupted_before_its_first_job_has_a_table_of_unfinished_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(grid.Grid, "_launch", interrupt)
    result = dlhw("-m", *QUICK, "seed=0,1", at=tmp_path)
    assert (result.code, result.lines[-1]) == (130, "stopped early; next: dlhw resume=S")
    assert table_statuses(tmp_path / "S") == {"seed=0": "unfinished", "seed=1": "unfinished"}
