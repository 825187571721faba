"""Synthetic data: separable points and clusters, their distribution and their seed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dlhw.data.synthetic import clusters, separable
from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError
from support.datasets import options

# Separable points


def points(**changed: Any) -> Dataset:
    """Return separable points by the config file, with some options ``changed``."""
    return separable(data_dir="", **options("separable", **changed))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("angle", [0.0, 10.0, 135.0])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_separable_points_keep_the_margin_on_the_side_of_their_class(seed: int, angle: float, noise: float) -> None:
    data = points(seed=seed, n=301, margin=0.7, noise=noise, angle_degrees=angle)
    across = torch.tensor([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
    for part in (data.train, data.val, data.test):
        assert part.x.dtype == torch.float32
        distance = (2 * part.y - 1) * (part.x @ across)
        assert distance.min() >= 0.7 * (1 - 1e-5)
        assert (distance.max() > 1.5) == bool(noise)
    assert (len(data.train), len(data.val), len(data.test)) == (241, 60, 301)
    assert torch.bincount(data.test.y).tolist() == [151, 150]
    assert torch.bincount(torch.cat([data.train.y, data.val.y])).tolist() == [151, 150]


def test_separable_points_have_the_documented_distribution() -> None:
    """Beyond the margin half-normal: mean s sqrt(2/pi), variance (1 - 2/pi) s^2. Along the line N(0, s^2)."""
    n, noise = 20_000, 0.5
    test = points(n=n, margin=0.7, noise=noise, angle_degrees=0.0).test
    x, y = test.x.double(), test.y
    beyond = (2 * y - 1) * x[:, 0] - 0.7
    assert abs(beyond.mean() - noise * math.sqrt(2 / math.pi)) < 5 * noise * math.sqrt((1 - 2 / math.pi) / n)
    assert abs(x[:, 1].mean()) < 5 * noise / math.sqrt(n)
    assert abs(x[:, 1].square().mean() - noise**2) < 5 * noise**2 * math.sqrt(2 / n)


def test_separable_points_are_not_normalized() -> None:
    data = points().to("cpu", torch.float32)
    assert data.shape == (2,)
    assert torch.equal(data.normalize(data.train.x), data.train.x)


def test_separable_points_are_determined_by_the_seed_and_differ_between_parts() -> None:
    assert points().sha256 == points().sha256 != points(seed=1).sha256
    assert not torch.equal(points().train.x, points().test.x[: len(points().train)])


# Clusters

CLUSTERS: dict[str, Any] = {"features": 5, "classes": 3, "separation": 1.0, "noise_percent": 0.0}


def test_clusters_are_balanced_and_determined_by_the_seed() -> None:
    one, same, other = (
        clusters(data_dir="", seed=seed, n=300, validation_fraction=0.2, **CLUSTERS) for seed in (0, 0, 1)
    )
    assert (one.shape, one.classes, len(one.test)) == ((5,), ("0", "1", "2"), 300)
    assert one.sha256 == same.sha256 != other.sha256
    counts = torch.cat([one.train.pool_y, one.test.pool_y]).bincount()
    assert counts.tolist() == [200, 200, 200]


def test_too_many_clusters_are_an_error() -> None:
    too_many = CLUSTERS | {"features": 2, "classes": 5}
    with pytest.raises(UsageError, match=r"dataset\.classes=5: must be at most 4 for dataset\.features=2"):
        clusters(data_dir="", seed=0, n=100, validation_fraction=0.2, **too_many)
