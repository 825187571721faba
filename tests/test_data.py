"""Datasets: valid and invalid files, splitting, normalization."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import inspect
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from dlhw.data import cifar, folders, idx, tabular, tensors
from dlhw.data.digits import TEST_FROM, _parts, digits
from dlhw.data.synthetic import clusters, separable
from dlhw.data.tensors import Dataset, Split, assemble, split_off
from dlhw.errors import UsageError

CONF = Path(__file__).parent.parent / "conf" / "dataset"
FACTORIES = {"mnist": idx.mnist, "fashion_mnist": idx.fashion_mnist, "kmnist": idx.kmnist, "digits": digits}
DRAWN = {"separable": separable, "clusters": clusters}
PICTURES = {"cifar10": cifar.cifar10} | {
    name: getattr(folders, name) for name in ("image_folder", "face_mask", "hymenoptera")
}
TABLES = {name: getattr(tabular, name) for name in ("boston", "diabetes", "california_housing")}


def options(name: str) -> dict[str, Any]:
    config = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    return {key: value for key, value in config.items() if key != "_target_"}


def idx_bytes(array: np.ndarray[Any, Any]) -> bytes:
    """Return the IDX file of an array of bytes, following the description of the format."""
    words = [0x0800 + array.ndim, *array.shape]
    return b"".join(word.to_bytes(4, "big") for word in words) + array.tobytes()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@dataclass
class Published:
    """A small dataset in MNIST's format: its values, its files by name, and its description."""

    arrays: list[np.ndarray[Any, Any]]
    plain: dict[str, bytes]
    packed: dict[str, bytes]
    source: idx.IdxDataset

    def place(self, folder: Path, names: dict[str, bytes]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in names.items():
            (folder / name).write_bytes(content)

    def without_plain_checksums(self) -> idx.IdxDataset:
        return replace(self.source, files=tuple(replace(file, md5=None) for file in self.source.files))


@pytest.fixture
def published() -> Published:
    random = np.random.default_rng(0)
    shapes = [(40, 5, 3), (40,), (12, 5, 3), (12,)]
    arrays = [random.integers(0, 10 if len(s) == 1 else 256, s, dtype=np.uint8) for s in shapes]
    names = [file.name for file in idx.MNIST.files]
    plain = {name: idx_bytes(array) for name, array in zip(names, arrays, strict=True)}
    packed = {f"{name}.gz": gzip.compress(content) for name, content in plain.items()}
    files = tuple(
        replace(file, shape=shape, md5_gz=md5(packed[f"{file.name}.gz"]), md5=md5(plain[file.name]))
        for file, shape in zip(idx.MNIST.files, shapes, strict=True)
    )
    return Published(arrays, plain, packed, replace(idx.MNIST, files=files))


def assert_is(published: Published, parts: tuple[Split, Split]) -> None:
    train, test = parts
    x_train, y_train, x_test, y_test = published.arrays
    for split, x, y in ((train, x_train, y_train), (test, x_test, y_test)):
        assert split.x.dtype == torch.uint8
        assert split.y.dtype == torch.int64
        assert split.x.shape == (len(x), 1, 5, 3)
        np.testing.assert_array_equal(split.x[:, 0], x)
        np.testing.assert_array_equal(split.y, y)


# Files: places and contents


@pytest.mark.parametrize("folder", ["MNIST/raw", "MNIST"])
@pytest.mark.parametrize("form", ["plain", "packed"])
def test_plain_and_gz_files_in_both_folders_give_the_same_data(
    published: Published, tmp_path: Path, folder: str, form: str
) -> None:
    published.place(tmp_path / folder, getattr(published, form))
    assert_is(published, idx.load(published.source, tmp_path, download=False))


def bad_plain(good: bytes) -> dict[str, tuple[bytes, str]]:
    return {
        "empty": (b"", "truncated: 0 of"),
        "header only": (good[:7], "truncated: 7 of"),
        "truncated": (good[:-1], f"truncated: {len(good) - 1} of {len(good)} bytes"),
        "trailing bytes": (good + b"\0", f"too long: more than {len(good)} bytes"),
        "magic": (b"\0\0\x0d" + good[3:], "invalid header: starts with 0x00000d03; expected 0x00000803"),
        "a web page": (b"<!DOCTYPE html>" + good[15:], "starts with 0x3c21444f"),
        "count": (good[:7] + b"\x29" + good[8:], "has the shape (41, 5, 3); expected (40, 5, 3)"),
        "one bit": (good[:-1] + bytes([good[-1] ^ 1]), "altered: its md5 is"),
    }


@pytest.mark.parametrize("what", bad_plain(bytes(8)))
def test_an_invalid_plain_file_is_an_error_even_beside_a_valid_gz(
    published: Published, tmp_path: Path, what: str
) -> None:
    folder = tmp_path / "MNIST" / "raw"
    published.place(folder, published.plain | published.packed)
    published.place(tmp_path / "MNIST", published.plain)
    bad = folder / "train-images-idx3-ubyte"
    content, message = bad_plain(bad.read_bytes())[what]
    bad.write_bytes(content)
    with pytest.raises(UsageError) as refused:
        idx.load(published.source, tmp_path, download=True)
    assert str(refused.value).startswith(f"{bad}: ")
    assert message in str(refused.value)
    assert "delete it to download it again, or replace it" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_labels_outside_the_classes_are_an_error(published: Published, tmp_path: Path) -> None:
    labels = published.arrays[1].copy()
    labels[3] = 10
    published.place(tmp_path / "MNIST", published.plain | {"train-labels-idx1-ubyte": idx_bytes(labels)})
    with pytest.raises(UsageError, match=r"train-labels-idx1-ubyte: contains the label 10; expected 0 to 9"):
        idx.load(published.without_plain_checksums(), tmp_path, download=False)


def test_a_gz_without_the_published_checksum_is_an_error(published: Published, tmp_path: Path) -> None:
    for content in (b"", published.packed["t10k-labels-idx1-ubyte.gz"][:-9], gzip.compress(b"other")):
        published.place(tmp_path / "MNIST", published.packed | {"t10k-labels-idx1-ubyte.gz": content})
        with pytest.raises(UsageError, match=r"t10k-labels-idx1-ubyte\.gz: truncated or altered: its md5 is"):
            idx.load(published.source, tmp_path, download=False)


def bad_gz(good: bytes) -> dict[str, tuple[bytes, str]]:
    packed = gzip.compress(good)
    return {
        "not gzip": (b"not gzip", "Not a gzipped file"),
        "cut": (packed[:-9], "ended before the end-of-stream marker"),
        "broken stream": (packed[:12] + b"\xff" * 20 + packed[32:], "invalid"),
        "wrong crc": (packed[:-8] + b"\0\0\0\0" + packed[-4:], "CRC check failed"),
        "too much inside": (gzip.compress(good + bytes(1_000_000)), "too long"),
        "too little inside": (gzip.compress(good[:-1]), "truncated"),
    }


@pytest.mark.parametrize("what", bad_gz(b""))
def test_a_gz_with_invalid_content_is_an_error_even_with_a_valid_checksum(
    published: Published, tmp_path: Path, what: str
) -> None:
    file = published.source.files[0]
    content, message = bad_gz(published.plain[file.name])[what]
    path = tmp_path / f"{file.name}.gz"
    path.write_bytes(content)
    with pytest.raises(UsageError) as refused:
        idx.read(replace(file, md5_gz=md5(content)), path)
    assert str(refused.value).startswith(f"{path}: ")
    assert message in str(refused.value)


def test_a_gz_is_preferred_to_a_plain_file_without_a_checksum(published: Published, tmp_path: Path) -> None:
    source = published.without_plain_checksums()
    altered = published.plain["train-images-idx3-ubyte"][:-1] + b"?"
    published.place(tmp_path / "MNIST", published.plain | {"train-images-idx3-ubyte": altered})
    train, _ = idx.load(source, tmp_path, download=False)
    assert train.x[-1, 0, -1, -1] == ord("?")  # no checksum detects the change
    published.place(tmp_path / "MNIST", published.packed)
    assert_is(published, idx.load(source, tmp_path, download=False))
    (tmp_path / "MNIST" / "train-images-idx3-ubyte.gz").write_bytes(b"bad")
    with pytest.raises(UsageError, match=r"train-images-idx3-ubyte\.gz: "):
        idx.load(source, tmp_path, download=False)


@given(arrays(np.uint8, array_shapes(max_dims=4, min_side=0, max_side=6)))
def test_parse_returns_the_values_and_rejects_other_lengths(array: np.ndarray[Any, Any]) -> None:
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
    with pytest.raises(UsageError) as refused:
        FACTORIES[name](data_dir=str(tmp_path), seed=0, **options(name) | {"download": False})
    message = str(refused.value)
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
    published: Published, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The folder of a local web server that torchvision uses as its mirror, with the published gz files."""
    import torchvision

    folder = tmp_path_factory.mktemp("mirror")
    published.place(folder, published.packed)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        resources = [(f"{file.name}.gz", file.md5_gz) for file in published.source.files]
        monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
        yield folder
        server.shutdown()


def test_only_missing_files_are_downloaded(
    published: Published, mirror: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "MNIST" / "t10k-labels-idx1-ubyte"
    published.place(mine.parent, {mine.name: published.plain[mine.name]})
    assert_is(published, idx.load(published.source, tmp_path, download=True))
    assert capfd.readouterr().out == ""
    raw = sorted(path.name for path in (tmp_path / "MNIST" / "raw").iterdir())
    kept = [name for name in published.plain | published.packed if not name.startswith(mine.name)]
    assert raw == sorted(kept)
    for path in mirror.iterdir():
        path.unlink()
    assert_is(published, idx.load(published.source, tmp_path, download=True))  # needs no server any more


@pytest.mark.parametrize("cut", [0, 10])
def test_an_interrupted_download_leaves_no_file(published: Published, mirror: Path, tmp_path: Path, cut: int) -> None:
    last = mirror / "t10k-labels-idx1-ubyte.gz"
    last.write_bytes(last.read_bytes()[:cut])
    with pytest.raises(UsageError, match=r"the download failed: Error downloading t10k-labels-idx1-ubyte\.gz"):
        idx.load(published.source, tmp_path, download=True)
    assert not list((tmp_path / "MNIST" / "raw").iterdir())


def test_a_download_error_is_one_line(
    published: Published, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision

    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"the download failed: .*Not a directory.*dataset=digits"):
        idx.load(published.source, tmp_path / "file", download=True)
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(UsageError, match=r"the download failed: .*127\.0\.0\.1:9.*dataset=digits") as refused:
        idx.load(published.source, tmp_path, download=True)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("source", [idx.MNIST, idx.FASHION_MNIST, idx.KMNIST], ids=lambda source: source.name)
def test_names_and_checksums_are_those_of_torchvision(source: idx.IdxDataset) -> None:
    import torchvision

    theirs = getattr(torchvision.datasets, source.folder)
    assert [(f"{file.name}.gz", file.md5_gz) for file in source.files] == theirs.resources
    assert list(source.classes) == [name.split(" - ")[0] for name in theirs.classes]


# Splitting and normalizing


def numbered(count: int) -> Split:
    """Samples whose values are their indices."""
    return Split(torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1), torch.arange(count))


@given(st.integers(1, 250), st.floats(0, 1, exclude_min=True, exclude_max=True), st.integers(0, 2**40))
def test_split_is_disjoint_complete_and_keyed_by_the_seed(count: int, fraction: float, seed: int) -> None:
    split, wanted = numbered(count), round(fraction * count)
    if wanted in {0, count}:
        with pytest.raises(UsageError, match=r"leaves none of the .* samples"):
            split_off(split, fraction, seed=seed)
        return
    rest, picked = split_off(split, fraction, seed=seed)
    assert (len(rest), len(picked)) == (count - wanted, wanted)
    assert sorted(rest.y.tolist() + picked.y.tolist()) == list(range(count))
    for part in (rest, picked):
        assert torch.equal(part.x.flatten().long(), part.y)
    before = torch.get_rng_state()
    again = split_off(split, fraction, seed=seed)
    assert torch.equal(again[0].y, rest.y)
    assert torch.equal(again[1].y, picked.y)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_gives_another_split() -> None:
    picked = [tuple(split_off(numbered(100), 0.2, seed=seed)[1].y.tolist()) for seed in range(20)]
    assert len(set(picked)) == 20
    assert {len(numbers) for numbers in picked} == {20}


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.2, 1.5, math.nan])
def test_a_fraction_outside_0_to_1_is_an_error(fraction: float) -> None:
    with pytest.raises(UsageError, match=r"dataset\.validation_fraction=.*greater than 0 and less than 1"):
        split_off(numbered(10), fraction, seed=0)


def small(channels: int = 1) -> Dataset:
    random = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (20, channels, 4, 3), dtype=torch.uint8, generator=random)
    return assemble(
        "small",
        Split(x, torch.arange(20)),
        Split(x[:5].flip(0), torch.arange(5)),
        seed=3,
        validation_fraction=0.2,
        mean=0.1307,
        std=0.3081,
        largest=255,
        classes=tuple("0123456789"),
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_normalize_is_pixel_over_largest_minus_mean_over_std(channels: int) -> None:
    data = small(channels)
    assert data.shape == (channels, 4, 3)
    expected = (data.train.x.double() / 255 - 0.1307) / 0.3081
    torch.testing.assert_close(data.normalize(data.train.x), expected, rtol=0, atol=1e-12)
    single = data.to("cpu", torch.float32)
    torch.testing.assert_close(single.normalize(data.train.x), expected.float(), rtol=0, atol=1e-6)
    assert single.train.x.dtype == torch.uint8
    before = data.train.x.clone()
    single.normalize(data.train.x)
    assert torch.equal(data.train.x, before)


def test_sha256_is_of_the_content_in_its_original_order() -> None:
    data = small()
    content = hashlib.sha256()
    for part in (data.train, data.val):
        assert not torch.equal(part.y, part.y.sort().values)  # the split shuffles, which must not change the hash
    y = torch.cat([data.train.y, data.val.y])
    x = torch.cat([data.train.x, data.val.x])[y.argsort()]
    for tensor in (x, torch.arange(20), data.test.x, data.test.y):
        content.update(tensor.numpy().tobytes())
    assert data.sha256 == content.hexdigest()


# The bundled digits


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    theirs = load_digits()
    x, y = theirs.images.astype(np.uint8)[:, None], theirs.target.astype(np.int64)
    content = b"".join(
        part.tobytes() for cut in (slice(TEST_FROM), slice(TEST_FROM, None)) for part in (x[cut], y[cut])
    )
    data = digits(data_dir="", seed=0, **options("digits"))
    assert data.sha256 == hashlib.sha256(content).hexdigest()
    assert (len(data.train), len(data.val), len(data.test)) == (1132, 283, 382)
    assert data.shape == (1, 8, 8)
    np.testing.assert_array_equal(data.test.x, x[TEST_FROM:])
    np.testing.assert_array_equal(data.test.y, y[TEST_FROM:])
    np.testing.assert_array_equal(y[TEST_FROM:][:120], y[:120])  # a new writer copies the sheet from its start


def test_the_test_part_of_digits_does_not_depend_on_the_seed() -> None:
    one, two = (digits(data_dir="", seed=seed, **options("digits")) for seed in (1, 2))
    assert torch.equal(one.test.x, two.test.x)
    assert not torch.equal(one.val.x, two.val.x)
    assert one.sha256 == two.sha256


def test_the_error_for_a_damaged_digits_file_gives_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    _parts.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(UsageError, match=r"digits\.csv\.gz: cannot be read .*reinstall scikit-learn"):
        digits(data_dir="", seed=0, **options("digits"))


# Configurations


def test_every_config_names_its_factory_and_exactly_its_options() -> None:
    assert sorted(path.stem for path in CONF.glob("*.yaml")) == sorted(FACTORIES | DRAWN | TABLES | PICTURES)
    for name, factory in (FACTORIES | DRAWN | TABLES | PICTURES).items():
        config = yaml.safe_load((CONF / f"{name}.yaml").read_text())
        module, _, attribute = config["_target_"].rpartition(".")
        assert getattr(importlib.import_module(module), attribute) is factory
        assert {*options(name), "data_dir", "seed"} == set(inspect.signature(factory).parameters)


@pytest.mark.parametrize(
    "wrong",
    [{"validation_fraction": 0}, {"validation_fraction": 1}, {"std": 0}, {"std": -1}, {"mean": "nan"}],
    ids=str,
)
@pytest.mark.parametrize("name", FACTORIES)
def test_invalid_options_are_rejected_by_the_signature(name: str, wrong: dict[str, Any]) -> None:
    checked = pydantic.validate_call(FACTORIES[name])
    with pytest.raises(pydantic.ValidationError, match=next(iter(wrong))):
        checked(data_dir="", seed=0, **options(name) | wrong)


def test_reading_digits_imports_neither_scikit_learn_nor_torchvision() -> None:
    program = (
        "import sys\n"
        "from dlhw.data import digits, idx\n"
        "digits.digits(data_dir='', seed=0, mean=0.3, std=0.4, validation_fraction=0.2)\n"
        "assert not {'sklearn', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# Synthetic


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("angle", [0.0, 10.0, 135.0])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_separable_points_keep_their_margin_on_their_side(seed: int, angle: float, noise: float) -> None:
    data = drawn(seed=seed, n=301, margin=0.7, noise=noise, angle_degrees=angle)
    across = torch.tensor([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
    for part in (data.train, data.val, data.test):
        assert part.x.dtype == torch.float32
        distance = (2 * part.y - 1) * (part.x @ across)
        assert distance.min() >= 0.7 * (1 - 1e-5)
        assert (distance.max() > 1.5) == bool(noise)
    assert (len(data.train), len(data.val), len(data.test)) == (241, 60, 301)
    assert torch.bincount(data.test.y).tolist() == [151, 150]
    assert torch.bincount(torch.cat([data.train.y, data.val.y])).tolist() == [151, 150]


def test_separable_points_have_the_documented_distribution() -> None:
    """Half-normal beyond the margin: mean s sqrt(2/pi), variance (1 - 2/pi) s^2; along the line: N(0, s^2)."""
    n, noise = 20_000, 0.5
    x, y = (test := drawn(n=n, margin=0.7, noise=noise, angle_degrees=0.0).test).x.double(), test.y
    beyond = (2 * y - 1) * x[:, 0] - 0.7
    assert abs(beyond.mean() - noise * math.sqrt(2 / math.pi)) < 5 * noise * math.sqrt((1 - 2 / math.pi) / n)
    assert abs(x[:, 1].mean()) < 5 * noise / math.sqrt(n)
    assert abs(x[:, 1].square().mean() - noise**2) < 5 * noise**2 * math.sqrt(2 / n)


@pytest.mark.parametrize("wrong", [{"n": 1}, {"margin": 0}, {"noise": -1}, {"angle_degrees": "nan"}], ids=str)
def test_invalid_options_of_separable_are_rejected_by_the_signature(wrong: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(wrong))):
        pydantic.validate_call(separable)(data_dir="", seed=0, **options("separable") | wrong)


def test_separable_inputs_are_the_points_themselves() -> None:
    data = drawn().to("cpu", torch.float32)
    assert data.shape == (2,)
    assert torch.equal(data.normalize(data.train.x), data.train.x)


def test_separable_points_are_determined_by_the_seed() -> None:
    assert drawn().sha256 == drawn().sha256 != drawn(seed=1).sha256
    assert not torch.equal(drawn().train.x, drawn().test.x[: len(drawn().train)])


def drawn(**changed: Any) -> Dataset:
    return separable(data_dir="", **{"seed": 0} | options("separable") | changed)


# The real MNIST


@pytest.fixture(scope="module")
def real() -> tuple[Path, Dataset]:
    root = Path(os.environ.get("DLHW_DATA", ""))
    if "DLHW_DATA" not in os.environ or not (root / "MNIST" / "raw" / idx.MNIST.files[0].name).is_file():
        pytest.skip("no MNIST/raw/train-images-idx3-ubyte in the folder that DLHW_DATA names")
    return root, idx.mnist(data_dir=str(root), seed=0, **options("mnist") | {"download": False})


@pytest.mark.real
def test_real_mnist_has_48000_12000_10000_images_of_mean_0_and_std_1(real: tuple[Path, Dataset]) -> None:
    _, data = real
    assert (len(data.train), len(data.val), len(data.test)) == (48000, 12000, 10000)
    assert data.shape == (1, 28, 28)
    values = data.to("cpu", torch.float32).normalize(torch.cat([data.train.x, data.val.x]))
    assert abs(values.mean().item()) < 5e-4  # the constants have four digits
    assert abs(values.std().item() - 1) < 5e-4


@pytest.mark.real
def test_real_mnist_equals_torchvision_pixel_for_pixel(real: tuple[Path, Dataset]) -> None:
    import torchvision

    root, data = real
    content = hashlib.sha256()
    for train in (True, False):
        theirs = torchvision.datasets.MNIST(root, train=train, download=False)
        content.update(theirs.data.numpy().tobytes())
        content.update(theirs.targets.numpy().tobytes())
    assert data.sha256 == content.hexdigest()
    assert torch.equal(data.test.x[:, 0], theirs.data)
    assert torch.equal(data.test.y, theirs.targets)


# Clusters

CLUSTERS: dict[str, Any] = {"features": 5, "classes": 3, "separation": 1.0, "noise_percent": 0.0}


def test_clusters_are_determined_by_the_seed_and_balanced() -> None:
    one, same, other = (
        clusters(data_dir="", seed=seed, n=300, validation_fraction=0.2, **CLUSTERS) for seed in (0, 0, 1)
    )
    assert (one.shape, one.classes, len(one.test)) == ((5,), ("0", "1", "2"), 300)
    assert one.sha256 == same.sha256 != other.sha256
    counts = torch.cat([one.train.pool_y, one.test.pool_y]).bincount()
    assert counts.tolist() == [200, 200, 200]


def test_too_many_clusters_are_an_error() -> None:
    options = CLUSTERS | {"features": 2, "classes": 5}
    with pytest.raises(UsageError, match=r"dataset\.classes=5: must be at most 4 for dataset\.features=2"):
        clusters(data_dir="", seed=0, n=100, validation_fraction=0.2, **options)


# Other properties of a dataset


def coloured(**changed: Any) -> Dataset:
    """Sixteen noisy pictures (3, 6, 6) of two classes: ten for training, two for validation, four for the test."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randint(256, (16, 3, 6, 6), generator=draw, dtype=torch.uint8)
    y = torch.arange(16) % 2
    options: dict[str, Any] = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.25, 1.0], "largest": 255, "classes": ("a", "b")}
    parts = Split(x[:12], y[:12]), Split(x[12:], y[12:])
    return assemble("coloured", *parts, seed=0, validation_fraction=0.2, **(options | changed))


def test_each_channel_has_its_mean_and_std() -> None:
    data = coloured()
    x = data.val.x
    expected = torch.stack(
        [(x[:, c].double() / 255 - mean) / std for c, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 1.0)])],
        1,
    )
    torch.testing.assert_close(data.normalize(x), expected)
    assert data.normalize.shift.shape == data.normalize.scale.shape == (3, 1, 1)
    torch.testing.assert_close(coloured(mean=0.5, std=0.5).normalize(x), x.double() / 127.5 - 1)


@pytest.mark.parametrize("name", ["mean", "std"])
def test_mean_and_std_must_match_the_number_of_channels(name: str) -> None:
    with pytest.raises(UsageError) as raised:
        coloured(**{name: [0.1, 0.2]})
    assert str(raised.value) == f"dataset.{name}=[0.1, 0.2]: must be one number, or one for each of the 3 channels"


def test_size_applies_to_the_inputs_and_not_to_the_pool() -> None:
    data = coloured(size=10)
    assert data.shape == (3, 10, 10)
    assert data.train.pool_x.shape[1:] == (3, 6, 6)
    x = data.val.x
    resized = torch.nn.functional.interpolate(x.double(), (10, 10), mode="bilinear", antialias=True)
    torch.testing.assert_close(data.normalize(x), resized * data.normalize.scale + data.normalize.shift)
    torch.testing.assert_close(data.normalize.inverse(data.normalize(x)), resized)
    assert x.dtype == torch.uint8
    assert torch.equal(coloured(size=6).normalize(x), coloured().normalize(x))


def test_a_dataset_without_a_test_part() -> None:
    data = replace(coloured(), test=None)
    assert list(data.parts) == list(data.to("cpu", torch.float32).parts) == ["train", "val"]
    assert "test" not in data.description
    assert list(data.for_variant(0).parts) == ["train", "val"]
    assert list(coloured().description)[:5] == ["name", "sha256", "train", "val", "test"]


def test_with_parts_replaces_only_what_it_names() -> None:
    data = coloured()
    other = data.with_parts({"val": data.train}, name="other")
    assert other.val is data.train
    assert other.train is data.train
    assert other.test is data.test
    assert (other.name, other.classes, other.sha256) == ("other", data.classes, data.sha256)
    assert data.name == "coloured"


def test_epochs_use_the_views_in_turn() -> None:
    data = coloured()
    views = tuple(Split(data.train.x + number, data.train.y) for number in range(3))
    turned = data.with_parts({}, views=views)
    assert [views.index(turned.view(epoch)) for epoch in (1, 2, 3, 4, 8)] == [0, 1, 2, 0, 1]
    assert data.view(5) is data.train


def test_a_pool_too_large_for_the_device_is_not_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moved = coloured().to("meta", torch.float32)
    assert moved.train.pool_x.is_meta
    assert moved.train.pool_x is moved.val.pool_x
    monkeypatch.setattr(tensors, "_is_too_large", lambda pool, device: True)
    stays = coloured().to("meta", torch.float32)
    assert not stays.train.pool_x.is_meta
    assert stays.train.pool_y.is_meta
    assert stays.device.type == "meta"
    assert not stays.train.rows_at(torch.zeros(1, 3, dtype=torch.long, device="meta")).is_cpu


def test_batches_of_a_pool_on_another_device_go_to_the_device_of_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    split = Split(torch.arange(12).view(6, 2), torch.arange(6), torch.tensor([4, 1, 5]))
    real = torch.Tensor.to

    def noted(self: torch.Tensor, *where: Any, **named: Any) -> torch.Tensor:
        asked.extend(place for place in where if isinstance(place, torch.device))
        return real(self, *where, **named)

    monkeypatch.setattr(torch.Tensor, "to", noted)
    x, y = split.gather(torch.tensor([[4, 5], [1, 1]]))
    assert x.tolist() == [[[8, 9], [10, 11]], [[2, 3], [2, 3]]]
    assert y.tolist() == [[4, 5], [1, 1]]
    assert asked == [split.pool_x.device, split.pool_y.device]
