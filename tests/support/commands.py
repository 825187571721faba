"""Run the command line in a separate process or in this one, and read the files of a run."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dlhw import inprocess, train
from support.processes import FROM_OUTSIDE, Ended, Process, environment

SMALL = ("dataset=digits", "model.hidden=[8]", "trainer.device=cpu")
RUN_FILES = {
    ".hydra/config.yaml",
    ".hydra/hydra.yaml",
    ".hydra/overrides.yaml",
    "best.pt",
    "config.yaml",
    "curves.png",
    "last.pt",
    "metrics.csv",
    "run.log",
    "summary.json",
    "timing.csv",
}
"""The files in the directory of a finished run."""


def start(*overrides: str, at: Path, cold: bool = False, **env: str) -> Process:
    """Start ``python -m dlhw.train ...`` in the folder ``at``; with ``cold``, in a new Python process."""
    return Process("-m", "dlhw.train", *overrides, at=at, env=environment(**env), cold=cold)


def dlhw(*overrides: str, at: Path, main: Callable[[], None] = train.main) -> Ended:
    """Run ``dlhw ...`` in the folder ``at`` in this process, and restore the global state that it changes.

    ``main`` is that of another command.
    """
    out, err, code = io.StringIO(), io.StringIO(), 0
    with inprocess.restored(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(at)
        for name in FROM_OUTSIDE:
            patch.delenv(name, raising=False)
        patch.setattr(sys, "argv", ["dlhw", *overrides])
        torch.set_num_threads(1)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
    return Ended(code, out.getvalue(), err.getvalue())


def files(directory: Path) -> set[str]:
    """Return the paths of all files below a directory, relative to it."""
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def summary(directory: Path) -> dict[str, Any]:
    """Return the content of ``summary.json``."""
    content: dict[str, Any] = json.loads((directory / "summary.json").read_text())
    return content


def only(paths: Sequence[Path]) -> Path:
    """Return the single element of ``paths``."""
    assert len(paths) == 1
    return paths[0]
