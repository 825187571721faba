"""Intersecting hulls and separating hyperplanes, for pairs of sets with a known result."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dlhw.errors import UsageError
from dlhw.studies.separability import KINDS, SHIFT, hyperplane, nearest_points, touching
from support.composing import Ask

SQUARE = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
FEW = ("study.draws=4", "study.touching_draws=3", "study.distances=[0,2,5]")


@pytest.mark.parametrize("options", [(), ("seed=7", "study.points=[2]"), ("study.dimension=6", "study.points=[3]")])
def test_hulls_intersect_or_a_hyperplane_separates(ask: Ask, options: tuple[str, ...]) -> None:
    answer = ask("experiment=separability", *FEW, *options)
    assert answer.disagreements == []
    assert len(answer.checks) == 4
    assert len(answer.tables["cases"]) == 7
    assert len(answer.tables["distances"]) == 3 * (1 if "study.points" in str(options) else 3)
    assert set(answer.figures) == {"pairs", "fractions"}


@pytest.mark.parametrize("shift", [1.25, 3.0])
def test_squares_have_the_known_gap_margin_and_normal(shift: float) -> None:
    shifted = SQUARE + np.array([shift, 0.0])
    near, plane = nearest_points(shifted, SQUARE), hyperplane(shifted, SQUARE)
    assert near.gap == pytest.approx(shift - 1, abs=1e-12)
    assert plane.margin == pytest.approx((shift - 1) / 2, abs=1e-12)
    assert plane.separates
    assert not near.intersect
    assert plane.w == pytest.approx([1, 0])


def test_point_inside_the_hull_is_a_convex_combination() -> None:
    inside = np.array([[0.3, 0.6], [9.0, 9.0]])
    near, plane = nearest_points(SQUARE, inside), hyperplane(SQUARE, inside)
    assert near.intersect
    assert near.weights_x.sum() == pytest.approx(1)
    assert near.weights_x @ SQUARE == pytest.approx(near.weights_y @ inside, abs=1e-12)
    assert not plane.separates


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dimension", [2, 3])
def test_touching_pairs_intersect_and_separate_when_shifted(kind: str, dimension: int) -> None:
    source = torch.Generator().manual_seed(5)
    for _ in range(5):
        x, y = touching(kind, 4, dimension, source)
        assert nearest_points(x, y).intersect
        assert not hyperplane(x, y).separates
        x[:, 0] += SHIFT
        assert not nearest_points(x, y).intersect
        assert hyperplane(x, y).separates


def test_distances_up_to_100_agree_and_larger_ones_raise_usage_error(ask: Ask) -> None:
    assert ask("experiment=separability", *FEW[:2], "study.distances=[100]").disagreements == []
    with pytest.raises(UsageError, match=r"study\.distances=\[1000.*less than or equal to 100"):
        ask("experiment=separability", "study.distances=[1000]")
    with pytest.raises(UsageError, match=r"study\.distances: the solver failed") as caught:
        nearest_points(SQUARE + 1e18, SQUARE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["study.dimension=1", "study.points=[1]", "study.distances=[-1]", "study.draws=0"])
def test_invalid_settings_raise_usage_error(ask: Ask, override: str) -> None:
    with pytest.raises(UsageError, match="greater than or equal"):
        ask("experiment=separability", override)
