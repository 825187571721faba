"""Weight initializations: each sets the weights and biases of a model's layers in place.

They act on every convolution and dense layer, with the randomness of the generator that is passed in;
normalization layers keep their own start. ``bias`` is the constant for all biases, or null to leave
PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
Positive = Annotated[float, Field(gt=0)]


def _each_layer(model: nn.Module, fill: Callable[[Tensor], object], bias: float | None) -> None:
    for layer in model.modules():
        if isinstance(layer, LAYERS):
            fill(layer.weight)
            if bias is not None and layer.bias is not None:
                nn.init.constant_(layer.bias, bias)


def default(model: nn.Module, *, generator: torch.Generator, bias: float | None = None) -> None:
    """PyTorch's own: U(-1/sqrt(n_in), 1/sqrt(n_in)) for weights, as the layers were built."""
    _each_layer(model, lambda weight: None, bias)


def uniform(model: nn.Module, *, generator: torch.Generator, d: Positive, bias: float | None = None) -> None:
    """U(-d, d) (B4)."""
    _each_layer(model, lambda weight: nn.init.uniform_(weight, -d, d, generator=generator), bias)


def xavier(model: nn.Module, *, generator: torch.Generator, gain: Positive = 1.0, bias: float | None = None) -> None:
    """U(-d, d) with d = gain sqrt(6 / (n_in + n_out)) (Glorot & Bengio 2010, eq. 16)."""
    _each_layer(model, lambda weight: nn.init.xavier_uniform_(weight, gain, generator=generator), bias)


def he(model: nn.Module, *, generator: torch.Generator, bias: float | None = None) -> None:
    """N(0, 2 / n_in), for ReLU (He et al. 2015, eq. 10)."""
    _each_layer(model, lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator), bias)


def orthogonal(
    model: nn.Module, *, generator: torch.Generator, gain: Positive = 1.0, bias: float | None = None
) -> None:
    """Orthonormal rows or columns, times ``gain`` (Saxe et al. 2014); kernels are flattened to (n_out, rest)."""
    _each_layer(model, lambda weight: nn.init.orthogonal_(weight, gain, generator=generator), bias)


def constant(model: nn.Module, *, generator: torch.Generator, value: float, bias: float | None = None) -> None:
    """Every weight the same: shows why symmetry must be broken."""
    _each_layer(model, lambda weight: nn.init.constant_(weight, value), bias)
