"""Searches from the command line: trials continue their runs, and an interrupted search ends like another one."""

from __future__ import annotations

import csv
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from dlhw.compare import compare
from dlhw.search.study_file import NAME
from dlhw.training.loop import Training
from support.commands import SMALL, Ended, dlhw, start, summary
from support.comparing import assert_same_run
from support.marks import slow

SPACE = ("optimizer.lr=tag(log,interval(1e-3,1))", "trainer.batch_size=50,100,200")
SEARCH = ("-m", "hydra/sweeper=search", "hydra.sweep.dir=S", *SMALL, *SPACE)
HALVING = ("hydra.sweeper.method=halving", "hydra.sweeper.eta=2", "hydra.sweeper.trials=4", "trainer.epochs=4")
TPE = ("hydra.sweeper.method=tpe", "hydra.sweeper.trials=12", "trainer.epochs=2")
FIGURES = {"search.png", "figures/trials.png", "figures/slices.png", "figures/parallel.png"}


def search(*overrides: str, at: Path) -> Ended:
    return dlhw(*SEARCH, *overrides, at=at)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def trials(sweep: Path) -> list[dict[str, str]]:
    """The rows of sweep.csv."""
    return rows_of(sweep / "sweep.csv")


def study(sweep: Path) -> optuna.Study:
    """The study, opened as Optuna's documentation does."""
    backend = optuna.storages.journal.JournalFileBackend(str(sweep / NAME))
    return optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(backend))


def contents(sweep: Path) -> dict[str, Any]:
    """Everything that an interrupted search has in common with another one."""
    return {
        "sweep": trials(sweep),
        "steps": rows_of(sweep / "tables" / "search.csv"),
        "study": [
            (trial.params, trial.intermediate_values, trial.state, trial.values) for trial in study(sweep).trials
        ],
        "winner": summary(sweep)["winner"],
        "weights": {row["job"]: (sweep / row["job"] / "metrics.csv").read_text() for row in trials(sweep)},
    }


def test_promoted_trials_continue_their_runs(tmp_path: Path) -> None:
    result = search(*HALVING, at=tmp_path)
    assert result.code == 0, "\n".join(result.lines)
    sweep = tmp_path / "S"
    rows = trials(sweep)
    assert [row["trial"] for row in rows] == ["0", "1", "2", "3"]
    assert sorted(row["epochs"] for row in rows) == ["1", "1", "2", "4"]
    assert sorted(row["state"] for row in rows) == ["complete", "stopped", "stopped", "stopped"]
    (best,) = [row for row in rows if row["epochs"] == "4"]
    lines = [f"optimizer.lr={best['optimizer.lr']}", f"trainer.batch_size={best['trainer.batch_size']}"]
    assert dlhw(*SMALL, *lines, "trainer.epochs=4", "hydra.run.dir=R", at=tmp_path).code == 0
    assert_same_run(sweep / best["job"], tmp_path / "R")
    content = summary(sweep)
    assert (content["method"], content["trials"], content["total_epochs"]) == ("halving", 4, 1 + 1 + 2 + 4)
    assert content["winner"]["settings"]["optimizer.lr"] == best["optimizer.lr"]
    assert {name for name in FIGURES if (sweep / name).exists()} == FIGURES
    assert [(int(row["total_epochs"]), int(row["epochs"])) for row in rows_of(sweep / "tables" / "search.csv")] == [
        *((1, 1), (2, 1), (3, 1), (4, 1)),
        *((5, 2), (6, 2), (8, 4)),
    ]


def test_whole_rungs_are_trained_at_once_by_the_vectorized_launcher(tmp_path: Path) -> None:
    lists = ("trainer.batch_size=100", "optimizer.lr=tag(log,interval(1e-3,1))")
    result = search(*HALVING, *lists, "hydra/launcher=vectorized", at=tmp_path)
    assert result.code == 0, "\n".join(result.lines)
    assert [line for line in result.lines if "at once" in line] == [
        "training 4 jobs at once",
        "training 2 jobs at once",
    ]
    assert sorted(row["epochs"] for row in trials(tmp_path / "S")) == ["1", "1", "2", "4"]


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("schedule", [["cosine"], slow(["step", "scheduler.every_epochs=${trainer.epochs}"])])
def test_schedule_of_a_trial_does_not_depend_on_the_rung(schedule: list[str], tmp_path: Path) -> None:
    schedule = [f"scheduler={schedule[0]}", *schedule[1:]]
    assert search(*HALVING, *schedule, at=tmp_path).code == 0
    (best,) = [row for row in trials(tmp_path / "S") if row["epochs"] == "4"]
    lines = [f"optimizer.lr={best['optimizer.lr']}", f"trainer.batch_size={best['trainer.batch_size']}"]
    overrides = [*SMALL, *lines, *schedule, "trainer.epochs=4", "hydra.run.dir=R"]
    assert dlhw(*overrides, at=tmp_path).code == 0
    assert_same_run(tmp_path / "S" / best["job"], tmp_path / "R")


@pytest.mark.usefixtures("no_figures")
def test_study_is_opened_by_optuna(tmp_path: Path) -> None:
    assert search(*HALVING, at=tmp_path).code == 0
    opened, rows = study(tmp_path / "S"), trials(tmp_path / "S")
    assert [trial.state.name for trial in opened.trials].count("COMPLETE") == 1
    assert [trial.state.name for trial in opened.trials].count("PRUNED") == 3
    for trial, row in zip(opened.trials, rows, strict=True):
        assert trial.params == {
            "optimizer.lr": float(row["optimizer.lr"]),
            "trainer.batch_size": int(row["trainer.batch_size"]),
        }
        assert trial.value == pytest.approx(float(row["best_val_error_percent"]))
        assert list(trial.intermediate_values) == list(range(1, int(row["epochs"]) + 1))
    assert opened.best_value == min(float(row["best_val_error_percent"]) for row in rows if row["state"] == "complete")


def test_comparison_of_a_search_keeps_its_columns(tmp_path: Path) -> None:
    assert search(*HALVING, at=tmp_path).code == 0
    before = trials(tmp_path / "S")
    table = compare(tmp_path / "S")
    assert trials(tmp_path / "S") == before
    assert "epochs =" not in table
    assert (tmp_path / "S" / "comparison.png").exists()


@pytest.mark.usefixtures("no_figures")
def test_progress_is_logged_while_trials_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlhw.sweeps.search._SECONDS_BETWEEN_LINES", 0.02)
    options = ("hydra.sweeper.method=random", "hydra.sweeper.trials=2", "trainer.epochs=20")
    result = search(*options, at=tmp_path)
    assert result.code == 0, result.err
    epochs = [int(number) for number in re.findall(r"^trials 2 of 2, epochs (\d+) of 40", result.err, re.MULTILINE)]
    assert len(set(epochs)) > 2
    assert epochs == sorted(epochs)
    assert epochs[-1] == 40


@pytest.mark.thorough
@pytest.mark.parametrize("launcher", ["joblib", "ray"])
def test_other_launchers_train_the_same_search(launcher: str, tmp_path: Path) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher}_launcher")
    (tmp_path / "one").mkdir()
    assert search(*HALVING, at=tmp_path / "one").code == 0
    result = start(*SEARCH, *HALVING, f"hydra/launcher={launcher}", at=tmp_path, cold=True).end()
    assert result.code == 0, result.err
    assert contents(tmp_path / "S") == contents(tmp_path / "one" / "S")


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlhw.views.search._draw", lambda *arguments, **options: [])


@pytest.fixture
def interrupted_epochs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Numbers of epochs; the command is interrupted after the first of them, the next one after the second, ..."""
    left: list[int] = []
    save = Training.save

    def interrupt(*arguments: Any) -> None:
        save(*arguments)
        if left:
            left[0] -= 1
            if left[0] == 0:
                del left[0]
                raise KeyboardInterrupt

    monkeypatch.setattr(Training, "save", interrupt)
    return left


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("options", [TPE, HALVING], ids=["tpe", "halving"])
def test_interrupted_search_ends_like_another_one(
    options: tuple[str, ...], tmp_path: Path, interrupted_epochs: list[int]
) -> None:
    (tmp_path / "whole").mkdir()
    assert search(*options, at=tmp_path / "whole").code == 0
    interrupted_epochs += [6, 1, 1]
    result = search(*options, at=tmp_path)
    for _ in range(3):
        assert result.code == 130, "\n".join(result.lines)
        assert result.lines[-1].startswith("stopped early; next: dlhw resume=")
        result = dlhw("resume=S", at=tmp_path)
    assert result.code == 0, "\n".join(result.lines)
    assert contents(tmp_path / "S") == contents(tmp_path / "whole" / "S")
    for again in (dlhw("resume=S", at=tmp_path), search(*options, at=tmp_path)):
        assert again.code == 0
        assert not [line for line in again.lines if line.startswith("job ")], "nothing is trained again"
        assert contents(tmp_path / "S") == contents(tmp_path / "whole" / "S")


@pytest.mark.usefixtures("no_figures")
def test_run_whose_metrics_are_lost_is_restored(tmp_path: Path) -> None:
    assert search(*HALVING, at=tmp_path).code == 0
    before = contents(tmp_path / "S")
    for row in trials(tmp_path / "S"):
        (tmp_path / "S" / row["job"] / "summary.json").unlink()
        (tmp_path / "S" / row["job"] / "metrics.csv").unlink()
    assert search(*HALVING, at=tmp_path).code == 0
    assert contents(tmp_path / "S") == before


@pytest.mark.usefixtures("no_figures")
def test_search_of_a_changed_config_is_refused(tmp_path: Path) -> None:
    assert search(*HALVING, "model.hidden=[8]", at=tmp_path).code == 0
    result = search(*HALVING, "model.hidden=[9]", at=tmp_path)
    assert result.lines[-1].startswith("S/study.journal: the study of another search (config.model.hidden: [9] instead")
    result = search(*HALVING, "hydra.sweeper.trials=5", at=tmp_path)
    assert result.lines[-1].startswith("S/study.journal: the study of another search (trials: 5 instead of 4)")
    for sweeper in ("search", "grid"):
        lists = ("optimizer.lr=0.1,0.2", f"hydra/sweeper={sweeper}", "hydra.sweep.dir=G")
        result = dlhw(*SMALL, *lists, "-m", "trainer.epochs=1", at=tmp_path)
        (tmp_path / "G" / NAME).unlink(missing_ok=True)
    assert result.lines[-1].startswith(
        "G: the directory of a sweep with hydra.sweeper._target_=dlhw.sweeps.search.Search"
    )


def test_fail_fast_stops_at_the_first_failure(tmp_path: Path) -> None:
    options = ("hydra.sweeper.method=grid", "hydra.sweeper.fail_fast=true", "trainer.epochs=1")
    result = search(*options, "optimizer.lr=1e30,1e31", "trainer.batch_size=100,200", at=tmp_path)
    assert result.code == 1
    assert len([line for line in result.lines if line.startswith("job ")]) == 1
    assert "failed: TrainingFailed: loss nan" in result.lines[-3]


@pytest.mark.thorough
def test_killed_search_ends_like_another_one(tmp_path: Path) -> None:
    options = ("hydra.sweeper.method=bohb", "hydra.sweeper.total_epochs=60", "trainer.epochs=9")
    (tmp_path / "whole").mkdir()
    assert search(*options, at=tmp_path / "whole").code == 0
    for kills in range(3):
        process = start(*SEARCH, *options, at=tmp_path)
        finished = len(list(tmp_path.glob("S/*/summary.json")))
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("S/*/summary.json"))) < finished + 2 + kills and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    assert search(*options, at=tmp_path).code == 0
    assert contents(tmp_path / "S") == contents(tmp_path / "whole" / "S")


@pytest.mark.usefixtures("no_figures")
def test_repeated_command_with_more_trials_goes_on(tmp_path: Path) -> None:
    options = ("hydra.sweeper.method=random", "trainer.epochs=1")
    assert search(*options, "hydra.sweeper.trials=2", at=tmp_path).code == 0
    result = search(*options, "hydra.sweeper.trials=3", at=tmp_path)
    assert result.code == 0
    assert len([line for line in result.lines if line.startswith("job ")]) == 1
    assert len(trials(tmp_path / "S")) == len(study(tmp_path / "S").trials) == 3


@pytest.mark.usefixtures("no_figures")
def test_every_trial_is_trained_with_all_seeds(tmp_path: Path) -> None:
    result = search(
        "hydra.sweeper.method=random", "hydra.sweeper.trials=2", "trainer.epochs=1", "seed=3,4", at=tmp_path
    )
    assert result.code == 0, "\n".join(result.lines)
    rows = trials(tmp_path / "S")
    assert [(row["trial"], row["seed"]) for row in rows] == [("0", "3"), ("0", "4"), ("1", "3"), ("1", "4")]
    for number, trial in enumerate(study(tmp_path / "S").trials):
        of_trial = [float(row["best_val_error_percent"]) for row in rows if row["trial"] == str(number)]
        assert trial.value == pytest.approx(sum(of_trial) / 2)
    assert summary(tmp_path / "S")["total_epochs"] == 4


@pytest.mark.usefixtures("no_figures")
def test_failed_trials_lose(tmp_path: Path) -> None:
    result = search(*HALVING, "optimizer.lr=0.1,1e30", "trainer.batch_size=100,200", at=tmp_path)
    assert result.code == 0, "\n".join(result.lines)
    rows = trials(tmp_path / "S")
    assert {row["state"] for row in rows if float(row["optimizer.lr"]) == 1e30} == {"failed"}
    assert summary(tmp_path / "S")["winner"]["settings"]["optimizer.lr"] == "0.1"
    assert [trial.state.name for trial in study(tmp_path / "S").trials].count("FAIL") == 2


def test_search_without_any_result_fails(tmp_path: Path) -> None:
    result = search(*HALVING, "optimizer.lr=1e30,1e31", at=tmp_path)
    assert result.code == 1
    assert "no winner: no run finished" in "\n".join(result.lines)


@pytest.mark.usefixtures("no_figures")
def test_run_that_stops_early_is_complete(tmp_path: Path) -> None:
    overrides = ("trainer.patience=1", "optimizer.lr=0.0,1e-9", "trainer.batch_size=500", "trainer.epochs=9")
    assert search("hydra.sweeper.method=halving", "hydra.sweeper.trials=2", *overrides, at=tmp_path).code == 0
    rows = trials(tmp_path / "S")
    assert {row["state"] for row in rows} == {"complete", "stopped"}
    assert {row["epochs"] for row in rows} <= {"1", "2"}


def test_search_ends_if_all_trials_have_the_same_mistake(tmp_path: Path) -> None:
    result = search(*HALVING, "trainer.monitor=val_mse", at=tmp_path)
    assert result.code == 1
    mistake = (
        "trainer.monitor=val_mse: dataset=digits is for classification; "
        "expected trainer.monitor=val_error_percent or val_loss"
    )
    assert result.lines.count(mistake) == 4
    assert f"the search ends, because all trials have the same mistake: {mistake}" in result.lines


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["hydra.sweeper.method=grids"],
            "hydra.sweeper.method=grids: must be 'random', 'grid', 'qmc', 'tpe', 'gp', 'cmaes', 'genetic', 'pso', "
            "'halving', 'hyperband', 'asha' or 'bohb'",
        ),
        (["hydra.sweeper.trials=0"], "hydra.sweeper.trials=0: must be greater than 0"),
        (["hydra.sweeper.eta=1"], "hydra.sweeper.eta=1: must be greater than or equal to 2"),
        (["hydra.sweeper.total_epochs=19"], "hydra.sweeper.total_epochs=19: less than one trial of 20 epochs"),
        (
            ["hydra.sweeper.total_epochs=39", "seed=0,1"],
            "hydra.sweeper.total_epochs=39: less than one trial of 20 epochs with each of 2 seeds",
        ),
        (["hydra.sweeper.min_epochs=30"], "hydra.sweeper.min_epochs=30: must be at most the 20 epochs of a trial"),
        (["optimizer.lr=interval(1,0)"], "optimizer.lr=interval(1,0): an empty or infinite interval; expected"),
        (["optimizer.lr=interval(-1,1)"], "optimizer.lr=-1.0: must be greater than or equal to 0"),
        (["optimizer.rate=interval(0,1)"], "optimizer.rate: unknown key"),
        (["++trainer.epochs=1,2"], "++trainer.epochs: invalid in the space of a search, which chooses the epochs; set"),
        (
            ["trainer.monitor=val_loss,val_error_percent"],
            "trainer.monitor: invalid in the space of a search, because all",
        ),
        (["hydra.sweeper.seed=4294967296"], "hydra.sweeper.seed=4294967296: must be less than 4294967296"),
        (["trainer.epochs=1,2"], "trainer.epochs: invalid in the space of a search, which chooses the epochs; set"),
        (
            ["hydra.sweeper.method=cmaes", "trainer.batch_size=9"],
            "hydra.sweeper.method=cmaes needs at least two keys with several numbers; expected tpe, gp or another",
        ),
        (["hydra.sweep.subdir=x"], "hydra.sweep.subdir: must not be set; the values of a job name its directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_search_is_refused_before_any_file_is_written(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    result = search(*overrides, at=tmp_path)
    assert result.code == 1
    assert result.lines[-1].startswith(message)
    assert not os.listdir(tmp_path)


def test_study_has_no_metric_to_search_for(tmp_path: Path) -> None:
    result = dlhw("-m", "hydra/sweeper=search", "experiment=separability", "study.draws=4,5", at=tmp_path)
    assert result.lines == ["hydra/sweeper=search: separability is a study, which has no validation metric"]


@pytest.mark.usefixtures("no_figures")
def test_directory_of_another_search_is_refused(tmp_path: Path) -> None:
    assert search(*HALVING, at=tmp_path).code == 0
    before = contents(tmp_path / "S"), (tmp_path / "S" / "multirun.yaml").read_text()
    result = search(*HALVING, "optimizer.lr=interval(0,1)", at=tmp_path)
    assert result.code == 1
    assert result.lines[-1].startswith(
        "S/study.journal: the study of another search (space.optimizer.lr: interval(0.0, 1.0) instead of "
        "tag(log, interval(0.001, 1.0)))"
    )
    assert (contents(tmp_path / "S"), (tmp_path / "S" / "multirun.yaml").read_text()) == before


@pytest.mark.parametrize("experiment", ["flooding_search", "cnn_l2_search", "optimizers"])
def test_experiments_declare_a_space(experiment: str, tmp_path: Path) -> None:
    overrides = ("dataset=digits", "trainer.steps_per_epoch=2", "hydra.sweeper.trials=2", "hydra.sweeper.epochs=1")
    result = dlhw(f"experiment={experiment}", "hydra/sweeper=search", "hydra.sweep.dir=S", *overrides, at=tmp_path)
    assert result.code == 0, "\n".join(result.lines)
    assert len(trials(tmp_path / "S")) == 2
