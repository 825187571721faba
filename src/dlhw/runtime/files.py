"""Files: atomic writes, locks between processes."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from dlhw.errors import UsageError

log = logging.getLogger(__name__)


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a crash or power cut leaves the old content or the new one, never a part."""
    write_temporary(path, content).replace(path)
    sync_directory(path.parent)


def write_temporary(path: Path, content: bytes | memoryview) -> Path:
    """Write the content to a temporary file next to ``path``, flush it to disk, and return it, ready for renaming."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)
        partial.unlink(missing_ok=True)  # on a full disk, the summary of the failed run needs this space
        raise
    return partial


def sync_directory(directory: Path) -> None:
    """Make renames in the directory survive a power cut."""
    if os.name == "nt":
        return  # Windows cannot open directories; its renames are journaled
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Return whether another process holds the lock on an existing directory or file."""
    try:
        with locked(path, wait=False, busy=""):
            return False
    except (OSError, UsageError):
        return True


@contextlib.contextmanager
def locked(path: Path, *, wait: bool, busy: str) -> Iterator[bool]:
    """Hold an exclusive lock on an existing directory or file.

    The lock ends with the process, even if the process is killed. Yield whether the lock is held; on Windows, which has
    no such locks, it is not.

    Args:
        wait: if another process holds the lock, log ``busy`` and wait for it; otherwise raise UsageError.
        busy: the message if another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:
        yield False
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not wait:
                raise UsageError(busy) from error
            log.info(busy)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield True
    finally:
        os.close(descriptor)
