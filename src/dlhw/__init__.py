"""Deep-learning coursework as experiments: configs describe them, one loop trains them, runs keep the answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dlhw.errors import UsageError

if TYPE_CHECKING:
    from pandas import DataFrame

    from dlhw.reading import Run

__version__ = "0.1.0"
__all__ = ["UsageError", "load_run", "load_sweep"]


def load_run(path: str | Path) -> Run:
    """Open a run directory for reading: config, metrics, summary, model. See :class:`dlhw.reading.Run`."""
    from dlhw.reading import Run  # pandas and torch are paid for only by those who read runs

    return Run(Path(path).expanduser())


def load_sweep(path: str | Path) -> DataFrame:
    """A sweep's jobs as a table with numbers where they are numbers, indexed by job."""
    from dlhw.reading import read_sweep

    return read_sweep(Path(path).expanduser())
