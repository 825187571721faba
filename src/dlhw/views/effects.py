"""The effect of single settings on the result and on the speed of training, from runs that change one at a time."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlhw.runtime.options import Positive
from dlhw.views.comparison.options import Comparison
from dlhw.views.comparison.ranking import Conclusion, Setting
from dlhw.views.comparison.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dlhw.runs.record import Record

Row = dict[str, object]


@dataclass(frozen=True)
class Effects(Comparison):
    """Compares the values of each factor, while all other factors have the values that most runs have, the base.

    A run is *solved* when its training loss first falls below ``threshold``. It is *diverged* if it failed or if its
    loss ends above ``failure``; all others are *stuck*.

    Args:
        factors: the keys to compare.
        by: the key with one line per value, such as ``dataset.kind``.
        threshold: the training loss of a solved problem.
        failure: the largest training loss of a run that has not diverged, for example the loss of a constant output.
    """

    factors: list[str]
    by: str
    threshold: Positive
    failure: Positive

    def draw(self, record: Record, conclusion: Conclusion, *, title: str) -> list[str]:
        """Write ``tables/effects.csv`` and a figure for each factor. Return a line about what cannot be drawn."""
        notes = super().draw(record, conclusion, title=title)
        settings = [setting for setting in conclusion.settings if self.by in setting.values]
        factors = [factor for factor in self.factors if settings and factor in settings[0].values]
        missing = [factor for factor in self.factors if factor not in factors]
        notes += [f"effect of {factor}: not drawn (this key does not vary)" for factor in missing]
        values = {factor: Counter(setting.values[factor] for setting in settings) for factor in factors}
        base = {factor: counts.most_common(1)[0][0] for factor, counts in values.items()}
        effects = {factor: self._effect(factor, settings, base) for factor in factors}
        record.table("effects", [{"factor": factor, **row} for factor, rows in effects.items() for row in rows])
        for factor, rows in effects.items():
            draw_effect(record, factor, rows, base, self, title=title)
        return notes

    def _effect(self, factor: str, settings: Sequence[Setting], base: Mapping[str, str]) -> list[Row]:
        """Return a row for each value of the factor and of ``by``, in the order of the values."""
        others = {key: value for key, value in base.items() if key != factor}
        rows: list[Row] = []
        for setting in settings:
            if all(setting.values[key] == value for key, value in others.items()):
                rows.append(
                    {"value": setting.values[factor], "by": setting.values[self.by], **self.summary(setting.runs)}
                )
        return sorted(rows, key=lambda row: (_order(str(row["value"])), str(row["by"])))

    def summary(self, runs: Sequence[Result]) -> Row:
        """Return counts, and median and quartiles of final test loss and epochs until solved, over the runs."""
        outcomes = Counter(self.outcome(run) for run in runs)
        row: Row = {"n": len(runs), **{name: outcomes[name] for name in ("solved", "stuck", "diverged")}}
        losses = [run.final["test_loss"] for run in runs if "test_loss" in run.final]
        epochs = [self.epochs_until_solved(run) for run in runs if self.outcome(run) == "solved"]
        for name, values in (("test_loss", losses), ("epochs", [epoch for epoch in epochs if epoch is not None])):
            for part, value in zip(("lower", "median", "upper"), _quartiles(values), strict=True):
                row[f"{name}_{part}"] = value
        row["test_loss_mean"] = statistics.fmean(losses) if losses else math.nan
        row["test_loss_sd"] = statistics.stdev(losses) if len(losses) > 1 else math.nan
        return row

    def outcome(self, run: Result) -> str:
        """Return ``solved``, ``stuck`` or ``diverged``."""
        if run.status == "failed" or not run.final or run.final["train_loss"] > self.failure:
            return "diverged"
        return "stuck" if self.epochs_until_solved(run) is None else "solved"

    def epochs_until_solved(self, run: Result) -> float | None:
        """Return the first epoch with a training loss below the threshold; None if there is none."""
        return next((row["epoch"] for row in run.rows if row["train_loss"] < self.threshold), None)


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return (values[0],) * 3 if values else (math.nan,) * 3
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, median, upper


def _order(value: str) -> tuple[float, str, float]:
    """Return the key by which values are sorted: numbers, then names, with a number after ``_`` by its size."""
    name, _, number = value.rpartition("_")
    try:
        return (0, "", float(value)) if not name else (2, name, float(number))
    except ValueError:
        return 1, value, 0.0


def draw_effect(
    record: Record, factor: str, rows: Sequence[Row], base: Mapping[str, str], effects: Effects, *, title: str
) -> None:
    """Draw ``figures/effect_FACTOR.png``: final test loss, epochs until solved and unsolved runs for each value."""
    from dlhw.views.plots import PALETTE, add_legend, label, new_figure, scale_values

    values = list(dict.fromkeys(str(row["value"]) for row in rows))
    lines = list(dict.fromkeys(str(row["by"]) for row in rows))
    seeds = sorted({int(str(row["n"])) for row in rows})
    name = {"optimizer.lr": "learning rate"}.get(factor, factor.rpartition(".")[2].replace("_", " "))
    fixed = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in base.items() if key != factor)
    figure, (loss_axes, epoch_axes, unsolved_axes) = new_figure(
        3,
        title=f"{title.partition(':')[0]}: the effect of {name}",
        subtitle=f"with {fixed}; median and quartiles over {'-'.join(map(str, seeds[:1] + seeds[1:][-1:]))} seeds; "
        f"solved: training loss below {effects.threshold:g}",
        foot_inches=0.3,
    )
    for i, line in enumerate(lines):
        shift = 0.12 * (i - (len(lines) - 1) / 2)
        own = [row for row in rows if row["by"] == line]
        x = [values.index(str(row["value"])) + shift for row in own]
        style = {"color": PALETTE[i % len(PALETTE)], "linewidth": 1.2, "markersize": 4, "marker": "osD^v<>P"[i % 8]}
        for axes, column in ((loss_axes, "test_loss"), (epoch_axes, "epochs")):
            _error_bars(axes, x, own, column, label=line, **style)
        unsolved = [100 * (1 - float(str(row["solved"])) / float(str(row["n"]))) for row in own]
        unsolved_axes.plot(x, unsolved, **style)  # type: ignore[arg-type]
        diverged = [(at, y) for at, y, row in zip(x, unsolved, own, strict=True) if row["diverged"]]
        unsolved_axes.plot(*zip(*diverged, strict=True), "x", color="black", markersize=7) if diverged else None
    labels = ("final test loss", "epochs until solved", "runs that were not solved (%)")
    for axes, text in zip((loss_axes, epoch_axes, unsolved_axes), labels, strict=True):
        axes.set_xticks(range(len(values)), [_short(value) for value in values], rotation=45, ha="right")
        for tick, value in zip(axes.get_xticklabels(), values, strict=True):
            tick.set_fontweight("bold" if value == base[factor] else "normal")
        label(axes, x=f"{name} (bold: base)", y=text, legend=False)
    for axes, column in ((loss_axes, "test_loss"), (epoch_axes, "epochs")):
        drawn = [float(str(row[f"{column}_{part}"])) for row in rows for part in ("lower", "median", "upper")]
        if finite := [value for value in drawn if math.isfinite(value)]:
            scale_values(axes, finite)
    unsolved_axes.set_ylim(-4, 104)
    handles, names = loss_axes.get_legend_handles_labels()
    if any(row["diverged"] for row in rows):
        handles.append(unsolved_axes.plot([], [], "x", color="black", markersize=7)[0])
        names.append("some diverged")
    add_legend(figure, handles, names, loc="outside lower center", columns=5)
    record.figure(f"figures/effect_{factor}", figure)


def _error_bars(axes: Axes, x: Sequence[float], rows: Sequence[Row], column: str, **style: object) -> None:
    """Plot the medians, with bars between the quartiles."""
    parts = ("lower", "median", "upper")
    lower, median, upper = ([float(str(row[f"{column}_{part}"])) for row in rows] for part in parts)
    below = [m - low for m, low in zip(median, lower, strict=True)]
    above = [high - m for m, high in zip(median, upper, strict=True)]
    axes.errorbar(x, median, [below, above], elinewidth=0.9, capsize=2, **style)  # type: ignore[arg-type]


def _short(value: str) -> str:
    """Return equal widths such as ``[8, 8, 8]`` as ``3 x 8``; other values are unchanged."""
    widths = [width.strip() for width in value.strip("[]").split(",") if width.strip()]
    if not value.startswith("["):
        return value
    return f"{len(widths)} x {widths[0]}" if len(widths) > 1 and len(set(widths)) == 1 else ", ".join(widths) or "none"
