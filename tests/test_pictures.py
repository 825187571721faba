"""Decoding picture files: size, orientation, modes, invalid files."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dlhw.data import pictures
from dlhw.data.pictures import Unreadable, read
from support.pictures import invalid_files, make_pipe, photo


@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (64, 64), (33, 20)])
@pytest.mark.parametrize("size", [(120, 90), (91, 150), (64, 64)])
def test_a_picture_is_resized_and_cropped_as_torchvision_does(
    tmp_path: Path, size: tuple[int, int], resize: int, crop: int
) -> None:
    from torchvision.transforms import v2

    path = tmp_path / "a.png"
    photo(0, *size).save(path)
    reference = v2.Compose([v2.Resize(resize), v2.CenterCrop(crop), v2.PILToTensor()])(Image.open(path))
    pixels = read(path, resize=resize, crop=crop)
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, reference)


def test_a_large_jpeg_is_decoded_at_a_reduced_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.transforms import v2

    path = tmp_path / "a.jpg"
    photo(1, 1600, 1200).save(path, quality=92)
    reference = v2.Compose([v2.Resize(64), v2.CenterCrop(60), v2.PILToTensor()])(Image.open(path))
    sizes: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def recording_resize(self: Image.Image, *arguments: Any, **options: Any) -> Image.Image:
        sizes.append(self.size)
        return resize(self, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", recording_resize)
    with pictures.without_warnings():
        decoded = pictures.decode(path.read_bytes(), resize=64, crop=60)
    assert sizes == [(200, 150)]
    assert decoded.size == (1600, 1200)
    assert (decoded.pixels.int() - reference.int()).abs().max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_pictures_are_rotated_by_their_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    from PIL import ImageOps

    path = tmp_path / f"a.{suffix}"
    tags = Image.Exif()
    tags[0x0112] = orientation
    photo(2, 48, 32).save(path, exif=tags, lossless=True, quality=95)
    upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    assert np.array_equal(np.asarray(pictures.read_full_size(path)), np.asarray(upright))
    with pictures.without_warnings():
        assert pictures.decode(path.read_bytes(), resize=32, crop=32).size == upright.size


def test_all_picture_modes_are_converted_to_rgb(tmp_path: Path) -> None:
    colour = Image.new("RGB", (8, 8), (200, 100, 50))
    transparent = Image.new("RGBA", (8, 8), (200, 100, 50, 0))
    grey16 = Image.fromarray(np.full((8, 8), 51400, np.uint16))  # 200 of 255
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    cases: dict[str, tuple[Image.Image, dict[str, Any], tuple[int, int, int]]] = {
        "rgb.png": (colour, {}, (200, 100, 50)),
        "grey.png": (Image.new("L", (8, 8), 77), {}, (77, 77, 77)),
        "bits.png": (Image.new("1", (8, 8), 1), {}, (255, 255, 255)),
        "clear.png": (transparent, {}, (255, 255, 255)),
        "grey_clear.png": (transparent.convert("LA"), {}, (255, 255, 255)),
        "palette.png": (palette, {}, (10, 20, 30)),
        "palette_clear.png": (palette, {"transparency": 1}, (255, 255, 255)),
        "grey16.png": (grey16, {}, (200, 200, 200)),
        "grey16.tif": (grey16, {}, (200, 200, 200)),
        "grey32.tif": (Image.fromarray(np.full((8, 8), 51400, np.int32)), {}, (200, 200, 200)),
        "cmyk.tif": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), {}, (255, 0, 0)),
        "really_png.jpg": (colour, {"format": "PNG"}, (200, 100, 50)),
    }
    for name, (picture, save_options, expected) in cases.items():
        picture.save(tmp_path / name, **save_options)
        pixels = read(tmp_path / name, resize=8, crop=8)
        assert pixels.flatten(1).mT.unique(dim=0).tolist() == [list(expected)], name


def test_16_bit_grey_keeps_256_shades(tmp_path: Path) -> None:
    Image.fromarray(np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)).save(tmp_path / "a.png")
    assert len(read(tmp_path / "a.png", resize=64, crop=64)[0].unique()) == 256


@pytest.mark.parametrize("name", invalid_files())
def test_an_invalid_file_is_unreadable_with_a_one_line_reason(tmp_path: Path, name: str) -> None:
    content, reason = invalid_files()[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Unreadable, match=reason) as error:
        read(tmp_path / name, resize=4000 if name == "narrow.png" else 16, crop=16)
    assert "\n" not in str(error.value)


def test_a_randomly_damaged_file_is_decoded_or_unreadable(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for format in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
        file = io.BytesIO()
        photo(4, 50, 50).save(file, format)
        for _ in range(40):
            content = np.frombuffer(file.getvalue(), np.uint8).copy()
            content[draw.integers(0, len(content), 8)] = draw.integers(0, 256, 8)
            with pictures.without_warnings():
                try:
                    damaged = content[: draw.integers(1, len(content) + 1)].tobytes()
                    decoded = pictures.decode(damaged, resize=16, crop=16)
                except Unreadable:
                    continue
            assert decoded.pixels.shape == (3, 16, 16)


def test_a_missing_file_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="No such file"):
        read(tmp_path / "a.png", resize=16, crop=16)


@pytest.mark.parametrize("open_file", [lambda path: read(path, resize=8, crop=8), pictures.read_full_size])
def test_a_pipe_is_unreadable(tmp_path: Path, open_file: Callable[[Path], object]) -> None:
    with pytest.raises(Unreadable, match=r"^not a regular file$"):
        open_file(make_pipe(tmp_path / "a.png"))


SAVED_AS = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("WEBP", {}),
    ("TIFF", {"compression": "tiff_deflate"}),
    ("BMP", {}),
    ("AVIF", {}),
]


@pytest.mark.parametrize(("format", "settings"), SAVED_AS, ids=str)
@pytest.mark.parametrize("side", [50, 400])
def test_a_truncated_picture_is_unreadable(format: str, settings: dict[str, Any], side: int) -> None:
    file = io.BytesIO()
    photo(4, side, side).save(file, format, **settings)
    content = file.getvalue()
    with pictures.without_warnings():
        pictures.decode(content, resize=16, crop=16)
        for length in [*(len(content) * percent // 100 for percent in (1, 50, 90, 99)), len(content) - 12]:
            with pytest.raises(Unreadable):
                pictures.decode(content[:length], resize=16, crop=16)


def test_every_changed_byte_of_the_pixels_of_a_png_is_noticed() -> None:
    file = io.BytesIO()
    photo(4, 20, 20).save(file, "PNG")
    whole = file.getvalue()
    with pictures.without_warnings():
        for position in range(whole.index(b"IDAT"), whole.index(b"IEND") - 4):
            content = bytearray(whole)
            content[position] ^= 16
            with pytest.raises(Unreadable):
                pictures.decode(bytes(content), resize=16, crop=16)
