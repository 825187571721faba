"""The moments at which a drill sends a signal: what a run is doing then, and its operations on files."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MARK = "\x1e"
"""Starts the line that is written to the output of a command when it receives a signal."""
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.utime", "os.listdir")
"""Audit events that count as operations on files."""


@contextlib.contextmanager
def appended(path: Path) -> Iterator[int]:
    """Open the file for the output of a command and for marks, and yield its descriptor."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def mark_line(directory: Path) -> bytes:
    """Return the line that marks a signal: the time and what the program was doing."""
    return f"{MARK}{time.monotonic():.4f} {phase(directory)}\n".encode()


def phase(directory: Path) -> str:
    """Return what a run or sweep is doing, by the files that it has written."""

    def has(*names: str) -> bool:
        return any((directory / name).exists() for name in names)

    if not has(""):
        return "composing"
    if not has("config.yaml", "multirun.yaml"):
        return "claiming its directory or loading data"
    if has("multirun.yaml"):
        jobs = len(list(directory.glob("*/config.yaml")))
        finished = len(list(directory.glob("*/summary.json")))
        if not jobs:
            return "starting the first job"
        return "running jobs" if finished < jobs or not finished else "between two jobs or comparing"
    if not has("last.pt", "summary.json"):
        return "training before the first checkpoint"
    return "training" if not has("summary.json", "curves.png") else "ending"


def is_operation(event: str, arguments: tuple[Any, ...], root: str) -> bool:
    """Return whether an audit event is an operation on a file below ``root`` or below the working directory."""
    if event not in EVENTS or not arguments or not isinstance(arguments[0], str | bytes):
        return False
    path = os.fsdecode(arguments[0])
    return path.startswith(root) or not path.startswith("/")


def send_at_operation(number: int, sent: int, directory: Path) -> None:
    """Send a signal to this process at its ``number``-th operation on files."""
    count, root = 0, str(directory.parent)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if is_operation(event, arguments, root):
            count += 1
            if count == number:
                count = sys.maxsize // 2  # the next lines look at files
                os.write(2, mark_line(directory))
                os.kill(os.getpid(), sent)

    sys.addaudithook(hook)


def count_operations(notes: Path) -> None:
    """At the end, write the number of this process's operations on files and the time of its first directory."""
    count, claimed, root = 0, 0.0, str(notes.parent)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count, claimed
        if is_operation(event, arguments, root):
            count += 1
            if event == "os.mkdir" and os.fsdecode(arguments[0]).endswith("killed"):
                claimed = claimed or time.monotonic()

    def write() -> None:
        notes.write_text(json.dumps([count, claimed]))

    sys.addaudithook(hook)
    atexit.register(write)
