"""Writing checkpoints: a crash leaves a readable one, the previous one is kept, and the writer writes when due."""

from __future__ import annotations

import itertools
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dlhw.errors import UsageError
from dlhw.runtime.files import write_atomically
from dlhw.storage import checkpoint
from dlhw.storage.checkpoint import (
    CheckpointTimes,
    CheckpointWriter,
    CorruptCheckpoint,
    State,
    load,
    load_last,
    save_last,
)
from support.comparing import same_state


def state_of(epoch: int) -> State:
    return {"model": {"w": torch.full((3,), float(epoch))}, "rows": [{"epoch": epoch}]}


def epoch_in(path: Path) -> int:
    epoch: int = load(path)["rows"][-1]["epoch"]
    return epoch


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


# last.pt and previous.pt


def test_load_last_returns_none_without_a_checkpoint(tmp_path: Path) -> None:
    assert load_last(tmp_path) is None


def test_save_last_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        save_last(tmp_path, state_of(epoch))
    assert (epoch_in(tmp_path / "last.pt"), epoch_in(tmp_path / "previous.pt")) == (3, 2)
    assert same_state(load_last(tmp_path)[1], state_of(3))


def test_a_corrupt_last_checkpoint_is_logged_and_the_previous_one_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_last(tmp_path, state_of(1))
    save_last(tmp_path, state_of(2))
    truncate(tmp_path / "last.pt")
    with caplog.at_level(logging.WARNING):
        assert same_state(load_last(tmp_path)[1], state_of(1))
    (warning,) = caplog.records
    assert (warning.levelname, str(tmp_path / "last.pt") in warning.getMessage()) == ("WARNING", True)


def test_a_valid_last_checkpoint_is_loaded_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_last(tmp_path, state_of(1))
    save_last(tmp_path, state_of(2))
    (tmp_path / "previous.pt").write_bytes(b"")
    assert same_state(load_last(tmp_path)[1], state_of(2))
    assert not caplog.records


def test_two_corrupt_checkpoints_raise_an_error_that_names_both(tmp_path: Path) -> None:
    for epoch in (1, 2):
        save_last(tmp_path, state_of(epoch))
    for name in ("last.pt", "previous.pt"):
        truncate(tmp_path / name)
    with pytest.raises(CorruptCheckpoint) as caught:
        load_last(tmp_path)
    assert str(tmp_path / "last.pt") in str(caught.value)
    assert str(tmp_path / "previous.pt") in str(caught.value)
    assert isinstance(caught.value, UsageError)


# Crashes


class Crash(BaseException):
    """Stands for a power failure."""


def crash_at(call: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the ``call``-th call of ``os.<name>`` raise Crash."""
    function, calls = getattr(os, name), itertools.count(1)

    def call_or_crash(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise Crash
        return function(*arguments, **options)

    monkeypatch.setattr(os, name, call_or_crash)


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
    loaded = load_last(tmp_path)
    assert loaded is not None
    assert loaded[1]["rows"][-1]["epoch"] in (2, 3)
    save_last(tmp_path, state_of(4))
    assert epoch_in(tmp_path / "last.pt") == 4


@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_a_crash_during_the_first_save_leaves_no_checkpoint(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        crash_at(1, name, patch)
        with pytest.raises(Crash):
            save_last(tmp_path, state_of(1))
    assert load_last(tmp_path) is None


@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_a_crash_during_an_atomic_write_leaves_the_old_content(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomically(tmp_path / "x", b"old")
    with monkeypatch.context() as patch:
        crash_at(1, name, patch)
        with pytest.raises(Crash):
            write_atomically(tmp_path / "x", b"new and longer")
    assert (tmp_path / "x").read_bytes() == b"old"


def test_an_atomic_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "x", b"one")
    write_atomically(tmp_path / "x", memoryview(b"two"))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"two"


def test_content_is_flushed_to_disk_before_the_file_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for name in ("fsync", "replace"):
        function = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, function=function: (calls.append(name), function(*a))[1])
    write_atomically(tmp_path / "x", b"content")
    assert calls[:2] == ["fsync", "replace"]


# CheckpointWriter


class Training:
    """Training with a CheckpointWriter, on a clock that only :meth:`finish_epoch` advances."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory, self.seconds, self.epoch = directory, 1000.0, 0
        monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: self.seconds))

    def writer(self, every_seconds: float) -> CheckpointWriter:
        self.times = CheckpointTimes(every_seconds)
        return CheckpointWriter(self.directory, lambda: state_of(self.epoch))

    def finish_epoch(
        self, writer: CheckpointWriter, *, best: bool = False, seconds: float = 1.0, writing: float = 0.0
    ) -> None:
        """Finish an epoch after some seconds; writing takes others if it is due."""
        self.epoch += 1
        self.seconds += seconds
        with self.times.writing() as due:
            writer.epoch_finished(state_of(self.epoch) if best else None, due=due)
            self.seconds += writing if due else 0.0

    def files(self) -> dict[str, int]:
        """The epoch that each checkpoint file holds."""
        return {path.stem: epoch_in(path) for path in self.directory.glob("*.pt")}


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    return Training(tmp_path, monkeypatch)


def test_an_interval_of_0_seconds_writes_after_every_epoch(training: Training) -> None:
    with training.writer(0) as writer:
        training.finish_epoch(writer, best=True, seconds=0)
        assert training.files() == {"last": 1, "best": 1}
        training.finish_epoch(writer, seconds=0)
        assert training.files() == {"last": 2, "previous": 1, "best": 1}
        training.finish_epoch(writer, best=True, seconds=0)
        assert training.files() == {"last": 3, "previous": 2, "best": 3}
    assert training.files() == {"last": 3, "previous": 2, "best": 3}


def test_checkpoints_are_written_only_when_the_interval_has_passed(training: Training) -> None:
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


def test_writing_takes_a_fifth_of_the_time_at_most(training: Training) -> None:
    with training.writer(2) as writer:
        training.finish_epoch(writer, seconds=2, writing=5)
        training.finish_epoch(writer, seconds=19)
        assert training.files() == {"last": 1}
        training.finish_epoch(writer, seconds=1, writing=0.1)
        assert training.files() == {"last": 3, "previous": 1}
        training.finish_epoch(writer, seconds=2)
        assert training.files() == {"last": 4, "previous": 3}


def test_leaving_the_context_writes_last_and_best(training: Training) -> None:
    with training.writer(1e9) as writer:
        training.finish_epoch(writer, best=True)
        training.finish_epoch(writer)
        assert training.files() == {}
    assert training.files() == {"last": 2, "best": 1}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_context_writes_only_the_best_weights(training: Training, error: type[BaseException]) -> None:
    def train_and_fail() -> None:
        with training.writer(1e9) as writer:
            training.finish_epoch(writer, best=True)
            training.finish_epoch(writer)
            raise error

    with pytest.raises(error):
        train_and_fail()
    assert training.files() == {"best": 1}


def test_leaving_the_context_without_an_epoch_writes_nothing(training: Training) -> None:
    with training.writer(0):
        pass
    assert training.files() == {}
