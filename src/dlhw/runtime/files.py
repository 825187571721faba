"""Files: atomic writes, locks between processes."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from dlhw.errors import UsageError

log = logging.getLogger(__name__)

LOCK_FILE = ".lock"
"""The name of the lock file in a directory that one process writes at a time."""


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
    """Return whether a process holds the lock. The file is not created."""
    import filelock

    lock = filelock.FileLock(path)
    try:
        if path.exists():
            lock.acquire(blocking=False)
            lock.release()
    except (OSError, filelock.Timeout):
        return True
    return False


@contextlib.contextmanager
def locked(path: Path, *, wait: bool, busy: str) -> Iterator[None]:
    """Hold an exclusive lock between processes. ``path`` is a file of its own, which exists while the lock is held.

    The lock ends with the process. The file of a process that was killed remains, but is not locked.

    Args:
        wait: if another process holds the lock, log ``busy`` and wait for it; otherwise raise UsageError.
        busy: the message if another process holds the lock.
    """
    import filelock  # takes a tenth of a second to import

    path.parent.stat()  # raises if the folder is missing; filelock would create it
    lock = filelock.FileLock(path)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        if not wait:
            raise UsageError(busy) from error
        log.info(busy)
        lock.acquire()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes the file only after the release, which does it
            path.unlink()  # processes that have opened the file already notice this when they get the lock
        lock.release()
