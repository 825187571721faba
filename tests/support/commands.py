"""Run the program: in a process of its own, or in this process, and read what a run left."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.singleton import Singleton

from dlhw import train
from dlhw.cli import composition
from dlhw.runtime import progress

SMALL = ("dataset=digits", "model.hidden=[8]", "trainer.device=cpu")
LONG = (*SMALL, "trainer.epochs=8", "trainer.batch_size=1", "trainer.checkpoint_seconds=0")
RUN = {
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


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines on stderr."""
        return self.err.splitlines()


FROM_OUTSIDE = ("HYDRA_FULL_ERROR", "DLHW_DATA", "FORCE_COLOR")  # would change what the runs here do


def environment(**more: str) -> dict[str, str]:
    """One thread, so that the small models here are not slowed down."""
    return {name: value for name, value in os.environ.items() if name not in FROM_OUTSIDE} | {
        "OMP_NUM_THREADS": "1",
        **more,
    }


def start(*overrides: str, at: Path, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "dlhw.train", *overrides],
        cwd=at,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> Ended:
    out, err = process.communicate(timeout=100)
    return Ended(process.returncode, out, err)


def dlhw(*overrides: str, at: Path) -> Ended:
    """``dlhw ...`` in the folder ``at``, in this process; what it changes in the process is put back."""
    singletons, root = Singleton.get_state(), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    on_signal = {sent: signal.getsignal(sent) for sent in (signal.SIGTERM, signal.SIGINT)}
    threads = torch.get_num_threads()
    out, err, code = io.StringIO(), io.StringIO(), 0
    progress.console.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(at)
        for name in FROM_OUTSIDE:
            patch.delenv(name, raising=False)
        patch.setattr(sys, "argv", ["dlhw", *overrides])
        patch.setattr(composition.Loader, "ends_program", False)
        torch.set_num_threads(1)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                train.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        finally:
            torch.set_num_threads(threads)
            for sent, handler_before in on_signal.items():
                signal.signal(sent, handler_before)
            for handler in root.handlers:
                if handler not in handlers:
                    handler.close()
            root.handlers[:], root.level = handlers, level
            Singleton.set_state(singletons)
            progress.console.cache_clear()
    return Ended(code, out.getvalue(), err.getvalue())


def files(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def summary(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "summary.json").read_text())
    return content


def only(paths: Sequence[Path]) -> Path:
    assert len(paths) == 1
    return paths[0]
