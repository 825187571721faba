"""A data set held as tensors: its three parts, its normalization, its fingerprint."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from dlhw.data.augmentation import Augmentation
from dlhw.data.normalization import Normalization
from dlhw.errors import UsageError
from dlhw.runtime.devices import free_memory
from dlhw.runtime.randomness import generator

AT_ONCE = 2**24
"""Numbers in a batch that is not trained on."""


@dataclass(frozen=True, eq=False)
class Split:
    """Some samples of a pool: those at ``rows``, in that order; all of them when ``rows`` is None.

    The pool, samples (P, *shape) and their labels (P,) int64, or the numbers (P,) to predict, is shared by the parts
    that were split off it. Its samples may lie on another device than its labels; what is taken of them goes to theirs.
    ``rows`` is (n,), or (K, n) for K variants that are trained together and have n samples each.
    """

    pool_x: Tensor
    pool_y: Tensor
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pool_y) if self.rows is None else self.rows.shape[-1]

    def __getitem__(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Samples and labels at some positions of this part."""
        x, y = self.gather(self.all_rows()[:1, index])
        return x[0], y[0]

    @property
    def x(self) -> Tensor:
        """All samples (n, *shape), copied from the pool."""
        return self.pool_x if self.rows is None else self.pool_x.index_select(0, self.rows)

    @property
    def y(self) -> Tensor:
        """Their labels (n,)."""
        return self.pool_y if self.rows is None else self.pool_y.index_select(0, self.rows)

    def all_rows(self) -> Tensor:
        """Where in the pool the samples lie, (1, n) or (K, n)."""
        rows = torch.arange(len(self), device=self.pool_y.device) if self.rows is None else self.rows
        return rows.view(-1, len(self))

    def rows_at(self, order: Tensor) -> Tensor:
        """Where in the pool the samples at the positions ``order`` (K, n) lie, (K, n)."""
        if self.rows is None:
            return order
        return self.rows.expand(len(order), -1).gather(1, order)

    def gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Samples (K, B, *shape) and labels (K, B) at ``rows`` (K, B) of the pool."""
        x = self.pool_x.index_select(0, rows.flatten().to(self.pool_x.device)).to(self.pool_y.device)
        return x.unflatten(0, rows.shape), self.targets(rows)

    def targets(self, rows: Tensor) -> Tensor:
        """Labels (K, B) at ``rows`` (K, B) of the pool."""
        return self.pool_y.index_select(0, rows.flatten()).view(rows.shape)


@dataclass(frozen=True)
class Dataset:
    """A training and a validation part, perhaps a test part, and the normalization of their samples.

    Args:
        test: the test part; None: there is none.
        normalize: turns pixels (N, C, H, W) into inputs, in the dtype given to :meth:`to` (float64 before).
        classes: their names; empty: the targets are numbers to predict (regression).
        sha256: digest of the data before the split: training x and y, test x and y, as raw bytes.
        names: file names of the samples in the pool that all parts share; empty: the samples are not files.
        about: further entries for the summary of a run.
        augmentation: random changes of training pictures; None: there are none.
        views: replace ``train`` in turn, one per epoch: the same samples, augmented differently.
    """

    name: str
    train: Split
    val: Split
    test: Split | None
    normalize: Normalization
    classes: tuple[str, ...]
    sha256: str
    names: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    augmentation: Augmentation | None = None
    views: tuple[Split, ...] = ()

    @property
    def parts(self) -> dict[str, Split]:
        """The parts by the names that their metrics begin with: train, val and, if there is one, test."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    def view(self, epoch: int) -> Split:
        """What an epoch, counted from 1, trains on."""
        return self.views[(epoch - 1) % len(self.views)] if self.views else self.train

    @property
    def device(self) -> torch.device:
        """Where the inputs will be."""
        return self.normalize.device

    @property
    def evaluated_at_once(self) -> int:
        """How many samples are no more than a few million numbers: larger batches take memory and no less time."""
        return max(1, AT_ONCE // math.prod(self.shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample as a model sees it: (C, H, W)."""
        shape, size = tuple(self.train.pool_x.shape[1:]), self.normalize.size
        return shape if size is None else (shape[0], size, size)

    @property
    def outputs(self) -> int:
        """How many numbers a model gives for a sample: a logit for each class, or the prediction."""
        return len(self.classes) or 1

    @property
    def description(self) -> dict[str, Any]:
        """Name, fingerprint, sizes of the parts and classes, as a run's summary states them."""
        sizes = {name: len(part) for name, part in self.parts.items()}
        classes = {"classes": list(self.classes)} if self.classes else {}
        return {"name": self.name, "sha256": self.sha256, **sizes, **classes, **self.about}

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Dataset:
        """The same data on ``device``; inputs and numbers to predict will have ``dtype``. Pixels stay uint8.

        Pictures that are augmented, which is done on the CPU, and those that the device has no room for stay where they
        are, and go to it batch by batch.
        """
        augmented = self.augmentation is not None and self.augmentation.changes_pictures

        def part(split: Split) -> Split:
            rows = None if split.rows is None else split.rows.to(device)
            targets = dtype if split.pool_y.is_floating_point() else split.pool_y.dtype
            pool = split.pool_x if augmented or _is_too_large(split.pool_x, device) else _on(device, split.pool_x)
            return Split(pool, _on(device, split.pool_y, targets), rows)

        parts = {name: part(split) for name, split in self.parts.items()}
        return self.having(parts, normalize=self.normalize.to(device, dtype))

    def having(self, parts: Mapping[str, Split], **others: Any) -> Dataset:
        """The same data with other ``parts``, by name, and ``others`` replaced."""
        changed: dict[str, Any] = {**parts, **others}
        return replace(self, **changed)

    def of(self, variant: int) -> Dataset:
        """The data of one variant, where the parts have rows for each (:func:`together`)."""
        return self.having({name: _rows_of(part, variant) for name, part in self.parts.items()})


def _is_too_large(pool: Tensor, device: torch.device | str) -> bool:
    device = torch.device(device)
    return device.type == "cuda" and pool.device != device and pool.nbytes > free_memory(device) / 2


@functools.lru_cache(maxsize=8)  # parts, and jobs of a sweep, that share a pool go on sharing it
def _on(device: torch.device | str, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return tensor.to(device, dtype)


def assemble(
    name: str,
    train: Split,
    test: Split,
    *,
    seed: int,
    validation_fraction: float,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    largest: int,
    classes: tuple[str, ...],
    size: int | None = None,
) -> Dataset:
    """The data set with validation split off ``train``; ``mean`` and ``std`` are of pixel / ``largest``, per channel
    where there are several of them."""
    rest, val = split_off(train, validation_fraction, seed=seed)
    return Dataset(
        name=name,
        train=rest,
        val=val,
        test=test,
        normalize=Normalization.of_pixels(mean, std, largest=largest, shape=tuple(train.pool_x.shape[1:]), size=size),
        classes=classes,
        sha256=fingerprint(train, test),
    )


def split_off(
    split: Split, fraction: float, *, seed: int, part: Literal["validation", "test"] = "validation"
) -> tuple[Split, Split]:
    """The rest and ``fraction`` of ``split``, at random by ``seed``; UsageError if one would be empty."""
    if not 0 < fraction < 1:
        raise UsageError(f"dataset.{part}_fraction={fraction}: must lie between 0 and 1")
    count = round(fraction * len(split))
    if not 0 < count < len(split):
        raise UsageError(
            f"dataset.{part}_fraction={fraction}: leaves nothing for training or {part} of {len(split)} samples"
        )
    purpose = "split" if part == "validation" else f"split {part}"
    order = torch.randperm(len(split), generator=generator(seed, purpose)).to(split.pool_y.device)
    return split_at(split, order[count:]), split_at(split, order[:count])


def split_at(split: Split, index: Tensor) -> Split:
    """The samples of ``split`` at the positions ``index`` (n,), sharing its pool."""
    return Split(split.pool_x, split.pool_y, index if split.rows is None else split.rows[index])


def together(parts: Sequence[Split]) -> Split:
    """One part that stands for K, equally long: with rows of each, or of all when they are the same.

    Parts of different pools get one that holds all of those.
    """
    first = parts[0]
    pools = {id(part.pool_x): part for part in parts}
    ends = itertools.accumulate(len(part.pool_y) for part in pools.values())
    starts = {name: end - len(part.pool_y) for (name, part), end in zip(pools.items(), ends, strict=True)}
    rows = torch.cat([part.all_rows() + starts[id(part.pool_x)] for part in parts])
    if (rows == rows[0]).all():
        return first
    if len(pools) == 1:
        return Split(first.pool_x, first.pool_y, rows)
    return Split(
        torch.cat([part.pool_x for part in pools.values()]), torch.cat([part.pool_y for part in pools.values()]), rows
    )


def _rows_of(part: Split, variant: int) -> Split:
    own = part.rows is not None and part.rows.ndim == 2
    return Split(part.pool_x, part.pool_y, part.rows[variant]) if own else part  # type: ignore[index]


@functools.lru_cache(maxsize=2)  # every job of a sweep asks for that of the same data
def fingerprint(*splits: Split) -> str:
    """The SHA-256 of the samples and targets of these parts, as raw bytes."""
    digest = hashlib.sha256()
    for split in splits:
        for tensor in (split.x, split.y):
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
