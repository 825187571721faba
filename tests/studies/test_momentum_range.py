"""The heavy ball: it equals torch's SGD, its rates equal eigenvalues, and it preserves energy without friction."""

from __future__ import annotations

import math

import pytest
import torch

from dlhw.errors import UsageError
from dlhw.studies.momentum_range import heavy_ball, invariant, iteration_matrix, measured_rate, spectral_radius, stable
from support.composing import Ask

SMALL = ("study.steps=200", "study.points=14")


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    "override",
    ["study.rate=0.1", "study.rate=0.001", "study.curvatures=[10,40,50]", "study.lowest=0", "study.points=15"],
)
def test_all_checks_agree(ask: Ask, override: str) -> None:
    answer = ask("experiment=momentum_range", *SMALL, override)
    assert answer.disagreements == []
    assert set(answer.figures) == {"trajectories", "spectral_radius", "stability"}
    assert len(answer.tables["rates"]) == 3 * (15 if override == "study.points=15" else 14)


def test_all_checks_agree_near_the_limit_of_stability(ask: Ask) -> None:
    assert ask("experiment=momentum_range", "study.curvatures=[39.999999]").disagreements == []


def test_best_momentum_and_its_factor_equal_the_theory(ask: Ask) -> None:
    answer = ask("experiment=momentum_range", "study.steps=200")
    assert answer.numbers["factor_per_step_without_momentum"] == pytest.approx(0.95)  # 1 - 0.1 * 0.5
    assert answer.numbers["best_momentum"] == pytest.approx(0.6)
    assert answer.numbers["best_factor_per_step"] == pytest.approx(0.8)  # at s = 1.55: (1.55 + 0.05) / 2


@pytest.mark.parametrize("mu", [0.0, 0.5, 1.0, 1.2])
def test_heavy_ball_equals_torch_sgd(mu: float) -> None:
    w = tensor(1.0).requires_grad_()
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=mu)
    matrix, state = iteration_matrix(tensor(mu), tensor(0.3))[0], tensor(1.0, 0.0)
    directions, logarithms = heavy_ball(tensor(mu), tensor(0.3), 10)
    for k in range(1, 11):
        optimizer.zero_grad()
        (3.0 * w.square() / 2).sum().backward()
        optimizer.step()
        state = matrix @ state
        torch.testing.assert_close(state[:1], w.detach())
        torch.testing.assert_close(directions[k, 0, 0] * logarithms[k, 0, 0].exp(), state)


@pytest.mark.parametrize("mu", [-1.2, -0.3, 0.0, 0.04, 0.9, 1.0, 1.5])
@pytest.mark.parametrize("stiffness", [0.05, 1.0, 2.5, 4.5])
def test_spectral_radius_and_stability_agree_with_eigenvalues(mu: float, stiffness: float) -> None:
    radius = float(torch.linalg.eigvals(iteration_matrix(tensor(mu), tensor(stiffness))).abs().max())
    assert float(spectral_radius(tensor(mu), tensor(stiffness))) == pytest.approx(radius, abs=1e-7)
    assert bool(stable(tensor(mu), tensor(stiffness))) == (radius < 1 - 1e-12)


def test_measured_rate_is_negligible_for_a_run_that_reaches_the_minimum() -> None:
    _, logarithms = heavy_ball(tensor(0.0), tensor(1.0), 200)
    assert float(measured_rate(logarithms)) < 1e-100 or float(logarithms[-1]) < -1000


def test_invariant_is_preserved_only_for_momentum_1() -> None:
    for mu, preserved in ((1.0, True), (0.99, False), (1.01, False)):
        w, v = 1.0, 0.0
        for _ in range(50):
            v = mu * v - 0.3 * w
            w += v
        energy = float(invariant(tensor(w), tensor(v), tensor(0.3)))
        assert math.isclose(energy, 0.3, rel_tol=1e-12) == preserved


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study.lowest=1.5", "highest"),
        ("study.curvatures=[-1]", "0"),
        ("study.steps=10", "200"),
        ("study.rate=1e-300", "1e-6 to 10"),
        ("study.curvatures=[2000]", "1e-6 to 10"),
    ],
)
def test_invalid_settings_raise_usage_error(ask: Ask, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ask("experiment=momentum_range", override)
