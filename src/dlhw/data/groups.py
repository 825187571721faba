"""What must not be torn apart: copies of one picture, what belongs to one thing, and parts that respect that."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dlhw.errors import UsageError
from dlhw.runtime.randomness import generator

Ints = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]

FARTHEST = 24
"""The largest distance, of 256, at which pictures can be near-identical: photos that are not each other's copies are
rarely below it."""
_SIDE = 16
_BLOCK = 4096  # hashes whose distances are computed at a time


def perceptual_hashes(pixels: Tensor) -> Bits:
    """A hash (N, 32) of 256 bits for each of the pictures (N, C, H, W) of 0..255: what is brighter than its left.

    The difference hash of N. Krawetz (2013) on 17 x 16 grey points in place of 9 x 8. Brightness, contrast, size and
    compression leave it as it is, or nearly so.
    """
    grey = pixels.to(torch.float32).mean(1, keepdim=True)
    small = interpolate(grey, (_SIDE, _SIDE + 1), mode="bilinear", antialias=True).squeeze(1).round()
    return np.packbits((small[..., 1:] > small[..., :-1]).flatten(1).numpy(), axis=1)


def near_pairs(hashes: Bits, farthest: int) -> Ints:
    """Rows (i, j, distance) of all pairs i < j whose hashes differ in ``farthest`` bits at most.

    Hashes without any bit, of pictures that are all of one colour, are near to nothing.
    """
    known = np.flatnonzero(hashes.any(1))
    signs = torch.from_numpy(np.unpackbits(hashes[known], axis=1)).to(torch.float32).mul_(2).sub_(1)
    found = [np.empty((0, 3), np.int64)]
    for start in range(0, len(known), _BLOCK):
        rows = signs[start : start + _BLOCK]
        for other in range(start, len(known), _BLOCK):
            distances = (signs.shape[1] - rows @ signs[other : other + _BLOCK].mT) / 2
            i, j = (distances <= farthest).nonzero(as_tuple=True)
            later = i + start < j + other
            i, j = i[later], j[later]
            pair = known[torch.stack((i + start, j + other), 1).numpy()]
            found.append(np.column_stack((pair, distances[i, j].long().numpy())))
    return np.concatenate(found)


def identical(digests: Bits) -> Ints:
    """For each of the rows (N, bytes) the first one that equals it."""
    _, first, which = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    return np.asarray(first[which.ravel()], np.int64)


def united(count: int, *links: Ints) -> Ints:
    """Which of the groups each of ``count`` samples is in, when linked ones (M, 2) are together; numbered from 0."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = np.concatenate([np.empty((0, 2), np.int64), *links])
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def links_of(labels: Sequence[object]) -> Ints:
    """Links (M, 2) between samples that have the same label; None is no label."""
    first: dict[object, int] = {}
    pairs = [(first.setdefault(label, i), i) for i, label in enumerate(labels) if label is not None]
    return np.array([pair for pair in pairs if pair[0] != pair[1]], np.int64).reshape(-1, 2)


def labels(names: Sequence[str], groups: str | None, *, known: Sequence[str]) -> list[str | None]:
    """What ``dataset.groups`` says that each file belongs to; None where it says nothing of it. Raises UsageError.

    ``groups`` is a regular expression, whose first group is sought in the file's name without folders, or a CSV file
    with the columns group and file. ``known`` are all files that are there, of which ``names`` are used.
    """
    if groups is None:
        return [None] * len(names)
    if groups.lower().endswith(".csv"):
        table = _read_table(Path(groups).expanduser(), known)
        return [table.get(name) for name in names]
    try:
        pattern = re.compile(groups)
    except re.error as error:
        raise UsageError(
            f"dataset.groups={groups}: no regular expression ({error}); legal is one with a group in brackets that "
            "names what must stay together, or the path of a .csv with the columns group,file"
        ) from error
    if not pattern.groups:
        raise UsageError(
            f"dataset.groups={groups}: has no group in brackets; its first one names what must stay together"
        )
    found = [pattern.search(name.rpartition("/")[2]) for name in names]
    if not any(found):
        raise UsageError(f"dataset.groups={groups}: fits none of the {len(names)} file names, such as {names[0]}")
    return [match[1] if match else None for match in found]


def _read_table(path: Path, known: Sequence[str]) -> dict[str, str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"group", "file"} <= set(rows.fieldnames or ()):
                raise UsageError(f"dataset.groups={path}: must have the columns group,file")
            table: dict[str, str] = {}
            for row in rows:
                if None in row or None in row.values():
                    raise UsageError(f"dataset.groups={path}: line {rows.line_num} has not as many cells as the first")
                group = table.setdefault(row["file"], row["group"])
                if group != row["group"]:
                    raise UsageError(f"dataset.groups={path}: {row['file']} is in {group!r} and in {row['group']!r}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"dataset.groups={path}: cannot be read ({error})") from error
    unknown = sorted(set(table) - set(known), key=str)
    if unknown:
        raise UsageError(
            f"dataset.groups={path}: names {len(unknown)} files that are not there, such as {unknown[0]}; a file is "
            f"named from the data set's folder on, such as {known[0]}"
        )
    return {name: group for name, group in table.items() if group}


def split(y: Ints, groups: Ints, shares: Mapping[str, float], *, seed: int) -> dict[str, Ints]:
    """Positions of ``y`` (n,) for each part, drawn by the seed: no group in two parts, classes alike in all.

    ``shares`` are those of the parts, which sum to 1. The largest groups come first, equally large ones in random
    order; each goes where it brings the counts of the classes nearest to their aims, in squares relative to the aim.
    A part then misses a class's aim by about one group at most, where groups are of one class.
    """
    parts = [name for name, share in shares.items() if share > 0]
    names, which = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), int(y.max()) + 1), np.int64)
    np.add.at(counts, (which, y), 1)
    aims = np.outer([shares[name] for name in parts], counts.sum(0)) + 1e-9
    order = torch.randperm(len(names), generator=generator(seed, "split")).numpy()
    order = order[np.argsort(-counts.sum(1)[order], kind="stable")]
    have, chosen = np.zeros_like(aims), np.empty(len(names), np.int64)
    for group in order:
        rise = (counts[group] * (2 * (have - aims) + counts[group]) / aims).sum(1)
        chosen[group] = rise.argmin()
        have[chosen[group]] += counts[group]
    return {name: np.flatnonzero(chosen[which] == number) for number, name in enumerate(parts)}


def torn(pairs: Ints, parts: Ints) -> Ints:
    """Those of the pairs (M, 2 or more) whose first two samples are in different parts (N,)."""
    found: Ints = pairs[parts[pairs[:, 0]] != parts[pairs[:, 1]]]
    return found


def leaked_percent(groups: Ints, parts: Ints) -> float:
    """How many of the samples that are not in part 0, that for training, are of a group that is in it, too."""
    return 100 * float(np.isin(groups[parts > 0], groups[parts == 0]).mean())
