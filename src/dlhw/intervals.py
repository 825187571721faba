"""Interval estimates: a Wilson interval for a proportion, a mean with its standard error."""

from __future__ import annotations

import math
from statistics import NormalDist

from torch import Tensor

Z_95 = 1.96
"""The 0.975 quantile of the normal distribution, rounded as tables print it: the half width of a 95 % interval."""


def wilson(successes: float, trials: int, confidence: float) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion at a confidence level between 0 and 1 (Wilson 1927)."""
    return score_interval(successes, trials, NormalDist().inv_cdf((1 + confidence) / 2))


def score_interval(successes: float, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion, ``z`` standard errors to either side.

    The interval contains every proportion p with (q - p)^2 <= z^2 p (1 - p) / trials, where q = successes / trials:
    the standard error is the one at p, not the one at q. Its ends are

        (q + z^2 / (2 trials) -+ z sqrt(q (1 - q) / trials + z^2 / (4 trials^2))) / (1 + z^2 / trials)

    The lower end is exactly 0 for no successes, the upper end exactly 1 for successes only. Without trials the
    interval is 0 to 1.
    """
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    middle, whole = share + z**2 / (2 * trials), 1 + z**2 / trials
    low, high = (middle - half) / whole, (middle + half) / whole
    return (0.0 if successes == 0 else low, 1.0 if successes == trials else high)


def mean_and_standard_error(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over the last dimension of independent values, and the standard error of this mean."""
    return values.mean(-1), values.std(-1) / math.sqrt(values.shape[-1])
