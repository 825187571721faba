"""The cache of decoded pictures: use, replacement, damage, interrupted processes, errors."""

from __future__ import annotations

import errno
import io
import itertools
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

from dlhw.data import file_hashes, picture_cache, pictures
from dlhw.data.file_hashes import PictureFile
from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError
from support.caches import forget
from support.pictures import dataset, folder_of, make_pipe, photo, set_old_times
from support.processes import Process
from support.run_directories import make_run

PROGRAM = """
import os
import sys
import time
from pathlib import Path
from dlhw.data import picture_cache
from dlhw.data.file_hashes import PictureFile

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
"""A program that reads the pictures in its first argument, and decodes them when the file in its second one exists."""


@pytest.fixture(autouse=True)
def empty_caches() -> None:
    """Clear the caches of the process, as in a new process."""
    forget()


@pytest.fixture(autouse=True)
def exact_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let hashes of files that have just been written be saved; otherwise each test would wait for two seconds."""
    monkeypatch.setattr(file_hashes, "CLOCK_SECONDS", -60.0)


@pytest.fixture
def decoded_lengths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths in bytes of the decoded files, in order."""
    lengths: list[int] = []

    def counting_decode(content: bytes, **rest: int) -> pictures.DecodedPicture:
        lengths.append(len(content))
        return pictures.decode(content, **rest)

    monkeypatch.setattr(picture_cache, "decode", counting_decode)
    return lengths


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "animals", {"cats": 6, "dogs": 6})


def load_again(root: Path, **changed: Any) -> Dataset:
    """Return the dataset of the folder, as a new process reads it."""
    forget()
    return dataset(root, **changed)


def cache_files(root: Path) -> list[Path]:
    return sorted((root.parent / ".pictures").glob("*.pictures"))


def test_a_second_run_reads_no_picture_file(
    root: Path, decoded_lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_again(root)
    assert len(decoded_lengths) == 12
    times = {path: path.stat().st_mtime_ns for path in root.parent.rglob("*")}

    def open_no_picture(path: Path, *arguments: Any, open_file: Callable[..., Any] = Path.open, **options: Any) -> Any:
        assert path.suffix != ".png", f"{path} was read"
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_no_picture)
    second = load_again(root, seed=1)
    assert len(decoded_lengths) == 12
    assert torch.equal(first.train.pool_x, second.train.pool_x)
    assert first.sha256 == second.sha256
    assert {path: path.stat().st_mtime_ns for path in root.parent.rglob("*")} == times


def test_jobs_in_one_process_share_one_pool(root: Path) -> None:
    first = load_again(root)
    second = dataset(root, seed=1)
    assert second.train.pool_x is first.train.pool_x


@pytest.mark.parametrize("changed", [{"resize": 17}, {"crop": 11}, {"exclude": ["1.png"]}])
def test_other_options_use_another_cache_file(root: Path, decoded_lengths: list[int], changed: dict[str, Any]) -> None:
    load_again(root)
    load_again(root, **changed)
    assert len(decoded_lengths) == (22 if "exclude" in changed else 24)
    load_again(root)
    load_again(root, **changed)
    assert len(decoded_lengths) == (22 if "exclude" in changed else 24)
    assert len(cache_files(root)) == 2


def change_pixels(root: Path) -> None:
    photo(99).save(root / "cats" / "1.png")


def change_label(root: Path) -> None:
    (root / "cats" / "1.png").rename(root / "dogs" / "9.png")


def change_name(root: Path) -> None:
    (root / "dogs").rename(root / "wolves")


@pytest.mark.parametrize("change", [change_pixels, change_label, change_name])
def test_changes_in_the_folder_change_the_data_and_its_sha256(root: Path, change: Callable[[Path], None]) -> None:
    first = load_again(root)
    change(root)
    second = load_again(root)
    assert first.sha256 != second.sha256
    assert first.names != second.names or not torch.equal(first.train.pool_x, second.train.pool_x)


def test_a_file_changed_within_the_resolution_of_the_clock_is_read_again(root: Path) -> None:
    path = root / "cats" / "1.png"
    path.write_bytes(photo(7).resize((4, 4)).convert("L").tobytes() * 10)
    now = time.time_ns() + 10**12  # in the future, so that a slow machine is still within the resolution
    os.utime(path, ns=(now, now))
    assert "cats/1.png" in load_again(root).about["skipped"]
    size = path.stat().st_size
    photo(8, 5, 5).save(path, "BMP")
    content = path.read_bytes()
    assert len(content) <= size
    path.write_bytes(content.ljust(size, b"\0"))
    os.utime(path, ns=(now, now))
    assert not load_again(root).about["skipped"]


def test_moved_pictures_are_not_decoded_again(root: Path, decoded_lengths: list[int]) -> None:
    first = load_again(root)
    root.rename(root.parent / "moved")
    assert load_again(root.parent / "moved").sha256 == first.sha256
    assert len(decoded_lengths) == 12


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1000)


def make_empty(path: Path) -> None:
    os.truncate(path, 0)


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def insert_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\0" + content[4096:])


def change_pixel(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[picture_cache.OFFSET + 12 * 12] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, make_empty, flip_bit, insert_byte, change_pixel])
def test_a_damaged_cache_is_replaced(
    root: Path, decoded_lengths: list[int], caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    first = load_again(root)
    pool = first.train.pool_x.clone()
    del first
    (path,) = cache_files(root)
    shutil.copy(path, path.with_suffix(".copy"))
    damage(path.with_suffix(".copy"))
    path.with_suffix(".copy").replace(path)
    assert torch.equal(load_again(root).train.pool_x, pool)
    assert len(decoded_lengths) == 24
    warnings = {record.message for record in caplog.records if record.levelno == logging.WARNING}
    assert any("damaged" in message and "decoding the pictures again" in message for message in warnings)
    load_again(root)
    assert len(decoded_lengths) == 24


def replace_keeping_size_and_time(path: Path) -> None:
    """Replace a picture by one of the same size and modification time, as ``cp --preserve`` could."""
    size = path.stat().st_size
    content = io.BytesIO()
    photo(99, 5, 5).save(content, "PNG")
    assert len(content.getvalue()) <= size
    path.with_suffix(".new").write_bytes(content.getvalue().ljust(size, b"\0"))
    path.with_suffix(".new").replace(path)
    os.utime(path, (1e9, 1e9))


def overwrite_keeping_size_and_time(path: Path) -> None:
    """Write another picture of the same size into the same file, and set its old modification time again."""
    inode = path.stat().st_ino
    copy = Path(shutil.copy(path, path.with_suffix(".copy")))
    replace_keeping_size_and_time(copy)
    path.write_bytes(copy.read_bytes())
    copy.unlink()
    os.utime(path, (1e9, 1e9))
    assert path.stat().st_ino == inode


@pytest.mark.parametrize("change", [replace_keeping_size_and_time, overwrite_keeping_size_and_time])
def test_a_picture_replaced_by_one_of_the_same_size_and_time_is_read_again(
    root: Path, decoded_lengths: list[int], change: Callable[[Path], None]
) -> None:
    first = load_again(root)
    path = root / "cats" / "1.png"
    before = path.stat()
    change(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    second = load_again(root)
    assert len(decoded_lengths) == 24
    assert first.sha256 != second.sha256
    assert not torch.equal(first.train.pool_x, second.train.pool_x)


def saved_hashes(root: Path) -> Path:
    (memo,) = (root.parent / ".pictures").glob("files-*.hashes")
    return memo


@pytest.mark.parametrize("find", [lambda root: cache_files(root)[0], saved_hashes])
def test_a_pipe_in_the_place_of_a_cached_file_is_replaced(root: Path, find: Callable[[Path], Path]) -> None:
    pool = load_again(root).train.pool_x.clone()
    path = find(root)
    path.unlink()
    make_pipe(path)
    assert torch.equal(load_again(root).train.pool_x, pool)
    assert path.is_file()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"cats/0.png": 1}', f"{'0' * 64}\n{{}}", "\udcff\n{}"])
def test_a_damaged_file_of_hashes_is_replaced(
    root: Path, decoded_lengths: list[int], caplog: pytest.LogCaptureFixture, content: str
) -> None:
    load_again(root)
    memo = saved_hashes(root)
    valid = memo.read_bytes()
    memo.write_text(content, errors="surrogateescape")
    load_again(root)
    assert len(decoded_lengths) == 12
    assert memo.read_bytes() == valid
    assert any("damaged: invalid checksum; hashing the pictures again" in line for line in caplog.messages)


def test_any_changed_byte_of_the_file_of_hashes_is_noticed(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_again(root)
    memo = saved_hashes(root)
    valid = memo.read_bytes()
    files = [PictureFile(path, path.relative_to(root).as_posix()) for path in sorted(root.rglob("*.png"))]
    assert len(file_hashes.known_hashes(files, memo)) == 12
    for position in range(len(valid)):
        memo.write_bytes(valid[:position] + bytes([valid[position] ^ 1]) + valid[position + 1 :])
        assert file_hashes.known_hashes(files, memo) == {}
    memo.unlink()
    memo.mkdir()
    assert file_hashes.known_hashes(files, memo) == {}


def test_a_wrong_saved_hash_is_healed(
    root: Path, decoded_lengths: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_again(root)
    memo = saved_hashes(root)
    valid = memo.read_bytes()
    entries = json.loads(valid.partition(b"\n")[2])
    entries["cats/1.png"][1] = "0" * 64
    file_hashes._write_memo(memo, entries)
    assert load_again(root).sha256 == first.sha256
    assert len(decoded_lengths) < 24
    assert any("does not match its saved hash" in line for line in caplog.messages)
    assert memo.read_bytes() == valid


def start_decoding(root: Path) -> Process:
    """Return another process that has begun to decode the pictures."""
    process = Process("-c", PROGRAM, root, root.parent / "continue", at=root)
    process.until(lambda: process.out)
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="kills a process with a signal of POSIX")
def test_a_second_process_waits_and_a_killed_one_leaves_no_cache(
    root: Path, decoded_lengths: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    start_decoding(root).kill()
    assert cache_files(root) == []
    assert list((root.parent / ".pictures").glob(".*.partial"))
    process = start_decoding(root)
    handler = logging.Handler()
    handler.emit = lambda record: (root.parent / "continue").touch()  # type: ignore[method-assign]
    logging.getLogger("dlhw").addHandler(handler)
    try:
        load_again(root)
    finally:
        logging.getLogger("dlhw").removeHandler(handler)
    assert process.end().code == 0
    assert decoded_lengths == []
    assert any("waiting for it" in record.message for record in caplog.records)
    assert len(cache_files(root)) == 1
    assert not list((root.parent / ".pictures").glob(".*.partial"))


def test_an_interrupted_run_leaves_no_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(picture_cache, "near_pairs", raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_again(root)
    assert sorted(path.suffix for path in (root.parent / ".pictures").iterdir() if path.name != ".lock") == [".hashes"]


def test_the_error_for_an_invalid_cache_folder_names_the_key(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match=r"dataset.cache_dir=.*file/here: .*cannot be saved there .*choose a"):
        load_again(root, cache_dir=str(tmp_path / "file" / "here"))


def test_the_error_for_a_full_disk_names_the_key(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_disk_full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", raise_disk_full)
    with pytest.raises(UsageError, match=r"dataset.cache_dir=.*No space left on device"):
        load_again(root)
    assert cache_files(root) == []
    assert not list((root.parent / ".pictures").glob(".*.partial"))
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1, used=1, free=100))
    with pytest.raises(UsageError, match=r"0.0 GB are needed, 0.0 GB are free"):
        load_again(root)


def test_pictures_that_change_while_they_are_read_are_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, seeds = picture_cache.decode, itertools.count(77)

    def changing_decode(*args: Any, **rest: Any) -> pictures.DecodedPicture:
        photo(next(seeds)).save(root / "dogs" / "2.png")
        return decode(*args, **rest)

    monkeypatch.setattr(picture_cache, "decode", changing_decode)
    with pytest.raises(UsageError, match=r"dogs/2\.png: changed while it was read"):
        load_again(root)
    set_old_times(root)


def test_changes_to_the_pool_do_not_change_the_cache_file(root: Path) -> None:
    pool = load_again(root).train.pool_x
    pixels = pool.clone()
    pool.zero_()
    assert torch.equal(load_again(root).train.pool_x, pixels)


def test_the_directory_of_a_run_is_not_used_as_a_cache(root: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    with pytest.raises(UsageError, match=r"^dataset.cache_dir=.*run: the directory of a run or sweep; choose another"):
        load_again(root, cache_dir=str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"cache_dir": "{root}"}, "dataset.cache_dir"),
        ({"cache_dir": "{root}/cats/.caches"}, "dataset.cache_dir"),
        ({"data_dir": "{root}/data"}, "data_dir"),
    ],
)
def test_a_cache_among_the_pictures_is_an_error(root: Path, options: dict[str, str], key: str) -> None:
    before = sorted(root.rglob("*"))
    options = {name: value.format(root=root) for name, value in options.items()}
    with pytest.raises(UsageError, match=rf"^{key}={root}.*: inside the pictures in {root}, where each folder is a cl"):
        load_again(root, **options)
    assert sorted(root.rglob("*")) == before


def test_a_hidden_cache_beside_the_classes_is_not_a_class(root: Path) -> None:
    assert load_again(root, data_dir=str(root)).classes == load_again(root).classes
