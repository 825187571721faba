"""Decode one picture file, of any format, mode and orientation, to RGB pixels."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

# fmt: off
SUFFIXES = frozenset((
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".mpo", ".pbm", ".pgm", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp",
))
# fmt: on
"""File name suffixes of pictures. The format itself is recognized from the content."""
LARGEST = 2**26
"""Largest number of pixels to decode, before and after resizing; a large JPEG is decoded at a fraction of its size."""
_LARGE = 2**23  # pixels; such pictures are decoded one at a time, to save memory
_one_large = threading.Lock()
_UPRIGHT = dict(
    enumerate(
        (
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.ROTATE_180,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_270,
            Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_90,
        ),
        start=2,
    )
)
"""The transpose that turns a picture upright, by its EXIF orientation."""


class Unreadable(ValueError):
    """A file cannot be decoded; the message is a short reason."""


@dataclass(frozen=True)
class DecodedPicture:
    """A resized and cropped picture, with facts about its file."""

    pixels: Tensor
    """uint8 (3, crop, crop)"""
    size: tuple[int, int]
    """Width and height before resizing, upright."""
    note: str | None
    """Which part of the file was used, if not all of it."""


def files_below(folder: Path) -> Iterator[Path]:
    """Yield all files in a folder and its subfolders, sorted by path; hidden folders are omitted."""
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(where, name) for name in sorted(files))


def is_picture(path: Path) -> bool:
    """Return whether a file is a picture by its name, and not a pipe, socket or device."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not _not_regular(path)


def read(path: Path, *, resize: int, crop: int) -> Tensor:
    """Return the picture in a file, uint8 (3, crop, crop); see :func:`decode`. Raise Unreadable."""
    content = _content(path)
    with without_warnings():
        return decode(content, resize=resize, crop=crop).pixels


def decode(content: bytes, *, resize: int, crop: int) -> DecodedPicture:
    """Decode a picture from the bytes of a file: upright, RGB, short side ``resize``, center crop. Raise Unreadable.

    The result equals torchvision's ``Resize`` (bilinear, antialiased) and ``CenterCrop`` on a PIL image, with one
    exception: a JPEG at least four times as large is decoded at 1/2, 1/4 or 1/8 of its size, which changes pixels by
    one or two levels. Transparent pixels become white, 16-bit grey is scaled to 8 bits, and the first frame of an
    animation is used. Call within :func:`without_warnings`.
    """
    picture, size, note = _open_upright(content, least=2 * resize)
    width, height = picture.size
    short, long = sorted(picture.size)
    if short != resize:
        length = int(resize * long / short)
        if length * resize > LARGEST:
            raise Unreadable(f"{width} x {height} pixels: too narrow for a short side of {resize}")
        shape = (resize, length) if width <= height else (length, resize)
        picture = picture.resize(shape, Image.Resampling.BILINEAR)
    left, top = (round((side - crop) / 2) for side in picture.size)
    array = np.array(picture.crop((left, top, left + crop, top + crop)))
    return DecodedPicture(torch.from_numpy(array).permute(2, 0, 1).contiguous(), size, note)


def read_full_size(path: Path) -> Image.Image:
    """Return the picture in a file at its full size, upright, RGB. Raise Unreadable."""
    content = _content(path)
    with without_warnings():
        return _open_upright(content)[0]


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Suppress PIL's warnings about damaged tags, in the whole process, because threads decode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _content(path: Path) -> bytes:
    if _not_regular(path):
        raise Unreadable("not a regular file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error


def _not_regular(path: Path) -> bool:
    """Return whether a path is a pipe, socket or device; reading one may never end."""
    try:
        mode = os.stat(path).st_mode
    except OSError:  # reading the file reports the reason
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _open_upright(content: bytes, least: int | None = None) -> tuple[Image.Image, tuple[int, int], str | None]:
    """Return the picture upright in RGB, its full size and a note; a JPEG may be decoded smaller, down to ``least``."""
    if not content:
        raise Unreadable("empty file")
    try:
        with Image.open(io.BytesIO(content)) as picture:
            result = _upright(picture, least)
        if picture.format == "PNG":  # PIL's decoder ignores the checksums of the pixels and a missing end
            with Image.open(io.BytesIO(content)) as picture:
                picture.verify()
        return result
    except Unreadable:
        raise
    except UnidentifiedImageError as error:
        raise Unreadable("not a picture, or in an unknown format") from error
    except Image.DecompressionBombError as error:
        raise Unreadable(f"too large: more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels") from error
    except Exception as error:  # two dozen decoders raise any exception on invalid bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Unreadable(reason[:120]) from error


def _upright(picture: Image.Image, least: int | None) -> tuple[Image.Image, tuple[int, int], str | None]:
    size = picture.size
    if least is not None and picture.format in ("JPEG", "MPO"):
        share = least / min(size)
        picture.draft(None, (int(size[0] * share) + 1, int(size[1] * share) + 1))
    pixels = picture.width * picture.height
    if pixels > LARGEST:
        raise Unreadable(f"too large: {size[0]} x {size[1]} pixels")
    # The further frames of an MPO are versions of the same photo, not an animation.
    frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
    with _one_large if pixels > _LARGE else contextlib.nullcontext():
        picture.seek(0)
        picture.load()
        orientation = _orientation(picture)
        rgb = _rgb(picture)
        if orientation in _UPRIGHT:
            rgb = rgb.transpose(_UPRIGHT[orientation])
    if 5 <= orientation <= 8:
        size = size[::-1]
    return rgb, size, f"the first of {frames} frames" if frames > 1 else None


def _orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) if the picture has none."""
    try:
        return int(picture.getexif().get(0x0112, 1))
    except Exception:  # a picture with damaged tags can still be used
        return 1


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith(("I", "F")):
        picture = _eight_bits(picture)
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture.convert("RGBA"))
        picture = white
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Convert 16-bit grey, stored in 16 or 32 bits, to 8 bits. Raise Unreadable for values out of range."""
    values = np.asarray(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise Unreadable(f"pixel format {picture.mode} has no defined white")
    return Image.fromarray(((values.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8))
