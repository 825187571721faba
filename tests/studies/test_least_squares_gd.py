"""Gradient descent on least squares: it equals the closed form, at full and at deficient rank."""

from __future__ import annotations

import pytest
import torch

from dlhw.errors import UsageError
from dlhw.runtime.randomness import generator
from dlhw.studies import least_squares_gd as study
from dlhw.studies.least_squares_gd import (
    LeastSquares,
    closed_form,
    descend,
    draw,
    gradient,
    minimizer,
    rate_by_step,
    slowest,
)
from support.composing import Ask

SMALL = ["experiment=least_squares_gd", "study.draws=8", "study.iterations=60", "study.rates=12"]


def problem(rank: int | None, samples: int = 9, features: int = 4) -> LeastSquares:
    return draw(generator(0, "test"), draws=6, samples=samples, features=features, rank=rank)


@pytest.mark.parametrize("rank", [None, 2])
def test_closed_form_equals_the_matrix_power_and_gradient_descent(rank: int | None) -> None:
    case = problem(rank)
    alpha = 0.3 * case.largest_stable
    iterates = closed_form(case.x, case.y, case.start, alpha, 30)
    w = minimizer(case.x, case.y, case.start)
    step = torch.eye(4, dtype=torch.float64) - alpha[:, None, None] * case.x.mT @ case.x
    power = torch.linalg.matrix_power(step, 30)
    torch.testing.assert_close(iterates[:, 30], w + (power @ (case.start - w)[..., None]).squeeze(-1))
    torch.testing.assert_close(iterates, descend(case.x, case.y, case.start, alpha, 30), rtol=1e-10, atol=1e-12)


def test_closed_form_is_the_same_for_any_minimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    case = problem(2)
    alpha = 0.3 * case.largest_stable
    nearest = closed_form(case.x, case.y, case.start, alpha, 20)
    other = minimizer(case.x, case.y, torch.full_like(case.start, 7.0))
    monkeypatch.setattr(study, "minimizer", lambda x, y, start: other)
    torch.testing.assert_close(closed_form(case.x, case.y, case.start, alpha, 20), nearest, rtol=1e-10, atol=1e-12)


def test_gradient_descent_preserves_the_part_of_the_start_in_the_null_space() -> None:
    case = problem(2)
    w = descend(case.x, case.y, case.start, 0.5 * case.largest_stable, 400)
    null = torch.eye(4, dtype=torch.float64) - torch.linalg.pinv(case.x, rtol=1e-6) @ case.x
    parts = (null[:, None] @ w[..., None]).squeeze(-1)
    torch.testing.assert_close(parts, parts[:, :1].expand_as(parts), rtol=1e-9, atol=1e-12)
    assert float(parts.norm(dim=-1).min()) > 1e-3
    nearest = (null @ minimizer(case.x, case.y, case.start)[..., None]).squeeze(-1)
    torch.testing.assert_close(nearest, parts[:, 0], rtol=1e-9, atol=1e-12)


def test_minimizer_of_full_rank_solves_the_normal_equations() -> None:
    case = problem(None)
    expected = torch.linalg.solve(case.x.mT @ case.x, (case.x.mT @ case.y[..., None])).squeeze(-1)
    torch.testing.assert_close(minimizer(case.x, case.y, case.start), expected)
    assert float(gradient(case.x, expected, case.y).abs().max()) < 1e-12


def test_slowest_factor_leaves_zero_eigenvalues_out() -> None:
    eigenvalues = torch.tensor([[1e-17, 1.0, 4.0]], dtype=torch.float64)
    alpha = torch.tensor([0.5], dtype=torch.float64)
    assert slowest(eigenvalues, alpha).tolist() == [1.0]  # |1 - 0.5 x 4|
    assert slowest(eigenvalues, 0.5 * alpha).tolist() == [0.75]
    assert slowest(eigenvalues, 0.2 * alpha).tolist() == pytest.approx([0.9])


@pytest.mark.parametrize("rank", [None, 2])
def test_measured_factors_per_step_approach_the_prediction(rank: int | None) -> None:
    fractions, measured, predicted, shrinks = rate_by_step(problem(rank).only(1), 24, 400)
    assert fractions[-1] == pytest.approx(1.2)
    torch.testing.assert_close(measured, predicted, rtol=0.02, atol=0.02)
    stable = (fractions - 1).abs() > 1e-9  # at 2 / lambda_max one direction neither shrinks nor grows
    assert torch.equal(shrinks[stable], (fractions < 1)[stable])


@pytest.mark.parametrize(
    "setting",
    [
        [],
        ["seed=3", "study.rate=1.1"],
        ["study.rate=2"],
        ["study.samples=4", "study.features=9", "study.rank=1"],
        ["study.samples=6", "study.features=6"],
    ],
)
def test_all_checks_agree(ask: Ask, setting: list[str]) -> None:
    answer = ask(*SMALL, *setting)
    assert answer.disagreements == []
    assert len(answer.checks) == 2 * 9
    assert len(answer.tables["errors"]) == 2 * 61
    assert len(answer.tables["rates"]) == 2 * 12
    assert set(answer.figures) == {"least_squares"}
    assert float(answer.numbers["stays_of_the_start"]) > 0.01


@pytest.mark.parametrize("sizes", [(10, 3, 1000), (2, 1, 5000)])
def test_all_checks_agree_for_badly_conditioned_problems(ask: Ask, sizes: tuple[int, int, int]) -> None:
    size, rank, draws = sizes
    square = [f"study.samples={size}", f"study.features={size}", f"study.rank={rank}", f"study.draws={draws}"]
    assert ask("experiment=least_squares_gd", "study.rates=12", *square).disagreements == []


def test_wrong_gradient_disagrees(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "gradient", lambda x, w, y: (1 + 1e-8) * gradient(x, w, y))
    assert any("closed form" in check.what for check in ask(*SMALL).disagreements)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["study.rank=5"], "study.rank=5: must be less than study.samples=20 and study.features=5"),
        (["study.rate=0"], "study.rate=0"),
        (["study.rate=2", "study.iterations=300"], "study.rate=2: overflows float64"),
        (["study.iterations=10"], "study.iterations=10"),
    ],
)
def test_invalid_settings_raise_usage_error(ask: Ask, overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ask(*SMALL, *overrides)
