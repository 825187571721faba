"""Convolution: values of the sheets, equality with torch, output sizes, and invalid settings."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from dlhw.errors import UsageError
from dlhw.studies.convolution import (
    SHEET_FILTER,
    SHEET_X,
    convolve,
    multiply_adds,
    output_size,
    padding_to_keep,
    parameters,
    total_variation,
)
from support.composing import Ask

FEW = ("experiment=convolution", "study.draws=40", "study.passes=2")


def test_results_equal_the_values_of_the_sheets(ask: Ask) -> None:
    answer = ask(*FEW)
    assert answer.disagreements == []
    assert len(answer.checks) == 16
    assert answer.numbers["j"] == -0.875  # C4.1
    assert (answer.numbers["multiply_adds"], answer.numbers["parameters"]) == (5_133_600, 1_820)  # E2
    assert [row["output"] for row in answer.tables["shapes"]] == ["3x2", "6x4", "10x10", "46x62"]
    assert (len(answer.tables["y"]), len(answer.tables["random_settings"])) == (16, 40)
    assert set(answer.figures) == {"matrices", "picture"}


def test_convolution_of_the_sheet_equals_sums_of_products() -> None:
    x, kernel = torch.tensor(SHEET_X).double(), torch.tensor(SHEET_FILTER).double()
    y = convolve(x[None, None], kernel[None, None], stride=(1, 1), padding=(0, 0), dilation=(1, 1))[0, 0]
    for i in range(4):
        for j in range(4):
            assert y[i, j] == (x[i : i + 3, j : j + 3] * kernel).sum()


@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("padding", [(0, 0), (2, 1)])
@pytest.mark.parametrize("dilation", [(1, 1), (3, 2)])
def test_convolve_equals_torch(stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]) -> None:
    x, weight = torch.randn(2, 3, 9, 8).double(), torch.randn(4, 3, 3, 2).double()
    expected = functional.conv2d(x, weight, stride=stride, padding=padding, dilation=dilation)
    torch.testing.assert_close(convolve(x, weight, stride=stride, padding=padding, dilation=dilation), expected)


def test_output_size_requires_that_the_kernel_fits_once() -> None:
    assert output_size(5, 3, stride=7, padding=0, dilation=2) == 1
    with pytest.raises(ValueError, match="spanning 5 does not fit into 4"):
        output_size(2, 3, stride=1, padding=1, dilation=2)


@pytest.mark.parametrize("kernel", range(1, 6))
@pytest.mark.parametrize("stride", range(1, 5))
@pytest.mark.parametrize("dilation", [1, 2])
def test_padding_to_keep_is_the_smallest_that_keeps_the_size_or_none(kernel: int, stride: int, dilation: int) -> None:
    for size in range(1, 12):
        keeps = [
            padding
            for padding in range(40)
            if size + 2 * padding > dilation * (kernel - 1)
            and output_size(size, kernel, stride=stride, padding=padding, dilation=dilation) == size
        ]
        padding = padding_to_keep(size, kernel, stride=stride, dilation=dilation)
        assert padding == (keeps[0] if keeps else None)


def test_parameters_and_multiply_adds_equal_the_values_of_the_sheets() -> None:
    assert parameters((4, 4), 1, 1, bias=False) == 16  # C4.1
    assert parameters((3, 3), 10, 20, bias=True) == 1820  # E2.d
    assert multiply_adds((46, 62, 20), (3, 3), 10) == 5_133_600  # E2.c


def test_total_variation_of_a_step_edge() -> None:
    assert total_variation(torch.tensor([[0.0, 3.0], [0.0, 3.0]])) == 6.0


def test_other_matrices_are_not_compared_with_the_values_of_the_sheets(ask: Ask) -> None:
    answer = ask(*FEW, "study.x=[[1,2,3],[4,5,6]]", "study.filter=[[1,-1]]", "study.stride=[1,2]", "study.padding=1")
    assert answer.disagreements == []
    assert "j" not in answer.numbers
    assert not any("C4.1" in check.what and "j," in check.what for check in answer.checks)
    # padding surrounds x with zeros: the row [0 1 2 3 0] gives the pairs (0, 1) and (2, 3), two apart
    assert [row["value"] for row in answer.tables["y"]] == [0, 0, -1, -1, -4, -1, 0, 0]


def test_other_sizes_are_compared_only_with_torch(ask: Ask) -> None:
    answer = ask(*FEW, "study.map_size=[28,28]", "study.layer_input=[8,9,2]", "study.layer_kernel=[2,3,2,5]")
    assert answer.disagreements == []
    assert answer.numbers["multiply_adds"] == 7 * 7 * 5 * 2 * 3 * 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study.x=[[1,2],[3]]", "rows have"),
        ("study.x=[[1,2],[3,4]]", "does not fit into 2"),
        ("study.map_filter=[7,1]", "does not fit into 6"),
        ("study.layer_kernel=[3,3,4,20]", "must be layer_input's, 10"),
        ("study.layer_kernel=[49,3,10,20]", "does not fit into 48"),
        ("study.stride=0", "greater than or equal to 1"),
        ("study.x=sheets", "sheet"),
        ("study.picture=cat.jpg", "china.jpg"),
    ],
)
def test_invalid_settings_raise_usage_error(ask: Ask, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ask(*FEW, override)
