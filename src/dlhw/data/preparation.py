"""The step from raw samples, as files or the user have them, to the samples of a dataset's pool.

What it learns from the training part (means, categories) is its state, which checkpoints contain: a trained network is
applied to new raw samples exactly as in training. :mod:`dlhw.data.normalization` is the step from there to the inputs
of a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor


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
    def of(cls, x: Tensor) -> Standardization:
        """Compute mean and standard deviation of samples (N, C, ...), with the denominator N."""
        over = [0, *range(2, x.ndim)]
        values = x.double()
        mean, std = values.mean(over, keepdim=True)[0], values.std(over, correction=0, keepdim=True)[0]
        return cls(mean, torch.where(std > 0, std, 1.0))

    def __call__(self, raw: Any) -> Tensor:
        """Return the standardized samples of an array or tensor (N, C, ...); computed in float64, in its dtype."""
        x = torch.as_tensor(raw)
        return ((x.double() - self.mean) / self.std).to(x.dtype if x.is_floating_point() else torch.float64)

    @property
    def state(self) -> dict[str, Any]:
        return {"kind": self.kind, "mean": self.mean, "std": self.std}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        return cls(state["mean"], state["std"])


def from_state(state: Mapping[str, Any] | None) -> Preparation | None:
    """Return the preparation with this state; None for samples that are not prepared."""
    from dlhw.data.tables import TableEncoder

    if state is None:
        return None
    kinds: tuple[type[Preparation], ...] = (Standardization, TableEncoder)
    return next(kind for kind in kinds if kind.kind == state["kind"]).from_state(state)
