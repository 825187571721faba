"""Models are the sheets' models: parameters counted by hand, layers in their order, shapes that fit the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import nn

from dlhw import UsageError
from dlhw.models.convolutional import cnn
from dlhw.models.dense import ActivationName, mlp

DIGITS, MNIST = (1, 8, 8), (1, 28, 28)
PLAIN: dict[str, Any] = {"activation": "ReLU", "dropout": 0.0, "batch_norm": False}
FULL: dict[str, Any] = {"activation": "Tanh", "dropout": 0.25, "batch_norm": True}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def kinds(model: nn.Sequential) -> list[str]:
    return [type(layer).__name__ for layer in model]


def logits_shape(model: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(model.eval()(torch.zeros(3, *shape)).shape)


# The sheets' own


def test_mlp_of_c5_2_has_397510_parameters() -> None:
    assert 784 * 500 + 500 + 500 * 10 + 10 == 397_510
    assert parameters(mlp(MNIST, 10, hidden=[500], **PLAIN)) == 397_510


def test_cnn_of_c5_5_has_28938_parameters() -> None:
    assert (1 * 16 * 25 + 16) + (16 * 32 * 25 + 32) + (7 * 7 * 32 * 10 + 10) == 28_938
    assert parameters(cnn(MNIST, 10, channels=[16, 32], kernel=5, **PLAIN)) == 28_938


# Shapes


@pytest.mark.parametrize("options", [PLAIN, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("hidden", [[], [7], [7, 5, 6]], ids=str)
@pytest.mark.parametrize("shape", [DIGITS, MNIST, (3, 4, 5), (6,)], ids=str)
def test_mlp_maps_samples_to_logits(shape: tuple[int, ...], hidden: list[int], options: dict[str, Any]) -> None:
    assert logits_shape(mlp(shape, 10, hidden=hidden, **options), shape) == (3, 10)


@pytest.mark.parametrize("options", [PLAIN, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("shape", [DIGITS, MNIST, (3, 9, 4)], ids=str)
def test_cnn_maps_samples_to_logits(shape: tuple[int, ...], kernel: int, options: dict[str, Any]) -> None:
    model = cnn(shape, 7, channels=[4, 6], kernel=kernel, **options)
    assert logits_shape(model, shape) == (3, 7)


def test_convolutions_keep_the_size_and_poolings_halve_it() -> None:
    sizes = []
    model = cnn(MNIST, 10, channels=[16, 32], kernel=5, **PLAIN)
    for layer in model:
        layer.register_forward_hook(lambda layer, inputs, output: sizes.append(tuple(output.shape[1:])))
    model(torch.zeros(1, *MNIST))
    first, second = [(16, 28, 28)] * 2 + [(16, 14, 14)], [(32, 14, 14)] * 2 + [(32, 7, 7)]
    assert sizes == [*first, *second, (1568,), (10,)]


def test_width_multiplies_the_channels() -> None:
    wide = cnn(DIGITS, 10, channels=[3, 5], kernel=3, width=2, **PLAIN)
    assert [tuple(layer.weight.shape) for layer in wide if isinstance(layer, nn.Conv2d)] == [
        (6, 1, 3, 3),
        (10, 6, 3, 3),
    ]


# Layers


def test_mlp_layers_in_order() -> None:
    block = ["Linear", "BatchNorm1d", "Tanh", "Dropout"]
    assert kinds(mlp(DIGITS, 10, hidden=[5, 4], **FULL)) == ["Flatten", *block, *block, "Linear"]


def test_cnn_layers_in_order() -> None:
    block = ["Conv2d", "BatchNorm2d", "Tanh", "MaxPool2d"]
    assert kinds(cnn(DIGITS, 10, channels=[5, 4], kernel=3, **FULL)) == [
        *block,
        *block,
        "Flatten",
        "Dropout",
        "Linear",
    ]


def test_mlp_without_extras_has_none() -> None:
    assert kinds(mlp(DIGITS, 10, hidden=[5], **PLAIN)) == ["Flatten", "Linear", "ReLU", "Linear"]


def test_cnn_without_extras_has_none() -> None:
    model = cnn(DIGITS, 10, channels=[5], kernel=3, **PLAIN)
    assert kinds(model) == ["Conv2d", "ReLU", "MaxPool2d", "Flatten", "Linear"]


@pytest.mark.parametrize(
    "model",
    [mlp(DIGITS, 10, hidden=[5, 4], **FULL), cnn(DIGITS, 10, channels=[5], kernel=3, **FULL)],
    ids=["mlp", "cnn"],
)
def test_dropout_has_its_probability(model: nn.Sequential) -> None:
    assert {layer.p for layer in model if isinstance(layer, nn.Dropout)} == {0.25}


@pytest.mark.parametrize("name", get_args(ActivationName))
@pytest.mark.parametrize(
    "build",
    [
        lambda **options: mlp(DIGITS, 10, hidden=[5], **options),
        lambda **options: cnn(DIGITS, 10, channels=[5], kernel=3, **options),
    ],
    ids=["mlp", "cnn"],
)
def test_activations_by_name(build: Callable[..., nn.Sequential], name: str) -> None:
    assert kinds(build(activation=name, dropout=0.0, batch_norm=False)).count(name) == 1


def test_mlp_without_hidden_layers_is_logistic_regression() -> None:
    torch.manual_seed(0)
    model = mlp(DIGITS, 10, hidden=[], **FULL)
    x = torch.randn(6, *DIGITS)
    assert kinds(model) == ["Flatten", "Linear"]
    assert torch.equal(model(x), nn.functional.linear(x.reshape(6, 64), model[1].weight, model[1].bias))


# What cannot be built


@pytest.mark.parametrize("kernel", [2, 4])
def test_cnn_refuses_even_kernels(kernel: int) -> None:
    with pytest.raises(UsageError, match=rf"^model\.kernel={kernel}: must be odd"):
        cnn(MNIST, 10, channels=[4], kernel=kernel, **PLAIN)


@pytest.mark.parametrize(("shape", "most"), [(DIGITS, 3), (MNIST, 4), ((1, 28, 5), 2)], ids=str)
def test_cnn_refuses_more_poolings_than_the_image_has(shape: tuple[int, ...], most: int) -> None:
    assert logits_shape(cnn(shape, 10, channels=[2] * most, kernel=3, **PLAIN), shape) == (3, 10)
    with pytest.raises(UsageError, match=rf"poolings leave nothing of {shape[1]}x{shape[2]}"):
        cnn(shape, 10, channels=[2] * (most + 1), kernel=3, **PLAIN)


def test_cnn_refuses_samples_that_are_no_images() -> None:
    with pytest.raises(UsageError, match=r"needs images .* use model=mlp$"):
        cnn((64,), 10, channels=[4], kernel=3, **PLAIN)
