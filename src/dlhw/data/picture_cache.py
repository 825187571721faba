"""A cache of decoded pictures: a file of pixels that later runs map into memory.

The file's name is a digest of everything that it depends on: names and contents of the pictures, the transform, the
versions of the format and of the decoder. It gets that name only when it is complete and flushed to disk, so a process
that is killed leaves no damaged cache. One process writes at a time; a second one waits and uses the same file.
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
from dlhw.data.pictures import DecodedPicture, Unreadable, decode, without_warnings
from dlhw.errors import UsageError
from dlhw.runtime.files import locked, sync_directory, write_atomically
from dlhw.runtime.progress import tracked

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

MAGIC = b"dlhw pictures 1\n"
"""The start of the file. The pixels follow from OFFSET on, then an index (npz), its length and its SHA-256."""
OFFSET = 4096  # a page of memory
_FOOTER_BYTES = 8 + 32
_CLOCK_SECONDS = 2.0  # resolution of the coarsest file system clock; two changes within it may have the same time
_WORKERS = min(32, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@dataclass(frozen=True)
class PictureFile:
    """A file and its name: the printable path relative to the dataset's folder, with forward slashes."""

    path: Path
    name: str


@dataclass(frozen=True, eq=False)
class DecodedPictures:
    """The readable pictures of some files, in the order of the files."""

    pixels: Tensor
    """uint8 (P, 3, crop, crop), mapped into memory copy-on-write: changes do not reach the file."""
    kept: Ints
    """Index of each picture's file, (P,)."""
    sizes: Ints
    """Width and height before resizing, (P, 2)."""
    digests: Bits
    """Digests of the pixels, (P, 16)."""
    near: Ints
    """Rows (i, j, distance) for all pairs with a perceptual distance of at most FARTHEST."""
    skipped: dict[str, str]
    """Why the other files could not be read, by name."""
    notes: dict[str, str]
    """Which part of a file was used, if not all of it, by name."""


def load(files: Sequence[PictureFile], *, root: Path, resize: int, crop: int, cache_dir: Path) -> DecodedPictures:
    """Return the pictures in these files under ``root``, from the cache if it has them. Raise UsageError."""
    lookup = functools.partial(_lookup, files, crop=crop, transform=f"{resize} {crop}", cache_dir=cache_dir)
    memo = cache_dir / f"files-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}.json"
    contents = _known_hashes(files, memo)
    pictures = lookup(contents)[1] if len(contents) == len(files) else None
    if pictures is not None:
        return pictures
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        busy = f"another process is decoding pictures to {cache_dir}; waiting for it"
        (cache_dir / ".lock").touch()
        with locked(cache_dir / ".lock", wait=True, busy=busy) as held:
            for leftover in cache_dir.glob(".*.partial") if held else ():  # from processes that were killed
                leftover.unlink(missing_ok=True)
            contents = _hash_files(files, memo)
            path, pictures = lookup(contents)
            if pictures is None:
                _check_space(cache_dir, len(files) * 3 * crop**2)
                _write(path, files, contents, resize=resize, crop=crop)
                pictures = lookup(contents)[1]
    except OSError as error:
        raise UsageError(
            f"dataset.cache_dir={cache_dir}: decoded pictures cannot be saved there ({error.strerror or error}); "
            "choose a writable folder with enough space"
        ) from error
    assert pictures is not None, f"{path} was just written"
    return pictures


def _lookup(
    files: Sequence[PictureFile], contents: dict[str, str], *, crop: int, transform: str, cache_dir: Path
) -> tuple[Path, DecodedPictures | None]:
    """Return the path of the cache file and its pictures; None if there is no such file or it is damaged."""
    digest = hashlib.sha256(repr((MAGIC, transform, FARTHEST, PIL.__version__)).encode())
    for file in files:
        digest.update(repr((file.name, contents[file.name])).encode())
    path = cache_dir / f"{digest.hexdigest()}.pictures"
    try:
        return path, _open_cache(path, crop, os.stat(path).st_mtime_ns)
    except FileNotFoundError:
        return path, None
    except (OSError, ValueError, KeyError) as error:
        log.warning("%s: %s; decoding the pictures again", path, error)
        return path, None


@functools.lru_cache(maxsize=4)  # the jobs of a sweep share one pool
def _open_cache(path: Path, crop: int, mtime_ns: int) -> DecodedPictures:
    """Map a cache file with this modification time into memory. Raise ValueError if it is damaged."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(len(MAGIC)) != MAGIC or size < OFFSET + _FOOTER_BYTES:
            raise ValueError("damaged: invalid header")
        file.seek(size - _FOOTER_BYTES)
        footer = file.read()
        length = int.from_bytes(footer[:8], "little")
        if length > size - OFFSET - _FOOTER_BYTES:
            raise ValueError("damaged: invalid length")
        file.seek(size - _FOOTER_BYTES - length)
        index = file.read(length)
    if hashlib.sha256(index).digest() != footer[8:]:
        raise ValueError("damaged: invalid checksum of its index")
    with np.load(io.BytesIO(index), allow_pickle=False) as content:
        fields = {name: content[name] for name in content.files}
    skipped, notes = json.loads(fields.pop("texts").tobytes())
    shape = (len(fields["kept"]), 3, crop, crop)
    if size != OFFSET + np.prod(shape, dtype=np.int64) + length + _FOOTER_BYTES:
        raise ValueError("damaged: invalid length")
    mapped = np.memmap(path, np.uint8, "c", OFFSET, shape) if shape[0] else np.empty(shape, np.uint8)
    return DecodedPictures(torch.from_numpy(mapped), **fields, skipped=skipped, notes=notes)


def _write(path: Path, files: Sequence[PictureFile], contents: dict[str, str], *, resize: int, crop: int) -> None:
    """Decode all files in parallel and write them to the file ``path``, which exists only if it is complete."""

    def read(file: PictureFile) -> tuple[DecodedPicture, bytes, Bits] | Unreadable:
        """Return the picture with its digest and perceptual hash, or the error. Raise UsageError if it changed."""
        try:
            content = file.path.read_bytes()
        except OSError as error:
            return Unreadable(_reason(error))
        if hashlib.sha256(content).hexdigest() != contents[file.name]:
            raise UsageError(
                f"{file.path}: changed while it was read; start again when no process writes to the folder"
            )
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
        with partial.open("wb") as out, without_warnings():
            out.write(MAGIC.ljust(OFFSET, b"\0"))
            for number, result in enumerate(
                tracked(_map_in_order(read, files), total=len(files), what="decoding pictures")
            ):
                name = files[number].name
                if isinstance(result, Unreadable):
                    skipped[name] = str(result)
                    continue
                picture, digest, bits = result
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


def _known_hashes(files: Sequence[PictureFile], memo: Path) -> dict[str, str]:
    """Return the saved SHA-256 by name, for files whose size and modification time have not changed since."""
    saved = _read_memo(memo)
    hashes = {}
    for file in files:
        entry = saved.get(file.name)
        if entry is not None:
            with contextlib.suppress(OSError):
                status = os.stat(file.path)
                if entry[:2] == [status.st_size, status.st_mtime_ns]:
                    hashes[file.name] = entry[2]
    return hashes


def _read_memo(memo: Path) -> dict[str, list[Any]]:
    """Return size, modification time and SHA-256 by name; damaged entries are ignored."""
    try:
        saved = json.loads(memo.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(saved, dict):
        return {}
    return {
        name: entry
        for name, entry in saved.items()
        if isinstance(entry, list) and [type(part) for part in entry] == [int, int, str]
    }


def _hash_files(files: Sequence[PictureFile], memo: Path) -> dict[str, str]:
    """Return the SHA-256 of all files by name, or the reason why one is unreadable, and save them in ``memo``."""
    now = time.time()

    def entry(file: PictureFile) -> tuple[int, int, str] | str:
        try:
            status = os.stat(file.path)
            with file.path.open("rb") as content:
                return status.st_size, status.st_mtime_ns, hashlib.file_digest(content, "sha256").hexdigest()
        except OSError as error:
            return _reason(error)

    known = _known_hashes(files, memo)
    unknown = [file for file in files if file.name not in known]
    read = dict(
        zip(
            (file.name for file in unknown),
            tracked(_map_in_order(entry, unknown), total=len(unknown), what="reading pictures"),
            strict=True,
        )
    )
    settled = {
        name: new for name, new in read.items() if not isinstance(new, str) and new[1] / 1e9 < now - _CLOCK_SECONDS
    }
    if settled:
        write_atomically(memo, json.dumps({**_read_memo(memo), **settled}).encode())
    return {**known, **{name: new if isinstance(new, str) else new[2] for name, new in read.items()}}


def _check_space(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise OSError(f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")


def _map_in_order(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
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


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
