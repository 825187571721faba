"""CIFAR-10, from the pickle files that its authors publish; only files with the published checksums are read."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, FiniteFloat

from dlhw.data.downloads import fetch
from dlhw.data.tensors import Dataset, Split, assemble
from dlhw.errors import UsageError
from dlhw.runtime.downloads import DownloadFailed
from dlhw.runtime.options import Positive, Side
from dlhw.runtime.randomness import generator

FOLDER = "cifar-10-batches-py"
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

Channels = Field(min_length=3, max_length=3)


def cifar10(
    *,
    data_dir: str,
    seed: int,
    size: Side | None,
    samples: Annotated[int, Field(ge=20, le=50_000, multiple_of=10)] | None,
    mean: Annotated[list[FiniteFloat], Channels],
    std: Annotated[list[Positive], Channels],
    validation_fraction: Annotated[float, Field(gt=0, lt=1)],
    download: bool,
) -> Dataset:
    """50,000 + 10,000 pictures (3, 32, 32) of 0..255 in ten classes; ``mean`` and ``std`` are those of pixel / 255.

    Args:
        size: pictures are resized to this many rows and columns, batch by batch; None: they are not.
        samples: size of a random subset of the training pictures, balanced over the classes; the subset of
            the test pictures has a fifth of this size. None: all pictures.
    """
    folder = Path(data_dir) / FOLDER
    _ensure(folder, download=download)
    train, test = _read_all(folder, tuple(os.stat(folder / name).st_mtime_ns for name in MD5))
    if samples is not None:
        train = _subset(train, samples // 10, seed=seed, part_name="train")
        test = _subset(test, max(1, samples // 50), seed=seed, part_name="test")
    return assemble(
        "cifar10",
        train,
        test,
        seed=seed,
        validation_fraction=validation_fraction,
        mean=mean,
        std=std,
        largest=255,
        classes=CLASSES,
        size=size,
    )


def _ensure(folder: Path, *, download: bool) -> None:
    """Raise UsageError if a file is missing. With ``download``, missing files are downloaded first."""
    missing = [name for name in MD5 if not os.path.isfile(folder / name)]
    if not missing:
        return
    reason, cause = "dataset.download=false", None
    if download:
        try:
            fetch("CIFAR10", Path(FOLDER), missing, to=folder)
            return
        except DownloadFailed as error:
            reason, cause = f"the download failed: {error}", error
    raise UsageError(
        f"dataset=cifar10: {', '.join(missing)} not in {folder}, and {reason}; unpack "
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz there, or use dataset=digits, which needs no download"
    ) from cause


@functools.lru_cache(maxsize=1)  # the jobs of a sweep read the same files
def _read_all(folder: Path, mtimes_ns: tuple[int, ...]) -> tuple[Split, Split]:
    """Read the training and test part from files with these modification times."""
    batches = [read(folder / name, md5) for name, md5 in MD5.items()]
    train, test = (
        Split(torch.cat([x for x, _ in part]), torch.cat([y for _, y in part])) for part in (batches[:-1], batches[-1:])
    )
    return train, test


def read(path: Path, md5: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Read pictures (N, 3, 32, 32) and labels (N,). Raise UsageError if the file has another checksum."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    actual = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if actual != md5:
        raise UsageError(
            f"{path}: truncated or altered: its md5 is {actual}; expected {md5}; delete it to download it again, or "
            "replace it with the published file"
        )
    batch = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    return torch.from_numpy(batch["data"].copy()).view(-1, 3, 32, 32), torch.tensor(batch["labels"])


class _ArrayUnpickler(pickle.Unpickler):
    """Builds only arrays and plain values; a pickle that names any other class or function is an error."""

    def find_class(self, module: str, name: str) -> Any:
        factories = {"_reconstruct": np.empty(0).__reduce__()[0], "ndarray": np.ndarray, "dtype": np.dtype}
        if module.partition(".")[0] == "numpy" and name in factories:
            return factories[name]
        raise pickle.UnpicklingError(f"{module}.{name}: not allowed in a data file")


def _subset(part: Split, per_class: int, *, seed: int, part_name: str) -> Split:
    """Return a random subset with its own pool, so that nothing is computed for the other pictures."""
    order = torch.randperm(len(part), generator=generator(seed, "samples", part_name))
    labels = part.y[order]
    rows = torch.cat([order[labels == label][:per_class] for label in range(len(CLASSES))])
    return Split(*part[rows.sort().values])
