"""Mutations of files: their bytes, their lines, their type, and their content.

Each mutation takes a path and random numbers and changes what is there. It returns what it did in a few words, or None
if it does not apply to this file. ``structures.py`` and ``checkpoints.py`` have those for certain suffixes.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from checkpoints import cache_length, cache_pixels, checkpoint_structure, checkpoint_tensor, payload
from structures import (
    Mutation,
    alias_bomb,
    csv_cell,
    json_value,
    nested,
    other_top_level,
    recursive_alias,
    yaml_syntax,
    yaml_value,
)

HUGE_BYTES = 30_000_000

# bytes


def truncate(path: Path, draw: random.Random) -> str | None:
    content = path.read_bytes()
    if not content:
        return None
    size = draw.randrange(len(content))
    path.write_bytes(content[:size])
    return f"truncated to {size} of {len(content)} bytes"


def flip_bits(path: Path, draw: random.Random) -> str | None:
    content = bytearray(path.read_bytes())
    if not content:
        return None
    places = [draw.randrange(len(content)) for _ in range(draw.choice([1, 1, 1, 8]))]
    for place in places:
        content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return f"flipped bits at {', '.join(map(str, places))} of {len(content)}"


def swap_bytes(path: Path, draw: random.Random) -> str | None:
    content = bytearray(path.read_bytes())
    if len(set(content)) < 2:
        return None
    one = draw.randrange(len(content))
    other = draw.choice([place for place in range(len(content)) if content[place] != content[one]][:10_000])
    content[one], content[other] = content[other], content[one]
    path.write_bytes(content)
    return f"swapped the bytes at {one} and {other}"


def zero_block(path: Path, draw: random.Random) -> str | None:
    content = bytearray(path.read_bytes())
    if not content:
        return None
    start, length = draw.randrange(len(content)), draw.choice([1, 16, 512, 4096])
    content[start : start + length] = bytes(min(length, len(content) - start))
    path.write_bytes(content)
    return f"{length} zero bytes at {start}"


def append_bytes(path: Path, draw: random.Random) -> str:
    added = draw.choice([b"\0" * 100, b"\n", b"garbage\n", draw.randbytes(100), path.read_bytes()])
    path.write_bytes(path.read_bytes() + added)
    return f"{len(added)} bytes appended"


def empty(path: Path, draw: random.Random) -> str:
    path.write_bytes(b"")
    return "emptied"


def delete(path: Path, draw: random.Random) -> str:
    path.unlink()
    return "deleted"


def garbage(path: Path, draw: random.Random) -> str:
    path.write_bytes(draw.randbytes(draw.choice([1, 100, 10_000])))
    return "random bytes"


CONTROL = (b"\0", b"\x1b[31m", b"\xff\xfe", b"\xef\xbb\xbf", b"\t", b"\r\n", "é\u2028".encode(), b"\xed\xa0\x80")


def control_characters(path: Path, draw: random.Random) -> str:
    content = path.read_bytes()
    place = draw.randrange(len(content) + 1)
    added = draw.choice(CONTROL)
    path.write_bytes(content[:place] + added + content[place:])
    return f"{added!r} inserted at {place}"


# lines of text


def move_line(path: Path, draw: random.Random) -> str | None:
    """Drop a line, write it twice, or exchange it with another one."""
    lines = path.read_bytes().splitlines(keepends=True)
    if not lines:
        return None
    number, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    what = draw.choice(["dropped", "twice", "exchanged"])
    if what == "dropped":
        del lines[number]
    elif what == "twice":
        lines.insert(other, lines[number])
    else:
        what = f"exchanged with line {other + 1}"
        lines[number], lines[other] = lines[other], lines[number]
    path.write_bytes(b"".join(lines))
    return f"line {number + 1} {what}"


def huge_line(path: Path, draw: random.Random) -> str:
    path.write_bytes(draw.choice([b"x", b"9", b" ", b"- "]) * (HUGE_BYTES // 10) + b"\n")
    return "one line of megabytes"


# the kind of the file


def directory_instead(path: Path, draw: random.Random) -> str:
    path.unlink()
    path.mkdir()
    if draw.random() < 0.5:
        (path / "inside").write_text("a file\n")
    return "a directory in its place"


def link(path: Path, draw: random.Random) -> str:
    target = draw.choice(["/nowhere/at/all", path.name, "/dev/zero", "/dev/null"])
    path.unlink()
    path.symlink_to(target)
    return f"a link to {target} in its place"


def pipe(path: Path, draw: random.Random) -> str:
    path.unlink()
    os.mkfifo(path)
    return "a pipe in its place"


def same_times(mutation: Mutation) -> Mutation:
    """Return the mutation of a file that keeps its modification time, and its size where the mutation does."""

    def mutate(path: Path, draw: random.Random) -> str | None:
        status = path.stat()
        what = mutation(path, draw)
        with contextlib.suppress(OSError, ValueError):
            if path.is_file() and not path.is_symlink():
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return what and f"{what}, with the old modification time"

    return mutate


def replaced_by(donors: Sequence[Path]) -> Mutation:
    """Return the mutation that replaces a file by one of the same kind."""

    def mutate(path: Path, draw: random.Random) -> str | None:
        others = [donor for donor in donors if donor.read_bytes() != path.read_bytes()]
        if not others:
            return None
        donor = draw.choice(others)
        path.unlink()
        shutil.copyfile(donor, path)
        return f"replaced by {donor.parent.name}/{donor.name}"

    return mutate


ANY_FILE: tuple[Mutation, ...] = (
    *(truncate, flip_bits, flip_bits, swap_bytes, zero_block, append_bytes, empty, delete, garbage),
    *(directory_instead, pipe, *[link] * 4),
)
LINES: tuple[Mutation, ...] = (*[move_line] * 3, huge_line, control_characters)
BY_SUFFIX: dict[str, tuple[Mutation, ...]] = {
    ".json": (*LINES, *[json_value] * 8, other_top_level, nested),
    ".yaml": (
        *(*LINES, *[yaml_value] * 8, other_top_level, nested),
        *(alias_bomb, recursive_alias, yaml_syntax, yaml_syntax),
    ),
    ".csv": (*LINES, *[csv_cell] * 6),
    ".log": LINES,
    ".pt": (*[checkpoint_structure] * 5, *[checkpoint_tensor] * 5),
    ".pictures": (*[cache_pixels] * 3, cache_length),
}


def mutate(path: Path, draw: random.Random, *, donors: Sequence[Path], marker: Path, keep_times: bool = False) -> str:
    """Apply a random mutation to a file, and return what it did."""
    kinds: list[Mutation] = [*ANY_FILE, *BY_SUFFIX.get(path.suffix, ())]
    if path.suffix in (".pt", ".yaml", ".json", ".pictures"):
        kinds += [payload(marker)] * 2
    if donors:
        kinds += [replaced_by(donors)] * 3
    while True:
        mutation = draw.choice(kinds)
        if keep_times and draw.random() < 0.5:
            mutation = same_times(mutation)
        what = mutation(path, draw)
        if what is not None:
            return what
