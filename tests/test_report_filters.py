"""The filters of a convolution before and after training: their changes, and the option that selects the layer."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from dlhw import load_run
from dlhw.cli.assembly import assemble
from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError
from dlhw.storage.record import Record
from dlhw.train import run as train
from dlhw.views import report
from dlhw.views.report.filters import convolution
from support.classifiers import OPTIONS, random_pictures
from support.composing import compose


@pytest.fixture(scope="module")
def data() -> Dataset:
    return random_pictures()


def convolutions() -> nn.Module:
    """Return a network with two convolutions, the layers 0 and 2; the same weights for every call."""
    torch.manual_seed(3)
    maps = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU()]
    return nn.Sequential(*maps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)).double()


def test_filters_table_shows_known_changes(data: Dataset) -> None:
    """One filter is doubled, one negated, one unchanged, and one moved at a right angle by 0.75 of its norm."""
    model = convolutions()
    before = model[0].weight.detach().clone()
    right_angle = before[3].flip(0) * torch.tensor([1.0, 0.0, -1.0])[:, None, None]
    right_angle -= (right_angle * before[3]).sum() / before[3].square().sum() * before[3]
    right_angle *= 0.75 * before[3].norm() / right_angle.norm()
    with torch.no_grad():
        model[0].weight.copy_(torch.stack([2 * before[0], -before[1], before[2], before[3] + right_angle]))
    options = OPTIONS | {"filters": "first", "untrained": convolutions}
    answer = report.classifier(model, data, **options)
    rows = answer.tables["filters"]
    assert [row["filter"] for row in rows] == [0, 1, 2, 3]
    assert [row["norm_before"] for row in rows] == pytest.approx(before.flatten(1).norm(dim=1).tolist(), rel=1e-12)
    assert [row["relative_change"] for row in rows] == pytest.approx([1, 2, 0, 0.75], rel=1e-9)
    assert [row["cosine"] for row in rows] == pytest.approx([1, -1, 1, 0.8], rel=1e-9)
    changes = [float(str(row["norm_of_change"])) for row in rows]
    assert answer.numbers["filters_relative_change"] == pytest.approx(math.hypot(*changes) / float(before.norm()))
    most_changed = changes.index(max(changes))
    assert answer.messages[-1].startswith("filters of layer 0: 4 of shape 3x3x3; relative change ")
    assert answer.messages[-1].endswith(f" %, largest for filter {most_changed}")
    assert [axes.get_title() for axes in answer.figures["filters"].axes] == ["before", "after", "after − before"]


def test_unchanged_filters_are_noted(data: Dataset) -> None:
    answer = report.classifier(convolutions(), data, **OPTIONS | {"filters": "2", "untrained": convolutions})
    assert answer.messages[-1] == "filters of layer 2: 5 of shape 4x3x3; none changed"
    assert answer.numbers["filters_relative_change"] == 0
    assert "no filter changed" in answer.figures["filters"].texts[-1].get_text()


@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        (
            convolutions(),
            "conv1",
            "report.filters=conv1: no such convolution in the model; expected one of first, 0, 2",
        ),
        (nn.Linear(2, 3), "first", "report.filters=first: the model has no convolution; expected report.filters=null"),
    ],
)
def test_name_that_is_not_a_convolution_raises_usage_error(model: nn.Module, name: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        convolution(model, name)
    assert str(raised.value) == message


CNN_ON_DIGITS = ["model=cnn", "model.channels=[4,5]", "model.kernel=3", "dataset=digits", "trainer.device=cpu"]


def test_filters_before_training_equal_the_initial_weights(tmp_path: Path) -> None:
    cfg = compose("report=classifier", *CNN_ON_DIGITS, "report.filters=first", "trainer.epochs=1", "init=he", "seed=5")
    initial = assemble(cfg).model
    (before,) = [p.detach() for name, p in initial.named_parameters() if p.ndim == 4 and p.shape[1] == 1]
    train(cfg, Record(tmp_path))
    with (tmp_path / "tables" / "filters.csv").open() as file:
        norms = [float(row["norm_before"]) for row in csv.DictReader(file)]
    assert norms == pytest.approx(before.flatten(1).norm(dim=1).tolist(), rel=1e-6)
    assert load_run(tmp_path).summary["filters_relative_change"] > 0


def test_invalid_filters_option_raises_usage_error_before_training() -> None:
    with pytest.raises(
        UsageError, match=r"^report\.filters=conv1: no such convolution in the model; expected one of first, "
    ):
        assemble(compose("report=classifier", *CNN_ON_DIGITS, "report.filters=conv1"))
