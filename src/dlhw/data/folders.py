"""Datasets of picture files in folders: read them, split them without dividing groups, and describe them."""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, FiniteFloat

from dlhw.data import groups as grouping
from dlhw.data.folder_listing import PARTS, FolderListing, PictureFolder, list_pictures
from dlhw.data.groups import FARTHEST, Ints
from dlhw.data.normalization import Normalization
from dlhw.data.picture_cache import DecodedPictures, load
from dlhw.data.tensors import Dataset, Split
from dlhw.errors import UsageError
from dlhw.runtime.options import Fraction, FractionOrZero, PathText, Positive, Side
from dlhw.runtime.paths import is_listed_in, printable
from dlhw.storage.directories import is_output

log = logging.getLogger(__name__)

CACHE_FOLDER = ".pictures"
"""The name of the default cache folder in ``data_dir``."""
MOST_LINES = 20  # largest number of lines on the console about skipped pictures

PerChannel = Field(min_length=3, max_length=3)
NonEmpty = Annotated[str, Field(min_length=1)]
Distance = Annotated[int, Field(ge=0, le=FARTHEST)]
SplitBy = Literal["groups", "files"]


def load_folder(
    folder: PictureFolder,
    *,
    data_dir: str,
    seed: int,
    root: PathText | None,
    resize: Side,
    crop: Side,
    mean: Annotated[list[FiniteFloat], PerChannel],
    std: Annotated[list[Positive], PerChannel],
    validation_fraction: Fraction,
    test_fraction: FractionOrZero,
    split: SplitBy,
    groups: NonEmpty | None,
    near_duplicates: Distance | None,
    exclude: list[str],
    cache_dir: PathText | None,
) -> Dataset:
    """The pictures (3, crop, crop) of 0..255 in a folder's classes; ``mean`` and ``std`` are those of pixel / 255.

    Parts that the folder lacks are split off its training part, stratified by class and without splitting a group.
    A group consists of the pictures with the same label by ``groups``, of identical ones, and of those with a
    perceptual distance of at most ``near_duplicates``. ``split="files"`` ignores groups, to show the effect.
    """
    if crop > resize:
        raise UsageError(f"dataset.crop={crop}: must be at most dataset.resize={resize}")
    if validation_fraction + test_fraction >= 1:
        raise UsageError(
            f"dataset.test_fraction={test_fraction}: leaves nothing for training in addition to "
            f"dataset.validation_fraction={validation_fraction}"
        )
    home = Path(data_dir)
    located = folder.locate(root, home)
    _require_cache_outside(located, cache_dir, home)
    content = _read(
        located, exclude, resize=resize, crop=crop, cache_dir=Path(cache_dir) if cache_dir else home / CACHE_FOLDER
    )
    labels = grouping.labels(content.names, groups, known=content.listing.names)
    farthest = -1 if near_duplicates is None else near_duplicates
    near = content.near[content.near[:, 2] <= farthest]
    connected = grouping.connected_groups(
        len(content.y), grouping.links_between_equal(labels), content.identical, near[:, :2]
    )
    fractions = {"val": validation_fraction, "test": test_fraction}
    by_file = _assign_parts(content, np.arange(len(content.y)), fractions, seed=seed)
    parts = by_file if split == "files" else _assign_parts(content, connected, fractions, seed=seed)
    related = grouping.connected_groups(
        len(content.y), grouping.links_between_equal(connected.tolist()), content.near[:, :2]
    )
    about = {
        **_about(content, parts, by_file),
        "groups": int(connected.max()) + 1,
        "leaked_percent": grouping.leaked_percent(related, parts),
        "leaked_percent_by_file": grouping.leaked_percent(related, by_file),
    }
    _log_once(folder.name, tuple(_description(about)), tuple(_warnings(about)))
    splits = {
        part: Split(content.pictures.pixels, content.targets, torch.from_numpy(np.flatnonzero(parts == number)))
        for number, part in enumerate(PARTS)
    }
    return Dataset(
        folder.name,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"] if len(splits["test"]) else None,
        normalize=Normalization.of_pixels(mean, std, largest=255, shape=(3, crop, crop)),
        classes=content.listing.classes,
        sha256=content.sha256,
        names=content.names,
        about=about,
    )


def _require_cache_outside(folder: Path, cache_dir: str | None, data_dir: Path) -> None:
    """Raise UsageError if the cache would be in a run, or among the pictures, where it would become a class."""
    setting = f"dataset.cache_dir={printable(cache_dir)}" if cache_dir else f"data_dir={printable(data_dir)}"
    if is_output(place := Path(cache_dir) if cache_dir else data_dir / CACHE_FOLDER):
        raise UsageError(f"{setting}: the directory of a run or sweep; choose another folder")
    if is_listed_in(place, folder):
        raise UsageError(
            f"{setting}: inside the pictures in {printable(folder)}, where each folder is a class; choose a folder "
            "outside of it"
        )


@dataclass(frozen=True, eq=False)
class FolderContent:
    """The pictures of a folder, decoded, before they are divided into parts."""

    folder: Path
    listing: FolderListing
    pictures: DecodedPictures
    names: tuple[str, ...]
    y: Ints
    parts: Ints
    """Indices into PARTS, as the folder gives them."""
    identical: Ints
    """Links (i, j) from the first of some identical pictures to each of the others."""
    near: Ints
    """Rows (i, j, distance) for pairs of nearly identical pictures."""

    @functools.cached_property
    def targets(self) -> torch.Tensor:
        return torch.from_numpy(self.y)

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of the classes, the pixels (by their own digests), the labels and the published parts."""
        digest = hashlib.sha256(repr((self.listing.classes, self.listing.published)).encode())
        for array in (self.pictures.digests, self.y, self.parts):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def _read(folder: Path, exclude: Sequence[str], *, resize: int, crop: int, cache_dir: Path) -> FolderContent:
    """Decode the folder's pictures. Raise UsageError for a class without pictures."""
    listing = list_pictures(folder, exclude)
    pictures = load(listing.files, root=folder.absolute(), resize=resize, crop=crop, cache_dir=cache_dir)
    y = np.array(listing.labels, np.int64)[pictures.kept]
    parts = np.array([PARTS.index(part) for part in listing.parts], np.int64)[pictures.kept]
    for part in listing.published:
        for label, name in enumerate(listing.classes):
            if not ((y == label) & (parts == PARTS.index(part))).any():
                where = folder / part / name if len(listing.published) > 1 else folder / name
                reason = next(
                    (f" ({file}: {error})" for file, error in pictures.skipped.items() if f"{name}/" in file), ""
                )
                raise UsageError(
                    f"{where}: contains no readable picture{reason}; expected at least one for every class"
                )
    first = grouping.identical(pictures.digests)
    links = np.column_stack((first, np.arange(len(first))))[first != np.arange(len(first))]
    near = pictures.near[first[pictures.near[:, 0]] != first[pictures.near[:, 1]]]
    names = tuple(listing.files[number].name for number in pictures.kept)
    return FolderContent(folder, listing, pictures, names, y, parts, links, near)


def _assign_parts(content: FolderContent, groups: Ints, fractions: Mapping[str, float], *, seed: int) -> Ints:
    """Return the part of each picture; missing parts are split off the published training part by groups."""
    assigned = content.parts.copy()
    published = content.listing.published
    missing = {part: share for part, share in fractions.items() if share > 0 and part not in published}
    if not missing:
        return assigned
    rows = np.flatnonzero(content.parts == 0)
    y = content.y[rows]
    shares = {"train": 1 - sum(missing.values()), **missing}
    positions = grouping.split(y, groups[rows], shares, seed=seed)
    for part, chosen in positions.items():
        assigned[rows[chosen]] = PARTS.index(part)
    for part, label in itertools.product(shares, range(len(content.listing.classes))):
        if not (y[positions[part]] == label).any():
            reduced = part if part in missing else next(iter(missing))
            pictures, group_count = (y == label).sum(), len(np.unique(groups[rows][y == label]))
            key = {"val": "validation_fraction", "test": "test_fraction"}[reduced]
            raise UsageError(
                f"dataset.{key}={fractions[reduced]}: leaves no {content.listing.classes[label]} for {part}; the class "
                f"has {_count(pictures, 'picture')} in {_count(group_count, 'group')}, and groups stay together; "
                f"change dataset.{key} or dataset.groups"
            )
    return assigned


def _about(content: FolderContent, parts: Ints, by_file: Ints) -> dict[str, Any]:
    """Return the summary's entries about the pictures: counts, sizes, omitted files, and copies of each other."""
    sizes = content.pictures.sizes[np.argsort(content.pictures.sizes.prod(1), kind="stable")]
    places = {"smallest": 0, "median": len(sizes) // 2, "largest": -1}
    pairs = np.unique(np.concatenate((content.identical, content.pictures.near[:, :2])), axis=0)
    return {
        "root": printable(content.folder),
        "counts": {
            part: dict(
                zip(
                    content.listing.classes,
                    np.bincount(content.y[parts == number], minlength=len(content.listing.classes)).tolist(),
                    strict=True,
                )
            )
            for number, part in enumerate(PARTS)
            if (parts == number).any()
        },
        "pixels": {name: sizes[place].tolist() for name, place in places.items()},
        "skipped": content.pictures.skipped,
        "shortened": content.pictures.notes,
        "excluded": len(content.listing.excluded),
        "not_pictures": content.listing.others,
        "identical_groups": len(np.unique(content.identical[:, 0])),
        "identical_files": len(np.unique(content.identical)),
        "near_pairs": len(content.near),
        "torn_pairs": len(grouping.divided_pairs(pairs, parts)),
        "torn_pairs_by_file": len(grouping.divided_pairs(pairs, by_file)),
    }


def _description(about: Mapping[str, Any]) -> Iterator[str]:
    """Yield log lines about the pictures and the split."""
    parts = ", ".join(
        f"{part} {sum(counts.values())} ({', '.join(f'{name} {count}' for name, count in counts.items())})"
        for part, counts in about["counts"].items()
    )
    sizes = ", ".join(f"{name} {width} x {height}" for name, (width, height) in about["pixels"].items())
    yield f"pictures in {about['root']}: {parts}"
    omitted = {"skipped": len(about["skipped"]), "excluded": about["excluded"], "not pictures": about["not_pictures"]}
    yield f"sizes: {sizes}; omitted files: " + (", ".join(f"{n} {why}" for why, n in omitted.items() if n) or "none")
    if about["identical_groups"] or about["near_pairs"]:
        yield (
            f"copies: {_count(about['identical_groups'], 'group')} of identical pictures "
            f"({_count(about['identical_files'], 'file')}), {_count(about['near_pairs'], 'nearly identical pair')}; "
            f"pairs divided between parts: {about['torn_pairs']}, with a split by file {about['torn_pairs_by_file']}"
        )
    if about["leaked_percent_by_file"]:
        yield (
            f"leakage: {about['leaked_percent']:.1f} % of the validation and test pictures have a copy, or a picture "
            f"of the same group, in training; with a split by file {about['leaked_percent_by_file']:.1f} %"
        )
    yield from _shortened([f"{name}: uses {note}" for name, note in about["shortened"].items()])


def _warnings(about: Mapping[str, Any]) -> Iterator[str]:
    yield from _shortened([f"{name}: skipped, {reason}" for name, reason in about["skipped"].items()])
    if about["leaked_percent"]:
        yield (
            "some validation or test pictures are copies of training pictures, so the measured errors are too low; "
            f"dataset.split=groups dataset.near_duplicates={FARTHEST} keeps copies in one part, except where the "
            "folder itself divides them"
        )


def _shortened(lines: Sequence[str]) -> list[str]:
    rest = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], *([f"... and {rest} more; the summary lists all of them"] if rest > 0 else [])]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@functools.lru_cache(maxsize=8)  # the jobs of a sweep have the same lines
def _log_once(name: str, lines: tuple[str, ...], warnings: tuple[str, ...]) -> None:
    for line in lines:
        log.info("%s: %s", name, line)
    for line in warnings:
        log.warning("%s: %s", name, line)


image_folder = functools.partial(load_folder, PictureFolder("image_folder"))
"""A folder with one subfolder per class."""
face_mask = functools.partial(
    load_folder,
    PictureFolder(
        "face_mask",
        ("face_mask",),
        "put the folders with_mask and without_mask there, from experiements/data of "
        "https://github.com/prajnasb/observations",
    ),
)
"""Faces with and without a mask drawn onto the photo."""
hymenoptera = functools.partial(
    load_folder,
    PictureFolder(
        "hymenoptera",
        ("hymenoptera", "hymenoptera_data"),
        "unpack https://download.pytorch.org/tutorial/hymenoptera_data.zip there",
    ),
)
"""Ants and bees, from PyTorch's tutorial on transfer learning."""
