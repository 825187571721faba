"""Replay searches on a table of learning curves, which takes milliseconds per trial instead of a training.

The comparison of methods needs many repetitions of each (Eggensperger et al., HPOBench, 2021; Ying et al.,
NAS-Bench-101, 2019). A replay proposes and finds what ``hydra/sweeper=search`` would with the same seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dlhw.search.methods import Plan, Request, Step, drive, search
from dlhw.search.space import Point, Space

PointValues = tuple[tuple[str, str], ...]
"""The values of a point by key, as on the command line."""


@dataclass(frozen=True)
class Table:
    """The validation metric by epoch of every point of a finite space; shorter for runs that stopped or failed."""

    space: Space
    curves: Mapping[PointValues, Sequence[float]]
    failed: frozenset[PointValues] = frozenset()

    @cached_property
    def lowest(self) -> float:
        """The lowest metric of all points and epochs."""
        return min(min(curve) for curve in self.curves.values() if curve)

    def result(self, values: PointValues, epochs: int) -> tuple[int, float]:
        """Return the epochs that a point is trained if this number is requested, and its lowest metric.

        The metric is infinite if the run fails before.
        """
        curve = self.curves[values][:epochs]
        failed = len(curve) < epochs and values in self.failed
        return len(curve), math.inf if failed else min(curve)


@dataclass(frozen=True)
class Replay:
    """The results of a replayed search in their order, and the points of its trials."""

    steps: Sequence[Step]
    points: Sequence[Point]


def replay(plan: Plan, table: Table) -> Replay:
    """Search the space of a table. A point that was tried before costs only epochs that it does not have yet."""
    steps: list[Step] = []
    points: list[Point] = []
    epochs_of: dict[PointValues, int] = {}

    def evaluate(requests: Sequence[Request]) -> list[float]:
        """Look the requests up in the table instead of training them."""
        for request in requests:
            values = tuple(table.space.values(request.trial.point).items())
            epochs, value = table.result(values, request.epochs)
            epochs_of[values] = max(epochs_of.get(values, 0), epochs)
            steps.append(Step(sum(epochs_of.values()), request.trial.number, request.epochs, value))
            if request.trial.number == len(points):
                points.append(request.trial.point)
        return [step.value for step in steps[-len(requests) :]]

    drive(search(plan, table.space), evaluate)
    return Replay(steps, points)


def regret(replayed: Replay, table: Table, budgets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the simple regret at each budget, in epochs: the lowest metric found, less the lowest of the table.

    It is infinite before the first result.
    """
    spent = np.array([step.total_epochs for step in replayed.steps])
    lowest = np.minimum.accumulate([step.value for step in replayed.steps])
    last = np.searchsorted(spent, budgets, side="right") - 1
    return np.where(last >= 0, lowest[np.maximum(last, 0)] - table.lowest, math.inf)
