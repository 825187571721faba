"""Checkpoints that survive any interruption: written atomically, checked when read, one older kept.

``last.pt`` holds everything needed to go on, ``previous.pt`` is the one before it, ``best.pt`` the
weights at the best validation epoch. All are plain ``torch.save`` files of tensors, numbers, strings
and containers of them: ``torch.load(path, weights_only=True)`` reads them.
"""

from __future__ import annotations

import io
import logging
import pickle
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dlhw.errors import UsageError
from dlhw.runtime.files import sync_directory, write_atomically, written_beside

log = logging.getLogger(__name__)

State = dict[str, Any]


class CorruptCheckpoint(UsageError):
    """A checkpoint whose bytes are not those that were written."""


def save(path: Path, state: State) -> None:
    """Write one checkpoint file atomically."""
    write_atomically(path, _serialized(state))


def _serialized(state: State) -> memoryview:
    buffer = io.BytesIO()
    torch.save(_compact(state), buffer)
    return buffer.getbuffer()


def _compact(value: Any) -> Any:
    """The same with tensors that are parts of larger ones copied, because torch.save would write the larger ones."""
    if isinstance(value, dict):
        return type(value)((name, _compact(part)) for name, part in value.items())
    if isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() > value.nbytes:
        return value.clone()
    return value


def save_last(directory: Path, state: State) -> None:
    """Write ``last.pt``; what was there becomes ``previous.pt``, once the new one is safe on disk."""
    last = directory / "last.pt"
    written = written_beside(last, _serialized(state))
    if last.exists():
        last.replace(directory / "previous.pt")
    written.replace(last)
    sync_directory(directory)


def load(path: Path) -> State:
    """Read one checkpoint onto the CPU. Raises CorruptCheckpoint, naming the file, if any byte of it changed."""
    try:
        damage = _damage(path)
        state: State = {} if damage else torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError):
        raise
    except (zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError,
            KeyError) as error:  # fmt: skip
        damage = (str(error).splitlines() or [type(error).__name__])[0]
    if damage:
        raise CorruptCheckpoint(f"{path}: corrupt checkpoint ({damage})")
    return state


def _damage(path: Path) -> str | None:
    """What torch.load would not notice: it compares no checksums, and takes an entry's odd attributes at their word."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type or entry.external_attr or entry.flag_bits & 1:
                return f"attributes of {entry.filename} are not those of a checkpoint"
        failed = archive.testzip()
    return None if failed is None else f"checksum of {failed} does not match"


def load_last(directory: Path) -> State | None:
    """The newest readable of ``last.pt`` and ``previous.pt``; None when the run has no checkpoint yet.

    A corrupt file is named in the log and put aside as ``corrupt.pt``, so that it takes no other's place. Raises
    CorruptCheckpoint when there are only corrupt ones.
    """
    found = [path for name in ("last.pt", "previous.pt") if (path := directory / name).exists()]
    failures = []
    for path in found:
        try:
            state = load(path)
            for failed in found[: found.index(path)]:
                failed.replace(directory / "corrupt.pt")
            return state
        except CorruptCheckpoint as error:
            failures.append(error)
            log.warning("%s", error)
    if failures:
        raise CorruptCheckpoint(f"{'; '.join(map(str, failures))}; there is no older one to go on from")
    return None


class CheckpointWriter:
    """Decides when checkpoints are written while training goes on.

    At most every ``every_seconds`` the state of the run goes to ``last.pt``, and the best weights since
    then, held in memory meanwhile, to ``best.pt``. Leaving the context writes what is still held; after
    an error only the best weights, because the state may stem from an unfinished epoch.
    """

    def __init__(self, directory: Path, state: Callable[[], State], *, every_seconds: float) -> None:
        self._directory = directory
        self._state = state
        self._every_seconds = every_seconds
        self._written = time.monotonic()
        self._best: State | None = None
        self._unwritten = False

    def abandon(self) -> None:
        """The state of the run is of no use any more; only the best weights will be written."""
        self._unwritten = False

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if kind is None:
            self.flush()
        self._write_best()

    def epoch_finished(self, best: State | None) -> None:
        """Note a finished epoch; ``best`` holds its weights if they are the best so far."""
        self._best = best or self._best
        self._unwritten = True
        if time.monotonic() - self._written >= self._every_seconds:
            self.flush()
            self._written = time.monotonic()

    def flush(self) -> None:
        """Write what is held: the run is over, even if others go on."""
        self._write_best()
        if self._unwritten:
            save_last(self._directory, self._state())
            self._unwritten = False

    def _write_best(self) -> None:
        if self._best is not None:
            save(self._directory / "best.pt", self._best)
            self._best = None
