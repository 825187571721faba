"""The dataset of dataset/mine.yaml. Replace it with yours."""

from __future__ import annotations

import numpy as np

import dlhw
from dlhw.data.tensors import Dataset


def spirals(seed: int, *, count: int, noise: float) -> Dataset:
    """Two spirals in the plane, one per class. The options come from dataset/mine.yaml.

    The points are the same for every seed, which decides only the split into training, validation and test part.
    """
    random = np.random.default_rng(0)
    label = np.arange(count) % 2  # whole numbers or texts: classes; floating-point numbers: regression
    radius = random.uniform(0.5, 3.0, count)
    angle = 2 * radius + np.pi * label
    x = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)  # samples (N, features) or (N, C, H, W)
    x += random.normal(0, noise, x.shape)
    return dlhw.from_arrays(x, label, seed=seed, name="spirals", classes=["left", "right"], test_fraction=0.2)
