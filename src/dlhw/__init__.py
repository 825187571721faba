"""Deep-learning coursework as experiments, described by configs, trained by one loop, saved in run directories.

This is the interface for Python; ``dlhw`` is the same on the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlhw.errors import TrainingFailed, UsageError
from dlhw.runtime import threads

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch.nn import Module

    from dlhw.data.arrays import from_arrays
    from dlhw.reading import Run, Sweep

__version__ = "0.1.0"
__all__ = [
    "TrainingFailed",
    "UsageError",
    "__version__",
    "from_arrays",
    "load_run",
    "load_sweep",
    "model",
    "run",
    "runs",
    "sweep",
]

threads.limit_spinning()  # before torch is imported; dlhw's commands import this package first

# The functions import what they need when they are called: torch and pandas take seconds.


def run(*overrides: str, config_dir: str | Path | None = None, **values: Any) -> Run | Sweep:
    """Train in this process, as ``dlhw train`` does, and return the run; the sweep if the experiment declares one.

    ``run("experiment=flooding", b=0.02)`` equals ``dlhw train experiment=flooding b=0.02``. Keys with dots are written
    as text, ``"optimizer.lr=0.1"``, or as ``**{"optimizer.lr": 0.1}``. ``config_dir`` is a folder with config files of
    your own. Raise UsageError for an invalid override, and TrainingFailed if the loss is not finite.
    """
    from dlhw import inprocess, reading

    return reading.opened(inprocess.execute(overrides, values, config_dir=config_dir, sweep=False))


def sweep(*overrides: str, config_dir: str | Path | None = None, **values: Any) -> Sweep:
    """Train one run for every combination of values, as ``dlhw train -m`` does, and return the sweep.

    The values of a key are a list: ``sweep("experiment=flooding", b=[0, 0.02], seed=range(3))``. Raise UsageError.
    """
    from dlhw import inprocess, reading

    return reading.Sweep(inprocess.execute(overrides, values, config_dir=config_dir, sweep=True))


def model(*overrides: str, shape: Sequence[int] | None = None, outputs: int | None = None, **values: Any) -> Module:
    """Return the initialized model of a config: ``model("model=cnn dataset=digits")``.

    Without the shape of a sample and the number of outputs, the dataset is loaded to find them. Raise UsageError.
    """
    from dlhw import inprocess

    return inprocess.make_model(overrides, values, shape=None if shape is None else tuple(shape), outputs=outputs)


def load_run(path: str | Path = "last") -> Run:
    """Open a run, to read its results and to apply its network; see :class:`dlhw.reading.Run`.

    A folder means the newest run in it, and ``last`` the newest in ``outputs``. Raise UsageError.
    """
    from dlhw.reading import Run
    from dlhw.runtime.paths import read_path
    from dlhw.storage.listing import chosen

    return Run(chosen(read_path(path), "run"))


def load_sweep(path: str | Path = "last") -> Sweep:
    """Open a sweep or comparison; see :class:`dlhw.reading.Sweep`.

    A folder means the newest sweep in it, and ``last`` the newest in ``outputs``. Raise UsageError.
    """
    from dlhw.reading import Sweep
    from dlhw.runtime.paths import read_path
    from dlhw.storage.listing import chosen

    return Sweep(chosen(read_path(path), "sweep"))


def runs(folder: str | Path = "outputs", *, jobs: bool = False) -> DataFrame:
    """Return one row per run and sweep below a folder, the newest first: experiment, status, results, time.

    With ``jobs``, the runs of sweeps, too. Raise UsageError if the folder does not exist.
    """
    import pandas as pd

    from dlhw.runtime.paths import read_path
    from dlhw.storage.listing import entries

    return pd.DataFrame([entry.content for entry in entries(read_path(folder), jobs=jobs)])


def __getattr__(name: str) -> Any:
    """Import :func:`dlhw.data.arrays.from_arrays` when it is first used, because torch takes seconds."""
    if name == "from_arrays":
        from dlhw.data.arrays import from_arrays

        return from_arrays
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
