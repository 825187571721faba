"""Replays of searches on a table of learning curves, and the comparison of methods."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from dlhw.compare import compare
from dlhw.search.methods import METHODS, Plan
from dlhw.search.replay import Replay, Step, Table, regret, replay
from dlhw.search.space import Parameter, Space, listed
from support.commands import SMALL, dlhw
from support.marks import slow

GRID = ("optimizer.lr=0.001,0.01,0.1,1", "trainer.batch_size=100,200,400", "trainer.epochs=3")
SPACE = Space([Parameter("a", listed(["1", "2"])), Parameter("b", listed(["x", "y"]))])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """The learning curves of twelve settings that a grid trained."""
    folder = tmp_path_factory.mktemp("grid")
    assert dlhw(*SMALL, *GRID, "-m", "hydra.sweep.dir=G", at=folder).code == 0
    texts = {"optimizer.lr": ["0.001", "0.01", "0.1", "1"], "trainer.batch_size": ["100", "200", "400"]}
    curves = {}
    for row in rows_of(folder / "G" / "sweep.csv"):
        values = tuple((key, f"{float(row[key]):g}") for key in texts)
        metrics = rows_of(folder / "G" / row["job"] / "metrics.csv")
        curves[values] = [float(line["val_error_percent"]) for line in metrics]
    return Table(Space([Parameter(key, listed(values)) for key, values in texts.items()]), curves)


@pytest.mark.parametrize(
    "method", [slow(method) if method not in ("hyperband", "tpe") else method for method in METHODS]
)
def test_replay_proposes_and_finds_what_a_search_does(method: str, table: Table, tmp_path: Path) -> None:
    options = (f"hydra.sweeper.method={method}", "hydra.sweeper.total_epochs=30", "hydra.sweeper.seed=5")
    result = dlhw(*SMALL, *GRID, "-m", "hydra/sweeper=search", *options, "hydra.sweep.dir=S", at=tmp_path)
    assert result.code == 0, "\n".join(result.lines)
    searched = [
        (int(row["total_epochs"]), int(row["trial"]), int(row["epochs"]), float(row["val_error_percent"]))
        for row in rows_of(tmp_path / "S" / "tables" / "search.csv")
    ]
    plan = Plan(method=method, epochs=3, total_epochs=30, seed=5)  # type: ignore[arg-type]
    replayed = replay(plan, table)
    assert [(step.total_epochs, step.trial, step.epochs) for step in replayed.steps] == [row[:3] for row in searched]
    assert [step.value for step in replayed.steps] == pytest.approx([row[3] for row in searched])


def test_failed_and_stopped_runs_of_a_table() -> None:
    curves = {(("a", "1"), ("b", "x")): [3.0, 2.0], (("a", "1"), ("b", "y")): [5.0]}
    table = Table(SPACE, curves, failed=frozenset([(("a", "1"), ("b", "y"))]))
    stopped, failed = curves
    assert table.result(stopped, 1) == (1, 3.0)
    assert table.result(stopped, 9) == (2, 2.0)
    assert table.result(failed, 1) == (1, 5.0)
    assert table.result(failed, 2) == (1, math.inf)
    assert table.lowest == 2.0


def test_points_that_are_proposed_again_cost_nothing() -> None:
    curves = {(("a", a), ("b", b)): [1.0 * int(a)] * 3 for a in "12" for b in "xy"}
    replayed = replay(Plan(method="tpe", epochs=3, trials=4), Table(SPACE, curves))
    points = {tuple(SPACE.values(point).items()) for point in replayed.points}
    assert replayed.steps[-1].total_epochs == 3 * len(points)


def test_regret_is_the_distance_to_the_lowest_of_all() -> None:
    table = Table(SPACE, {(("a", "1"), ("b", "x")): [1.0]})
    steps = [Step(3, 0, 3, 4.0), Step(6, 1, 3, 5.0), Step(9, 2, 3, 2.0)]
    expected = [math.inf, math.inf, 3.0, 3.0, 3.0, 1.0, 1.0]
    assert regret(Replay(steps, []), table, np.array([1.0, 2, 3, 5, 8, 9, 20])).tolist() == expected


def test_methods_are_compared_on_a_grid(tmp_path: Path) -> None:
    options = ("comparison=methods", "comparison.replays=3", "comparison.trials=4", "trainer.steps_per_epoch=2")
    result = dlhw(*SMALL, *GRID, *options, "-m", "hydra.sweep.dir=S", at=tmp_path)
    assert result.code == 0, "\n".join(result.lines)
    rows = rows_of(tmp_path / "S" / "tables" / "methods.csv")
    assert [row["method"] for row in rows] == list(METHODS)
    assert {row["n"] for row in rows} == {"3"}
    ranks = [float(row["rank_12_epochs"]) for row in rows]
    assert sum(ranks) == pytest.approx(sum(range(1, len(METHODS) + 1)))
    for row in rows:
        assert float(row["regret_12_epochs"]) <= float(row["regret_6_epochs"])
    assert (tmp_path / "S" / "methods.png").exists()
    assert (tmp_path / "S" / "figures" / "tried.png").exists()
    assert any(line.startswith("regret after 12 epochs") for line in result.lines)
    (tmp_path / "S" / "methods.png").unlink()
    assert "regret after 12 epochs" in compare(tmp_path / "S")
    assert (tmp_path / "S" / "methods.png").exists()
    assert rows_of(tmp_path / "S" / "tables" / "methods.csv") == rows


def test_comparison_imports_nothing_that_a_config_names(tmp_path: Path) -> None:
    assert dlhw(*SMALL, "trainer.epochs=1", "-m", "seed=0,1", "hydra.sweep.dir=S", at=tmp_path).code == 0
    config = tmp_path / "S" / "seed=0" / "config.yaml"
    config.write_text(config.read_text().replace("dlhw.views.comparison.Comparison", "no_such_module.Comparison"))
    assert "lowest mean validation error" in compare(tmp_path / "S")
