"""SHA-256 of picture files, computed in parallel and saved, so that later runs read only the status of unchanged files.

A file is unchanged if its size, modification time, change time and inode are those of the saved hash. A program can set
the modification time of a file, but not its change time. On Windows, which has no change time, the inode is the only
protection against a replaced file with the same size and modification time.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dlhw.runtime.files import write_atomically
from dlhw.runtime.progress import tracked
from dlhw.runtime.threads import usable_cores
from dlhw.storage.stored import irregular

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
Status = tuple[int, int, int, int]
"""Size, modification time, change time (both in nanoseconds) and inode of a file."""

CLOCK_SECONDS = 2.0
"""Resolution of the coarsest file system clock; two changes within it may have the same time."""
_WORKERS = min(32, usable_cores())


@dataclass(frozen=True)
class PictureFile:
    """A file and its name: the printable path relative to the dataset's folder, with forward slashes."""

    path: Path
    name: str


def known_hashes(files: Sequence[PictureFile], memo: Path) -> dict[str, str]:
    """Return the SHA-256 saved in ``memo`` by name, for the files that have not changed since."""
    saved = _read_memo(memo)
    hashes = {}
    for file in files:
        entry = saved.get(file.name)
        if entry is not None:
            with contextlib.suppress(OSError):
                if entry[0] == _status(os.stat(file.path)):
                    hashes[file.name] = entry[1]
    return hashes


def hash_files(files: Sequence[PictureFile], memo: Path) -> dict[str, str]:
    """Return the SHA-256 of all files by name, or the reason why one is unreadable, and save them in ``memo``."""
    now = time.time()

    def entry(file: PictureFile) -> tuple[Status, str] | str:
        try:
            with file.path.open("rb") as content:
                status = _status(os.fstat(content.fileno()))
                return status, hashlib.file_digest(content, "sha256").hexdigest()
        except OSError as error:
            return reason_of(error)

    known = known_hashes(files, memo)
    unknown = [file for file in files if file.name not in known]
    read = dict(
        zip(
            (file.name for file in unknown),
            tracked(map_in_order(entry, unknown), total=len(unknown), what="reading pictures"),
            strict=True,
        )
    )
    settled = {
        name: new
        for name, new in read.items()
        if not isinstance(new, str) and max(new[0][1:3]) / 1e9 < now - CLOCK_SECONDS
    }
    if settled:
        _write_memo(memo, {**_read_memo(memo), **settled})
    return {**known, **{name: new if isinstance(new, str) else new[1] for name, new in read.items()}}


def _status(status: os.stat_result) -> Status:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _read_memo(memo: Path) -> dict[str, tuple[Status, str]]:
    """Return status and SHA-256 by name. A memo without a valid checksum is ignored with a warning."""
    try:
        if reason := irregular(memo):
            raise OSError(reason)
        checksum, _, content = memo.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return {}
    except OSError as error:
        log.warning("%s: cannot be read (%s); hashing the pictures again", memo, reason_of(error))
        return {}
    if checksum.decode(errors="replace") != hashlib.sha256(content).hexdigest():
        log.warning("%s: damaged: invalid checksum; hashing the pictures again", memo)
        return {}
    return {name: (tuple(status), digest) for name, (status, digest) in json.loads(content).items()}


def _write_memo(memo: Path, entries: Mapping[str, tuple[Status, str]]) -> None:
    """Write the entries as JSON, after a line with the SHA-256 of this JSON."""
    content = json.dumps(entries).encode()
    write_atomically(memo, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)


def map_in_order(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Map with threads. Yield the results in order, with a limited number of them in memory."""
    ahead: collections.deque[Future[R]] = collections.deque()
    with ThreadPoolExecutor(_WORKERS) as pool:
        try:
            for item in items:
                ahead.append(pool.submit(function, item))
                if len(ahead) >= 4 * _WORKERS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def reason_of(error: OSError) -> str:
    """Return the reason of an error of the operating system, without the file's name."""
    return error.strerror or str(error)
