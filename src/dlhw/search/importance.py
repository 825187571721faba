"""The importance of each key of a search space, by functional analysis of variance."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from dlhw.search.space import Point, Space


def importances(space: Space, points: Sequence[Point], values: Sequence[float]) -> dict[str, float]:
    """Return the share of the variance of ``values`` that each parameter explains by itself, the largest first.

    The variance is that of a random forest over the whole space (Hutter, Hoos and Leyton-Brown, 2014). The shares add
    up to 1. There is none for a space with a single parameter.
    """
    study = optuna.create_study(direction="minimize")
    study.add_trials(
        [
            create_trial(params=dict(point), distributions=space.distributions, value=value)
            for point, value in zip(points, values, strict=True)
        ]
    )
    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
