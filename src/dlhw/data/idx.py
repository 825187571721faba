"""MNIST and the datasets published in its format (IDX): finding, downloading, checking and reading the files.

Every file is checked against its published checksum or, where there is none (unpacked Fashion-MNIST and KMNIST),
against its exact length and header. An invalid file is an error, even if there is a valid copy in the same folder.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import itertools
import math
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, FiniteFloat

from dlhw.data.downloads import fetch
from dlhw.data.tensors import Dataset, Split, assemble
from dlhw.errors import UsageError
from dlhw.runtime.downloads import DownloadFailed
from dlhw.runtime.options import Fraction

Bytes = npt.NDArray[np.uint8]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class IdxFile:
    """The expected content of one file."""

    name: str
    shape: tuple[int, ...]
    below: int
    """Upper bound of the values, exclusive."""
    md5_gz: str
    """Checksum of the compressed file."""
    md5: str | None = None
    """Checksum of the uncompressed file, if published."""

    @property
    def size(self) -> int:
        """Bytes of the uncompressed file: magic number, one word per dimension, values."""
        return 4 + 4 * len(self.shape) + math.prod(self.shape)


@dataclass(frozen=True)
class IdxDataset:
    """A published dataset."""

    name: str
    folder: str
    """Its folder in ``data_dir``, and its class in ``torchvision.datasets``."""
    files: tuple[IdxFile, ...]
    """Training images, training labels, test images, test labels."""
    classes: tuple[str, ...]


def _files(md5_gz: tuple[str, str, str, str], md5: tuple[str | None, ...] = (None,) * 4) -> tuple[IdxFile, ...]:
    return (
        IdxFile("train-images-idx3-ubyte", (60000, 28, 28), 256, md5_gz[0], md5[0]),
        IdxFile("train-labels-idx1-ubyte", (60000,), 10, md5_gz[1], md5[1]),
        IdxFile("t10k-images-idx3-ubyte", (10000, 28, 28), 256, md5_gz[2], md5[2]),
        IdxFile("t10k-labels-idx1-ubyte", (10000,), 10, md5_gz[3], md5[3]),
    )


def load(published: IdxDataset, data_dir: Path, *, download: bool) -> tuple[Split, Split]:
    """Return the published training and test part. With ``download``, missing files are downloaded first."""
    paths = find(published, data_dir)
    missing = [file for file in published.files if file not in paths]
    if missing:
        if not download:
            raise _not_found(published, data_dir, missing, "dataset.download=false")
        try:
            names = [name for file in missing for name in (f"{file.name}.gz", file.name)]
            fetch(published.folder, Path(published.folder, "raw"), names, to=_folders(published, data_dir)[0])
        except DownloadFailed as error:
            raise _not_found(published, data_dir, missing, f"the download failed: {error}") from error
        paths = find(published, data_dir)
    return _read_all(tuple((file, paths[file], os.stat(paths[file]).st_mtime_ns) for file in published.files))


@functools.lru_cache(maxsize=2)  # the jobs of a sweep read the same files
def _read_all(files: tuple[tuple[IdxFile, Path, int], ...]) -> tuple[Split, Split]:
    """Read the training and test part from files with their paths and modification times."""
    with ThreadPoolExecutor(2) as pool:  # md5 releases the GIL
        arrays = pool.map(lambda file: torch.from_numpy(read(*file[:2])), files)
        x_train, y_train, x_test, y_test = arrays
    return Split(x_train.unsqueeze(1), y_train.long()), Split(x_test.unsqueeze(1), y_test.long())


def find(published: IdxDataset, data_dir: Path) -> dict[IdxFile, Path]:
    """Return the path of each file that exists: uncompressed before .gz, unless only the .gz has a checksum."""
    paths: dict[IdxFile, Path] = {}
    for folder, file in itertools.product(_folders(published, data_dir), published.files):
        plain, packed = folder / file.name, folder / f"{file.name}.gz"
        for path in (plain, packed) if file.md5 else (packed, plain):
            if os.path.isfile(path):
                paths.setdefault(file, path)
    return paths


def read(file: IdxFile, path: Path) -> Bytes:
    """Read and check the values in ``path``, uncompressed or .gz. Raise UsageError if the file is invalid."""
    try:
        if path.suffix == ".gz":
            packed = np.fromfile(path, np.uint8, count=2 * file.size + 1024)  # a longer file is invalid anyway
            _check_md5(packed, file.md5_gz)
            with gzip.open(io.BytesIO(packed.data)) as stream:
                content = np.frombuffer(bytearray(stream.read(file.size + 1)), np.uint8)
            return parse(content, file)
        content = np.fromfile(path, np.uint8, count=file.size + 1)
        array = parse(content, file)
        if file.md5 is not None:
            _check_md5(content, file.md5)
        return array
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UsageError(
            f"{path}: {error}; delete it to download it again, or replace it with the published file"
        ) from error


def parse(content: Bytes, file: IdxFile) -> Bytes:
    """Return the values of an IDX file: big-endian words 0x0800 + dimensions and each size, then unsigned bytes."""
    start = file.size - math.prod(file.shape)
    if len(content) < start:
        raise ValueError(f"truncated: {len(content)} of {file.size} bytes")
    magic, *shape = content[:start].view(">u4").tolist()
    if magic != 0x0800 + len(file.shape):
        raise ValueError(f"invalid header: starts with {magic:#010x}; expected {0x0800 + len(file.shape):#010x}")
    if tuple(shape) != file.shape:
        raise ValueError(f"has the shape {tuple(shape)}; expected {file.shape}")
    if len(content) < file.size:
        raise ValueError(f"truncated: {len(content)} of {file.size} bytes")
    if len(content) > file.size:
        raise ValueError(f"too long: more than {file.size} bytes")
    array = content[start:].reshape(file.shape)
    if file.below < 256 and array.max(initial=0) >= file.below:
        raise ValueError(f"contains the label {array.max()}; expected 0 to {file.below - 1}")
    return array


def _check_md5(content: Bytes, expected: str) -> None:
    md5 = hashlib.md5(content.data, usedforsecurity=False).hexdigest()
    if md5 != expected:
        raise ValueError(f"truncated or altered: its md5 is {md5}; expected {expected}")


def _folders(published: IdxDataset, data_dir: Path) -> tuple[Path, Path]:
    return data_dir / published.folder / "raw", data_dir / published.folder


def _not_found(published: IdxDataset, data_dir: Path, missing: list[IdxFile], reason: str) -> UsageError:
    names = ", ".join(file.name for file in missing)
    places = " or ".join(map(str, _folders(published, data_dir)))
    return UsageError(
        f"dataset={published.name}: {names} not in {places}, and {reason}; "
        "put these files there, uncompressed or as .gz, or use dataset=digits, which needs no download"
    )


MNIST = IdxDataset(
    "mnist",
    "MNIST",
    _files(
        md5_gz=(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        md5=(
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
    ),
    tuple("0123456789"),
)
FASHION_MNIST = IdxDataset(
    "fashion_mnist",
    "FashionMNIST",
    _files(
        md5_gz=(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        )
    ),
    (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
)
KMNIST = IdxDataset(
    "kmnist",
    "KMNIST",
    _files(
        md5_gz=(
            "bdb82020997e1d708af4cf47b453dcf7",
            "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "7320c461ea6c1c855c0b718fb2a4b134",
        )
    ),
    ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
)


def load_dataset(
    published: IdxDataset,
    *,
    data_dir: str,
    seed: int,
    mean: FiniteFloat,
    std: PositiveFloat,
    validation_fraction: Fraction,
    download: bool,
) -> Dataset:
    """60,000 + 10,000 images (1, 28, 28) of 0..255 in ten classes; ``mean`` and ``std`` are those of pixel / 255."""
    train, test = load(published, Path(data_dir), download=download)
    return assemble(
        published.name,
        train,
        test,
        seed=seed,
        validation_fraction=validation_fraction,
        mean=mean,
        std=std,
        largest=255,
        classes=published.classes,
    )


mnist = functools.partial(load_dataset, MNIST)
"""Handwritten digits."""
fashion_mnist = functools.partial(load_dataset, FASHION_MNIST)
"""Articles of clothing."""
kmnist = functools.partial(load_dataset, KMNIST)
"""Handwritten Japanese characters (Kuzushiji)."""
