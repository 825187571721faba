"""A directory that is not what a command expects is described, with the directory to use instead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dlhw import load_run, load_sweep
from dlhw.errors import UsageError
from dlhw.storage.directories import explanation, is_run_of_dlhw, is_sweep_of_dlhw
from dlhw.storage.listing import locate
from support.composing import error_message
from support.run_directories import make_run, make_sweep, write_config


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A folder with two runs and, in ``sweeps``, a sweep of two runs."""
    for age, name in enumerate(("new", "old")):
        run = make_run(tmp_path / name)
        os.utime(run, (1e9 - age, 1e9 - age))
    make_sweep(tmp_path / "sweeps" / "s", {"b=0": [1.0], "b=1": [2.0]})
    return tmp_path


def test_folder_means_its_newest_run_or_sweep(outputs: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_run(outputs).path == outputs / "new"
    assert caplog.messages == [f"{outputs}: the newest run is {outputs / 'new'}"]
    os.utime(outputs / "old", (2e9, 2e9))
    assert load_run(outputs).path == outputs / "old"
    assert locate(outputs, "sweep") == locate(outputs / "sweeps", "run or sweep") == outputs / "sweeps" / "s"
    assert locate(outputs / "new") == outputs / "new"


def test_last_is_the_newest_in_outputs(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs.rename(outputs.with_name("outputs"))
    monkeypatch.chdir(outputs.parent)
    assert load_run("last").path == Path("outputs/new")
    assert locate(Path("last"), "sweep") == Path("outputs/sweeps/s")
    (outputs.parent / "last").mkdir()
    with pytest.raises(UsageError, match=r"^last: not a run directory"):
        load_run("last")


def test_last_without_outputs_names_that_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert error_message("resume=last") == (
        f"resume={tmp_path / 'outputs'}: no such directory; expected the directory of a run or sweep"
    )


def test_resume_continues_the_newest_run_in_a_folder(outputs: Path) -> None:
    (outputs / "sweeps").rename(outputs.parent / f"{outputs.name}-sweeps")
    assert (
        error_message(f"resume={outputs}")
        == f"resume={outputs / 'new'}: already finished after 3 epochs; a larger trainer.epochs continues training"
    )


def test_folder_of_sweeps_is_not_a_run(outputs: Path) -> None:
    with pytest.raises(UsageError) as raised:
        load_run(outputs / "sweeps")
    newest = outputs / "sweeps" / "s"
    assert str(raised.value) == (
        f"{outputs / 'sweeps'}: a folder of sweeps; expected one of them; the newest is {newest}"
    )


def test_sweep_instead_of_a_run_names_its_runs(outputs: Path) -> None:
    sweep = outputs / "sweeps" / "s"
    with pytest.raises(UsageError) as raised:
        load_run(sweep)
    assert str(raised.value) == (
        f"{sweep}: the directory of a sweep; expected one of its runs, such as {sweep / 'b=0,seed=0'}, "
        f"{sweep / 'b=1,seed=0'}"
    )
    assert explanation(outputs / "sweeps").endswith(f"a folder of sweeps; expected one of them; the newest is {sweep}")


def test_run_instead_of_a_sweep_names_its_sweep(outputs: Path) -> None:
    with pytest.raises(UsageError, match=r"new: the directory of a run; expected that of a sweep$"):
        load_sweep(outputs / "new")
    sweep = outputs / "sweeps" / "s"
    with pytest.raises(UsageError, match=f"the directory of a run; expected that of a sweep, such as {sweep}$"):
        load_sweep(sweep / "b=0,seed=0")


def test_sweep_without_a_table_has_not_ended(outputs: Path) -> None:
    with pytest.raises(UsageError, match=r"a sweep without a finished job; resume it"):
        load_sweep(outputs / "sweeps" / "s")


@pytest.mark.parametrize("names", [[".hydra"], ["run.log"], [".hydra", "run.log"]])
def test_run_that_was_killed_before_its_config_was_written_is_to_be_started_again(
    tmp_path: Path, names: list[str]
) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    assert error_message(f"resume={tmp_path}") == (
        f"resume={tmp_path}: the run was interrupted before its first files were written; start it again without resume"
    )


def test_only_files_that_dlhw_wrote_make_a_run_or_sweep(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\nname: app\n")
    (tmp_path / "sweep.csv").write_text("name,size\na,1\n")
    (tmp_path / "multirun.yaml").write_text("hydra: {overrides: {hydra: [], task: []}}\n")
    assert not is_run_of_dlhw(tmp_path)
    assert not is_sweep_of_dlhw(tmp_path)
    write_config(tmp_path)
    (tmp_path / "sweep.csv").write_text("job,status,reason\na,finished,\n")
    assert is_run_of_dlhw(tmp_path)
    assert is_sweep_of_dlhw(tmp_path)
