"""The best networks of a search on the playground: their table, and the networks that the figures show."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from dlhw import load_run
from dlhw.views.comparison.results import read
from dlhw.views.winners import read_network
from support.commands import dlhw, summary


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("winners")
    ended = dlhw(
        *(
            "experiment=playground_search",
            "problem=xor_all,reg_plane_xy",
            "model.hidden=[3]",
            "seed=0",
            "trainer.epochs=2",
        ),
        *("dataset.points=200", "optimizer.lr=0.03,0.1", "model.activation=Tanh", "hydra.sweeper.confirm=3"),
        "hydra.sweep.dir=S",
        at=at,
    )
    assert ended.code == 0, ended.err
    return at / "S"


def table(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_table_has_the_test_losses_of_the_confirmed_settings(sweep: Path) -> None:
    winners = {row["problem"]: row for row in table(sweep / "confirmation" / "tables" / "winners.csv")}
    assert list(winners) == ["reg_plane_xy", "xor_all"]
    rows = table(sweep / "confirmation" / "sweep.csv")
    for problem, winner in winners.items():
        losses = [float(row["best_test_loss"]) for row in rows if row["problem"] == problem]
        assert len(losses) == int(winner["n"]) == 3
        assert float(winner["test_loss_mean"]) == pytest.approx(statistics.fmean(losses))
        assert float(winner["test_loss_sd"]) == pytest.approx(statistics.stdev(losses))
        assert float(winner["test_loss_largest"]) == max(losses)
        assert int(winner["solved"]) == sum(loss < 0.01 for loss in losses)
    assert (winners["xor_all"]["parameters"], winners["reg_plane_xy"]["parameters"]) == ("28", "13")
    names = {path.name for path in (sweep / "confirmation" / "figures").iterdir()}
    assert names >= {"winners.png", "cost.png", "network_xor_all.png", "network_reg_plane_xy.png"}


def test_the_networks_in_the_figures_are_those_of_the_runs(sweep: Path) -> None:
    for result in read([path.parent for path in sweep.glob("confirmation/*/config.yaml")]):
        model, training = read_network(result)
        points = torch.rand(5, 2)
        expected = load_run(result.path).model()(points)
        torch.testing.assert_close(model(points.double()).float(), expected)
        assert len(training.rows) == 2
        assert training.best_epoch == summary(result.path)["best"]["epoch"]
        assert training.name.startswith("playground (")
