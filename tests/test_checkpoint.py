"""A checkpoint is loaded exactly as it was saved, or raises an error: after truncation or a changed byte."""

from __future__ import annotations

import io
import os
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dlhw.storage.checkpoint import CorruptCheckpoint, State, load, save

STATE: State = {
    "model": {"0.weight": torch.tensor([[1.5, -2.0, float("nan")]]), "0.bias": torch.tensor([3])},
    "rows": [{"epoch": 1, "val_loss": 0.1}],
}


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal in structure, types, dtypes and bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        same_type = (one.dtype, one.shape) == (other.dtype, other.shape)
        return same_type and bits(one) == bits(other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)  # also equal for nan, and distinguishes -0.0 from 0.0


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def as_bytes(state: State) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


VALID = as_bytes(STATE)


# Saving and loading


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([1.0, -0.0, float("inf"), float("nan"), 1e-45]),
        torch.tensor([0.1, float("nan")], dtype=torch.float64),
        torch.tensor([0.1, -3], dtype=torch.bfloat16),
        torch.tensor([2**62, -1]),
        torch.tensor([[0, 255]], dtype=torch.uint8),
        torch.tensor([True, False]),
        torch.tensor(7.5),
        torch.empty(0, 3),
        torch.arange(6.0).reshape(2, 3).T,
        torch.arange(12.0).reshape(1, 3, 2, 2).to(memory_format=torch.channels_last),
    ],
    ids=lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)}",
)
def test_tensors_are_restored_bit_for_bit_with_their_strides(tensor: Tensor, tmp_path: Path) -> None:
    save(tmp_path / "x.pt", {"tensor": tensor})
    loaded = load(tmp_path / "x.pt")
    assert same(loaded, {"tensor": tensor})
    assert loaded["tensor"].stride() == tensor.stride()


VALUES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
NESTED = st.recursive(
    VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(max_size=5), NESTED, max_size=4))
def test_nested_containers_are_restored_exactly(state: State) -> None:
    with tempfile.TemporaryDirectory() as directory:
        save(Path(directory, "x.pt"), state)
        assert same(load(Path(directory, "x.pt")), state)


def test_optimizer_state_is_restored_exactly(tmp_path: Path) -> None:
    weight = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.Adam([weight], fused=True)
    weight.sum().backward()
    optimizer.step()
    save(tmp_path / "x.pt", optimizer.state_dict())
    assert same(load(tmp_path / "x.pt"), optimizer.state_dict())


def test_a_missing_file_raises_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "x.pt")


# Damaged files


def flipped(position: int, mask: int) -> bytes:
    """The valid checkpoint with some bits of one byte flipped."""
    return VALID[:position] + bytes([VALID[position] ^ mask]) + VALID[position + 1 :]


def assert_detected_or_harmless(path: Path, content: bytes) -> None:
    """Loading the content raises a one-line error that names the file, or returns the state that was saved."""
    path.write_bytes(content)
    message, loaded = "", None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about some damaged files
            loaded = load(path)
    except CorruptCheckpoint as error:
        message = str(error)
    if message:
        assert message.startswith(f"{path}: corrupt checkpoint (")
        assert "\n" not in message
    else:
        assert same(loaded, STATE)


@pytest.fixture(scope="module")
def damaged_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "x.pt"


@settings(deadline=None, max_examples=150)
@given(length=st.integers(0, len(VALID) - 1))
@example(length=0)
@example(length=len(VALID) - 1)
def test_truncation_is_detected(damaged_file: Path, length: int) -> None:
    damaged_file.write_bytes(VALID[:length])
    with pytest.raises(CorruptCheckpoint, match=f"^{re.escape(str(damaged_file))}: corrupt checkpoint"):
        load(damaged_file)


@settings(deadline=None, max_examples=200)
@given(position=st.integers(0, len(VALID) - 1), mask=st.integers(1, 255))
@example(position=VALID.rindex(b"archive/version") + 10, mask=ord("r") ^ ord("\n"))  # the message names the entry
def test_a_changed_byte_is_detected_or_harmless(damaged_file: Path, position: int, mask: int) -> None:
    assert_detected_or_harmless(damaged_file, flipped(position, mask))


def test_a_changed_byte_of_the_zip_directory_is_detected_or_harmless(damaged_file: Path) -> None:
    for position in range(VALID.index(b"PK\x01\x02"), len(VALID)):
        for mask in (0x10, 0xFF):  # 0x10 at one position turns a tensor into a folder, which torch reads as empty
            assert_detected_or_harmless(damaged_file, flipped(position, mask))


@pytest.mark.slow
@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_is_detected_or_harmless(bit: int, damaged_file: Path) -> None:
    for position in range(len(VALID)):
        assert_detected_or_harmless(damaged_file, flipped(position, 1 << bit))


def test_a_changed_byte_of_a_tensor_is_detected(damaged_file: Path) -> None:
    start = VALID.index(bits(STATE["model"]["0.weight"]))
    for position in range(start, start + 12):
        damaged_file.write_bytes(flipped(position, 1))
        with pytest.raises(CorruptCheckpoint):
            load(damaged_file)


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=200))
@example(b"")
@example(b"\0" * len(VALID))
def test_arbitrary_bytes_are_a_corrupt_checkpoint(damaged_file: Path, content: bytes) -> None:
    damaged_file.write_bytes(content)
    with pytest.raises(CorruptCheckpoint):
        load(damaged_file)


class Malicious:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"model": Malicious(tmp_path / "created")}, tmp_path / "x.pt")
    with pytest.raises(CorruptCheckpoint, match=r"x\.pt"):
        load(tmp_path / "x.pt")
    assert not (tmp_path / "created").exists()


def test_sparse_tensors_are_read_without_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    torch.save({"model": {"adjacency": torch.eye(3).to_sparse()}}, tmp_path / "best.pt")
    assert torch.equal(load(tmp_path / "best.pt")["model"]["adjacency"].to_dense(), torch.eye(3))
    assert not [warning for warning in recwarn if "sparse" in str(warning.message)]
