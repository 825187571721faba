"""Ridge logistic regression: objective, gradient, bounds of the curvature, and minimum."""

from __future__ import annotations

import math

import pytest
import torch

from dlhw.errors import UsageError
from dlhw.studies.logistic_ridge import curvature, draw_problem, gradient, objective, scikit_learn
from support.composing import Ask

QUICK = ("experiment=logistic_ridge", "study.problem=drawn", "study.draws=20", "study.strengths=[0.1,1]")


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("penalized", ["true", "false"])
def test_all_checks_agree(ask: Ask, seed: int, penalized: str) -> None:
    answer = ask(*QUICK, f"seed={seed}", f"study.penalize_intercept={penalized}")
    assert answer.disagreements == []
    assert len(answer.checks) == 4
    assert [row["strength"] for row in answer.tables["strengths"]] == [0.1, 1.0]
    assert set(answer.figures) == {"descent"}


def test_all_checks_agree_for_an_unpenalized_intercept_and_strong_penalties(ask: Ask) -> None:
    """The curvature in the intercept is at most 1/4, less than these strengths."""
    assert ask(*QUICK, "study.penalize_intercept=false", "study.strengths=[1,30,100]").disagreements == []


def test_all_checks_agree_on_the_breast_cancer_data(ask: Ask) -> None:
    answer = ask("experiment=logistic_ridge", "study.strengths=[1]", "study.draws=5")
    assert answer.disagreements == []
    assert answer.tables["strengths"][0]["C"] == pytest.approx(1 / 569)


def test_objective_and_gradient_equal_values_by_hand() -> None:
    x, y = torch.tensor([[2.0, 1.0], [0.0, 1.0]]).double(), double(1, 0)
    theta, penalty = double(math.log(3) / 2, 0), double(0.5, 0.5)
    # z = (log 3, 0): the losses are log(4 / 3) and log 2, the sigmoids 3/4 and 1/2
    expected = (math.log(4 / 3) + math.log(2)) / 2 + 0.25 * (math.log(3) / 2) ** 2
    assert objective(theta, x, y, penalty).item() == pytest.approx(expected, abs=1e-15)
    slope = double(-0.25 + 0.25 * math.log(3), (-0.25 + 0.5) / 2)
    torch.testing.assert_close(gradient(theta, x, y, penalty), slope)


def test_objective_and_gradient_do_not_overflow() -> None:
    x, penalty = torch.tensor([[1.0], [-1.0]]).double(), double(0)
    assert objective(double(1e5), x, double(1, 0), penalty).item() == 0.0
    assert objective(double(-1e5), x, double(1, 0), penalty).item() == 1e5
    assert gradient(double(-1e5), x, double(1, 0), penalty).item() == -1.0


def test_curvature_bounds_the_hessian_and_its_upper_bound_is_attained_at_zero() -> None:
    x, y = draw_problem(torch.Generator().manual_seed(3))
    penalty = torch.full((6,), 0.3, dtype=x.dtype)
    lower, upper = curvature(x, penalty)
    for scale in (0.0, 1.0, 20.0):
        theta = scale * torch.ones(6, dtype=x.dtype)
        hessian = torch.autograd.functional.hessian(lambda t: objective(t, x, y, penalty), theta)
        values = torch.linalg.eigvalsh(hessian)
        assert values[0] >= lower - 1e-12
        assert values[-1] <= upper + 1e-12
        if scale == 0:
            assert values[-1].item() == pytest.approx(upper, abs=1e-12)


@pytest.mark.parametrize("penalized", [True, False])
def test_gradient_vanishes_at_the_solution_of_scikit_learn(penalized: bool) -> None:
    x, y = draw_problem(torch.Generator().manual_seed(4))
    penalty = torch.full((6,), 0.2, dtype=x.dtype)
    penalty[-1] = 0.2 if penalized else 0.0
    theta = scikit_learn(x, y, 0.2, penalize_intercept=penalized)
    assert gradient(theta, x, y, penalty).norm() < 1e-9


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study.strengths=[0]", "0.000001"),
        ("study.strengths=[1e9]", "1000000"),
        ("study.most_iterations=3", r"too few for study.strengths=\[0.1, 1.0\]"),
        ("study.penalize_intercept=2", "true or false"),
        ("study.problem=iris", "breast_cancer"),
    ],
)
def test_invalid_settings_raise_usage_error(ask: Ask, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ask(*QUICK, override)
