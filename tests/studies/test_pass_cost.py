"""Multiply-adds of the forward and the backward pass equal counts by hand; timings."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dlhw.errors import UsageError
from dlhw.studies.pass_cost import Net, cnn, counted, mlp, one_hidden, predicted, time_passes
from support.composing import Ask

SMALL = (
    "study.widths=[8,4]",
    "study.channels=[2]",
    "study.side=4",
    "study.inputs=6",
    "study.batch=3",
    "study.repeats=2",
)


def source() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("depth", [2, 5])
def test_counted_multiply_adds_equal_the_prediction(ask: Ask, depth: int) -> None:
    answer = ask("experiment=pass_cost", *SMALL, f"study.depth={depth}")
    assert answer.disagreements == []
    assert [check.computed for check in answer.checks] == [5, 5]
    assert [row["width"] for row in answer.tables["passes"]] == [4, 8, 4, 8, 2]
    for row in answer.tables["passes"]:
        assert row["ratio"] == pytest.approx(row["ratio_predicted"])
        assert 0 < row["forward_seconds_low"] <= row["forward_seconds"] <= row["forward_seconds_high"]
    assert set(answer.figures) == {"cost", "ratio"}


def test_multiply_adds_of_the_net_of_e1_equal_counts_by_hand() -> None:
    net = one_hidden(20, 5, 3)
    assert predicted(net.products) == (5 * 20 + 20 * 3, 5 * 20 + 2 * 20 * 3)
    assert counted(net, 7, source()) == (7 * 160, 7 * 220)


def test_multiply_adds_by_layer_of_mlp_and_cnn_equal_counts_by_hand() -> None:
    assert mlp(20, 5, 3, 2).products == [5 * 20, 20 * 20, 20 * 3]
    assert cnn(8, 4, 3, 2).products == [16 * 9 * 3 * 8, 16 * 9 * 8 * 8, 16 * 8 * 3]


def test_backward_pass_costs_twice_the_forward_pass_if_gradients_propagate() -> None:
    """The second layer also computes the gradient by its input, so that the count differs from the prediction."""
    net = Net("two", 1, lambda: nn.Sequential(nn.Linear(5, 5, bias=False), nn.Linear(5, 2, bias=False)), (5,), [10])
    assert counted(net, 1, source()) == (25 + 10, 25 + 20)
    assert predicted(net.products) != counted(net, 1, source())


def test_time_passes_returns_only_the_repeats() -> None:
    assert len(time_passes(one_hidden(4, 3, 2), 2, 4, source(), torch.device("cpu"))) == 4


@pytest.mark.parametrize("override", ["study.depth=1", "study.widths=[]", "study.repeats=1", "study.channels=[0]"])
def test_invalid_settings_raise_usage_error(ask: Ask, override: str) -> None:
    with pytest.raises(UsageError, match=override.partition("=")[0]):
        ask("experiment=pass_cost", override)
