"""The runs of a search's trials, and what their directories say about them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dlhw.search.methods import Trial
from dlhw.storage import stored


@dataclass(frozen=True)
class Outcome:
    """The validation metric of a run after each of its epochs, and whether it failed before the wanted number."""

    curve: Sequence[float]
    failed: bool

    @property
    def value(self) -> float:
        """The lowest value, which selects the best epoch; infinite if the run failed."""
        return math.inf if self.failed else min(self.curve)


@dataclass
class TrialRuns:
    """A trial, the directories of its runs, one per seed, and its results so far."""

    trial: Trial
    paths: Sequence[Path]
    rungs: list[int] = field(default_factory=list)
    """The numbers of epochs after which it was compared with others."""
    outcomes: Sequence[Outcome] = ()

    @property
    def value(self) -> float:
        """The mean of the runs' lowest validation metrics; infinite if one failed."""
        return statistics.fmean(outcome.value for outcome in self.outcomes)

    @property
    def curve(self) -> dict[int, float]:
        """The mean validation metric of the runs by epoch, as far as all have it."""
        columns = zip(*(outcome.curve for outcome in self.outcomes), strict=False)
        return {epoch: statistics.fmean(column) for epoch, column in enumerate(columns, start=1)}

    def state(self, epochs: int) -> str:
        """Return ``failed``, ``complete`` if it was trained as far as possible, up to ``epochs``, or ``stopped``."""
        if any(outcome.failed for outcome in self.outcomes):
            return "failed"
        ended_early = any(len(outcome.curve) < self.rungs[-1] for outcome in self.outcomes)  # trainer.patience
        return "complete" if self.rungs[-1] == epochs or ended_early else "stopped"


def outcome(path: Path, epochs: int, monitor: str) -> Outcome | None:
    """Return the outcome of the run in a directory after a number of epochs; None if it must be trained for it.

    A run that was interrupted when it was trained further is finished for fewer epochs. Raise Unreadable.
    """
    rows = stored.read_metrics(path) or []
    if any(monitor not in row for row in rows):
        raise stored.Unreadable(path / "metrics.csv", f"no column {monitor}", stored.RESTORE)
    curve = [row[monitor] for row in rows[:epochs]]
    if len(curve) == epochs and epochs_of_config(path) > epochs:
        return Outcome(curve, failed=False)
    summary = stored.read_summary(path)
    if summary.get("status") == "failed":
        return Outcome(curve, failed=True)
    ended = len(curve) == epochs or (curve and summary.get("stopped") == "patience")
    return Outcome(curve, failed=False) if ended and summary.get("status") == "finished" else None


def epochs_of_config(path: Path) -> int:
    """Return the number of epochs that a run was last started with; 0 without a run. Raise Unreadable."""
    content = stored.read_config(path)
    return 0 if content is None else int(content["trainer"]["epochs"])


def trained_epochs(path: Path) -> int:
    """Return the number of epochs that the run in a directory has finished. Raise Unreadable."""
    return len(stored.read_metrics(path) or [])
