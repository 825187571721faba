"""Mutations of checkpoints and picture caches: tensors, keys, types, pixels, and malicious pickles in any file."""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from structures import VALUES, Mutation, places_in


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
            containers = [place for place in places_in(state) if isinstance(place[0], dict)]
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
    places = places_in(state)
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
    places = [(container, key) for container, key in places_in(state) if isinstance(container[key], torch.Tensor)]
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
