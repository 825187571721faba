"""The style that all figures share, and the learning curves of a run.

Figures are ``matplotlib.figure.Figure`` objects, made without pyplot, which is slow to import and keeps global state.
The caller saves them. Learning curves are drawn by :mod:`.rendering`, because every run of a sweep draws them.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import FixedLocator, Formatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from dlhw.views import rendering
from dlhw.views.rendering import AXIS_COLOR, GRID_COLOR, GRID_POINTS, TICK_POINTS, Panel, Plot, Text, png

Place = Literal[
    "best", "upper left", "upper right", "lower left", "lower right", "lower center", "outside lower center"
]

DPI = 160
WIDTH_INCHES = 7.2  # a little over the text width of an A4 page: 9 pt stays readable after scaling

# Okabe and Ito's colours, which are distinct with any common colour blindness and in grey print.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
COLORS = {"train": PALETTE[0], "validation": PALETTE[1], "test": PALETTE[2], "reference": "#444444"}

_MARKERS = {"train": "o", "validation": "s", "test": "^"}
_COLUMNS = {"train": "train", "validation": "val", "test": "test"}  # name in figures: prefix in metrics.csv
_SECOND_PANELS = {"error_percent": "error (%)", "mse": "mean squared error"}
MARKED_POINTS = 30  # a line with more points has no markers, which would hide it
_TITLE_POINTS, TEXT_POINTS = 11.0, 9.0
LINE_INCHES = 1.35 / 72  # height of a line of text per point of font size
_TICK_INCHES = 7.0 / 72  # a tick and its distance from the label
_PANEL_INCHES = 2.9
_GAP_INCHES = 0.06  # between parts of a figure, and between them and its edge
_LARGEST_DRAWN = 1e290  # the limits of an axis, and the reciprocal of its length, must be finite


class ShownFigure(Figure):
    """A figure that notebooks show without pyplot."""

    def _repr_png_(self) -> bytes:
        image = io.BytesIO()
        self.savefig(image, format="png")
        return image.getvalue()


def new_figure(
    panels: int,
    *,
    title: str,
    subtitle: str = "",
    panel_inches: float = _PANEL_INCHES,
    columns: int | None = None,
    foot_inches: float = 0.0,
) -> tuple[Figure, list[Axes]]:
    """Return a figure with ``panels`` axes in the common style, below a title and subtitle that wrap.

    Up to three panels are side by side, more are in rows of two or of ``columns``. The figure grows with the heading
    and by ``foot_inches`` for a tall legend, so that the panels keep their size. Text is never parsed as TeX.
    """
    columns = columns or (panels if panels <= 3 else 2)
    rows = math.ceil(panels / columns)
    heading, heading_inches = _heading(title, subtitle)
    height = rows * panel_inches + heading_inches + foot_inches
    figure = ShownFigure(figsize=(WIDTH_INCHES, height), dpi=DPI, facecolor="white")
    top = 1 - heading_inches / height
    pads = {"w_pad": _GAP_INCHES, "h_pad": _GAP_INCHES, "wspace": 0.06}
    figure.set_layout_engine("constrained", rect=(0, 0, 1, top), **pads)
    for line in heading:
        figure.text(
            line.x / WIDTH_INCHES,
            1 - line.below_top / height,
            line.text,
            fontsize=line.points,
            fontweight="bold" if line.bold else "normal",
            color=line.color,
            va="top",
            parse_math=False,
        )
    all_axes = [figure.add_subplot(rows, columns, 1 + i) for i in range(panels)]
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(AXIS_COLOR)
        axes.grid(True, color=GRID_COLOR, linewidth=GRID_POINTS)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", labelsize=TICK_POINTS, color=AXIS_COLOR)
    return figure, all_axes


def _heading(title: str, subtitle: str) -> tuple[list[Text], float]:
    """Return the lines of a heading, placed below the upper edge of a figure, and their height in inches."""
    lines, below_top = [], 0.08
    for text, points, width, bold in ((title, _TITLE_POINTS, 68, True), (subtitle, TEXT_POINTS, 102, False)):
        for line in _wrapped(text, width):
            color = "black" if bold else COLORS["reference"]
            lines.append(Text(line, x=0.1, below_top=below_top, points=points, bold=bold, color=color))
            below_top += points * LINE_INCHES
    return lines, below_top + 0.04


def curves_png(
    rows: Sequence[Mapping[str, float]],
    *,
    title: str,
    best_epoch: int | None,
    flood: float = 0.0,
    train_label: str = "train",
    loss_label: str = "loss",
) -> bytes:
    """Return a PNG file with loss and error against epoch for train, validation and test, from rows of ``metrics.csv``.

    Quantities without a column are left out. For regression the mean squared error replaces the error. Axes are
    logarithmic if the values span more than a decade. If ``flood`` > 0, the level b is drawn. The heading has the
    results at the best and the last epoch, and the epoch from which the train loss is not finite.
    """
    quantities = _quantities(rows, loss_label)
    heading, heading_inches = _heading(title, _notes(rows, best_epoch))
    height = _PANEL_INCHES + heading_inches
    panels = [Panel() for _ in quantities]
    lines = _draw_curves(panels, rows, quantities, best_epoch=best_epoch, flood=flood, train_label=train_label)
    top = 1 - (heading_inches + _GAP_INCHES) / height
    _fit_to_labels(panels, height=height, top=top, foot_inches=0.24 if lines else 0.0)
    return png(
        Plot(
            WIDTH_INCHES,
            height,
            DPI,
            texts=heading,
            panels=panels,
            legend=list(lines.values()),
            legend_points=TEXT_POINTS,
        )
    )


def curves_figure(
    rows: Sequence[Mapping[str, float]],
    *,
    title: str,
    best_epoch: int | None,
    flood: float = 0.0,
    train_label: str = "train",
    loss_label: str = "loss",
) -> Figure:
    """Return the picture of :func:`curves_png` as a figure of matplotlib, which takes longer and can be changed."""
    quantities = _quantities(rows, loss_label)
    figure, all_axes = new_figure(len(quantities), title=title, subtitle=_notes(rows, best_epoch), foot_inches=0.24)
    lines = _draw_curves(all_axes, rows, quantities, best_epoch=best_epoch, flood=flood, train_label=train_label)
    add_legend(figure, list(lines.values()), list(lines), loc="outside lower center", columns=len(lines))
    return figure


def _notes(rows: Sequence[Mapping[str, float]], best_epoch: int | None) -> str:
    return "\n".join(filter(None, [_results(rows, best_epoch), _divergence(rows)]))


def _quantities(rows: Sequence[Mapping[str, float]], loss_label: str) -> list[tuple[str, str]]:
    """Return the quantity of each panel of learning curves with its label."""
    assert rows, "no epochs to draw"
    second = [(name, text) for name, text in _SECOND_PANELS.items() if _has_values(rows, name)]
    return [("loss", loss_label), *second]


def _draw_curves(
    all_axes: Sequence[Any],
    rows: Sequence[Mapping[str, float]],
    quantities: Sequence[tuple[str, str]],
    *,
    best_epoch: int | None,
    flood: float,
    train_label: str,
) -> dict[str, Any]:
    """Draw learning curves into matplotlib's ``Axes`` or into ``Panel``s. Return the lines of the legend by label."""
    for axes, (quantity, label) in zip(all_axes, quantities, strict=True):
        for name, prefix in _COLUMNS.items():
            points = _points(rows, f"{prefix}_{quantity}")
            if points:
                _draw(axes, points, name=name, label=train_label if name == "train" else name)
        values = _all_values(rows, quantity)
        if quantity == "loss" and flood > 0:
            level = f"b = {flood:g}"
            axes.axhline(
                flood,
                color=COLORS["reference"],
                linewidth=1.0,
                linestyle=(0, (5, 2)),
                zorder=2.5,
                label=level,
            )
            values.append(flood)
        if best_epoch is not None:
            axes.axvline(
                best_epoch,
                color=COLORS["reference"],
                linewidth=0.9,
                linestyle=":",
                zorder=2.5,
                label=f"best epoch {best_epoch}",
            )
        scale_epochs(axes, rows, best_epoch)
        if quantity == "error_percent":
            # One sample of MNIST is 0.002 %. Without a floor, such small errors would fill most of a log axis.
            scale_values(axes, values, floor=0.1)
            axes.set_ylim(top=min(axes.get_ylim()[1], 104.0))
        else:
            scale_values(axes, values)
        axes.set_xlabel("epoch", fontsize=TEXT_POINTS)
        axes.set_ylabel(label, fontsize=TEXT_POINTS, parse_math=False)
    return {label: line for axes in all_axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}


def add_legend(
    figure: Figure, handles: Sequence[Artist], names: Sequence[str], *, loc: Place, columns: int, **options: Any
) -> Legend:
    """Add a legend for the whole figure, without a frame. Names are never parsed as TeX."""
    legend = figure.legend(
        list(handles),
        list(names),
        loc=loc,
        ncols=columns,
        fontsize=TEXT_POINTS,
        frameon=False,
        handlelength=1.8,
        columnspacing=1.6,
        **options,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return legend


def label(axes: Axes, *, x: str, y: str, title: str = "", legend: bool = True, place: Place = "best") -> None:
    """Label the axes of a panel of :func:`new_figure`, and add a legend of everything that has a label.

    Text is never parsed as TeX.
    """
    axes.set_xlabel(x, fontsize=TEXT_POINTS, parse_math=False)
    axes.set_ylabel(y, fontsize=TEXT_POINTS, parse_math=False)
    if title:
        axes.set_title(title, fontsize=TEXT_POINTS, parse_math=False)
    handles, names = axes.get_legend_handles_labels()
    if legend and handles:
        legend_box = axes.legend(handles, names, loc=place, fontsize=TICK_POINTS, framealpha=0.85, edgecolor="none")
        for text in legend_box.get_texts():
            text.set_parse_math(False)


def _fit_to_labels(row: Sequence[Axes | Panel], *, height: float, top: float, foot_inches: float) -> None:
    """Place panels side by side above a foot, with room for their labels.

    ``height`` is that of the figure in inches, and the fraction ``top`` of it is below the heading.

    Label sizes are computed from the font size. Measuring every text, as matplotlib does, is slow.
    """
    title = TEXT_POINTS * LINE_INCHES + _GAP_INCHES
    below = _TICK_INCHES + TICK_POINTS * LINE_INCHES
    before = [_TICK_INCHES + _label_inches(axes.yaxis) + _GAP_INCHES / 2 for axes in row]
    after = [_GAP_INCHES + _label_inches(axes.xaxis) / 2 for axes in row]
    width = (WIDTH_INCHES - sum(before) - sum(after)) / len(row) - title
    bottom = foot_inches + title + below
    inner = top * height - bottom
    x = 0.0
    for axes, left, right in zip(row, before, after, strict=True):
        x += title + left
        axes.set_position((x / WIDTH_INCHES, bottom / height, width / WIDTH_INCHES, inner / height))
        axes.xaxis.set_label_coords(0.5, -below / inner)
        axes.yaxis.set_label_coords(-left / width, 0.5)
        x += width + right


def _label_inches(axis: Axis | rendering.Axis) -> float:
    """Return the width of the widest tick label. A digit is 0.64 font sizes wide, a minus sign 1.4 times as wide."""
    low, high = axis.get_view_interval()
    labels = axis.get_major_formatter().format_ticks(
        [x for x in np.asarray(axis.get_majorticklocs()) if low <= x <= high]
    )
    digits = [len(label) + 0.4 * label.count("\N{MINUS SIGN}") for label in labels]
    return max(digits, default=0.0) * 0.64 * TICK_POINTS / 72


def column_label(column: str) -> str:
    """Return the axis label of a column of ``metrics.csv`` or a probe, such as ``validation error (%)``."""
    prefix, _, quantity = column.partition("_")
    names = {short: name for name, short in _COLUMNS.items()}
    words = f"{names[prefix]} {quantity}" if prefix in names else column
    name, percent, _ = words.partition("_percent")
    return name.replace("_", " ") + (" (%)" if percent else "")


def _draw(axes: Axes | Panel, points: Sequence[tuple[float, float]], *, name: str, label: str) -> None:
    marked = len(points) <= MARKED_POINTS
    axes.plot(
        [epoch for epoch, _ in points],
        [value for _, value in points],
        color=COLORS[name],
        label=label,
        linewidth=1.4 if marked else 0.8,
        marker=_MARKERS[name] if marked else "",
        markersize=3.5 if len(points) > 2 else 5.0,
        zorder={"train": 2.0, "test": 2.1, "validation": 2.2}[name],
    )


def scale_epochs(axes: Axes | Panel, rows: Sequence[Mapping[str, float]], best_epoch: int | None) -> None:
    """Set the limits and integer ticks of an x axis of epochs."""
    epochs = [row["epoch"] for row in rows] + ([] if best_epoch is None else [best_epoch])
    pad = max(0.02 * (max(epochs) - min(epochs)), 0.1 if len(rows) > 1 else 0.5)
    axes.set_xlim(min(epochs) - pad, max(epochs) + pad)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))


def scale_values(axes: Axes | Panel, values: Sequence[float], *, floor: float = 0.0, linear: bool = False) -> None:
    """Set the scale, limits and ticks of the y axis: logarithmic if values span more than a decade.

    A logarithmic axis starts at zero if a value is at most ``floor``. ``linear`` forces a linear axis.
    """
    if not values:
        axes.yaxis.set_major_formatter(Numbers(aligned=True))
        return
    low, high = min(values), max(values)
    positive = [value for value in values if value > floor]
    if not linear and low >= 0 and positive and high > 10 * min(positive):
        room = max(1.25, (high / min(positive)) ** 0.04)  # for half a marker
        few = high < 300 * min(positive)
        if low > floor:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=12))
            axes.set_ylim(low / room, high * room)
        else:  # linear from 0 to the lowest decade, logarithmic above it
            lowest, highest = (math.floor(math.log10(value)) for value in (min(positive), high))
            decades = [10.0**power for power in range(lowest, highest + 1, 1 + (highest - lowest) // 8)]
            axes.set_yscale("symlog", linthresh=decades[0], linscale=0.4)
            ticks = [factor * decade for decade in decades for factor in ((1, 2, 5) if few else (1,))]
            axes.yaxis.set_major_locator(FixedLocator([0.0, *ticks]))
            axes.set_ylim(-0.15 * decades[0], high * room)
        # Drawing all minor ticks of every decade would take a fifth of the time for a figure.
        axes.yaxis.set_minor_locator(NullLocator() if few else LogLocator(subs=(2.0, 5.0), numticks=12))
        axes.yaxis.set_major_formatter(Numbers())
        axes.yaxis.set_minor_formatter(NullFormatter())
        return
    bottom = 0.0 if 0 <= low <= high / 2 else low
    pad = 0.06 * (high - bottom) or 0.1 * abs(high)
    needs_room = low < bottom + pad  # a curve along the lower end of the axis would be cut in half
    if low == high == 0:
        axes.set_ylim(-0.06, 1.0)
    else:
        axes.set_ylim(bottom - (pad if needs_room else 0.0), high + pad)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(Numbers(aligned=True))


class Numbers(Formatter):
    """Tick labels without an offset or a power of ten beside the axis.

    With ``aligned`` they have the same number of decimals.
    """

    def __init__(self, *, aligned: bool = False) -> None:
        self.aligned = aligned

    def __call__(self, value: float, pos: int | None = None) -> str:
        return self.format_ticks([value])[0]

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """Format values with enough digits to distinguish them."""
        for digits in (6, 12, 17):
            labels = [f"{value:.{digits}g}".replace("-", "\N{MINUS SIGN}") for value in values]
            if len(set(labels)) == len(labels):
                break
        if self.aligned and not any("e" in label for label in labels):
            decimals = max((len(label.partition(".")[2]) for label in labels), default=0)
            labels = [f"{value:.{decimals}f}".replace("-", "\N{MINUS SIGN}") for value in values]
        return labels


def _value(row: Mapping[str, float], column: str) -> float:
    return float(row.get(column, math.nan))


def _points(rows: Sequence[Mapping[str, float]], column: str) -> list[tuple[float, float]]:
    """Return (epoch, value) for the values of a column that can be drawn: finite ones, and not too large for an axis.

    Values too small for an axis count as 0. The test set may be evaluated only in some epochs.
    """
    pairs = ((float(row["epoch"]), _value(row, column)) for row in rows)
    return [
        (epoch, value if abs(value) > 1 / _LARGEST_DRAWN else 0.0)
        for epoch, value in pairs
        if abs(value) < _LARGEST_DRAWN
    ]


def _all_values(rows: Sequence[Mapping[str, float]], quantity: str) -> list[float]:
    return [value for prefix in _COLUMNS.values() for _, value in _points(rows, f"{prefix}_{quantity}")]


def _has_values(rows: Sequence[Mapping[str, float]], quantity: str) -> bool:
    return any(math.isfinite(_value(row, f"{prefix}_{quantity}")) for prefix in _COLUMNS.values() for row in rows)


def _results(rows: Sequence[Mapping[str, float]], best_epoch: int | None) -> str:
    """Return the validation and test results at the best and the last epoch as text."""
    forms = {"error_percent": "error {:.2f} %", "mse": "squared error {:.4g}", "loss": "loss {:.4g}"}
    quantity, form = next((name, form) for name, form in forms.items() if name == "loss" or _has_values(rows, name))
    parts = []
    for which, epoch in (("best", best_epoch), ("last", int(rows[-1]["epoch"]))):
        row = next((row for row in rows if row["epoch"] == epoch), {})
        numbers = [
            f"{name} {form.format(value)}"
            for name, prefix in _COLUMNS.items()
            if name != "train" and math.isfinite(value := _value(row, f"{prefix}_{quantity}"))
        ]
        if numbers and not (which == "last" and epoch == best_epoch):
            parts.append(f"{which} epoch {epoch}: {', '.join(numbers)}")
    return "\n".join(parts)


def _divergence(rows: Sequence[Mapping[str, float]]) -> str:
    """Return a note if the train loss is not finite at the end. Earlier, nan may mean that it was not measured."""
    epoch = None
    for row in reversed(rows):
        if "train_loss" not in row or math.isfinite(row["train_loss"]):
            break
        epoch = int(row["epoch"])
    return "" if epoch is None else f"train loss not finite from epoch {epoch} on"


def _wrapped(text: str, width: int) -> list[str]:
    lines = []
    for part in re.sub(" (?=[±%])|(?<=±) ", "\N{NO-BREAK SPACE}", text).splitlines():
        # Joined overrides (a=1,b=2,...) have no spaces: break them at commas.
        too_long = any(len(word) > width for word in part.split())
        lines += textwrap.wrap(re.sub(r",(?=\S)", ", ", part) if too_long else part, width)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]
