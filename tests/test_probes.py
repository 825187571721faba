"""The probe ``layers``: its rows equal a plain computation, and it does not change the model or the data."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from dlhw.data.tensors import Dataset, Split, assemble
from dlhw.models.convolutional import cnn
from dlhw.models.dense import ActivationName, mlp
from dlhw.training.probes import layers

COUNT = 40


@pytest.fixture
def data() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (COUNT, 1, 4, 4), generator=generator, dtype=torch.uint8)
    split = Split(x, torch.randint(5, (COUNT,), generator=generator))
    data = assemble(
        "random",
        split,
        split,
        seed=0,
        validation_fraction=0.25,
        mean=0.5,
        std=0.3,
        largest=255,
        classes=tuple("abcde"),
    )
    return data.to("cpu", torch.float64)


@pytest.fixture
def model(data: Dataset) -> nn.Module:
    """A network with dropout and batch norm, whose running statistics differ from their initial values."""
    torch.manual_seed(0)
    net = mlp(data.shape, 5, hidden=[6, 7], activation="Tanh", dropout=0.5, batch_norm=True).double()
    net(data.normalize(data.train.x))
    return net


COLUMNS = [
    "layer",
    "name",
    "activation_mean",
    "activation_std",
    "saturated_percent",
    "activation_gradient_norm",
    "weight_norm",
    "weight_gradient_norm",
]


def dense(
    activation: ActivationName, *, hidden: tuple[int, ...] = (6, 7), batch_norm: bool = False, dropout: float = 0.0
) -> nn.Sequential:
    return mlp(
        (1, 4, 4), 5, hidden=list(hidden), activation=activation, dropout=dropout, batch_norm=batch_norm
    ).double()


def convolutional(*, batch_norm: bool = False) -> nn.Sequential:
    options = {"channels": [3, 4], "kernel": 3, "activation": "ReLU", "dropout": 0.5, "batch_norm": batch_norm}
    return cnn((1, 4, 4), 5, **options).double()


def test_rows_have_the_expected_layers_and_columns(model: nn.Module, data: Dataset) -> None:
    rows = layers(model, data, samples=8)
    assert [(row["layer"], row["name"]) for row in rows] == [(1, "1"), (2, "5"), (3, "9")]
    assert all(list(row) == COLUMNS for row in rows)
    net = convolutional(batch_norm=True)
    assert [row["name"] for row in layers(net, data, samples=8)] == ["0", "4", "10"]


NETS: dict[str, tuple[Callable[[], nn.Sequential], list[int]]] = {
    "mlp": (lambda: dense("Tanh", batch_norm=True, dropout=0.5), [3, 7, 9]),
    "mlp without extras": (lambda: dense("Tanh"), [2, 4, 5]),
    "cnn": (convolutional, [1, 4, 8]),
    "cnn with batch norm": (lambda: convolutional(batch_norm=True), [2, 6, 10]),
}
"""Networks of three layers, and the index of the output of each layer, after its norm and activation."""


@pytest.mark.parametrize("samples", [1, 8, 30, 1000])
@pytest.mark.parametrize("kind", NETS)
def test_rows_equal_a_plain_computation(data: Dataset, kind: str, samples: int) -> None:
    torch.manual_seed(1)
    build, ends = NETS[kind]
    net = build()
    net(data.normalize(data.train.x))
    rows = layers(net, data, samples=samples)
    net.eval()
    x, outputs = data.normalize(data.train.x)[:samples], []
    for index, part in enumerate(net):
        x = part(x)
        if index in ends:
            x.retain_grad()
            outputs.append(x)
    nn.functional.cross_entropy(x, data.train.y[:samples]).backward()
    weights = [part.weight for part in net if isinstance(part, nn.Linear | nn.Conv2d)]
    for row, output, weight in zip(rows, outputs, weights, strict=True):
        values = output.detach()
        expected = {
            "activation_mean": values.mean(),
            "activation_std": (values - values.mean()).square().mean().sqrt(),
            "activation_gradient_norm": output.grad.square().sum().sqrt(),
            "weight_norm": weight.detach().square().sum().sqrt(),
            "weight_gradient_norm": weight.grad.square().sum().sqrt(),
        }
        assert {name: row[name] for name in expected} == pytest.approx(
            {name: value.item() for name, value in expected.items()}, rel=1e-9, abs=1e-15
        )


def saturated_percent(data: Dataset, activation: ActivationName, biases: list[float]) -> float:
    """Return the percentage for a layer whose activations have these constants as inputs."""
    net = dense(activation, hidden=(len(biases),))
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].bias.copy_(torch.tensor(biases))
    first, last = layers(net, data, samples=8)
    assert math.isnan(last["saturated_percent"])  # logits
    return float(first["saturated_percent"])


@pytest.mark.parametrize(
    ("activation", "biases", "percent"),
    [
        ("Tanh", [math.atanh(0.9901), -math.atanh(0.9901), math.atanh(0.9899), 0.0], 50),
        ("Sigmoid", [math.log(0.0099 / 0.9901), math.log(0.9901 / 0.0099), math.log(0.0101 / 0.9899), 0.0, 1.0], 40),
        ("ReLU", [-1.0, 0.0, 1e-9, 1.0], 50),
        ("ELU", [-50.0, 50.0], math.nan),
    ],
)
def test_saturated_percent_counts_units_beyond_the_limits(
    data: Dataset, activation: ActivationName, biases: list[float], percent: float
) -> None:
    assert saturated_percent(data, activation, biases) == pytest.approx(percent, nan_ok=True)


def test_repeated_probe_gives_the_same_rows(model: nn.Module, data: Dataset) -> None:
    assert layers(model, data, samples=8) == layers(model, data, samples=8)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_probe_preserves_the_training_mode(model: nn.Module, data: Dataset, training: bool) -> None:
    model.train(training)
    layers(model, data, samples=8)
    assert {layer.training for layer in model.modules()} == {training}


def test_probe_leaves_no_hooks(model: nn.Module, data: Dataset) -> None:
    layers(model, data, samples=8)
    assert not any(layer._forward_hooks for layer in model.modules())


def test_probe_preserves_weights_and_buffers(model: nn.Module, data: Dataset) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layers(model, data, samples=8)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_probe_preserves_the_random_state(model: nn.Module, data: Dataset) -> None:
    before = torch.get_rng_state()
    layers(model, data, samples=8)
    assert torch.equal(torch.get_rng_state(), before)


def test_probe_preserves_gradients(model: nn.Module, data: Dataset) -> None:
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = None if number == 0 else torch.full_like(parameter, number)
    layers(model, data, samples=8)
    first, *others = model.parameters()
    assert first.grad is None
    for number, parameter in enumerate(others, 1):
        assert parameter.grad.unique().tolist() == [number]


def test_probe_preserves_the_data(model: nn.Module, data: Dataset) -> None:
    before = data.train.x.clone()
    layers(model, data, samples=8)
    assert torch.equal(data.train.x, before)
