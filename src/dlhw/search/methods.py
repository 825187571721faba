"""Methods of search: which trials to train next, and for how many epochs.

A method is a generator. It yields batches of :class:`Request`, and receives the validation metric of each after these
epochs; a failed trial has infinity. Training a trial further continues its run, so a request costs only the epochs
since the trial's last one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from dlhw.search import proposals
from dlhw.search.proposals import BudgetedPoints, GridPoints, Proposals, RandomPoints
from dlhw.search.space import Point, Space

Method = Literal[
    "random", "grid", "qmc", "tpe", "gp", "cmaes", "genetic", "pso", "halving", "hyperband", "asha", "bohb"
]
METHODS: tuple[Method, ...] = get_args(Method)
STOPPING: tuple[Method, ...] = ("halving", "hyperband", "asha", "bohb")
"""The methods that stop most trials early."""
FULL_TRIALS = 20
"""The default budget, in trials of the largest number of epochs."""


@dataclass(frozen=True)
class Trial:
    """A point of the space. ``bracket`` is the number of its bracket in Hyperband."""

    number: int
    point: Point
    bracket: int = 0


@dataclass(frozen=True)
class Request:
    """Train a trial until it has this number of epochs."""

    trial: Trial
    epochs: int


@dataclass(frozen=True)
class Step:
    """A result of a search: the validation metric of a trial after some epochs, and the epochs of all runs so far."""

    total_epochs: int
    trial: int
    epochs: int
    value: float


Search = Generator[list[Request], Sequence[float], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A method and its budget. All numbers of epochs are those of one seed.

    Args:
        epochs: the largest number of epochs of a trial.
        trials: the largest number of trials; None for as many as the budget permits.
        total_epochs: the budget; None for no limit beside ``trials``.
        min_epochs: the smallest number of epochs after which a trial may be stopped.
        eta: 1 of eta trials is trained further.
        parallel: trials that are proposed at once; None for as many as do not depend on each other's results.
    """

    method: Method
    epochs: int
    trials: int | None = None
    total_epochs: int | None = None
    min_epochs: int = 1
    eta: int = 3
    seed: int = 0
    parallel: int | None = None

    @property
    def rungs(self) -> list[int]:
        """The numbers of epochs after which trials are compared: ``epochs`` divided by powers of eta."""
        count = 1 + math.floor(math.log(self.epochs / self.min_epochs, self.eta) + 1e-9)
        return [max(self.min_epochs, round(self.epochs / self.eta**power)) for power in reversed(range(count))]


def search(plan: Plan, space: Space) -> Search:
    """Return the search of a plan: a generator of requests."""
    budget = Budget(plan, space)
    if plan.method in _ON_RUNGS:
        train, source = _ON_RUNGS[plan.method]
        return train(plan, budget, source(space, plan.seed))
    if plan.method == "grid":
        return _full_trials(plan, budget, GridPoints(space, plan.seed, largest=budget.trials))
    return _full_trials(plan, budget, _SOURCES[plan.method](space, plan.seed))


def drive(searching: Search, evaluate: Callable[[list[Request]], Sequence[float]]) -> None:
    """Run a search to its end. ``evaluate`` returns the validation metric of each request, infinite if it failed."""
    values: Sequence[float] | None = None
    while True:
        try:
            requests = searching.send(values)  # type: ignore[arg-type]
        except StopIteration:
            return
        values = evaluate(requests)


class Budget:
    """What a search may use: trials and epochs, infinite without a limit."""

    def __init__(self, plan: Plan, space: Space) -> None:
        self.trials = space.size if plan.trials is None else min(space.size, plan.trials)
        self.epochs = math.inf if plan.total_epochs is None else float(plan.total_epochs)
        whole_grid = plan.method == "grid" and math.isfinite(space.size)
        if plan.trials is None and plan.total_epochs is None and not whole_grid:
            self.epochs = FULL_TRIALS * plan.epochs
        if plan.method not in _ON_RUNGS:
            self.trials = min(self.trials, self.epochs // plan.epochs)
            self.epochs = self.trials * plan.epochs


def _propose(source: Proposals, count: float, *, first: int, bracket: int = 0) -> list[Trial]:
    """Return up to ``count`` new trials, numbered from ``first``."""
    trials: list[Trial] = []
    while len(trials) < count and (point := source.ask()) is not None:
        trials.append(Trial(first + len(trials), point, bracket))
    return trials


def _full_trials(plan: Plan, budget: Budget, source: Proposals) -> Search:
    """Train every trial for the largest number of epochs."""
    left, number = budget.trials, 0
    while left:
        at_once = plan.parallel or source.at_once or left
        trials = _propose(source, min(at_once, left), first=number)
        if not trials:
            return
        values = yield [Request(trial, plan.epochs) for trial in trials]
        for trial, value in zip(trials, values, strict=True):
            source.tell(trial.number, plan.epochs, value)
        number += len(trials)
        left -= len(trials)


def _rung_sizes(trials: int, rungs: int, eta: int) -> list[int]:
    """Return the number of trials in each rung: a fraction 1 / eta of the rung before, at least one."""
    sizes = [trials]
    while len(sizes) < rungs:
        sizes.append(max(1, sizes[-1] // eta))
    return sizes


def _cost(trials: int, rungs: Sequence[int], eta: int) -> int:
    """Return the epochs of successive halving."""
    sizes = _rung_sizes(trials, len(rungs), eta)
    return sum(size * (epochs - before) for size, epochs, before in zip(sizes, rungs, [0, *rungs], strict=False))


def _affordable(most: float, budget: float, rungs: Sequence[int], eta: int) -> int:
    """Return the largest number of trials, up to ``most``, with which successive halving stays within a budget."""
    if math.isfinite(budget):
        most = min(most, budget // rungs[0])
    low, high = 0, int(most)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _cost(middle, rungs, eta) <= budget else (low, middle - 1)
    return low


def _bracket(source: Proposals, trials: Sequence[Trial], rungs: Sequence[int], eta: int) -> Search:
    """Train all trials to the first rung, then the best of each rung to the next one."""
    for rung, size in zip(rungs, _rung_sizes(len(trials), len(rungs), eta), strict=True):
        ranked = trials[:size]
        values = yield [Request(trial, rung) for trial in ranked]
        for trial, value in zip(ranked, values, strict=True):
            source.tell(trial.number, rung, value)
        pairs = sorted(zip(values, ranked, strict=True), key=lambda pair: (pair[0], pair[1].number))
        trials = [trial for value, trial in pairs if math.isfinite(value)]
        if not trials:
            return


def _halving(plan: Plan, budget: Budget, source: Proposals) -> Search:
    """Successive halving (Jamieson and Talwalkar, 2016) with as many trials as the budget permits."""
    count = _affordable(budget.trials, budget.epochs, plan.rungs, plan.eta)
    yield from _bracket(source, _propose(source, count, first=0), plan.rungs, plan.eta)


def _hyperband(plan: Plan, budget: Budget, source: Proposals) -> Search:
    """Hyperband (Li et al., 2018): brackets of successive halving, from many short trials to few long ones.

    Bracket s begins with ceil((S + 1) / (s + 1) * eta^s) trials, where S + 1 is the number of rungs, at the rung
    epochs / eta^s. The brackets are repeated within the budget; the last one may be smaller.
    """
    rungs = plan.rungs
    left_trials, left_epochs = budget.trials, budget.epochs
    number = repeated = 0
    while True:
        for s in reversed(range(len(rungs))):
            own = rungs[len(rungs) - 1 - s :]
            wanted = math.ceil(len(rungs) / (s + 1) * plan.eta**s)
            count = _affordable(min(wanted, left_trials), left_epochs, own, plan.eta)
            trials = _propose(source, count, first=number, bracket=repeated)
            if not trials:
                return
            yield from _bracket(source, trials, own, plan.eta)
            number += len(trials)
            left_trials -= len(trials)
            left_epochs -= _cost(len(trials), own, plan.eta)
            repeated += 1


@dataclass
class _Rung:
    """The results of a rung, and the numbers of the trials that were trained further."""

    epochs: int
    values: dict[int, float] = field(default_factory=dict)
    promoted: set[int] = field(default_factory=set)

    def promotable(self, eta: int) -> int | None:
        """Return the best trial among the best 1 / eta of the rung that is not promoted yet; None without one."""
        ranked = sorted(self.values, key=lambda number: (self.values[number], number))
        best = ranked[: len(ranked) // eta]
        return next((n for n in best if n not in self.promoted and math.isfinite(self.values[n])), None)


def _asynchronous_halving(plan: Plan, budget: Budget, source: Proposals) -> Search:
    """Asynchronous successive halving (Li et al., 2020): promote a trial as soon as enough others have its epochs.

    Decisions are made after every ``parallel`` requests, so that they do not depend on the speed of processes.
    """
    rungs = [_Rung(epochs) for epochs in plan.rungs]
    trials: list[Trial] = []
    left = budget.epochs
    while True:
        batch: list[tuple[int, Request]] = []
        while len(batch) < (plan.parallel or 1):
            costs = [rung.epochs - before for rung, before in zip(rungs, [0, *plan.rungs], strict=False)]
            promotions = [(i, rung.promotable(plan.eta)) for i, rung in enumerate(rungs[:-1]) if costs[i + 1] <= left]
            index, number = max(((i, n) for i, n in promotions if n is not None), default=(-1, -1))
            if number >= 0:
                request = Request(trials[number], rungs[index + 1].epochs)
                rungs[index].promoted.add(number)
            elif len(trials) < budget.trials and costs[0] <= left and (new := _propose(source, 1, first=len(trials))):
                request = Request(new[0], rungs[0].epochs)
                trials += new
            else:
                break
            left -= costs[index + 1]
            batch.append((index + 1, request))
        if not batch:
            return
        values = yield [request for _, request in batch]
        for (index, request), value in zip(batch, values, strict=True):
            rungs[index].values[request.trial.number] = value


_SOURCES: dict[Method, Callable[[Space, int], Proposals]] = {
    "random": RandomPoints,
    "qmc": proposals.quasi_random,
    "tpe": proposals.tpe,
    "gp": proposals.gaussian_process,
    "cmaes": proposals.cma_es,
    "genetic": proposals.genetic,
    "pso": proposals.particle_swarm,
}
_ON_RUNGS: dict[Method, tuple[Callable[[Plan, Budget, Proposals], Search], Callable[[Space, int], Proposals]]] = {
    "halving": (_halving, RandomPoints),
    "hyperband": (_hyperband, RandomPoints),
    "asha": (_asynchronous_halving, RandomPoints),
    "bohb": (_hyperband, BudgetedPoints),
}
