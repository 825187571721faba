"""Datasets from arrays: those of the user's own code, and those in files of arrays."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dlhw.data.normalization import Normalization
from dlhw.data.preparation import Standardization
from dlhw.data.tensors import Dataset, Split, digest, split_off
from dlhw.errors import UsageError
from dlhw.runtime.paths import shortened

log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]
Part = tuple[Any, Any]
Task = Literal["auto", "classification", "regression"]
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
    task: Task = "auto",
    classes: Sequence[str] | None = None,
    standardize: bool = True,
    about: Mapping[str, Any] | None = None,
) -> Dataset:
    """Return the dataset of these samples, for a dataset function of your own.

    Args:
        x: samples (N, *shape), a NumPy array or tensor of numbers. Pictures are (N, C, H, W); as uint8 they stay bytes
            until a batch needs them, and (N, H, W) of uint8 are pictures with one channel.
        y: labels (N,) or (N, 1).
        seed: decides which samples are for validation and test; the one that a dataset function gets.
        name: of the dataset, in titles and summaries.
        val: samples and labels for validation; None: ``validation_fraction`` of ``x``.
        test: samples and labels for the test; None: ``test_fraction`` of ``x``, none if that is 0.
        task: ``auto`` is regression if the labels are floating-point numbers, and classification if they are whole
            numbers, booleans or texts.
        classes: names for the labels 0, 1, ...; None: the different labels, sorted.
        standardize: give each feature, or each channel, mean 0 and variance 1 over the training part.
        about: further entries for the summary of a run.

    Raises:
        UsageError: a sample or label is missing or not finite, the numbers of samples and labels differ, the labels
            do not fit the task, or a part would be empty.
    """
    others = {part: _pair(pair, part) for part, pair in (("val", val), ("test", test)) if pair is not None}
    given = {"train": (x, y), **others}
    samples = {part: _samples(as_array(pair[0]), part) for part, pair in given.items()}
    names, targets = targets_of({part: as_array(pair[1]) for part, pair in given.items()}, task=task, classes=classes)
    _require_fitting(samples, targets)
    wholes = {part: Split(samples[part], targets[part]) for part in given}
    parts = split_parts(wholes, names, seed=seed, validation_fraction=validation_fraction, test_fraction=test_fraction)
    preparation, normalize = _scaling(parts["train"], standardize=standardize)
    if preparation is not None:
        pools = {id(whole.pool_x): preparation(whole.pool_x) for whole in wholes.values()}
        parts = {
            part: replace(split, pool_x=pools[id(split.pool_x)], raw=split.pool_x) for part, split in parts.items()
        }
    return Dataset(
        name=name,
        train=parts["train"],
        val=parts["val"],
        test=parts.get("test"),
        normalize=normalize,
        classes=names,
        sha256=digest(*wholes.values()),
        about=about or {},
        prepare=preparation,
    )


def _pair(pair: object, part: str) -> tuple[Any, Any]:
    """Return samples and labels. Raise UsageError for anything else."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise UsageError(f"{part}: a {type(pair).__name__}; expected a pair of samples and labels, (x, y)")
    return pair[0], pair[1]


def as_array(values: Any) -> Array:
    """Return an array or tensor, on any device, as a NumPy array; without a copy where possible. Raise UsageError."""
    if isinstance(values, Tensor):
        return values.detach().cpu().numpy()
    try:
        return np.asarray(values)
    except ValueError as error:
        raise UsageError("lists of different lengths; expected an array, a tensor or lists of equal length") from error


def targets_of(
    labels: Mapping[str, Array], *, task: Task = "auto", classes: Sequence[str] | None = None
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Return the names of the classes, empty for regression, and the targets (N,) of each part.

    See :func:`from_arrays` for the arguments. Raise UsageError if the labels do not fit the task.
    """
    columns = {part: column_of(values, part) for part, values in labels.items()}
    floating = all(values.dtype.kind == "f" for values in columns.values())
    if task == "regression" or (task == "auto" and floating and classes is None):
        return (), {part: _numbers(values, part) for part, values in columns.items()}
    distinct = {part: _distinct(values, part) for part, values in columns.items()}
    known = _sorted(value for values, _ in distinct.values() for value in values)
    names = _named(known) if classes is None else _checked_names(known, classes)
    index_of = {value: index if classes is None else int(value) for index, value in enumerate(known)}
    indices = {
        part: np.array([index_of[value] for value in values], np.int64)[inverse]
        for part, (values, inverse) in distinct.items()
    }
    return names, {part: torch.from_numpy(values) for part, values in indices.items()}


def split_parts(
    wholes: Mapping[str, Split],
    classes: Sequence[str],
    *,
    seed: int,
    validation_fraction: float,
    test_fraction: float,
) -> dict[str, Split]:
    """Return train, val and, if there is one, test. What is not in ``wholes`` is split off the part train.

    The split depends on the seed and the number of samples only. Raise UsageError if a part would be empty.
    """
    parts = dict(wholes)
    if "test" not in parts and test_fraction:
        parts["train"], parts["test"] = split_off(parts["train"], test_fraction, seed=seed, part="test")
    if "val" not in parts:
        parts["train"], parts["val"] = split_off(parts["train"], validation_fraction, seed=seed)
    if classes:
        counts = torch.bincount(parts["train"].y, minlength=len(classes)).tolist()
        unseen = [shortened(name) for name, count in zip(classes, counts, strict=True) if not count]
        if unseen:
            log.warning("no training samples of the class%s %s", "es" * (len(unseen) > 1), ", ".join(unseen))
    return {part: parts[part] for part in ("train", "val", "test") if part in parts}


def _samples(values: Array, part: str) -> Tensor:
    """Return samples as a tensor of uint8, float32 or float64. Raise UsageError if a value is not finite."""
    if values.dtype.kind not in "buif" or values.dtype.itemsize > 8 or values.ndim < 2 or not values.size:
        raise UsageError(
            f"{part}: samples of type {values.dtype} and shape {values.shape}; expected numbers of shape (N, features) "
            "or (N, channels, rows, columns)"
        )
    pixels = values.dtype == np.uint8
    array = np.require(values, np.uint8 if pixels else np.result_type(values.dtype, np.float32), ["C", "W"])
    if not pixels:
        _require_finite(array, part, "sample")
    tensor = torch.from_numpy(array)
    return tensor.unsqueeze(1) if pixels and tensor.ndim == 3 else tensor


def column_of(labels: Array, part: str) -> Array:
    """Return labels (N,) from those of shape (N,) or (N, 1)."""
    column = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if column.ndim != 1 or column.dtype.kind not in "buifUSO":
        raise UsageError(
            f"{part}: labels of type {labels.dtype} and shape {labels.shape}; expected one number or text per sample, "
            "(N,)"
        )
    return column


def _numbers(labels: Array, part: str) -> Tensor:
    if labels.dtype.kind not in "buif":
        raise UsageError(f"{part}: labels of type {labels.dtype}; expected numbers for regression")
    single = labels.dtype.kind == "f" and labels.dtype.itemsize <= 4
    array = np.require(labels, np.float32 if single else np.float64, ["C", "W"])
    _require_finite(array, part, "label")
    return torch.from_numpy(array)


def _require_finite(array: Array, part: str, noun: str) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        row = int(np.flatnonzero(~finite.reshape(len(array), -1).all(1))[0])
        raise UsageError(f"{part}: {noun} {row}, counted from 0, has a value that is missing or not finite")


def _distinct(labels: Array, part: str) -> tuple[list[Any], Array]:
    """Return the different labels as Python values, and the index of each label among them."""
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    if labels.dtype.kind == "f":
        _require_finite(labels, part, "label")
        if (uneven := labels != np.round(labels)).any():
            raise UsageError(f"{part}: the label {labels[uneven][0]} is not whole; expected classes")
        labels = labels.astype(np.int64)
    if labels.dtype.kind == "O" and (missing := [i for i, value in enumerate(labels) if _is_missing(value)]):
        raise UsageError(f"{part}: label {missing[0]}, counted from 0, is missing")
    try:
        values, inverse = np.unique(labels, return_inverse=True)
    except TypeError as error:
        raise _different_types(labels.tolist()) from error
    return values.tolist(), inverse


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _sorted(values: Any) -> list[Any]:
    known = list(dict.fromkeys(values))
    try:
        return sorted(known)
    except TypeError as error:
        raise _different_types(known) from error


def _different_types(values: Sequence[Any]) -> UsageError:
    types = sorted({type(value).__name__ for value in values})
    return UsageError(f"labels of different types: {', '.join(types)}; expected only texts or only whole numbers")


def _named(labels: Sequence[Any]) -> tuple[str, ...]:
    return tuple(map(str, labels))


def _checked_names(labels: Sequence[Any], names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the classes. Raise UsageError if a label is not the number of one."""
    for label in labels:
        if not isinstance(label, int | np.integer) or not 0 <= label < len(names):
            raise UsageError(
                f"label {shortened(label)}: expected whole numbers from 0 to {len(names) - 1}, one for each of the "
                "classes"
            )
    return tuple(names)


def _require_fitting(samples: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
    """Raise UsageError if parts differ in the shape of samples, or a part in the numbers of samples and labels."""
    shape = tuple(samples["train"].shape[1:])
    for part, x in samples.items():
        if x.shape[1:] != shape:
            raise UsageError(f"samples of shape {tuple(x.shape[1:])} in {part}, but {shape} in train")
        if (x.dtype == torch.uint8) != (samples["train"].dtype == torch.uint8):
            raise UsageError(f"samples of type {x.dtype} in {part}, but {samples['train'].dtype} in train")
        if len(x) != len(targets[part]):
            raise UsageError(f"{len(x)} samples in {part}, but {len(targets[part])} labels")


def _scaling(train: Split, *, standardize: bool) -> tuple[Standardization | None, Normalization]:
    """Return the preparation of raw samples, if any, and the normalization of those in the pool.

    Bytes are standardized by the normalization, batch by batch, all others by the preparation, once.
    """
    shape = tuple(train.pool_x.shape[1:])
    largest = LARGEST_PIXEL if train.pool_x.dtype == torch.uint8 else 1
    unchanged = Normalization.of_pixels(0.0, 1 / largest, largest=largest, shape=shape)
    if not standardize:
        return None, unchanged
    learned = Standardization.of(train.pool_x, train.all_rows()[0])
    if train.pool_x.dtype != torch.uint8:
        return learned, unchanged
    mean, std = ((values.flatten() / LARGEST_PIXEL).tolist() for values in (learned.mean, learned.std))
    return None, Normalization.of_pixels(mean, std, largest=LARGEST_PIXEL, shape=shape)
