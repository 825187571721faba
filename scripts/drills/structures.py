"""Mutations of what a file holds: values of JSON, YAML and CSV, tensors of checkpoints, malicious pickles.

Like all mutations they take a path and random numbers and return what they did, or None if they do not apply.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

Mutation = Callable[[Path, random.Random], str | None]

NESTED = 100_000
"""Depth of nested content."""

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


def is_plain_edit(before: bytes, path: Path) -> bool:
    """Return whether a changed file is as valid as before: nobody could tell that one of its values was edited.

    The values of a JSON or YAML file may differ but not its keys, types or lengths; the numbers of a CSV file may
    differ, and a column may be missing, but not its other columns or its number of rows.
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
            kept = [index for index, name in enumerate(ours[0]) if name in theirs[0]]
            remaining = [[row[index] for index in kept] for row in ours]
            return (
                len(remaining) == len(theirs)
                and remaining[0] == theirs[0]
                and all(map(_same_cells, remaining[1:], theirs[1:]))
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
