"""Change a file of a case's copy of the corpus, and tell what was lost afterwards."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cases import Case
from corpus import Corpus
from edits import is_plain_edit
from mutations import mutate

RESULTS = ("metrics.csv", "best.pt", "last.pt", "previous.pt", "config.yaml")
"""Files that a command that fails must not lose."""


@dataclass(frozen=True)
class Change:
    """What a case did to which file.

    Args:
        path: of the file.
        what: was done, in a few words.
        plain: whether it is as valid as before.
        marker: exists if a malicious file was executed.
        job_finished: whether the run of the file had finished, so that no command reads the file again.
        others: the other results, by path: the content of metrics.csv, nothing of the rest.
    """

    path: Path
    what: str
    plain: bool
    marker: Path
    job_finished: bool
    others: Mapping[Path, bytes]

    def lost(self) -> list[Path]:
        """Return the other results that are missing now, or that have lost rows."""
        return [
            path
            for path, rows in self.others.items()
            if not path.is_file() or (rows and not _content(path).startswith(rows))
        ]


def change_file(case: Case, path: Path, corpus: Corpus) -> Change:
    """Change a file in a random way."""
    marker = case.directory / "executed"
    if path.is_symlink():
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    before = path.read_bytes()
    pictures = path.suffix in (".png", ".bmp", ".jpg", ".pictures")
    what = mutate(path, case.draw, donors=_donors(path, case, corpus), marker=marker, keep_times=pictures)
    case.counted.append(f"of {re.sub(r'[0-9a-f]{6,}|[0-9]+', '*', path.name)}")
    finished = b"finished" in _content(path.parent / "summary.json")
    others = {
        one: one.read_bytes() if one.name == "metrics.csv" else b""
        for one in case.directory.rglob("*")
        if one.name in RESULTS and one != path and one.is_file()
    }
    return Change(path, what, is_plain_edit(before, path), marker, finished, others)


def _donors(path: Path, case: Case, corpus: Corpus) -> list[Path]:
    """Return other files of the same kind."""
    found: set[Path] = {one for one in case.directory.rglob(f"*{path.suffix}") if path.suffix and one.is_file()}
    if path.suffix == ".pt" or path.name in ("config.yaml", "metrics.csv", "timing.csv", "summary.json"):
        found = {one for one in found if path.suffix == ".pt" or one.name == path.name}
        for name in ("run", "other", "wider"):
            pattern = "*.pt" if path.suffix == ".pt" else path.name
            found |= set(corpus[name].glob(pattern))
    return sorted(found - {path})


def _content(path: Path) -> bytes:
    """Return the content of a file, or nothing if it is not a regular file."""
    return path.read_bytes() if path.is_file() and not path.is_symlink() else b""
