"""Datasets from arrays: those of the user's own code, and those in ``.npz`` files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlhw.data.normalization import Normalization
from dlhw.data.preparation import Preparation, Standardization
from dlhw.data.tensors import Dataset, Split, fingerprint, split_off
from dlhw.errors import UsageError

Part = tuple[Any, Any]
LARGEST_PIXEL = 255


def from_arrays(
    x: Any,
    y: Any,
    *,
    seed: int,
    name: str = "arrays",
    val: Part | None = None,
    test: Part | None = None,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.0,
    classes: Sequence[str] | None = None,
    standardize: bool = True,
    about: Mapping[str, Any] | None = None,
) -> Dataset:
    """Return the dataset of these samples, for a dataset function of your own.

    Args:
        x: samples (N, *shape), a NumPy array or tensor of numbers. Pictures are (N, C, H, W) or, with one channel,
            (N, H, W); as uint8 they stay bytes until a batch needs them.
        y: labels (N,): whole numbers, booleans or texts for classification, floating-point numbers for regression.
        seed: decides which samples are for validation and test; the one that a dataset function gets.
        name: of the dataset, in titles and summaries.
        val: samples and labels for validation; None: ``validation_fraction`` of ``x``.
        test: samples and labels for the test; None: ``test_fraction`` of ``x``, none if that is 0.
        classes: names for the labels 0, 1, ...; None: the different labels, sorted.
        standardize: give each feature, or each channel, mean 0 and variance 1 over the training part.
        about: further entries for the summary of a run.

    Raises:
        UsageError: a sample is not finite, the numbers of samples and labels differ, or a part would be empty.
    """
    parts = {"train": (x, y), **{part: arrays for part, arrays in (("val", val), ("test", test)) if arrays is not None}}
    samples = {part: _samples(part, arrays[0]) for part, arrays in parts.items()}
    names, targets = _targets({part: np.asarray(arrays[1]) for part, arrays in parts.items()}, classes)
    splits = {}
    for part, tensor in samples.items():
        if tensor.shape[1:] != samples["train"].shape[1:]:
            raise UsageError(
                f"{name}: samples of shape {_shape(tensor)} in {part}, but {_shape(samples['train'])} in train"
            )
        if len(tensor) != len(targets[part]):
            raise UsageError(f"{name}: {len(tensor)} samples in {part}, but {len(targets[part])} labels")
        splits[part] = Split(tensor, targets[part])
    digest = fingerprint(*splits.values())
    rest = splits["train"]
    if test is None and test_fraction:
        rest, splits["test"] = split_off(rest, test_fraction, seed=seed, part="test")
    if val is None:
        rest, splits["val"] = split_off(rest, validation_fraction, seed=seed)
    splits["train"] = rest
    preparation, normalize = _scaling(rest, standardize=standardize)
    if preparation is not None:
        pools = {id(split.pool_x): preparation(split.pool_x) for split in splits.values()}
        splits = {
            part: replace(split, pool_x=pools[id(split.pool_x)], raw=split.pool_x) for part, split in splits.items()
        }
    return Dataset(
        name=name,
        train=splits["train"],
        val=splits["val"],
        test=splits.get("test"),
        normalize=normalize,
        classes=names,
        sha256=digest,
        about=about or {},
        prepare=preparation,
    )


def _samples(part: str, values: Any) -> Tensor:
    """Return samples as a tensor of uint8 or floating-point numbers. Raise UsageError if a value is not finite."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim < 2 or not len(array) or array.dtype.kind not in "buif":
        raise UsageError(
            f"{part}: samples of type {array.dtype} and shape {array.shape}; expected numbers of shape (N, ...)"
        )
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if tensor.dtype == torch.uint8:
        return tensor.unsqueeze(1) if tensor.ndim == 3 else tensor
    if not tensor.is_floating_point():
        tensor = tensor.double()
    if not tensor.isfinite().all():
        row = int((~tensor.isfinite()).flatten(1).any(1).nonzero()[0])
        raise UsageError(f"{part}: sample {row} has a value that is not finite")
    return tensor


def _targets(labels: Mapping[str, Any], classes: Sequence[str] | None) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Return the names of the classes, empty for regression, and the targets of each part."""
    for part, values in labels.items():
        if values.ndim != 1:
            raise UsageError(f"{part}: labels of shape {values.shape}; expected one label per sample, (N,)")
    if all(values.dtype.kind == "f" for values in labels.values()):
        for part, values in labels.items():
            if not np.isfinite(values).all():
                raise UsageError(f"{part}: label {int(np.flatnonzero(~np.isfinite(values))[0])} is not finite")
        return (), {part: torch.from_numpy(values.copy()) for part, values in labels.items()}
    known = np.unique(np.concatenate([values.astype(object) for values in labels.values()]))
    if classes is not None:
        last = len(classes) - 1
        wrong = [value for value in known if not isinstance(value, int | np.integer) or not 0 <= value <= last]
        if wrong:
            raise UsageError(
                f"label {wrong[0]!r}: expected whole numbers from 0 to {last}, one for each of the classes"
            )
        return tuple(classes), {part: torch.from_numpy(values.astype(np.int64)) for part, values in labels.items()}
    indices = {part: np.searchsorted(known, values.astype(object)) for part, values in labels.items()}
    return tuple(map(str, known)), {part: torch.from_numpy(index.astype(np.int64)) for part, index in indices.items()}


def _scaling(train: Split, *, standardize: bool) -> tuple[Preparation | None, Normalization]:
    """Return the preparation of raw samples, if any, and the normalization of those in the pool."""
    shape = tuple(train.pool_x.shape[1:])
    pixels = train.pool_x.dtype == torch.uint8
    if standardize and not pixels:
        return Standardization.of(train.x), _unchanged(shape)
    if not standardize:
        return None, _unchanged(shape)
    learned = Standardization.of(train.x)
    mean, std = ((values.flatten() / LARGEST_PIXEL).tolist() for values in (learned.mean, learned.std))
    return None, Normalization.of_pixels(mean, std, largest=LARGEST_PIXEL, shape=shape)


def _unchanged(shape: tuple[int, ...]) -> Normalization:
    return Normalization.of_pixels(0.0, 1.0, largest=1, shape=shape)


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape[1:])
