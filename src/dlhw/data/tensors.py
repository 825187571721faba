"""A dataset held as tensors: its parts, its normalization, its fingerprint."""

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
from dlhw.data.preparation import Preparation
from dlhw.errors import UsageError
from dlhw.runtime.devices import free_memory
from dlhw.runtime.randomness import generator

EVALUATION_VALUES = 2**24
"""Values in a batch for evaluation."""


@dataclass(frozen=True, eq=False)
class Split:
    """Some samples of a pool, in some order. The parts of a dataset share their pool.

    The samples may be on another device than the labels; batches are moved to the device of the labels.
    """

    pool_x: Tensor
    """All samples (P, *shape)."""
    pool_y: Tensor
    """Their labels (P,) int64, or floating-point numbers (P,): those to predict in regression, or two classes as -1 and
    +1."""
    rows: Tensor | None = None
    """Rows of the pool (n,), or (K, n) for K variants that are trained together; None: the whole pool."""
    raw: Any = None
    """What the samples were before :attr:`Dataset.prepare`: an array or DataFrame with P rows; None: the same."""

    def __len__(self) -> int:
        return len(self.pool_y) if self.rows is None else self.rows.shape[-1]

    def __getitem__(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Return samples and labels at some positions of this part."""
        x, y = self.gather(self.all_rows()[:1, index])
        return x[0], y[0]

    @property
    def x(self) -> Tensor:
        """All samples (n, *shape), copied from the pool."""
        return self.pool_x if self.rows is None else self.pool_x.index_select(0, self.rows)

    @property
    def raw_x(self) -> Any:
        """All samples as they were before :attr:`Dataset.prepare`: an array or DataFrame with n rows."""
        if self.raw is None:
            return self.x
        rows = self.all_rows()[0].numpy()
        return self.raw.iloc[rows] if hasattr(self.raw, "iloc") else self.raw[rows]

    @property
    def y(self) -> Tensor:
        """Their labels (n,)."""
        return self.pool_y if self.rows is None else self.pool_y.index_select(0, self.rows)

    def all_rows(self) -> Tensor:
        """Return the rows of the pool, (1, n) or (K, n)."""
        rows = torch.arange(len(self), device=self.pool_y.device) if self.rows is None else self.rows
        return rows.view(-1, len(self))

    def rows_at(self, order: Tensor) -> Tensor:
        """Return the rows of the pool (K, n) for the positions ``order``, (K, n) or (1, n), in this part."""
        if self.rows is None:
            return order
        rows = self.all_rows()
        variants = max(len(rows), len(order))
        return rows.expand(variants, -1).gather(1, order.expand(variants, -1))

    def gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return samples (K, B, *shape) and labels (K, B) at ``rows`` (K, B) of the pool."""
        x = self.pool_x.index_select(0, rows.flatten().to(self.pool_x.device)).to(self.pool_y.device)
        return x.unflatten(0, rows.shape), self.targets(rows)

    def targets(self, rows: Tensor) -> Tensor:
        """Return labels (K, B) at ``rows`` (K, B) of the pool."""
        return self.pool_y.index_select(0, rows.flatten()).view(rows.shape)


@dataclass(frozen=True)
class Dataset:
    """A training part, a validation part, an optional test part, and the normalization of their samples.

    Args:
        test: the test part, or None.
        normalize: turns pixels (N, C, H, W) into inputs, in the dtype given to :meth:`to` (float64 before).
        classes: names of the classes, two for the targets -1 and +1; empty: regression.
        sha256: digest of the data before the split: training x and y, test x and y, as raw bytes.
        names: file names of the samples in the pool that all parts share; empty: the samples are not files.
        about: further entries for the summary of a run.
        augmentation: random changes of training pictures; None: no changes.
        views: replace ``train`` in turn, one per epoch: the same samples, augmented differently.
        prepare: turns raw samples into those of the pool; None: they are the same.
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
    prepare: Preparation | None = None

    @property
    def parts(self) -> dict[str, Split]:
        """The parts by the prefix of their metrics: train, val and, if there is one, test."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    def view(self, epoch: int) -> Split:
        """Return the training part of an epoch, counted from 1."""
        return self.views[(epoch - 1) % len(self.views)] if self.views else self.train

    @property
    def device(self) -> torch.device:
        """The device of the inputs."""
        return self.normalize.device

    @property
    def evaluated_at_once(self) -> int:
        """The largest useful batch for evaluation. Larger batches need more memory and are not faster."""
        return max(1, EVALUATION_VALUES // math.prod(self.shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input, such as (C, H, W)."""
        shape, size = tuple(self.train.pool_x.shape[1:]), self.normalize.size
        return shape if size is None else (shape[0], size, size)

    @property
    def outputs(self) -> int:
        """The number of outputs of a model: one logit per class, or 1 for numeric targets."""
        return 1 if self.numeric_targets else len(self.classes)

    @property
    def numeric_targets(self) -> bool:
        """Whether a model has a single output: in regression, and for two classes with the targets -1 and +1.

        For two classes, the sign of the output is the predicted class.
        """
        return self.train.pool_y.is_floating_point()

    @property
    def description(self) -> dict[str, Any]:
        """Name, fingerprint, sizes of the parts and classes, for the summary of a run."""
        sizes = {name: len(part) for name, part in self.parts.items()}
        classes = {"classes": list(self.classes)} if self.classes else {}
        return {"name": self.name, "sha256": self.sha256, **sizes, **classes, **self.about}

    @property
    def augments_pictures(self) -> bool:
        """Whether single training pictures are changed at random."""
        return self.augmentation is not None and self.augmentation.changes_pictures

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Dataset:
        """Return the data on ``device``, with inputs and numeric targets of ``dtype``. Pixels stay uint8.

        Pictures that are augmented, which is done on the CPU, and those that do not fit into the device's memory stay
        where they are and are moved batch by batch.
        """

        def part(split: Split) -> Split:
            rows = None if split.rows is None else split.rows.to(device)
            targets = dtype if split.pool_y.is_floating_point() else split.pool_y.dtype
            stays = self.augments_pictures or _is_too_large(split.pool_x, device)
            samples = dtype if split.pool_x.is_floating_point() else split.pool_x.dtype
            pool = split.pool_x if stays else _to_device(device, split.pool_x, samples)
            return Split(pool, _to_device(device, split.pool_y, targets), rows)

        parts = {name: part(split) for name, split in self.parts.items()}
        return self.with_parts(parts, normalize=self.normalize.to(device, dtype))

    def with_parts(self, parts: Mapping[str, Split], **fields: Any) -> Dataset:
        """Return the data with some ``parts`` replaced, by name, and other ``fields``."""
        changes: dict[str, Any] = {**parts, **fields}
        return replace(self, **changes)

    def for_variant(self, variant: int) -> Dataset:
        """Return the dataset of one variant, if the parts combine those of several variants (:func:`combine`)."""
        return self.with_parts({name: _rows_of(part, variant) for name, part in self.parts.items()})


def _is_too_large(pool: Tensor, device: torch.device | str) -> bool:
    device = torch.device(device)
    return device.type == "cuda" and pool.device != device and pool.nbytes > free_memory(device) / 2


@functools.lru_cache(maxsize=8)  # parts and jobs that share a pool on the CPU share it on the device, too
def _to_device(device: torch.device | str, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
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
    """Build a dataset whose validation part is split off ``train``.

    ``mean`` and ``std`` are those of pixel / ``largest``: one number, or one per channel.
    """
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
    """Split off a random ``fraction``; return the rest and the part. Raise UsageError if one would be empty."""
    if not 0 < fraction < 1:
        raise UsageError(f"dataset.{part}_fraction={fraction}: must be greater than 0 and less than 1")
    count = round(fraction * len(split))
    if not 0 < count < len(split):
        raise UsageError(
            f"dataset.{part}_fraction={fraction}: leaves none of the {len(split)} samples for training or {part}"
        )
    purpose = "split" if part == "validation" else f"split {part}"
    order = torch.randperm(len(split), generator=generator(seed, purpose)).to(split.pool_y.device)
    return split_at(split, order[count:]), split_at(split, order[:count])


def split_at(split: Split, index: Tensor) -> Split:
    """Return the samples at the positions ``index`` (n,) of ``split``; they share its pool."""
    return replace(split, rows=index if split.rows is None else split.rows[index])


def combine(parts: Sequence[Split]) -> Split:
    """Combine K parts of equal length: rows (K, n), or the first part if all are equal.

    Different pools are concatenated; equal ones, such as a file that was read for each run, are one.
    """
    first = parts[0]
    pools: dict[int, Split] = {}
    owners: dict[int, int] = {}
    for part in parts:
        if id(part.pool_x) not in owners:
            known = next((name for name, other in pools.items() if _same_pool(part, other)), id(part.pool_x))
            owners[id(part.pool_x)] = known
            pools.setdefault(known, part)
    ends = itertools.accumulate(len(part.pool_y) for part in pools.values())
    starts = {name: end - len(part.pool_y) for (name, part), end in zip(pools.items(), ends, strict=True)}
    rows = torch.cat([part.all_rows() + starts[owners[id(part.pool_x)]] for part in parts])
    if (rows == rows[0]).all():
        return first
    if len(pools) == 1:
        return Split(first.pool_x, first.pool_y, rows)
    return Split(
        torch.cat([part.pool_x for part in pools.values()]), torch.cat([part.pool_y for part in pools.values()]), rows
    )


def _same_pool(part: Split, other: Split) -> bool:
    return torch.equal(part.pool_x, other.pool_x) and torch.equal(part.pool_y, other.pool_y)


def _rows_of(part: Split, variant: int) -> Split:
    if part.rows is None or part.rows.ndim == 1:
        return part
    return Split(part.pool_x, part.pool_y, part.rows[variant])


@functools.lru_cache(maxsize=2)  # the jobs of a sweep have the same parts
def fingerprint(*splits: Split) -> str:
    """Return :func:`digest` of parts that stay in memory; it is computed once."""
    return digest(*splits)


def digest(*splits: Split) -> str:
    """Return the SHA-256 of the samples and targets of these parts, as raw bytes."""
    sha256 = hashlib.sha256()
    for split in splits:
        for tensor in (split.x, split.y):
            sha256.update(tensor.contiguous().numpy().data)
    return sha256.hexdigest()
