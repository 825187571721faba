"""List the picture files in a folder, with their classes and parts, which are given by its subfolders."""

from __future__ import annotations

import fnmatch
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dlhw.data.file_hashes import PictureFile
from dlhw.data.pictures import files_below, is_picture
from dlhw.errors import UsageError
from dlhw.runtime.paths import places_of, printable
from dlhw.storage.directories import is_output

PARTS = ("train", "val", "test")
OUTPUT_FILES = ("config.yaml", "multirun.yaml", "sweep.csv")
"""Files that the directories of runs, sweeps and comparisons have."""
LAYOUT = (
    "expected one folder per class (ROOT/cats/1.jpg), or train and optionally val and test with such folders "
    "(ROOT/train/cats/1.jpg)"
)


@dataclass(frozen=True)
class PictureFolder:
    """A dataset of picture files: its name, where in ``data_dir`` to look for it, and where to get it."""

    name: str
    folders: tuple[str, ...] = ()
    """Names that its folder may have."""
    instructions: str = ""
    """How to get the files, for the error message."""

    def locate(self, root: str | None, data_dir: Path) -> Path:
        """Return the folder with the classes or parts. Raise UsageError if it is missing."""
        candidates = places_of(Path(root), data_dir) if root is not None else [data_dir / name for name in self.folders]
        for path in candidates:
            if os.path.isdir(path):
                return path
        if not candidates:
            raise UsageError(f"dataset.root=null: must be the path of a folder; {LAYOUT}")
        setting = f"dataset={self.name}" if root is None else f"dataset.root={printable(root)}"
        places = " or ".join(printable(path.absolute()) for path in candidates)
        raise UsageError(f"{setting}: no folder {places}; {self.instructions or LAYOUT}")


@dataclass
class FolderListing:
    """The picture files in a folder, ordered by part, class and name."""

    files: list[PictureFile] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    """The part of each file; train for all files of a folder without parts."""
    classes: tuple[str, ...] = ()
    published: tuple[str, ...] = ("train",)
    """The parts that the folder has."""
    excluded: list[str] = field(default_factory=list)
    others: int = 0
    """The number of files that are not pictures, by their names or kinds."""

    @property
    def names(self) -> list[str]:
        """The names of all pictures in the folder, including the excluded ones."""
        return [*(file.name for file in self.files), *self.excluded]


def list_pictures(root: Path, exclude: Sequence[str]) -> FolderListing:
    """List the picture files in a folder, except those that match a pattern of ``exclude``.

    Raise UsageError for an unknown layout, for a pattern that matches no picture, and for the directory of a run, whose
    figures would become pictures of the dataset.
    """
    folders = _subfolders(root)
    published = [part for part in PARTS if part in folders and _subfolders(root / part)]
    extra = sorted(set(folders) - set(published))
    if published and extra:
        raise UsageError(
            f"{printable(root)}: contains {', '.join(map(printable, extra))} besides {', '.join(published)}; {LAYOUT}"
        )
    if published and "train" not in published:
        raise UsageError(f"{printable(root)}: contains no train besides {', '.join(published)}; {LAYOUT}")
    tops = {part: root / part for part in published} or {"train": root}
    names = _class_folders(root, tops)
    classes = tuple(map(printable, names))
    _require_distinct(tops["train"], classes)
    if len(classes) < 2:
        present = f"only the class {classes[0]}" if classes else "no folders with pictures"
        raise UsageError(f"{printable(tops['train'])}: contains {present}; expected at least two classes; {LAYOUT}")
    listing = FolderListing(classes=classes, published=tuple(published or ["train"]))
    unmatched = set(exclude)
    for part, top in tops.items():
        for label, name in enumerate(names):
            for path in files_below(top / name):
                relative = path.relative_to(root).as_posix()
                if not is_picture(path):
                    if path.name in OUTPUT_FILES and is_output(path.parent):
                        raise UsageError(
                            f"{printable(path.parent)}: a directory of results inside the pictures in "
                            f"{printable(root)}; move it out of this folder, so that its figures are not read as "
                            "pictures of the dataset"
                        )
                    listing.others += 1
                    continue
                matches = {glob for glob in exclude if fnmatch.fnmatch(relative if "/" in glob else path.name, glob)}
                unmatched -= matches
                if matches:
                    listing.excluded.append(printable(relative))
                    continue
                listing.files.append(PictureFile(path, printable(relative)))
                listing.labels.append(label)
                listing.parts.append(part)
    _require_distinct(root, listing.names)
    for glob in [glob for glob in exclude if glob in unmatched]:
        raise UsageError(
            f"dataset.exclude: {printable(glob)} matches no picture in {printable(root)}; expected patterns such as "
            "copy_*.jpg"
        )
    return listing


def _require_distinct(folder: Path, names: Sequence[str]) -> None:
    """Raise UsageError if two printable names are equal, as those of a file ``a<ESC>`` and a file ``a\\x1b`` are."""
    for name, count in Counter(names).items() if len(set(names)) < len(names) else ():
        if count > 1:
            raise UsageError(
                f"{printable(folder)}: {count} names are printed as {name}, because control characters are escaped; "
                "rename all but one of them"
            )


def _class_folders(root: Path, tops: dict[str, Path]) -> list[str]:
    """Return the names of the class folders, which must be the same in all parts."""
    classes = {part: _subfolders(top) for part, top in tops.items()}
    for part, names in classes.items():
        if names != classes["train"]:
            different = ", ".join(map(printable, sorted(set(names) ^ set(classes["train"]))))
            raise UsageError(
                f"{printable(root)}: {part} and train must have the same classes; only one of them has {different}"
            )
    return classes["train"]


def _subfolders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
    except OSError as error:
        raise UsageError(f"{printable(folder)}: cannot be read ({error.strerror})") from error
    return sorted(name for name in names if not name.startswith((".", "__MACOSX")))
