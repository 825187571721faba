"""One picture file as pixels: whatever its format, mode and orientation, or in a few words why not."""

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
"""Of files that are taken for pictures; what they hold is found out from their content."""
LARGEST = 2**26
"""Pixels that may be decoded, of a picture or of its resized form; a JPEG is decoded at a fraction of its size."""
_LARGE = 2**23  # pixels; such pictures are decoded one at a time, or many threads would fill the memory
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
"""What turns a picture upright, by the number of its orientation in EXIF."""


class Unreadable(ValueError):
    """A file that gives no picture; the text is the reason, in a few words."""


@dataclass(frozen=True)
class Decoded:
    """A picture as it will be used, and what a reader may want to know of its file."""

    pixels: Tensor
    """uint8 (3, crop, crop)"""
    size: tuple[int, int]
    """Width and height of the picture in the file, upright."""
    note: str | None
    """What was left out of it."""


def files_below(folder: Path) -> Iterator[Path]:
    """All files in a folder and those in it, in order of their paths; hidden folders are left out."""
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(where, name) for name in sorted(files))


def is_picture(path: Path) -> bool:
    """Whether a file is to be taken for a picture, by its name, and because it is no pipe, socket or device."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not _endless(path)


def printable(path: str | Path) -> str:
    """A path as text. Names on disks are bytes; those that are no text are shown escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read(path: Path, *, resize: int, crop: int) -> Tensor:
    """The picture in a file, uint8 (3, crop, crop), as :func:`decode` makes it. Raises Unreadable."""
    content = _content(path)
    with unwarned():
        return decode(content, resize=resize, crop=crop).pixels


def decode(content: bytes, *, resize: int, crop: int) -> Decoded:
    """The picture in a file's bytes: upright, RGB, its short side ``resize``, of that the middle. Raises Unreadable.

    Resized as torchvision's ``Resize`` and ``CenterCrop`` do with PIL's pictures (bilinear, antialiased), but that
    JPEGs of at least four times the size are decoded at 1/2, 1/4 or 1/8 of theirs, which changes pixels by a level
    or two. What is transparent shows white; 16-bit grey is scaled to 8 bits; of several frames the first is taken.
    Call within :func:`unwarned`.
    """
    picture, size, note = _opened(content, least=2 * resize)
    width, height = picture.size
    short, long = sorted(picture.size)
    if short != resize:
        length = int(resize * long / short)
        if length * resize > LARGEST:
            raise Unreadable(f"{width} x {height} pixels are too narrow for a short side of {resize}")
        shape = (resize, length) if width <= height else (length, resize)
        picture = picture.resize(shape, Image.Resampling.BILINEAR)
    left, top = (round((side - crop) / 2) for side in picture.size)
    array = np.array(picture.crop((left, top, left + crop, top + crop)))
    return Decoded(torch.from_numpy(array).permute(2, 0, 1).contiguous(), size, note)


def whole(path: Path) -> Image.Image:
    """The picture in a file at its own size, upright, RGB. Raises Unreadable."""
    content = _content(path)
    with unwarned():
        return _opened(content)[0]


@contextlib.contextmanager
def unwarned() -> Iterator[None]:
    """Without PIL's warnings, of damaged tags and the like, in the whole process while threads decode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _content(path: Path) -> bytes:
    if _endless(path):
        raise Unreadable("not a regular file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error


def _endless(path: Path) -> bool:
    """Whether reading may wait forever, or never end: of a pipe, a socket, a device."""
    try:
        mode = os.stat(path).st_mode
    except OSError:  # reading it gives the reason
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _opened(content: bytes, least: int | None = None) -> tuple[Image.Image, tuple[int, int], str | None]:
    """The picture upright in RGB, its full size, and what was left out; a JPEG's sides may be reduced to ``least``."""
    if not content:
        raise Unreadable("an empty file")
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return _upright(picture, least)
    except Unreadable:
        raise
    except UnidentifiedImageError as error:
        raise Unreadable("not a picture, or in a format that is not known here") from error
    except Image.DecompressionBombError as error:
        raise Unreadable(f"too large: more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels") from error
    except Exception as error:  # decoders of two dozen formats, given any bytes, raise anything
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
    # An MPO is a photo with others beside it that cameras add, not an animation.
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
    """How the camera was held, 1 to 8; 1 where the picture does not say so."""
    try:
        return int(picture.getexif().get(0x0112, 1))
    except Exception:  # damaged tags are no reason to do without the picture
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
    """Grey of 16 bits, which may come in 32, with 65,535 as white. Raises Unreadable for other numbers."""
    values = np.asarray(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise Unreadable(f"pixels in the format {picture.mode}, of which white is not known")
    return Image.fromarray(((values.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8))
