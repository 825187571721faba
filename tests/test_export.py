"""The command that writes runs to loggers after they have ended."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dlhw import export
from dlhw.errors import UsageError
from dlhw.loggers.run_loggers import read_identifiers
from dlhw.storage import stored
from dlhw.storage.record import Record, as_written
from support.commands import SMALL, dlhw, only
from support.loggers import mlflow_client, scalars
from support.run_directories import make_run, make_study_run, make_sweep

pytest.importorskip("tensorboard")
pytest.importorskip("mlflow")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of libraries


def test_the_export_equals_what_is_logged_in_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = dlhw(*SMALL, "trainer.epochs=2", "logger=tensorboard", "hydra.run.dir=live", at=tmp_path)
    assert ended.code == 0, ended.err
    shutil.copytree(tmp_path / "live", tmp_path / "later", ignore=shutil.ignore_patterns("tensorboard"))
    for _ in range(2):
        export.main([str(tmp_path / "later"), "--to", "tensorboard"])
    assert scalars(tmp_path / "later") == scalars(tmp_path / "live")
    assert len(list((tmp_path / "later" / "tensorboard").iterdir())) == 1
    assert capsys.readouterr().out == 2 * f"{tmp_path / 'later'}: exported to tensorboard\n"


def test_mlflow_gets_each_run_of_a_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = make_sweep(tmp_path / "outputs" / "levels", {"b=0": [1.0], "b=1": [2.0]})
    alone = make_run(tmp_path / "outputs" / "alone", status="unfinished")
    study = make_study_run(tmp_path / "outputs" / "study", constant=0.5)
    for _ in range(2):
        export.main(["outputs", "--to", "mlflow"])
    client = mlflow_client(tmp_path)
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    by_name = {run.info.run_name: run for run in runs}
    assert len(runs) == 4
    for directory, name in ((jobs[0], "levels/b=0,seed=0"), (jobs[1], "levels/b=1,seed=0"), (alone, "alone")):
        rows = [as_written(row) for row in stored.read_metrics(directory) or []]
        assert len(rows) == 3
        assert list(read_identifiers(directory).values()) == [by_name[name].info.run_id]
        for column in rows[0]:
            history = client.get_metric_history(by_name[name].info.run_id, column)
            assert [(point.step, point.value) for point in history] == [(row["epoch"], row[column]) for row in rows]
    assert {name: run.info.status for name, run in by_name.items()} == {
        **dict.fromkeys(("levels/b=0,seed=0", "levels/b=1,seed=0", "study"), "FINISHED"),
        "alone": "KILLED",
    }
    assert by_name["study"].data.metrics["constant"] == 0.5
    assert list(read_identifiers(study)) == ["mlflow sqlite:///mlflow.db"]


def test_options_are_those_of_the_run_unless_the_command_line_has_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"_target_": "os.system", "uri": "sqlite:///own.db", "experiment": "mine"}
    run = make_run(tmp_path / "run", config={"logger": {"mlflow": options}})
    export.main([str(run), "--to", "mlflow"])
    export.main([str(run), "--to", "mlflow", "logger.mlflow.uri=sqlite:///other.db"])
    assert list(read_identifiers(run)) == ["mlflow sqlite:///own.db", "mlflow sqlite:///other.db"]
    assert sorted(path.name for path in tmp_path.glob("*.db")) == ["other.db", "own.db"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--to", "tensorbord"], "--to tensorbord: unknown logger (did you mean tensorboard?); expected one of "
         "mlflow, tensorboard, trackio, wandb"),
        (["run", "--to", "mlflow", "logger.mlflow.url=x"],
         "logger.mlflow.url: unknown option of logger=mlflow (did you mean uri?); expected one of uri, experiment"),
        (["empty", "--to", "tensorboard"], "empty: has no runs; expected a run, a sweep or a folder of runs"),
        (["none", "--to", "tensorboard"], "none: no such directory; expected the directory of a run or sweep"),
        (["logger.mlflow.uri=x", "--to", "mlflow"], "RUN: missing; expected a run, a sweep or a folder of runs"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as ended:
        export.main(arguments)
    assert (ended.value.code, capsys.readouterr().err) == (1, f"{message}\n")


def test_a_logger_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    (run / "tensorboard").write_text("a file")
    with pytest.raises(UsageError, match=r"run: cannot be exported to tensorboard \(\w+Error: .*\)$"):
        export.export(run, export._declared(["tensorboard"], []))


def test_a_run_in_training_is_not_exported(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with Record(run).locked(), pytest.raises(UsageError, match="another process is training this run"):
        export.export(run, export._declared(["tensorboard"], []))


def test_last_is_the_newest_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "outputs" / "tiny" / "2026-01-01_00-00-00")
    export.main(["last", "--to", "tensorboard"])
    assert only(list(Path("outputs").rglob("events.*"))).parts[2] == "2026-01-01_00-00-00"
    assert "2026-01-01_00-00-00: exported" in capsys.readouterr().out
