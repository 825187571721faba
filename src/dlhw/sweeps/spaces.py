"""Read the space of a search from overrides in Hydra's syntax."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import IntervalSweep, Override

from dlhw.errors import UsageError
from dlhw.runtime.bounds import LARGEST_COUNT
from dlhw.search.space import Interval, Parameter, Space, Values, listed
from dlhw.sweeps.expansion import overrides_of, parse, value_lines


@dataclass(frozen=True)
class Declaration:
    """What the overrides of a search say: its space, the seeds of every trial, and the overrides of all jobs."""

    space: Space
    seeds: tuple[str, ...]
    fixed: tuple[str, ...]


def read_space(
    declared: Mapping[str, Any], overrides: Sequence[str], *, loader: ConfigLoader | None = None
) -> Declaration:
    """Return the space of a search. Raise UsageError for invalid or contradictory overrides.

    Lists and ``range(...)`` have their values; lists of numbers are ordered. ``interval(a,b)`` has all real numbers
    from a to b, ``int(interval(a,b))`` the integers, and ``tag(log, ...)`` of either the same density in the logarithm.
    Several values of ``seed`` are not searched but used by every trial.

    Args:
        declared: values by key. A mapping has values by key that only some points read; its key is a condition such as
            ``optimizer=adam``.
        overrides: overrides of the command line, which replace those of ``declared`` with the same key.
        loader: finds the files of a ``glob(...)`` over options.
    """
    conditions = {key: value for key, value in declared.items() if isinstance(value, Mapping)}
    given = {override.key_or_group: override for override in parse(overrides, loader)}
    by_key = {override.key_or_group: override for override in _parsed(declared, conditions, loader)} | given
    for override in by_key.values():
        if override.is_hydra_override() and override.is_sweep_override():
            raise UsageError(
                f"{override.input_line}: a setting of Hydra cannot vary in a search; expected a key of the config"
            )
    seeds = _seeds(by_key.pop("seed", None), loader)
    fixed = [override for override in by_key.values() if not override.is_sweep_override()]
    parameters = [
        Parameter(override.get_key_element(), _domain(override, loader))
        for override in by_key.values()
        if override.is_sweep_override()
    ]
    parameters += _conditional(conditions, parameters, fixed, given, loader)
    if not parameters:
        raise UsageError(
            "hydra/sweeper=search: the space is empty; expected keys with several values, such as "
            "'optimizer.lr=tag(log, interval(1e-4, 1))' or model=mlp,cnn"
        )
    return Declaration(Space(parameters), seeds, tuple(str(override.input_line) for override in fixed))


def _parsed(
    values: Mapping[str, Any], conditions: Mapping[str, Any], loader: ConfigLoader | None
) -> Sequence[Override]:
    """Parse the values of keys. Raise UsageError for values that are not text or numbers."""
    for key, value in values.items():
        if isinstance(value, Mapping) and key not in conditions:
            raise UsageError(f"hydra.sweeper.space: {key}: a condition cannot be inside of another one")
        if isinstance(value, Sequence) and not isinstance(value, str):
            raise UsageError(f'hydra.sweeper.space: {key}: a list of values must be text, such as "0.1,0.2"')
    return parse(overrides_of({key: value for key, value in values.items() if key not in conditions}), loader)


def _conditional(
    conditions: Mapping[str, Mapping[str, Any]],
    parameters: Sequence[Parameter],
    fixed: Sequence[Override],
    given: Mapping[str, Override],
    loader: ConfigLoader | None,
) -> list[Parameter]:
    """Return the parameters of the conditions; without a condition if the overrides for all points meet it."""
    lists = {p.key: p.domain.texts for p in parameters if isinstance(p.domain, Values)}
    values_of_all = {override.key_or_group: str(override.value()) for override in fixed}
    result: list[Parameter] = []
    for condition, dependent in conditions.items():
        owner, _, text = condition.partition("=")
        met_by_all = values_of_all.get(owner) == text
        if not met_by_all and text not in lists.get(owner, ()):
            if owner in given:
                continue
            expected = f"expected one of {', '.join(lists[owner])}" if owner in lists else "it has no list of values"
            raise UsageError(f"hydra.sweeper.space: condition {condition}: {owner} never has this value; {expected}")
        for override in _parsed(dependent, {}, loader):
            key = override.get_key_element()
            if key in given:
                continue
            others = [other for other in (*parameters, *result) if other.key == key]
            if any(other.when is None or other.when[0] != owner for other in others):
                raise UsageError(
                    f"hydra.sweeper.space: {key} is declared for {condition} and also for other points with this "
                    "value; expected conditions on one key"
                )
            result.append(Parameter(key, _domain(override, loader), None if met_by_all else (owner, text)))
    return result


def _seeds(override: Override | None, loader: ConfigLoader | None) -> tuple[str, ...]:
    """Return an override for each seed; none without seeds."""
    if override is None:
        return ()
    if isinstance(override.value(), IntervalSweep):
        raise UsageError(f"{override.input_line}: the seeds of a trial are not searched; expected a list such as 0,1,2")
    return tuple(value_lines(override, loader))


def _domain(override: Override, loader: ConfigLoader | None) -> Interval | Values:
    value = override.value()
    line = override.input_line
    unknown = sorted(getattr(value, "tags", set()) - {"log"})
    if unknown:
        raise UsageError(f"{line}: unknown tag {unknown[0]}; expected log")
    if not isinstance(value, IntervalSweep):
        if getattr(value, "tags", None):
            raise UsageError(f"{line}: log is invalid for a list; expected tag(log, interval(a,b))")
        key = override.get_key_element()
        return listed([line.removeprefix(f"{key}=") for line in value_lines(override, loader)])
    low, high = value.start, value.end
    assert low is not None
    assert high is not None
    log = "log" in value.tags
    if not (low < high and math.isfinite(high - low)):
        raise UsageError(f"{line}: an empty or infinite interval; expected interval(a,b) with finite a < b")
    if log and low <= 0:
        raise UsageError(f"{line}: an interval with the tag log must be above 0")
    integer = isinstance(low, int) and isinstance(high, int)
    if integer and max(abs(low), abs(high)) > LARGEST_COUNT:
        raise UsageError(f"{line}: whole numbers of an interval must be at most {LARGEST_COUNT}")
    return Interval(low, high, log=log, integer=integer)
