"""Mutations of the content of text files: values of JSON, YAML and CSV.

Like all mutations they take a path and random numbers. They return what they did, or None if they do not apply.
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
from collections.abc import Callable
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
"""Values that replace others."""


def places_in(value: Any) -> list[Place]:
    """Return all places of a nested value."""
    found: list[Place] = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(items):
        found += [(value, key), *places_in(part)]
    return found


def _edit(content: Any, draw: random.Random) -> str | None:
    """Change one value of a nested one; drop, rename or add a key."""
    places = places_in(content)
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
"""Lines that are not valid YAML, or not valid in a config."""


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
