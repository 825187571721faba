"""CIFAR-10: reading its files, subsets, missing and altered files, the download."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlhw.data import cifar
from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError
from support.caches import forget
from support.datasets import options


def load(data_dir: Path, **changed: Any) -> Dataset:
    return cifar.cifar10(data_dir=str(data_dir), **options("cifar10", **{"download": False, **changed}))


@pytest.fixture
def small_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files in CIFAR-10's format, twenty pictures each, and their checksums patched into the module."""
    forget()
    (tmp_path / cifar.FOLDER).mkdir()
    for number, name in enumerate(cifar.MD5):
        draw = np.random.default_rng(number)
        batch = {"data": draw.integers(0, 256, (20, 3072), np.uint8), "labels": [i % 10 for i in range(20)]}
        content = pickle.dumps(batch, protocol=4)
        (tmp_path / cifar.FOLDER / name).write_bytes(content)
        monkeypatch.setitem(cifar.MD5, name, hashlib.md5(content).hexdigest())
    return tmp_path


def test_pictures_and_labels_equal_those_in_the_files(small_cifar: Path) -> None:
    data = load(small_cifar)
    assert (len(data.train), len(data.val), len(data.test or ()), data.shape) == (80, 20, 20, (3, 32, 32))
    first = np.random.default_rng(0).integers(0, 256, (20, 3072), np.uint8).reshape(20, 3, 32, 32)
    assert np.array_equal(data.train.pool_x[:20].numpy(), first)
    assert data.train.pool_y[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert load(small_cifar, size=50).shape == (3, 50, 50)


def test_a_subset_is_balanced_and_determined_by_the_seed(small_cifar: Path) -> None:
    data = load(small_cifar, samples=50)
    assert torch.cat([data.train.y, data.val.y]).bincount().tolist() == [5] * 10
    assert data.test is not None
    assert data.test.y.bincount().tolist() == [1] * 10
    assert (len(data.train.pool_x), len(data.test.pool_x)) == (50, 10)
    other = load(small_cifar, samples=50, seed=1)
    assert other.sha256 != data.sha256 == load(small_cifar, samples=50).sha256


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
def test_an_altered_file_is_an_error(small_cifar: Path, name: str) -> None:
    path = small_cifar / cifar.FOLDER / name
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UsageError, match=rf"{name}: truncated or altered: its md5 is \w+; expected \w+; delete it"):
        load(small_cifar)


def test_a_pickle_cannot_call_functions(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "created"),)

    content = pickle.dumps(Malicious())
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        cifar.read(tmp_path / "file", hashlib.md5(content).hexdigest())
    assert not (tmp_path / "created").exists()


def test_the_error_for_missing_files_says_where_to_get_them(small_cifar: Path) -> None:
    os.unlink(small_cifar / cifar.FOLDER / "data_batch_2")
    with pytest.raises(
        UsageError, match=r"data_batch_2 not in .*, and dataset.download=false; unpack https://.*digits"
    ):
        load(small_cifar)


def test_a_failed_download_gives_the_reason_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")
    with pytest.raises(UsageError, match=r"test_batch not in .*, and the download failed: .*; unpack"):
        load(tmp_path, download=True)
    assert list(tmp_path.iterdir()) == []


def test_file_names_and_checksums_equal_those_of_torchvision() -> None:
    import torchvision

    reference = torchvision.datasets.CIFAR10
    assert dict(reference.train_list + reference.test_list) == cifar.MD5
    assert reference.base_folder == cifar.FOLDER


@pytest.mark.real
def test_real_cifar_has_5000_pictures_per_class_and_the_configured_mean() -> None:
    root = Path(os.environ.get("DLHW_DATA", "nowhere")).expanduser()
    if not (root / cifar.FOLDER).is_dir():
        pytest.skip(f"no {cifar.FOLDER} in the folder that DLHW_DATA names")
    data = load(root)
    assert data.train.pool_y.bincount().tolist() == [5000] * 10
    mean = data.normalize(data.train.pool_x[::10]).mean((0, 2, 3))
    assert float(mean.abs().max()) < 0.02
