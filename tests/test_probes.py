"""The probe's norms are autograd's, and watching leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dlhw.data.tensors import Dataset, Split, assemble
from dlhw.models.dense import mlp
from dlhw.probes import layers

COUNT = 40


@pytest.fixture
def data() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (COUNT, 1, 4, 4), generator=generator, dtype=torch.uint8)
    whole = Split(x, torch.randint(5, (COUNT,), generator=generator))
    made = assemble(
        "random",
        whole,
        whole,
        seed=0,
        validation_fraction=0.25,
        mean=0.5,
        std=0.3,
        largest=255,
        classes=tuple("abcde"),
    )
    return made.to("cpu", torch.float64)


@pytest.fixture
def model(data: Dataset) -> nn.Module:
    """With running statistics that are not those of a fresh model."""
    torch.manual_seed(0)
    net = mlp(data.shape, 5, hidden=[6, 7], activation="Tanh", dropout=0.5, batch_norm=True).double()
    net(data.normalize(data.train.x))
    return net


def test_one_row_for_each_parameter(model: nn.Module, data: Dataset) -> None:
    rows = layers(model, data, samples=8)
    assert [(row["parameter"], row["size"]) for row in rows] == [
        (name, parameter.numel()) for name, parameter in model.named_parameters()
    ]
    assert all(list(row) == ["parameter", "size", "norm", "gradient_norm"] for row in rows)


@pytest.mark.parametrize("samples", [1, 8, 30, 1000])
def test_norms_are_those_of_autograd(model: nn.Module, data: Dataset, samples: int) -> None:
    rows = layers(model, data, samples=samples)
    model.eval()
    x, y = data.normalize(data.train.x)[:samples], data.train.y[:samples]
    nn.functional.cross_entropy(model(x), y).backward()
    for row, parameter in zip(rows, model.parameters(), strict=True):
        assert row["norm"] == pytest.approx(parameter.detach().square().sum().sqrt().item(), rel=1e-12)
        assert row["gradient_norm"] == pytest.approx(parameter.grad.square().sum().sqrt().item(), rel=1e-9)


def test_watching_twice_sees_the_same(model: nn.Module, data: Dataset) -> None:
    assert layers(model, data, samples=8) == layers(model, data, samples=8)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_watching_leaves_the_mode(model: nn.Module, data: Dataset, training: bool) -> None:
    model.train(training)
    layers(model, data, samples=8)
    assert {layer.training for layer in model.modules()} == {training}


def test_watching_leaves_weights_and_buffers(model: nn.Module, data: Dataset) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layers(model, data, samples=8)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_watching_leaves_the_random_numbers(model: nn.Module, data: Dataset) -> None:
    before = torch.get_rng_state()
    layers(model, data, samples=8)
    assert torch.equal(torch.get_rng_state(), before)


def test_watching_leaves_gradients(model: nn.Module, data: Dataset) -> None:
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = None if number == 0 else torch.full_like(parameter, number)
    layers(model, data, samples=8)
    first, *others = model.parameters()
    assert first.grad is None
    for number, parameter in enumerate(others, 1):
        assert parameter.grad.unique().tolist() == [number]


def test_watching_leaves_the_data(model: nn.Module, data: Dataset) -> None:
    before = data.train.x.clone()
    layers(model, data, samples=8)
    assert torch.equal(data.train.x, before)
