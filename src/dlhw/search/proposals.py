"""The points that a search tries: one source of points per kind of method, on Optuna's samplers.

Every source is deterministic: with the same seed, and after the same results, it proposes the same points.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import warnings
from collections.abc import Iterator, Sequence
from typing import Protocol

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import create_trial

from dlhw.errors import UsageError
from dlhw.search.particle_swarm import ParticleSwarmSampler
from dlhw.search.space import Point, Space

STARTUP = 10
"""Random points before the first one from a model of the results."""
GENERATION = 8
"""Points per generation of the genetic algorithm and of the particle swarm."""
MOST_POINTS = 100_000
"""The largest number of points of a grid."""
_SMALLEST = 1e-6  # metric whose logarithm is taken
_MOST_DRAWS = 1000  # for a point that was not proposed before
_RANDOM_SHARE = 1 / 3  # of BOHB's points


class Proposals(Protocol):
    """Proposes points; :meth:`tell` gives it the result of one of them."""

    @property
    def at_once(self) -> int | None:
        """Number of points that do not depend on each other's results; None for all of them."""

    def ask(self) -> Point | None:
        """Return the next point; None if there is no other one."""

    def tell(self, number: int, epochs: int, value: float) -> None:
        """Add the validation metric of the point with this number, from 0, after some epochs; infinite if it failed."""


class RandomPoints:
    """Independent random points, different from each other while there are any (Bergstra and Bengio, 2012)."""

    at_once: int | None = None

    def __init__(self, space: Space, seed: int) -> None:
        self._space = space
        self._study = _study(RandomSampler(seed))
        self._proposed: set[tuple[tuple[str, str], ...]] = set()

    def ask(self) -> Point | None:
        """Return a random point that was not returned before; None if none is found in a thousand draws."""
        if len(self._proposed) >= self._space.size:
            return None
        for _ in range(_MOST_DRAWS):
            point = self._study.ask(self._space.distributions).params
            values = tuple(self._space.values(point).items())
            if values not in self._proposed:
                self._proposed.add(values)
                return point
        return None

    def tell(self, number: int, epochs: int, value: float) -> None:
        """Ignore the result."""


class GridPoints:
    """The points of a grid with at most ``largest`` points, in random order.

    Intervals and ordered lists have evenly spaced values, and their numbers of values differ by 1 at most where this is
    possible. Other lists have all values, even if these are more points.
    """

    at_once: int | None = None

    def __init__(self, space: Space, seed: int, *, largest: float) -> None:
        counts = [1] * len(space.parameters)
        growing = set(range(len(counts)))
        if _grid_size(space, counts) > MOST_POINTS:
            raise UsageError(
                f"hydra.sweeper.method=grid: more than {MOST_POINTS} combinations of the lists; expected another method"
            )
        while growing:
            axis = min(growing, key=lambda index: (counts[index], index))
            finer = [count + (index == axis) for index, count in enumerate(counts)]
            size = _grid_size(space, finer)
            if counts[axis] < space.parameters[axis].domain.size and size <= min(largest, MOST_POINTS):
                counts = finer
            else:
                growing.remove(axis)
        points = _grid(space, counts)
        random.Random(seed).shuffle(points)
        self._points = iter(points)

    def ask(self) -> Point | None:
        """Return the next point of the grid; None after the last."""
        return next(self._points, None)

    def tell(self, number: int, epochs: int, value: float) -> None:
        """Ignore the result."""


def _grid_size(space: Space, counts: Sequence[int]) -> int:
    """Return the number of points of a grid, or that of combinations if it is too large to be counted."""
    size = math.prod(
        len(parameter.domain.evenly(count)) for parameter, count in zip(space.parameters, counts, strict=True)
    )
    conditional = any(parameter.when is not None for parameter in space.parameters)
    return len(_grid(space, counts)) if conditional and size <= MOST_POINTS else size


def _grid(space: Space, counts: Sequence[int]) -> list[Point]:
    """Return the points of a grid with these numbers of values for intervals and ordered lists."""
    names = [parameter.name for parameter in space.parameters]
    axes = [parameter.domain.evenly(count) for parameter, count in zip(space.parameters, counts, strict=True)]
    points: dict[tuple[tuple[str, str], ...], Point] = {}
    for combination in itertools.product(*axes):
        point = dict(zip(names, combination, strict=True))
        points.setdefault(tuple(space.values(point).items()), point)
    return list(points.values())


class SampledPoints:
    """Points from one of Optuna's samplers, which learns from the results.

    Args:
        startup: the first points come from :class:`RandomPoints`, so that searches with equal seeds share them.
        at_once: see :class:`Proposals`.
        first_alone: the sampler needs the result of the first point before it proposes others.
        logarithm: the sampler learns from the logarithm of the metric.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        sampler: BaseSampler,
        *,
        startup: int = 0,
        at_once: int | None = 1,
        first_alone: bool = False,
        logarithm: bool = False,
    ) -> None:
        self._at_once = at_once
        self._first_alone = first_alone
        self._logarithm = logarithm
        self._space = space
        self._study = _study(sampler)
        self._random = RandomPoints(space, seed)
        self._startup = startup
        self._trials: list[optuna.Trial] = []

    @property
    def at_once(self) -> int | None:
        return 1 if self._first_alone and not self._trials else self._at_once

    def ask(self) -> Point | None:
        """Return a random point during the startup, then one of the sampler. It may be equal to an earlier one."""
        if len(self._trials) < self._startup and (point := self._random.ask()) is not None:
            self._study.enqueue_trial(dict(point))
        with _quiet():
            trial = self._study.ask(self._space.distributions)
        self._trials.append(trial)
        return trial.params

    def tell(self, number: int, epochs: int, value: float) -> None:
        """Give the sampler the result of a point, whatever its number of epochs."""
        with _quiet():
            self._study.tell(self._trials[number], math.log(max(value, _SMALLEST)) if self._logarithm else value)


class BudgetedPoints:
    """Points from a tree-structured Parzen estimator of the results at one number of epochs.

    This is the largest number of epochs with enough results. A third of the points is random (BOHB; Falkner, Klein and
    Hutter, 2018).
    """

    at_once: int | None = None

    def __init__(self, space: Space, seed: int) -> None:
        self._space = space
        self._seed = seed
        self._random = RandomPoints(space, seed)
        self._points: list[Point] = []
        self._values: dict[int, dict[int, float]] = {}  # by epochs, then by number of the point

    def ask(self) -> Point | None:
        """Return a point of the model or a random one; None if all points were returned as random ones."""
        point = self._modelled() or self._random.ask()
        if point is not None:
            self._points.append(point)
        return point

    def _modelled(self) -> Point | None:
        """Return a point from the model; None if there are too few results, or if a random one is due."""
        chance = random.Random(f"{self._seed}/{len(self._points)}")
        enough = len(self._space.parameters) + 2
        epochs = max((epochs for epochs, values in self._values.items() if len(values) >= enough), default=None)
        if epochs is None or chance.random() < _RANDOM_SHARE:
            return None
        study = _study(_tpe(chance.randrange(2**32), startup=0))
        study.add_trials(
            [
                create_trial(params=dict(self._points[number]), distributions=self._space.distributions, value=value)
                for number, value in self._values[epochs].items()
            ]
        )
        with _quiet():
            return study.ask(self._space.distributions).params

    def tell(self, number: int, epochs: int, value: float) -> None:
        """Add a result to those after this number of epochs."""
        self._values.setdefault(epochs, {})[number] = value


def tpe(space: Space, seed: int) -> Proposals:
    """Return points from a tree-structured Parzen estimator (Bergstra et al., 2011)."""
    return SampledPoints(space, seed, _tpe(seed, startup=STARTUP), startup=STARTUP)


def gaussian_process(space: Space, seed: int) -> Proposals:
    """Return points with the largest expected improvement under a Gaussian process (Snoek et al., 2012).

    The process models the logarithm of the metric. Otherwise few very large values would determine its scale.
    """
    with _quiet():
        sampler = GPSampler(seed=seed, n_startup_trials=STARTUP, warn_independent_sampling=False)
    return SampledPoints(space, seed, sampler, startup=STARTUP, logarithm=True)


def quasi_random(space: Space, seed: int) -> Proposals:
    """Return points of a scrambled Sobol sequence."""
    with _quiet():
        sampler = QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
    return SampledPoints(space, seed, sampler, at_once=None)


def cma_es(space: Space, seed: int) -> Proposals:
    """Return generations of covariance matrix adaptation (Hansen and Ostermeier, 2001), of 4 + 3 ln D points.

    D is the number of intervals and ordered lists; values of other lists are random. Raise UsageError if it is below 2.
    """
    dimensions = sum(
        not isinstance(parameter.domain.distribution, CategoricalDistribution) and parameter.domain.size > 1
        for parameter in space.parameters
    )
    if dimensions < 2:
        raise UsageError(
            "hydra.sweeper.method=cmaes needs at least two keys with several numbers; expected tpe, gp or another"
        )
    generation = 4 + math.floor(3 * math.log(dimensions))
    sampler = CmaEsSampler(seed=seed, n_startup_trials=1, popsize=generation, warn_independent_sampling=False)
    return SampledPoints(space, seed, sampler, startup=1, at_once=generation, first_alone=True)


def genetic(space: Space, seed: int) -> Proposals:
    """Return generations of a genetic algorithm: selection, crossover and mutation (NSGA-II with one objective)."""
    sampler = NSGAIISampler(population_size=GENERATION, seed=seed)
    return SampledPoints(space, seed, sampler, startup=GENERATION, at_once=GENERATION)


def particle_swarm(space: Space, seed: int) -> Proposals:
    """Return the positions of a particle swarm, see :class:`ParticleSwarmSampler`."""
    sampler = ParticleSwarmSampler(particles=GENERATION, seed=seed)
    return SampledPoints(space, seed, sampler, startup=GENERATION, at_once=GENERATION)


def _tpe(seed: int, *, startup: int) -> TPESampler:
    with _quiet():
        return TPESampler(seed=seed, n_startup_trials=startup, multivariate=True)


def _study(sampler: BaseSampler) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(sampler=sampler, direction="minimize")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the warnings of Optuna about features that may change and about the infinite metric of failed trials."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Clip non-finite values")
        yield
