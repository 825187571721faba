"""Data sets that are drawn instead of read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, FiniteFloat

from dlhw.data.tensors import Dataset, Split, assemble
from dlhw.errors import UsageError
from dlhw.runtime.randomness import generator, key


def clusters(
    *,
    data_dir: str | Path,
    seed: int,
    n: Annotated[int, Field(gt=1)],
    features: Annotated[int, Field(ge=2)],
    classes: Annotated[int, Field(ge=2)],
    separation: Annotated[float, Field(ge=0)],
    noise_percent: Annotated[float, Field(ge=0, le=100)],
    validation_fraction: Annotated[float, Field(gt=0, lt=1)],
) -> Dataset:
    """``n`` points (features,) of equally frequent classes, each one normal cluster, as many again to test.

    Drawn by scikit-learn's ``make_classification`` (Guyon 2003): clusters at corners of a cube of half side
    ``separation``, with correlations of their own. ``data_dir`` is not used.
    """
    from sklearn.datasets import make_classification

    if classes > 2**features:
        raise UsageError(f"dataset.classes={classes}: a cube of dataset.features={features} has {2**features} corners")
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
