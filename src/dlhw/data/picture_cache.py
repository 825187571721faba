"""Pictures decoded once into a file of pixels that every later start maps into memory.

The file's name is a digest of all that it depends on: names and contents of the pictures, the transform, the versions
of the format and of the decoder. It gets that name when it is whole and on the disk, so that whatever happens to the
process leaves no other. One process writes at a time; a second one waits and uses what the first has made.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import io
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL
import torch
from torch import Tensor

from dlhw.data.groups import FARTHEST, Bits, Ints, near_pairs, perceptual_hashes
from dlhw.data.pictures import Decoded, Unreadable, decode, unwarned
from dlhw.errors import UsageError
from dlhw.runtime.files import sync_directory, write_atomically
from dlhw.runtime.progress import tracked

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

MAGIC = b"dlhw pictures 1\n"
"""What the file begins with. Then, from OFFSET on, the pixels; an index (npz); its length and its SHA-256."""
OFFSET = 4096  # a page of memory
_FOOT = 8 + 32
_TICKS_SECONDS = 2.0  # two changes of a file within that may leave it with one time
_WORKERS = min(32, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@dataclass(frozen=True)
class File:
    """A picture's file and its name: its path from the data set's folder on, printable, with slashes."""

    path: Path
    name: str


@dataclass(frozen=True, eq=False)
class Pictures:
    """Those of some files that could be read, in their order."""

    pixels: Tensor
    """uint8 (P, 3, crop, crop), mapped into memory; what is written to it stays in this process."""
    kept: Ints
    """Which of the files each is, (P,)."""
    sizes: Ints
    """Width and height in the file, (P, 2)."""
    digests: Bits
    """Of the pixels, (P, 16)."""
    near: Ints
    """Rows (i, j, distance) of all pairs with a perceptual distance up to FARTHEST."""
    skipped: dict[str, str]
    """Why the others could not be read, by name."""
    notes: dict[str, str]
    """What was left out of a picture, by name."""


def load(files: Sequence[File], *, root: Path, resize: int, crop: int, cache_dir: Path) -> Pictures:
    """The pictures in these files under ``root``, decoded now or before. Raises UsageError."""
    cached = functools.partial(_cached, files, crop=crop, transform=f"{resize} {crop}", cache_dir=cache_dir)
    memo = cache_dir / f"files-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}.json"
    contents = _remembered(files, memo)
    found = cached(contents)[1] if len(contents) == len(files) else None
    if found is not None:
        return found
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(cache_dir):
            contents = _hashed(files, memo)
            path, found = cached(contents)
            if found is None:
                _check_room(cache_dir, len(files) * 3 * crop**2)
                _write(path, files, contents, resize=resize, crop=crop)
                found = cached(contents)[1]
    except OSError as error:
        raise UsageError(
            f"dataset.cache_dir={cache_dir}: decoded pictures cannot be kept there ({error.strerror or error}); "
            "choose a folder that can be written to and has room"
        ) from error
    assert found is not None, f"{path} was written just now"
    return found


def _cached(
    files: Sequence[File], contents: dict[str, str], *, crop: int, transform: str, cache_dir: Path
) -> tuple[Path, Pictures | None]:
    """Where the decoded pictures belong, and those that lie there; None when there are none, or damaged ones."""
    digest = hashlib.sha256(repr((MAGIC, transform, FARTHEST, PIL.__version__)).encode())
    for file in files:
        digest.update(repr((file.name, contents[file.name])).encode())
    path = cache_dir / f"{digest.hexdigest()}.pictures"
    try:
        return path, _opened(path, crop, os.stat(path).st_mtime_ns)
    except FileNotFoundError:
        return path, None
    except (OSError, ValueError, KeyError) as error:
        log.warning("%s: cannot be used (%s); the pictures are decoded again", path, error)
        return path, None


@functools.lru_cache(maxsize=4)  # jobs of a sweep share one pool
def _opened(path: Path, crop: int, mtime_ns: int) -> Pictures:
    """The pictures in a file that was last written at that time. Raises ValueError when it is damaged."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(len(MAGIC)) != MAGIC or size < OFFSET + _FOOT:
            raise ValueError("damaged: no file of pictures")
        file.seek(size - _FOOT)
        foot = file.read()
        length = int.from_bytes(foot[:8], "little")
        if length > size - OFFSET - _FOOT:
            raise ValueError("damaged: not of the length that it gives")
        file.seek(size - _FOOT - length)
        index = file.read(length)
    if hashlib.sha256(index).digest() != foot[8:]:
        raise ValueError("damaged: the checksum of its index is another")
    with np.load(io.BytesIO(index), allow_pickle=False) as content:
        fields = {name: content[name] for name in content.files}
    skipped, notes = json.loads(fields.pop("texts").tobytes())
    shape = (len(fields["kept"]), 3, crop, crop)
    if size != OFFSET + np.prod(shape, dtype=np.int64) + length + _FOOT:
        raise ValueError("damaged: not of the length that it gives")
    mapped = np.memmap(path, np.uint8, "c", OFFSET, shape) if shape[0] else np.empty(shape, np.uint8)
    return Pictures(torch.from_numpy(mapped), **fields, skipped=skipped, notes=notes)


def _write(path: Path, files: Sequence[File], contents: dict[str, str], *, resize: int, crop: int) -> None:
    """Decode all files, in parallel, into one file at ``path``, which is there in the end or not at all."""

    def decoded(file: File) -> tuple[Decoded, bytes, Bits] | Unreadable:
        """The picture with its digest and perceptual hash, or why there is none. Raises UsageError if it changed."""
        try:
            content = file.path.read_bytes()
        except OSError as error:
            return Unreadable(_reason(error))
        if hashlib.sha256(content).hexdigest() != contents[file.name]:
            raise UsageError(f"{file.path}: was written to while it was read; start again when the files are settled")
        try:
            picture = decode(content, resize=resize, crop=crop)
        except Unreadable as error:
            return error
        digest = hashlib.blake2b(picture.pixels.numpy().data, digest_size=16).digest()
        return picture, digest, perceptual_hashes(picture.pixels[None])

    kept, sizes, digests, hashes = [], [], [], [np.empty((0, 32), np.uint8)]
    skipped, notes = {}, {}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as out, unwarned():
            out.write(MAGIC.ljust(OFFSET, b"\0"))
            for number, found in enumerate(
                tracked(_in_order(decoded, files), total=len(files), what="decoding pictures")
            ):
                name = files[number].name
                if isinstance(found, Unreadable):
                    skipped[name] = str(found)
                    continue
                picture, digest, bits = found
                out.write(picture.pixels.numpy().data)
                kept.append(number)
                sizes.append(picture.size)
                digests.append(digest)
                hashes.append(bits)
                if picture.note:
                    notes[name] = picture.note
            index = io.BytesIO()
            np.savez(
                index,
                kept=np.array(kept, np.int64),
                sizes=np.array(sizes, np.int64).reshape(-1, 2),
                digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16),
                near=near_pairs(np.concatenate(hashes), FARTHEST),
                texts=np.frombuffer(json.dumps([skipped, notes]).encode(), np.uint8),
            )
            out.write(index.getbuffer())
            out.write(len(index.getbuffer()).to_bytes(8, "little"))
            out.write(hashlib.sha256(index.getbuffer()).digest())
            out.flush()
            os.fsync(out.fileno())
        partial.replace(path)
        sync_directory(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _remembered(files: Sequence[File], memo: Path) -> dict[str, str]:
    """SHA-256 of the files by name, as far as they are as they were when it was noted."""
    noted = _noted(memo)
    found = {}
    for file in files:
        entry = noted.get(file.name)
        if entry is not None:
            with contextlib.suppress(OSError):
                status = os.stat(file.path)
                if entry[:2] == [status.st_size, status.st_mtime_ns]:
                    found[file.name] = entry[2]
    return found


def _noted(memo: Path) -> dict[str, list[Any]]:
    """Size, time of change and SHA-256 by name; what is damaged is as if it were not there."""
    try:
        noted = json.loads(memo.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(noted, dict):
        return {}
    return {
        name: entry
        for name, entry in noted.items()
        if isinstance(entry, list) and [type(part) for part in entry] == [int, int, str]
    }


def _hashed(files: Sequence[File], memo: Path) -> dict[str, str]:
    """SHA-256 of all files by name, or why one cannot be read; noted for the next time."""
    now = time.time()

    def entry(file: File) -> tuple[int, int, str] | str:
        try:
            status = os.stat(file.path)
            with file.path.open("rb") as content:
                return status.st_size, status.st_mtime_ns, hashlib.file_digest(content, "sha256").hexdigest()
        except OSError as error:
            return _reason(error)

    known = _remembered(files, memo)
    unknown = [file for file in files if file.name not in known]
    read = dict(
        zip(
            (file.name for file in unknown),
            tracked(_in_order(entry, unknown), total=len(unknown), what="reading pictures"),
            strict=True,
        )
    )
    settled = {
        name: each for name, each in read.items() if not isinstance(each, str) and each[1] / 1e9 < now - _TICKS_SECONDS
    }
    if settled:
        write_atomically(memo, json.dumps({**_noted(memo), **settled}).encode())
    return {**known, **{name: each if isinstance(each, str) else each[2] for name, each in read.items()}}


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the folder for this process alone, after waiting for others, and remove what killed ones have left."""
    try:
        import fcntl
    except ImportError:  # Windows has no such locks; two processes would decode the same, each for itself
        yield
        return
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is decoding pictures to %s; waiting for it", directory)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        for left in directory.glob(".*.partial"):
            left.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


def _check_room(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise OSError(f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB free")


def _in_order(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """``map`` with threads, of which the results wait for their turn, few enough to fit into memory."""
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


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
