"""The effect of single settings: outcomes, medians and quartiles, and which runs belong to a factor."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dlhw.views.comparison.ranking import group_by_setting
from dlhw.views.comparison.results import read, run_directories
from dlhw.views.effects import Effects, _order, _short, base_values, quantile
from support.commands import dlhw
from support.config_files import CONF

OPTIONS: dict[str, Any] = {
    "curves": [],
    "x": "epoch",
    "log_x": False,
    "overlay": "dataset.kind",
    "against": [],
    "probes": [],
    "factors": ["optimizer.lr"],
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
        (run(status="failed"), "diverged", None),
        (run(0.4, status="failed"), "diverged", None),
    ],
)
def test_outcome_of_a_run(single: Any, outcome: str, epochs: int | None) -> None:
    assert (EFFECTS.outcome(single), EFFECTS.epochs_until_solved(single)) == (outcome, epochs)


def test_summary_counts_failed_and_unsolved_runs_as_infinite() -> None:
    runs = [run(0.01, test=0.1), run(0.3, 0.01, test=0.2), run(0.3, 0.2, 0.01, test=0.4), run(0.4, test=0.8)]
    assert EFFECTS.summary(runs) == {
        "n": 4,
        "solved": 3,
        "stuck": 1,
        "diverged": 0,
        "test_loss_lower": pytest.approx(0.175),
        "test_loss_median": pytest.approx(0.3),
        "test_loss_upper": pytest.approx(0.5),
        "epochs_lower": 1.75,
        "epochs_median": 2.5,
        "epochs_upper": math.inf,
    }
    failed = run(0.4, 0.3, test=0.3, status="failed")
    with_failed = EFFECTS.summary([runs[0], failed, failed])
    assert (with_failed["test_loss_lower"], with_failed["test_loss_median"]) == (math.inf, math.inf)
    assert (with_failed["n"], with_failed["diverged"]) == (3, 2)


def test_quantile_of_finite_numbers_is_that_of_numpy() -> None:
    values = [3.0, 0.5, 7.0, 1.0, 2.0]
    for share in (0.0, 0.1, 0.25, 0.5, 0.75, 1.0):
        assert quantile(values, share) == pytest.approx(np.quantile(values, share))
    assert quantile([1.0], 0.25) == 1.0
    assert quantile([1.0, math.inf], 0.5) == math.inf


def test_values_are_in_a_readable_order() -> None:
    in_order = ["0.03", "0.1", "[4]", "[16]", "[4,4]", "ReLU", "none", "l1_1e-3", "l1_1e-2", "l2_1e-2"]
    assert sorted(set(in_order), key=_order) == in_order
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
    assert {(row["factor"], row["value"], row["overlay"]) for row in rows} == {
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
    assert set(config.comparison.factors) | {config.comparison.overlay, "seed"} == set(config.hydra.sweeper.params)


def test_base_of_one_factor_is_the_value_in_the_config(tmp_path: Path) -> None:
    """All values are equally frequent; the base is that of the job that overrides none. There is one data set."""
    ended = dlhw(
        *("experiment=playground_effects", "dataset.kind=gauss", "hydra.sweeper.one_at_a_time=[optimizer.lr]"),
        *("optimizer.lr=0.3,3", "depth=1", "model.activation=Tanh", "penalty=none", "seed=0", "trainer.epochs=1"),
        *("dataset.points=60", "hydra.sweep.dir=S"),
        at=tmp_path,
    )
    assert ended.code == 0, ended.err
    settings = group_by_setting(read(run_directories(tmp_path / "S")))
    assert base_values(settings, ["optimizer.lr"]) == {"optimizer.lr": "0.1"}
    with (tmp_path / "S" / "tables" / "effects.csv").open(newline="") as file:
        assert [(row["value"], row["overlay"]) for row in csv.DictReader(file)] == [("0.1", ""), ("0.3", ""), ("3", "")]
