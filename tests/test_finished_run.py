"""The files, console output and summary of a finished run, and what resuming it does."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from dlhw.cli import program
from dlhw.storage.record import Record
from support.commands import RUN_FILES, SMALL, Ended, dlhw, files, only, start, summary

SHORT = (*SMALL, "trainer.epochs=2", "trainer.checkpoint_seconds=1000")  # one checkpoint, after the last epoch
FINISHED = "already finished after 2 epochs; a larger trainer.epochs continues training"
COLUMNS = {
    *("epoch", "step", "lr", "train_objective", "train_penalty", "weight_norm", "near_zero_percent"),
    *(f"{part}_{metric}" for part in ("train", "val", "test") for metric in ("loss", "error_percent", "accuracy")),
}
"""The columns of metrics.csv."""


@dataclass(frozen=True)
class Finished:
    ended: Ended
    path: Path
    root: Path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of two epochs in a separate process. Tests must copy its directory before they change it."""
    root = tmp_path_factory.mktemp("finished")
    ended = start(*SHORT, at=root).end()
    return Finished(ended, only(list(root.glob("outputs/train/*"))), root)


def test_run_directory_has_a_timestamp_and_all_files(finished: Finished) -> None:
    assert finished.ended.code == 0
    assert files(finished.path) >= RUN_FILES
    assert "previous.pt" not in files(finished.path)
    assert all(name.startswith(f"outputs/train/{finished.path.name}/") for name in files(finished.root))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", finished.path.name)


def test_console_without_a_terminal_has_log_lines_and_no_progress_bar(finished: Finished) -> None:
    ended = finished.ended
    assert ended.out == ""
    assert "\x1b" not in ended.err
    assert "\r" not in ended.err
    assert ended.lines[0] == f"train: mlp on digits, in {finished.path}"
    assert [line.split("  ")[0] for line in ended.lines[2:-2]] == ["epoch 1/2", "epoch 2/2"]
    best = summary(finished.path)["best"]
    assert ended.lines[-2] == (
        f"all epochs done; best validation error {best['val_error_percent']:.2f} % at epoch {best['epoch']}, "
        f"test error at this epoch {best['test_error_percent']:.2f} %"
    )
    logged = [line.split(" ", 3)[3] for line in (finished.path / "run.log").read_text().splitlines()]
    assert logged == ended.lines


def test_summary_has_results_data_and_provenance(finished: Finished) -> None:
    content = summary(finished.path)
    with (finished.path / "metrics.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert set(rows[0]) == COLUMNS
    assert content["status"] == "finished"
    assert content["stopped"] == "epochs"
    assert content["final"] == pytest.approx(rows[-1], rel=1e-9)
    assert content["best"] == pytest.approx(min(rows, key=lambda row: row[content["monitor"]]), rel=1e-9)
    assert content["parameters"] == (64 + 1) * 8 + (8 + 1) * 10
    assert content["seed"] == 0
    assert content["device"] == "cpu"
    assert content["experiment"] == "train"
    assert content["data"]["name"] == "digits"
    assert [content["data"][part] for part in ("train", "val", "test")] == [1132, 283, 382]
    assert re.fullmatch("[0-9a-f]{64}", content["data"]["sha256"])
    assert shlex.split(content["command"])[-len(SHORT) :] == list(SHORT)
    assert content["versions"].keys() == {"dlhw", "torch", "python"}
    assert content["seconds"] > 0
    assert content.keys() >= {"git_revision", "seconds_per_epoch", "processor", "threads"}


def test_stored_config_is_resolved(finished: Finished) -> None:
    stored = yaml.safe_load((finished.path / "config.yaml").read_text())
    expected = program.compose(*SHORT)
    expected.data_dir = stored["data_dir"]
    assert stored == expected
    assert Path(stored["data_dir"]).is_absolute()  # the run may be resumed from another folder
    assert "${" not in (finished.path / "config.yaml").read_text()


def test_checkpoints_load_with_weights_only(finished: Finished) -> None:
    best, last = (torch.load(finished.path / name, weights_only=True) for name in ("best.pt", "last.pt"))
    assert best["epoch"] == summary(finished.path)["best"]["epoch"]
    assert [row["epoch"] for row in last["rows"]] == [1, 2]


def test_repeated_run_has_identical_metrics(finished: Finished, tmp_path: Path) -> None:
    assert dlhw(*SHORT, "hydra.run.dir=again", at=tmp_path).code == 0
    again, first = ((path / "metrics.csv").read_bytes() for path in (tmp_path / "again", finished.path))
    assert again == first


def test_existing_run_is_not_overwritten(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.path, tmp_path / "here")
    before = {path: path.read_bytes() for path in (tmp_path / "here").rglob("*") if path.is_file()}
    ended = dlhw(*SMALL, "hydra.run.dir=here", at=tmp_path)
    assert ended == Ended(
        1,
        "",
        "here: already exists, and runs are never overwritten; choose another directory, or use resume=here\n",
    )
    assert {path: path.read_bytes() for path in (tmp_path / "here").rglob("*") if path.is_file()} == before


def test_resume_of_a_finished_run_is_an_error(finished: Finished, tmp_path: Path) -> None:
    path = shutil.copytree(finished.path, tmp_path / "run")
    before = {file: (path / file).read_bytes() for file in files(path)}
    ended = dlhw("resume=run", at=tmp_path)
    assert ended == Ended(1, "", f"resume={path}: {FINISHED}\n")
    assert {file: (path / file).read_bytes() for file in files(path)} == before


def test_resume_of_a_finished_run_is_an_error_in_a_separate_process(finished: Finished) -> None:
    """Hydra composes the config twice only in a separate process."""
    before = {file: file.read_bytes() for file in finished.path.rglob("*") if file.is_file()}
    ended = start(f"resume={finished.path}", at=finished.path.parent).end()
    assert ended.code == 1
    assert ended.err == f"resume={finished.path}: {FINISHED}\n"
    assert {file: file.read_bytes() for file in finished.path.rglob("*") if file.is_file()} == before


def test_resume_with_more_epochs_equals_one_longer_run(finished: Finished, tmp_path: Path) -> None:
    path = shutil.copytree(finished.path, tmp_path / "run")
    assert dlhw("resume=run", "trainer.epochs=5", at=tmp_path).code == 0
    assert dlhw(*SMALL, "trainer.epochs=5", "hydra.run.dir=uninterrupted", at=tmp_path).code == 0
    assert summary(path)["final"]["epoch"] == 5
    resumed, uninterrupted = ((tmp_path / name / "metrics.csv").read_bytes() for name in ("run", "uninterrupted"))
    assert resumed == uninterrupted


def test_resume_after_an_interrupted_extension_trains_to_the_extended_number_of_epochs(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shutil.copytree(finished.path, tmp_path / "run")
    append = Record.append

    def append_until_interrupted(record: Record, row: dict[str, float], *, seconds: float) -> None:
        append(record, row, seconds=seconds)
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Record, "append", append_until_interrupted)
        assert dlhw("resume=run", "trainer.epochs=5", at=tmp_path).code == 130
    assert yaml.safe_load((path / "config.yaml").read_text())["trainer"]["epochs"] == 5
    assert dlhw("resume=run", at=tmp_path).code == 0
    assert summary(path)["final"]["epoch"] == 5
