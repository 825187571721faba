"""The data sets of the Neural Network Playground: points in the plane, drawn at random (C1).

Each function draws points (n, 2) in float64 and their targets (n,). For classification, the targets are -1 and +1.
``noise`` is that of the page divided by 100. It moves the points of gauss and spiral; for the others, it changes only
the targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from dlhw.data.normalization import Normalization
from dlhw.data.tensors import Dataset, Split, fingerprint, split_at
from dlhw.errors import UsageError
from dlhw.runtime.randomness import generator

Kind = Literal["circle", "xor", "gauss", "spiral", "reg_plane", "reg_gauss"]
Draw = Callable[[int, float, torch.Generator], tuple[Tensor, Tensor]]
RADIUS = 5.0
"""Largest distance from 0 of the points of circle and spiral; half a side of the square of xor."""
HALF_SIDE = 6.0
"""Half a side of the square of the regression data, and of the area that is drawn."""
BUMPS = ((-4, 2.5, 1), (0, 2.5, -1), (4, 2.5, 1), (-4, -2.5, -1), (0, -2.5, 1), (4, -2.5, -1))
"""Centres and signs of the bumps of reg_gauss."""


def _uniform(shape: tuple[int, ...], low: float, high: float, random: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=random, dtype=torch.float64)


def _halves(n: int) -> Tensor:
    """Return targets (n,): +1 for the first half, -1 for the second, which has one more if n is odd."""
    return torch.where(torch.arange(n) < n // 2, 1.0, -1.0).double()


def circle(n: int, noise: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """A disc of radius 2.5 inside a ring from 3.5 to 5. The target is that of the point moved by the noise."""
    inside = _halves(n) > 0
    radius = torch.where(inside, _uniform((n,), 0, RADIUS / 2, random), _uniform((n,), 0.7 * RADIUS, RADIUS, random))
    angle = _uniform((n,), 0, 2 * math.pi, random)
    points = radius[:, None] * torch.stack([angle.sin(), angle.cos()], 1)
    moved = points + noise * _uniform((n, 2), -RADIUS, RADIUS, random)
    return points, torch.where(moved.norm(dim=1) < RADIUS / 2, 1.0, -1.0).double()


def xor(n: int, noise: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """A square without a cross of width 0.6; the target is the sign of x y, of the point moved by the noise."""
    points = _uniform((n, 2), -RADIUS, RADIUS, random)
    points = points + 0.3 * points.sign()
    moved = points + noise * _uniform((n, 2), -RADIUS, RADIUS, random)
    return points, torch.where(moved.prod(1) >= 0, 1.0, -1.0).double()


def gauss(n: int, noise: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two normal clusters around (2, 2) and (-2, -2), with the variance 0.5 + 7 noise on both axes."""
    targets = _halves(n)
    deviation = math.sqrt(0.5 + 7 * noise)
    return 2 * targets[:, None] + deviation * torch.randn(n, 2, generator=random, dtype=torch.float64), targets


def spiral(n: int, noise: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two arms of 1.75 turns. Without noise, the points are the same for every seed."""
    targets = _halves(n)
    in_arm = torch.cat([torch.arange(size).double() / size for size in (n // 2, n - n // 2)])
    angle = 3.5 * math.pi * in_arm + math.pi * (targets < 0).double()
    points = RADIUS * in_arm[:, None] * torch.stack([angle.sin(), angle.cos()], 1)
    return points + noise * _uniform((n, 2), -1, 1, random), targets


def reg_plane(n: int, noise: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Regression: the target is (x + y) / 10, of the point moved by the noise."""
    points = _uniform((n, 2), -HALF_SIDE, HALF_SIDE, random)
    moved = points + noise * _uniform((n, 2), -HALF_SIDE, HALF_SIDE, random)
    return points, moved.sum(1) / 10


def reg_gauss(n: int, noise: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Regression: six bumps sign (1 - d / 2), 0 where d > 2; d is the distance from the centre of the moved point."""
    points = _uniform((n, 2), -HALF_SIDE, HALF_SIDE, random)
    moved = points + noise * _uniform((n, 2), -HALF_SIDE, HALF_SIDE, random)
    x, y, sign = torch.tensor(BUMPS, dtype=torch.float64).unbind(1)
    heights = sign * (1 - torch.cdist(moved, torch.stack([x, y], 1)) / 2).clamp(0, 1)
    return points, heights.gather(1, heights.abs().argmax(1, keepdim=True)).squeeze(1)


CLASSIFICATION: dict[Kind, Draw] = {"circle": circle, "xor": xor, "gauss": gauss, "spiral": spiral}
REGRESSION: dict[Kind, Draw] = {"reg_plane": reg_plane, "reg_gauss": reg_gauss}


def playground(
    *,
    data_dir: str | Path,
    seed: int,
    kind: Kind,
    points: Annotated[int, Field(ge=10, le=1_000_000)] | None,
    noise: Annotated[float, Field(ge=0, le=100)],
    train_ratio: Annotated[float, Field(gt=0, lt=100)],
    validation_fraction: Annotated[float, Field(gt=0, lt=1)],
) -> Dataset:
    """Points (2,) of a data set of the playground, shuffled; the first ``train_ratio`` percent are for training.

    The rest, which the page tests on, is divided into validation and test part. ``points`` None is the page's number:
    500 for classification, 1,200 for regression. Raise UsageError if a part is empty. ``data_dir`` is not used.
    """
    draw = {**CLASSIFICATION, **REGRESSION}[kind]
    is_class = kind in CLASSIFICATION
    n = points or (500 if is_class else 1200)
    x, y = draw(n, noise / 100, generator(seed, "points"))
    order = torch.randperm(n, generator=generator(seed, "split"))
    pool = Split(x, y)
    training = math.floor(n * train_ratio / 100)
    validation = round((n - training) * validation_fraction)
    sizes = {"training": training, "validation": validation, "test": n - training - validation}
    for part, size in sizes.items():
        if size == 0:
            raise UsageError(
                f"dataset.train_ratio={train_ratio:g}, dataset.validation_fraction={validation_fraction:g}: leave none "
                f"of the {n} points for {part}"
            )
    train, val, test = (split_at(pool, index) for index in order.split(list(sizes.values())))
    return Dataset(
        name=f"playground ({kind})",
        train=train,
        val=val,
        test=test,
        normalize=Normalization.of_pixels(0.0, 1.0, largest=1, shape=(2,)),
        classes=("-1", "+1") if is_class else (),
        sha256=fingerprint(pool),
    )
