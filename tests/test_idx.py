"""Datasets in MNIST's format (IDX): valid and invalid files, the download, the real MNIST."""

from __future__ import annotations

import gzip
import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays

from dlhw.data import idx
from dlhw.data.tensors import Dataset, Split
from dlhw.errors import UsageError
from support.datasets import options


def idx_bytes(array: np.ndarray[Any, Any]) -> bytes:
    """Return the IDX file of an array of bytes, following the description of the format."""
    words = [0x0800 + array.ndim, *array.shape]
    return b"".join(word.to_bytes(4, "big") for word in words) + array.tobytes()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@dataclass
class SmallMnist:
    """A small dataset in MNIST's format: its arrays, the contents of its files by name, and its description."""

    arrays: list[np.ndarray[Any, Any]]
    plain: dict[str, bytes]
    compressed: dict[str, bytes]
    source: idx.IdxDataset

    @staticmethod
    def save(folder: Path, files: dict[str, bytes]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)

    def without_plain_checksums(self) -> idx.IdxDataset:
        return replace(self.source, files=tuple(replace(file, md5=None) for file in self.source.files))


@pytest.fixture
def small_mnist() -> SmallMnist:
    random = np.random.default_rng(0)
    shapes = [(40, 5, 3), (40,), (12, 5, 3), (12,)]
    arrays = [random.integers(0, 10 if len(shape) == 1 else 256, shape, dtype=np.uint8) for shape in shapes]
    names = [file.name for file in idx.MNIST.files]
    plain = {name: idx_bytes(array) for name, array in zip(names, arrays, strict=True)}
    compressed = {f"{name}.gz": gzip.compress(content) for name, content in plain.items()}
    files = tuple(
        replace(file, shape=shape, md5_gz=md5(compressed[f"{file.name}.gz"]), md5=md5(plain[file.name]))
        for file, shape in zip(idx.MNIST.files, shapes, strict=True)
    )
    return SmallMnist(arrays, plain, compressed, replace(idx.MNIST, files=files))


def assert_parts_equal(small_mnist: SmallMnist, parts: tuple[Split, Split]) -> None:
    train, test = parts
    x_train, y_train, x_test, y_test = small_mnist.arrays
    for split, x, y in ((train, x_train, y_train), (test, x_test, y_test)):
        assert split.x.dtype == torch.uint8
        assert split.y.dtype == torch.int64
        assert split.x.shape == (len(x), 1, 5, 3)
        np.testing.assert_array_equal(split.x[:, 0], x)
        np.testing.assert_array_equal(split.y, y)


# Files in data_dir


@pytest.mark.parametrize("folder", ["MNIST/raw", "MNIST"])
@pytest.mark.parametrize("form", ["plain", "compressed"])
def test_plain_and_gz_files_in_both_folders_give_the_same_data(
    small_mnist: SmallMnist, tmp_path: Path, folder: str, form: str
) -> None:
    small_mnist.save(tmp_path / folder, getattr(small_mnist, form))
    assert_parts_equal(small_mnist, idx.load(small_mnist.source, tmp_path, download=False))


def invalid_plain_files(good: bytes) -> dict[str, tuple[bytes, str]]:
    return {
        "empty": (b"", "truncated: 0 of"),
        "header only": (good[:7], "truncated: 7 of"),
        "truncated": (good[:-1], f"truncated: {len(good) - 1} of {len(good)} bytes"),
        "trailing bytes": (good + b"\0", f"too long: more than {len(good)} bytes"),
        "magic": (b"\0\0\x0d" + good[3:], "invalid header: starts with 0x00000d03; expected 0x00000803"),
        "web page": (b"<!DOCTYPE html>" + good[15:], "starts with 0x3c21444f"),
        "count": (good[:7] + b"\x29" + good[8:], "has the shape (41, 5, 3); expected (40, 5, 3)"),
        "one bit": (good[:-1] + bytes([good[-1] ^ 1]), "altered: its md5 is"),
    }


@pytest.mark.parametrize("damage", invalid_plain_files(bytes(8)))
def test_an_invalid_plain_file_is_an_error_even_beside_a_valid_gz(
    small_mnist: SmallMnist, tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "MNIST" / "raw"
    small_mnist.save(folder, small_mnist.plain | small_mnist.compressed)
    small_mnist.save(tmp_path / "MNIST", small_mnist.plain)
    path = folder / "train-images-idx3-ubyte"
    content, message = invalid_plain_files(path.read_bytes())[damage]
    path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        idx.load(small_mnist.source, tmp_path, download=True)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "delete it to download it again, or replace it" in str(error.value)
    assert "\n" not in str(error.value)


def test_labels_outside_the_classes_are_an_error(small_mnist: SmallMnist, tmp_path: Path) -> None:
    labels = small_mnist.arrays[1].copy()
    labels[3] = 10
    small_mnist.save(tmp_path / "MNIST", small_mnist.plain | {"train-labels-idx1-ubyte": idx_bytes(labels)})
    with pytest.raises(UsageError, match=r"train-labels-idx1-ubyte: contains the label 10; expected 0 to 9"):
        idx.load(small_mnist.without_plain_checksums(), tmp_path, download=False)


def test_a_gz_without_the_published_checksum_is_an_error(small_mnist: SmallMnist, tmp_path: Path) -> None:
    for content in (b"", small_mnist.compressed["t10k-labels-idx1-ubyte.gz"][:-9], gzip.compress(b"other")):
        small_mnist.save(tmp_path / "MNIST", small_mnist.compressed | {"t10k-labels-idx1-ubyte.gz": content})
        with pytest.raises(UsageError, match=r"t10k-labels-idx1-ubyte\.gz: truncated or altered: its md5 is"):
            idx.load(small_mnist.source, tmp_path, download=False)


def invalid_gz_files(good: bytes) -> dict[str, tuple[bytes, str]]:
    packed = gzip.compress(good)
    return {
        "not gzip": (b"not gzip", "Not a gzipped file"),
        "truncated file": (packed[:-9], "ended before the end-of-stream marker"),
        "broken stream": (packed[:12] + b"\xff" * 20 + packed[32:], "invalid"),
        "wrong crc": (packed[:-8] + b"\0\0\0\0" + packed[-4:], "CRC check failed"),
        "content too long": (gzip.compress(good + bytes(1_000_000)), "too long"),
        "content truncated": (gzip.compress(good[:-1]), "truncated"),
    }


@pytest.mark.parametrize("damage", invalid_gz_files(b""))
def test_a_gz_with_invalid_content_is_an_error_even_with_a_valid_checksum(
    small_mnist: SmallMnist, tmp_path: Path, damage: str
) -> None:
    file = small_mnist.source.files[0]
    content, message = invalid_gz_files(small_mnist.plain[file.name])[damage]
    path = tmp_path / f"{file.name}.gz"
    path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        idx.read(replace(file, md5_gz=md5(content)), path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_a_gz_is_preferred_to_a_plain_file_without_a_checksum(small_mnist: SmallMnist, tmp_path: Path) -> None:
    source = small_mnist.without_plain_checksums()
    altered = small_mnist.plain["train-images-idx3-ubyte"][:-1] + b"?"
    small_mnist.save(tmp_path / "MNIST", small_mnist.plain | {"train-images-idx3-ubyte": altered})
    train, _ = idx.load(source, tmp_path, download=False)
    assert train.x[-1, 0, -1, -1] == ord("?")  # no checksum detects the change
    small_mnist.save(tmp_path / "MNIST", small_mnist.compressed)
    assert_parts_equal(small_mnist, idx.load(source, tmp_path, download=False))
    (tmp_path / "MNIST" / "train-images-idx3-ubyte.gz").write_bytes(b"bad")
    with pytest.raises(UsageError, match=r"train-images-idx3-ubyte\.gz: "):
        idx.load(source, tmp_path, download=False)


@given(arrays(np.uint8, array_shapes(max_dims=4, min_side=0, max_side=6)))
def test_parse_returns_the_values_and_rejects_a_wrong_length(array: np.ndarray[Any, Any]) -> None:
    content = np.frombuffer(idx_bytes(array), np.uint8)
    file = idx.IdxFile("any", array.shape, 256, md5_gz="")
    assert file.size == len(content)
    np.testing.assert_array_equal(idx.parse(content, file), array)
    for other in (content[:-1], np.append(content, np.uint8(0))):
        with pytest.raises(ValueError, match=r"truncated|too long"):
            idx.parse(other, file)


# Missing files and the download


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_the_error_for_missing_files_names_them_and_their_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        getattr(idx, name)(data_dir=str(tmp_path), **options(name, download=False))
    message = str(error.value)
    assert message.startswith(f"dataset={name}: ")
    assert str(tmp_path / {"mnist": "MNIST", "kmnist": "KMNIST"}.get(name, "FashionMNIST") / "raw") in message
    assert all(file.name in message for file in idx.MNIST.files)
    assert "dataset.download=false" in message
    assert "dataset=digits" in message
    assert "\n" not in message
    assert not any(tmp_path.iterdir())


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def mirror(
    small_mnist: SmallMnist, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The folder of a local web server that torchvision uses as its mirror, with the published gz files."""
    import torchvision

    folder = tmp_path_factory.mktemp("mirror")
    small_mnist.save(folder, small_mnist.compressed)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        resources = [(f"{file.name}.gz", file.md5_gz) for file in small_mnist.source.files]
        monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
        yield folder
        server.shutdown()


def test_only_missing_files_are_downloaded(
    small_mnist: SmallMnist, mirror: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    existing = tmp_path / "MNIST" / "t10k-labels-idx1-ubyte"
    small_mnist.save(existing.parent, {existing.name: small_mnist.plain[existing.name]})
    assert_parts_equal(small_mnist, idx.load(small_mnist.source, tmp_path, download=True))
    assert capfd.readouterr().out == ""
    raw = sorted(path.name for path in (tmp_path / "MNIST" / "raw").iterdir())
    expected = [name for name in small_mnist.plain | small_mnist.compressed if not name.startswith(existing.name)]
    assert raw == sorted(expected)
    for path in mirror.iterdir():
        path.unlink()
    assert_parts_equal(small_mnist, idx.load(small_mnist.source, tmp_path, download=True))  # without the server


@pytest.mark.parametrize("length", [0, 10])
def test_a_truncated_download_is_an_error_and_leaves_no_file(
    small_mnist: SmallMnist, mirror: Path, tmp_path: Path, length: int
) -> None:
    last = mirror / "t10k-labels-idx1-ubyte.gz"
    last.write_bytes(last.read_bytes()[:length])
    with pytest.raises(UsageError, match=r"the download failed: Error downloading t10k-labels-idx1-ubyte\.gz"):
        idx.load(small_mnist.source, tmp_path, download=True)
    assert not (tmp_path / "MNIST").exists()


def test_the_error_for_a_failed_download_gives_the_reason_in_one_line(
    small_mnist: SmallMnist, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision

    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"the download failed: .*Not a directory.*dataset=digits"):
        idx.load(small_mnist.source, tmp_path / "file", download=True)
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(UsageError, match=r"the download failed: .*127\.0\.0\.1:9.*dataset=digits") as error:
        idx.load(small_mnist.source, tmp_path, download=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", [idx.MNIST, idx.FASHION_MNIST, idx.KMNIST], ids=lambda source: source.name)
def test_file_names_checksums_and_classes_equal_those_of_torchvision(source: idx.IdxDataset) -> None:
    import torchvision

    reference = getattr(torchvision.datasets, source.folder)
    assert [(f"{file.name}.gz", file.md5_gz) for file in source.files] == reference.resources
    assert list(source.classes) == [name.split(" - ")[0] for name in reference.classes]


# The real MNIST


@pytest.fixture(scope="module")
def real_mnist() -> tuple[Path, Dataset]:
    root = Path(os.environ.get("DLHW_DATA", ""))
    if "DLHW_DATA" not in os.environ or not (root / "MNIST" / "raw" / idx.MNIST.files[0].name).is_file():
        pytest.skip("no MNIST/raw/train-images-idx3-ubyte in the folder that DLHW_DATA names")
    return root, idx.mnist(data_dir=str(root), **options("mnist", download=False))


@pytest.mark.real
def test_real_mnist_has_48000_12000_and_10000_images_with_mean_0_and_std_1(real_mnist: tuple[Path, Dataset]) -> None:
    _, data = real_mnist
    assert (len(data.train), len(data.val), len(data.test)) == (48000, 12000, 10000)
    assert data.shape == (1, 28, 28)
    values = data.to("cpu", torch.float32).normalize(torch.cat([data.train.x, data.val.x]))
    assert abs(values.mean().item()) < 5e-4  # the constants have four digits
    assert abs(values.std().item() - 1) < 5e-4


@pytest.mark.real
def test_real_mnist_equals_torchvision_pixel_for_pixel(real_mnist: tuple[Path, Dataset]) -> None:
    import torchvision

    root, data = real_mnist
    content = hashlib.sha256()
    for train in (True, False):
        reference = torchvision.datasets.MNIST(root, train=train, download=False)
        content.update(reference.data.numpy().tobytes())
        content.update(reference.targets.numpy().tobytes())
    assert data.sha256 == content.hexdigest()
    assert torch.equal(data.test.x[:, 0], reference.data)
    assert torch.equal(data.test.y, reference.targets)
