"""Picture files: decoding, invalid files, folders of pictures as datasets."""

from __future__ import annotations

import io
import logging
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dlhw.data import folders, pictures
from dlhw.data.pictures import Unreadable, read
from dlhw.errors import UsageError
from support.caches import forget
from support.pictures import dataset, folder_of, options, photo


@pytest.fixture(autouse=True)
def _forgetting() -> None:
    """Clear the caches of the process, as in a new process."""
    forget()


# One picture


@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (64, 64), (33, 20)])
@pytest.mark.parametrize("size", [(120, 90), (91, 150), (64, 64)])
def test_a_picture_is_resized_and_cropped_as_torchvision_does(
    tmp_path: Path, size: tuple[int, int], resize: int, crop: int
) -> None:
    from torchvision.transforms import v2

    path = tmp_path / "a.png"
    photo(0, *size).save(path)
    theirs = v2.Compose([v2.Resize(resize), v2.CenterCrop(crop), v2.PILToTensor()])(Image.open(path))
    ours = read(path, resize=resize, crop=crop)
    assert ours.dtype == torch.uint8
    assert torch.equal(ours, theirs)


def test_a_large_jpeg_is_decoded_at_a_reduced_size(tmp_path: Path) -> None:
    from torchvision.transforms import v2

    path = tmp_path / "a.jpg"
    photo(1, 1600, 1200).save(path, quality=92)
    theirs = v2.Compose([v2.Resize(64), v2.CenterCrop(60), v2.PILToTensor()])(Image.open(path))
    with pictures.without_warnings():
        found = pictures.decode(path.read_bytes(), resize=64, crop=60)
    assert found.size == (1600, 1200)
    assert (found.pixels.int() - theirs.int()).abs().max() <= 3
    assert pictures._open_upright(path.read_bytes(), least=128)[0].size == (200, 150)


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
    half = Image.new("RGBA", (8, 8), (200, 100, 50, 0))
    grey16 = Image.fromarray(np.full((8, 8), 51400, np.uint16))  # 200 of 255
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    saved: dict[str, tuple[Image.Image, dict[str, Any], tuple[int, int, int]]] = {
        "rgb.png": (colour, {}, (200, 100, 50)),
        "grey.png": (Image.new("L", (8, 8), 77), {}, (77, 77, 77)),
        "bits.png": (Image.new("1", (8, 8), 1), {}, (255, 255, 255)),
        "clear.png": (half, {}, (255, 255, 255)),
        "grey_clear.png": (half.convert("LA"), {}, (255, 255, 255)),
        "palette.png": (palette, {}, (10, 20, 30)),
        "palette_clear.png": (palette, {"transparency": 1}, (255, 255, 255)),
        "grey16.png": (grey16, {}, (200, 200, 200)),
        "grey16.tif": (grey16, {}, (200, 200, 200)),
        "grey32.tif": (Image.fromarray(np.full((8, 8), 51400, np.int32)), {}, (200, 200, 200)),
        "cmyk.tif": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), {}, (255, 0, 0)),
        "really_png.jpg": (colour, {"format": "PNG"}, (200, 100, 50)),
    }
    for name, (picture, how, expected) in saved.items():
        picture.save(tmp_path / name, **how)
        found = read(tmp_path / name, resize=8, crop=8)
        assert found.flatten(1).mT.unique(dim=0).tolist() == [list(expected)], name


def test_grey_of_16_bits_keeps_its_shades(tmp_path: Path) -> None:
    Image.fromarray(np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)).save(tmp_path / "a.png")
    assert len(read(tmp_path / "a.png", resize=64, crop=64)[0].unique()) == 256


def png_start(width: int, height: int) -> bytes:
    """The start of a PNG of that size."""

    def chunk(content: bytes) -> bytes:
        return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR" + header) + chunk(b"IDAT" + zlib.compress(bytes(100)))


def bad_files() -> dict[str, tuple[bytes, str]]:
    """Invalid contents, and a part of the reason."""
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
        "header_alone.jpg": (whole.getvalue()[:20], "not a picture"),
        "bomb.png": (png_start(50_000, 50_000), "too large"),
        "large.png": (png_start(12_000, 12_000), "too large"),
        "narrow.png": (strip.getvalue(), "too narrow"),
        "floats.tif": (floats.getvalue(), "has no defined white"),
    }


@pytest.mark.parametrize("name", bad_files())
def test_an_invalid_file_is_unreadable_with_a_reason(tmp_path: Path, name: str) -> None:
    content, reason = bad_files()[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Unreadable, match=reason) as caught:
        read(tmp_path / name, resize=4000 if name == "narrow.png" else 16, crop=16)
    assert "\n" not in str(caught.value)


def test_random_damage_gives_a_picture_or_is_unreadable(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
        whole = io.BytesIO()
        photo(4, 50, 50).save(whole, kind)
        for _ in range(40):
            content = np.frombuffer(whole.getvalue(), np.uint8).copy()
            content[draw.integers(0, len(content), 8)] = draw.integers(0, 256, 8)
            with pictures.without_warnings():
                try:
                    found = pictures.decode(content[: draw.integers(1, len(content) + 1)].tobytes(), resize=16, crop=16)
                except Unreadable:
                    continue
            assert found.pixels.shape == (3, 16, 16)


def test_a_missing_file_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="No such file"):
        read(tmp_path / "a.png", resize=16, crop=16)


def pipe(path: Path) -> Path:
    if not hasattr(os, "mkfifo"):
        pytest.skip("there are no pipes here")
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("opened", [lambda path: read(path, resize=8, crop=8), pictures.read_full_size])
def test_a_pipe_is_unreadable(tmp_path: Path, opened: Callable[[Path], object]) -> None:
    with pytest.raises(Unreadable, match=r"^not a regular file$"):
        opened(pipe(tmp_path / "a.png"))


# A folder


def broken_folder(root: Path) -> Path:
    """Two classes of six photos each, and the other files that real folders contain."""
    folder_of(root, {"cats": 6, "dogs": 6})
    for name, (content, _) in bad_files().items():
        (root / "cats" / name).write_bytes(content)
    frames = [photo(50 + number) for number in range(3)]
    frames[0].save(root / "dogs" / "animated.gif", save_all=True, append_images=frames[1:])
    photo(60).convert("CMYK").save(root / "dogs" / "cmyk.jpg")
    photo(61).save(root / "dogs" / "png_inside.jpg", format="PNG")
    photo(62).convert("P").save(root / "dogs" / "palette.png", transparency=3)
    photo(63).convert("RGBA").save(root / "dogs" / "alpha.png")
    Image.fromarray(np.arange(0, 64000, 40, dtype=np.uint16).reshape(40, 40)).save(root / "dogs" / "grey16.png")
    photo(64, 5000, 3000).save(root / "dogs" / "huge.jpg")
    tags = Image.Exif()
    tags[0x0112] = 6
    photo(65).save(root / "dogs" / "turned.JPG", exif=tags)
    (root / "dogs" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    (root / "dogs" / "Thumbs.db").write_bytes(b"x")
    (root / "dogs" / "._1.png").write_bytes(b"x")
    (root / "dogs" / "notes.txt").write_text("x")
    (root / ".hidden").mkdir()
    (root / "__MACOSX").mkdir()
    (root / "readme.md").write_text("x")
    for path in [path for path in root.rglob("*.*") if path.is_file()]:
        os.utime(path, (1e9, 1e9))
    return root


def test_broken_pictures_in_a_folder_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    data = dataset(broken_folder(tmp_path / "animals"))
    counts = data.about["counts"]
    assert {name: sum(part[name] for part in counts.values()) for name in data.classes} == {"cats": 7, "dogs": 14}
    skipped = data.about["skipped"]
    expected = {f"cats/{name}": reason for name, (_, reason) in bad_files().items() if name != "narrow.png"}
    assert set(skipped) == {*expected, "dogs/gone.jpg"}  # at 16 pixels, the narrow one is not too narrow
    assert all(reason in skipped[name] for name, reason in expected.items())
    assert data.about["shortened"] == {"dogs/animated.gif": "the first of 3 frames"}
    assert data.about["not_pictures"] == 3
    assert data.about["pixels"]["largest"] == [5000, 3000]
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert [line for line in warned if "cats/truncated.jpg: skipped, image file is truncated" in line]
    assert len(warned) == len(skipped)
    for part in data.parts.values():
        assert part.x.shape[1:] == (3, 12, 12)


def test_a_pipe_named_like_a_picture_is_not_a_picture(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "animals", {"cats": 6, "dogs": 6})
    pipe(root / "cats" / "camera.png")
    data = dataset(root)
    assert (len(data.names), data.about["not_pictures"]) == (12, 1)


def test_class_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    try:
        root = folder_of(tmp_path / "animals", {os.fsdecode(b"caf\xe9"): 6, "dogs": 6})
    except OSError:
        pytest.skip("this disk takes names that are text only")
    data = dataset(root)
    assert set(data.classes) == {"caf\\xe9", "dogs"}
    assert sum(name.startswith("caf\\xe9/") for name in data.names) == 6


def test_the_number_of_lines_about_skipped_pictures_is_limited(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = folder_of(tmp_path / "animals", {"cats": 3, "dogs": 3})
    for number in range(30):
        (root / "cats" / f"bad_{number}.jpg").write_bytes(b"")
    data = dataset(root)
    assert len(data.about["skipped"]) == 30
    assert len(caplog.records) == 21
    assert "and 10 more" in caplog.records[-1].message


def test_pictures_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    root = broken_folder(tmp_path / "animals")
    data = dataset(root)
    pool = data.train.pool_x
    assert len(data.names) == len(pool) == 21
    assert list(data.names) == sorted(data.names)
    for name, pixels, label in zip(data.names, pool, data.train.pool_y, strict=True):
        assert torch.equal(pixels, read(root / name, resize=16, crop=12)), name
        assert data.classes[label] == name.partition("/")[0]
    at = torch.cat([part.all_rows()[0] for part in data.parts.values()])
    assert at.sort().values.tolist() == list(range(21))


@pytest.mark.parametrize("parts", [("train", "val"), ("train", "val", "test"), ("train", "test"), ("train",)])
def test_published_parts_are_kept_and_missing_ones_are_split_off(tmp_path: Path, parts: tuple[str, ...]) -> None:
    for number, part in enumerate(parts):
        folder_of(tmp_path / "animals" / part, {"cats": 10, "dogs": 10}, start=100 * number)
    data = dataset(tmp_path / "animals", validation_fraction=0.3)
    assert ("test" in parts) == (data.test is not None)
    assert len(data.val) == (20 if "val" in parts else 6)
    assert len(data.train) == (20 if "val" in parts else 14)
    for part in parts:
        rows = data.parts[part].all_rows()[0]
        assert {data.names[row].partition("/")[0] for row in rows} == {part}
    with_test = dataset(tmp_path / "animals", test_fraction=0.2)
    assert with_test.test is not None
    assert len(with_test.test) == (20 if "test" in parts else 4)


def layout(tmp_path: Path, *folders: str) -> Path:
    for folder in folders:
        (tmp_path / "animals" / folder).mkdir(parents=True)
        photo(len(folder)).save(tmp_path / "animals" / folder / "1.png")
    return tmp_path / "animals"


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (["train/cats", "train/dogs", "val/cats"], "val and train must have the same classes.* dogs"),
        (["train/cats", "train/dogs", "valid/cats"], "contains valid besides train; expected"),
        (["val/cats", "val/dogs"], "contains no train besides val"),
        (["cats"], "only the class cats; expected at least two classes"),
        (["."], "no folders with pictures"),
        (["train/cats", "val/cats"], "only the class cats"),
    ],
)
def test_the_error_for_an_unknown_layout_describes_the_expected_one(
    tmp_path: Path, there: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        dataset(layout(tmp_path, *there))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [b"", b"text", None])
def test_a_class_without_a_usable_picture_is_an_error(tmp_path: Path, bad: bytes | None) -> None:
    root = folder_of(tmp_path / "animals", {"cats": 3, "dogs": 1})
    os.unlink(root / "dogs" / "0.png")
    if bad is not None:
        (root / "dogs" / "0.png").write_bytes(bad)
    with pytest.raises(UsageError, match=r"dogs: contains no readable picture.*expected at least one for every class"):
        dataset(root)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"crop": 17}, "dataset.crop=17: must be at most dataset.resize=16"),
        ({"test_fraction": 0.8}, "dataset.test_fraction=0.8: leaves nothing for training"),
        (
            {"validation_fraction": 0.01},
            "dataset.validation_fraction=0.01: leaves no cats for val; .* 3 pictures",
        ),
        ({"exclude": ["*.bmp"]}, "dataset.exclude: \\*.bmp matches no picture"),
        ({"root": None}, "dataset.root=null: must be the path"),
        ({"root": "nowhere"}, "dataset=image_folder: no folder nowhere or .*/nowhere; expected one folder per class"),
    ],
)
def test_invalid_options_are_an_error(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    root = folder_of(tmp_path / "animals", {"cats": 3, "dogs": 3})
    with pytest.raises(UsageError, match=message):
        dataset(root, **changed)


@pytest.mark.parametrize(
    ("name", "hint"), [("face_mask", "prajnasb/observations"), ("hymenoptera", "hymenoptera_data.zip")]
)
def test_the_error_for_missing_pictures_says_where_to_get_them(tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"dataset={name}: no folder {tmp_path}/{name}.*{hint}"):
        getattr(folders, name)(**options(name, data_dir=str(tmp_path)))


def test_hymenoptera_is_found_in_the_folder_of_its_zip(tmp_path: Path) -> None:
    for part in ("train", "val"):
        folder_of(tmp_path / "hymenoptera_data" / part, {"ants": 2, "bees": 2}, start=ord(part[0]))
    data = folders.hymenoptera(**options("hymenoptera", data_dir=str(tmp_path)))
    assert (data.name, data.classes, len(data.val), data.test) == ("hymenoptera", ("ants", "bees"), 4, None)
