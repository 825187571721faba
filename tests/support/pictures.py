"""Pictures, invalid files, folders of pictures, and the datasets that the config files make of them."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dlhw.data import folders
from dlhw.data.tensors import Dataset
from support.datasets import options


def photo(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """Return a smooth random picture; different seeds give clearly different pictures."""
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 256, (5, 6, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)


def start_of_png(width: int, height: int) -> bytes:
    """Return the start of a PNG of that size."""

    def chunk(content: bytes) -> bytes:
        return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR" + header) + chunk(b"IDAT" + zlib.compress(bytes(100)))


def invalid_files() -> dict[str, tuple[bytes, str]]:
    """Return invalid files by name: the content and a part of the reason in the error."""
    whole = io.BytesIO()
    photo(3, 200, 200).save(whole, "JPEG")
    strip = io.BytesIO()
    Image.new("L", (40_000, 2)).save(strip, "PNG")
    floats = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(floats, "TIFF")
    return {
        "empty.jpg": (b"", "empty file"),
        "text.jpg": (b"no picture at all\n" * 20, "not a picture"),
        "html.png": (b"<!DOCTYPE html><title>404</title>", "not a picture"),
        "truncated.jpg": (whole.getvalue()[:-3000], "truncated"),
        "header_only.jpg": (whole.getvalue()[:20], "not a picture"),
        "bomb.png": (start_of_png(50_000, 50_000), "too large"),
        "large.png": (start_of_png(12_000, 12_000), "too large"),
        "narrow.png": (strip.getvalue(), "too narrow"),
        "floats.tif": (floats.getvalue(), "has no defined white"),
    }


def make_pipe(path: Path) -> Path:
    """Create a named pipe, or skip the test where there are none."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    os.mkfifo(path)
    return path


def folder_of(root: Path, classes: dict[str, int], *, start: int = 0) -> Path:
    """Save ``count`` photos 0.png, 1.png, ... in a folder per class, with an old modification time; return ``root``."""
    for label, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            photo(start + 1000 * label + number).save(root / name / f"{number}.png")
    set_old_times(root)
    return root


def set_old_times(root: Path) -> None:
    """Give all files below ``root`` an old modification time, because the cache ignores the times of new files."""
    for path in [path for path in root.rglob("*.*") if path.is_file()]:
        os.utime(path, (1e9, 1e9))


def dataset(folder: Path, **changed: Any) -> Dataset:
    """Return the dataset of a folder with one folder per class, pictures of 12 x 12 pixels."""
    small = {"resize": 16, "crop": 12, "data_dir": str(folder.parent), "root": str(folder), **changed}
    return folders.image_folder(**options("image_folder", **small))
