"""The batches of a run's epochs: which samples, in which order, changed in which way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils import data as torch_data

from dlhw.data.augmentation import Augmentation
from dlhw.data.tensors import Dataset, Split
from dlhw.runtime import processes
from dlhw.runtime.randomness import generator

Batch = tuple[Tensor, Tensor]
Rows = list[list[int]]


class Batches:
    """What runs with these seeds train on: ``batches(epoch)`` gives x (K, B, *shape) and y (K, B) of each step.

    K is 1 where all seeds are the same. With several processes each gets its part of every batch. Where pictures are
    mixed, y is (K, B, C).
    """

    def __init__(self, data: Dataset, seeds: Sequence[int], *, size: int, steps: int) -> None:
        self._data, self._seeds, self._size, self._steps = data, seeds, size, steps
        changes = data.augmentation is not None and data.augmentation.changes_pictures
        self._source = Source(data, seeds) if changes else None

    def __call__(self, epoch: int) -> Iterator[Batch]:
        part = self._data.view(epoch)
        rows = shuffled(part, self._seeds, epoch)[:, : self._steps * self._size]
        shares = [processes.local_part(batch) for batch in rows.split(self._size, dim=1)]
        batches = map(part.gather, shares) if self._source is None else self._changed(epoch, part, shares)
        augmentation = self._data.augmentation
        return self._mixed(epoch, batches) if augmentation is not None and augmentation.mixes else batches

    def _changed(self, epoch: int, part: Split, shares: Sequence[Tensor]) -> Iterator[Batch]:
        assert self._source is not None
        for rows, x in zip(shares, self._source.epoch(epoch, shares), strict=True):
            yield x.to(self._data.device), part.targets(rows)

    def _mixed(self, epoch: int, batches: Iterator[Batch]) -> Iterator[Batch]:
        augmentation, classes = self._data.augmentation, len(self._data.classes)
        assert augmentation is not None
        for step, (x, y) in enumerate(batches):
            of_each = [
                augmentation.mixed(*own, classes=classes, seed=seed, epoch=epoch, step=step)
                for seed, *own in zip(self._seeds, x.to(self._data.scale.dtype), y, strict=False)
            ]
            mixed_x, mixed_y = zip(*of_each, strict=True)
            yield torch.stack(mixed_x), torch.stack(mixed_y)


class Source(torch_data.Sampler[tuple[int, Rows]]):
    """Serves augmented pictures, made here or, ahead of their use, by worker processes."""

    def __init__(self, data: Dataset, seeds: Sequence[int]) -> None:
        assert data.augmentation is not None
        workers = data.augmentation.processes(data.device)
        self._items: list[tuple[int, Rows]] = []
        self._pictures = _Pictures(data.augmentation, data.train.pool_x, seeds)
        self._loader = (
            torch_data.DataLoader(
                self._pictures,
                batch_size=None,
                sampler=self,
                num_workers=workers,
                persistent_workers=True,
                pin_memory=data.device.type == "cuda",
            )
            if workers
            else None
        )

    def epoch(self, epoch: int, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """The pictures (K, B, *shape) at rows (K, B) of the pool, as they are in an epoch, batch by batch."""
        self._items = [(epoch, rows.tolist()) for rows in batches]
        return iter(self._loader) if self._loader is not None else map(self._pictures.__getitem__, self._items)

    def __iter__(self) -> Iterator[tuple[int, Rows]]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class _Pictures(torch_data.Dataset[Tensor]):
    """What a DataLoader's workers have: an item is a batch in an epoch."""

    def __init__(self, augmentation: Augmentation, pool: Tensor, seeds: Sequence[int]) -> None:
        self._augmentation, self._pool, self._seeds = augmentation, pool, seeds

    def __getitem__(self, item: tuple[int, Rows]) -> Tensor:
        epoch, rows = item
        with torch.random.fork_rng(devices=[]):
            changed = [
                self._augmentation.changed(self._pool[row], seed=seed, epoch=epoch, row=row)
                for seed, own in zip(self._seeds, rows, strict=False)
                for row in own
            ]
        return torch.stack(changed).view(len(rows), -1, *changed[0].shape)


def shuffled(train: Split, seeds: Sequence[int], epoch: int) -> Tensor:
    """Where the samples of an epoch lie in the pool, in each seed's order, (K, n); (1, n) where all are the same."""
    own = seeds if len(set(seeds)) > 1 else seeds[:1]
    order = torch.stack([torch.randperm(len(train), generator=generator(seed, "order", epoch)) for seed in own])
    return train.rows_at(order.to(train.pool_y.device))
