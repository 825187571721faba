"""Runs and sweeps in Python: their config, metrics, summary, figures and data, and the network of a run."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dlhw.applying import Evaluation, Network
from dlhw.cli import own_code
from dlhw.cli.build import build, choice
from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError
from dlhw.runtime.devices import Precision, pick_device
from dlhw.runtime.hints import expected_one_of
from dlhw.runtime.options import DeviceName
from dlhw.runtime.paths import shortened
from dlhw.storage import checkpoint, directories, stored, verification
from dlhw.storage.checkpoint import State
from dlhw.storage.identity import checkpoint_identity
from dlhw.storage.listing import entry_of
from dlhw.training.run import best_row
from dlhw.views.card import as_html, card
from dlhw.views.comparison import conclusion_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


log = logging.getLogger("dlhw")


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

        It takes normalized inputs. The config names the class to build, so open only runs that you trust; the same
        is true of :attr:`dataset`. Raise UsageError if the run has no such weights.
        """
        state = self.checkpoint(weights)
        config = self.config.copy()
        if "weights" in config.model:  # the weights of the run are loaded below
            config.model.weights = None
        self._make_importable()
        model: nn.Module = build(config, "model", shape=tuple(state["shape"]), outputs=state["outputs"])
        model.to(torch.float64 if config.trainer.precision == "fp64" else torch.float32)
        verification.require_fits_model(self.path / f"{weights}.pt", state, model.state_dict())
        model.load_state_dict(state["model"])
        return model.eval()

    @cached_property
    def rows(self) -> list[dict[str, float]]:
        """The rows of ``metrics.csv``; empty before the first epoch has ended. Raises UsageError if one is invalid."""
        return stored.read_metrics(self.path) or []

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset of the run, loaded again. Raises UsageError if it has changed since."""
        self._make_importable()
        data: Dataset = build(self.config, "dataset", data_dir=self.config.data_dir, seed=self.config.seed)
        if self.summary.get("data", {}).get("sha256") not in (None, data.sha256):
            raise UsageError(f"{self.path}: the dataset has changed since this run")
        return data

    def data(self, part: str = "val") -> tuple[Any, Any]:
        """Return the samples and labels of a part: train, val or test.

        The samples are as in the files: pixels, arrays, or a DataFrame for a table. The labels are names of classes, or
        numbers. Raise UsageError for a part that the dataset does not have.
        """
        return raw_part(self.dataset, part)

    def network(self, weights: Literal["best", "last"] = "best", *, device: DeviceName = "cpu") -> Network:
        """Return the network with what it needs to be applied to raw samples. Raise UsageError."""
        state = self.checkpoint(weights)
        if "normalize" not in state:
            raise UsageError(f"{self.path / weights}.pt: written by an earlier version of dlhw; train the run again")
        chosen, trained = pick_device(device), self.config.trainer.precision
        precision = Precision("fp32" if trained == "tf32" and chosen.type != "cuda" else trained, chosen)
        return Network.of(self.model(weights), state, precision)

    def predict(self, x: Any) -> np.ndarray[Any, Any]:
        """Return the predicted class of each raw sample by name, or the predicted number, with the best weights.

        ``x`` holds samples as :meth:`data` returns them: (N, *shape), or a DataFrame for a table. Raise UsageError.
        """
        return self._network.predict(x)

    def predict_proba(self, x: Any) -> np.ndarray[Any, Any]:
        """Return the predicted probability of each class, (N, C), with the best weights. Raise UsageError."""
        return self._network.probabilities(x)

    def evaluate(self, x: Any = None, y: Any = None, *, part: str | None = None) -> Evaluation:
        """Compare predictions with labels: of the samples ``x``, or of a part of the run's own data.

        Without arguments it is the test part, or the validation part if there is no test part. The labels ``y`` are
        names of classes, or numbers. Raise UsageError.
        """
        if x is None:
            return self.evaluate_part(self._network, part)
        if y is None or part is not None:
            raise UsageError("y: missing; expected labels" if y is None else f"part={shortened(part)}: invalid with x")
        return self._network.evaluate(x, y)

    def evaluate_part(self, network: Network, part: str | None = None) -> Evaluation:
        """Compare the predictions of a network with the labels of a part; by default as :meth:`evaluate`."""
        if part is None:
            part = "test" if "test" in self.dataset.parts else "val"
            if part == "val":
                log.warning("no test part: this is the validation part, which selects the best epoch")
        return replace(network.evaluate(*self.data(part)), part=part)

    def plot(self) -> Figure:
        """Draw the curves of loss and error, also of a run that was interrupted. Raise UsageError before epoch 1."""
        from dlhw.cli.lifecycle import curve_labels
        from dlhw.views.plots import curves_figure

        if not self.rows:
            raise self._missing("metrics.csv")
        best = best_row(self.rows, self.config.trainer.monitor)
        data_name = self.summary.get("data", {}).get("name") or choice(self.config, "dataset")
        return curves_figure(self.rows, best_epoch=int(best["epoch"]), **curve_labels(self.config, data_name))

    def _repr_html_(self) -> str:
        return as_html(card(entry_of(self.path)))

    @cached_property
    def _network(self) -> Network:
        return self.network()

    def _make_importable(self) -> None:
        own_code.make_importable(os.getcwd(), *stored.code_folders(self.path))

    def _missing(self, name: str) -> UsageError:
        status = ": ".join(str(self.summary[key]) for key in ("status", "reason") if key in self.summary)
        return UsageError(f"{self.path}: has no {name} ({status or 'unfinished'})")


def raw_part(data: Dataset, part: str) -> tuple[Any, Any]:
    """Return the raw samples and the labels of a part. Raise UsageError for a part that the dataset does not have."""
    if part not in data.parts:
        raise UsageError(f"part={shortened(part)}: not in the dataset{expected_one_of(str(part), list(data.parts))}")
    split = data.parts[part]
    x, y = split.raw_x, split.y
    if not data.classes:
        return x, y.numpy()
    indices = (y > 0).long() if y.is_floating_point() else y
    return x, np.array(data.classes, dtype=object)[indices.numpy()]


class Sweep:
    """The directory of a sweep or comparison; each part is read on first access.

    Raises UsageError if ``path`` has no table of jobs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not stored.read_sweep(path):
            raise UsageError(directories.explanation(path, expected="sweep"))

    def __repr__(self) -> str:
        return f"Sweep({str(self.path)!r}, {len(self.jobs)} jobs)"

    @cached_property
    def jobs(self) -> pd.DataFrame:
        """One row per job, indexed by its directory: settings, status, results."""
        return pd.read_csv(self.path / "sweep.csv", index_col="job")

    @cached_property
    def settings(self) -> pd.DataFrame:
        """One row per setting, the best first: means and standard deviations over seeds."""
        return pd.read_csv(self.path / "tables" / "settings.csv")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The content of ``summary.json``. Raises UsageError if it is invalid."""
        return stored.read_summary(self.path)

    @property
    def best(self) -> dict[str, Any] | None:
        """The setting with the lowest validation mean, with its results; None if there is no single one."""
        winner: dict[str, Any] | None = self.summary.get("winner")
        return winner

    @cached_property
    def runs(self) -> list[Run]:
        """The runs that have begun, in the order of ``jobs``."""
        return [Run(path) for job in self.jobs.index if directories.has_config(path := self.path / str(job))]

    def plot(self, key: str | None = None) -> Figure:
        """Draw validation and test results against a numeric key; without a key, the curves of the settings.

        Raise UsageError for a key that does not vary.
        """
        from dlhw.cli.comparisons import declared_comparison
        from dlhw.views.comparison.figures import against_of, curves_of

        conclusion = conclusion_of([run.path for run in self.runs])
        title = f"{self.summary.get('experiment', self.path.name)}: {len(self.runs)} runs compared"
        if key is None:
            return curves_of(conclusion, declared_comparison(self.runs[0].path), title=title)
        return against_of(conclusion, key, title=title)

    def _repr_html_(self) -> str:
        return as_html(card(entry_of(self.path)))


def opened(path: Path) -> Run | Sweep:
    """Return the run or the sweep at ``path``. Raise UsageError if it is neither."""
    return Sweep(path) if directories.is_sweep(path) else Run(path)
