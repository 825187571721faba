"""A network in the plane as numbers: its features, weights and activations, and the outputs of all its units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from dlhw.models import dense
from dlhw.models.dropout import Dropout
from dlhw.models.modes import evaluating
from dlhw.models.playground import FEATURES, FeatureName, Features

ACTIVATIONS = {repr(getattr(nn, name)()): name for name in get_args(dense.ActivationName)}
"""The activations that can be drawn, by how torch prints them, options included."""
FEATURE_LABELS: dict[FeatureName, str] = {
    "x": "x",
    "y": "y",
    "x_squared": "x²",
    "y_squared": "y²",
    "xy": "x·y",
    "sin_x": "sin x",
    "sin_y": "sin y",
}
HALF_SIDE = 6.0
"""Half a side of the square around 0 that is drawn, in the inputs of the network."""
_VALUES_AT_ONCE = 2**22


@dataclass(frozen=True, eq=False)
class Network:
    """A dense network on features of a point, with one output. Tensors are float64 on the CPU.

    Args:
        features: names of its inputs, functions of the coordinates.
        weights: (units, sources) of each dense layer; the last one is the output.
        biases: (units,) of each dense layer.
        activations: the class in ``torch.nn`` after each dense layer.
    """

    features: tuple[FeatureName, ...]
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    activations: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module) -> Network | None:
        """Return the network of a model; None unless it is a sequence of dense layers and activations.

        These are the models of ``model=playground``, and of ``model=mlp`` on points without batch norm.
        """
        if not isinstance(model, nn.Sequential):
            return None
        features: tuple[FeatureName, ...] = ("x", "y")
        weights: list[Tensor] = []
        biases: list[Tensor] = []
        activations: list[str] = []
        for module in model:
            if isinstance(module, Features) and not weights:
                features = module.names
            elif isinstance(module, nn.Linear):
                weights.append(_numbers(module.weight))
                biases.append(torch.zeros(len(weights[-1])).double() if module.bias is None else _numbers(module.bias))
                activations.append("Identity")
            elif repr(module) in ACTIVATIONS and weights and activations[-1] == "Identity":
                activations[-1] = ACTIVATIONS[repr(module)]
            elif not isinstance(module, nn.Flatten | Dropout):  # neither changes the output of a trained network
                return None
        widths = [len(features), *map(len, weights)]
        if not weights or widths[:-1] != [weight.shape[1] for weight in weights] or widths[-1] != 1:
            return None
        return cls(features, tuple(weights), tuple(biases), tuple(activations))

    @property
    def hidden(self) -> list[int]:
        """The widths of the hidden layers."""
        return [len(weight) for weight in self.weights[:-1]]

    @property
    def description(self) -> str:
        """Features, hidden layers and activations in one line."""
        features = ", ".join(FEATURE_LABELS[name] for name in self.features)
        widths = ", ".join(map(str, self.hidden))
        hidden = f"hidden units {widths} ({self.activations[0]})" if self.hidden else "no hidden layer"
        return f"Features {features}; {hidden}; output {self.activations[-1]}"

    @property
    def size(self) -> int:
        """The number of weights and biases."""
        return sum(tensor.numel() for tensor in (*self.weights, *self.biases))

    @property
    def largest_weight(self) -> float:
        """The largest magnitude of a weight, of those that are finite."""
        return max(float(weight.abs().nan_to_num(0.0, 0.0).max()) for weight in self.weights)

    def units(self, points: Tensor, *, most: int | None = None) -> list[Tensor]:
        """Return the features of ``points`` (P, 2), then the outputs of each layer: (P, units) each.

        With ``most``, only the first ``most`` columns of each.
        """
        at_once = max(1, _VALUES_AT_ONCE // max(len(self.features), *map(len, self.weights)))
        parts = [[values[:, :most] for values in self._forward(part)] for part in points.double().split(at_once)]
        return [torch.cat(layer) for layer in zip(*parts, strict=True)]

    def _forward(self, points: Tensor) -> list[Tensor]:
        x, y = points.unbind(1)
        values = torch.stack([FEATURES[name](x, y) for name in self.features], 1)
        layers = [values]
        for weight, bias, activation in zip(self.weights, self.biases, self.activations, strict=True):
            values = getattr(nn, activation)()(nn.functional.linear(values, weight, bias))
            layers.append(values)
        return layers

    def surface(self, side: int) -> Tensor:
        """Return the output (side, side) on :func:`grid`."""
        return self.units(grid(side))[-1].view(side, side)


def _numbers(tensor: Tensor) -> Tensor:
    return tensor.detach().double().cpu()


def grid(side: int) -> Tensor:
    """Return the centres of ``side`` x ``side`` cells of the square that is drawn, (side^2, 2), from the top left."""
    centres = HALF_SIDE * ((2 * torch.arange(side, dtype=torch.float64) + 1) / side - 1)
    y, x = torch.meshgrid(-centres, centres, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)


def surface(model: nn.Module, side: int) -> Tensor:
    """Return the output (side, side) of any model with one output on :func:`grid`, float64 on the CPU."""
    points = grid(side)
    parameter = next(model.parameters(), points)
    with evaluating(model), torch.no_grad():
        return _numbers(model(points.to(parameter.device, parameter.dtype))).view(side, side)


def scaled(values: Tensor) -> Tensor:
    """Divide the map of a unit by its largest magnitude if that is above 1, so that its shape can be seen."""
    return (values / values.abs().max().clamp(min=1.0)).clamp(-1, 1)
