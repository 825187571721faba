"""The effect of single settings: outcomes, medians and quartiles, and which runs belong to a factor."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dlhw.views.effects import Effects, _order, _short
from support.commands import dlhw
from support.config_files import CONF

OPTIONS: dict[str, Any] = {
    "curves": [],
    "x": "epoch",
    "log_x": False,
    "overlay": None,
    "against": [],
    "probes": [],
    "factors": ["optimizer.lr"],
    "by": "dataset.kind",
    "threshold": 0.05,
    "failure": 0.5,
}
EFFECTS = Effects(**OPTIONS)


def run(*losses: float, test: float = 0.1, status: str = "finished") -> Any:
    """Return a run with these training losses, one per epoch."""
    rows = [{"epoch": epoch, "train_loss": loss} for epoch, loss in enumerate(losses, 1)]
    final = {"train_loss": losses[-1], "test_loss": test} if losses else {}
    return SimpleNamespace(status=status, rows=rows, final=final)


@pytest.mark.parametrize(
    ("single", "outcome", "epochs"),
    [
        (run(0.4, 0.04, 0.06), "solved", 2),
        (run(0.4, 0.05), "stuck", None),
        (run(0.04, 0.6), "diverged", 1),
        (run(), "diverged", None),
        (run(0.4, status="failed"), "diverged", None),
    ],
)
def test_outcome_of_a_run(single: Any, outcome: str, epochs: int | None) -> None:
    assert (EFFECTS.outcome(single), EFFECTS.epochs_until_solved(single)) == (outcome, epochs)


def test_summary_has_counts_medians_and_quartiles() -> None:
    runs = [run(0.01, test=0.1), run(0.3, 0.01, test=0.2), run(0.3, 0.2, 0.01, test=0.4), run(0.4, test=0.8), run()]
    assert EFFECTS.summary(runs) == {
        "n": 5,
        "solved": 3,
        "stuck": 1,
        "diverged": 1,
        "test_loss_lower": pytest.approx(0.175),
        "test_loss_median": pytest.approx(0.3),
        "test_loss_upper": pytest.approx(0.5),
        "epochs_lower": 1.5,
        "epochs_median": 2,
        "epochs_upper": 2.5,
        "test_loss_mean": pytest.approx(0.375),
        "test_loss_sd": pytest.approx(math.sqrt(0.2875 / 3)),
    }


def test_values_are_in_a_readable_order() -> None:
    values = ["l2_1e-2", "0.1", "ReLU", "l1_1e-2", "l1_1e-3", "none", "0.03"]
    assert sorted(values, key=_order) == ["0.03", "0.1", "ReLU", "none", "l1_1e-3", "l1_1e-2", "l2_1e-2"]
    assert [_short(value) for value in ("[8, 8, 8]", "[8,4]", "[]", "Tanh")] == ["3 x 8", "8, 4", "none", "Tanh"]


def test_table_of_a_small_sweep(tmp_path: Path) -> None:
    """Each factor has a row for the base and each of its values, with the seeds of that value."""
    ended = dlhw(
        *("experiment=playground_effects", "dataset.kind=gauss,xor", "optimizer.lr=0.3,1e300", "depth=1,2", "seed=0,1"),
        *("model.activation=ReLU", "penalty=l1_1e-3", "trainer.epochs=2", "dataset.points=60", "hydra.sweep.dir=S"),
        at=tmp_path,
    )
    assert ended.code == 1, ended.err  # the rate 1e300 diverges
    with (tmp_path / "S" / "tables" / "effects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["factor"], row["value"], row["by"]) for row in rows} == {
        ("optimizer.lr", value, kind) for value in ("0.1", "0.3", "1.0e+300") for kind in ("gauss", "xor")
    } | {
        *(("depth", value, kind) for value in ("1", "2", "3") for kind in ("gauss", "xor")),
    }
    assert {row["n"] for row in rows} == {"2"}
    assert {row["diverged"] for row in rows if row["value"] == "1.0e+300"} == {"2"}
    figures = {path.name for path in (tmp_path / "S" / "figures").iterdir()}
    assert figures >= {"effect_optimizer.lr.png", "effect_depth.png"}


def test_the_experiment_names_all_factors_that_it_varies() -> None:
    from omegaconf import OmegaConf

    config = OmegaConf.load(CONF / "experiment" / "playground_effects.yaml")
    assert config.comparison.factors == config.hydra.sweeper.one_at_a_time
    assert set(config.comparison.factors) | {config.comparison.by, "seed"} == set(config.hydra.sweeper.params)
