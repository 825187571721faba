"""Ray Tune: trials are ordinary runs, and an interrupted search continues with them."""

from __future__ import annotations

import contextlib
import csv
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from dlhw.errors import UsageError
from dlhw.search.space import Interval, Parameter, Space, listed
from dlhw.studies.ray_tune import _six_objects, searched
from dlhw.train import check_trial, train_trial
from dlhw.training.ray_trials import Report, TrialRuns, Tuned
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
    train = trainable()
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
        ({"model.depth": "2"}, "model.depth: not a setting of the config; expected one such as optimizer.lr"),
        ({"optimizer": "adam"}, "optimizer: not a setting of the config"),
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


def space(text: str) -> tuple[str, str]:
    return "~study.space", f"+study.space={text}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("study.min_epochs=9",), "study.min_epochs=9: must be at most trainer.epochs=4"),
        (("study.eta=1",), "study.eta=1: must be greater than or equal to 2"),
        (("study.cpus=0.001",), "study.cpus=0.001: must be greater than or equal to 0.01"),
        (space("{}"), "study.space: empty; expected keys such as optimizer.lr"),
        (space("{optimizer.lr:{low:3,high:2}}"), "study.space: optimizer.lr: expected finite low < high, above 0 with"),
        (space("{optimizer.lr:{low:0,high:2,log:true}}"), "study.space: optimizer.lr: expected finite low < high, abo"),
        (space("{optimizer.lr:{low:a,high:2}}"), "study.space: optimizer.lr: expected a list of numbers and texts, or"),
        (space("{optimizer.lr:{low:0.1,hi:0.2}}"), "study.space: optimizer.lr: expected a list of numbers and texts, "),
        (space("{optimizer.lr:[0.1,null]}"), "study.space: optimizer.lr: expected a list of numbers and texts, or an "),
        (space("{optimizer.lr:[]}"), "study.space: optimizer.lr: expected a list of different values"),
        (space("{optimizer.lr:[1,1.0]}"), "study.space: optimizer.lr: expected a list of different values"),
        (space("{trainer.batch_size:{low:8.5,high:9,integer:true}}"), "study.space: trainer.batch_size: with integer,"),
        (
            space("{trainer.batch_size:{low:8,high:32}}"),
            "study.space: trainer.batch_size=17.1672: must be a whole number",
        ),
        (("study.address=localhost:1",), "study.address=localhost:1: cannot be used ("),
    ],
)
def test_invalid_search_is_refused(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    pytest.importorskip("ray.tune")
    result = dlhw(*SMALL, *overrides, "hydra.run.dir=R", at=tmp_path)
    assert result.code == 1
    assert result.err.strip().splitlines()[-1].startswith(message)
    assert not (tmp_path / "R").exists()


class FakeGrid:
    """Ray's results of trials, given by configs, each with an error or None."""

    def __init__(self, *trials: tuple[dict[str, Any], Exception | None]) -> None:
        self.results = [
            SimpleNamespace(config=config, error=error, metrics={"trial_id": str(number)})
            for number, (config, error) in enumerate(trials)
        ]
        self.errors = [error for _, error in trials if error is not None]
        self.num_errors = len(self.errors)

    def __getitem__(self, number: int) -> SimpleNamespace:
        return self.results[number]

    def __len__(self) -> int:
        return len(self.results)

    def get_dataframe(self) -> pd.DataFrame:
        return pd.DataFrame([{"trial_id": result.metrics["trial_id"]} for result in self.results])


def tuned(runs: TrialRuns, grid: FakeGrid, *reports: tuple[int, int, float]) -> Tuned:
    """Train every config without an error, and return results with these (trial, epoch, value)."""
    for result in grid.results:
        if result.error is None and not runs.path(result.config).exists():
            runs.trainable(runs.space.values(runs.point(result.config)), runs.path(result.config), lambda row: None)
    made, lowest = [], dict.fromkeys(range(len(grid)), 9.0)
    for number, epoch, value in reports:
        lowest[number] = min(lowest[number], value)
        made.append(Report(str(number), epoch, value, lowest[number]))
    return Tuned(None, None, grid, made, resumed=False)


def test_results_of_trials_that_repeat_and_fail(tmp_path: Path) -> None:
    runs = TrialRuns(
        trainable("trainer.epochs=2"), Space([Parameter("optimizer.lr", listed(["0.1", "0.3"]))]), tmp_path
    )
    failure = ValueError("Traceback\ndlhw.errors.UsageError: a reason")
    grid = FakeGrid(({"optimizer.lr": 0.3}, failure), ({"optimizer.lr": 0.1}, None), ({"optimizer.lr": 0.1}, None))
    result = tuned(runs, grid, (1, 1, 0.5), (2, 1, 0.5), (1, 2, 0.4))
    search = searched(runs, result, rungs=[1])
    assert [(trial.number, trial.state, trial.value, trial.rungs) for trial in search.trials] == [
        (1, "complete", 0.4, [1, 2]),
        (2, "stopped", 0.5, [1]),
    ]
    steps = [(step.total_epochs, step.trial, step.epochs, step.value) for step in search.steps]
    assert steps == [(1, 1, 1, 0.5), (1, 2, 1, 0.5), (2, 1, 2, 0.4)]
    messages = _six_objects(runs, result, search, [1], (3, 1))
    assert "     0  failed    a reason" in messages
    assert "   stopped: 1 of 2 after 1 epochs" in messages


def test_search_whose_trials_all_fail_keeps_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray.tune")
    grid = FakeGrid(({"optimizer.lr": 0.1}, ValueError("dlhw.errors.UsageError: a reason")))
    monkeypatch.setattr("dlhw.studies.ray_tune.ray_running", lambda *arguments: contextlib.nullcontext())
    monkeypatch.setattr("dlhw.studies.ray_tune.tuned", lambda runs, **options: Tuned(None, None, grid, [], False))
    result = dlhw(*SMALL, "hydra.run.dir=R", at=tmp_path)
    assert result.code == 1
    assert "all trials failed: a reason" in result.err
    assert summary(tmp_path / "R")["status"] == "failed"


def test_damaged_trial_is_named_before_the_search_continues(tmp_path: Path) -> None:
    runs = TrialRuns(trainable("trainer.epochs=1"), Space([Parameter("optimizer.lr", listed(["0.1"]))]), tmp_path)
    path = runs.path({"optimizer.lr": 0.1})
    runs.trainable({"optimizer.lr": "0.1"}, path, lambda row: None)
    other = TrialRuns(runs.trainable, Space([Parameter("optimizer.lr", listed(["0.2"]))]), tmp_path)
    with pytest.raises(UsageError, match=r"a trial has optimizer.lr=0.1, which is not in study.space"):
        other.earlier()
    (path / "summary.json").write_text("{")
    with pytest.raises(UsageError, match=f"^{re.escape(str(path / 'summary.json'))}: "):
        runs.earlier()


@pytest.mark.thorough
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
    trials = {path.parent for path in run.glob("trials/*/config.yaml")}
    assert len(trials) == 12
    assert trials >= begun
    content = summary(run)
    assert (content["trials"], content["failed_trials"], content["checks_agreed"]) == (12, 0, 1)
    assert 12 <= content["epochs"] < content["epochs_without_stopping"] == 48
    with (run / "tables" / "result_grid.csv").open(newline="") as file:
        grid = list(csv.DictReader(file))
    assert len(grid) == 12
    assert sum((path / "metrics.csv").read_text().count("\n") - 1 for path in trials) >= content["epochs"]
    assert min(float(row["lowest"]) for row in grid) == pytest.approx(content["best_val_loss"])
    assert {"search.png", "figures", "ray"} <= {path.name for path in run.iterdir()}
