"""Reading runs and sweeps: the config, metrics, summary and model of a run, the table of a sweep."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dlhw.cli.build import build
from dlhw.errors import UsageError
from dlhw.runs import checkpoint
from dlhw.runs.record import read_summary


class Run:
    """A run directory, finished or not; each part is read on first access.

    Raises UsageError if ``path`` is not a run directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / "config.yaml").is_file():
            raise UsageError(f"{path}: not a run directory (it has no config.yaml)")

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, status={self.summary.get('status', 'unfinished')})"

    @cached_property
    def config(self) -> DictConfig:
        """The resolved config of the run."""
        config = OmegaConf.load(self.path / "config.yaml")
        assert isinstance(config, DictConfig)
        return config

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """One row per epoch, indexed by epoch. Raises UsageError if no epoch was finished."""
        self._require("metrics.csv")
        return pd.read_csv(self.path / "metrics.csv", index_col="epoch")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The content of ``summary.json``; empty until the run has ended."""
        return read_summary(self.path)

    def model(self, weights: str = "best") -> nn.Module:
        """Build the model on the CPU in evaluation mode, with the ``best`` or the ``last`` weights.

        It takes normalized inputs. The config names the class to build, so open only runs that you trust. Raise
        UsageError if the run has no such weights.
        """
        self._require(f"{weights}.pt")
        state = checkpoint.load(self.path / f"{weights}.pt")
        config = self.config.copy()
        if "weights" in config.model:  # the weights of the run are loaded below
            config.model.weights = None
        model: nn.Module = build(config, "model", shape=tuple(state["shape"]), outputs=state["outputs"])
        model.to(next(value.dtype for value in state["model"].values() if value.is_floating_point()))
        model.load_state_dict(state["model"])
        return model.eval()

    def _require(self, name: str) -> None:
        if not (self.path / name).is_file():
            status = ": ".join(str(self.summary[key]) for key in ("status", "reason") if key in self.summary)
            raise UsageError(f"{self.path}: has no {name} ({status or 'unfinished'})")


def read_sweep(path: Path) -> pd.DataFrame:
    """Read ``sweep.csv``: per job its settings, results and, if it failed, the reason. Raise UsageError."""
    if not (path / "sweep.csv").is_file():
        raise UsageError(f"{path}: not a sweep directory (it has no sweep.csv)")
    return pd.read_csv(path / "sweep.csv", index_col="job")
