"""The step from raw samples, as files or the user have them, to the samples of a dataset's pool.

What it learns from the training part (means, categories) is its state, which checkpoints contain: a trained network is
applied to new raw samples exactly as in training. :mod:`dlhw.data.normalization` is the step from there to the inputs
of a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

NEGLIGIBLE = 1e-12
"""A standard deviation that is a smaller share of the mean is a rounding error: the values are constant."""
VALUES_AT_ONCE = 2**22
"""Values that are converted to float64 at once, so that large arrays of bytes are not copied as a whole."""


class Preparation(Protocol):
    """Turns raw samples into samples of the pool."""

    kind: ClassVar[str]

    def __call__(self, raw: Any) -> Tensor:
        """Return the samples (N, *shape). Raise UsageError if they do not fit."""

    @property
    def state(self) -> dict[str, Any]:
        """Everything that :meth:`from_state` needs, as tensors, numbers, texts and containers of these."""

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Return the preparation with this state."""


@dataclass(frozen=True, eq=False)
class Standardization:
    """Gives each feature or channel mean 0 and variance 1 over the training part.

    Args:
        mean: (C, 1, ...), one value per feature of samples (C,), or per channel of samples (C, ...).
        std: of the same shape; 1 where all training samples are equal.
    """

    mean: Tensor
    std: Tensor
    kind: ClassVar[str] = "standardization"

    @classmethod
    def of(cls, x: Tensor, rows: Tensor) -> Standardization:
        """Compute mean and standard deviation of the samples at ``rows`` of ``x`` (N, C, ...), in float64.

        The denominator of the variance is the number of values.
        """
        over = [0, *range(2, x.ndim)]
        count = len(rows) * math.prod(x.shape[2:])
        mean = _total(values.sum(over, keepdim=True) for values in _at_once(x, rows)) / count
        squares = _total((values - mean).square().sum(over, keepdim=True) for values in _at_once(x, rows))
        std = (squares / count).sqrt()
        return cls(mean[0], torch.where(std > NEGLIGIBLE * mean.abs(), std, 1.0)[0])

    def __call__(self, raw: Any) -> Tensor:
        """Return the standardized samples of an array or tensor (N, C, ...); computed in float64, in its dtype."""
        x = torch.as_tensor(raw)
        result = torch.empty_like(x, dtype=x.dtype if x.is_floating_point() else torch.float64)
        for rows in _slices(x):
            result[rows] = (x[rows].double() - self.mean) / self.std
        return result

    @property
    def state(self) -> dict[str, Any]:
        return {"kind": self.kind, "mean": self.mean, "std": self.std}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        return cls(state["mean"], state["std"])


def _at_once(x: Tensor, rows: Tensor) -> Iterator[Tensor]:
    for part in _slices(x, len(rows)):
        yield x[rows[part]].double()


def _slices(x: Tensor, count: int | None = None) -> Iterator[slice]:
    """Yield slices of ``count`` samples such as those of ``x``; by default, all of ``x``."""
    step = max(1, VALUES_AT_ONCE // math.prod(x.shape[1:]))
    total = len(x) if count is None else count
    return (slice(start, start + step) for start in range(0, total, step))


def _total(tensors: Iterator[Tensor]) -> Tensor:
    return sum(tensors, start=torch.zeros((), dtype=torch.float64))
