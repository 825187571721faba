"""Least squares as a projection, at full and at deficient rank."""

from __future__ import annotations

import pytest
import torch

from dlhw.errors import UsageError
from dlhw.studies.projection import CONDITION, applied, draw, gaps, onto_columns, projector, solver
from support.composing import Ask


def problem(rank: int, *, points: int = 9, features: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return draw(5, points, features, rank=rank, source=torch.Generator().manual_seed(rank))


@pytest.mark.parametrize("seed", range(4))
def test_all_checks_agree_for_every_seed(ask: Ask, seed: int) -> None:
    answer = ask("experiment=projection", f"seed={seed}", "study.draws=20", "study.candidates=10")
    assert answer.disagreements == []
    assert len(answer.checks) == 9
    assert answer.numbers["candidates"] == 3 * 20 * 10
    assert [row["rank"] for row in answer.tables["ranks"]] == [6, 4, 1]
    assert set(answer.figures) == {"plane", "candidates"}


@pytest.mark.parametrize("size", [(1, 2), (2, 1), (5, 5), (4, 9)])
def test_all_checks_agree_for_any_shape(ask: Ask, size: tuple[int, int]) -> None:
    ranks = sorted({1, min(size)})
    answer = ask(
        "experiment=projection", f"study.points={max(2, size[0])}", f"study.features={size[1]}", f"study.ranks={ranks}"
    )
    assert answer.disagreements == []


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_drawn_matrices_have_the_requested_rank_and_condition(rank: int) -> None:
    sizes = torch.linalg.svdvals(problem(rank)[0])
    assert (sizes[:, rank - 1] >= sizes[:, 0] / CONDITION).all()
    assert (sizes[:, rank:] < 1e-14).all()


def test_solver_equals_torch_least_squares_at_full_rank() -> None:
    x, y = problem(4)
    torch.testing.assert_close(applied(solver(x), y), torch.linalg.lstsq(x, y[..., None]).solution[..., 0])


def test_solver_returns_the_shortest_solution_at_deficient_rank() -> None:
    x, y = problem(2)
    torch.testing.assert_close(applied(solver(x), y), applied(torch.linalg.pinv(x, rtol=1e-9), y))


@pytest.mark.parametrize("project", [projector, onto_columns])
def test_projection_onto_a_known_plane(project: object) -> None:
    x = torch.tensor([[[1.0, 1.0], [0.0, 2.0], [0.0, 0.0]]], dtype=torch.float64)
    expected = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    assert callable(project)
    torch.testing.assert_close(project(x)[0], expected)


def test_gaps_equal_those_of_a_line_by_hand() -> None:
    """y = (3, 4) has yhat = (3, 0) on the first axis. At 2 from yhat, the squared distance to y is larger by 2^2."""
    x, y = torch.tensor([[[1.0], [0.0]]]).double(), torch.tensor([[3.0, 4.0]]).double()
    measured, theory = gaps(x, y, torch.tensor([[[2.0], [-1.0], [0.0]]]).double())
    expected = torch.tensor([[4.0, 1.0, 0.0]]).double() / 25  # relative to |y|^2
    torch.testing.assert_close(measured, expected)
    torch.testing.assert_close(theory, expected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["study.ranks=[7]"], "at most 6"),
        (["study.ranks=[]"], "at least 1"),
        (["study.ranks=[6,6]"], r"study.ranks=\[6, 6\]: must not contain duplicates"),
        (["study.columns=[[1,2,3],[2,4,6]]"], "linearly independent"),
        (["study.columns=[[1,2],[2,4]]"], "at least 3"),
    ],
)
def test_invalid_settings_raise_usage_error(ask: Ask, overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ask("experiment=projection", *overrides)
