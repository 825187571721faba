"""Groups of pictures that belong together, such as copies of one photo, and splits that keep groups together."""

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
from dlhw.runtime.paths import printable, read_path
from dlhw.runtime.randomness import generator

Ints = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]

FARTHEST = 24
"""The largest distance, of 256 bits, between nearly identical pictures; different photos are rarely closer."""
_SIDE = 16
_BLOCK = 4096  # hashes per block of the distance matrix


def perceptual_hashes(pixels: Tensor) -> Bits:
    """Return a hash (N, 32) of 256 bits for each picture (N, C, H, W) of 0..255.

    This is the difference hash of N. Krawetz (2013), on 17 x 16 grey pixels instead of 9 x 8: a bit is 1 where a pixel
    is brighter than its left neighbour. Brightness, contrast, size and compression hardly change it.
    """
    grey = pixels.to(torch.float32).mean(1, keepdim=True)
    small = interpolate(grey, (_SIDE, _SIDE + 1), mode="bilinear", antialias=True).squeeze(1).round()
    return np.packbits((small[..., 1:] > small[..., :-1]).flatten(1).numpy(), axis=1)


def near_pairs(hashes: Bits, farthest: int) -> Ints:
    """Return rows (i, j, distance) for all pairs i < j whose hashes differ in at most ``farthest`` bits.

    Hashes of only zeros, which pictures of one colour have, are in no pair.
    """
    nonzero = np.flatnonzero(hashes.any(1))
    signs = torch.from_numpy(np.unpackbits(hashes[nonzero], axis=1)).to(torch.float32).mul_(2).sub_(1)
    pairs = [np.empty((0, 3), np.int64)]
    for start in range(0, len(nonzero), _BLOCK):
        rows = signs[start : start + _BLOCK]
        for other in range(start, len(nonzero), _BLOCK):
            distances = (signs.shape[1] - rows @ signs[other : other + _BLOCK].mT) / 2
            i, j = (distances <= farthest).nonzero(as_tuple=True)
            later = i + start < j + other
            i, j = i[later], j[later]
            indices = nonzero[torch.stack((i + start, j + other), 1).numpy()]
            pairs.append(np.column_stack((indices, distances[i, j].long().numpy())))
    return np.concatenate(pairs)


def identical(digests: Bits) -> Ints:
    """Return, for each of the rows (N, bytes), the index of the first equal row."""
    _, first, which = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    return np.asarray(first[which.ravel()], np.int64)


def connected_groups(count: int, *links: Ints) -> Ints:
    """Return the group number of each of ``count`` samples, from 0: the connected components of ``links`` (M, 2)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = np.concatenate([np.empty((0, 2), np.int64), *links])
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def links_between_equal(labels: Sequence[object]) -> Ints:
    """Return links (M, 2) between samples with the same label; None means no label."""
    first: dict[object, int] = {}
    pairs = [(first.setdefault(label, i), i) for i, label in enumerate(labels) if label is not None]
    return np.array([pair for pair in pairs if pair[0] != pair[1]], np.int64).reshape(-1, 2)


def labels(names: Sequence[str], groups: str | None, *, known: Sequence[str]) -> list[str | None]:
    """Return the label of each file's group by ``dataset.groups``; None for a file that it does not mention.

    ``groups`` is a regular expression, searched in the file's name without folders: the label is its first group. Or
    it is the path of a CSV file with the columns group and file. ``known`` are all files of the folder, ``names`` those
    that are used. Raise UsageError.
    """
    if groups is None:
        return [None] * len(names)
    if groups.lower().endswith(".csv"):
        table = _read_table(read_path(groups, key="dataset.groups"), known)
        return [table.get(name) for name in names]
    try:
        pattern = re.compile(groups)
    except re.error as error:
        raise UsageError(
            f"dataset.groups={groups}: invalid regular expression ({error}); expected one with a group in parentheses, "
            "which names the pictures that stay together, or the path of a .csv with the columns group,file"
        ) from error
    if not pattern.groups:
        raise UsageError(
            f"dataset.groups={groups}: must have a group in parentheses, which names the pictures that stay together"
        )
    matches = [pattern.search(name.rpartition("/")[2]) for name in names]
    if not any(matches):
        raise UsageError(f"dataset.groups={groups}: matches none of the {len(names)} file names, such as {names[0]}")
    return [match[1] if match else None for match in matches]


def _read_table(path: Path, known: Sequence[str]) -> dict[str, str]:
    if not path.is_file():
        raise UsageError(f"dataset.groups={printable(path)}: no such file")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"group", "file"} <= set(rows.fieldnames or ()):
                raise UsageError(f"dataset.groups={printable(path)}: must have the columns group,file")
            table: dict[str, str] = {}
            for row in rows:
                if None in row or None in row.values():
                    raise UsageError(
                        f"dataset.groups={printable(path)}: line {rows.line_num} must have as many cells as the header"
                    )
                group = table.setdefault(row["file"], row["group"])
                if group != row["group"]:
                    raise UsageError(
                        f"dataset.groups={printable(path)}: {printable(row['file'])} is in the groups "
                        f"{group!r} and {row['group']!r}; expected one group per file"
                    )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"dataset.groups={printable(path)}: cannot be read ({error})") from error
    unknown = sorted(set(table) - set(known), key=str)
    if unknown:
        raise UsageError(
            f"dataset.groups={printable(path)}: unknown files ({len(unknown)}), such as {printable(unknown[0])}; "
            f"expected paths relative to the dataset's folder, such as {known[0]}"
        )
    return {name: group for name, group in table.items() if group}


def split(y: Ints, groups: Ints, shares: Mapping[str, float], *, seed: int) -> dict[str, Ints]:
    """Split the labels ``y`` (n,) into parts that share no group, stratified by class; return positions by part.

    ``shares`` are the sizes of the parts, with sum 1. Groups are assigned one at a time, the largest first and equal
    ones in random order. Each goes to the part where it reduces the squared deviation of the class counts from their
    targets, relative to the targets, most. If every group is of one class, the count of a class misses its target by
    about one group at most.
    """
    parts = [name for name, share in shares.items() if share > 0]
    names, which = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), int(y.max()) + 1), np.int64)
    np.add.at(counts, (which, y), 1)
    targets = np.outer([shares[name] for name in parts], counts.sum(0)) + 1e-9
    order = torch.randperm(len(names), generator=generator(seed, "split")).numpy()
    order = order[np.argsort(-counts.sum(1)[order], kind="stable")]
    counted, chosen = np.zeros_like(targets), np.empty(len(names), np.int64)
    for group in order:
        rise = (counts[group] * (2 * (counted - targets) + counts[group]) / targets).sum(1)
        chosen[group] = rise.argmin()
        counted[chosen[group]] += counts[group]
    return {name: np.flatnonzero(chosen[which] == number) for number, name in enumerate(parts)}


def divided_pairs(pairs: Ints, parts: Ints) -> Ints:
    """Return the pairs (M, 2 or more) whose first two samples are in different parts; ``parts`` is (N,)."""
    divided: Ints = pairs[parts[pairs[:, 0]] != parts[pairs[:, 1]]]
    return divided


def leaked_percent(groups: Ints, parts: Ints) -> float:
    """Return the percentage of samples outside part 0 (training) whose group has a sample in it."""
    return 100 * float(np.isin(groups[parts > 0], groups[parts == 0]).mean())
