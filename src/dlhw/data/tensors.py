"""A data set held as tensors: its three parts, its normalization, its fingerprint."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dlhw import UsageError
from dlhw.runtime import generator


@dataclass(frozen=True)
class Split:
    """Samples ``x`` (N, C, H, W) uint8 and their labels ``y`` (N,) int64."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str) -> Split:
        return Split(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Dataset:
    """Training, validation and test part, with what turns pixels into inputs.

    ``scale`` = 1 / (largest pixel value * std) and ``shift`` = -mean / std, both (C, 1, 1), so that
    x * scale + shift = (x / largest - mean) / std. ``sha256`` is that of the content before the split:
    training x and y, test x and y, as raw bytes.
    """

    name: str
    train: Split
    val: Split
    test: Split
    shift: Tensor
    scale: Tensor
    classes: tuple[str, ...]
    sha256: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: (C, H, W)."""
        return tuple(self.train.x.shape[1:])

    @property
    def description(self) -> dict[str, str | int]:
        """Name, fingerprint and sizes of the parts, as a run's summary states them."""
        sizes = {"train": len(self.train), "val": len(self.val), "test": len(self.test)}
        return {"name": self.name, "sha256": self.sha256, **sizes}

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Dataset:
        """The same data on ``device``; inputs will have ``dtype``. Pixels stay uint8."""
        return replace(
            self,
            train=self.train.to(device),
            val=self.val.to(device),
            test=self.test.to(device),
            shift=self.shift.to(device, dtype),
            scale=self.scale.to(device, dtype),
        )

    def normalize(self, x: Tensor) -> Tensor:
        """Pixels (N, C, H, W) uint8 -> inputs in the dtype given to :meth:`to` (float64 before)."""
        return x.to(self.scale.dtype, copy=True).mul_(self.scale).add_(self.shift)


def assemble(
    name: str,
    train: Split,
    test: Split,
    *,
    seed: int,
    validation_fraction: float,
    mean: float,
    std: float,
    largest: int,
    classes: tuple[str, ...],
) -> Dataset:
    """The data set with validation split off ``train``; ``mean`` and ``std`` are of pixel / ``largest``."""
    constant = torch.ones(train.x.shape[1], *[1] * (train.x.ndim - 2), dtype=torch.float64)
    with ThreadPoolExecutor(1) as pool:  # hashing 55 MB and gathering them take as long as each other
        sha256 = pool.submit(_sha256, train, test)
        rest, val = split_off(train, validation_fraction, seed=seed)
    return Dataset(
        name=name,
        train=rest,
        val=val,
        test=test,
        shift=constant * (-mean / std),
        scale=constant / (largest * std),
        classes=classes,
        sha256=sha256.result(),
    )


def split_off(split: Split, fraction: float, *, seed: int) -> tuple[Split, Split]:
    """The rest and ``fraction`` of ``split``, at random by ``seed``; UsageError if one would be empty."""
    if not 0 < fraction < 1:
        raise UsageError(f"dataset.validation_fraction={fraction}: must lie between 0 and 1")
    count = round(fraction * len(split))
    if not 0 < count < len(split):
        raise UsageError(
            f"dataset.validation_fraction={fraction}: leaves nothing for training or validation of {len(split)} samples"
        )
    order = torch.randperm(len(split), generator=generator(seed, "split")).to(split.y.device)
    picked, rest = order[:count], order[count:]
    return (
        Split(split.x.index_select(0, rest), split.y.index_select(0, rest)),
        Split(split.x.index_select(0, picked), split.y.index_select(0, picked)),
    )


def _sha256(*splits: Split) -> str:
    digest = hashlib.sha256()
    for split in splits:
        for tensor in (split.x, split.y):
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
