"""A checkpoint is read exactly as saved or raises an error: after truncation, a changed byte, or a crash."""

from __future__ import annotations

import io
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dlhw.errors import UsageError
from dlhw.runs import checkpoint
from dlhw.runs.checkpoint import CheckpointWriter, CorruptCheckpoint, State, load, load_last, save, save_last
from dlhw.runtime.files import write_atomically

STATE: State = {
    "model": {"0.weight": torch.tensor([[1.5, -2.0, float("nan")]]), "0.bias": torch.tensor([3])},
    "rows": [{"epoch": 1, "val_loss": 0.1}],
}


class Crash(BaseException):
    """A power failure."""


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal in structure, types, dtypes and bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        alike = (one.dtype, one.shape) == (other.dtype, other.shape)
        return alike and bits(one) == bits(other)
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


def state_of(epoch: int) -> State:
    return {"model": {"w": torch.full((3,), float(epoch))}, "rows": [{"epoch": epoch}]}


def epoch_in(path: Path) -> int:
    epoch: int = load(path)["rows"][-1]["epoch"]
    return epoch


GOOD = as_bytes(STATE)


# Round trip


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
def test_tensors_are_restored_bit_for_bit(tensor: Tensor, tmp_path: Path) -> None:
    save(tmp_path / "x.pt", {"tensor": tensor})
    back = load(tmp_path / "x.pt")
    assert same(back, {"tensor": tensor})
    assert back["tensor"].stride() == tensor.stride()


VALUES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
NESTED = st.recursive(
    VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(max_size=5), NESTED, max_size=4))
def test_containers_are_restored_equal(state: State) -> None:
    with tempfile.TemporaryDirectory() as directory:
        save(Path(directory, "x.pt"), state)
        assert same(load(Path(directory, "x.pt")), state)


def test_optimizer_state_is_restored(tmp_path: Path) -> None:
    weight = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.Adam([weight], fused=True)
    weight.sum().backward()
    optimizer.step()
    save(tmp_path / "x.pt", optimizer.state_dict())
    assert same(load(tmp_path / "x.pt"), optimizer.state_dict())


def test_a_missing_file_raises_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "x.pt")


# Damage


def flipped(position: int, mask: int) -> bytes:
    return GOOD[:position] + bytes([GOOD[position] ^ mask]) + GOOD[position + 1 :]


def check_damaged(path: Path, content: bytes) -> None:
    """The file raises a one-line error that names it, or its content is unchanged."""
    path.write_bytes(content)
    message, back = "", None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about some damaged files
            back = load(path)
    except CorruptCheckpoint as error:
        message = str(error)
    if message:
        assert message.startswith(f"{path}: corrupt checkpoint (")
        assert "\n" not in message
    else:
        assert same(back, STATE)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "x.pt"


@settings(deadline=None, max_examples=150)
@given(length=st.integers(0, len(GOOD) - 1))
@example(length=0)
@example(length=len(GOOD) - 1)
def test_truncation_anywhere_is_detected(scratch: Path, length: int) -> None:
    scratch.write_bytes(GOOD[:length])
    with pytest.raises(CorruptCheckpoint, match=f"^{re.escape(str(scratch))}: corrupt checkpoint"):
        load(scratch)


@settings(deadline=None, max_examples=200)
@given(position=st.integers(0, len(GOOD) - 1), mask=st.integers(1, 255))
def test_a_changed_byte_anywhere_is_detected_or_harmless(scratch: Path, position: int, mask: int) -> None:
    check_damaged(scratch, flipped(position, mask))


def test_changes_in_the_zip_directory_are_detected_or_harmless(scratch: Path) -> None:
    for position in range(GOOD.index(b"PK\x01\x02"), len(GOOD)):
        for mask in (0x10, 0xFF):  # 0x10 at one position turns a tensor into a folder, which torch reads as empty
            check_damaged(scratch, flipped(position, mask))


@pytest.mark.slow
@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_anywhere_is_detected_or_harmless(bit: int, scratch: Path) -> None:
    for position in range(len(GOOD)):
        check_damaged(scratch, flipped(position, 1 << bit))


def test_changes_in_tensors_are_detected(scratch: Path) -> None:
    start = GOOD.index(bits(STATE["model"]["0.weight"]))
    for position in range(start, start + 12):
        scratch.write_bytes(flipped(position, 1))
        with pytest.raises(CorruptCheckpoint):
            load(scratch)


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=200))
@example(b"")
@example(b"\0" * len(GOOD))
def test_arbitrary_bytes_are_corrupt(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)
    with pytest.raises(CorruptCheckpoint):
        load(scratch)


class Malicious:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": Malicious(tmp_path / "made")}, tmp_path / "x.pt")
    with pytest.raises(CorruptCheckpoint, match=r"x\.pt"):
        load(tmp_path / "x.pt")
    assert not (tmp_path / "made").exists()


# last.pt and previous.pt


def test_a_run_without_checkpoints_has_no_last(tmp_path: Path) -> None:
    assert load_last(tmp_path) is None


def test_the_previous_checkpoint_is_kept(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        save_last(tmp_path, state_of(epoch))
    assert (epoch_in(tmp_path / "last.pt"), epoch_in(tmp_path / "previous.pt")) == (3, 2)
    assert same(load_last(tmp_path), state_of(3))


def test_a_corrupt_last_is_logged_and_previous_is_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_last(tmp_path, state_of(1))
    save_last(tmp_path, state_of(2))
    (tmp_path / "last.pt").write_bytes(GOOD[:-5])
    with caplog.at_level(logging.WARNING):
        assert same(load_last(tmp_path), state_of(1))
    (warning,) = caplog.records
    assert (warning.levelname, str(tmp_path / "last.pt") in warning.getMessage()) == ("WARNING", True)


def test_a_valid_last_is_loaded_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_last(tmp_path, state_of(1))
    save_last(tmp_path, state_of(2))
    (tmp_path / "previous.pt").write_bytes(b"")
    assert same(load_last(tmp_path), state_of(2))
    assert not caplog.records


def test_two_corrupt_checkpoints_raise_an_error_that_names_both(tmp_path: Path) -> None:
    for name in ("last.pt", "previous.pt"):
        (tmp_path / name).write_bytes(GOOD[:-5])
    with pytest.raises(CorruptCheckpoint) as caught:
        load_last(tmp_path)
    assert str(tmp_path / "last.pt") in str(caught.value)
    assert str(tmp_path / "previous.pt") in str(caught.value)
    assert isinstance(caught.value, UsageError)


# Crashes


def crash_at(call: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the ``call``-th call of ``os.<name>`` raise Crash."""
    real, calls = getattr(os, name), iter(range(1, 1_000_000))

    def counted(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise Crash
        return real(*arguments, **options)

    monkeypatch.setattr(os, name, counted)


@pytest.mark.parametrize("name", ["replace", "fsync"])
@pytest.mark.parametrize("call", [1, 2])
def test_a_crash_while_saving_leaves_a_readable_checkpoint(
    name: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_last(tmp_path, state_of(1))
    save_last(tmp_path, state_of(2))
    with monkeypatch.context() as patch:
        crash_at(call, name, patch)
        with pytest.raises(Crash):
            save_last(tmp_path, state_of(3))
    state = load_last(tmp_path)
    assert state is not None
    assert state["rows"][-1]["epoch"] in (2, 3)
    save_last(tmp_path, state_of(4))
    assert epoch_in(tmp_path / "last.pt") == 4


@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_a_crash_at_the_first_save_leaves_no_checkpoint(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        crash_at(1, name, patch)
        with pytest.raises(Crash):
            save_last(tmp_path, state_of(1))
    assert load_last(tmp_path) is None


@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_a_crash_while_writing_leaves_the_old_content(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomically(tmp_path / "x", b"old")
    with monkeypatch.context() as patch:
        crash_at(1, name, patch)
        with pytest.raises(Crash):
            write_atomically(tmp_path / "x", b"new and longer")
    assert (tmp_path / "x").read_bytes() == b"old"


def test_writing_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "x", b"one")
    write_atomically(tmp_path / "x", memoryview(b"two"))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"two"


def test_content_is_synchronized_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))[1])
    write_atomically(tmp_path / "x", b"content")
    assert calls[:2] == ["fsync", "replace"]


# CheckpointWriter


class Training:
    """Training with a CheckpointWriter, on a clock that only :meth:`finish_epoch` advances."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory, self.seconds, self.epoch = directory, 1000.0, 0
        monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: self.seconds))

    def writer(self, every_seconds: float) -> CheckpointWriter:
        return CheckpointWriter(self.directory, lambda: state_of(self.epoch), every_seconds=every_seconds)

    def finish_epoch(self, writer: CheckpointWriter, *, best: bool = False, seconds: float = 1.0) -> None:
        self.epoch += 1
        self.seconds += seconds
        writer.epoch_finished(state_of(self.epoch) if best else None)

    def files(self) -> dict[str, int]:
        return {path.stem: epoch_in(path) for path in self.directory.glob("*.pt")}


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    return Training(tmp_path, monkeypatch)


def test_every_0_seconds_writes_after_every_epoch(training: Training) -> None:
    with training.writer(0) as writer:
        training.finish_epoch(writer, best=True, seconds=0)
        assert training.files() == {"last": 1, "best": 1}
        training.finish_epoch(writer, seconds=0)
        assert training.files() == {"last": 2, "previous": 1, "best": 1}
        training.finish_epoch(writer, best=True, seconds=0)
        assert training.files() == {"last": 3, "previous": 2, "best": 3}
    assert training.files() == {"last": 3, "previous": 2, "best": 3}


def test_nothing_is_written_before_it_is_due(training: Training) -> None:
    with training.writer(10) as writer:
        training.finish_epoch(writer, best=True, seconds=4)
        training.finish_epoch(writer, best=True, seconds=4)
        assert training.files() == {}
        training.finish_epoch(writer, seconds=4)
        assert training.files() == {"last": 3, "best": 2}
        training.finish_epoch(writer, best=True, seconds=4)
        assert training.files() == {"last": 3, "best": 2}
        training.finish_epoch(writer, seconds=6)
        assert training.files() == {"last": 5, "previous": 3, "best": 4}


def test_leaving_the_context_writes_both(training: Training) -> None:
    with training.writer(1e9) as writer:
        training.finish_epoch(writer, best=True)
        training.finish_epoch(writer)
        assert training.files() == {}
    assert training.files() == {"last": 2, "best": 1}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_writes_only_the_best_weights(training: Training, error: type[BaseException]) -> None:
    def fail() -> None:
        with training.writer(1e9) as writer:
            training.finish_epoch(writer, best=True)
            training.finish_epoch(writer)
            raise error

    with pytest.raises(error):
        fail()
    assert training.files() == {"best": 1}


def test_leaving_without_an_epoch_writes_nothing(training: Training) -> None:
    with training.writer(0):
        pass
    assert training.files() == {}
