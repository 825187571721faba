"""The cache of decoded pictures: when it is used, replaced or missing, and what an interrupted process leaves."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dlhw.data import folders, picture_cache, pictures
from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError
from support.caches import forget
from support.pictures import folder_of, options, photo, settle
from support.processes import Process

START = """
import os
import sys
import time
from pathlib import Path
from dlhw.data import picture_cache
from dlhw.data.picture_cache import PictureFile

def slowly(content, decode=picture_cache.decode, **rest):
    os.write(1, b"decoding")
    while not Path(sys.argv[2]).exists():
        time.sleep(0.01)
    return decode(content, **rest)

picture_cache.decode = slowly
root = Path(sys.argv[1])
files = [PictureFile(path, path.relative_to(root).as_posix()) for path in sorted(root.rglob("*.png"))]
picture_cache.load(files, root=root, resize=16, crop=12, cache_dir=root.parent / ".pictures")
"""
"""A program that opens the folder in its first argument and waits for the file in its second one to decode."""


@pytest.fixture(autouse=True)
def _forgetting() -> None:
    """Clear the caches of the process, as in a new process."""
    forget()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the files that are decoded."""
    lengths: list[int] = []

    def counting(content: bytes, **rest: int) -> pictures.DecodedPicture:
        lengths.append(len(content))
        return pictures.decode(content, **rest)

    monkeypatch.setattr(picture_cache, "decode", counting)
    return lengths


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "animals", {"cats": 6, "dogs": 6})


def opened(root: Path, **changed: Any) -> Dataset:
    """Return the dataset as a new process reads it."""
    forget()
    small = {"resize": 16, "crop": 12, "data_dir": str(root.parent), "root": str(root), **changed}
    return folders.image_folder(**options("image_folder", **small))


def caches(root: Path) -> list[Path]:
    return sorted((root.parent / ".pictures").glob("*.pictures"))


def test_the_second_run_reads_no_picture(root: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(root)
    assert len(decoded) == 12
    before = {path: path.stat().st_mtime_ns for path in root.parent.rglob("*")}

    def no_reading(path: Path, *_: object, **__: object) -> bytes:
        assert path.suffix != ".png", f"{path} was read"
        return Path.read_text(path).encode()

    monkeypatch.setattr(Path, "read_bytes", no_reading)
    monkeypatch.setattr(picture_cache, "_hash_files", no_reading)
    again = opened(root, seed=1)
    assert len(decoded) == 12
    assert torch.equal(first.train.pool_x, again.train.pool_x)
    assert first.sha256 == again.sha256
    assert {path: path.stat().st_mtime_ns for path in root.parent.rglob("*")} == before


def test_jobs_in_one_process_share_one_pool(root: Path) -> None:
    first = opened(root)
    small = {"resize": 16, "crop": 12, "data_dir": str(root.parent), "root": str(root)}
    second = folders.image_folder(**options("image_folder", **small) | {"seed": 1})
    assert second.train.pool_x is first.train.pool_x


@pytest.mark.parametrize("changed", [{"resize": 17}, {"crop": 11}, {"exclude": ["1.png"]}])
def test_other_options_have_a_cache_of_their_own(root: Path, decoded: list[int], changed: dict[str, Any]) -> None:
    opened(root)
    opened(root, **changed)
    assert len(decoded) == (22 if "exclude" in changed else 24)
    opened(root)
    opened(root, **changed)
    assert len(decoded) == (22 if "exclude" in changed else 24)
    assert len(caches(root)) == 2


def change_pixels(root: Path) -> None:
    photo(99).save(root / "cats" / "1.png")


def change_label(root: Path) -> None:
    (root / "cats" / "1.png").rename(root / "dogs" / "9.png")


def change_name(root: Path) -> None:
    (root / "dogs").rename(root / "wolves")


@pytest.mark.parametrize("change", [change_pixels, change_label, change_name])
def test_changes_in_the_folder_change_the_data_and_its_digest(root: Path, change: Callable[[Path], None]) -> None:
    first = opened(root)
    change(root)
    second = opened(root)
    assert first.sha256 != second.sha256
    assert first.names != second.names or not torch.equal(first.train.pool_x, second.train.pool_x)


def test_a_file_that_changes_within_the_resolution_of_the_clock_is_read_again(root: Path) -> None:
    path = root / "cats" / "1.png"
    path.write_bytes(photo(7).resize((4, 4)).convert("L").tobytes() * 10)
    now = time.time_ns() + 10**12  # so that the tick is not over on a slow machine
    os.utime(path, ns=(now, now))
    assert "cats/1.png" in opened(root).about["skipped"]
    size = path.stat().st_size
    photo(8, 5, 5).save(path, "BMP")
    content = path.read_bytes()
    assert len(content) <= size
    path.write_bytes(content.ljust(size, b"\0"))
    os.utime(path, ns=(now, now))
    assert not opened(root).about["skipped"]


def test_moved_pictures_are_not_decoded_again(root: Path, decoded: list[int]) -> None:
    first = opened(root)
    root.rename(root.parent / "moved")
    assert opened(root.parent / "moved").sha256 == first.sha256
    assert len(decoded) == 12


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1000)


def cut_to_nothing(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def lengthen(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\0" + content[4096:])


@pytest.mark.parametrize("damage", [cut, cut_to_nothing, flip, lengthen])
def test_a_damaged_cache_is_replaced(
    root: Path, decoded: list[int], caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    first = opened(root)
    pool = first.train.pool_x.clone()
    del first
    (path,) = caches(root)
    shutil.copy(path, path.with_suffix(".copy"))
    damage(path.with_suffix(".copy"))
    path.with_suffix(".copy").replace(path)
    assert torch.equal(opened(root).train.pool_x, pool)
    assert len(decoded) == 24
    warned = {record.message for record in caplog.records if record.levelno == logging.WARNING}
    assert any("damaged" in line and "decoding the pictures again" in line for line in warned)
    opened(root)
    assert len(decoded) == 24


@pytest.mark.parametrize("damaged", ["{", "[]", "null", '{"cats/0.png": 1}', '{"cats/0.png": [1, 2]}'])
def test_damaged_hashes_are_computed_again(root: Path, decoded: list[int], damaged: str) -> None:
    opened(root)
    (notes,) = (root.parent / ".pictures").glob("files-*.json")
    notes.write_text(damaged)
    opened(root)
    assert len(decoded) == 12
    assert len(json.loads(notes.read_text())) == 12


def start(root: Path) -> Process:
    """Another process that opens the folder, when it has begun to decode."""
    process = Process("-c", START, root, root.parent / "go on", at=root)
    process.until(lambda: process.out)
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_a_second_process_waits_and_a_killed_one_leaves_no_cache(
    root: Path, decoded: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    start(root).kill()
    assert caches(root) == []
    assert list((root.parent / ".pictures").glob(".*.partial"))
    other = start(root)
    waiting = logging.Handler()
    waiting.emit = lambda record: (root.parent / "go on").touch()  # type: ignore[method-assign]
    logging.getLogger("dlhw").addHandler(waiting)
    try:
        opened(root)
    finally:
        logging.getLogger("dlhw").removeHandler(waiting)
    assert other.end().code == 0
    assert decoded == []
    assert any("waiting for it" in record.message for record in caplog.records)
    assert len(caches(root)) == 1
    assert not list((root.parent / ".pictures").glob(".*.partial"))


def test_an_interrupted_process_leaves_no_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(picture_cache, "near_pairs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened(root)
    assert sorted(path.suffix for path in (root.parent / ".pictures").iterdir() if path.name != ".lock") == [".json"]


def test_the_error_for_a_read_only_folder_names_the_key(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match=r"dataset.cache_dir=.*file/here: .*cannot be saved there .*choose a"):
        opened(root, cache_dir=str(tmp_path / "file" / "here"))


def test_the_error_for_a_full_disk_names_the_key(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"dataset.cache_dir=.*No space left on device"):
        opened(root)
    assert caches(root) == []
    assert not list((root.parent / ".pictures").glob(".*.partial"))
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1, used=1, free=100))
    with pytest.raises(UsageError, match=r"0.0 GB are needed, 0.0 GB are free"):
        opened(root)


def test_pictures_that_change_while_they_are_read_are_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = picture_cache.decode

    def meddled(*args: Any, **rest: Any) -> pictures.DecodedPicture:
        photo(77).save(root / "dogs" / "2.png")
        return decode(*args, **rest)

    monkeypatch.setattr(picture_cache, "decode", meddled)
    with pytest.raises(UsageError, match=r"dogs/2\.png: changed while it was read"):
        opened(root)
    settle(root)


def test_changes_of_the_pool_do_not_reach_the_file(root: Path) -> None:
    before = opened(root).train.pool_x
    kept = before.clone()
    before.zero_()
    assert torch.equal(opened(root).train.pool_x, kept)
