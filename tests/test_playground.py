"""The playground: its points, its network, and its update rule, against an independent implementation in plain Python.

``Page`` is written from a description of the web page: lists of numbers, one sample at a time, derivatives by hand.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dlhw.cli.assembly import assemble
from dlhw.data.batches import Batches
from dlhw.data.playground import CLASSIFICATION, REGRESSION, playground
from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError
from dlhw.models import playground as network
from dlhw.storage.record import Record
from dlhw.training.loop import Training
from dlhw.training.objective import half_mse, truncated
from dlhw.training.run import TrainingRun
from dlhw.training.variants import Ensemble, Single
from support.composing import compose
from support.datasets import options

KINDS = [*CLASSIFICATION, *REGRESSION]


def drawn(**changed: Any) -> Dataset:
    """Return the points of the config file, with some options ``changed``."""
    return playground(data_dir="", **options("playground", **changed))


def everything(data: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all points (n, 2) and targets (n,), in the order in which they were drawn."""
    return data.train.pool_x, data.train.pool_y


# Points


@pytest.mark.parametrize("kind", KINDS)
def test_points_are_divided_by_the_ratio_and_belong_to_one_part(kind: str) -> None:
    data = drawn(kind=kind, train_ratio=30, validation_fraction=0.2)
    n = 500 if kind in CLASSIFICATION else 1200
    sizes = [len(part) for part in data.parts.values()]
    assert sizes == [n * 3 // 10, round(0.14 * n), n - n * 3 // 10 - round(0.14 * n)]
    rows = torch.cat([part.all_rows()[0] for part in data.parts.values()])
    assert sorted(rows.tolist()) == list(range(n))
    assert (data.shape, data.outputs) == ((2,), 1)
    assert data.classes == (("-1", "+1") if kind in CLASSIFICATION else ())


@pytest.mark.parametrize("kind", KINDS)
def test_points_and_their_order_depend_on_the_seed_alone(kind: str) -> None:
    first, again, other = (drawn(kind=kind, noise=20, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.train.x, again.train.x)
    assert not torch.equal(first.train.x, other.train.x)
    assert (first.sha256 == again.sha256, first.sha256 == other.sha256) == (True, False)


def test_without_noise_the_spiral_follows_its_formula() -> None:
    x, y = everything(drawn(kind="spiral"))
    for number, (point, target) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
        i, shift = number % 250, 0.0 if number < 250 else math.pi
        radius, angle = i / 250 * 5, 1.75 * i / 250 * 2 * math.pi + shift
        assert point == pytest.approx([radius * math.sin(angle), radius * math.cos(angle)], abs=1e-12)
        assert target == (1.0 if number < 250 else -1.0)


def test_without_noise_the_targets_follow_from_the_points() -> None:
    """For the circle and xor, whose labels the page computes from the points; and for the two regression problems."""
    x, y = everything(drawn(kind="circle"))
    radius = x.norm(dim=1)
    assert torch.equal(y > 0, radius < 2.5)
    assert ((radius < 2.5) | ((radius >= 3.5) & (radius < 5))).all()
    x, y = everything(drawn(kind="xor"))
    assert torch.equal(y > 0, x[:, 0] * x[:, 1] > 0)
    assert (x.abs().min(), x.abs().max()) >= (torch.tensor(0.3), torch.tensor(5.0))
    assert x.abs().max() <= 5.3
    x, y = everything(drawn(kind="reg_plane"))
    torch.testing.assert_close(y, (x[:, 0] + x[:, 1]) / 10)
    x, y = everything(drawn(kind="reg_gauss", points=5000))
    centres = [(-4, 2.5, 1), (0, 2.5, -1), (4, 2.5, 1), (-4, -2.5, -1), (0, -2.5, 1), (4, -2.5, -1)]
    for point, target in zip(x.tolist(), y.tolist(), strict=True):
        values = [sign * max(0.0, min(1.0, 1 - math.dist(point, (a, b)) / 2)) for a, b, sign in centres]
        assert target == pytest.approx(max(values, key=abs), abs=1e-12)


def test_gauss_has_the_documented_variance() -> None:
    """The standard error of a variance of n normal numbers is v sqrt(2 / n)."""
    n = 40_000
    for noise, variance in ((0, 0.5), (50, 4.0)):
        x, y = everything(drawn(kind="gauss", noise=noise, points=n))
        centred = x - 2 * y[:, None]
        assert abs(float(centred.mean())) < 5 * math.sqrt(variance / (2 * n))
        assert abs(float(centred.square().mean()) - variance) < 5 * variance * math.sqrt(1 / n)


@pytest.mark.parametrize(("kind", "moved"), [("circle", 0.0), ("xor", 0.0), ("spiral", 1.0), ("reg_plane", 0.0)])
def test_noise_moves_the_points_of_the_spiral_and_otherwise_the_targets(kind: str, moved: float) -> None:
    clean, noisy = (everything(drawn(kind=kind, noise=noise, points=4000)) for noise in (0, 50))
    distance = (clean[0] - noisy[0]).abs().max()
    assert bool(distance > 0) == bool(moved)
    assert distance <= 0.5 * moved
    assert torch.equal(clean[1], noisy[1]) == bool(moved)


def test_xor_targets_change_with_the_probability_that_the_noise_changes_the_sign() -> None:
    """With noise v, x + U(-5 v, 5 v) has another sign than x with probability max(0, 1/2 - |x| / (10 v))."""
    v = 0.4
    x, y = everything(drawn(kind="xor", noise=100 * v, points=100_000))
    p = (0.5 - x.abs() / (10 * v)).clamp(min=0)
    expected = p[:, 0] * (1 - p[:, 1]) + p[:, 1] * (1 - p[:, 0])
    changed = ((y > 0) != (x.prod(1) > 0)).double()
    assert abs(float(changed.mean() - expected.mean())) < 5 * math.sqrt(float((expected * (1 - expected)).sum())) / len(
        x
    )


@pytest.mark.parametrize("changed", [{"points": 10, "train_ratio": 5}, {"points": 10, "validation_fraction": 0.01}])
def test_an_empty_part_is_an_error(changed: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="leave none of the 10 points for"):
        drawn(**changed)


# Network


def test_features_are_the_documented_functions() -> None:
    point = torch.tensor([[[1.5, -0.7]]], dtype=torch.float64)
    expected = [1.5, -0.7, 2.25, 0.49, -1.05, math.sin(1.5), math.sin(-0.7)]
    assert network.Features(list(network.FEATURES))(point)[0, 0].tolist() == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("shape", "outputs", "features", "message"),
    [
        ((2,), 3, ["x"], "model=playground: needs points of shape"),
        ((1, 8, 8), 1, ["x"], "model=playground: needs points of shape"),
        ((2,), 1, ["x", "z"], r"model.features=\[x,z\]: must be all"),
        ((2,), 1, [], "must be all"),
        ((2,), 1, ["x", "y", "x"], "must be all, or a list of different names from x, y, x_squared"),
    ],
)
def test_network_for_other_data_is_an_error(shape: tuple[int, ...], outputs: int, features: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        network.playground(shape, outputs, features=features, hidden=[], activation="Tanh", output="Tanh")


# The update rule

ACTIVATIONS = {
    "Tanh": (math.tanh, lambda z: 1 - math.tanh(z) ** 2),
    "ReLU": (lambda z: max(0.0, z), lambda z: 1.0 if z > 0 else 0.0),
    "Sigmoid": (lambda z: 1 / (1 + math.exp(-z)), lambda z: math.exp(-z) / (1 + math.exp(-z)) ** 2),
    "Identity": (lambda z: z, lambda z: 1.0),
}
INPUTS = {
    "x": lambda x, y: x,
    "y": lambda x, y: y,
    "x_squared": lambda x, y: x**2,
    "y_squared": lambda x, y: y**2,
    "xy": lambda x, y: x * y,
    "sin_x": lambda x, y: math.sin(x),
    "sin_y": lambda x, y: math.sin(y),
}


class Page:
    """A network with one output, whose weights are nested lists, and the page's gradient descent."""

    def __init__(self, weights: list[Any], biases: list[Any], *, features: list[str], hidden: str, output: str) -> None:
        self.weights, self.biases, self.features = weights, biases, features
        self.functions = [ACTIVATIONS[hidden]] * (len(weights) - 1) + [ACTIVATIONS[output]]
        self.dead: set[tuple[int, int, int]] = set()

    def forward(self, point: list[float]) -> tuple[list[list[float]], list[list[float]]]:
        """Return the outputs of every layer, the inputs first, and the sums that the activations are applied to."""
        outputs, sums = [[INPUTS[name](*point) for name in self.features]], []
        for weights, biases, (function, _) in zip(self.weights, self.biases, self.functions, strict=True):
            pairs = zip(weights, biases, strict=True)
            sums.append([b + sum(w * a for w, a in zip(row, outputs[-1], strict=True)) for row, b in pairs])
            outputs.append([function(z) for z in sums[-1]])
        return outputs, sums

    def gradient(self, point: list[float], target: float) -> tuple[list[Any], list[Any]]:
        """Return the derivatives of (out - target)^2 / 2 by weights and biases."""
        outputs, sums = self.forward(point)
        by_output = [outputs[-1][0] - target]
        by_weights, by_biases = [], []
        for layer in reversed(range(len(self.weights))):
            slope = self.functions[layer][1]
            by_sum = [d * slope(z) for d, z in zip(by_output, sums[layer], strict=True)]
            by_weights.insert(0, [[d * a for a in outputs[layer]] for d in by_sum])
            by_biases.insert(0, by_sum)
            columns = zip(*self.weights[layer], strict=True)
            by_output = [sum(w * d for w, d in zip(column, by_sum, strict=True)) for column in columns]
        return by_weights, by_biases

    def update(self, batch: list[tuple[list[float], float]], *, lr: float, penalty: str, rate: float) -> None:
        """Take a step along the mean gradient; the penalty uses the sign or value of a weight before it."""
        gradients = [self.gradient(point, target) for point, target in batch]
        for layer, rows in enumerate(self.weights):
            for i, row in enumerate(rows):
                self.biases[layer][i] -= lr * sum(biases[layer][i] for _, biases in gradients) / len(batch)
                for j, w in enumerate(row):
                    if (layer, i, j) in self.dead:
                        continue
                    slope = {"none": 0.0, "l1": math.copysign(1.0, w), "l2": w}[penalty]
                    stepped = w - lr * sum(weights[layer][i][j] for weights, _ in gradients) / len(batch)
                    row[j] = stepped - lr * rate * slope
                    if penalty == "l1" and stepped * row[j] < 0:
                        row[j] = 0.0
                        self.dead.add((layer, i, j))

    def loss(self, samples: list[tuple[list[float], float]]) -> float:
        return sum((self.forward(point)[0][-1][0] - target) ** 2 / 2 for point, target in samples) / len(samples)


CASES: dict[str, dict[str, Any]] = {
    "tanh without penalty": {"kind": "xor", "features": ["x", "y"], "hidden": [4, 2]},
    "L1 kills weights": {
        "kind": "circle",
        "features": list(INPUTS),
        "hidden": [3, 3, 2],
        "penalty": "l1",
        "rate": 0.03,
        "lr": 0.1,
    },
    "L2": {"kind": "gauss", "features": ["x", "xy"], "hidden": [5], "penalty": "l2", "rate": 0.1, "noise": 30},
    "ReLU": {"kind": "spiral", "features": list(INPUTS), "hidden": [6, 4], "activation": "ReLU", "noise": 10},
    "sigmoid": {"kind": "circle", "features": ["x", "sin_y"], "hidden": [3], "activation": "Sigmoid", "lr": 1.0},
    "linear": {"kind": "xor", "features": ["x", "y"], "hidden": [3], "activation": "Identity", "noise": 20},
    "no hidden layer": {"kind": "gauss", "features": ["x", "y", "y_squared"], "hidden": []},
    "regression": {"kind": "reg_plane", "features": ["x", "y"], "hidden": [3], "output": "Identity", "noise": 5},
    "batches of 30": {"kind": "reg_gauss", "features": ["x", "y"], "hidden": [2, 2], "output": "Identity", "size": 30},
}


def overrides(
    *,
    kind: str,
    features: list[str],
    hidden: list[int],
    activation: str = "Tanh",
    output: str = "Tanh",
    penalty: str = "none",
    rate: float = 0.0,
    lr: float = 0.03,
    noise: int = 0,
    size: int = 10,
) -> list[str]:
    """Return the command line of a case. The page's L2 has half the factor of ours: it is rate / 2 times w^2."""
    return [
        *("experiment=playground", "report=none", "probe=none", "trainer.precision=fp64", "trainer.epochs=10"),
        *(f"dataset.kind={kind}", f"dataset.noise={noise}", f"trainer.batch_size={size}", f"optimizer.lr={lr}"),
        *(f"model.features=[{','.join(features)}]", f"model.hidden=[{','.join(map(str, hidden))}]"),
        *(f"model.activation={activation}", f"model.output={output}"),
        f"regularization.l1_truncated={rate if penalty == 'l1' else 0.0}",
        f"regularization.l2={rate / 2 if penalty == 'l2' else 0.0}",
    ]


@pytest.mark.parametrize("case", CASES)
def test_a_hundred_steps_equal_those_of_the_page(case: str, tmp_path: Path) -> None:
    parts = assemble(compose(*overrides(**CASES[case])))
    run = TrainingRun(Record(tmp_path), seed=0, regularization=parts.regularization)
    training = Training(
        Single(parts.model, parts.optimizer, parts.schedule),
        [run],
        parts.data,
        parts.data_loss,
        trainer=parts.trainer,
        precision=parts.precision,
    )
    layers = [layer for layer in parts.model if isinstance(layer, nn.Linear)]
    assert all(bool((layer.bias == torch.tensor(0.1)).all()) for layer in layers)
    assert 0.2 < max(float(layer.weight.detach().abs().max()) for layer in layers) <= 0.5
    page = Page(
        [layer.weight.tolist() for layer in layers],
        [layer.bias.tolist() for layer in layers],
        features=CASES[case]["features"],
        hidden=CASES[case].get("activation", "Tanh"),
        output=CASES[case].get("output", "Tanh"),
    )
    samples = list(zip(parts.data.train.x.tolist(), parts.data.train.y.tolist(), strict=True))
    settings = {"lr": CASES[case].get("lr", 0.03), "penalty": CASES[case].get("penalty", "none")}
    settings["rate"] = CASES[case].get("rate", 0.0)
    size, steps = parts.trainer.batch_size, 0
    for epoch in itertools.count(1):
        for start, (x, y) in zip(range(0, len(samples), size), training.batches(epoch), strict=True):
            page.update(samples[start : start + size], **settings)
            training.step(x, y)
            steps += 1
        if steps >= 100:
            break
    for layer, weights, biases in zip(layers, page.weights, page.biases, strict=True):
        expected = torch.tensor(weights, dtype=torch.float64), torch.tensor(biases, dtype=torch.float64)
        torch.testing.assert_close(layer.weight.detach(), expected[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(layer.bias.detach(), expected[1], rtol=0, atol=1e-12)
    loss = training.evaluate(parts.data.train)["loss"][0]
    assert loss == pytest.approx(page.loss(samples), abs=1e-12)
    if case == "L1 kills weights":
        killed = sum(int((layer.weight == 0).sum()) for layer in layers)
        assert killed == len(page.dead) > 0


def test_truncation_by_hand() -> None:
    """A weight shrinks, crosses 0 by the penalty, crosses by the gradient alone, or is 0 already."""
    before, after = torch.tensor([1.0, 0.1, 0.1, -0.1, 0.0]), torch.tensor([0.9, 0.05, -0.2, -0.05, 0.3])
    assert truncated(before, after, torch.tensor(0.1)).tolist() == pytest.approx([0.8, 0.0, -0.3, 0.0, 0.0])
    assert torch.equal(truncated(before, after, torch.tensor(0.0)), after)


def test_truncation_in_an_ensemble_equals_that_of_each_network(tmp_path: Path) -> None:
    """Also for networks with other rates, and without the penalty, whose weights that are 0 may change."""
    settings = [(0.03, 0.3, 0), (0.0, 0.3, 1), (0.01, 0.1, 2)]
    lines = [
        [*overrides(kind="xor", features=["x", "y"], hidden=[4]), f"regularization.l1_truncated={l1}",
         f"optimizer.lr={lr}", f"seed={seed}", "trainer.epochs=3"]
        for l1, lr, seed in settings
    ]  # fmt: skip
    alone = [assemble(compose(*line)) for line in lines]
    stacked = [assemble(compose(*line)) for line in lines]
    runs = [
        TrainingRun(Record(tmp_path / str(k)), seed=seed, regularization=parts.regularization)
        for k, (parts, (_, _, seed)) in enumerate(zip(stacked, settings, strict=True))
    ]
    with torch.no_grad():
        for parts in (*alone, *stacked):
            parts.model[2].weight[0] = 0.0
    ensemble = Ensemble(
        [parts.model for parts in stacked], [parts.optimizer for parts in stacked], [stacked[0].schedule] * 3
    )
    options_ = {"trainer": stacked[0].trainer, "precision": stacked[0].precision}
    together = Training(ensemble, runs, stacked[0].data, stacked[0].data_loss, **options_)
    for k, parts in enumerate(alone):
        run = TrainingRun(Record(tmp_path / f"alone{k}"), seed=0, regularization=parts.regularization)
        single = Single(parts.model, parts.optimizer, parts.schedule)
        training = Training(single, [run], stacked[0].data, parts.data_loss, **options_)
        for x, y in training.batches(1):
            training.step(x, y)
    for x, y in together.batches(1):
        together.step(x, y)
    for k, parts in enumerate(alone):
        for one, other in zip(parts.model.parameters(), ensemble.model(k).parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert bool((alone[0].model[2].weight[0] == 0).all())
    assert bool((alone[1].model[2].weight[0] != 0).all())


def test_half_mse_by_hand() -> None:
    assert half_mse(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0])) == 1.25
    assert half_mse(torch.tensor([[1.0, 3.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0]])).tolist() == [1.25, 0.0]


def test_a_fixed_order_uses_every_sample() -> None:
    """Fewer batches per epoch than the samples need are an error; by default, every epoch has the same batches."""
    small = ("experiment=playground", "dataset.points=60", "trainer.batch_size=7")
    with pytest.raises(UsageError, match=r"trainer\.steps_per_epoch: invalid with trainer\.order=fixed"):
        assemble(compose(*small, "trainer.steps_per_epoch=2"))
    data = assemble(compose(*small)).data
    batches = Batches(data, [0], size=7, steps=5, order="fixed")
    epochs = [torch.cat([x[0] for x, _ in batches(epoch)]) for epoch in (1, 2)]
    assert torch.equal(epochs[0], epochs[1])
    assert torch.equal(epochs[0], data.train.x)
