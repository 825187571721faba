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
    kernel: Annotated[int, Field(gt=0)],
    activation: ActivationName,
    dropout: DropoutRate,
    batch_norm: bool,
    hidden: Sequence[Width] = (),
    width: Annotated[int, Field(gt=0)] = 1,
) -> nn.Sequential:
    """Per entry of ``channels``: convolution that keeps the size, batch norm, activation, 2x2 max pooling; then
    a dense layer with activation per entry of ``hidden``, dropout, and a dense layer to logits (C5.5 with channels
    [16, 32], kernel 5; A5.ii with four channels and one hidden width).

    Every entry of ``channels`` is multiplied by ``width``. Maps (N, C, H, W) to (N, outputs).
    """
    if len(shape) != 3:
        raise UsageError(f"model=cnn: needs images (C, H, W), the data set's samples are {shape}; use model=mlp")
    if kernel % 2 == 0:
        raise UsageError(f"model.kernel={kernel}: must be odd, so that padding keeps the size")
    blocks = [width * count for count in channels]
    depth, rows, columns = shape
    layers: list[nn.Module] = []
    for block in blocks:
        if min(rows, columns) < 2:
            raise UsageError(
                f"model.channels={list(channels)}: as many poolings leave nothing of {shape[1]}x{shape[2]} images"
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
