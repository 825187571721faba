"""Folders of pictures as data sets: found, sorted into parts that share no photo, and what is told of them."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, FiniteFloat, PositiveInt

from dlhw.data import groups as grouping
from dlhw.data.groups import FARTHEST, Ints
from dlhw.data.normalization import Normalization
from dlhw.data.picture_cache import File, Pictures, load
from dlhw.data.pictures import files_below, is_picture, printable
from dlhw.data.tensors import Dataset, Split
from dlhw.errors import UsageError

log = logging.getLogger(__name__)

PARTS = ("train", "val", "test")
LEGAL = (
    "legal is a folder for each class (ROOT/cats/1.jpg), or train and perhaps val and test with such folders "
    "(ROOT/train/cats/1.jpg)"
)
TOLD = 20  # pictures, of those that are skipped, have a line each on the console

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Channels = Field(min_length=3, max_length=3)


@dataclass(frozen=True)
class Source:
    """Pictures known by a name: their folder in ``data_dir``, under the names it may have, and where they come from."""

    name: str
    folders: tuple[str, ...] = ()
    origin: str = ""


@dataclass
class Listing:
    """The picture files in a folder, in order of part, class and name."""

    files: list[File] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    """As the folders have them; train for all where these have no parts."""
    classes: tuple[str, ...] = ()
    published: tuple[str, ...] = ("train",)
    excluded: list[str] = field(default_factory=list)
    others: int = 0
    """Files that are no pictures by their names or kinds."""

    @property
    def names(self) -> list[str]:
        """Of all pictures that are there, the excluded ones too."""
        return [*(file.name for file in self.files), *self.excluded]


def _factory(source: Source) -> Callable[..., Dataset]:
    def factory(
        *,
        data_dir: str,
        seed: int,
        root: Annotated[str, Field(min_length=1)] | None,
        resize: PositiveInt,
        crop: PositiveInt,
        mean: Annotated[list[FiniteFloat], Channels],
        std: Annotated[list[Positive], Channels],
        validation_fraction: Annotated[float, Field(gt=0, lt=1)],
        test_fraction: Annotated[float, Field(ge=0, lt=1)],
        split: Literal["groups", "files"],
        groups: Annotated[str, Field(min_length=1)] | None,
        near_duplicates: Annotated[int, Field(ge=0, le=FARTHEST)] | None,
        exclude: list[str],
        cache_dir: Annotated[str, Field(min_length=1)] | None,
    ) -> Dataset:
        """The pictures (3, crop, crop) of 0..255 in a folder's classes; ``mean``, ``std`` of pixel / 255.

        Parts that the folder does not have are split off its training part, classes alike, so that no group is in two
        of them: pictures with the same name by ``groups``, identical ones, and those with a perceptual distance up to
        ``near_duplicates``. ``split="files"`` tears them apart, to show what that does.
        """
        if crop > resize:
            raise UsageError(f"dataset.crop={crop}: must be dataset.resize={resize} at most")
        if validation_fraction + test_fraction >= 1:
            raise UsageError(
                f"dataset.test_fraction={test_fraction}: leaves nothing to train on beside "
                f"dataset.validation_fraction={validation_fraction}"
            )
        home = Path(data_dir).expanduser()
        folder = _folder(source, root, home)
        content = _content(
            folder, exclude, resize=resize, crop=crop, cache_dir=Path(cache_dir or home / ".pictures").expanduser()
        )
        labels = grouping.labels(content.names, groups, known=content.listing.names)
        near = content.near[content.near[:, 2] <= (-1 if near_duplicates is None else near_duplicates)]
        together = grouping.united(len(content.y), grouping.links_of(labels), content.identical, near[:, :2])
        shares = {"val": validation_fraction, "test": test_fraction}
        by_file = _divided(content, np.arange(len(content.y)), shares, seed=seed)
        divided = by_file if split == "files" else _divided(content, together, shares, seed=seed)
        related = grouping.united(len(content.y), grouping.links_of(together.tolist()), content.near[:, :2])
        about = {
            **_about(content, divided, by_file),
            "groups": int(together.max()) + 1,
            "leaked_percent": grouping.leaked_percent(related, divided),
            "leaked_percent_by_file": grouping.leaked_percent(related, by_file),
        }
        _tell(source.name, tuple(_lines(about)), tuple(_warnings(about)))
        parts = {
            part: Split(content.pictures.pixels, content.targets, torch.from_numpy(np.flatnonzero(divided == number)))
            for number, part in enumerate(PARTS)
        }
        return Dataset(
            source.name,
            train=parts["train"],
            val=parts["val"],
            test=parts["test"] if len(parts["test"]) else None,
            normalize=Normalization.of_pixels(mean, std, largest=255, shape=(3, crop, crop)),
            classes=content.listing.classes,
            sha256=content.sha256,
            names=content.names,
            about=about,
        )

    factory.__name__ = factory.__qualname__ = source.name
    return factory


@dataclass(frozen=True, eq=False)
class Content:
    """What a folder holds, before it is split."""

    folder: Path
    listing: Listing
    pictures: Pictures
    names: tuple[str, ...]
    y: Ints
    parts: Ints
    """Of PARTS, where the folders have parts."""
    identical: Ints
    """Links (i, j) between identical pictures, each to the first of them."""
    near: Ints
    """Rows (i, j, distance) of near-identical pairs."""

    @functools.cached_property
    def targets(self) -> torch.Tensor:
        return torch.from_numpy(self.y)

    @functools.cached_property
    def sha256(self) -> str:
        """Of classes, pixels, labels and published parts; the pixels by their digests."""
        digest = hashlib.sha256(repr((self.listing.classes, self.listing.published)).encode())
        for array in (self.pictures.digests, self.y, self.parts):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def _content(folder: Path, exclude: Sequence[str], *, resize: int, crop: int, cache_dir: Path) -> Content:
    """The folder's pictures, decoded. Raises UsageError for a class of which there are none."""
    found = listing(folder, exclude)
    pictures = load(found.files, root=folder.absolute(), resize=resize, crop=crop, cache_dir=cache_dir)
    y = np.array(found.labels, np.int64)[pictures.kept]
    parts = np.array([PARTS.index(part) for part in found.parts], np.int64)[pictures.kept]
    for part in found.published:
        for label, name in enumerate(found.classes):
            if not ((y == label) & (parts == PARTS.index(part))).any():
                where = folder / part / name if len(found.published) > 1 else folder / name
                bad = next((f", {file}: {why}" for file, why in pictures.skipped.items() if f"{name}/" in file), "")
                raise UsageError(f"{where}: holds no picture that can be used{bad}; every class needs some")
    first = grouping.identical(pictures.digests)
    links = np.column_stack((first, np.arange(len(first))))[first != np.arange(len(first))]
    near = pictures.near[first[pictures.near[:, 0]] != first[pictures.near[:, 1]]]
    names = tuple(found.files[number].name for number in pictures.kept)
    return Content(folder, found, pictures, names, y, parts, links, near)


def _divided(content: Content, groups: Ints, shares: Mapping[str, float], *, seed: int) -> Ints:
    """Which of PARTS each picture is in: as published, and what is not is split off the training part by groups."""
    divided = content.parts.copy()
    missing = {part: share for part, share in shares.items() if share > 0 and part not in content.listing.published}
    if not missing:
        return divided
    rows = np.flatnonzero(content.parts == 0)
    y = content.y[rows]
    positions = grouping.split(y, groups[rows], {"train": 1 - sum(missing.values()), **missing}, seed=seed)
    for part, chosen in positions.items():
        divided[rows[chosen]] = PARTS.index(part)
    for part, label in itertools.product(("train", *missing), range(len(content.listing.classes))):
        if not (y[positions[part]] == label).any():
            wanting = part if part in missing else next(iter(missing))
            count, kept = (y == label).sum(), len(np.unique(groups[rows][y == label]))
            key = {"val": "validation_fraction", "test": "test_fraction"}[wanting]
            raise UsageError(
                f"dataset.{key}={shares[wanting]}: leaves no {content.listing.classes[label]} for {part}, of {count} "
                f"pictures in {kept} groups that stay together; choose another, or other dataset.groups"
            )
    return divided


def _folder(source: Source, root: str | None, data_dir: Path) -> Path:
    """The folder that holds the classes or parts. Raises UsageError with one line on where it was looked for."""
    if root is not None:
        try:
            path = Path(root).expanduser()
        except RuntimeError as error:
            raise UsageError(f"dataset.root={root}: no such user's folder") from error
        looked = [path] if path.is_absolute() else [path, data_dir / path]
    else:
        looked = [data_dir / name for name in source.folders]
    for path in looked:
        if path.is_dir():
            return path
    if not looked:
        raise UsageError(f"dataset.root=null: must be the path of a folder; {LEGAL}")
    places = " or ".join(map(str, looked))
    raise UsageError(f"dataset={source.name}: no folder {places}; {source.origin or LEGAL}")


def listing(root: Path, exclude: Sequence[str]) -> Listing:
    """The picture files in a folder's classes and parts. Raises UsageError for another layout, naming what is legal."""
    folders = _subfolders(root)
    published = [part for part in PARTS if part in folders and _subfolders(root / part)]
    extra = sorted(set(folders) - set(published))
    if published and (extra or "train" not in published):
        wrong = f"{', '.join(extra)} beside {', '.join(published)}" if extra else "no train beside the other parts"
        raise UsageError(f"{root}: holds {wrong}; {LEGAL}".replace("holds no train", "has no train"))
    found = Listing(published=tuple(published or ["train"]))
    tops = {part: root / part for part in published} or {"train": root}
    classes = {part: _subfolders(top) for part, top in tops.items()}
    for part, names in classes.items():
        if names != classes["train"]:
            other = ", ".join(sorted(set(names) ^ set(classes["train"])))
            raise UsageError(f"{root}: {part} and train must have the same classes; only one of them has {other}")
    found.classes = tuple(map(printable, classes["train"]))
    if len(found.classes) < 2:
        there = f"only the class {found.classes[0]}" if found.classes else "no folders with pictures"
        raise UsageError(f"{tops['train']}: holds {there}, two classes are needed; {LEGAL}")
    used = dict.fromkeys(exclude, False)
    for part, top in tops.items():
        for label, name in enumerate(classes["train"]):
            for path in files_below(top / name):
                relative = path.relative_to(root).as_posix()
                if not is_picture(path):
                    found.others += 1
                    continue
                shown = printable(relative)
                matching = [glob for glob in exclude if fnmatch.fnmatch(relative if "/" in glob else path.name, glob)]
                used.update(dict.fromkeys(matching, True))
                if matching:
                    found.excluded.append(shown)
                    continue
                found.files.append(File(path, shown))
                found.labels.append(label)
                found.parts.append(part)
    for glob in [glob for glob, matched in used.items() if not matched]:
        raise UsageError(f"dataset.exclude: {glob} fits no picture in {root}; legal are patterns such as copy_*.jpg")
    return found


def _subfolders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read ({error.strerror})") from error
    return sorted(name for name in names if not name.startswith((".", "__MACOSX")))


def _about(content: Content, divided: Ints, by_file: Ints) -> dict[str, Any]:
    """What a summary says of the pictures: counts, sizes, what was left out, and which are copies of each other."""
    sizes = content.pictures.sizes[np.argsort(content.pictures.sizes.prod(1), kind="stable")]
    places = {"smallest": 0, "median": len(sizes) // 2, "largest": -1}
    pairs = np.unique(np.concatenate((content.identical, content.pictures.near[:, :2])), axis=0)
    return {
        "root": str(content.folder),
        "counts": {
            part: dict(
                zip(
                    content.listing.classes,
                    np.bincount(content.y[divided == number], minlength=len(content.listing.classes)).tolist(),
                    strict=True,
                )
            )
            for number, part in enumerate(PARTS)
            if (divided == number).any()
        },
        "pixels": {name: sizes[place].tolist() for name, place in places.items()},
        "skipped": content.pictures.skipped,
        "shortened": content.pictures.notes,
        "excluded": len(content.listing.excluded),
        "not_pictures": content.listing.others,
        "identical_groups": len(np.unique(content.identical[:, 0])),
        "identical_files": len(np.unique(content.identical)),
        "near_pairs": len(content.near),
        "torn_pairs": len(grouping.torn(pairs, divided)),
        "torn_pairs_by_file": len(grouping.torn(pairs, by_file)),
    }


def _lines(about: Mapping[str, Any]) -> Iterator[str]:
    parts = ", ".join(
        f"{part} {sum(counts.values())} ({', '.join(f'{name} {count}' for name, count in counts.items())})"
        for part, counts in about["counts"].items()
    )
    sizes = ", ".join(f"{name} {width} x {height}" for name, (width, height) in about["pixels"].items())
    yield f"pictures in {about['root']}: {parts}"
    left = {"skipped": len(about["skipped"]), "excluded": about["excluded"], "no pictures": about["not_pictures"]}
    yield f"their sizes: {sizes}; files left out: " + (
        ", ".join(f"{n} {why}" for why, n in left.items() if n) or "none"
    )
    if about["identical_groups"] or about["near_pairs"]:
        yield (
            f"copies: {about['identical_groups']} groups of identical pictures with {about['identical_files']} files, "
            f"{about['near_pairs']} near-identical pairs; this split tears {about['torn_pairs']} of these pairs, "
            f"one by file {about['torn_pairs_by_file']}"
        )
    if about["leaked_percent_by_file"]:
        yield (
            f"{about['leaked_percent']:.1f} % of what is not for training has a copy, or one of its group, in it; "
            f"with a split by file {about['leaked_percent_by_file']:.1f} %"
        )
    yield from _capped([f"{name}: {note} is used" for name, note in about["shortened"].items()])


def _warnings(about: Mapping[str, Any]) -> Iterator[str]:
    yield from _capped([f"{name}: skipped, {reason}" for name, reason in about["skipped"].items()])
    if about["leaked_percent"]:
        yield (
            "pictures in training are copies of others that are not, so that results look better than they are; "
            f"dataset.split=groups dataset.near_duplicates={FARTHEST} keeps together what the folders do not part"
        )


def _capped(lines: Sequence[str]) -> list[str]:
    rest = len(lines) - TOLD
    return [*lines[:TOLD], *([f"... and {rest} more, all of them in the summary"] if rest > 0 else [])]


@functools.lru_cache(maxsize=8)  # jobs of a sweep have the same to tell
def _tell(name: str, lines: tuple[str, ...], warnings: tuple[str, ...]) -> None:
    for line in lines:
        log.info("%s: %s", name, line)
    for line in warnings:
        log.warning("%s: %s", name, line)


image_folder = _factory(Source("image_folder"))
face_mask = _factory(
    Source(
        "face_mask",
        ("face_mask",),
        "put the folders with_mask and without_mask there, which are in experiements/data of "
        "https://github.com/prajnasb/observations",
    )
)
hymenoptera = _factory(
    Source(
        "hymenoptera",
        ("hymenoptera", "hymenoptera_data"),
        "unpack https://download.pytorch.org/tutorial/hymenoptera_data.zip there",
    )
)
