"""The result of a study: numbers, tables, figures, and checks against expected values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dlhw.storage.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Number = float | int | bool | str


@dataclass(frozen=True)
class Check:
    """The comparison of a computed value with the expected one: a published value, a theorem, another method."""

    what: str
    computed: Number
    expected: str
    """As text, for a table: ``-0.875``, ``at most 1e-12``."""
    agrees: bool


def equal(what: str, computed: Number, expected: Number) -> Check:
    """Check that two values are equal."""
    return Check(what, computed, text(expected), computed == expected)


def close(what: str, computed: float, expected: float, *, within: float) -> Check:
    """Check that two values differ by at most ``within``."""
    return Check(what, computed, f"{text(expected)} +- {text(within)}", abs(computed - expected) <= within)


def at_most(what: str, computed: float, largest: float) -> Check:
    """Check that ``computed`` is at most ``largest``, for example the largest difference between two methods."""
    return Check(what, computed, f"at most {text(largest)}", computed <= largest)


def at_least(what: str, computed: float, smallest: float) -> Check:
    """Check that ``computed`` is at least ``smallest``."""
    return Check(what, computed, f"at least {text(smallest)}", computed >= smallest)


@dataclass(frozen=True)
class Answer:
    """The result of a study.

    Args:
        numbers: the key results by name, for ``summary.json`` and for comparisons of several runs.
        checks: comparisons with expected values. The run fails if one disagrees.
        tables: rows by name; each table is written to a file in ``tables/``.
        figures: by name; each is written to a file in ``figures/``.
        messages: lines for the console, such as expressions, matrices or weights.
        files: other content of ``figures/`` by file name, such as an animation.
    """

    numbers: Mapping[str, Number]
    checks: Sequence[Check] = ()
    tables: Mapping[str, Sequence[Mapping[str, object]]] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    messages: Sequence[str] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def disagreements(self) -> list[Check]:
        """The failed checks."""
        return [check for check in self.checks if not check.agrees]

    def write(self, record: Record) -> None:
        """Write all tables, figures and files, and ``tables/checks.csv``, to the run directory."""
        for name, rows in self.tables.items():
            record.table(name, rows)
        if self.checks:
            record.table("checks", [vars(check) for check in self.checks])
        for name, figure in self.figures.items():
            record.figure(f"figures/{name}", figure)
        for name, content in self.files.items():
            record.figure_file(name, content)

    def summary(self) -> dict[str, Any]:
        """Return the numbers and the counts of checks."""
        counts = {"checks_agreed": len(self.checks) - len(self.disagreements), "checks": len(self.checks)}
        return dict(self.numbers) | (counts if self.checks else {})

    def lines(self) -> list[str]:
        """Return the lines for the console: messages, numbers, then each check with the expected value."""
        numbers = [f"{name} = {text(value)}" for name, value in self.numbers.items()]
        checks = [
            f"{'agrees' if check.agrees else 'DISAGREES'}: {check.what}: {text(check.computed)}, "
            f"expected {check.expected}"
            for check in self.checks
        ]
        return [*self.messages, *numbers, *checks]


def text(value: Number) -> str:
    """Format a number with up to six significant digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
