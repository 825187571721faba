"""Read the space of a search from overrides in Hydra's syntax."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import IntervalSweep, Override

from dlhw.errors import UsageError
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
    lines = [line for key, value in declared.items() if key not in conditions for line in overrides_of({key: value})]
    by_key: dict[str, Override] = {}
    given = {override.key_or_group: override for override in parse(overrides, loader)}
    for override in (*parse(lines, loader), *given.values()):
        if override.is_hydra_override() and override.is_sweep_override():
            raise UsageError(
                f"{override.input_line}: a setting of Hydra cannot vary in a search; expected a key of the config"
            )
        by_key[override.key_or_group] = override
    seeds = _seeds(by_key.pop("seed", None), loader)
    parameters = [
        Parameter(override.get_key_element(), _domain(override, loader))
        for override in by_key.values()
        if override.is_sweep_override()
    ]
    fixed = [str(override.input_line) for override in by_key.values() if not override.is_sweep_override()]
    for condition, dependent in conditions.items():
        met = condition in fixed
        if not met and not _is_met_by_some(condition, parameters, given):
            continue
        for override in parse(overrides_of(dependent), loader):
            key = override.get_key_element()
            if key in given:
                continue
            if any(parameter.key == key and parameter.when is None for parameter in parameters):
                raise UsageError(f"hydra.sweeper.space: {key} is declared both for all points and for {condition}")
            when = None if met else condition.partition("=")[::2]
            parameters.append(Parameter(key, _domain(override, loader), when))
    if not parameters:
        raise UsageError(
            "hydra/sweeper=search: the space is empty; expected keys with several values, such as "
            "'optimizer.lr=tag(log, interval(1e-4, 1))' or model=mlp,cnn"
        )
    return Declaration(Space(parameters), seeds, tuple(fixed))


def _is_met_by_some(condition: str, parameters: Sequence[Parameter], given: Mapping[str, Override]) -> bool:
    """Return whether some points meet a condition. Raise UsageError if none does, unless ``given`` excludes it."""
    key, _, text = condition.partition("=")
    lists = {p.key: p.domain.texts for p in parameters if isinstance(p.domain, Values)}
    if text in lists.get(key, ()):
        return True
    if key in given:
        return False
    valid = ", ".join(f"{name}={value}" for name, texts in lists.items() for value in texts)
    raise UsageError(
        f"hydra.sweeper.space: no point meets the condition {condition}"
        + (f"; expected one of {valid}" if valid else "; no key has a list of values")
    )


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
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(f"{line}: an empty interval; expected interval(a,b) with finite a < b")
    if log and low <= 0:
        raise UsageError(f"{line}: an interval with the tag log must be above 0")
    return Interval(low, high, log=log, integer=isinstance(low, int) and isinstance(high, int))
