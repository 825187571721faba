"""What a resumed sweep keeps of the command that started it, and what it does with jobs that failed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dlhw.storage.record import Record
from dlhw.sweeps import jobs
from support.commands import dlhw
from support.run_directories import read_rows
from support.sweeps import QUICK, Comparison, replace_comparison, started_jobs, table_statuses

SEARCH = "# @package _global_\n# Which?\nname: search\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: '0,1'}}}\n"


@pytest.fixture
def comparisons(monkeypatch: pytest.MonkeyPatch) -> list[Comparison]:
    return replace_comparison(monkeypatch)


def test_resumed_sweep_reads_the_config_dir_that_it_was_started_with(
    tmp_path: Path, comparisons: list[Comparison]
) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "search.yaml").write_text(SEARCH)
    assert dlhw("--config-dir", "mine", "experiment=search", *QUICK, at=tmp_path).code == 0
    again = dlhw("resume=S", at=tmp_path)
    assert (again.code, again.lines[0]) == (0, f"2 jobs, 2 of them already finished, in {tmp_path / 'S'}")
    (tmp_path / "mine").rename(tmp_path / "moved")
    assert dlhw("resume=S", at=tmp_path).err == (
        f"resume={tmp_path / 'S'}: started with --config-dir {tmp_path / 'mine'}, which does not exist; "
        "add --config-dir FOLDER with its new place\n"
    )
    assert dlhw("--config-dir", "moved", "resume=S", at=tmp_path).code == 0
    assert dlhw("resume=S", at=tmp_path).code == 0  # the new place is stored


def test_resuming_a_sweep_in_another_directory_says_what_relative_paths_refer_to(
    tmp_path: Path, comparisons: list[Comparison]
) -> None:
    (tmp_path / "other").mkdir()
    assert dlhw("-m", *QUICK, "seed=0,1", at=tmp_path).code == 0
    started = f"the sweep was started in {tmp_path}; its relative paths now refer to "
    assert started not in dlhw("resume=S", at=tmp_path).out
    assert started + str(tmp_path / "other") in dlhw("resume=../S", at=tmp_path / "other").lines


def test_resuming_keeps_the_overrides_that_started_the_sweep(tmp_path: Path, comparisons: list[Comparison]) -> None:
    assert dlhw("-m", *QUICK, "seed=0,1", at=tmp_path).code == 0
    path = tmp_path / "S" / "multirun.yaml"
    before = yaml.safe_load(path.read_text())
    assert dlhw("resume=S", "hydra.sweeper.fail_fast=true", "data_dir=moved", at=tmp_path).code == 0
    assert yaml.safe_load(path.read_text()) == {**before, "data_dir": str(tmp_path / "moved")}
    assert dlhw("resume=S", "hydra/launcher=vectorized", at=tmp_path).code == 0
    assert yaml.safe_load(path.read_text()) == {**before, "data_dir": str(tmp_path / "moved")}


def test_job_whose_directory_is_a_broken_link_fails_until_the_link_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "S"
    assert dlhw("-m", *QUICK, "seed=0,2", at=tmp_path).code == 0
    (path / "seed=1").symlink_to(tmp_path / "missing")
    result = dlhw("-m", *QUICK, "seed=0,1", at=tmp_path)
    reason = "S/seed=1: a broken link; expected the directory of a job; restore or remove it, then resume the sweep"
    assert (result.code, started_jobs(result), result.lines[-1]) == (1, [], f"seed=1: failed: {reason}")
    assert reason in result.lines
    assert [row["reason"] for row in read_rows(path / "sweep.csv")] == ["", reason, ""]
    (path / "seed=1").unlink()
    assert dlhw("resume=S", at=tmp_path).code == 0
    assert table_statuses(path) == {"seed=0": "finished", "seed=1": "finished", "seed=2": "finished"}


def test_reason_of_a_job_that_is_tried_again_is_dropped_from_the_table(tmp_path: Path) -> None:
    header, rows = "job,status,reason,b\n", {"a": "a,failed,diverged,0.10\n", "b": "b,failed,invalid,1\n"}
    (tmp_path / "sweep.csv").write_text(header + rows["a"] + rows["b"])
    jobs.mark_unfinished(tmp_path, ["a"])
    assert (tmp_path / "sweep.csv").read_text() == header + "a,unfinished,,0.10\n" + rows["b"]


@pytest.mark.parametrize("flag", ["--config-name", "-cn", "--config-path", "-cp"])
def test_other_primary_config_is_refused(tmp_path: Path, flag: str) -> None:
    result = dlhw(flag, "mine", at=tmp_path)
    assert (result.code, result.out) == (1, "")
    assert result.err.endswith(": invalid; put own config files into a folder and add --config-dir FOLDER\n")


def test_sweep_reads_once_whether_each_job_is_finished(
    tmp_path: Path, comparisons: list[Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def finished(record: Record) -> bool:
        read.append(record.path.name)
        return True

    monkeypatch.setattr(Record, "finished", property(finished))
    dlhw("-m", *QUICK, "seed=0,1", at=tmp_path)
    assert read == ["seed=0", "seed=1"]
