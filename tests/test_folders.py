"""Folders of pictures as datasets: skipped files, layouts, parts, invalid options."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dlhw.data import folders
from dlhw.data.pictures import read
from dlhw.errors import UsageError
from support.caches import forget
from support.datasets import options
from support.pictures import dataset, folder_of, invalid_files, make_pipe, photo, set_old_times
from support.run_directories import make_run


@pytest.fixture(autouse=True)
def empty_caches() -> None:
    """Clear the caches of the process, as in a new process."""
    forget()


def messy_folder(root: Path) -> Path:
    """Save two classes of six photos each, and files of the other kinds that real folders contain."""
    folder_of(root, {"cats": 6, "dogs": 6})
    for name, (content, _) in invalid_files().items():
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
    set_old_times(root)
    return root


def test_unreadable_pictures_in_a_folder_are_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data = dataset(messy_folder(tmp_path / "animals"))
    counts = data.about["counts"]
    assert {name: sum(part[name] for part in counts.values()) for name in data.classes} == {"cats": 7, "dogs": 14}
    skipped = data.about["skipped"]
    expected = {f"cats/{name}": reason for name, (_, reason) in invalid_files().items() if name != "narrow.png"}
    assert set(skipped) == {*expected, "dogs/gone.jpg"}  # narrow.png is large enough for 16 pixels
    assert all(reason in skipped[name] for name, reason in expected.items())
    assert data.about["shortened"] == {"dogs/animated.gif": "the first of 3 frames"}
    assert data.about["not_pictures"] == 3
    assert data.about["pixels"]["largest"] == [5000, 3000]
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert [message for message in warnings if "cats/truncated.jpg: skipped, image file is truncated" in message]
    assert len(warnings) == len(skipped)
    for part in data.parts.values():
        assert part.x.shape[1:] == (3, 12, 12)


def test_a_pipe_named_like_a_picture_is_not_a_picture(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "animals", {"cats": 6, "dogs": 6})
    make_pipe(root / "cats" / "camera.png")
    data = dataset(root)
    assert (len(data.names), data.about["not_pictures"]) == (12, 1)


def test_class_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    try:
        root = folder_of(tmp_path / "animals", {os.fsdecode(b"caf\xe9"): 6, "dogs": 6})
    except OSError:
        pytest.skip("file names must be valid text on this file system")
    data = dataset(root)
    assert set(data.classes) == {"caf\\xe9", "dogs"}
    assert sum(name.startswith("caf\\xe9/") for name in data.names) == 6


def test_the_number_of_lines_about_skipped_pictures_is_limited(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = folder_of(tmp_path / "animals", {"cats": 3, "dogs": 3})
    for number in range(30):
        (root / "cats" / f"empty_{number}.jpg").write_bytes(b"")
    data = dataset(root)
    assert len(data.about["skipped"]) == 30
    assert len(caplog.records) == 21
    assert "and 10 more" in caplog.records[-1].message


def test_pictures_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    root = messy_folder(tmp_path / "animals")
    data = dataset(root)
    pool = data.train.pool_x
    assert len(data.names) == len(pool) == 21
    assert list(data.names) == sorted(data.names)
    for name, pixels, label in zip(data.names, pool, data.train.pool_y, strict=True):
        assert torch.equal(pixels, read(root / name, resize=16, crop=12)), name
        assert data.classes[label] == name.partition("/")[0]
    rows = torch.cat([part.all_rows()[0] for part in data.parts.values()])
    assert rows.sort().values.tolist() == list(range(21))


@pytest.mark.parametrize("parts", [("train", "val"), ("train", "val", "test"), ("train", "test"), ("train",)])
def test_published_parts_are_kept_and_missing_parts_are_split_off(tmp_path: Path, parts: tuple[str, ...]) -> None:
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


def folder_with_layout(tmp_path: Path, *folders: str) -> Path:
    """Save one picture in each of these subfolders of a folder."""
    for folder in folders:
        (tmp_path / "animals" / folder).mkdir(parents=True)
        photo(len(folder)).save(tmp_path / "animals" / folder / "1.png")
    return tmp_path / "animals"


@pytest.mark.parametrize(
    ("subfolders", "message"),
    [
        (["train/cats", "train/dogs", "val/cats"], "val and train must have the same classes.* dogs"),
        (["train/cats", "train/dogs", "valid/cats"], "contains valid besides train; expected"),
        (["val/cats", "val/dogs"], "contains no train besides val"),
        (["cats"], "only the class cats; expected at least two classes"),
        (["."], "no folders with pictures"),
        (["train/cats", "val/cats"], "only the class cats"),
    ],
)
def test_an_invalid_layout_is_a_one_line_error(tmp_path: Path, subfolders: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        dataset(folder_with_layout(tmp_path, *subfolders))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_a_class_without_a_readable_picture_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    root = folder_of(tmp_path / "animals", {"cats": 3, "dogs": 1})
    os.unlink(root / "dogs" / "0.png")
    if content is not None:
        (root / "dogs" / "0.png").write_bytes(content)
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
        (
            {"root": "nowhere"},
            "dataset.root=nowhere: no folder /.*/nowhere or /.*/nowhere; expected one folder",
        ),
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


def test_hymenoptera_is_read_from_the_folder_of_its_zip(tmp_path: Path) -> None:
    for part in ("train", "val"):
        folder_of(tmp_path / "hymenoptera_data" / part, {"ants": 2, "bees": 2}, start=ord(part[0]))
    data = folders.hymenoptera(**options("hymenoptera", data_dir=str(tmp_path)))
    assert (data.name, data.classes, len(data.val), data.test) == ("hymenoptera", ("ants", "bees"), 4, None)


def test_names_with_control_characters_are_escaped(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "animals", {"cats": 6, "dogs": 6})
    (root / "cats" / "0.png").rename(root / "cats" / "\x1b[31m\n.png")
    (root / "cats" / "broken\x07.png").write_bytes(b"no picture")
    data = dataset(root)
    assert r"cats/\x1b[31m\n.png" in data.names
    assert data.about["skipped"] == {r"cats/broken\x07.png": "not a picture, or in an unknown format"}
    assert all(name.isprintable() for name in data.names)


def test_two_files_with_the_same_printable_name_are_an_error(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "animals", {"cats": 3, "dogs": 3})
    (root / "cats" / "0.png").rename(root / "cats" / "\x1b.png")
    (root / "cats" / "1.png").rename(root / "cats" / r"\x1b.png")
    with pytest.raises(UsageError, match=r"animals: 2 names are printed as cats/\\x1b\.png, .*rename all but one"):
        dataset(root)


def test_two_classes_with_the_same_printable_name_are_an_error(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "animals", {"\x1b": 3, r"\x1b": 3})
    with pytest.raises(UsageError, match=r"animals: 2 names are printed as \\x1b, "):
        dataset(root)


@pytest.mark.parametrize("place", ["results", "cats/results", "cats/deep/results"])
@pytest.mark.parametrize("damaged", [False, True])
def test_the_directory_of_a_run_among_the_pictures_is_an_error(tmp_path: Path, place: str, damaged: bool) -> None:
    root = folder_of(tmp_path / "animals", {"cats": 6, "dogs": 6})
    run = make_run(root / place)
    photo(1).save(run / "curves.png")
    if damaged:
        (run / "config.yaml").write_text("seed: [")
    with pytest.raises(UsageError, match=rf"^{run}: a directory of results inside the pictures in {root}; move it out"):
        dataset(root)


@pytest.mark.parametrize(("name", "content"), [("config.yaml", "a: 1\n"), ("sweep.csv", "a,b\n1,2\n")])
def test_files_of_other_programs_among_the_pictures_are_ignored(tmp_path: Path, name: str, content: str) -> None:
    root = folder_of(tmp_path / "animals", {"cats": 6, "dogs": 6})
    (root / "cats" / name).write_text(content)
    assert dataset(root).about["not_pictures"] == 1
