"""Mutations of files: bytes, lines, values of JSON, YAML and CSV, checkpoints, the kind of the file itself.

Each mutation takes a path and random numbers, changes what is there, and returns what it did in a few words, or None if
it does not apply to this file.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

Mutation = Callable[[Path, random.Random], str | None]

NESTED = 100_000
"""Depth of nested content."""
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
    added = draw.choice(
        [b"\0", b"\x1b[31m", b"\xff\xfe", b"\xef\xbb\xbf", b"\t", b"\r\n", "é\u2028".encode(), b"\xed\xa0\x80"]
    )
    path.write_bytes(content[:place] + added + content[place:])
    return f"{added!r} inserted at {place}"


# lines of text


def duplicate_line(path: Path, draw: random.Random) -> str | None:
    lines = path.read_bytes().splitlines(keepends=True)
    if not lines:
        return None
    number = draw.randrange(len(lines))
    lines.insert(draw.randrange(len(lines) + 1), lines[number])
    path.write_bytes(b"".join(lines))
    return f"line {number + 1} twice"


def drop_line(path: Path, draw: random.Random) -> str | None:
    lines = path.read_bytes().splitlines(keepends=True)
    if not lines:
        return None
    number = draw.randrange(len(lines))
    del lines[number]
    path.write_bytes(b"".join(lines))
    return f"line {number + 1} dropped"


def swap_lines(path: Path, draw: random.Random) -> str | None:
    lines = path.read_bytes().splitlines(keepends=True)
    if len(lines) < 2:
        return None
    one, other = draw.sample(range(len(lines)), 2)
    lines[one], lines[other] = lines[other], lines[one]
    path.write_bytes(b"".join(lines))
    return f"lines {one + 1} and {other + 1} swapped"


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


def dangling_link(path: Path, draw: random.Random) -> str:
    path.unlink()
    path.symlink_to("/nowhere/at/all")
    return "a link to nowhere in its place"


def link_to_itself(path: Path, draw: random.Random) -> str:
    path.unlink()
    path.symlink_to(path.name)
    return "a link to itself in its place"


def pipe(path: Path, draw: random.Random) -> str:
    path.unlink()
    os.mkfifo(path)
    return "a pipe in its place"


def link_to_zero(path: Path, draw: random.Random) -> str:
    path.unlink()
    path.symlink_to("/dev/zero")
    return "a link to /dev/zero in its place"


def link_to_null(path: Path, draw: random.Random) -> str:
    path.unlink()
    path.symlink_to("/dev/null")
    return "a link to /dev/null in its place"


# JSON and YAML

Place = tuple[Any, Any]
"""A container and a key or index in it."""
VALUES: tuple[Any, ...] = (
    *(None, True, [], {}, [1, 2], {"a": 1}, ["x"] * 3),
    *(-1, 0, 1.5, 10**30, math.nan, math.inf),
    *("", "text", "1e5", "${nope}", "${..}", "???", "é\x1b[0m", "../../x", "/dev/zero"),
)
"""Values in place of others."""


def _places(value: Any) -> list[Place]:
    """Return all places of a nested value."""
    found: list[Place] = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(items):
        found += [(value, key), *_places(part)]
    return found


def _edit(content: Any, draw: random.Random) -> str | None:
    """Change one value of a nested one; drop, rename or add a key."""
    places = _places(content)
    if not places:
        return None
    container, key = draw.choice(places)
    kind = draw.choice(["value", "value", "value", "drop", "rename", "add"])
    if kind == "drop":
        del container[key]
        return f"{key!r} dropped"
    if isinstance(container, dict) and kind == "rename":
        new = draw.choice([f"{key}x", str(key).upper(), "", "hydra", "_target_"])
        container[new] = container.pop(key)
        return f"{key!r} renamed to {new!r}"
    if isinstance(container, dict) and kind == "add":
        new, value = draw.choice(["extra", "_target_", "hydra", "resume", "defaults", "1"]), draw.choice(VALUES)
        container[new] = value
        return f"{new!r}: {value!r} added beside {key!r}"
    new_value = draw.choice(VALUES)
    container[key] = new_value
    return f"{key!r} set to {new_value!r}"


def json_value(path: Path, draw: random.Random) -> str | None:
    content = json.loads(path.read_bytes())
    what = _edit(content, draw)
    path.write_text(json.dumps(content, indent=2))
    return what


def yaml_value(path: Path, draw: random.Random) -> str | None:
    header, _, _ = path.read_text().partition("\n")
    content = yaml.safe_load(path.read_bytes())
    what = _edit(content, draw)
    text = yaml.safe_dump(content, allow_unicode=True)
    path.write_text(f"{header}\n{text}" if header.startswith("#") else text)
    return what


def other_top_level(path: Path, draw: random.Random) -> str:
    text = draw.choice(["null", "[]", "{}", "1", '"text"', "[1, 2]", "NaN", "true", '{"a": 1}', "- a\n- b\n"])
    path.write_text(text + "\n")
    return f"content replaced by {text!r}"


def nested(path: Path, draw: random.Random) -> str:
    opening, closing = draw.choice([("[", "]"), ('{"a":', "}"), ("{a: ", "}"), ("- ", "")])
    depth = draw.choice([500, 3000, NESTED])
    text = opening * depth + "1" + closing * depth
    if path.suffix == ".yaml" and draw.random() < 0.5:  # below a key, so that the rest is as before
        text = path.read_text() + f"nested: {text}\n"
    path.write_text(text + "\n")
    return f"{depth} times {opening!r}"


def alias_bomb(path: Path, draw: random.Random) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, draw.choice([3, 6, 9]))]
    keep = draw.random() < 0.7
    path.write_text((path.read_text() if keep else "") + "\n".join(lines) + "\n")
    return f"aliases of aliases, {len(lines)} levels"


def recursive_alias(path: Path, draw: random.Random) -> str:
    path.write_text(path.read_text() + draw.choice(["loop: &loop [*loop]\n", "loop: &loop {a: *loop}\n"]))
    return "an alias of itself"


YAML_LINES = (
    "\tkey: 1",
    "  key: : 1",
    "key: [1, 2",
    "{",
    "seed: 1\nseed: 2",
    "? [a, b]\n: 1",
    "key: !!timestamp x",
    "key: !unknown 1",
    "2020-01-01: 1",
    "1: 2",
    "null: 1",
    "key: 'open",
    "---\na: 1",
    "<<: 1",
    "%YAML 9.9",
)
"""Lines that are no YAML, or YAML that is no config."""


def yaml_syntax(path: Path, draw: random.Random) -> str:
    lines = path.read_text().splitlines()
    added = draw.choice(YAML_LINES)
    lines.insert(draw.randrange(len(lines) + 1), added)
    path.write_text("\n".join(lines) + "\n")
    return f"line {added!r} inserted"


# CSV

CELLS = ("", "text", "-1", "nan", "inf", "1e999", "0x10", "1,5", '"', "1.5", "1e30", " ", "é", "\x00", "9" * 400)


def csv_cell(path: Path, draw: random.Random) -> str | None:
    rows = list(csv.reader(io.StringIO(path.read_text())))
    rows = [row for row in rows if row]
    if not rows:
        return None
    number = draw.randrange(len(rows))
    column, cell = draw.randrange(len(rows[number])), draw.choice(CELLS)
    kind = draw.choice(["cell", "cell", "drop cell", "add cell", "drop column", "swap columns"])
    what = f"row {number}, column {column + 1}: {kind}"
    if kind == "cell":
        rows[number][column] = cell
        what += f" {cell[:20]!r}"
    elif kind == "drop cell":
        del rows[number][column]
    elif kind == "add cell":
        rows[number].insert(column, cell)
    elif kind == "drop column":
        for row in rows:
            del row[column : column + 1]
    else:
        other = draw.randrange(len(rows[0]))
        for row in rows:
            if max(column, other) < len(row):
                row[column], row[other] = row[other], row[column]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    path.write_text(text.getvalue())
    return what


# checkpoints


class Payload:
    """An object whose pickle creates a directory when it is read, as a malicious file would run a program."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


def payload(marker: Path) -> Mutation:
    """Return the mutation that hides a :class:`Payload` in a file."""

    def mutate(path: Path, draw: random.Random) -> str | None:
        import torch

        evil = Payload(marker)
        if path.suffix == ".yaml":
            tag = draw.choice(
                ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir", "!!python/name:os.mkdir"]
            )
            path.write_text(path.read_text() + f"extra: {tag} ['{marker}']\n")
            return f"a YAML tag {tag}"
        if path.suffix == ".pictures":
            return _pictures_payload(path, evil)
        kind = draw.choice(["pickle", "legacy", "nested", "in the archive"]) if path.suffix == ".pt" else "pickle"
        if kind == "pickle":
            path.write_bytes(pickle.dumps(evil, protocol=draw.randrange(6)))
        elif kind == "legacy":
            torch.save({"model": evil}, path, _use_new_zipfile_serialization=False)
        elif kind == "nested":
            state = torch.load(path, weights_only=True)
            containers = [place for place in _places(state) if isinstance(place[0], dict)]
            container, key = draw.choice(containers)
            container[draw.choice([key, "extra"])] = evil
            torch.save(state, path)
        else:
            _replace_in_archive(path, "data.pkl", pickle.dumps(evil, protocol=2))
        return f"a malicious pickle ({kind})"

    return mutate


def _replace_in_archive(path: Path, name: str, content: bytes) -> None:
    """Replace an entry of a zip archive."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for entry, old in entries.items():
            archive.writestr(entry, content if entry.endswith(name) else old)


def _pictures_payload(path: Path, evil: Payload) -> str:
    """Put an array of objects into the index of a picture cache, with the right checksum."""
    import numpy as np

    content = path.read_bytes()
    length = int.from_bytes(content[-40:-32], "little")
    pixels, index = content[: -40 - length], content[-40 - length : -40]
    with np.load(io.BytesIO(index)) as file:
        fields = {name: file[name] for name in file.files}
    fields["kept"] = np.array([evil], dtype=object)
    new = io.BytesIO()
    np.savez(new, **fields)
    tail = len(new.getvalue()).to_bytes(8, "little") + hashlib.sha256(new.getvalue()).digest()
    path.write_bytes(pixels + new.getvalue() + tail)
    return "an array of pickled objects in the index"


def checkpoint_structure(path: Path, draw: random.Random) -> str | None:
    """Save a checkpoint again without a key, with a renamed one, or with another type in its place."""
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    places = _places(state)
    if not places:
        return None
    container, key = draw.choice([place for place in places if place[0] is state] if draw.random() < 0.5 else places)
    kind = draw.choice(["drop", "rename", "value"])
    if kind == "drop":
        del container[key]
    elif kind == "rename" and isinstance(container, dict):
        container[f"{key}x"] = container.pop(key)
    else:
        value = draw.choice([*VALUES, torch.zeros(3), torch.tensor(1)])
        container[key] = value
        kind = f"value {value!r}"
    torch.save(state, path)
    return f"saved again, {key!r}: {kind}"


def checkpoint_tensor(path: Path, draw: random.Random) -> str | None:
    """Save a checkpoint again with a tensor of another shape or type, or with numbers that are not finite."""
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    places = [(container, key) for container, key in _places(state) if isinstance(container[key], torch.Tensor)]
    if not places:
        return None
    container, key = draw.choice(places)
    value = container[key]
    changes: dict[str, Callable[[], Any]] = {
        "transposed": lambda: value.t().contiguous() if value.ndim == 2 else value.reshape(1, -1),
        "one row more": lambda: torch.cat([value, value[:1]]) if value.ndim else value.reshape(1),
        "one row less": lambda: value[1:] if value.ndim else value.reshape(1, 1),
        "empty": lambda: value.flatten()[:0],
        "scalar": lambda: torch.tensor(0.5),
        "flat": lambda: value.flatten()[None, None],
        "half": value.half,
        "int": value.long,
        "complex": lambda: value.to(torch.complex64),
        "bool": value.bool,
        "nan": lambda: torch.full(value.shape, math.nan),
        "infinite": lambda: torch.full(value.shape, math.inf),
        "a list": value.tolist,
        "sparse": value.to_sparse,
        "meta": lambda: value.to("meta"),
    }
    name = draw.choice(list(changes))
    container[key] = changes[name]()
    torch.save(state, path)
    return f"saved again, {key!r}: {name}"


# the picture cache


def cache_pixels(path: Path, draw: random.Random) -> str:
    """Change some pixels of a picture cache, whose index keeps its checksum."""
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[-40:-32], "little")
    start, end = 4096, len(content) - 40 - length
    for _ in range(draw.choice([1, 100])):
        content[draw.randrange(start, end)] ^= draw.randrange(1, 256)
    path.write_bytes(content)
    return "pixels changed"


def cache_length(path: Path, draw: random.Random) -> str:
    content = bytearray(path.read_bytes())
    content[-40:-32] = struct.pack("<Q", draw.choice([0, 1, 2**63, 2**40, len(content)]))
    path.write_bytes(content)
    return "length of the index changed"


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


BYTES: tuple[Mutation, ...] = (
    *(truncate, flip_bits, flip_bits, swap_bytes, zero_block, append_bytes, empty, delete, garbage),
)
NATURE: tuple[Mutation, ...] = (directory_instead, dangling_link, link_to_itself, pipe, link_to_zero, link_to_null)
LINES: tuple[Mutation, ...] = (duplicate_line, drop_line, swap_lines, huge_line, control_characters)
BY_SUFFIX: dict[str, tuple[Mutation, ...]] = {
    ".json": (*LINES, *[json_value] * 8, other_top_level, nested),
    ".yaml": (
        *LINES,
        *[yaml_value] * 8,
        other_top_level,
        nested,
        alias_bomb,
        recursive_alias,
        yaml_syntax,
        yaml_syntax,
    ),
    ".csv": (*LINES, *[csv_cell] * 6),
    ".log": LINES,
    ".pt": (*[checkpoint_structure] * 5, *[checkpoint_tensor] * 5),
    ".pictures": (*[cache_pixels] * 3, cache_length),
}


def mutate(path: Path, draw: random.Random, *, donors: Sequence[Path], marker: Path, keep_times: bool = False) -> str:
    """Apply a random mutation to a file, and return what it did."""
    kinds: list[Mutation] = [*BYTES, *NATURE, *BY_SUFFIX.get(path.suffix, ())]
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


def is_plain_edit(before: bytes, path: Path) -> bool:
    """Return whether a changed file is as valid as before: nobody could tell that one of its values was edited.

    The values of a JSON or YAML file may differ but not its keys, types or lengths; the numbers of a CSV file may
    differ but not its columns or its number of rows.
    """
    if not path.is_file() or path.is_symlink():
        return False
    after = path.read_bytes()
    try:
        if path.suffix == ".json":
            return _same_form(json.loads(before), json.loads(after))
        if path.suffix == ".yaml":
            return len(after) < 2 * len(before) + 1000 and _same_form(yaml.safe_load(before), yaml.safe_load(after))
        if path.suffix == ".csv":
            ours, theirs = (list(csv.reader(io.StringIO(text.decode()))) for text in (before, after))
            return (
                len(ours) == len(theirs)
                and ours[0] == theirs[0]
                and all(map(_same_cells, ours[1:], theirs[1:]))
                and after.endswith(b"\n")
            )
    except (ValueError, yaml.YAMLError, RecursionError, csv.Error, IndexError, TypeError, AttributeError):
        return False
    return path.suffix in (".log", ".png", ".jpg")


def _same_form(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same_form(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same_form, one, other))
    numbers = (int, float)
    if (
        isinstance(one, numbers)
        and isinstance(other, numbers)
        and not isinstance(one, bool)
        and not isinstance(other, bool)
    ):
        return math.isfinite(other)
    return type(one) is type(other)


def _same_cells(one: Sequence[str], other: Sequence[str]) -> bool:
    return len(one) == len(other) and all(
        a == b or (_is_finite(a) and _is_finite(b)) for a, b in zip(one, other, strict=True)
    )


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
