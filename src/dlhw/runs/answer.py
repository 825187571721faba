"""What a study answers: numbers, tables, figures, and whether they agree with what is known beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dlhw.runs.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Number = float | int | bool | str


@dataclass(frozen=True)
class Check:
    """One comparison of something computed with what it should be: a published value, a theorem, another method."""

    what: str
    computed: Number
    expected: str
    """In words, as a reader of the table wants it: ``-0.875``, ``at most 1e-12``."""
    agrees: bool


def equal(what: str, computed: Number, expected: Number) -> Check:
    """The two are the same."""
    return Check(what, computed, text(expected), computed == expected)


def close(what: str, computed: float, expected: float, *, within: float) -> Check:
    """The two differ by ``within`` at most."""
    return Check(what, computed, f"{text(expected)} within {text(within)}", abs(computed - expected) <= within)


def at_most(what: str, computed: float, largest: float) -> Check:
    """``computed`` is not larger; how two methods are compared: by the largest difference of their results."""
    return Check(what, computed, f"at most {text(largest)}", computed <= largest)


def at_least(what: str, computed: float, smallest: float) -> Check:
    """``computed`` is not smaller."""
    return Check(what, computed, f"at least {text(smallest)}", computed >= smallest)


@dataclass(frozen=True)
class Answer:
    """What a study found.

    Args:
        numbers: the key results by name, for ``summary.json``; comparisons of several runs show them side by side.
        checks: what must agree; one that does not makes the run a failed one.
        tables: rows by name, each table a file in ``tables/``.
        figures: by name, each a file in ``figures/``.
        told: lines for the console: what a reader wants to see at once, such as expressions, matrices, weights.
    """

    numbers: Mapping[str, Number]
    checks: Sequence[Check] = ()
    tables: Mapping[str, Sequence[Mapping[str, object]]] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    told: Sequence[str] = ()

    @property
    def disagreements(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if not check.agrees]

    def write(self, record: Record) -> None:
        """All tables and figures, and ``tables/checks.csv``, into the run directory."""
        for name, rows in self.tables.items():
            record.table(name, rows)
        if self.checks:
            record.table("checks", [vars(check) for check in self.checks])
        for name, figure in self.figures.items():
            record.figure(f"figures/{name}", figure)

    def summary(self) -> dict[str, Any]:
        """The numbers, null where one is not finite, and how many checks agree of how many."""
        counts = {"checks_agreed": len(self.checks) - len(self.disagreements), "checks": len(self.checks)}
        return {name: _finite(value) for name, value in self.numbers.items()} | (counts if self.checks else {})

    def lines(self) -> list[str]:
        """For the console: what is told, the numbers, then each check with what was expected."""
        numbers = [f"{name} = {text(value)}" for name, value in self.numbers.items()]
        checks = [
            f"{'agrees' if check.agrees else 'DISAGREES'}: {check.what}: {text(check.computed)}, "
            f"expected {check.expected}"
            for check in self.checks
        ]
        return [*self.told, *numbers, *checks]


def text(value: Number) -> str:
    """A number in as many digits as a reader wants: six, fewer where they are zeros."""
    return f"{value:.6g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _finite(value: Number) -> Number | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
