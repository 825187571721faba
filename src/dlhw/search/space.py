"""The space of a search: the domain of every key, and the overrides of a point.

A *point* has one value for every parameter, in the form that Optuna draws: a number of an interval, the position in an
ordered list, or an entry of an unordered list. Parameters that a point does not read have a value as well, so that all
points have the same dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

Point = Mapping[str, float | int | str]

DIGITS = 6
"""Significant digits of a value from an interval."""
_INSIDE = 0.381966  # the golden section, at which limits that are whole numbers have no other one


@dataclass(frozen=True)
class Interval:
    """All numbers from ``low`` to ``high``, with equal density in the logarithm if ``log``."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def __str__(self) -> str:
        text = f"interval({self.low}, {self.high})"
        text = f"int({text})" if self.integer else text
        return f"tag(log, {text})" if self.log else text

    @property
    def distribution(self) -> BaseDistribution:
        if self.integer:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    @property
    def size(self) -> float:
        """Number of values."""
        return self.high - self.low + 1 if self.integer else math.inf

    def text(self, value: float | str) -> str:
        """Return a value as on the command line, rounded to :data:`DIGITS` and to the limits."""
        number = float(value)
        if self.integer:
            return str(round(number))
        rounded = float(f"{number:.{DIGITS}g}")
        return repr(min(max(rounded, self.low), self.high))

    def evenly(self, count: int) -> list[float | int | str]:
        """Return up to ``count`` evenly spaced values, the limits among them; for one value the middle."""
        return self._at([0.5] if count == 1 else [index / (count - 1) for index in range(count)])

    @property
    def examples(self) -> list[float | int | str]:
        """The limits and a value inside."""
        return self._at([0.0, 1.0, _INSIDE])

    def _at(self, shares: Sequence[float]) -> list[float | int | str]:
        """Return the different values at these shares of the interval."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        numbers = [low + (high - low) * share for share in shares]
        values = [min(max(math.exp(number) if self.log else number, self.low), self.high) for number in numbers]
        return list(dict.fromkeys(round(value) for value in values)) if self.integer else list(values)


@dataclass(frozen=True)
class Values:
    """A list of values, as on the command line; ``ordered`` if they are increasing numbers."""

    texts: tuple[str, ...]
    ordered: bool

    def __str__(self) -> str:
        return ",".join(self.texts)

    @property
    def distribution(self) -> BaseDistribution:
        return IntDistribution(0, len(self.texts) - 1) if self.ordered else CategoricalDistribution(self.texts)

    @property
    def size(self) -> float:
        """Number of values."""
        return len(self.texts)

    def text(self, value: float | str) -> str:
        """Return a value as on the command line."""
        return self.texts[int(value)] if self.ordered else str(value)

    def evenly(self, count: int) -> list[float | int | str]:
        """Return up to ``count`` evenly spaced values of an ordered list, and all values of another one."""
        if not self.ordered:
            return list(self.texts)
        return Interval(0, len(self.texts) - 1, integer=True).evenly(count)

    @property
    def examples(self) -> list[float | int | str]:
        """All values."""
        return self.evenly(len(self.texts))


def listed(texts: Sequence[str]) -> Values:
    """Return the values of a list; numbers are sorted and ordered."""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        return Values(tuple(texts), ordered=False)
    return Values(tuple(text for _, text in sorted(zip(numbers, texts, strict=True))), ordered=True)


@dataclass(frozen=True)
class Parameter:
    """A key that varies. With ``when``, only points with this text of another key read it."""

    key: str
    domain: Interval | Values
    when: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        """The name in the study, which is different for each condition."""
        return self.key if self.when is None else f"{self.key} ({'='.join(self.when)})"


@dataclass(frozen=True)
class Space:
    """Parameters; those with a condition come after the parameter that it names."""

    parameters: Sequence[Parameter]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        return {parameter.name: parameter.domain.distribution for parameter in self.parameters}

    def read_by(self, point: Point) -> list[Parameter]:
        """Return the parameters that a point reads."""
        texts: dict[str, str] = {}
        read = []
        for parameter in self.parameters:
            if parameter.when is None or texts.get(parameter.when[0]) == parameter.when[1]:
                texts[parameter.key] = parameter.domain.text(point[parameter.name])
                read.append(parameter)
        return read

    def meeting(self, parameter: Parameter) -> Point:
        """Return the part of a point that lets it read a parameter; empty for one that all points read."""
        if parameter.when is None:
            return {}
        key, text = parameter.when
        owner = next(other for other in self.parameters if other.key == key)
        assert isinstance(owner.domain, Values)
        return {owner.name: owner.domain.texts.index(text) if owner.domain.ordered else text}

    def examples(self) -> list[Point]:
        """Return points with every value of every list, and with the limits of every interval and a value inside."""
        values = {parameter: parameter.domain.examples for parameter in self.parameters}
        first = {parameter.name: options[0] for parameter, options in values.items()}
        points: list[Point] = [first]
        for parameter, options in values.items():
            points += [{**first, **self.meeting(parameter), parameter.name: value} for value in options]
        return points

    def values(self, point: Point) -> dict[str, str]:
        """Return the values that a point reads by key, as on the command line. Equal points have equal values."""
        return {parameter.key: parameter.domain.text(point[parameter.name]) for parameter in self.read_by(point)}

    @property
    def size(self) -> float:
        """Number of points with different values; infinite with an interval of real numbers."""
        return self._size(None)

    def _size(self, condition: tuple[str, str] | None) -> float:
        """Return the number of combinations of the parameters with this condition, and of those that depend on them."""
        size = 1.0
        for parameter in self.parameters:
            if parameter.when == condition:
                dependent = {other.when for other in self.parameters if other.when and other.when[0] == parameter.key}
                without = parameter.domain.size - len(dependent)
                size *= without + sum(self._size(when) for when in dependent)
        return size
