"""Convolutional networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import nn

from dlhw.errors import UsageError
from dlhw.models.dense import ActivationName, DropoutRate, Width
from dlhw.models.dropout import Dropout


def cnn(
    shape: tuple[int, ...],
    outputs: int,
    *,
    channels: Annotated[list[Width], Field(min_length=1)],
    kernel: Annotated[int, Field(gt=0, le=1000)],
    activation: ActivationName,
    dropout: DropoutRate,
    batch_norm: bool,
    hidden: Sequence[Width] = (),
    width: Annotated[int, Field(gt=0, le=1000)] = 1,
) -> nn.Sequential:
    """A convolutional network from (N, C, H, W) to logits (N, outputs).

    For each entry of ``channels``, times ``width``: a convolution that keeps the size, batch norm, activation and 2x2
    max pooling. Then a dense layer with activation for each entry of ``hidden``, dropout, and a dense layer to the
    logits. Source: C5.5 (channels [16, 32], kernel 5) and A5.ii (four channels, one hidden layer).
    """
    if len(shape) != 3:
        raise UsageError(f"model=cnn: needs images (C, H, W), but the dataset's samples are {shape}; use model=mlp")
    if kernel % 2 == 0:
        raise UsageError(f"model.kernel={kernel}: must be odd, so that padding keeps the size")
    blocks = [width * count for count in channels]
    depth, rows, columns = shape
    layers: list[nn.Module] = []
    for block in blocks:
        if min(rows, columns) < 2:
            raise UsageError(
                f"model.channels={list(channels)}: too many pooling layers for {shape[1]}x{shape[2]} images"
            )
        layers.append(nn.Conv2d(depth, block, kernel, padding=kernel // 2))
        if batch_norm:
            layers.append(nn.BatchNorm2d(block))
        layers += [getattr(nn, activation)(), nn.MaxPool2d(2)]
        depth, rows, columns = block, rows // 2, columns // 2
    layers.append(nn.Flatten())
    features = depth * rows * columns
    for units in hidden:
        layers += [nn.Linear(features, units), getattr(nn, activation)()]
        features = units
    if dropout:
        layers.append(Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(features, outputs))
