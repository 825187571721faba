"""Files that survive any interruption: whole, on the disk, and only then under their name."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write so that after a crash or power cut ``path`` holds the old content or the new, never a part."""
    written_beside(path, content).replace(path)
    sync_directory(path.parent)


def written_beside(path: Path, content: bytes | memoryview) -> Path:
    """A file with the content, synchronized to disk, that has only to be renamed to ``path``."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        partial.unlink(missing_ok=True)  # on a full disk it would hold the room that a last word needs
        raise
    return partial


def sync_directory(directory: Path) -> None:
    """Make renames in the directory last through a power cut."""
    if os.name == "nt":
        return  # Windows cannot open directories; its renames are journaled
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
