"""The window in which a sigmoid unit does not shrink gradients: its formula, its ends, and its maximum."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dlhw.errors import UsageError
from dlhw.studies.sigmoid_window import bound, measured_width, slope
from support.composing import Ask


def test_maximum_equals_the_published_one(ask: Ask) -> None:
    answer = ask("experiment=sigmoid_window", "study.points=10")
    assert answer.disagreements == []
    assert answer.numbers["weight_at_widest"] == pytest.approx(6.894151, abs=1e-5)  # D1.3c: 6.9
    assert answer.numbers["widest"] == pytest.approx(0.447743, abs=1e-6)  # D1.3c: 0.45
    assert len(answer.tables["widths"]) == 10
    assert set(answer.figures) == {"widths"}


def test_slope_equals_that_of_torch_sigmoid() -> None:
    z = torch.linspace(-30, 30, 101, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(torch.sigmoid(z).sum(), z)
    torch.testing.assert_close(torch.tensor([slope(value) for value in z.tolist()], dtype=z.dtype), expected)
    assert slope(2000.0) == 0.0


@pytest.mark.parametrize("weight", [4.001, 5.0, 7.0, 40.0, -7.0])
def test_only_inputs_inside_the_window_preserve_gradients(weight: float) -> None:
    half = bound(np.array([weight]))[0] / 2
    assert abs(weight) * slope(weight * half * 0.999) > 1
    assert abs(weight) * slope(weight * half * 1.001) < 1
    assert measured_width(weight) == pytest.approx(2 * half, abs=1e-12)


def test_width_is_zero_for_weights_of_at_most_4() -> None:
    assert measured_width(4.0) == 0.0
    assert measured_width(-1.0) == 0.0
    assert bound(np.array([4.0]))[0] == 0.0


def test_weights_up_to_a_million_agree_and_larger_ones_raise_usage_error(ask: Ask) -> None:
    assert ask("experiment=sigmoid_window", "study.points=10", "study.largest_weight=1e6").disagreements == []
    with pytest.raises(UsageError, match=r"study\.largest_weight=1e.?18: .*less than or equal to 1000000"):
        ask("experiment=sigmoid_window", "study.largest_weight=1e18")
