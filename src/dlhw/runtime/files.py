"""Files: atomic writes, locks between processes, and files that another program has opened."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from dlhw.errors import UsageError

log = logging.getLogger(__name__)

T = TypeVar("T")
_ON_WINDOWS = os.name == "nt"
PATIENCE_SECONDS = 5.0
"""How long Windows may refuse to change a file."""

LOCK_FILE = ".lock"
"""The name of the lock file in a directory that one process writes at a time."""


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a crash or power cut leaves the old content or the new one, never a part."""
    replace(write_temporary(path, content), path)
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


def replace(source: Path, target: Path) -> None:
    """Rename a file, also if ``target`` exists."""
    when_closed(lambda: source.replace(target), target)


def when_closed(change: Callable[[], T], path: Path) -> T:
    """Change a file and return the result.

    Windows refuses to write, rename or remove a file that another program has opened. A virus scanner closes it soon,
    so the change is repeated for some seconds. Then PermissionError is raised.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return change()
        except PermissionError as error:
            if not _ON_WINDOWS:
                raise
            if time.monotonic() > deadline:
                reason = "cannot be changed, because it is read-only or open in another program; close it there"
                raise PermissionError(errno.EACCES, reason, str(path)) from error
            time.sleep(0.05)


def sync_directory(directory: Path) -> None:
    """Make renames in the directory survive a power cut."""
    if _ON_WINDOWS:
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
