"""Gradients through deep nets of steep sigmoids: backpropagation equals autograd, layer factors equal the theory."""

from __future__ import annotations

import math

import pytest
import torch

from dlhw.errors import UsageError
from dlhw.runtime.randomness import generator
from dlhw.studies.activation_slope import activation, balanced, gradients, layer_factor
from support.composing import Ask

SMALL = ("study.draws=10", "study.width=30", "study.depth=20", "study.slopes=[2,20]")


@pytest.mark.parametrize("override", ["seed=0", "seed=1", "seed=2", "study.gain=3"])
def test_all_checks_agree(ask: Ask, override: str) -> None:
    answer = ask("experiment=activation_slope", *SMALL, override)
    assert answer.disagreements == []
    assert len(answer.tables["slopes"]) == 2
    assert set(answer.figures) == {"slopes"}
    assert answer.numbers["stable_from_c"] < answer.numbers["balanced_c"] < answer.numbers["stable_to_c"]


def test_gradient_norms_equal_autograd() -> None:
    source = generator(0, "test")
    weights = torch.randn(2, 3, 5, 5, generator=source, dtype=torch.float64)
    x, output = torch.randn(2, 2, 5, generator=source, dtype=torch.float64)
    slopes = torch.tensor([0.5, 7.0], dtype=torch.float64)
    norms, _ = gradients(weights, x, slopes, output)
    assert norms.shape == (4, 2, 2)
    for i, c in enumerate(slopes):
        for draw in range(2):
            z = [x[draw].clone().requires_grad_()]
            for matrix in weights[draw]:
                z.append(matrix @ activation(z[-1], c))
            by_layer = torch.autograd.grad(activation(z[-1], c) @ output[draw], z)
            torch.testing.assert_close(norms[:, i, draw], torch.stack([gradient.norm() for gradient in by_layer]))


def test_largest_slope_is_a_quarter_of_c() -> None:
    z = torch.linspace(-3, 3, 1001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(activation(z, torch.tensor(7.0)).sum(), z)
    assert float(slope.max()) == pytest.approx(7 / 4)


def test_share_of_saturated_units_is_counted() -> None:
    weights, ones = torch.zeros(1, 1, 4, 4, dtype=torch.float64), torch.ones(1, 4, dtype=torch.float64)
    _, saturated = gradients(weights, 10 * ones, torch.tensor([1.0], dtype=torch.float64), ones)
    assert saturated.tolist() == [0.5]  # the first layer at z = 10; the second is at 0


@pytest.mark.parametrize("gain", [0.5, 1.0, 2.0])
def test_layer_factor_approaches_its_limits_for_small_and_large_c(gain: float) -> None:
    flat = layer_factor(1e-4, gain)
    assert flat == pytest.approx(gain**2 * (1e-4 / 4) ** 2, rel=1e-3)  # slope c / 4 everywhere
    steep = layer_factor(300.0, gain)  # a step: q = gain^2 / 2, and the slope's square has the integral c / 6
    assert steep == pytest.approx(gain**2 * 300 / 6 / math.sqrt(math.pi * gain**2), rel=0.02)


def test_layer_factor_is_one_at_the_balanced_c() -> None:
    assert layer_factor(balanced(1.0, 1.0), 1.0) == pytest.approx(1.0, abs=1e-6)
    assert balanced(1.0, 1.0) == pytest.approx(10.149, abs=1e-3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study.slopes=[4,1]", "must be in increasing order"),
        ("study.gain=0.1", "0.2"),
        ("study.depth=5", "20"),
        ("study.slopes=[1e-12,1]", "float64"),
    ],
)
def test_invalid_settings_raise_usage_error(ask: Ask, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ask("experiment=activation_slope", *SMALL, override)
