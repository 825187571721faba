"""Deep-learning coursework as experiments, described by configs, trained by one loop, saved in run directories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dlhw.errors import UsageError
from dlhw.runtime import threads

if TYPE_CHECKING:
    from pandas import DataFrame

    from dlhw.reading import Run

__version__ = "0.1.0"
__all__ = ["UsageError", "__version__", "load_run", "load_sweep"]

threads.limit_spinning()  # before torch is imported; dlhw's commands import this package first


def load_run(path: str | Path) -> Run:
    """Open a run directory, to read its config, metrics, summary and model; see :class:`dlhw.reading.Run`.

    A folder of runs means the newest of them, and ``last`` the newest in ``outputs``.
    """
    from dlhw.reading import Run  # imports pandas and torch, which takes seconds
    from dlhw.runtime.paths import read_path
    from dlhw.storage.listing import chosen

    return Run(chosen(read_path(path), "run"))


def load_sweep(path: str | Path) -> DataFrame:
    """Read the table of a sweep, indexed by job; columns of numbers are numeric.

    A folder of sweeps means the newest of them, and ``last`` the newest in ``outputs``.
    """
    from dlhw.reading import read_sweep
    from dlhw.runtime.paths import read_path
    from dlhw.storage.listing import chosen

    return read_sweep(chosen(read_path(path), "sweep"))
