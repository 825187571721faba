"""The training batches of an epoch: the samples, their order, and their augmentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils import data as torch_data

from dlhw.data.augmentation import Augmentation
from dlhw.data.tensors import Dataset, Split
from dlhw.runtime import processes
from dlhw.runtime.options import SampleOrder
from dlhw.runtime.randomness import generator

Batch = tuple[Tensor, Tensor]
Rows = list[list[int]]


class Batches:
    """The training batches of runs with these seeds: ``batches(epoch)`` yields x (K, B, *shape) and y (K, B) per step.

    K is 1 if all seeds are equal. With several processes, each process gets its share of every batch. With mixup or
    cutmix, y is (K, B, C). With ``order="fixed"``, every epoch has the same batches.
    """

    def __init__(
        self, data: Dataset, seeds: Sequence[int], *, size: int, steps: int, order: SampleOrder = "shuffled"
    ) -> None:
        self._data, self._seeds, self._size, self._steps, self._order = data, seeds, size, steps, order
        self._augmented = AugmentedPictures(data, seeds) if data.augments_pictures else None

    def __call__(self, epoch: int) -> Iterator[Batch]:
        train = self._data.view(epoch)
        ordered = shuffled(train, self._seeds, epoch) if self._order == "shuffled" else train.all_rows()
        rows = ordered[:, : self._steps * self._size]
        shares = [processes.local_part(batch) for batch in rows.split(self._size, dim=1)]
        batches = map(train.gather, shares) if self._augmented is None else self._augment(epoch, train, shares)
        augmentation = self._data.augmentation
        return self._mix(epoch, batches) if augmentation is not None and augmentation.mixes else batches

    def _augment(self, epoch: int, train: Split, shares: Sequence[Tensor]) -> Iterator[Batch]:
        assert self._augmented is not None
        for rows, x in zip(shares, self._augmented.epoch(epoch, shares), strict=True):
            yield x.to(self._data.device), train.targets(rows)

    def _mix(self, epoch: int, batches: Iterator[Batch]) -> Iterator[Batch]:
        augmentation, classes = self._data.augmentation, len(self._data.classes)
        assert augmentation is not None
        for step, (x, y) in enumerate(batches):
            variants = [
                augmentation.mix(x_k, y_k, classes=classes, seed=seed, epoch=epoch, step=step)
                for seed, x_k, y_k in zip(self._seeds, x.to(self._data.normalize.dtype), y, strict=False)
            ]
            mixed_x, mixed_y = zip(*variants, strict=True)
            yield torch.stack(mixed_x), torch.stack(mixed_y)


class AugmentedPictures(torch_data.Sampler[tuple[int, Rows]]):
    """Yields augmented pictures, computed in this process or in advance by worker processes."""

    def __init__(self, data: Dataset, seeds: Sequence[int]) -> None:
        assert data.augmentation is not None
        workers = data.augmentation.processes(data.device)
        self._items: list[tuple[int, Rows]] = []
        self._batches = _AugmentedBatches(data.augmentation, data.train.pool_x, seeds)
        self._loader = (
            torch_data.DataLoader(
                self._batches,
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
        """Yield, for each batch of rows (K, B) of the pool, the pictures (K, B, *shape), augmented for this epoch."""
        self._items = [(epoch, rows.tolist()) for rows in batches]
        return iter(self._loader) if self._loader is not None else map(self._batches.__getitem__, self._items)

    def __iter__(self) -> Iterator[tuple[int, Rows]]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class _AugmentedBatches(torch_data.Dataset[Tensor]):
    """The dataset of the DataLoader: an item is a batch of augmented pictures, indexed by epoch and rows."""

    def __init__(self, augmentation: Augmentation, pool: Tensor, seeds: Sequence[int]) -> None:
        self._augmentation, self._pool, self._seeds = augmentation, pool, seeds

    def __getitem__(self, item: tuple[int, Rows]) -> Tensor:
        epoch, rows = item
        with torch.random.fork_rng(devices=[]):
            pictures = [
                self._augmentation.augment(self._pool[row], seed=seed, epoch=epoch, row=row)
                for seed, rows_of_seed in zip(self._seeds, rows, strict=False)
                for row in rows_of_seed
            ]
        return torch.stack(pictures).view(len(rows), -1, *pictures[0].shape)


def shuffled(train: Split, seeds: Sequence[int], epoch: int) -> Tensor:
    """Return the rows of the pool in each seed's order for this epoch, (K, n); (1, n) if all seeds are equal."""
    distinct = seeds if len(set(seeds)) > 1 else seeds[:1]
    order = torch.stack([torch.randperm(len(train), generator=generator(seed, "order", epoch)) for seed in distinct])
    return train.rows_at(order.to(train.pool_y.device))
