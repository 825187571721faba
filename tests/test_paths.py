"""Paths that a person writes: valid ones, invalid ones, and how they are printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dlhw.errors import UsageError
from dlhw.runtime import paths
from dlhw.runtime.paths import (
    is_listed_in,
    is_reserved,
    printable,
    printable_lines,
    read_path,
    shell_line,
    shortened,
)


def test_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert read_path("~/runs", key="output_dir") == Path("/home/someone/runs")
    assert read_path("runs/~", key="output_dir") == Path("runs/~")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "data_dir=: must be a path"),
        (" ", "data_dir= : must be a path"),
        (None, "data_dir=None: must be a path"),
        (3, "data_dir=3: must be a path"),
        ("a\0b", "data_dir=a\\x00b: must not contain a null character"),
        ("caf\udce9", "data_dir=caf\\xe9: must be UTF-8 text"),
        ("~nobody-of-this-name/x", "data_dir=~nobody-of-this-name/x: this user has no home folder"),
    ],
    ids=repr,
)
def test_invalid_path_gets_one_line(text: object, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        read_path(text, key="data_dir")
    assert str(raised.value) == message


@pytest.mark.parametrize("text", ["x" * 256, "\u00e9" * 128, "x/" * 2048], ids=["name", "bytes", "path"])
def test_path_that_no_file_system_can_hold_is_too_long(text: str) -> None:
    message = r"resume=(.*)\.\.\.(.*): too long; expected at most 255 bytes for each name and 4095 in all"
    with pytest.raises(UsageError) as raised:
        read_path(text, key="resume")
    assert re.fullmatch(message, str(raised.value))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("C:\\Users\\a b\\outputs", None),
        ("..\\outputs/x.y", None),
        ("outputs/a:b", "must not contain :, which names of files on Windows cannot have"),
        ("*.jpg", "must not contain *, which names of files on Windows cannot have"),
        ("a/b\n", "must not contain \\n, which names of files on Windows cannot have"),
        ("outputs\\aux.old\\x", "must not contain aux.old, which Windows reserves for a device"),
        ("outputs./x", "no name in it may end with a dot or a space on Windows"),
    ],
    ids=repr,
)
def test_path_that_windows_cannot_have_is_an_error_there(
    text: str, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert str(read_path(text)) == text  # on other systems
    monkeypatch.setattr(paths, "_ON_WINDOWS", True)
    if reason is None:
        assert str(read_path(text)) == text
        return
    with pytest.raises(UsageError) as raised:
        read_path(text, key="output_dir")
    assert str(raised.value) == f"output_dir={printable(text)}: {reason}"


@pytest.mark.parametrize(
    ("name", "reserved"),
    [
        *((name, True) for name in ("NUL", "con", "aux.x=1", "Com1", "lpt\u00b2.txt", "prn .txt")),
        *((name, False) for name in ("aux=1", "com", "com10", "nul_", "x.nul", "")),
    ],
)
def test_names_of_devices_are_reserved(name: str, reserved: bool) -> None:
    assert is_reserved(name) == reserved


def test_words_of_a_command_are_quoted_for_the_shell_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["dlhw", "resume=my runs\\x"]
    assert shlex.split(shell_line(words)) == words
    monkeypatch.setattr(paths, "_ON_WINDOWS", True)
    assert shell_line(words) == 'dlhw "resume=my runs\\x"'


def test_message_names_an_option_with_dashes_or_no_key_at_all() -> None:
    with pytest.raises(UsageError, match=r"^--output : must be a path$"):
        read_path("", key="--output")
    with pytest.raises(UsageError, match=r"^a\\x00b: must not contain a null character$"):
        read_path("a\0b")


def test_printable_escapes_bytes_that_are_not_utf8_and_control_characters() -> None:
    assert printable("caf\u00e9/\u732b.jpg") == "caf\u00e9/\u732b.jpg"
    assert printable(Path("caf\udce9.jpg")) == "caf\\xe9.jpg"
    assert printable("red\x1b[31m\n.jpg") == "red\\x1b[31m\\n.jpg"
    assert printable("\ud800").encode() == b"\\ud800"


def test_shortened_keeps_both_ends() -> None:
    assert shortened("x" * 120) == "x" * 120
    assert shortened("a" * 100 + "b" * 100, longest=10) == "aaaaa...bbbbb"


def test_printable_lines_keeps_newlines_and_tabs() -> None:
    assert printable_lines("one\n\ttwo \x1b[31m\r\n") == "one\n\ttwo \\x1b[31m\\r\n"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        *(("a", True), ("a/b", True), ("a/b/../c", True), ("link/b", True), ("a/b/.c", True)),
        *(("a/.b", False), ("ab", False), ("a/..", False), (".", False), ("a/../d", False)),
    ],
)
def test_is_listed_in_is_true_inside_of_visible_folders(
    path: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").mkdir()
    Path("link").symlink_to("a")
    assert is_listed_in(Path(path), tmp_path / "a") is expected
