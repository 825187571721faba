"""Write checkpoints atomically, and verify them when they are read.

``last.pt`` holds everything needed to resume, ``previous.pt`` is the checkpoint before it, and ``best.pt`` holds the
weights at the best validation epoch. All are plain ``torch.save`` files of tensors, numbers, strings and containers of
these, so ``torch.load(path, weights_only=True)`` reads them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dlhw.errors import UsageError
from dlhw.runtime.files import replace, sync_directory, write_atomically, write_temporary
from dlhw.runtime.paths import printable
from dlhw.storage.stored import irregular

log = logging.getLogger(__name__)

State = dict[str, Any]


class CorruptCheckpoint(UsageError):
    """The bytes of a checkpoint file differ from those that were written. The message is ``FILE: reason; remedy``."""

    def __init__(self, reason: str, remedy: str = "restore it, or start a new run") -> None:
        self.reason = reason
        super().__init__(f"{reason}; {remedy}")


def save(path: Path, state: State) -> None:
    """Write a checkpoint file atomically."""
    write_atomically(path, _serialized(state))


def _serialized(state: State) -> memoryview:
    buffer = io.BytesIO()
    torch.save(_compact(state), buffer)
    return buffer.getbuffer()


def _compact(value: Any) -> Any:
    """Copy tensors that are views of larger ones, because torch.save would write the whole storage."""
    if isinstance(value, dict):
        return type(value)((name, _compact(part)) for name, part in value.items())
    if isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() > value.nbytes:
        return value.clone()
    return value


def save_last(directory: Path, state: State) -> None:
    """Write ``last.pt``. The old ``last.pt`` becomes ``previous.pt`` once the new one is on disk."""
    last = directory / "last.pt"
    temporary = write_temporary(last, _serialized(state))
    if last.exists():
        replace(last, directory / "previous.pt")
    replace(temporary, last)
    sync_directory(directory)


def load(path: Path) -> State:
    """Read a checkpoint onto the CPU. Raise CorruptCheckpoint, which names the file, if it is damaged."""
    state: State = {}
    try:
        damage = irregular(path) or _damage(path)
        if not damage:
            with warnings.catch_warnings(action="ignore"):  # torch reports the time to check sparse tensors
                state = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:  # an invalid archive or pickle may raise any error
        damage = (str(error).splitlines() or [type(error).__name__])[0]
    if damage:
        raise CorruptCheckpoint(f"{path}: corrupt checkpoint ({printable(damage)})")
    return state


def _damage(path: Path) -> str | None:
    """Describe damage that torch.load would miss, because it does not verify checksums or the attributes of entries."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type or entry.external_attr or entry.flag_bits & 1:
                return f"invalid attributes of {entry.filename}"
        failed = archive.testzip()
    return None if failed is None else f"checksum of {failed} does not match"


def load_last(directory: Path) -> tuple[Path, State] | None:
    """Return ``last.pt`` and its content, or ``previous.pt`` if ``last.pt`` is corrupt; None without a checkpoint.

    A corrupt ``last.pt`` is logged and renamed to ``corrupt.pt``, so that it does not replace ``previous.pt`` later.
    Raise CorruptCheckpoint if all checkpoints are corrupt.
    """
    paths = [path for name in ("last.pt", "previous.pt") if os.path.lexists(path := directory / name)]
    errors = []
    for path in paths:
        try:
            state = load(path)
            for corrupt in paths[: paths.index(path)]:
                replace(corrupt, directory / "corrupt.pt")
            return path, state
        except CorruptCheckpoint as error:
            errors.append(error)
            log.warning("%s", error.reason)
    if errors:
        reasons = "; ".join(error.reason for error in errors)
        raise CorruptCheckpoint(reasons, "no other checkpoint to resume from; start a new run")
    return None


class CheckpointTimes:
    """When the checkpoints of all runs that are trained at once are due: at most every ``every_seconds``.

    Writing those of many runs may take longer than this. The pause is at least four times as long as the last writing,
    so that training has most of the time. With 0 seconds, checkpoints are due after every epoch.
    """

    def __init__(self, every_seconds: float) -> None:
        self._every_seconds = self._pause = every_seconds
        self._written = time.monotonic()

    @contextlib.contextmanager
    def writing(self) -> Iterator[bool]:
        """Yield whether checkpoints are due, to be written in this context."""
        started = time.monotonic()
        due = started - self._written >= self._pause
        yield due
        if due:
            self._written = time.monotonic()
            self._pause = max(self._every_seconds, 4 * (self._written - started)) if self._every_seconds else 0.0


class CheckpointWriter:
    """Write a run's checkpoints during training.

    ``state`` returns the state to write to ``last.pt``. The best weights are kept in memory and written to ``best.pt``
    at the same time. Leaving the context writes both. After an error it writes only the best weights, because the
    state may belong to an unfinished epoch.
    """

    def __init__(self, directory: Path, state: Callable[[], State]) -> None:
        self._directory = directory
        self._state = state
        self._best: State | None = None
        self._unwritten = False

    def abandon(self) -> None:
        """Do not write ``last.pt`` any more, because the run has failed. The best weights are still written."""
        self._unwritten = False

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if kind is None:
            self.flush()
        self._write_best()

    def epoch_finished(self, best: State | None, *, due: bool) -> None:
        """Write the checkpoints if they are due. ``best`` holds this epoch's weights if they are the best so far."""
        self._best = best or self._best
        self._unwritten = True
        if due:
            self.flush()

    def flush(self) -> None:
        """Write the checkpoints now."""
        self._write_best()
        if self._unwritten:
            save_last(self._directory, self._state())
            self._unwritten = False

    def _write_best(self) -> None:
        if self._best is not None:
            save(self._directory / "best.pt", self._best)
            self._best = None
