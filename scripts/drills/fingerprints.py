"""Fingerprints of the results in a directory, to compare two runs bit by bit."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGING = ("seconds", "seconds_per_epoch", "command", "overrides", "git_revision", "versions", "device", "precision")
"""Keys of ``summary.json`` that differ between equal runs."""


def fingerprint(directory: Path) -> dict[str, str]:
    """Return a digest of each result below a directory: metrics, tables, tensors, summaries without times.

    Equal runs have equal fingerprints. For an unreadable file, the digest is the error.
    """
    result = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.name in ("metrics.csv", "sweep.csv") or path.parent.name in ("tables", "probes"):
            result[name] = _digest(path, lambda path: path.read_bytes())
        elif path.name in ("best.pt", "last.pt"):
            result[name] = _digest(path, _tensors)
        elif path.name == "summary.json":
            result[name] = _digest(path, _summary)
    return result


def _digest(path: Path, content: Callable[[Path], object]) -> str:
    """Return the digest of a file's content, or why it has none."""
    if not path.is_file():
        return "not a regular file"
    sha256 = hashlib.sha256()
    try:
        _update(sha256, content(path))
    except Exception as error:  # any error, because the file may be damaged in any way
        return f"{type(error).__name__}: {error}"[:100]
    return sha256.hexdigest()


def _tensors(path: Path) -> object:
    """Return the content of a checkpoint, without the config of its run, which has absolute paths."""
    import torch

    with warnings.catch_warnings(action="ignore"):
        content = torch.load(path, map_location="cpu", weights_only=True)
    return {name: value for name, value in content.items() if name != "run"} if isinstance(content, dict) else content


def _summary(path: Path) -> object:
    """Return the content of ``summary.json`` without what differs between equal runs."""
    content = json.loads(path.read_bytes())
    return {name: value for name, value in content.items() if name not in CHANGING}


def _update(sha256: Any, value: object) -> None:
    """Add a nested value to a digest, tensors with their exact bytes."""
    import torch

    if isinstance(value, torch.Tensor):
        sha256.update(f"{value.dtype}{tuple(value.shape)}".encode())
        sha256.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    elif isinstance(value, dict):
        for name, part in value.items():
            sha256.update(f"{name!r}:".encode())
            _update(sha256, part)
    elif isinstance(value, list | tuple):
        for part in value:
            _update(sha256, part)
        sha256.update(b"]")
    else:
        sha256.update(value if isinstance(value, bytes) else f"{value!r};".encode())


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Return the names of the files whose digests differ."""
    return [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]


def same_up_to_rounding(one: Path, other: Path) -> bool:
    """Return whether two tables have the same text and numbers, up to rounding."""
    with one.open(newline="") as ours, other.open(newline="") as theirs:
        rows, expected = list(csv.reader(ours)), list(csv.reader(theirs))
    return len(rows) == len(expected) and all(map(_same_cells, rows, expected))


def _same_cells(ours: list[str], theirs: list[str]) -> bool:
    def same(one: str, other: str) -> bool:
        with contextlib.suppress(ValueError):
            return one == other or math.isclose(float(one), float(other), rel_tol=1e-4, abs_tol=1e-6)
        return False

    return len(ours) == len(theirs) and all(map(same, ours, theirs))
