"""MNIST and the sets published in its format: IDX files found, downloaded, checked, read.

No file is believed: it has the published checksum or, where there is none (unpacked Fashion-MNIST, KMNIST),
the exact length and form. A bad file is named and refused; no other copy silently takes its place.
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, FiniteFloat

from dlhw.data.downloads import Unavailable, fetch
from dlhw.data.tensors import Dataset, Split, assemble
from dlhw.errors import UsageError

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class IdxFile:
    """What one file must be. ``md5_gz`` is of the compressed file, ``md5`` of the plain one where known."""

    name: str
    shape: tuple[int, ...]
    below: int  # every value is
    md5_gz: str
    md5: str | None = None

    @property
    def size(self) -> int:
        """Bytes of the plain file: magic number, one word for each dimension, values."""
        return 4 + 4 * len(self.shape) + math.prod(self.shape)


@dataclass(frozen=True)
class Source:
    """A published set. ``folder`` under ``data_dir`` is also its class in ``torchvision.datasets``."""

    name: str
    folder: str
    files: tuple[IdxFile, ...]  # training images and labels, test images and labels
    classes: tuple[str, ...]


def _files(md5_gz: tuple[str, str, str, str], md5: tuple[str | None, ...] = (None,) * 4) -> tuple[IdxFile, ...]:
    return (
        IdxFile("train-images-idx3-ubyte", (60000, 28, 28), 256, md5_gz[0], md5[0]),
        IdxFile("train-labels-idx1-ubyte", (60000,), 10, md5_gz[1], md5[1]),
        IdxFile("t10k-images-idx3-ubyte", (10000, 28, 28), 256, md5_gz[2], md5[2]),
        IdxFile("t10k-labels-idx1-ubyte", (10000,), 10, md5_gz[3], md5[3]),
    )


def load(source: Source, data_dir: Path, *, download: bool) -> tuple[Split, Split]:
    """The published training and test part, after downloading what is missing if asked to."""
    paths = find(source, data_dir)
    missing = [file for file in source.files if file not in paths]
    if missing:
        if not download:
            raise _not_found(source, data_dir, missing, "dataset.download=false")
        try:
            names = [name for file in missing for name in (f"{file.name}.gz", file.name)]
            fetch(source.folder, Path(source.folder, "raw"), names, to=_folders(source, data_dir)[0])
        except Unavailable as error:
            raise _not_found(source, data_dir, missing, str(error)) from error
        paths = find(source, data_dir)
    return _read_all(tuple((file, paths[file], os.stat(paths[file]).st_mtime_ns) for file in source.files))


@functools.lru_cache(maxsize=2)  # every job of a sweep asks for the same files
def _read_all(files: tuple[tuple[IdxFile, Path, int], ...]) -> tuple[Split, Split]:
    """The training and test part in the files, each with its path and the time when it was last written."""
    with ThreadPoolExecutor(2) as pool:  # md5 lets other threads run
        arrays = pool.map(lambda file: torch.from_numpy(read(*file[:2])), files)
        x_train, y_train, x_test, y_test = arrays
    return Split(x_train.unsqueeze(1), y_train.long()), Split(x_test.unsqueeze(1), y_test.long())


def find(source: Source, data_dir: Path) -> dict[IdxFile, Path]:
    """Where the files lie: plain before .gz, unless the .gz alone has a published checksum."""
    found: dict[IdxFile, Path] = {}
    for folder, file in itertools.product(_folders(source, data_dir), source.files):
        plain, packed = folder / file.name, folder / f"{file.name}.gz"
        for path in (plain, packed) if file.md5 else (packed, plain):
            if os.path.isfile(path):
                found.setdefault(file, path)
    return found


def read(file: IdxFile, path: Path) -> Bytes:
    """The checked values in ``path``, plain or .gz. UsageError says what is wrong with which path."""
    try:
        if path.suffix == ".gz":
            packed = np.fromfile(path, np.uint8, count=2 * file.size + 1024)  # more could not be this file
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
            f"{path}: {error}; delete it so that it is downloaded again, or replace it by the published file"
        ) from error


def parse(content: Bytes, file: IdxFile) -> Bytes:
    """The values of an IDX file: big-endian words 0x0800 + dimensions and each size, then unsigned bytes."""
    start = file.size - math.prod(file.shape)
    if len(content) < start:
        raise ValueError(f"truncated: {len(content)} of {file.size} bytes")
    magic, *shape = content[:start].view(">u4").tolist()
    if magic != 0x0800 + len(file.shape):
        raise ValueError(f"starts with {magic:#010x} instead of {0x0800 + len(file.shape):#010x}")
    if tuple(shape) != file.shape:
        raise ValueError(f"has the shape {tuple(shape)} instead of {file.shape}")
    if len(content) < file.size:
        raise ValueError(f"truncated: {len(content)} of {file.size} bytes")
    if len(content) > file.size:
        raise ValueError(f"goes on after its {file.size} bytes")
    array = content[start:].reshape(file.shape)
    if file.below < 256 and array.max(initial=0) >= file.below:
        raise ValueError(f"holds the label {array.max()}, legal are 0 to {file.below - 1}")
    return array


def _check_md5(content: Bytes, expected: str) -> None:
    found = hashlib.md5(content.data, usedforsecurity=False).hexdigest()
    if found != expected:
        raise ValueError(f"truncated or altered: its md5 is {found} instead of {expected}")


def _folders(source: Source, data_dir: Path) -> tuple[Path, Path]:
    return data_dir / source.folder / "raw", data_dir / source.folder


def _not_found(source: Source, data_dir: Path, missing: list[IdxFile], reason: str) -> UsageError:
    names = ", ".join(file.name for file in missing)
    looked = " or ".join(map(str, _folders(source, data_dir)))
    return UsageError(
        f"dataset={source.name}: {names} not in {looked}, and {reason}; "
        "place these files there, plain or as .gz, or use dataset=digits, which needs no download"
    )


MNIST = Source(
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
FASHION_MNIST = Source(
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
KMNIST = Source(
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


def _factory(source: Source) -> Callable[..., Dataset]:
    def factory(
        *,
        data_dir: str,
        seed: int,
        mean: FiniteFloat,
        std: Annotated[float, Field(gt=0, allow_inf_nan=False)],
        validation_fraction: Annotated[float, Field(gt=0, lt=1)],
        download: bool,
    ) -> Dataset:
        """60,000 + 10,000 images (1, 28, 28) of 0..255 in ten classes; ``mean``, ``std`` of pixel / 255."""
        train, test = load(source, Path(data_dir).expanduser(), download=download)
        return assemble(
            source.name,
            train,
            test,
            seed=seed,
            validation_fraction=validation_fraction,
            mean=mean,
            std=std,
            largest=255,
            classes=source.classes,
        )

    factory.__name__ = factory.__qualname__ = source.name
    return factory


mnist = _factory(MNIST)
fashion_mnist = _factory(FASHION_MNIST)
kmnist = _factory(KMNIST)
