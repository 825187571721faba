"""Datasets that are drawn at random instead of read from files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, FiniteFloat

from dlhw.data.tensors import Dataset, Split, assemble
from dlhw.errors import UsageError
from dlhw.runtime.bounds import LARGEST_COUNT
from dlhw.runtime.randomness import generator, key


def clusters(
    *,
    data_dir: str | Path,
    seed: int,
    n: Annotated[int, Field(gt=1, le=LARGEST_COUNT)],
    features: Annotated[int, Field(ge=2, le=1_000_000)],
    classes: Annotated[int, Field(ge=2, le=1_000_000)],
    separation: Annotated[float, Field(ge=0)],
    noise_percent: Annotated[float, Field(ge=0, le=100)],
    validation_fraction: Annotated[float, Field(gt=0, lt=1)],
) -> Dataset:
    """``n`` points (features,) of equally frequent classes, one normal cluster per class, and ``n`` test points.

    Drawn by scikit-learn's ``make_classification`` (Guyon 2003): the clusters are at corners of a cube with half side
    ``separation``, and each has its own correlations. ``data_dir`` is not used.
    """
    from sklearn.datasets import make_classification

    if classes > 2**features:
        raise UsageError(f"dataset.classes={classes}: must be at most {2**features} for dataset.features={features}")
    x, y = make_classification(
        2 * n,
        features,
        n_informative=features,
        n_redundant=0,
        n_classes=classes,
        n_clusters_per_class=1,
        class_sep=separation,
        flip_y=noise_percent / 100,
        random_state=key(seed, "points") % 2**32,
    )
    x, y = torch.from_numpy(x), torch.from_numpy(y).long()
    return assemble(
        "clusters",
        Split(x[:n], y[:n]),
        Split(x[n:], y[n:]),
        seed=seed,
        validation_fraction=validation_fraction,
        mean=0.0,
        std=1.0,
        largest=1,
        classes=tuple(map(str, range(classes))),
    )


def separable(
    *,
    data_dir: str | Path,
    seed: int,
    n: Annotated[int, Field(gt=1, le=LARGEST_COUNT)],
    margin: Annotated[float, Field(gt=0)],
    noise: Annotated[float, Field(ge=0)],
    angle_degrees: FiniteFloat,
    validation_fraction: Annotated[float, Field(gt=0, lt=1)],
) -> Dataset:
    """``n`` points (2,) of two classes on the two sides of a line through 0, at least ``margin`` away from it.

    The line is perpendicular to the direction at ``angle_degrees``. Along the line, the points are normal with standard
    deviation ``noise``; their distance from it is ``margin`` plus the absolute value of another such number. Half of
    the points, rounded up, are of class 0. The test part also has ``n`` points. ``data_dir`` is not used.
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
