"""The four equations for convolution and pooling: they equal autograd and the general layers by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlhw.data.digits import digits
from dlhw.data.tabular import diabetes
from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError
from dlhw.models import by_hand
from dlhw.studies.conv_backprop import (
    Parameters,
    conv_backprop,
    cost,
    deltas,
    forward,
    gradients,
    largest_of_patch,
    spread,
)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return digits(data_dir="", seed=0, mean=0.3, std=0.4, validation_fraction=0.2)


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    source = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=source, dtype=torch.float64) for shape in shapes]


def nets(side: int, kernel: int) -> tuple[Parameters, Tensor, Tensor]:
    """Return three nets with two outputs, and an image and a target for each."""
    pooled = (side - kernel + 1) // 2
    w1, b1, w3, b3, a0, y = drawn((3, kernel, kernel), (3,), (3, 2, pooled, pooled), (3, 2), (3, side, side), (3, 2))
    return Parameters(w1, b1, w3, b3), a0, y


@pytest.mark.parametrize(("side", "kernel"), [(6, 3), (7, 3), (9, 1), (5, 4)])  # 7 - 3 + 1 = 5: one row is not pooled
def test_equations_equal_autograd(side: int, kernel: int) -> None:
    p, a0, y = nets(side, kernel)
    activations = forward(p, a0)
    results = gradients(activations, deltas(p, activations, y), a0, kernel)
    leaves = [tensor.clone().requires_grad_() for tensor in p]
    for computed, expected in zip(results, torch.autograd.grad(cost(Parameters(*leaves), a0, y), leaves), strict=True):
        torch.testing.assert_close(computed, expected, rtol=0, atol=1e-13)


def test_equations_equal_the_general_layers_by_hand() -> None:
    p, a0, y = nets(6, 3)
    layers = [by_hand.convolution(0), by_hand.SIGMOID, by_hand.max_pooling(2), by_hand.FLATTEN, by_hand.DENSE]
    layers.append(by_hand.SIGMOID)
    activations = forward(p, a0)
    results = gradients(activations, deltas(p, activations, y), a0, 3)
    for n in range(3):
        weights = [(p.w1[n].view(1, 1, 3, 3), p.b1[n : n + 1]), (), (), (), (p.w3[n].flatten(1), p.b3[n]), ()]
        outputs = by_hand.activations(layers, weights, a0[n].view(1, 1, 6, 6))
        _, general = by_hand.gradients(layers, weights, outputs, outputs[-1] - y[n])
        torch.testing.assert_close(general[0][0].view(3, 3), results.w1[n], rtol=0, atol=1e-14)
        torch.testing.assert_close(general[4][0].view_as(results.w3[n]), results.w3[n], rtol=0, atol=1e-14)


def test_largest_of_patch_selects_exactly_one_unit() -> None:
    (a1,) = drawn((2, 6, 8))
    chosen = largest_of_patch(a1)
    blocks = chosen.unfold(1, 2, 2).unfold(2, 2, 2).sum((3, 4))
    assert (blocks == 1).all()
    pooled = torch.nn.functional.max_pool2d(a1, 2)
    torch.testing.assert_close(spread(pooled)[chosen], a1[chosen], rtol=0, atol=0)
    assert largest_of_patch(torch.zeros(1, 2, 2))[0].tolist() == [[True, False], [False, False]]


def test_all_checks_agree_on_digits(data: Dataset) -> None:
    answer = conv_backprop(seed=0, data=data, kernel=3, draws=5)
    assert answer.disagreements == []
    assert [row["gradient"] for row in answer.tables["gradients"]] == ["w1", "b1", "w3", "b3"]
    assert all(row["largest"] > 1e-4 for row in answer.tables["gradients"])  # zero gradients would agree, too
    assert answer.numbers == {"nets": 5, "share_of_units_reached": 0.25}
    assert set(answer.figures) == {"route"}


def test_unsuitable_data_raise_usage_error(data: Dataset) -> None:
    with pytest.raises(UsageError, match=r"study\.kernel=8: too large for 8x8 images"):
        conv_backprop(seed=0, data=data, kernel=8, draws=5)
    table = diabetes(data_dir="", seed=0, test_fraction=0.2, validation_fraction=0.2)
    with pytest.raises(UsageError, match="dataset=diabetes: must contain images of one channel"):
        conv_backprop(seed=0, data=table, kernel=3, draws=5)
