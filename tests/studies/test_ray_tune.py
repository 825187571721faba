"""Ray Tune: trials are ordinary runs, and an interrupted search continues with them."""

from __future__ import annotations

import csv
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from dlhw.errors import UsageError
from dlhw.search.space import Interval, Parameter, Space, listed
from dlhw.studies.ray_tune import TrialRuns
from dlhw.train import check_trial, train_trial
from dlhw.training.trainable import Trainable
from support.commands import dlhw, start, summary
from support.comparing import assert_same_run
from support.composing import compose

SMALL = ("experiment=ray_tune", "trainer.epochs=4", "trainer.device=cpu", "study.eta=2")


def trainable(*overrides: str) -> Trainable:
    return Trainable(compose(*SMALL, *overrides), train_trial, check_trial)


def test_trial_is_the_run_with_these_values_and_reports_every_epoch(tmp_path: Path) -> None:
    reported: list[float] = []
    values = {"optimizer.lr": "1e-05", "model.hidden": "[8]"}
    trainable()(values, tmp_path / "trial", lambda row: reported.append(row["epoch"]))
    assert reported == [1, 2, 3, 4]
    alone = ("experiment=ray_tune", "trainer.epochs=4", "trainer.device=cpu", "study=none", "hydra.run.dir=alone")
    assert dlhw(*alone, *(f"{key}={text}" for key, text in values.items()), at=tmp_path).code == 0
    assert_same_run(tmp_path / "trial", tmp_path / "alone")


def test_trial_that_is_stopped_continues(tmp_path: Path) -> None:
    def stop(row: dict[str, float]) -> None:
        if row["epoch"] == 2:
            raise SystemExit

    values = {"optimizer.lr": "0.1"}
    train = trainable("trainer.checkpoint_seconds=0")
    with pytest.raises(SystemExit):
        train(values, tmp_path / "stopped", stop)
    reported: list[float] = []
    train(values, tmp_path / "stopped", lambda row: reported.append(row["epoch"]))
    assert reported == [3, 4]
    train(values, tmp_path / "uninterrupted", lambda row: None)
    assert_same_run(tmp_path / "stopped", tmp_path / "uninterrupted")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model.depth": "2"}, "model.depth: unknown key; expected a key of the config"),
        ({"trainer.epochs": "2"}, "trainer.epochs: cannot be searched"),
        ({"study": "2"}, "study: cannot be searched"),
        ({"optimizer.lr": "-1.0"}, "optimizer.lr=-1.0: must be greater than or equal to 0"),
        ({"b": "0.1"}, "regularization.flood refers to another key; expected regularization.flood itself"),
    ],
)
def test_values_that_a_trial_cannot_have_are_refused(values: dict[str, str], message: str) -> None:
    own = trainable("+b=0.0", "regularization.flood=${b}")
    with pytest.raises(UsageError, match=f"^study.space: {message}"):
        own.validate(values, build=False)


def test_parts_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(UsageError, match="dataset=digits is for classification"):
        trainable("loss=mse", "trainer.monitor=val_loss").validate({"optimizer.lr": "0.1"}, build=True)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"optimizer.lr": 0.12345678, "model.hidden": "[8]"}, "optimizer.lr=0.123457,model.hidden=_8"),
        ({"optimizer.lr": 0.001, "model.hidden": "[16, 8]"}, "optimizer.lr=0.001,model.hidden=_16,_8,"),
    ],
)
def test_interrupted_search_knows_its_trials(config: dict[str, Any], name: str, tmp_path: Path) -> None:
    parameters = (
        Parameter("optimizer.lr", Interval(1e-3, 1.0, log=True)),
        Parameter("model.hidden", listed(["[8]", "[16, 8]"])),
        Parameter("regularization.l2", listed(["1e-05", "0.001"])),
    )
    runs = TrialRuns(trainable(), Space(parameters), tmp_path)
    config |= {"regularization.l2": 1e-05}
    path = runs.path(config)
    assert path.name.startswith(name)
    assert runs.earlier() == []
    runs.trainable(runs.space.values(runs.point(config)), path, lambda row: None)
    (earlier,) = runs.earlier()
    assert earlier == {**config, "optimizer.lr": pytest.approx(config["optimizer.lr"], rel=1e-5)}
    assert runs.path(earlier) == path


def test_missing_ray_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = dlhw(*SMALL, "hydra.run.dir=R", at=tmp_path)
    assert result.code == 1
    line = result.err.strip().splitlines()[-1]
    assert line.startswith("study=ray_tune: needs Ray")
    assert line.endswith('install it with pip install -e ".[ray]"')
    assert not (tmp_path / "R").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study.min_epochs=9", "study.min_epochs=9: must be at most trainer.epochs=4"),
        ("study.eta=1", "study.eta=1: must be greater than or equal to 2"),
        ("study.space={optimizer.lr:{low:3}}", "study.space: optimizer.lr: expected finite low < high, above 0 with"),
        ("study.space={init.run:[]}", "study.space: init.run: expected a list of different values"),
        ("study.space={width:[8,16]}", "study.space: width: unknown key; expected a key of the config"),
        ("study.address=localhost:1", "study.address=localhost:1: cannot be used ("),
    ],
)
def test_invalid_search_is_refused(override: str, message: str, tmp_path: Path) -> None:
    pytest.importorskip("ray.tune")
    result = dlhw(*SMALL, override, "hydra.run.dir=R", at=tmp_path)
    assert result.code == 1
    assert result.err.strip().splitlines()[-1].startswith(message)
    assert not (tmp_path / "R").exists()


@pytest.mark.slow
def test_interrupted_search_on_ray_continues_with_its_trials(tmp_path: Path) -> None:
    pytest.importorskip("ray.tune")
    run, process = tmp_path / "R", start(*SMALL, "study.trials=12", "hydra.run.dir=R", at=tmp_path, cold=True)
    process.until(lambda: len(list(run.glob("trials/*/summary.json"))) > 0)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    finished = {path: path.read_bytes() for path in run.glob("trials/*/summary.json")}
    begun = {path.parent for path in run.glob("trials/*/config.yaml")}

    result = start("resume=R", at=tmp_path, cold=True).end()
    assert result.code == 0, result.err
    objects = ("trainable", "search space", "trials", "search algorithm", "scheduler", "result grid")
    for number, name in enumerate(objects, 1):
        assert f"\n{number}. {name}: " in result.err
    assert all(path.read_bytes() == content for path, content in finished.items())
    trials = set((run / "trials").iterdir())
    assert len(trials) == 12
    assert trials >= begun
    content = summary(run)
    assert (content["trials"], content["failed_trials"], content["checks_agreed"]) == (12, 0, 1)
    assert 12 <= content["epochs"] < content["epochs_without_stopping"] == 48
    with (run / "tables" / "result_grid.csv").open(newline="") as file:
        grid = list(csv.DictReader(file))
    assert len(grid) == 12
    assert sum(int(row["epoch"]) for row in grid) == content["epochs"]
    assert min(float(row["lowest"]) for row in grid) == pytest.approx(content["best_val_loss"])
    assert {"search.png", "figures", "ray"} <= {path.name for path in run.iterdir()}
