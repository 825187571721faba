"""The state of one run during training: its directory, seed, regularization, best epoch and result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dlhw.errors import TrainingFailed
from dlhw.runtime.products import Library
from dlhw.storage.checkpoint import State
from dlhw.storage.record import Record, Row
from dlhw.training.objective import Regularization
from dlhw.training.settings import Trainer


@dataclass(frozen=True)
class Result:
    """The result of a run; the weights are in ``best.pt`` and ``last.pt``."""

    monitor: str
    """The metric that selects the best epoch."""
    best: Row
    final: Row
    stopped: Literal["epochs", "patience"]

    def __str__(self) -> str:
        reason = "stopped early" if self.stopped == "patience" else "all epochs done"
        metric = self.monitor.removeprefix("val_")
        form, name = {"error_percent": ("{:.2f} %", "error"), "mse": ("{:.4g}", "mean squared error")}.get(
            metric, ("{:.4g}", metric)
        )
        val, test = (form.format(self.best.get(f"{part}_{metric}", math.nan)) for part in ("val", "test"))
        text = f"{reason}; best validation {name} {val} at epoch {self.best['epoch']}"
        return f"{text}, test {name} at this epoch {test}" if f"test_{metric}" in self.best else text


class TrainingRun:
    """A run in training, by itself or as one of K.

    Args:
        record: its directory; holds the rows of earlier epochs when the run is resumed.
        resume: the checkpoint to continue from; None starts from the beginning.
        constants: the part of a checkpoint that training does not change: shape, outputs, frozen weights.
    """

    def __init__(
        self,
        record: Record,
        *,
        seed: int,
        regularization: Regularization,
        resume: State | None = None,
        constants: State | None = None,
    ) -> None:
        self.record = record
        self.seed = seed
        self.regularization = regularization
        self.resume = resume
        self.constants = constants or {"model": {}}
        self.failure: TrainingFailed | None = None
        self.matrix_products: Library = "default"  # the training loop chooses it
        self._best: Row | None = None

    @property
    def epochs(self) -> int:
        """Number of finished epochs."""
        return len(self.record.rows)

    def best(self, trainer: Trainer) -> Row:
        """Return the row of the first epoch with the smallest monitored metric."""
        if self._best is None:
            self._best = best_row(self.record.rows, trainer.monitor)
        return self._best

    def add(self, row: Row, trainer: Trainer, *, seconds: float) -> bool:
        """Record an epoch. Return whether it is the best so far."""
        improved = not self.record.rows or row[trainer.monitor] < self.best(trainer)[trainer.monitor]
        self.record.append(row, seconds=seconds)
        if improved:
            self._best = row
        return improved

    def continues(self, trainer: Trainer) -> bool:
        """Return whether the run has another epoch to train."""
        if self.failure is not None or self.epochs >= trainer.epochs:
            return False
        rows = self.record.rows
        epochs_without_improvement = rows[-1]["epoch"] - self.best(trainer)["epoch"] if rows else 0
        return trainer.patience is None or epochs_without_improvement < trainer.patience

    def result(self, trainer: Trainer) -> Result:
        """Return the result. Raise TrainingFailed if the run failed."""
        if self.failure is not None:
            raise self.failure
        stopped: Literal["epochs", "patience"] = "epochs" if self.epochs >= trainer.epochs else "patience"
        return Result(trainer.monitor, self.best(trainer), self.record.rows[-1], stopped)


def best_row(rows: Sequence[Row], monitor: str) -> Row:
    """Return the first row with the smallest ``monitor``."""
    return min(rows, key=lambda row: row[monitor])
