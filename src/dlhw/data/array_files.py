"""Datasets in files of arrays: ``.npz`` of NumPy, and IDX, the format of MNIST, of any size."""

from __future__ import annotations

import contextlib
import gzip
import logging
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
from pydantic import Field

from dlhw.data.arrays import Part, from_arrays
from dlhw.data.tables import located
from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError
from dlhw.runtime.options import PathText
from dlhw.runtime.paths import places_of, printable, shortened

log = logging.getLogger(__name__)

Fraction = Annotated[float, Field(gt=0, lt=1)]
FractionOrNone = Annotated[float, Field(ge=0, lt=1)]
Array = np.ndarray[Any, Any]

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
    standardize: bool,
    validation_fraction: Fraction,
    test_fraction: FractionOrNone,
) -> Dataset:
    """The samples and labels in an ``.npz`` file, with the parts that it has.

    The arrays are found by their names, such as x and y, x_train and y_test, or train_images and val_labels; ``x`` and
    ``y`` name those of the training part otherwise. Raise UsageError if they are not in the file.
    """
    file = located(path, Path(data_dir))
    if not zipfile.is_zipfile(file):
        raise UsageError(f"{printable(file)}: not an .npz file")
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{printable(file)}: cannot be read as .npz ({_reason(error)})") from error
    for option, name in (("x", x), ("y", y)):
        if name is not None and name not in arrays:
            raise UsageError(f"dataset.{option}={shortened(name)}: no such array; {_listed(file, arrays)}")
    parts = _parts(arrays)
    if x is not None and y is not None:
        parts["train"] = (arrays[x], arrays[y])
    if "train" not in parts:
        raise UsageError(f"{_listed(file, arrays)}; expected dataset.x and dataset.y with the names of two of them")
    return _dataset(
        file, file.stem, parts, seed=seed, validation=validation_fraction, test=test_fraction, standardize=standardize
    )


def idx_folder(
    *,
    data_dir: str | Path,
    seed: int,
    root: PathText,
    standardize: bool,
    validation_fraction: Fraction,
    test_fraction: FractionOrNone,
) -> Dataset:
    """The samples and labels in IDX files of any size, such as ``train-images-idx3-ubyte.gz``, in one folder.

    A name has one of the words train, val and test (or t10k), and one of images and labels. Raise UsageError for
    missing, ambiguous and invalid files.
    """
    folder = next((place for place in places_of(Path(root), Path(data_dir)) if place.is_dir()), None)
    if folder is None:
        raise UsageError(f"dataset.root={printable(root)}: no such folder")
    files: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if re.search(r"idx\d-", path.name) or path.name.endswith((".idx", ".idx.gz")):
            name = path.name.lower()
            kind = "labels" if "label" in name else "images"
            part = next((part for part, words in PARTS.items() if any(word in name for word in words)), "train")
            files.setdefault((part, kind), []).append(path)
    for paths in files.values():
        if len({path.name.removesuffix(".gz") for path in paths}) > 1:
            names = " and ".join(path.name for path in paths[:2])
            raise UsageError(f"{printable(folder)}: {names} have the same meaning; expected one of them in the folder")
    missing = [f"train {kind}" for kind in ("images", "labels") if ("train", kind) not in files]
    if missing:
        raise UsageError(
            f"dataset.root={printable(root)}: no IDX file of {' and '.join(missing)}; expected names such as "
            "train-images-idx3-ubyte and train-labels-idx1-ubyte, uncompressed or as .gz"
        )
    whole = [part for part in PARTS if (part, "images") in files and (part, "labels") in files]
    parts = {part: (read_idx(files[part, "images"][0]), read_idx(files[part, "labels"][0])) for part in whole}
    return _dataset(
        folder,
        folder.name,
        parts,
        seed=seed,
        validation=validation_fraction,
        test=test_fraction,
        standardize=standardize,
    )


def read_idx(path: Path) -> Array:
    """Read an IDX file of any type and shape, uncompressed or .gz. Raise UsageError if it is invalid."""
    try:
        with _opened(path) as file:
            start = file.read(4)
            dtype = IDX_TYPES.get(start[2]) if len(start) == 4 and not start[0] and not start[1] else None
            if dtype is None:
                raise ValueError(f"invalid header {start.hex()}")
            shape = tuple(np.frombuffer(file.read(4 * start[3]), ">u4").tolist())
            size = math.prod(shape) * np.dtype(dtype).itemsize
            if len(shape) != start[3] or size > LARGEST_IDX:
                raise ValueError(f"invalid shape {shape}")
            content = file.read(size + 1)
            if len(content) != size:
                raise ValueError(
                    f"{'truncated' if len(content) < size else 'too long'}: expected {size} bytes of values"
                )
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UsageError(f"{printable(path)}: cannot be read as IDX ({_reason(error)})") from error
    array = np.frombuffer(content, dtype).reshape(shape)
    return array.astype(array.dtype.newbyteorder("="))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        yield file


def _parts(arrays: Mapping[str, Array]) -> dict[str, Part]:
    """Return samples and labels of each part, by the words in the names of the arrays."""
    found: dict[str, dict[str, Array]] = {}
    for name, array in arrays.items():
        words = set(re.split(r"[^a-z0-9]+", name.lower()))
        kind = "x" if words & set(SAMPLES) else "y" if words & set(LABELS) else None
        part = next((part for part, names in PARTS.items() if words & set(names)), "train")
        if kind is not None:
            found.setdefault(part, {})[kind] = array
    return {part: (pair["x"], pair["y"]) for part, pair in found.items() if len(pair) == 2}


def _dataset(
    place: Path,
    name: str,
    parts: Mapping[str, Part],
    *,
    seed: int,
    validation: float,
    test: float,
    standardize: bool,
) -> Dataset:
    try:
        data = from_arrays(
            *_channels_first(*parts["train"]),
            seed=seed,
            name=name,
            val=_channels_first(*parts["val"]) if "val" in parts else None,
            test=_channels_first(*parts["test"]) if "test" in parts else None,
            validation_fraction=validation,
            test_fraction=test,
            standardize=standardize,
        )
    except UsageError as error:
        raise UsageError(f"{printable(place)}: {error}") from error
    sizes = ", ".join(f"{part} {len(split):,}" for part, split in data.parts.items())
    kind = f"{len(data.classes)} classes" if data.classes else "regression"
    log.info("%s: samples of shape %s, %s; %s", printable(place), data.shape, sizes, kind)
    return data


def _channels_first(x: Array, y: Array) -> Part:
    """Return pictures (N, H, W, C) of 1, 3 or 4 channels as (N, C, H, W), and labels (N, 1) as (N,)."""
    if x.ndim == 4 and x.shape[3] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        x = np.moveaxis(x, 3, 1)
    return x, y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y


def _listed(file: Path, arrays: Mapping[str, Array]) -> str:
    names = ", ".join(f"{name} {array.shape}" for name, array in list(arrays.items())[:12])
    return f"{printable(file)} has the arrays {names or 'none'}"


def _reason(error: Exception) -> str:
    return shortened(" ".join(str(error).split()))
