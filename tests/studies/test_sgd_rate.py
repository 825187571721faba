"""Stochastic gradient descent and its bound: the assumptions, the exact expectation, the inequalities."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dlhw.errors import UsageError
from dlhw.runtime.randomness import generator
from dlhw.studies.sgd_rate import (
    POWERS,
    SmoothFunction,
    descend,
    expected_value,
    leading_term,
    one_step_bound,
    quadratic,
    right_hand_side,
    step_sizes,
    waves,
)
from support.composing import Ask

SMALL = ("study.runs=30", "study.steps=60")
CURVATURE = torch.tensor([2.0, 1.0, 0.3], dtype=torch.float64)
START = torch.tensor([1.5, -2.0, 0.7], dtype=torch.float64)
MAKERS = pytest.mark.parametrize("make", [quadratic, waves])
Make = Callable[[Tensor, Tensor, float], SmoothFunction]


def test_all_checks_agree(ask: Ask) -> None:
    answer = ask("experiment=sgd_rate", *SMALL)
    assert answer.disagreements == []
    assert len(answer.checks) == 2 * (1 + 3 * 4)
    assert len(answer.tables["measured"]) == 2 * 3 * 2  # t = 10 and t = 60
    assert len(answer.tables["right_hand_side"]) == 2 * 3 * 6
    assert set(answer.figures) == {"rates", "right_hand_side"}
    assert answer.numbers["quadratic_k34_bound"] > answer.numbers["quadratic_k34_least"]
    assert answer.numbers["quadratic_constant_bound"] > answer.numbers["quadratic_constant_least"]


@pytest.mark.parametrize("override", ["seed=1", "study.noise=0", "study.start=0", "study.dimension=1", "seed=7"])
def test_all_checks_agree_for_other_settings(ask: Ask, override: str) -> None:
    assert ask("experiment=sgd_rate", "study.runs=30", "study.steps=15", override).disagreements == []


@MAKERS
def test_slope_equals_autograd_and_functions_satisfy_the_assumptions(make: Make) -> None:
    problem = make(CURVATURE, START, 0.4)
    w = 4 * torch.randn(1000, 3, generator=generator(0, "test"), dtype=torch.float64).requires_grad_()
    (expected,) = torch.autograd.grad(problem.value(w).sum(), w)
    torch.testing.assert_close(problem.slope(w), expected)
    slopes, gaps = problem.slope(w)[1:] - problem.slope(w)[:-1], w[1:] - w[:-1]
    assert (slopes.norm(dim=1) / gaps.norm(dim=1)).max() <= problem.lipschitz == 2.0
    inside = w.clamp(-problem.box, problem.box)
    assert (problem.slope(inside).abs() <= problem.steepest).all()


@MAKERS
def test_expected_value_equals_the_mean_over_all_signs_and_is_below_the_bound(make: Make) -> None:
    problem, alpha = make(CURVATURE, START, 0.4), torch.tensor([0.3], dtype=torch.float64)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)), dtype=torch.float64)
    stochastic = problem.slope(START) + 0.4 * signs
    after = problem.value(START - alpha * stochastic).sum(-1).mean()
    torch.testing.assert_close(expected_value(problem, START, alpha), after)
    second_moment = stochastic.square().sum(-1).mean()
    squared_gradient = problem.slope(START).square().sum()
    bound = problem.value(START).sum() - 0.3 * squared_gradient + 0.3**2 * 2.0 / 2 * second_moment
    torch.testing.assert_close(one_step_bound(problem, START, alpha), bound)
    assert after < bound


def test_one_step_bound_is_an_equality_for_equal_curvatures() -> None:
    statistics = descend(
        quadratic(torch.full((3,), 2.0, dtype=torch.float64), START, 0.4),
        step_sizes(0.5, 0.5, 30)[None],
        runs=5,
        source=generator(0, "test"),
    )
    assert abs(float(statistics.slack)) < 1e-14


def test_iterates_reach_the_box_and_do_not_leave_it() -> None:
    problem = quadratic(CURVATURE, 0 * START, 0.4)
    statistics = descend(problem, step_sizes(0.5, 0.0, 200)[None], runs=20, source=generator(0, "test"))
    assert -0.01 < statistics.outside <= 1e-15


def test_right_hand_side_equals_the_formula_by_hand() -> None:
    problem = quadratic(CURVATURE, START, 0.4)
    f0 = 0.5 * (2 * 1.5**2 + 1 * 2.0**2 + 0.3 * 0.7**2)
    sigma_squared = 3.0**2 + 2.0**2 + 0.4**2 + 3 * 0.4**2  # in the last coordinate, the noise exceeds the slope, 0.21
    assert problem.excess == pytest.approx(f0)
    assert problem.sigma_squared == pytest.approx(sigma_squared)
    alphas = [0.2, 0.2 / 2**0.75, 0.2 / 3**0.75]
    expected = (f0 + sigma_squared * sum(a * a for a in alphas)) / sum(alphas)  # L / 2 = 1
    assert float(right_hand_side(problem, step_sizes(0.2, 0.75, 3))[-1]) == pytest.approx(expected)


@pytest.mark.parametrize("power", POWERS.values())
def test_right_hand_side_approaches_its_leading_term(power: float) -> None:
    problem = waves(CURVATURE, START, 0.4)
    bounds = right_hand_side(problem, step_sizes(0.2, power, 100_000))
    times = (100, 10_000, 100_000)
    errors = [abs(math.log(float(bounds[t - 1]) / leading_term(problem, 0.2, power, t))) for t in times]
    assert errors[0] > 2 * errors[1] > 2 * errors[2]
    assert errors[2] < 0.06


@pytest.mark.parametrize(
    ("override", "message"),
    [("study.constant_rate=1.5", "1"), ("study.runs=29", "30"), ("study.condition=0.5", "1")],
)
def test_invalid_settings_raise_usage_error(ask: Ask, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=rf"{override}.*{message}"):
        ask("experiment=sgd_rate", override)


def test_noise_that_overflows_raises_usage_error(ask: Ask) -> None:
    with pytest.raises(UsageError, match=r"study\.noise"):
        ask("experiment=sgd_rate", "study.noise=1e200")


def test_iterates_that_are_nan_give_a_nan_distance_from_the_box() -> None:
    problem = quadratic(CURVATURE, torch.nan * START, 0.4)
    assert math.isnan(descend(problem, step_sizes(0.5, 0.0, 3)[None], runs=5, source=generator(0, "test")).outside)


def test_zero_start_without_noise_raises_usage_error(ask: Ask) -> None:
    with pytest.raises(UsageError, match=r"study\.start=0"):
        ask("experiment=sgd_rate", "study.start=0", "study.noise=0")
