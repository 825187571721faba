"""Deep-learning coursework as experiments, described by configs, trained by one loop, saved in run directories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlhw.errors import UsageError
from dlhw.runtime import threads

if TYPE_CHECKING:
    from pandas import DataFrame

    from dlhw.data.arrays import from_arrays
    from dlhw.reading import Run

__version__ = "0.1.0"
__all__ = ["UsageError", "__version__", "from_arrays", "load_run", "load_sweep"]

threads.limit_spinning()  # before torch is imported; dlhw's commands import this package first


def load_run(path: str | Path) -> Run:
    """Open a run directory, to read its config, metrics, summary and model; see :class:`dlhw.reading.Run`."""
    from dlhw.reading import Run  # imports pandas and torch, which takes seconds
    from dlhw.runtime.paths import read_path

    return Run(read_path(path))


def load_sweep(path: str | Path) -> DataFrame:
    """Read the table of a sweep, indexed by job; columns of numbers are numeric."""
    from dlhw.reading import read_sweep
    from dlhw.runtime.paths import read_path

    return read_sweep(read_path(path))


def __getattr__(name: str) -> Any:
    """Import :func:`dlhw.data.arrays.from_arrays` when it is first used, because torch takes seconds."""
    if name == "from_arrays":
        from dlhw.data.arrays import from_arrays

        return from_arrays
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
