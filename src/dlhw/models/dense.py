"""Fully connected networks."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from dlhw.models.dropout import Dropout

Width = Annotated[int, Field(gt=0, le=1_000_000)]
DropoutRate = Annotated[float, Field(ge=0, lt=1)]
ActivationName = Literal["ReLU", "Tanh", "Sigmoid", "ELU", "GELU", "LeakyReLU", "SiLU", "Identity"]


def mlp(
    shape: tuple[int, ...],
    outputs: int,
    *,
    hidden: list[Width],
    activation: ActivationName,
    dropout: DropoutRate,
    batch_norm: bool,
) -> nn.Sequential:
    """A multilayer perceptron from (N, *shape) to logits (N, outputs).

    For each entry of ``hidden``: a dense layer, batch norm, activation and dropout. Then a dense layer to the logits.
    With an empty ``hidden``, this is multinomial logistic regression.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    features = math.prod(shape)
    for width in hidden:
        layers.append(nn.Linear(features, width))
        if batch_norm:
            layers.append(nn.BatchNorm1d(width))
        layers.append(getattr(nn, activation)())
        if dropout:
            layers.append(Dropout(dropout))
        features = width
    return nn.Sequential(*layers, nn.Linear(features, outputs))
