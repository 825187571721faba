"""The penalty that dropout adds to the loss: noise, mean over all masks, and second-order formula."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from dlhw.errors import UsageError
from dlhw.runtime.randomness import generator
from dlhw.studies.dropout_penalty import (
    exact,
    linear_loss,
    linear_penalty,
    net_loss,
    noise,
    second_order,
    slope_at_zero,
)
from support.composing import Ask

Q = torch.tensor([0.05, 0.3, 0.5], dtype=torch.float64)
SMALL = ("study.draws=2000", "study.rates=[0.1,0.5]", "study.hidden=5")


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(3, "test", *shape), dtype=torch.float64)


@pytest.mark.parametrize(
    "override", ["seed=0", "seed=1", "seed=2", "study.hidden=1", "study.residual=0", "study.gain=0.01"]
)
def test_all_checks_agree(ask: Ask, override: str) -> None:
    answer = ask("experiment=dropout_penalty", *SMALL, override)
    assert answer.disagreements == []
    assert len(answer.tables["penalties"]) == 2 * 2
    assert set(answer.figures) == {"penalty", "accuracy"}


def test_noise_equals_that_of_torch_dropout() -> None:
    h = normal(1000).abs() + 0.1
    dropped = torch.nn.functional.dropout(h, 0.3)
    torch.testing.assert_close(h * (1 + noise(dropped == 0, Q[1])), dropped)


def test_exact_penalty_is_the_mean_over_all_masks() -> None:
    loss, h = net_loss(normal(4, 3), normal(4), 0.5), normal(3)
    total = torch.zeros(())
    for mask in itertools.product([0, 1], repeat=3):
        probability = 0.3 ** mask.count(0) * 0.7 ** mask.count(1)
        total = total + probability * loss(h * torch.tensor(mask) / 0.7)
    torch.testing.assert_close(exact(loss, h, Q[1:2])[0], total - loss(h))


@pytest.mark.parametrize("y", [0.0, -3.0])
def test_penalty_of_a_linear_model_equals_its_closed_form(y: float) -> None:
    weight, x = normal(6), normal(6) + 1
    closed = linear_penalty(weight, x, Q)
    by_hand = [0.3 / 0.7 * sum(w**2 * v**2 for w, v in zip(weight.tolist(), x.tolist(), strict=True))]
    assert closed[1:2].tolist() == pytest.approx(by_hand)
    torch.testing.assert_close(second_order(linear_loss(weight, y), x, Q), closed)
    torch.testing.assert_close(exact(linear_loss(weight, y), x, Q), closed)


def test_second_order_formula_is_exact_for_a_quadratic_form() -> None:
    matrix = normal(4, 4)

    def form(h: Tensor) -> Tensor:
        return torch.einsum("...j,jk,...k->...", h, matrix, h)

    h = normal(4)
    expected = Q / (1 - Q) * (matrix.diagonal() * h.square()).sum()
    torch.testing.assert_close(second_order(form, h, Q), expected)
    torch.testing.assert_close(exact(form, h, Q), expected)


def test_second_order_formula_is_wrong_for_a_cubic_even_at_small_q() -> None:
    def cubic(h: Tensor) -> Tensor:
        return h.pow(3).sum(-1)

    h, q = torch.tensor([2.0], dtype=torch.float64), torch.tensor([1e-7], dtype=torch.float64)
    # loss without the unit - loss + h times the slope
    assert float(slope_at_zero(cubic, h)) == pytest.approx(-8 + 3 * 8)
    assert float(exact(cubic, h, q) / q) == pytest.approx(16, rel=1e-6)
    assert float(second_order(cubic, h, q) / q) == pytest.approx(24, rel=1e-6)  # 6 h^3 / 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study.rates=[0.1,0.6]", "0.5"),
        ("study.rates=[0.1,0.0]", "0"),
        ("study.hidden=13", "12"),
        ("study.gain=1e-6", "study.gain"),
        ("study.gain=1e10", "study.gain"),
        ("study.rates=[0.001,0.5]", "100000 or more"),
    ],
)
def test_invalid_settings_raise_usage_error(ask: Ask, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ask("experiment=dropout_penalty", *SMALL, override)
