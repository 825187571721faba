"""The expansion of a grid: the overrides and the label of every combination of values."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, QuotedString, RangeSweep, Sweep, Transformer
from hydra.errors import HydraException

from dlhw.cli.composition import quoted
from dlhw.errors import UsageError
from dlhw.storage.identity import MAY_DIFFER, is_among
from dlhw.storage.record import directory_name

MOST_JOBS = 100_000
"""The largest number of jobs in a sweep; composing them takes minutes."""

UnreadParams = Callable[[Sequence[str]], frozenset[str]]


@dataclass(frozen=True)
class Plan:
    """The overrides of a job and the name of its directory."""

    overrides: tuple[str, ...]
    label: str


def expand(
    params: Sequence[str],
    overrides: Sequence[str],
    *,
    loader: ConfigLoader | None = None,
    unread_params: UnreadParams | None = None,
    one_at_a_time: Collection[str] = (),
) -> list[Plan]:
    """Return every combination of the overrides' values, without duplicates; the last override varies fastest.

    Numbers are compared as numbers, and the first spelling is kept. A range excludes its stop and has no rounding
    errors: ``range(0,0.2,0.01)`` has 20 values, with at most 12 digits. A job's label contains the keys that have
    several values, here or in ``params``.

    Args:
        params: overrides of the experiment.
        overrides: overrides of the command line, which replace those of ``params`` with the same key.
        loader: finds the files of a ``glob(...)`` over options.
        unread_params: the keys of ``params`` that a job with these overrides does not read; its plan omits them.
        one_at_a_time: keys that are not combined with each other. For each combination of the other keys, the first job
            sets none of them, and each of the others one; unset keys have the values in the config.

    Raise UsageError for invalid values.
    """
    axes: dict[str, tuple[Override, bool]] = {}  # for each key, its override and whether it has several values
    from_params = set()
    for override in parse(params, loader):
        if override.is_hydra_override():
            raise UsageError(
                f"{override.input_line}: a setting of Hydra cannot vary in a sweep; expected a key of the config"
            )
        axes[override.key_or_group] = (override, override.is_sweep_override())
        from_params.add(override.key_or_group)
    for override in parse(overrides, loader):
        name = override.key_or_group
        name = name if name in axes else override.get_key_element()
        axes[name] = (override, override.is_sweep_override() or (name in axes and axes[name][1]))
        from_params.discard(name)
    values = {name: value_lines(override, loader) for name, (override, _) in axes.items()}
    alone = [
        name
        for name, (override, _) in axes.items()
        if name in one_at_a_time and (name in from_params or override.is_sweep_override())
    ]
    changes: list[dict[str, str]] = [{}, *({name: line} for name in alone for line in values[name])]
    combined = {name: lines for name, lines in values.items() if name not in alone}
    jobs = math.prod(map(len, combined.values())) * len(changes)
    if jobs > MOST_JOBS:
        raise UsageError(f"{' '.join(_lines_with_several(axes))}: {jobs} jobs; expected at most {MOST_JOBS}")
    varies = [has_several or name in alone for name, (_, has_several) in axes.items()]
    plans: dict[tuple[str, ...], str] = {}
    for combination, change in itertools.product(itertools.product(*combined.values()), changes):
        chosen = dict(zip(combined, combination, strict=True)) | change
        lines = {name: chosen[name] for name in axes if name in chosen}
        if unread_params is not None and from_params:
            unread = unread_params([line for name, line in lines.items() if name not in from_params]) & from_params
            lines = {name: line for name, line in lines.items() if name not in unread}
        labelled = [lines[name] for name, is_varied in zip(axes, varies, strict=True) if is_varied and name in lines]
        labelled = labelled or [line for name, line in lines.items() if not is_among(name, MAY_DIFFER)]
        plans.setdefault(tuple(lines.values()), directory_name(labelled))
    return [Plan(lines, name) for lines, name in plans.items()]


def overrides_of(values: Mapping[str, Any]) -> list[str]:
    """Return the overrides of the command line with these values; null removes a key."""
    return [quoted(f"{name}={value}") for name, value in values.items() if value is not None]


def parse(lines: Sequence[str], loader: ConfigLoader | None) -> list[Override]:
    parsed = []
    for line in lines:
        try:
            parsed += OverridesParser.create(config_loader=loader).parse_overrides([line])
        except HydraException as error:
            raise UsageError(f"{line}: invalid values of a sweep; expected a list such as 1,2,3 or range(3)") from error
    return parsed


def _lines_with_several(axes: Mapping[str, tuple[Override, bool]]) -> list[str]:
    return [str(override.input_line) for override, has_several in axes.values() if has_several]


def value_lines(override: Override, loader: ConfigLoader | None) -> list[str]:
    """Return the override once for each of its values, as in the overrides of a job."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        raise UsageError(
            f"{override.input_line}: invalid in a grid; expected values such as {key}=0.1,0.2 or {key}=range(0,1,0.1)"
        )
    value = override.value()
    distinct: dict[Any, Any] = {}
    for element in value.list if isinstance(value, ChoiceSweep) else [value]:
        for single in _elements(element, override, loader):
            distinct.setdefault(_comparable(single), single)
    if not distinct:
        raise UsageError(f"{override.input_line}: must have at least one value")
    texts = [written(single) for single in distinct.values()]
    if isinstance(value, ChoiceSweep) and value.shuffle:
        random.shuffle(texts)
    return [f"{key}={text}" for text in texts]


def _elements(element: Any, override: Override, loader: ConfigLoader | None) -> Sequence[Any]:
    """Return the values of one element of a list: of a range, of a pattern for options, or the element itself."""
    if isinstance(element, RangeSweep):
        return _range(element, str(override.input_line))
    if isinstance(element, Glob):
        assert loader is not None
        return element.filter(loader.get_group_options(override.key_or_group))
    if isinstance(element, ChoiceSweep):
        return [single for part in element.list for single in _elements(part, override, loader)]
    if isinstance(element, Sweep):
        raise UsageError(f"{override.input_line}: a list must not contain interval(...)")
    if isinstance(element, list | dict) and _contains_sweep(element):
        raise UsageError(f"{override.input_line}: a list or mapping must not contain range(...) or choice(...)")
    return [element]


def _contains_sweep(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, Sweep) or any(map(_contains_sweep, parts))


def _comparable(value: Any) -> Any:
    """Return a parsed value in a form in which equal values compare equal: 1 and 1.0, but not true or '1'."""
    if isinstance(value, list):
        return tuple(map(_comparable, value))
    if isinstance(value, dict):
        return frozenset((_comparable(name), _comparable(entry)) for name, entry in value.items())
    if isinstance(value, QuotedString):
        return value.text
    return (bool, value) if isinstance(value, bool) else value


def _range(sweep: RangeSweep, line: str) -> list[int] | list[float]:
    start, stop, step = sweep.start, sweep.stop, sweep.step
    assert start is not None
    assert stop is not None
    if step == 0 or not all(map(math.isfinite, (start, stop, step))):
        raise UsageError(f"{line}: must have finite limits and a step other than 0")
    first, last, width = (Decimal(repr(number)) for number in (start, stop, step))  # as written
    count = math.ceil((last - first) / width - Decimal("1e-9"))
    if count > MOST_JOBS:
        raise UsageError(f"{line}: {count} values; expected at most {MOST_JOBS}")
    numbers: list[Any]
    if all(isinstance(number, int) for number in (start, stop, step)):
        numbers = list(range(start, stop, step))  # type: ignore[arg-type]
    else:
        numbers = [float(f"{first + index * width:.12g}") for index in range(count)]
    if sweep.shuffle:
        random.shuffle(numbers)
    return numbers


def written(value: Any) -> str:
    """Format a parsed value as on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(Transformer.str(value))
