"""Particle swarm optimization as one of Optuna's samplers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

CONSTRICTION, ATTRACTION = 0.7298, 1.49618
"""Of the velocity, and towards the best positions of a particle and of the swarm (Clerc and Kennedy, 2002)."""
_LARGEST_STEP = 0.5  # of a particle in one dimension, as a share of its range

Positions = NDArray[np.float64]


class ParticleSwarmSampler(BaseSampler):
    """Particles that move through the unit cube, to which the distributions are mapped (Kennedy and Eberhart, 1995).

    Trial n is the position of particle n mod ``particles`` in generation n // ``particles``. In each generation

        velocity = CONSTRICTION * velocity + ATTRACTION * (r1 * (own best - position) + r2 * (best of all - position))

    with random numbers r1, r2 from [0, 1) for each dimension. A particle that would leave the cube stops at its border.
    The first generation is random, or what was enqueued.
    """

    def __init__(self, *, particles: int, seed: int) -> None:
        self._particles = particles
        self._rng = np.random.default_rng(seed)
        self._independent = RandomSampler(seed)
        self._positions = np.empty((particles, 0))
        self._velocities = np.empty((particles, 0))
        self._moved = 0  # generations whose positions are computed

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the distributions of the earlier trials; there are none in the first generation."""
        if trial.number < self._particles:
            return {}
        return optuna.search_space.intersection_search_space(study.get_trials(deepcopy=False))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the values of the trial's particle; none in the first generation."""
        generation, particle = divmod(trial.number, self._particles)
        if not search_space or generation == 0:
            return {}
        if generation > self._moved:
            self._move(study.get_trials(deepcopy=False), search_space)
            self._moved = generation
        position = self._positions[particle]
        return {name: _value(share, search_space[name]) for name, share in zip(search_space, position, strict=True)}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return a random value of a parameter, for the first generation."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def _move(self, trials: Sequence[FrozenTrial], search_space: Mapping[str, BaseDistribution]) -> None:
        """Compute the velocities and positions of the next generation from all results so far."""
        best, best_values = self._best_positions(trials, search_space)
        if not self._moved:
            first = trials[: self._particles]
            self._positions = np.array([_position(trial, search_space) for trial in first])
            self._velocities = np.zeros_like(self._positions)
        own, swarm = self._rng.random((2, *self._positions.shape))
        pull = own * (best - self._positions) + swarm * (best[np.argmin(best_values)] - self._positions)
        velocities = CONSTRICTION * self._velocities + ATTRACTION * pull
        velocities = np.clip(velocities, -_LARGEST_STEP, _LARGEST_STEP)
        positions = np.clip(self._positions + velocities, 0, 1)
        self._velocities = positions - self._positions
        self._positions = positions

    def _best_positions(
        self, trials: Sequence[FrozenTrial], search_space: Mapping[str, BaseDistribution]
    ) -> tuple[Positions, Positions]:
        """Return the best position of each particle so far and its value; infinite without a result."""
        positions, values = [], []
        for particle in range(self._particles):
            own = trials[particle :: self._particles]
            results = [(trial.value, trial.number) for trial in own if trial.state == TrialState.COMPLETE]
            value, number = min(results, default=(np.inf, own[0].number))
            positions.append(_position(trials[number], search_space))
            values.append(value)
        return np.array(positions), np.array(values)


def _position(trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]) -> Positions:
    return np.array([_share(trial.params[name], distribution) for name, distribution in search_space.items()])


def _share(value: Any, distribution: BaseDistribution) -> float:
    """Map a value to [0, 1], the inverse of :func:`_value`. Each of n discrete values has an n-th of this range."""
    if isinstance(distribution, CategoricalDistribution):
        return (distribution.choices.index(value) + 0.5) / len(distribution.choices)
    numeric = _numeric(distribution)
    low, high = _limits(numeric)
    return ((math.log(value) if numeric.log else value) - low) / (high - low) if high > low else 0.5


def _value(share: float, distribution: BaseDistribution) -> Any:
    """Map a number in [0, 1] to a value."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[min(int(share * len(distribution.choices)), len(distribution.choices) - 1)]
    numeric = _numeric(distribution)
    low, high = _limits(numeric)
    number = low + share * (high - low)
    number = math.exp(number) if numeric.log else number
    rounded = round(number) if isinstance(numeric, IntDistribution) else number
    return min(max(rounded, numeric.low), numeric.high)


def _numeric(distribution: BaseDistribution) -> FloatDistribution | IntDistribution:
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return distribution


def _limits(distribution: FloatDistribution | IntDistribution) -> tuple[float, float]:
    """Return the range of a distribution, of the logarithms if it has them; of integers with a half around."""
    margin = 0.5 if isinstance(distribution, IntDistribution) else 0.0
    low, high = distribution.low - margin, distribution.high + margin
    return (math.log(low), math.log(high)) if distribution.log else (low, high)
