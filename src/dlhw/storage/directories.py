"""What a directory is: a run, a sweep or a folder of runs, and the message if it is not what is expected."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dlhw.runtime.files import LOCK_FILE
from dlhw.runtime.paths import printable
from dlhw.storage import stored

DEBUG_FOLDER = "debug"
"""The folder of the output directory with the runs that have debug=true; they are not results."""
_MOST_LISTED = 3
_MISSING = {
    "run": "not a run directory (it has no config.yaml)",
    "sweep": "not a sweep directory (it has no sweep.csv)",
    "run or sweep": "neither a run nor a sweep (no config.yaml, multirun.yaml or sweep.csv)",
}


def has_config(path: Path) -> bool:
    """Return whether the directory has a ``config.yaml``, readable or not."""
    return os.path.lexists(path / "config.yaml")


def is_sweep(path: Path) -> bool:
    """Return whether the directory has a file of a sweep, readable or not, and is not a run itself."""
    return not has_config(path) and any(os.path.lexists(path / name) for name in ("multirun.yaml", "sweep.csv"))


def is_run_of_dlhw(path: Path) -> bool:
    """Return whether the directory has the config of a run that dlhw wrote."""
    try:
        return stored.read_config(path) is not None
    except stored.Unreadable:
        return False


def is_sweep_of_dlhw(path: Path) -> bool:
    """Return whether the directory has the overrides or the table of a sweep that dlhw wrote."""
    for read in (stored.read_multirun, stored.read_sweep):
        try:
            if read(path):
                return True
        except stored.Unreadable:
            pass
    return False


def is_run_or_damaged(path: Path) -> bool:
    """Return whether the directory is that of a run of dlhw. If it has a summary, its config may be damaged."""
    return (has_config(path) and os.path.lexists(path / "summary.json")) or is_run_of_dlhw(path)


def is_output(path: Path) -> bool:
    """Return whether the directory is that of a run, a sweep or a comparison of dlhw. Files of a run may be damaged."""
    return is_run_or_damaged(path) or is_sweep_of_dlhw(path)


def runs_in(path: Path) -> list[Path]:
    """Return the runs directly in a directory, sorted by name."""
    return [directory for directory in _subdirectories(path) if has_config(directory)]


def explanation(path: Path, *, expected: str = "run") -> str:
    """Return why the directory is not the expected run, sweep or either of them, and what to use instead."""
    if not os.path.lexists(path):
        reason = f"no such directory; expected the directory of a {expected}"
    elif not path.is_dir():
        reason = f"not a directory; expected the directory of a {expected}"
    elif has_config(path):
        sweep = f", such as {printable(path.parent)}" if is_sweep(path.parent) else ""
        reason = f"the directory of a run; expected that of a {expected}{sweep}"
    elif is_sweep(path) and expected == "run":
        reason = f"the directory of a sweep; expected one of its runs{_such_as(runs_in(path))}"
    elif is_sweep(path) and not os.path.lexists(path / "multirun.yaml"):
        reason = "a comparison of runs, not a sweep; expected a directory with multirun.yaml"
    elif is_sweep(path):
        reason = "a sweep without a finished job; resume it"
    else:
        reason = _explanation_of_others(path, expected)
    return f"{printable(path)}: {reason}"


def _explanation_of_others(path: Path, expected: str) -> str:
    """Return why a directory that is neither a run nor a sweep is not one."""
    content = {entry.name for entry in path.iterdir()} if os.access(path, os.R_OK) else set()
    if content and content <= {".hydra", "run.log", LOCK_FILE}:
        return "the run was interrupted before its first files were written; start it again without resume"
    inside = [
        directory for directory in _subdirectories(path) if is_run_of_dlhw(directory) or is_sweep_of_dlhw(directory)
    ]
    if inside:
        newest = max(inside, key=lambda directory: directory.stat().st_mtime)
        kind = "sweeps" if is_sweep(newest) else "runs"
        return f"a folder of {kind}; expected one of them; the newest is {printable(newest)}"
    return _MISSING[expected]


def _such_as(runs: Sequence[Path]) -> str:
    return f", such as {', '.join(map(printable, runs[:_MOST_LISTED]))}" if runs else ""


def _subdirectories(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir())
    except OSError:
        return []
