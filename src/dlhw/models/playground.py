"""The network of the Neural Network Playground: dense layers on functions of the two coordinates of a point (C1)."""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dlhw.errors import UsageError
from dlhw.models import dense

FeatureName = Literal["x", "y", "x_squared", "y_squared", "xy", "sin_x", "sin_y"]
FEATURES: dict[FeatureName, Callable[[Tensor, Tensor], Tensor]] = {
    "x": lambda x, y: x,
    "y": lambda x, y: y,
    "x_squared": lambda x, y: x * x,
    "y_squared": lambda x, y: y * y,
    "xy": lambda x, y: x * y,
    "sin_x": lambda x, y: x.sin(),
    "sin_y": lambda x, y: y.sin(),
}
"""The inputs that the page offers, as functions of the coordinates."""


class Features(nn.Module):
    """Computes the inputs of the network: from points (..., 2) to values (..., F)."""

    def __init__(self, names: Sequence[FeatureName]) -> None:
        super().__init__()
        self.names = tuple(names)

    def forward(self, points: Tensor) -> Tensor:
        x, y = points.unbind(-1)
        return torch.stack([FEATURES[name](x, y) for name in self.names], -1)


def playground(
    shape: tuple[int, ...],
    outputs: int,
    *,
    features: list[str] | Literal["all"],
    hidden: list[dense.Width],
    activation: dense.ActivationName,
    output: Literal["Tanh", "Identity"],
) -> nn.Sequential:
    """The network from points (N, 2) to (N, 1): ``features``, dense layers with activations, ``output`` of the last.

    Raise UsageError for samples of another shape, several outputs, and unknown or duplicate features.
    """
    if shape != (2,) or outputs != 1:
        raise UsageError(
            f"model=playground: needs points of shape (2,) and one output, not {shape} and {outputs}; expected "
            "dataset=playground"
        )
    names = list(FEATURES) if features == "all" else typing.cast("list[FeatureName]", features)
    if not names or not set(names) <= set(FEATURES) or len(set(names)) < len(names):
        raise UsageError(
            f"model.features=[{','.join(names)}]: must be all, or a list of different names from {', '.join(FEATURES)}"
        )
    flatten, *layers = dense.mlp(
        (len(names),), outputs, hidden=hidden, activation=activation, dropout=0.0, batch_norm=False
    )
    return nn.Sequential(flatten, Features(names), *layers, getattr(nn, output)())
