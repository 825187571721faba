"""The end of a sweep: the best settings are trained with other seeds, also by searches and later calls."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from dlhw.views.comparison import Conclusion
from dlhw.views.comparison.ranking import rank_settings
from dlhw.views.comparison.results import read
from support.commands import Ended, dlhw, summary

GRID = (
    *("-m", "dataset=digits", "model.hidden=[4]", "trainer.epochs=1", "trainer.steps_per_epoch=3"),
    *("hydra/launcher=vectorized", "hydra.sweep.dir=S", "seed=3,5", "optimizer.lr=1e-4,0.3", "comparison.curves=[]"),
)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def ranked(sweep: Path) -> Conclusion:
    runs = [sweep / row["job"] for row in table(sweep / "sweep.csv")]
    return rank_settings(read(runs), [path.name for path in runs])


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    at = tmp_path_factory.mktemp("confirmed")
    return at / "S", dlhw(*GRID, "hydra.sweeper.confirm=3", at=at)


def test_the_winner_is_trained_with_the_next_seeds(confirmed: tuple[Path, Ended]) -> None:
    sweep, ended = confirmed
    assert ended.code == 0, ended.err
    winner = ranked(sweep).winner
    assert winner is not None
    rows = table(sweep / "confirmation" / "sweep.csv")
    assert [row["seed"] for row in rows] == ["6", "7", "8"]
    assert [row["status"] for row in rows] == ["finished"] * 3
    for row in rows:
        overrides = (sweep / "confirmation" / row["job"] / ".hydra" / "overrides.yaml").read_text()
        assert f"optimizer.lr={winner.values['optimizer.lr']}" in overrides
    result = summary(sweep / "confirmation")
    assert (result["status"], result["winner"]["n"]) == ("finished", 3)
    assert summary(sweep)["jobs"] == 4, "the comparison of the sweep does not contain the confirmation"


@pytest.mark.slow
def test_seeds_that_select_are_not_part_of_the_confirmation(tmp_path: Path) -> None:
    """A later call selects with the seeds that confirmed before."""
    assert dlhw(*GRID, "hydra.sweeper.confirm=2", at=tmp_path).code == 0
    again = dlhw(*GRID, "seed=range(3,8)", "hydra.sweeper.confirm=2", at=tmp_path)
    assert again.code == 0, again.err
    assert [row["seed"] for row in table(tmp_path / "S" / "confirmation" / "sweep.csv")] == ["8", "9"]
    assert not [line for line in again.lines[-3:] if line.startswith("lowest mean")]


def test_different_data_sets_are_not_ranked_against_each_other(tmp_path: Path) -> None:
    ended = dlhw(
        *(
            "-m",
            "experiment=playground",
            "report=none",
            "probe=none",
            "trainer.epochs=1",
            "dataset.points=60",
            "seed=0",
        ),
        *("dataset.kind=gauss,circle", "optimizer.lr=0.1,0.3", "hydra/launcher=vectorized", "hydra.sweep.dir=S"),
        "hydra.sweeper.confirm=1",
        at=tmp_path,
    )
    assert ended.code == 0, ended.err
    assert "nothing to confirm (the runs have different datasets" in ended.err
    conclusion = ranked(tmp_path / "S")
    assert conclusion.best("optimizer.lr") == []
    assert [setting.values["dataset.kind"] for setting in conclusion.best("dataset.kind")] in (
        ["gauss", "circle"],
        ["circle", "gauss"],
    )


@pytest.mark.slow
def test_a_later_call_trains_only_what_is_missing(confirmed: tuple[Path, Ended]) -> None:
    sweep, _ = confirmed
    before = {path: path.read_bytes() for path in sweep.rglob("metrics.csv")}
    ended = dlhw(f"resume={sweep}", "hydra.sweeper.confirm=4", at=sweep.parent)
    assert ended.code == 0, ended.err
    assert [row["seed"] for row in table(sweep / "confirmation" / "sweep.csv")] == ["6", "7", "8", "9"]
    assert {path: path.read_bytes() for path in before} == before


def test_with_overlay_the_best_setting_of_each_value_is_confirmed(tmp_path: Path) -> None:
    ended = dlhw(
        *GRID,
        "model.activation=ReLU,Tanh",
        "comparison.overlay=model.activation",
        "hydra.sweeper.confirm=1",
        at=tmp_path,
    )
    assert ended.code == 0, ended.err
    best = {setting.values["model.activation"]: setting for setting in ranked(tmp_path / "S").best("model.activation")}
    rows = table(tmp_path / "S" / "confirmation" / "sweep.csv")
    assert sorted(row["model.activation"] for row in rows) == ["ReLU", "Tanh"]
    for row in rows:
        (config,) = (tmp_path / "S" / "confirmation" / row["job"]).glob(".hydra/overrides.yaml")
        assert f"optimizer.lr={best[row['model.activation']].values['optimizer.lr']}" in config.read_text()


def test_a_sweep_without_a_complete_setting_confirms_nothing(tmp_path: Path) -> None:
    ended = dlhw(*GRID, "optimizer.lr=1e300", "hydra.sweeper.confirm=2", at=tmp_path)
    assert ended.code == 1
    assert "hydra.sweeper.confirm=2: nothing to confirm" in ended.out + ended.err
    assert not (tmp_path / "S" / "confirmation").exists()


def test_a_search_confirms_its_best_complete_trial(tmp_path: Path) -> None:
    ended = dlhw(
        *GRID,
        *("hydra/sweeper=search", "hydra.sweeper.method=random", "hydra.sweeper.trials=2", "hydra.sweeper.confirm=2"),
        at=tmp_path,
    )
    assert ended.code == 0, ended.err
    rows = table(tmp_path / "S" / "confirmation" / "sweep.csv")
    assert [row["seed"] for row in rows] == ["6", "7"]
    winner = summary(tmp_path / "S")["winner"]["settings"]["optimizer.lr"]
    for row in rows:
        overrides = (tmp_path / "S" / "confirmation" / row["job"] / ".hydra" / "overrides.yaml").read_text()
        assert f"optimizer.lr={winner}" in overrides


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hydra.sweeper.confirm=0", "hydra.sweeper.confirm=0: must be a whole number from 1 to 100000, or null"),
        ("hydra.sweeper.confirm=1.5", "hydra.sweeper.confirm=1.5: must be a whole number from 1 to 100000, or null"),
        ("hydra.sweeper.one_at_a_time=[lr]", "hydra.sweeper.one_at_a_time: lr: does not vary in this sweep"),
        ("hydra.sweeper.one_at_a_time=lr", "hydra.sweeper.one_at_a_time=lr: must be a list of keys"),
        ("hydra.sweeper.one_at_a_time=null", "hydra.sweeper.one_at_a_time=None: must be a list of keys"),
    ],
)
def test_invalid_options_are_reported_before_anything_is_written(tmp_path: Path, override: str, message: str) -> None:
    ended = dlhw(*GRID, override, at=tmp_path)
    assert (ended.code, ended.err.startswith(message)) == (1, True), ended.err
    assert list(tmp_path.iterdir()) == []
