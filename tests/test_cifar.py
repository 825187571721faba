"""CIFAR-10: the published files, subsets, the download."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from dlhw.cli.composition import conf_dir
from dlhw.data import cifar
from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError
from support.caches import forget


def loaded(data_dir: Path, **changed: Any) -> Dataset:
    config = yaml.safe_load((conf_dir() / "dataset" / "cifar10.yaml").read_text())
    del config["_target_"]
    return cifar.cifar10(**{**config, "data_dir": str(data_dir), "seed": 0, "download": False, **changed})


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small files in CIFAR-10's format, twenty pictures each, whose checksums are patched."""
    forget()
    (tmp_path / cifar.FOLDER).mkdir()
    for number, name in enumerate(cifar.MD5):
        draw = np.random.default_rng(number)
        batch = {"data": draw.integers(0, 256, (20, 3072), np.uint8), "labels": [i % 10 for i in range(20)]}
        content = pickle.dumps(batch, protocol=4)
        (tmp_path / cifar.FOLDER / name).write_bytes(content)
        monkeypatch.setitem(cifar.MD5, name, hashlib.md5(content).hexdigest())
    return tmp_path


def test_pictures_are_those_in_the_files(published: Path) -> None:
    data = loaded(published)
    assert (len(data.train), len(data.val), len(data.test or ()), data.shape) == (80, 20, 20, (3, 32, 32))
    first = np.random.default_rng(0).integers(0, 256, (20, 3072), np.uint8).reshape(20, 3, 32, 32)
    assert np.array_equal(data.train.pool_x[:20].numpy(), first)
    assert data.train.pool_y[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert loaded(published, size=50).shape == (3, 50, 50)


def test_a_subset_is_balanced_and_determined_by_the_seed(published: Path) -> None:
    data = loaded(published, samples=50)
    assert torch.cat([data.train.y, data.val.y]).bincount().tolist() == [5] * 10
    assert data.test is not None
    assert data.test.y.bincount().tolist() == [1] * 10
    assert (len(data.train.pool_x), len(data.test.pool_x)) == (50, 10)
    other = loaded(published, samples=50, seed=1)
    assert other.sha256 != data.sha256 == loaded(published, samples=50).sha256


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
def test_an_altered_file_is_an_error(published: Path, name: str) -> None:
    path = published / cifar.FOLDER / name
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UsageError, match=rf"{name}: truncated or altered: its md5 is \w+; expected \w+; delete it"):
        loaded(published)


def test_a_pickle_cannot_call_other_functions(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "done"),)

    content = pickle.dumps(Harm())
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        cifar.read(tmp_path / "file", hashlib.md5(content).hexdigest())
    assert not (tmp_path / "done").exists()


def test_the_error_for_missing_files_says_where_to_get_them(published: Path) -> None:
    os.unlink(published / cifar.FOLDER / "data_batch_2")
    with pytest.raises(
        UsageError, match=r"data_batch_2 not in .*, and dataset.download=false; unpack https://.*digits"
    ):
        loaded(published)


def test_a_failed_download_gives_the_reason_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")
    with pytest.raises(UsageError, match=r"test_batch not in .*, and the download failed: .*; unpack"):
        loaded(tmp_path, download=True)
    assert list((tmp_path / cifar.FOLDER).iterdir()) == []


def test_names_and_checksums_are_those_of_torchvision() -> None:
    import torchvision

    theirs = torchvision.datasets.CIFAR10
    assert dict(theirs.train_list + theirs.test_list) == cifar.MD5
    assert theirs.base_folder == cifar.FOLDER


@pytest.mark.real
def test_the_real_pictures_have_the_known_mean() -> None:
    home = Path(os.environ.get("DLHW_DATA", "nowhere")).expanduser()
    if not (home / cifar.FOLDER).is_dir():
        pytest.skip("the pictures are not here")
    data = loaded(home)
    assert data.train.pool_y.bincount().tolist() == [5000] * 10
    mean = data.normalize(data.train.pool_x[::10]).mean((0, 2, 3))
    assert float(mean.abs().max()) < 0.02
