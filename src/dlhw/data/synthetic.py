"""Data sets that are drawn instead of read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, FiniteFloat

from dlhw.data.tensors import Dataset, Split, assemble
from dlhw.runtime import generator


def separable(
    *,
    data_dir: str | Path,
    seed: int,
    n: Annotated[int, Field(gt=1)],
    margin: Annotated[float, Field(gt=0)],
    noise: Annotated[float, Field(ge=0)],
    angle_degrees: FiniteFloat,
    validation_fraction: Annotated[float, Field(gt=0, lt=1)],
) -> Dataset:
    """``n`` points (2,) of two classes on the two sides of a line through 0, none nearer to it than ``margin``.

    The line is perpendicular to the direction at ``angle_degrees``. Along it the points are normal with deviation
    ``noise``, across it they lie ``margin`` plus the absolute value of such a number away. Half of the points,
    rounded up, are of class 0; as many points again are the test part. ``data_dir`` is not used.
    """
    draw = generator(seed, "points")
    angle = math.radians(angle_degrees)
    across = torch.tensor([math.cos(angle), math.sin(angle)])
    along = torch.tensor([-math.sin(angle), math.cos(angle)])

    def points() -> Split:
        y = torch.arange(n) % 2
        distance, shift = noise * torch.randn(2, n, 1, generator=draw)
        return Split((2 * y[:, None] - 1) * (margin + distance.abs()) * across + shift * along, y)

    return assemble(
        "separable",
        points(),
        points(),
        seed=seed,
        validation_fraction=validation_fraction,
        mean=0.0,
        std=1.0,
        largest=1,
        classes=("-", "+"),
    )
