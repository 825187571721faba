"""Hulls that meet and hyperplanes that separate, on pairs whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dlhw.errors import UsageError
from dlhw.studies.separability import KINDS, SHIFT, hyperplane, meeting, touching, wilson
from support.composing import Ask

SQUARE = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
FEW = ("study.draws=4", "study.touching_draws=3", "study.distances=[0,2,5]")


@pytest.mark.parametrize("options", [(), ("seed=7", "study.points=[2]"), ("study.dimension=6", "study.points=[3]")])
def test_exactly_one_of_the_two_holds(ask: Ask, options: tuple[str, ...]) -> None:
    found = ask("experiment=separability", *FEW, *options)
    assert found.disagreements == []
    assert len(found.checks) == 4
    assert len(found.tables["cases"]) == 7
    assert len(found.tables["distances"]) == 3 * (1 if "study.points" in str(options) else 3)
    assert set(found.figures) == {"pairs", "fractions"}


@pytest.mark.parametrize("away", [1.25, 3.0])
def test_squares_at_a_known_distance(away: float) -> None:
    near, plane = meeting(SQUARE + [away, 0.0], SQUARE), hyperplane(SQUARE + [away, 0.0], SQUARE)  # noqa: RUF005
    assert near.gap == pytest.approx(away - 1, abs=1e-12)
    assert plane.margin == pytest.approx((away - 1) / 2, abs=1e-12)
    assert plane.separates
    assert not near.meets
    assert plane.w == pytest.approx([1, 0])


def test_a_point_inside_is_a_convex_combination() -> None:
    inside = np.array([[0.3, 0.6], [9.0, 9.0]])
    near, plane = meeting(SQUARE, inside), hyperplane(SQUARE, inside)
    assert near.meets
    assert near.of_x.sum() == pytest.approx(1)
    assert near.of_x @ SQUARE == pytest.approx(near.of_y @ inside, abs=1e-12)
    assert not plane.separates


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dimension", [2, 3])
def test_touching_pairs_touch_and_part_when_moved(kind: str, dimension: int) -> None:
    source = torch.Generator().manual_seed(5)
    for _ in range(5):
        x, y = touching(kind, 4, dimension, source)
        assert meeting(x, y).meets
        assert not hyperplane(x, y).separates
        x[:, 0] += SHIFT
        assert not meeting(x, y).meets
        assert hyperplane(x, y).separates


def test_wilsons_interval() -> None:
    low, high = wilson(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))  # Wilson (1927), tables
    assert wilson(0, 10)[0] == pytest.approx(0, abs=1e-12)
    for edge in wilson(3, 40):  # its definition
        assert abs(3 / 40 - edge) == pytest.approx(1.96 * (edge * (1 - edge) / 40) ** 0.5)


def test_far_apart_is_no_disagreement_and_what_the_solver_cannot_do_is_refused(ask: Ask) -> None:
    assert ask("experiment=separability", *FEW[:2], "study.distances=[100]").disagreements == []
    with pytest.raises(UsageError, match=r"study\.distances=\[1000.*less than or equal to 100"):
        ask("experiment=separability", "study.distances=[1000]")
    with pytest.raises(UsageError, match=r"study\.distances: the solver fails") as caught:
        meeting(SQUARE + 1e18, SQUARE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["study.dimension=1", "study.points=[1]", "study.distances=[-1]", "study.draws=0"])
def test_what_is_refused(ask: Ask, override: str) -> None:
    with pytest.raises(UsageError, match="greater than or equal"):
        ask("experiment=separability", override)
