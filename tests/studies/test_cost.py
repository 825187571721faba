"""Parameters and multiply-adds of each layer equal counts by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from dlhw.data.tensors import Dataset, Split, assemble
from dlhw.models.convolutional import cnn
from dlhw.models.dense import mlp
from dlhw.storage.record import Record
from dlhw.studies.cost import cost

PLAIN: dict[str, Any] = {"activation": "ReLU", "dropout": 0.0, "batch_norm": False}


def blank_mnist() -> Dataset:
    """Return a dataset with the shape and the classes of MNIST."""
    blank = Split(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), torch.zeros(4, dtype=torch.long))
    data = assemble(
        "blank",
        blank,
        blank,
        seed=0,
        validation_fraction=0.5,
        mean=0.0,
        std=1.0,
        largest=255,
        classes=tuple("0123456789"),
    )
    return data.to("cpu", torch.float32)


def table_of(model: nn.Module, path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    answer = cost(data=blank_mnist(), model=model)
    answer.write(Record(path))
    return pd.read_csv(path / "tables" / "cost.csv", index_col="layer", dtype={"output": str}), dict(answer.numbers)


def test_cost_of_the_mlp_of_c5_2_equals_counts_by_hand(tmp_path: Path) -> None:
    table, numbers = table_of(mlp((1, 28, 28), 10, hidden=[500], **PLAIN), tmp_path)
    assert table["kind"].tolist() == ["Flatten", "Linear", "ReLU", "Linear"]
    assert table["output"].tolist() == ["784", "500", "500", "10"]
    assert table["parameters"].tolist() == [0, 784 * 500 + 500, 0, 500 * 10 + 10]
    assert table["multiply_adds"].tolist() == [0, 784 * 500, 0, 500 * 10]
    assert numbers == {"parameters": 397_510, "multiply_adds": 397_000}


def test_cost_of_the_cnn_of_c5_5_equals_counts_by_hand(tmp_path: Path) -> None:
    table, numbers = table_of(cnn((1, 28, 28), 10, channels=[16, 32], kernel=5, **PLAIN), tmp_path)
    layers = table[table["multiply_adds"] > 0]
    # each output value of a convolution takes channels in x 5 x 5 multiply-adds; padding is counted too
    by_hand = [28 * 28 * 16 * 1 * 25, 14 * 14 * 32 * 16 * 25, 7 * 7 * 32 * 10]
    assert layers["kind"].tolist() == ["Conv2d", "Conv2d", "Linear"]
    assert layers["output"].tolist() == ["16x28x28", "32x14x14", "10"]
    assert layers["parameters"].tolist() == [416, 12_832, 15_690]
    assert layers["multiply_adds"].tolist() == by_hand
    assert numbers == {"parameters": 28_938, "multiply_adds": sum(by_hand)}
    assert table["parameters"].sum() == 28_938


@pytest.mark.parametrize(
    "model",
    [
        lambda **options: mlp((1, 28, 28), 10, hidden=[20], **options),
        lambda **options: cnn((1, 28, 28), 10, channels=[4], kernel=3, **options),
    ],
    ids=["mlp", "cnn"],
)
def test_batch_norm_and_dropout_add_no_multiply_adds(model: Any, tmp_path: Path) -> None:
    _, plain = table_of(model(**PLAIN), tmp_path)
    table, full = table_of(model(activation="ReLU", dropout=0.5, batch_norm=True), tmp_path)
    width = 20 if "BatchNorm1d" in set(table["kind"]) else 4
    assert full["multiply_adds"] == plain["multiply_adds"]
    assert full["parameters"] == plain["parameters"] + 2 * width
    assert table["parameters"][table["kind"].str.startswith("BatchNorm")].tolist() == [2 * width]


def test_counting_does_not_change_the_model(tmp_path: Path) -> None:
    model = mlp((1, 28, 28), 10, hidden=[20], activation="ReLU", dropout=0.5, batch_norm=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table_of(model, tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(layer._forward_hooks for layer in model.modules())
