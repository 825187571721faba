"""Paths that a person writes: on the command line, in a config or as an argument of a command."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

from dlhw.errors import UsageError

_ON_WINDOWS = os.name == "nt"

LONGEST_NAME = 255
"""The longest name of a file in bytes, on all common file systems."""
LONGEST_PATH = 4095
"""The longest path in bytes."""
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9\u00b9\u00b2\u00b3]) *(\..*)?", re.IGNORECASE)


def read_path(text: object, *, key: str = "") -> Path:
    """Return the path that ``text`` names, with ``~`` and ``~user`` replaced by the home folder.

    Raise UsageError if it is not text, is empty or too long, contains a null character or bytes that are not UTF-8, or
    names an unknown user. The message starts with ``key=text``, or ``--option text`` for a key with dashes.
    """
    text = os.fspath(text) if isinstance(text, os.PathLike) else text
    reason = _mistake(text)
    if reason is None:
        try:
            return Path(str(text)).expanduser()
        except RuntimeError:
            reason = "this user has no home folder"
    separator = "" if not key else " " if key.startswith("-") else "="
    raise UsageError(f"{key}{separator}{shortened(text)}: {reason}")


def _mistake(text: object) -> str | None:
    """Return what makes ``text`` an invalid path on every file system; None if nothing does."""
    if not isinstance(text, str) or not text.strip():
        return "must be a path"
    try:
        content = text.encode()
    except UnicodeEncodeError:
        return "must be UTF-8 text"
    if b"\0" in content:
        return "must not contain a null character"
    if len(content) > LONGEST_PATH or any(len(name) > LONGEST_NAME for name in content.split(b"/")):
        return f"too long; expected at most {LONGEST_NAME} bytes for each name and {LONGEST_PATH} in all"
    return _mistake_on_windows(text) if _ON_WINDOWS else None


def _mistake_on_windows(text: str) -> str | None:
    """Return what makes ``text`` an invalid path on Windows; None if nothing does."""
    path = PureWindowsPath(text)
    for name in path.relative_to(path.anchor).parts:
        if forbidden := [character for character in name if character in '<>:"|?*' or character < " "]:
            return f"must not contain {printable(forbidden[0])}, which names of files on Windows cannot have"
        if is_reserved(name):
            return f"must not contain {name}, which Windows reserves for a device"
        if name.strip(".") and name.endswith((".", " ")):
            return "no name in it may end with a dot or a space on Windows"
    return None


def is_reserved(name: str) -> bool:
    """Return whether Windows reserves a name for a device, such as NUL or aux.txt. No file can have it there."""
    return _RESERVED.fullmatch(name) is not None


def shell_line(words: Sequence[str]) -> str:
    """Return the words of a command as a person types them in the shell of this system."""
    return subprocess.list2cmdline(words) if _ON_WINDOWS else shlex.join(words)


def places_of(path: Path, folder: Path) -> list[Path]:
    """Return where to look for a path: if it is relative, in the working directory, then in ``folder``."""
    return [path] if path.is_absolute() else [path, folder / path]


def existing_file(path: str, folder: Path, *, key: str) -> Path:
    """Return the file that exists among :func:`places_of`. Raise UsageError if there is none.

    The message starts with ``key=path``.
    """
    places = places_of(Path(path), folder)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UsageError(f"{key}={printable(path)}: no such file; looked for {' and '.join(map(printable, places))}")
    return found


def is_listed_in(path: Path, folder: Path) -> bool:
    """Return whether a path is a folder, or is inside of it but not in one of its hidden folders.

    Links are resolved.
    """
    inner, outer = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if not inner.is_relative_to(outer):
        return False
    first = inner.relative_to(outer).parts[:1]
    return not first or not first[0].startswith(".")


def shortened(text: object, *, longest: int = 120) -> str:
    """Return a value as one printable line for a message; the middle of a long one is replaced by ``...``."""
    line = printable(str(text))
    return line if len(line) <= longest else f"{line[: longest // 2]}...{line[-longest // 2 :]}"


def printable(path: str | Path) -> str:
    """Return a path as text that can be printed and written.

    Bytes that are not UTF-8, and characters that would control a terminal, are escaped.
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in str(path))


def printable_lines(text: str) -> str:
    """Return a text with every line :func:`printable`; newlines and tabs remain."""
    return "".join(part if part in "\n\t" else printable(part) for part in re.split(r"([\n\t])", text))


def _escaped(character: str) -> str:
    byte = ord(character) - 0xDC00  # how Python represents a byte that is not UTF-8
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else character.encode("unicode_escape").decode()
