"""Datasets in files of arrays: ``.npz`` of NumPy, and IDX, the format of MNIST, of any size."""

from __future__ import annotations

import gzip
import logging
import math
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from dlhw.data.arrays import Array, Part, Task, from_arrays
from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError
from dlhw.runtime.hints import expected_one_of
from dlhw.runtime.options import Fraction, FractionOrZero, PathText
from dlhw.runtime.paths import existing_file, places_of, printable, shortened

log = logging.getLogger(__name__)


PARTS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test", "t10k")}
"""The words for each part in names of arrays and files."""
SAMPLES, LABELS = ("x", "images", "data", "samples", "inputs"), ("y", "labels", "targets")
"""The words for samples and labels in names of arrays."""
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
LARGEST_IDX = 2**36
"""The largest number of bytes in an uncompressed IDX file."""


def npz(
    *,
    data_dir: str | Path,
    seed: int,
    path: PathText,
    x: str | None,
    y: str | None,
    task: Task,
    standardize: bool,
    validation_fraction: Fraction,
    test_fraction: FractionOrZero,
) -> Dataset:
    """The samples and labels in an ``.npz`` file, with the parts that it has.

    The arrays are found by their names, such as x and y, x_train and y_test, or train_images and val_labels; ``x`` and
    ``y`` name those of the training part otherwise. Raise UsageError if they are not in the file.
    """
    file = existing_file(path, Path(data_dir), key="dataset.path")
    if not zipfile.is_zipfile(file):
        raise UsageError(f"{printable(file)}: not an .npz file")
    try:
        with np.load(file, allow_pickle=False) as archive:
            names = _names_of_parts(archive.files, file, x=x, y=y)
            parts = {part: (_array(archive, x, file), _array(archive, y, file)) for part, (x, y) in names.items()}
    except UsageError:
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{printable(file)}: cannot be read as .npz ({_reason(error)})") from error
    return _dataset(
        file,
        parts,
        name=file.stem,
        seed=seed,
        task=task,
        standardize=standardize,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
    )


def idx_folder(
    *,
    data_dir: str | Path,
    seed: int,
    root: PathText,
    standardize: bool,
    validation_fraction: Fraction,
    test_fraction: FractionOrZero,
) -> Dataset:
    """The samples and labels in IDX files of any size, such as ``train-images-idx3-ubyte.gz``, in one folder.

    A name has one of the words train, val and test (or t10k), and one of images and labels. Raise UsageError for
    missing, ambiguous and invalid files.
    """
    folder = next((place for place in places_of(Path(root), Path(data_dir)) if place.is_dir()), None)
    if folder is None:
        raise UsageError(f"dataset.root={printable(root)}: no such folder")
    files = {path.name.removesuffix(".gz"): path for path in sorted(folder.iterdir(), reverse=True) if _is_idx(path)}
    names = _pairs({name: _meaning_of_file(name) for name in files}, folder)
    if "train" not in names:
        raise UsageError(
            f"dataset.root={printable(root)}: no IDX files of training samples and labels; expected names such as "
            "train-images-idx3-ubyte and train-labels-idx1-ubyte, uncompressed or as .gz"
        )
    return _dataset(
        folder,
        {part: (read_idx(files[samples]), read_idx(files[labels])) for part, (samples, labels) in names.items()},
        name=folder.name,
        seed=seed,
        standardize=standardize,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
    )


def read_idx(path: Path) -> Array:
    """Read an IDX file of any type and shape, uncompressed or .gz. Raise UsageError if it is invalid."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            dtype, shape = _idx_header(file)
            size = math.prod(shape) * dtype.itemsize
            if size > LARGEST_IDX:
                raise ValueError(f"invalid shape {shape}")
            content = file.read(size + 1)
            if len(content) != size:
                reason = "truncated" if len(content) < size else "too long"
                raise ValueError(f"{reason}: expected {size} bytes of values of shape {shape}")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UsageError(f"{printable(path)}: cannot be read as IDX ({_reason(error)})") from error
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _idx_header(file: IO[bytes] | gzip.GzipFile) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Read the type and the shape: two zero bytes, the type, the number of dimensions, and each size, big-endian."""
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in IDX_TYPES:
        raise ValueError(f"invalid header {start.hex()}")
    sizes = file.read(4 * start[3])
    if len(sizes) < 4 * start[3]:
        raise ValueError("truncated header")
    return np.dtype(IDX_TYPES[start[2]]), tuple(np.frombuffer(sizes, ">u4").tolist())


def _is_idx(path: Path) -> bool:
    return bool(re.search(r"idx\d-", path.name)) or path.name.endswith((".idx", ".idx.gz"))


def _array(archive: Any, name: str, file: Path) -> Array:
    """Return an array. Raise UsageError for Python objects, which are not unpickled."""
    try:
        array: Array = archive[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise UsageError(
            f"{printable(file)}: the array {shortened(name)} has Python objects, which are not read; expected numbers "
            "or texts: save it with .astype(float) or .astype(str)"
        ) from error
    return array


def _names_of_parts(names: Sequence[str], file: Path, *, x: str | None, y: str | None) -> dict[str, tuple[str, str]]:
    """Return the names of the arrays with samples and labels, by part. Raise UsageError if some do not exist."""
    for option, name in (("x", x), ("y", y)):
        if name is not None and name not in names:
            hint = expected_one_of(name, names)
            raise UsageError(f"dataset.{option}={shortened(name)}: {printable(file)} has no such array{hint}")
    meanings = {name: _meaning_of_array(name) for name in names}
    for kind, chosen in (("samples", x), ("labels", y)):
        if chosen is not None:
            meanings = {name: None if meaning == ("train", kind) else meaning for name, meaning in meanings.items()}
            meanings[chosen] = ("train", kind)
    pairs = _pairs(meanings, file)
    if "train" not in pairs:
        raise UsageError(
            f"{printable(file)}: has the arrays {', '.join(map(shortened, names)) or 'none'}; name those with samples "
            "and labels with dataset.x and dataset.y, or x and y in the file"
        )
    unused = [name for name in names if all(name not in pair for pair in pairs.values())]
    if unused:
        log.info("%s: not used: %s", printable(file), ", ".join(map(shortened, unused)))
    return pairs


def _meaning_of_array(name: str) -> tuple[str, str] | None:
    """Return part and kind by the words in the name of an array; None for one with neither samples nor labels."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    kind = "samples" if words & set(SAMPLES) else "labels" if words & set(LABELS) else None
    return None if kind is None else (_part(words), kind)


def _meaning_of_file(name: str) -> tuple[str, str]:
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    return _part(words), "labels" if "label" in name.lower() else "samples"


def _part(words: Iterable[str]) -> str:
    return next((part for part, names in PARTS.items() if set(words) & set(names)), "train")


def _pairs(meanings: Mapping[str, tuple[str, str] | None], place: Path) -> dict[str, tuple[str, str]]:
    """Return the names of samples and labels by part. Raise UsageError if two names mean the same, or one is missing.

    The training part may be missing altogether.
    """
    names: dict[tuple[str, str], str] = {}
    for name, meaning in meanings.items():
        if meaning in names:
            raise UsageError(
                f"{printable(place)}: {shortened(names[meaning])} and {shortened(name)} may both be the {meaning[0]} "
                f"{meaning[1]}; expected one of them"
            )
        if meaning is not None:
            names[meaning] = name
    pairs = {}
    for part in PARTS:
        kinds = [kind for kind in ("samples", "labels") if (part, kind) in names]
        if len(kinds) == 1:
            missing = "labels" if kinds == ["samples"] else "samples"
            raise UsageError(f"{printable(place)}: {shortened(names[part, kinds[0]])} has no {part} {missing}")
        if kinds:
            pairs[part] = names[part, "samples"], names[part, "labels"]
    return pairs


def _dataset(place: Path, parts: Mapping[str, Part], **options: Any) -> Dataset:
    """Return the dataset of these parts, and log what it has. An error starts with the path of the files."""
    arrays = {part: (_channels_first(x), y) for part, (x, y) in parts.items()}
    try:
        data = from_arrays(*arrays["train"], val=arrays.get("val"), test=arrays.get("test"), **options)
    except UsageError as error:
        raise UsageError(f"{printable(place)}: {error}") from error
    each = "channel" if len(data.shape) > 1 else "feature"
    scaled = f"each {each} standardized by the training part" if options["standardize"] else "not standardized"
    kind = f"{len(data.classes)} classes" if data.classes else "numbers to predict (regression)"
    sizes = ", ".join(f"{part} {len(split):,}" for part, split in data.parts.items())
    log.info("%s: samples of shape %s, %s; %s; %s", printable(place), data.shape, scaled, kind, sizes)
    return data


def _channels_first(x: Array) -> Array:
    """Return pictures (N, H, W, C) of 1, 3 or 4 channels as (N, C, H, W), and other samples as they are."""
    is_last = x.ndim == 4 and x.shape[3] in (1, 3, 4) and x.shape[1] not in (1, 3, 4)
    return np.moveaxis(x, 3, 1) if is_last else x


def _reason(error: Exception) -> str:
    return shortened(" ".join(str(error).split()))
