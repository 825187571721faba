"""A cache of decoded pictures: a file of pixels that later runs map into memory.

The file's name is a digest of everything that it depends on: names and contents of the pictures, the transform, the
versions of the format and of the decoder. It gets that name only when it is complete and flushed to disk, so a process
that is killed leaves no damaged cache. One process writes at a time; a second one waits and uses the same file. Every
process verifies the checksums of a cache file once, when it opens the file; a damaged one is replaced.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
import torch
from torch import Tensor

from dlhw.data.file_hashes import PictureFile, hash_files, known_hashes, map_in_order, reason_of
from dlhw.data.groups import FARTHEST, Bits, Ints, near_pairs, perceptual_hashes
from dlhw.data.pictures import DecodedPicture, Unreadable, decode, without_warnings
from dlhw.errors import UsageError
from dlhw.runtime.files import LOCK_FILE, locked, replace, sync_directory
from dlhw.runtime.paths import printable
from dlhw.runtime.progress import tracked
from dlhw.storage.stored import irregular

log = logging.getLogger(__name__)

MAGIC = b"dlhw pictures 3\n"
"""The start of the file. The pixels follow from OFFSET on, then an index (npz), its length and its SHA-256."""
OFFSET = 4096  # a page of memory
_FOOTER_BYTES = 8 + 32


class FileChanged(Exception):
    """A picture file does not match its saved hash; the message is its path."""


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
    memo = cache_dir / f"files-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}.hashes"
    contents = known_hashes(files, memo)
    if len(contents) == len(files):
        pictures = _lookup(files, contents, resize=resize, crop=crop, cache_dir=cache_dir)[1]
        if pictures is not None:
            return pictures
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        busy = f"another process is decoding pictures to {cache_dir}; waiting for it"
        with locked(cache_dir / LOCK_FILE, wait=True, busy=busy):
            for leftover in cache_dir.glob(".*.partial"):  # from processes that were killed
                leftover.unlink(missing_ok=True)
            try:
                return _read(files, memo, resize=resize, crop=crop, cache_dir=cache_dir)
            except FileChanged as error:
                log.warning("%s: does not match its saved hash; hashing the pictures again", error)
                memo.unlink(missing_ok=True)
            try:
                return _read(files, memo, resize=resize, crop=crop, cache_dir=cache_dir)
            except FileChanged as error:
                raise UsageError(
                    f"{error}: changed while it was read; start again when no process writes to the folder"
                ) from error
    except OSError as error:
        raise UsageError(
            f"dataset.cache_dir={printable(cache_dir)}: decoded pictures cannot be saved there "
            f"({reason_of(error)}); choose a writable folder with enough space"
        ) from error


def _read(files: Sequence[PictureFile], memo: Path, *, resize: int, crop: int, cache_dir: Path) -> DecodedPictures:
    """Hash the files that have changed, and return the pictures; decode all if the cache does not have them.

    Raise FileChanged. Only one process may call this function at a time.
    """
    contents = hash_files(files, memo)
    path, pictures = _lookup(files, contents, resize=resize, crop=crop, cache_dir=cache_dir)
    if pictures is None:
        _check_space(cache_dir, len(files) * 3 * crop**2)
        _write(path, files, contents, resize=resize, crop=crop)
        pictures = _lookup(files, contents, resize=resize, crop=crop, cache_dir=cache_dir)[1]
        assert pictures is not None, f"{path} was just written"
    return pictures


def _lookup(
    files: Sequence[PictureFile], contents: dict[str, str], *, resize: int, crop: int, cache_dir: Path
) -> tuple[Path, DecodedPictures | None]:
    """Return the path of the cache file and its pictures; None if there is no such file or it is damaged."""
    digest = hashlib.sha256(repr((MAGIC, f"{resize} {crop}", FARTHEST, PIL.__version__)).encode())
    for file in files:
        digest.update(repr((file.name, contents[file.name])).encode())
    path = cache_dir / f"{digest.hexdigest()}.pictures"
    try:
        if reason := irregular(path):
            raise ValueError(reason)
        status = os.stat(path)
        return path, _open_cache(path, crop, (status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
    except FileNotFoundError:
        return path, None
    except (OSError, ValueError, KeyError) as error:
        log.warning("%s: %s; decoding the pictures again", path, error)
        return path, None


@functools.lru_cache(maxsize=4)  # the jobs of a sweep share one pool
def _open_cache(path: Path, crop: int, version: tuple[int, ...]) -> DecodedPictures:
    """Map a cache file into memory and verify its checksums; raise ValueError if it is damaged.

    ``version`` holds its times and inode, so that a replaced file is opened again.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        fields, end = _read_index(file, size)
        skipped, notes = json.loads(fields.pop("texts").tobytes())
        checksums = fields.pop("checksums")
        shape = (len(fields["kept"]), 3, crop, crop)
        if end != OFFSET + np.prod(shape, dtype=np.int64):
            raise ValueError("damaged: invalid length")
        mapped = np.memmap(file, np.uint8, "c", OFFSET, shape) if shape[0] else np.empty(shape, np.uint8)
    if not np.array_equal([zlib.crc32(picture.data) for picture in mapped], checksums):
        raise ValueError("damaged: invalid checksum of its pixels")
    return DecodedPictures(torch.from_numpy(mapped), **fields, skipped=skipped, notes=notes)


def _read_index(file: BinaryIO, size: int) -> tuple[dict[str, np.ndarray], int]:
    """Return the arrays of the index and its position in a file of this size. Raise ValueError if it is damaged."""
    if file.read(len(MAGIC)) != MAGIC or size < OFFSET + _FOOTER_BYTES:
        raise ValueError("damaged: invalid header")
    file.seek(size - _FOOTER_BYTES)
    footer = file.read()
    length = int.from_bytes(footer[:8], "little")
    start = size - _FOOTER_BYTES - length
    if start < OFFSET:
        raise ValueError("damaged: invalid length")
    file.seek(start)
    index = file.read(length)
    if hashlib.sha256(index).digest() != footer[8:]:
        raise ValueError("damaged: invalid checksum of its index")
    with np.load(io.BytesIO(index), allow_pickle=False) as content:
        return {name: content[name] for name in content.files}, start


def _write(path: Path, files: Sequence[PictureFile], contents: dict[str, str], *, resize: int, crop: int) -> None:
    """Decode all files in parallel and write them to the file ``path``, which exists only if it is complete."""
    decoded = functools.partial(_decoded, contents=contents, resize=resize, crop=crop)
    kept, sizes, checksums, digests, hashes = [], [], [], [], [np.empty((0, 32), np.uint8)]
    skipped, notes = {}, {}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as out, without_warnings():
            out.write(MAGIC.ljust(OFFSET, b"\0"))
            for number, result in enumerate(
                tracked(map_in_order(decoded, files), total=len(files), what="decoding pictures")
            ):
                name = files[number].name
                if isinstance(result, Unreadable):
                    skipped[name] = str(result)
                    continue
                picture, digest, bits = result
                out.write(picture.pixels.numpy().data)
                checksums.append(zlib.crc32(picture.pixels.numpy().data))
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
                checksums=np.array(checksums, np.uint32),
                digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16),
                near=near_pairs(np.concatenate(hashes), FARTHEST),
                texts=np.frombuffer(json.dumps([skipped, notes]).encode(), np.uint8),
            )
            out.write(index.getbuffer())
            out.write(len(index.getbuffer()).to_bytes(8, "little"))
            out.write(hashlib.sha256(index.getbuffer()).digest())
            out.flush()
            os.fsync(out.fileno())
        replace(partial, path)
        sync_directory(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _decoded(
    file: PictureFile, *, contents: dict[str, str], resize: int, crop: int
) -> tuple[DecodedPicture, bytes, Bits] | Unreadable:
    """Return the picture in a file with its digest and perceptual hash, or the error. Raise FileChanged."""
    try:
        content = file.path.read_bytes()
    except OSError as error:
        return Unreadable(reason_of(error))
    if hashlib.sha256(content).hexdigest() != contents[file.name]:
        raise FileChanged(printable(file.path))
    try:
        picture = decode(content, resize=resize, crop=crop)
    except Unreadable as error:
        return error
    digest = hashlib.blake2b(picture.pixels.numpy().data, digest_size=16).digest()
    return picture, digest, perceptual_hashes(picture.pixels[None])


def _check_space(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise OSError(f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
