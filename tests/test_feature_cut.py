"""Cutting a model after its frozen part: the position of the cut, equality with the model, unsupported models."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dlhw.models.convolutional import cnn
from dlhw.models.dropout import Dropout
from dlhw.training.features import cut
from dlhw.training.finetuning import freeze, frozen_modules


def small_cnn(**changed: Any) -> nn.Sequential:
    options: dict[str, Any] = {"hidden": [6], "activation": "ReLU", "dropout": 0.0, "batch_norm": False}
    return cnn((3, 8, 8), 5, channels=[4, 5], kernel=3, **(options | changed))


class Block(nn.Module):
    """A residual block: a convolution, batch norm, and the input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.conv(x)) + x)


class Residual(nn.Module):
    """A small residual network: a stem, three blocks, dropout and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.Sequential(Block(), Block(), Block())
        self.dropout = Dropout(0.5)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(functional.relu(self.stem(x)))
        return self.fc(self.dropout(torch.flatten(x.mean((2, 3)), 1)))


class TwoBranches(nn.Module):
    """Two layers with the same input. The head follows the first one, and the output of the second one is added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.first(x)) + self.second(x)


class ValueDependent(nn.Module):
    """A branch depends on the values, which torch.fx does not support."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.fc(x if x.sum() > 0 else -x)


class FunctionalDropout(nn.Module):
    """Dropout as a function: in training mode only, or in both modes."""

    def __init__(self, *, training_only: bool) -> None:
        super().__init__()
        self.body, self.fc, self.training_only = nn.Linear(4, 30), nn.Linear(30, 2), training_only

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.body(x))
        return self.fc(functional.dropout(x, 0.5, self.training) if self.training_only else functional.dropout(x))


def prepared(model: nn.Module, *, training: bool) -> nn.Module:
    """Set the modes as the training loop does, and equal keys of the dropout masks; return the model."""
    model.train(training)
    for module in frozen_modules(model):
        module.eval()
    for layer in model.modules():
        if isinstance(layer, Dropout):
            layer.key.fill_(7)
    return model


WEIGHTS = ("weight", "bias")
# name: a function that builds the model, the trained parameters, and all parameters after the cut
CUTS: dict[str, tuple[Callable[[], nn.Module], Any, set[str]]] = {
    "cnn, head": (small_cnn, "head", {"9.weight", "9.bias"}),
    "cnn, two dense layers": (small_cnn, ["7.*", "9.*"], {"7.weight", "7.bias", "9.weight", "9.bias"}),
    "dropout before the head": (lambda: small_cnn(dropout=0.5), "head", {"10.weight", "10.bias"}),
    "frozen layers after a trained one": (small_cnn, ["3.*"], {f"{i}.{kind}" for i in (3, 7, 9) for kind in WEIGHTS}),
    "trained batch norm in the middle": (
        lambda: small_cnn(batch_norm=True),
        ["5.*"],
        {f"{i}.{kind}" for i in (5, 9, 11) for kind in WEIGHTS},
    ),
    "residual, head": (Residual, "head", {"fc.weight", "fc.bias"}),
    "residual, last block": (
        Residual,
        ["layers.2.*", "fc.*"],
        {f"{name}.{kind}" for name in ("layers.2.conv", "layers.2.norm", "fc") for kind in WEIGHTS},
    ),
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", CUTS)
def test_the_rest_applied_to_the_frozen_part_equals_the_model(name: str, training: bool) -> None:
    build, trains, parameters_of_rest = CUTS[name]
    torch.manual_seed(0)
    model = build().double()
    freeze(model, trains)
    x = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    parts = cut(model)
    assert parts is not None
    assert {name for name, _ in parts.rest.named_parameters()} == parameters_of_rest
    assert {id(tensor) for tensor in parts.rest.parameters()} <= {id(tensor) for tensor in model.parameters()}
    assert not any(parameter.requires_grad for parameter in parts.frozen.parameters())
    frozen_output = parts.frozen(x)
    assert torch.equal(parts.frozen(x), frozen_output)
    expected_output = prepared(model, training=training)(x).clone()
    output = prepared(parts.rest, training=training)(frozen_output)
    torch.testing.assert_close(output, expected_output, rtol=1e-12, atol=1e-12)


def test_a_model_is_cut_directly_before_dropout() -> None:
    model = small_cnn(dropout=0.5)
    freeze(model, "head")
    parts = cut(model)
    assert parts is not None
    assert parts.frozen(torch.rand(2, 3, 8, 8)).shape == (2, 6)
    assert any(isinstance(layer, Dropout) for layer in parts.rest.modules())
    assert not any(isinstance(layer, Dropout) for layer in parts.frozen.modules())


@pytest.mark.parametrize("model", [TwoBranches(), ValueDependent()])
def test_a_model_that_cannot_be_cut_keeps_its_modes(model: nn.Module) -> None:
    model.fc.eval()
    freeze(model, ["fc.*"])
    assert cut(model) is None
    assert [layer.training for layer in model.modules()] == [True] * (len(list(model.modules())) - 1) + [False]


@pytest.mark.parametrize(
    ("model", "trains"),
    [
        (small_cnn(), "all"),
        (small_cnn(), ["0.*"]),
        (TwoBranches(), ["fc.*"]),
        (Residual(), ["layers.1.norm.*"]),
    ],
    ids=["everything is trained", "the first layer is trained", "two layers cross", "a skip connection crosses"],
)
def test_a_model_is_not_cut_unless_exactly_one_computed_tensor_crosses(model: nn.Module, trains: Any) -> None:
    freeze(model, trains)
    assert cut(model) is None


@pytest.mark.parametrize(
    "model", [ValueDependent(), FunctionalDropout(training_only=True)], ids=["by values", "by mode"]
)
def test_a_model_that_branches_by_value_or_mode_is_not_cut_and_the_reason_is_logged(
    model: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    freeze(model, "head")
    with caplog.at_level(logging.INFO, "dlhw"):
        assert cut(model) is None
    (message,) = caplog.messages
    assert message.startswith(f"cannot separate the frozen part of {type(model).__name__} (")
    assert message.endswith("); it is computed in every epoch")
    assert "\n" not in message


def test_dropout_in_both_modes_is_not_in_the_frozen_part() -> None:
    model = FunctionalDropout(training_only=False)
    freeze(model, "head")
    parts = cut(model)
    assert parts is not None
    x = torch.rand(3, 4)
    assert torch.equal(parts.frozen(x), functional.relu(model.body(x)))
    assert (parts.rest(torch.ones(50, 30)).std(0) > 0).all()
