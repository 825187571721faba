"""Datasets in ``.npz`` and IDX files: which arrays are found, their shapes, and one line for each mistake."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dlhw.data import array_files
from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError
from support.datasets import options

X, Y = np.arange(40.0).reshape(20, 2), np.arange(20) % 2
PIXELS = np.arange(20 * 12, dtype=np.uint8).reshape(20, 3, 4)


def npz(path: Path, **changed: Any) -> Dataset:
    return array_files.npz(data_dir=path.parent, **options("npz", path=str(path)) | changed)


def saved(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "arrays.npz", **arrays)
    return folder / "arrays.npz"


def idx_bytes(array: npt.NDArray[Any]) -> bytes:
    """Return an array as an IDX file."""
    code = next(
        code for code, dtype in array_files.IDX_TYPES.items() if np.dtype(dtype) == array.dtype.newbyteorder(">")
    )
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, code, array.ndim]) + sizes + array.astype(array_files.IDX_TYPES[code]).tobytes()


def idx(folder: Path, **changed: Any) -> Dataset:
    return array_files.idx_folder(data_dir=folder, **options("idx", root=str(folder)) | changed)


@pytest.mark.parametrize(
    "names", [("x", "y"), ("X", "Y"), ("train_images", "train_labels"), ("x_train", "y_train"), ("data", "targets")]
)
def test_arrays_are_found_by_their_names(tmp_path: Path, names: tuple[str, str]) -> None:
    data = npz(saved(tmp_path, **dict(zip(names, (X, Y), strict=True))))
    assert [len(part) for part in data.parts.values()] == [13, 3, 4]
    assert (data.name, data.shape, data.classes) == ("arrays", (2,), ("0", "1"))


def test_the_parts_of_the_file_are_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = {"x_train": X, "y_train": Y, "x_val": X[:3], "y_val": Y[:3], "x_test": X[:5], "y_test": Y[:5]}
    path = saved(tmp_path, **parts, names=np.array(["a"]))
    with caplog.at_level(logging.INFO):
        data = npz(path)
    assert {name: len(part) for name, part in data.parts.items()} == {"train": 20, "val": 3, "test": 5}
    assert caplog.messages == [
        f"{path}: not used: names",
        f"{path}: samples of shape (2,), each feature standardized by the training part; 2 classes; train 20, val 3, "
        "test 5",
    ]


def test_named_arrays_replace_those_that_would_be_found(tmp_path: Path) -> None:
    path = saved(tmp_path, x=X, y=Y, more=X[:, :1], other=Y / 3)
    assert npz(path, x="more").shape == (1,)
    assert npz(path, y="other").classes == ()
    assert npz(path, x="more", y="other", task="regression").shape == (1,)


@pytest.mark.parametrize(
    ("shape", "expected"), [((9, 8, 7, 3), (3, 8, 7)), ((9, 3, 8, 4), (3, 8, 4)), ((9, 8, 7, 5), (8, 7, 5))]
)
def test_pictures_with_channels_last_are_transposed(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    x = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    data = npz(saved(tmp_path, x=x, y=np.arange(9) % 2))
    assert data.shape == expected
    if shape[3] == 3:
        assert data.train.pool_x[2, 1].tolist() == x[2, :, :, 1].tolist()


INVALID: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no arrays": ({}, {}, "FILE: has the arrays none; name those with samples and labels with dataset.x and dataset.y"),
    "other names": (
        {"a": X, "b": Y},
        {},
        "FILE: has the arrays a, b; name those with samples and labels with dataset.x",
    ),
    "no such array": ({"x": X, "y": Y}, {"x": "z"}, "dataset.x=z: FILE has no such array; expected one of x, y"),
    "ambiguous": (
        {"x": X, "data": X, "y": Y},
        {},
        "FILE: x and data may both be the train samples; expected one of them",
    ),
    "no labels": ({"x": X}, {}, "FILE: x has no train labels"),
    "no test labels": ({"x": X, "y": Y, "x_test": X}, {}, "FILE: x_test has no test labels"),
    "objects": ({"x": X, "y": np.array(["a", None] * 10, object)}, {}, "FILE: the array y has Python objects, "),
    "lengths": ({"x": X, "y": Y[:3]}, {}, "FILE: 20 samples in train, but 3 labels"),
    "not finite": ({"x": X + np.inf, "y": Y}, {}, "FILE: train: sample 0, counted from 0, has a"),
}


@pytest.mark.parametrize(("arrays", "changed", "message"), INVALID.values(), ids=INVALID)
def test_a_mistake_in_npz_is_one_line(
    tmp_path: Path, arrays: dict[str, Any], changed: dict[str, Any], message: str
) -> None:
    path = saved(tmp_path, **arrays)
    with pytest.raises(UsageError) as caught:
        npz(path, **changed)
    line = str(caught.value).replace(str(path), "FILE")
    assert line.startswith(message), line
    assert "\n" not in line


@pytest.mark.parametrize("content", [b"", b"abc", None])
def test_a_damaged_npz_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = saved(tmp_path, x=np.arange(4000), y=Y)
    whole = bytearray(path.read_bytes())
    whole[2000:2100] = bytes(100)
    path.write_bytes(whole if content is None else content)
    with pytest.raises(UsageError, match=r"arrays\.npz: (not an \.npz file|cannot be read as \.npz \(Bad CRC-32.*\))$"):
        npz(path)


@given(
    array=st.sampled_from([np.uint8, np.int8, np.int16, np.int32, np.float32, np.float64]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=4, max_side=5))
    ),
    compressed=st.booleans(),
)
def test_idx_files_of_every_type_and_shape_are_read(
    tmp_path_factory: pytest.TempPathFactory, array: npt.NDArray[Any], compressed: bool
) -> None:
    path = tmp_path_factory.mktemp("idx") / f"a.idx{'.gz' * compressed}"
    path.write_bytes(gzip.compress(idx_bytes(array)) if compressed else idx_bytes(array))
    result = array_files.read_idx(path)
    assert result.dtype == array.dtype
    np.testing.assert_array_equal(result, array)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "invalid header"),
        (b"\0\0\x08", "invalid header 000008"),
        (b"\0\1\x08\1", "invalid header 00010801"),
        (b"\0\0\x07\1", "invalid header 00000701"),
        (b"\0\0\x08\2\0\0\0\1", "truncated header"),
        (b"\0\0\x08\2" + b"\xff" * 8, r"invalid shape \(4294967295, 4294967295\)"),
        (idx_bytes(PIXELS)[:-1], r"truncated: expected 240 bytes of values of shape \(20, 3, 4\)"),
        (idx_bytes(PIXELS) + b"0", r"too long: expected 240 bytes of values of shape \(20, 3, 4\)"),
    ],
)
def test_an_invalid_idx_file_is_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.idx"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"a\.idx: cannot be read as IDX \({reason}\)$"):
        array_files.read_idx(path)


def write_idx(folder: Path, **arrays: npt.NDArray[Any]) -> None:
    """Write IDX files whose names have dashes and a number where the keywords have underscores."""
    for name, array in arrays.items():
        (folder / f"{name.replace('_', '-')}-idx{array.ndim}-ubyte").write_bytes(idx_bytes(array.astype(np.uint8)))


def test_a_folder_of_idx_files_has_the_parts_that_its_names_say(tmp_path: Path) -> None:
    write_idx(tmp_path, train_images=PIXELS, train_labels=Y, t10k_images=PIXELS[:6], t10k_labels=Y[:6])
    (tmp_path / "readme.txt").write_text("")
    data = idx(tmp_path)
    assert {name: len(part) for name, part in data.parts.items()} == {"train": 16, "val": 4, "test": 6}
    assert (data.shape, data.classes, data.name) == ((1, 3, 4), ("0", "1"), tmp_path.name)
    assert data.train.pool_x[:, 0].tolist() == PIXELS.tolist()
    copy = tmp_path / "t10k-labels-idx1-ubyte"
    (tmp_path / f"{copy.name}.gz").write_bytes(gzip.compress(copy.read_bytes()))
    assert idx(tmp_path).sha256 == data.sha256


def test_mistakes_in_a_folder_of_idx_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^dataset.root=.*nowhere: no such folder$"):
        idx(tmp_path / "nowhere")
    with pytest.raises(
        UsageError, match=r"^dataset.root=.*: no IDX files of training samples and labels; expected names"
    ):
        idx(tmp_path)
    write_idx(tmp_path, train_images=PIXELS)
    with pytest.raises(UsageError, match=r": train-images-idx3-ubyte has no train labels$"):
        idx(tmp_path)
    write_idx(tmp_path, train_labels=Y, other_train_labels=Y)
    with pytest.raises(
        UsageError, match=r"train-labels-idx1-ubyte may both be the train labels; expected one of them$"
    ):
        idx(tmp_path)
