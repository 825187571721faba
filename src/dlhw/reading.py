"""Reading runs and sweeps: the config, metrics, summary and model of a run, the table of a sweep."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dlhw.cli import own_code
from dlhw.cli.build import build
from dlhw.errors import UsageError
from dlhw.runtime.hints import expected_one_of
from dlhw.runtime.paths import shortened
from dlhw.storage import checkpoint, directories, stored, verification
from dlhw.storage.checkpoint import State
from dlhw.storage.identity import checkpoint_identity


class Run:
    """A run directory, finished or not; each part is read on first access.

    Raises UsageError if ``path`` is not a run directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not directories.has_config(path):
            raise UsageError(directories.explanation(path))

    def __repr__(self) -> str:
        try:
            status = self.summary.get("status", "unfinished")
        except stored.Unreadable:
            status = "unreadable"
        return f"Run({str(self.path)!r}, status={status})"

    @cached_property
    def config(self) -> DictConfig:
        """The resolved config of the run. Raises UsageError if it is invalid."""
        content = stored.read_config(self.path)
        if content is None:
            raise UsageError(directories.explanation(self.path))
        return OmegaConf.create(content)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """One row per epoch, indexed by epoch. Raises UsageError if no epoch was finished or a row is invalid."""
        rows = stored.read_metrics(self.path)
        if not rows:
            raise self._missing("metrics.csv")
        return pd.read_csv(self.path / "metrics.csv", index_col="epoch", nrows=len(rows))

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The content of ``summary.json``; empty until the run has ended. Raises UsageError if it is invalid."""
        return stored.read_summary(self.path)

    def checkpoint(self, weights: Literal["best", "last"] = "best") -> State:
        """Read ``best.pt`` or ``last.pt``. Raise UsageError if it is missing, corrupt or of another run."""
        valid = [*verification.PARTS]
        if weights not in valid:
            raise UsageError(f"weights={shortened(weights)}: invalid{expected_one_of(str(weights), valid)}")
        path = self.path / f"{weights}.pt"
        try:
            state = checkpoint.load(path)
        except FileNotFoundError as error:
            raise self._missing(path.name) from error
        verification.require_kind(path, state, weights)
        verification.require_same_run(path, state, checkpoint_identity(self.config))
        return state

    def model(self, weights: Literal["best", "last"] = "best") -> nn.Module:
        """Build the model on the CPU in evaluation mode, with the ``best`` or the ``last`` weights.

        It takes normalized inputs. The config names the class to build, so open only runs that you trust. Raise
        UsageError if the run has no such weights.
        """
        state = self.checkpoint(weights)
        config = self.config.copy()
        if "weights" in config.model:  # the weights of the run are loaded below
            config.model.weights = None
        own_code.make_importable(os.getcwd(), *stored.code_folders(self.path))
        model: nn.Module = build(config, "model", shape=tuple(state["shape"]), outputs=state["outputs"])
        model.to(torch.float64 if config.trainer.precision == "fp64" else torch.float32)
        verification.require_fits_model(self.path / f"{weights}.pt", state, model.state_dict())
        model.load_state_dict(state["model"])
        return model.eval()

    def _missing(self, name: str) -> UsageError:
        status = ": ".join(str(self.summary[key]) for key in ("status", "reason") if key in self.summary)
        return UsageError(f"{self.path}: has no {name} ({status or 'unfinished'})")


def read_sweep(path: Path) -> pd.DataFrame:
    """Read ``sweep.csv``: per job its settings, results and, if it failed, the reason. Raise UsageError."""
    if not stored.read_sweep(path):
        raise UsageError(directories.explanation(path, expected="sweep"))
    return pd.read_csv(path / "sweep.csv", index_col="job")
