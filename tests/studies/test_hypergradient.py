"""Derivatives by hyperparameters: through training, by finite differences, and their use of memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlhw.errors import UsageError
from dlhw.runtime.randomness import generator
from dlhw.studies import hypergradient
from dlhw.studies.hypergradient import (
    Data,
    Sweep,
    after_training,
    central_differences,
    descend_jointly,
    error,
    hypergradient_with_cost,
    prediction,
    training_loss,
)
from support.composing import Ask

SMALL = ("study.rates=10", "study.steps=[1,3,10]", "study.repeats=3", "study.joint_steps=10")


def data(count: int = 12) -> Data:
    x, y = torch.randn(2, count, generator=generator(0, "test", count), dtype=torch.float64)
    return x, y


def weights() -> Tensor:
    return torch.randn(13, generator=generator(0, "test weights"), dtype=torch.float64)


@pytest.mark.parametrize(
    "override", ["seed=0", "seed=1", "seed=2", "study.hidden=1", "study.rate=0.48", "study.penalty=1e-12"]
)
def test_all_checks_agree(ask: Ask, override: str) -> None:
    answer = ask("experiment=hypergradient", *SMALL, override)
    assert answer.disagreements == []
    assert len(answer.tables["cost"]) == 3
    assert len(answer.tables["sweep"]) == 10
    assert set(answer.figures) == {"training_loss", "cost", "roughness"}


def test_prediction_equals_a_torch_net() -> None:
    w, (x, _) = weights(), data()
    net = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    torch.nn.utils.vector_to_parameters(w, net.parameters())
    torch.testing.assert_close(prediction(w, x), net(x[:, None])[:, 0])


def test_hypergradient_after_one_step_equals_that_by_hand() -> None:
    w, rate = weights(), 0.05
    hyper = torch.tensor([0.1, rate], dtype=torch.float64)
    gradient, _, _ = hypergradient_with_cost(w, hyper, 1, data(), data(7))
    leaf = w.clone().requires_grad_()
    (slope,) = torch.autograd.grad(training_loss(leaf, hyper[0], data()), leaf)
    after = (w - rate * slope).requires_grad_()
    (by_w,) = torch.autograd.grad(error(after, data(7)), after)
    torch.testing.assert_close(gradient, torch.stack([by_w @ (-rate * 2 * w), by_w @ -slope]))
    torch.testing.assert_close(error(after, data(7)), after_training(w, hyper, 1, data(), data(7)))


def test_hypergradient_agrees_with_central_differences() -> None:
    hyper = torch.tensor([0.02, 0.05], dtype=torch.float64)
    gradient, _, _ = hypergradient_with_cost(weights(), hyper, 20, data(), data(7))
    differences, allowed = central_differences(weights(), hyper, 20, data(), data(7))
    assert ((gradient - differences).abs() < allowed).all()
    assert (allowed < 1e-6 * gradient.abs()).all()


def test_validation_loss_is_rough_below_the_diverging_rate(ask: Ask) -> None:
    answer = ask("experiment=hypergradient", "study.repeats=3", "study.rates=80", "study.joint_steps=1")
    diverging_rate = answer.numbers["rate_where_training_diverges"]
    assert diverging_rate == pytest.approx(0.525, abs=0.008)
    rows = [row for row in answer.tables["sweep"] if row["learning_rate"] < diverging_rate]  # type: ignore[operator]
    assert max(row["validation_loss"] for row in rows) < 2  # type: ignore[type-var]
    assert int(answer.numbers["sign_changes_of_derivative"]) >= 6


def test_sweep_numbers_exclude_diverging_rates() -> None:
    rates = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)
    losses = torch.tensor([1.0, 0.5, 1e67, 0.5, torch.nan], dtype=torch.float64)
    slopes = torch.tensor([-1.0, 2.0, 1e76, 3.0, torch.nan], dtype=torch.float64)
    numbers = Sweep(rates, losses, slopes, 1.0, 10).numbers
    assert list(numbers.values()) == [pytest.approx(0.3), 1, 1.0, 2.0]  # the lower of the two medians
    stable = Sweep(rates[:2], losses[:2], slopes[:2], 1.0, 10)
    assert stable.numbers["rate_where_training_diverges"] == "none of the sweep"


def test_wrong_derivative_in_the_sweep_disagrees(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_sweep(rates: Tensor, losses: Tensor, slopes: Tensor, start: float, steps: int) -> Sweep:
        return Sweep(rates, losses, 1.001 * slopes, start, steps)

    monkeypatch.setattr(hypergradient, "Sweep", wrong_sweep)
    assert [check.what for check in ask("experiment=hypergradient", *SMALL).disagreements] == [
        "relative difference between the derivatives in the sweep and through one unrolled run"
    ]


def test_saved_bytes_grow_with_steps_and_samples() -> None:
    hyper = torch.tensor([0.02, 0.05], dtype=torch.float64)
    saved = [hypergradient_with_cost(weights(), hyper, steps, data(), data(7))[1] for steps in (5, 10, 15)]
    assert saved[2] - saved[1] == saved[1] - saved[0] > 0
    more = [hypergradient_with_cost(weights(), hyper, steps, data(24), data(7))[1] for steps in (5, 10)]
    assert more[1] - more[0] > 1.5 * (saved[1] - saved[0])


def test_joint_descent_decreases_lambda_to_zero() -> None:
    lambdas, derivatives, norms = descend_jointly(weights(), 0.01, (0.05, 1e-3), 20, data())
    assert lambdas[0] == 0.01
    assert lambdas[-1] == 0
    assert lambdas[1] == pytest.approx(max(0.0, 0.01 - 1e-3 * float(norms[0])))
    torch.testing.assert_close(derivatives, norms)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study.steps=[3,1]", "must be in increasing order"),
        ("study.steps=[3]", "study.steps"),
        ("study.rate=50", "diverges"),
        ("study.hidden=50", "study.rate=0.1: training diverges"),
        ("study.rate=1e-9", "0.0001"),
        ("study.largest_rate=60", "diverges at all"),
    ],
)
def test_invalid_settings_raise_usage_error(ask: Ask, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ask("experiment=hypergradient", "study.rates=10", "study.repeats=3", override)
