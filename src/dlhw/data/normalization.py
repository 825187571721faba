"""The step from pixels to model inputs, and its inverse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dlhw.errors import UsageError


@dataclass(frozen=True, eq=False)
class Normalization:
    """Maps pixels x to inputs x * scale + shift = (x / largest - mean) / std; see :meth:`of_pixels`.

    Args:
        shift: -mean / std, (C, 1, 1).
        scale: 1 / (largest * std), (C, 1, 1).
        size: pictures are resized to this many rows and columns first; None: they keep their size.
        largest: the largest possible pixel.
    """

    shift: Tensor
    scale: Tensor
    size: int | None = None
    largest: int = 1

    @classmethod
    def of_pixels(
        cls,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        *,
        largest: int,
        shape: tuple[int, ...],
        size: int | None = None,
    ) -> Normalization:
        """Build the normalization for samples of ``shape`` (C, ...) whose largest possible value is ``largest``.

        ``mean`` and ``std`` are those of pixel / ``largest``: one number, or one per channel. Raise UsageError for
        another number of values.
        """
        per_channel = (shape[0], *[1] * (len(shape) - 1))

        def constant(name: str, values: float | Sequence[float]) -> Tensor:
            tensor = torch.tensor(values, dtype=torch.float64).view(-1, *per_channel[1:])
            if len(tensor) not in (1, shape[0]):
                raise UsageError(
                    f"dataset.{name}={values}: must be one number, or one for each of the {shape[0]} channels"
                )
            return tensor.expand(per_channel)

        means, stds = constant("mean", mean), constant("std", std)
        return cls(-means / stds, 1 / (largest * stds), size, largest)

    @classmethod
    def identity(cls, device: torch.device, dtype: torch.dtype) -> Normalization:
        """Build the normalization that changes only the dtype of inputs."""
        return cls(torch.zeros((), device=device, dtype=dtype), torch.ones((), device=device, dtype=dtype))

    @property
    def state(self) -> dict[str, Any]:
        """Everything that :meth:`from_state` needs, for a checkpoint."""
        return {"shift": self.shift.cpu(), "scale": self.scale.cpu(), "size": self.size, "largest": self.largest}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Normalization:
        """Return the normalization with this state."""
        return cls(state["shift"], state["scale"], state["size"], state["largest"])

    def for_pixels_up_to(self, largest: int) -> Normalization:
        """Return the normalization of the same pictures with another largest pixel, such as 255 in a file."""
        return replace(self, scale=self.scale * (self.largest / largest), largest=largest)

    @property
    def device(self) -> torch.device:
        return self.scale.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the inputs: float64 until :meth:`to` changes it."""
        return self.scale.dtype

    def __call__(self, x: Tensor) -> Tensor:
        """Convert pixels (..., C, H, W) to inputs (..., C, size, size); ``x`` itself is not changed."""
        x = x.to(self.dtype, copy=True)
        if self.size is not None and x.shape[-2:] != (self.size, self.size):
            pictures = x.flatten(0, -4)
            resized = functional.interpolate(pictures, (self.size, self.size), mode="bilinear", antialias=True)
            x = resized.unflatten(0, x.shape[:-3])
        return x.mul_(self.scale).add_(self.shift)

    def inverse(self, x: Tensor) -> Tensor:
        """Convert inputs back to pixels. Resizing is not undone."""
        return (x - self.shift) / self.scale

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Normalization:
        return replace(self, shift=self.shift.to(device, dtype), scale=self.scale.to(device, dtype))
