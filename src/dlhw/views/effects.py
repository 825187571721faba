"""The effect of single settings on the result and on the speed of training, from runs that change one at a time."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlhw.runtime.options import Positive
from dlhw.views.comparison.options import Comparison
from dlhw.views.comparison.ranking import Conclusion, Setting
from dlhw.views.comparison.results import Result
from dlhw.views.comparison.settings import overrides_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dlhw.storage.record import Record

Row = dict[str, object]


@dataclass(frozen=True)
class Effects(Comparison):
    """Compares the values of each factor, while all other factors have the values of the config, the base.

    There is one line for each value of ``overlay``. A run is *solved* when its training loss first falls below
    ``threshold``. It is *diverged* if it failed or if its loss ends above ``failure``; all others are *stuck*.

    Args:
        factors: the keys to compare.
        threshold: the training loss of a solved problem.
        failure: the largest training loss at the end of a run that has not diverged.
    """

    factors: list[str]
    threshold: Positive
    failure: Positive

    def draw(self, record: Record, conclusion: Conclusion, *, title: str) -> list[str]:
        """Write ``tables/effects.csv`` and a figure for each factor. Return a line about what cannot be drawn."""
        from dlhw.views.comparison.figures import not_drawn  # imports matplotlib, which takes a second

        notes = super().draw(record, conclusion, title=title)
        settings = conclusion.settings
        factors = [factor for factor in self.factors if settings and factor in settings[0].values]
        missing = [factor for factor in self.factors if factor not in factors]
        notes += [f"effect of {factor}: not drawn (this key does not vary)" for factor in missing]
        base = base_values(settings, factors)
        effects = {factor: self._effect(factor, settings, base) for factor in factors}
        record.table("effects", [{"factor": factor, **row} for factor, rows in effects.items() for row in rows])
        return notes + not_drawn(
            (f"figures/effect_{factor}", functools.partial(draw_effect, record, factor, rows, base, self, title=title))
            for factor, rows in effects.items()
        )

    def _effect(self, factor: str, settings: Sequence[Setting], base: Mapping[str, str]) -> list[Row]:
        """Return a row for each value of the factor and of ``overlay``, in the order of the values."""
        others = {key: value for key, value in base.items() if key != factor}
        rows: list[Row] = []
        for setting in settings:
            ended = [run for run in setting.runs if run.status != "unfinished"]
            if ended and all(setting.values[key] == value for key, value in others.items()):
                overlay = setting.values.get(self.overlay or "", "")
                rows.append({"value": setting.values[factor], "overlay": overlay, **self.summary(ended)})
        return sorted(rows, key=lambda row: (_order(str(row["value"])), str(row["overlay"])))

    def summary(self, runs: Sequence[Result]) -> Row:
        """Return counts, and median and quartiles of final test loss and epochs until solved, over all runs.

        A run that failed has an infinite loss, and one that was not solved takes infinitely many epochs.
        """
        outcomes = Counter(self.outcome(run) for run in runs)
        row: Row = {"n": len(runs), **{name: outcomes[name] for name in ("solved", "stuck", "diverged")}}
        losses = [run.final["test_loss"] if run.status == "finished" else math.inf for run in runs]
        epochs = [self.epochs_until_solved(run) if self.outcome(run) == "solved" else None for run in runs]
        for name, values in (("test_loss", losses), ("epochs", [math.inf if e is None else e for e in epochs])):
            for part, share in (("lower", 0.25), ("median", 0.5), ("upper", 0.75)):
                row[f"{name}_{part}"] = quantile(values, share)
        return row

    def outcome(self, run: Result) -> str:
        """Return ``solved``, ``stuck`` or ``diverged``."""
        if run.status != "finished" or run.final["train_loss"] > self.failure:
            return "diverged"
        return "stuck" if self.epochs_until_solved(run) is None else "solved"

    def epochs_until_solved(self, run: Result) -> float | None:
        """Return the first epoch with a training loss below the threshold; None if there is none."""
        return next((row["epoch"] for row in run.rows if row["train_loss"] < self.threshold), None)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the quantile by linear interpolation between the nearest two values, which may be infinite."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below, above = ordered[math.floor(position)], ordered[math.ceil(position)]
    return below if below == above else below + (above - below) * (position % 1)


def base_values(settings: Sequence[Setting], factors: Sequence[str]) -> dict[str, str]:
    """Return the values of the factors in the settings that override none of them; else their most frequent values."""
    for setting in settings:
        if not overrides_of(setting.runs[0].path, ()).keys() & set(factors):
            return {factor: setting.values[factor] for factor in factors}
    counts = {factor: Counter(setting.values[factor] for setting in settings) for factor in factors}
    return {factor: values.most_common(1)[0][0] for factor, values in counts.items()}


def _order(value: str) -> tuple[object, ...]:
    """Return the key by which values are sorted: numbers, then lists by length and content, then names.

    Names that end in ``_`` and a number are sorted by this number.
    """
    if value.startswith("["):
        widths = value.strip("[]").split(",")
        return 1, len(widths), [float(width or 0) for width in widths]
    name, _, number = value.rpartition("_")
    try:
        return (0, float(value)) if not name else (3, name, float(number))
    except ValueError:
        return 2, value


def draw_effect(
    record: Record, factor: str, rows: Sequence[Row], base: Mapping[str, str], effects: Effects, *, title: str
) -> str:
    """Draw ``figures/effect_FACTOR.png``: final test loss, epochs until solved and unsolved runs for each value.

    Lines connect values that are numbers. Infinite values are not drawn.
    """
    from dlhw.views.plots import PALETTE, add_legend, label, new_figure, scale_values

    values = list(dict.fromkeys(str(row["value"]) for row in rows))
    lines = list(dict.fromkeys(str(row["overlay"]) for row in rows))
    seeds = sorted({int(str(row["n"])) for row in rows})
    name = {"optimizer.lr": "learning rate"}.get(factor, factor.rpartition(".")[2].replace("_", " "))
    fixed = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in base.items() if key != factor)
    counts = "-".join(map(str, seeds[:1] + seeds[1:][-1:]))
    figure, (loss_axes, epoch_axes, unsolved_axes) = new_figure(
        3,
        title=f"{title.partition(':')[0]}: the effect of {name}",
        subtitle=f"{f'with {fixed}; ' if fixed else ''}median and quartiles over all {counts} seeds, if finite; "
        f"solved: training loss below {effects.threshold:g}",
        foot_inches=0.3,
    )
    ordered = all(_order(value)[0] == 0 for value in values)
    for i, line in enumerate(lines):
        shift = 0.12 * (i - (len(lines) - 1) / 2)
        own = [row for row in rows if row["overlay"] == line]
        x = [values.index(str(row["value"])) + shift for row in own]
        style = {"color": PALETTE[i % len(PALETTE)], "linestyle": "-" if ordered else "none", "linewidth": 1.2}
        style |= {"markersize": 4, "marker": "osD^v<>P"[i % 8]}
        for axes, column in ((loss_axes, "test_loss"), (epoch_axes, "epochs")):
            _error_bars(axes, x, own, column, label=line, **style)
        unsolved = [100 * (1 - float(str(row["solved"])) / float(str(row["n"]))) for row in own]
        unsolved_axes.plot(x, unsolved, **style)  # type: ignore[arg-type]
        diverged = [(at, y) for at, y, row in zip(x, unsolved, own, strict=True) if row["diverged"]]
        for at, y in diverged:
            unsolved_axes.plot([at], [y], "x", color="black", markersize=7)
    labels = ("final test loss", "epochs until solved", "runs that were not solved (%)")
    for axes, text in zip((loss_axes, epoch_axes, unsolved_axes), labels, strict=True):
        axes.set_xticks(range(len(values)), [_short(value) for value in values], rotation=45, ha="right")
        for tick, value in zip(axes.get_xticklabels(), values, strict=True):
            tick.set_fontweight("bold" if value == base[factor] else "normal")
        axes.set_xlim(-0.5, len(values) - 0.5)
        label(axes, x=f"{name} (bold: base)", y=text, legend=False)
    for axes, column in ((loss_axes, "test_loss"), (epoch_axes, "epochs")):
        drawn = [float(str(row[f"{column}_{part}"])) for row in rows for part in ("lower", "median", "upper")]
        if finite := [value for value in drawn if math.isfinite(value)]:
            scale_values(axes, finite)
    unsolved_axes.set_ylim(-4, 104)
    handles, names = loss_axes.get_legend_handles_labels() if lines != [""] else ([], [])
    if any(row["diverged"] for row in rows):
        handles.append(unsolved_axes.plot([], [], "x", color="black", markersize=7)[0])
        names.append("some diverged")
    if handles:
        add_legend(figure, handles, names, loc="outside lower center", columns=5)
    record.figure(f"figures/effect_{factor}", figure)
    return ""


def _error_bars(axes: Axes, x: Sequence[float], rows: Sequence[Row], column: str, **style: object) -> None:
    """Plot the medians, with bars between the quartiles."""
    parts = ("lower", "median", "upper")
    lower, median, upper = ([float(str(row[f"{column}_{part}"])) for row in rows] for part in parts)
    median, lower, upper = ([v if math.isfinite(v) else math.nan for v in part] for part in (median, lower, upper))
    below = [m - low for m, low in zip(median, lower, strict=True)]
    above = [high - m for m, high in zip(median, upper, strict=True)]
    axes.errorbar(x, median, [below, above], elinewidth=0.9, capsize=2, **style)  # type: ignore[arg-type]


def _short(value: str) -> str:
    """Return equal widths such as ``[8, 8, 8]`` as ``3 x 8``; other values are unchanged."""
    widths = [width.strip() for width in value.strip("[]").split(",") if width.strip()]
    if not value.startswith("["):
        return value
    return f"{len(widths)} x {widths[0]}" if len(widths) > 1 and len(set(widths)) == 1 else ", ".join(widths) or "none"
