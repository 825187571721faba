"""Dense and convolutional models: parameters, layers, shapes, dropout, invalid options, modes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import nn

from dlhw.errors import UsageError
from dlhw.models.convolutional import cnn
from dlhw.models.dense import ActivationName, mlp
from dlhw.models.dropout import Dropout, hashed
from dlhw.models.modes import evaluating

DIGITS, MNIST = (1, 8, 8), (1, 28, 28)
PLAIN: dict[str, Any] = {"activation": "ReLU", "dropout": 0.0, "batch_norm": False}
FULL: dict[str, Any] = {"activation": "Tanh", "dropout": 0.25, "batch_norm": True}


def number_of_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def layer_names(model: nn.Sequential) -> list[str]:
    return [type(layer).__name__ for layer in model]


def logits_shape(model: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(model.eval()(torch.zeros(3, *shape)).shape)


# The models of the sheets


def test_mlp_of_c5_2_has_397510_parameters() -> None:
    assert 784 * 500 + 500 + 500 * 10 + 10 == 397_510
    assert number_of_parameters(mlp(MNIST, 10, hidden=[500], **PLAIN)) == 397_510


def test_cnn_of_c5_5_has_28938_parameters() -> None:
    assert (1 * 16 * 25 + 16) + (16 * 32 * 25 + 32) + (7 * 7 * 32 * 10 + 10) == 28_938
    assert number_of_parameters(cnn(MNIST, 10, channels=[16, 32], kernel=5, **PLAIN)) == 28_938


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


def test_mlp_has_its_layers_in_order() -> None:
    block = ["Linear", "BatchNorm1d", "Tanh", "Dropout"]
    assert layer_names(mlp(DIGITS, 10, hidden=[5, 4], **FULL)) == ["Flatten", *block, *block, "Linear"]


def test_cnn_has_its_layers_in_order() -> None:
    block = ["Conv2d", "BatchNorm2d", "Tanh", "MaxPool2d"]
    assert layer_names(cnn(DIGITS, 10, channels=[5, 4], kernel=3, **FULL)) == [
        *block,
        *block,
        "Flatten",
        "Dropout",
        "Linear",
    ]


def test_mlp_without_batch_norm_and_dropout_has_no_such_layers() -> None:
    assert layer_names(mlp(DIGITS, 10, hidden=[5], **PLAIN)) == ["Flatten", "Linear", "ReLU", "Linear"]


def test_cnn_without_batch_norm_and_dropout_has_no_such_layers() -> None:
    model = cnn(DIGITS, 10, channels=[5], kernel=3, **PLAIN)
    assert layer_names(model) == ["Conv2d", "ReLU", "MaxPool2d", "Flatten", "Linear"]


@pytest.mark.parametrize(
    "model",
    [mlp(DIGITS, 10, hidden=[5, 4], **FULL), cnn(DIGITS, 10, channels=[5], kernel=3, **FULL)],
    ids=["mlp", "cnn"],
)
def test_dropout_layers_have_the_configured_rate(model: nn.Sequential) -> None:
    assert {float(layer.rate) for layer in model if isinstance(layer, Dropout)} == {0.25}


# Dropout


def split_mix_64(key: int, index: int) -> int:
    """Return one number of the generator SplitMix64, computed with unsigned integers as in its publication."""
    z = ((index + key) * 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


@pytest.mark.parametrize("key", [0, 1, 2**62 + 12345, 2**63 - 1])
def test_dropout_hashes_with_split_mix_64(key: int) -> None:
    assert [number % 2**64 for number in hashed(50, torch.tensor(key)).tolist()] == [
        split_mix_64(key, index) for index in range(50)
    ]


def dropout_outputs(rate: float, *, key: int, passes: int = 1) -> list[torch.Tensor]:
    layer = Dropout(rate).double().train()
    layer.key.fill_(key)
    return [layer(torch.ones(400, 500, dtype=torch.float64)) for _ in range(passes)]


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.5, 0.9])
def test_dropout_drops_a_share_of_rate_and_scales_the_other_values(rate: float) -> None:
    (values,) = dropout_outputs(rate, key=7)
    deviation = (rate * (1 - rate) / values.numel()) ** 0.5
    assert float((values == 0).double().mean()) == pytest.approx(rate, abs=5 * deviation)
    assert values.unique().tolist() == pytest.approx([0, 1 / (1 - rate)], rel=1e-15)


def test_dropout_masks_of_different_passes_and_keys_are_independent() -> None:
    """Two independent masks both drop a value with probability rate^2."""
    one, two = dropout_outputs(0.3, key=1, passes=2)
    (other,) = dropout_outputs(0.3, key=2)
    for mask in (two, other, one.roll(1, 0), one.roll(1, 1)):
        both = float(((one == 0) & (mask == 0)).double().mean())
        assert both == pytest.approx(0.09, abs=5 * (0.09 * 0.91 / one.numel()) ** 0.5)


def test_dropout_at_rate_zero_or_in_evaluation_changes_nothing() -> None:
    x = torch.randn(5, 7)
    assert torch.equal(Dropout(0.0).train()(x), x)
    assert torch.equal(Dropout(0.5).eval()(x), x)


@pytest.mark.parametrize("name", get_args(ActivationName))
@pytest.mark.parametrize(
    "build",
    [
        lambda **options: mlp(DIGITS, 10, hidden=[5], **options),
        lambda **options: cnn(DIGITS, 10, channels=[5], kernel=3, **options),
    ],
    ids=["mlp", "cnn"],
)
def test_the_activation_is_chosen_by_name(build: Callable[..., nn.Sequential], name: str) -> None:
    assert layer_names(build(activation=name, dropout=0.0, batch_norm=False)).count(name) == 1


def test_mlp_without_hidden_layers_is_logistic_regression() -> None:
    torch.manual_seed(0)
    model = mlp(DIGITS, 10, hidden=[], **FULL)
    x = torch.randn(6, *DIGITS)
    assert layer_names(model) == ["Flatten", "Linear"]
    assert torch.equal(model(x), nn.functional.linear(x.reshape(6, 64), model[1].weight, model[1].bias))


# Invalid options


@pytest.mark.parametrize("kernel", [2, 4])
def test_an_even_kernel_is_an_error(kernel: int) -> None:
    with pytest.raises(UsageError, match=rf"^model\.kernel={kernel}: must be odd"):
        cnn(MNIST, 10, channels=[4], kernel=kernel, **PLAIN)


@pytest.mark.parametrize(("shape", "deepest"), [(DIGITS, 3), (MNIST, 4), ((1, 28, 5), 2)], ids=str)
def test_too_many_pooling_layers_are_an_error(shape: tuple[int, ...], deepest: int) -> None:
    assert logits_shape(cnn(shape, 10, channels=[2] * deepest, kernel=3, **PLAIN), shape) == (3, 10)
    with pytest.raises(UsageError, match=rf"too many pooling layers for {shape[1]}x{shape[2]}"):
        cnn(shape, 10, channels=[2] * (deepest + 1), kernel=3, **PLAIN)


def test_cnn_of_samples_that_are_not_images_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"needs images .* use model=mlp$"):
        cnn((64,), 10, channels=[4], kernel=3, **PLAIN)


# Hidden layers of a convolutional network


def test_cnn_with_hidden_layers_has_its_layers_in_order() -> None:
    model = cnn(
        (3, 32, 32), 2, channels=[4, 5], kernel=3, hidden=[7, 6], activation="Tanh", dropout=0.5, batch_norm=True
    )
    block = ["Conv2d", "BatchNorm2d", "Tanh", "MaxPool2d"]
    assert layer_names(model) == [*block, *block, "Flatten", "Linear", "Tanh", "Linear", "Tanh", "Dropout", "Linear"]
    dense = [layer for layer in model if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in dense] == [(5 * 8 * 8, 7), (7, 6), (6, 2)]
    assert logits_shape(model, (3, 32, 32)) == (3, 2)


def test_cnn_has_no_hidden_layers_by_default() -> None:
    options = {"channels": [4], "kernel": 3, **PLAIN}
    assert layer_names(cnn(DIGITS, 10, hidden=[], **options)) == layer_names(cnn(DIGITS, 10, **options))
    assert layer_names(cnn(DIGITS, 10, **options)) == ["Conv2d", "ReLU", "MaxPool2d", "Flatten", "Linear"]


def test_cnn_of_a5_ii_has_3_309_090_parameters() -> None:
    convolutions = sum(9 * inputs * outputs + outputs for inputs, outputs in [(3, 16), (16, 32), (32, 64), (64, 128)])
    expected = convolutions + (128 * 14 * 14 * 128 + 128) + (128 * 2 + 2)
    model = cnn((3, 224, 224), 2, channels=[16, 32, 64, 128], kernel=3, hidden=[128], **PLAIN)
    assert number_of_parameters(model) == expected == 3_309_090


# Modes


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_evaluating_restores_the_modes_after_an_error() -> None:
    model = mlp(DIGITS, 10, hidden=[5, 4], **FULL).train()
    model[2].eval()  # a frozen batch norm
    before = modes(model)
    assert len(set(before)) == 2
    with contextlib.suppress(RuntimeError), evaluating(model):
        assert not any(modes(model))
        raise RuntimeError
    assert modes(model) == before
