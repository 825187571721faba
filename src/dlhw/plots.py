"""The look of every figure, and figures made from rows and arrays alone.

Figures are ``matplotlib.figure.Figure`` objects without pyplot, which is slow to import and keeps global
state; the caller saves them.
"""

from __future__ import annotations

import math
import re
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

DPI = 160
WIDTH_INCHES = 7.2  # a little over the text width of an A4 page: 9 pt stays readable after scaling

# Okabe and Ito's colours, told apart with any common colour blindness and in grey print.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
COLORS = {"train": PALETTE[0], "validation": PALETTE[1], "test": PALETTE[2], "reference": "#444444"}

_MARKERS = {"train": "o", "validation": "s", "test": "^"}
_COLUMNS = {"train": "train", "validation": "val", "test": "test"}  # name in figures: prefix in metrics.csv
_MARKED_POINTS = 30  # up to so many points, each is marked; more would hide the line
_TITLE_POINTS, _TEXT_POINTS, _TICK_POINTS = 11.0, 9.0, 8.5
_LINE_INCHES = 1.35 / 72  # height of a line of text per point of font size
_NAMED_SETTINGS = 10  # a legend of a colour scale names no more of its settings
_BEST_ON_SCALE = PALETTE[1]  # stands out from every colour of the scale
_LEGEND_CHARACTERS = 100  # of a legend across the whole figure; a handle takes some ten of them


def new_figure(
    panels: int,
    *,
    title: str,
    subtitle: str = "",
    panel_inches: float = 2.9,
    columns: int | None = None,
    foot_inches: float = 0.0,
) -> tuple[Figure, list[Axes]]:
    """A figure with ``panels`` axes in the project's look, under a heading that wraps.

    Up to three panels stand side by side, more in rows of two, or in rows of ``columns``. The figure grows with the
    heading and by ``foot_inches`` for a tall legend, so the panels keep their size. Texts are drawn as they are,
    never as TeX formulas.
    """
    columns = columns or (panels if panels <= 3 else 2)
    rows = math.ceil(panels / columns)
    heading = [(line, _TITLE_POINTS) for line in _wrapped(title, 68)]
    heading += [(line, _TEXT_POINTS) for line in _wrapped(subtitle, 92)]
    heading_inches = sum(points * _LINE_INCHES for _, points in heading) + 0.12
    height = rows * panel_inches + heading_inches + foot_inches
    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=DPI, layout="constrained", facecolor="white")
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0, 0, 1, 1 - heading_inches / height), w_pad=0.06, h_pad=0.06, wspace=0.06)  # type: ignore[call-arg]
    y_inches = height - 0.08
    for line, points in heading:
        main = points == _TITLE_POINTS
        figure.text(
            0.1 / WIDTH_INCHES,
            y_inches / height,
            line,
            fontsize=points,
            fontweight="bold" if main else "normal",
            color="black" if main else COLORS["reference"],
            va="top",
            parse_math=False,
        )
        y_inches -= points * _LINE_INCHES
    all_axes = [figure.add_subplot(rows, columns, 1 + i) for i in range(panels)]
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#666666")
        axes.grid(True, color="#E4E4E4", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", labelsize=_TICK_POINTS, color="#666666")
    return figure, all_axes


def curves(
    rows: Sequence[Mapping[str, float]],
    *,
    title: str,
    subtitle: str = "",
    best_epoch: int | None,
    flood: float = 0.0,
    train_label: str = "train",
    loss_label: str = "loss",
) -> Figure:
    """Loss and error against epoch for train, validation and test, from the rows of ``metrics.csv``.

    A quantity without a column is left out, and so is the error panel when no row has an error (regression).
    Log axes where values span more than a decade. ``flood`` > 0 draws the level b. The numbers at the best
    and the last epoch stand under the title, and so does a train loss that stopped being finite.
    """
    assert rows, "curves of no epochs"
    panels = [("loss", loss_label)]
    if _all_values(rows, "error_percent"):
        panels.append(("error_percent", "error (%)"))
    notes = "\n".join(filter(None, [subtitle, _results(rows, best_epoch), _divergence(rows)]))
    figure, all_axes = new_figure(len(panels), title=title, subtitle=notes)

    for axes, (quantity, label) in zip(all_axes, panels, strict=True):
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
        _scale_epochs(axes, rows, best_epoch)
        if quantity == "error_percent":
            # One sample of MNIST is 0.002 %: without a floor, such values would take most of the axis.
            _scale_values(axes, values, floor=0.1)
            axes.set_ylim(top=min(axes.get_ylim()[1], 104.0))
        else:
            _scale_values(axes, values)
        axes.set_xlabel("epoch", fontsize=_TEXT_POINTS)
        axes.set_ylabel(label, fontsize=_TEXT_POINTS, parse_math=False)

    entries = {label: line for axes in all_axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if entries:
        # Below the panels and shared by them: it cannot cover a curve.
        legend = figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower center",
            ncols=len(entries),
            fontsize=_TEXT_POINTS,
            frameon=False,
            handlelength=1.8,
            columnspacing=1.6,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
        for handle in legend.get_lines():
            handle.set_linewidth(max(1.4, handle.get_linewidth()))
    return figure


@dataclass(frozen=True)
class Series:
    """A line of a comparison: one setting, its mean over seeds, and how far the seeds lie from it."""

    label: str
    color: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = ()  # a standard deviation for each y, nan where there is none; or nothing at all
    best: bool = False  # drawn on top, thicker, and named so


@dataclass(frozen=True)
class Panel:
    """One pair of axes of a comparison. ``floor``: values up to it count as zero when the scale is chosen."""

    label: str
    series: Sequence[Series]
    title: str = ""
    floor: float = field(default=0.0, kw_only=True)


def setting_colors(values: Sequence[float | None], *, best: int | None = None) -> list[str]:
    """A colour for each setting: the palette's, or for more of them a scale, dark to light by number or else by place.

    ``values`` holds the number that orders each setting, or None. The ``best`` has a colour that the scale has not.
    """
    count = len(values)
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    numbers = [value for value in values if value is not None]
    keys = numbers if len(numbers) == count else [float(i) for i in range(count)]
    order = sorted(set(keys))
    scale = colormaps["viridis"]  # without its light end, which print loses
    colors = [to_hex(scale(0.88 * order.index(key) / max(1, len(order) - 1))) for key in keys]
    if best is not None:
        colors[best] = _BEST_ON_SCALE
    return colors


def column_label(column: str) -> str:
    """What an axis says of a column of ``metrics.csv`` or of a probe: ``val_error_percent``, validation error (%)."""
    split, _, quantity = column.partition("_")
    named = {prefix: name for name, prefix in _COLUMNS.items()}
    words = f"{named[split]} {quantity}" if split in named else column
    name, percent, _ = words.partition("_percent")
    return name.replace("_", " ") + (" (%)" if percent else "")


def compared_curves(panels: Sequence[Panel], *, title: str, subtitle: str = "") -> Figure:
    """Metrics against epoch, a panel each, a line per setting with a band of one standard deviation over its seeds.

    Of more settings than the palette has colours, only the best has its band.
    """
    figure, all_axes = _panels(panels, title=title, subtitle=subtitle)
    for axes, panel in zip(all_axes, panels, strict=True):
        for series in panel.series:
            marked = len(series.x) <= _MARKED_POINTS and len(panel.series) <= len(PALETTE)
            _draw_series(axes, series, marker="o" if marked else "", crowded=len(panel.series) > len(PALETTE))
            if series.spread and (series.best or len(panel.series) <= len(PALETTE)):
                low, high = _band(series)
                axes.fill_between(series.x, low, high, color=series.color, alpha=0.15, linewidth=0, zorder=1.5)
        _scale_epochs(axes, [{"epoch": epoch} for series in panel.series for epoch in series.x], None)
        _scale_panel(axes, panel)
        axes.set_xlabel("epoch", fontsize=_TEXT_POINTS)
    return figure


def compared_against(
    panels: Sequence[Panel], *, key: str, optimum: float | None, title: str, subtitle: str = ""
) -> Figure:
    """Metrics at the best epoch against a numeric key, error bars of one standard deviation, ``optimum`` marked.

    The key's axis is logarithmic where its values are spread like decades, with 0 at its left end where it occurs.
    The panels share their y axis.
    """
    figure, all_axes = _panels(panels, title=title, subtitle=subtitle)
    for axes, panel in zip(all_axes, panels, strict=True):
        for series in panel.series:
            _draw_series(axes, series, marker="o")
            if series.spread:
                low, high = _band(series)
                sides = [[y - a for y, a in zip(series.y, low, strict=True)]]
                sides += [[b - y for y, b in zip(series.y, high, strict=True)]]
                axes.errorbar(
                    series.x, series.y, sides, fmt="none", ecolor=series.color, elinewidth=1.0, capsize=2.5, zorder=2
                )
        if optimum is not None:
            axes.axvline(optimum, color=COLORS["reference"], linewidth=0.9, linestyle=":", zorder=1.6)
        _scale_key(axes, sorted({x for each in panels for series in each.series for x in series.x}))
        axes.set_xlabel(key, fontsize=_TEXT_POINTS, parse_math=False)
        _scale_panel(axes, panel)
    _share_y(all_axes, panels)
    return figure


def compared_layers(panels: Sequence[Panel], *, layers: Sequence[str] = (), title: str, subtitle: str = "") -> Figure:
    """A quantity of each layer, one panel before and one after training, a line per setting; the y axis is shared."""
    figure, all_axes = _panels(panels, title=title, subtitle=subtitle)
    for axes, panel in zip(all_axes, panels, strict=True):
        for series in panel.series:
            _draw_series(axes, series, marker="o", crowded=len(panel.series) > len(PALETTE))
            if series.spread and (series.best or len(panel.series) <= len(PALETTE)):
                low, high = _band(series)
                axes.fill_between(series.x, low, high, color=series.color, alpha=0.15, linewidth=0, zorder=1.5)
        axes.set_xlabel("layer", fontsize=_TEXT_POINTS)
        places = sorted({x for series in panel.series for x in series.x})
        if len(layers) == len(places) <= 5 and max(map(len, layers)) <= 8:
            axes.set_xticks(places, layers)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    _share_y(all_axes, panels)
    return figure


def _panels(panels: Sequence[Panel], *, title: str, subtitle: str) -> tuple[Figure, list[Axes]]:
    """Axes for the panels, and below them a legend of all settings, thinned out where they share a colour scale."""
    told: dict[str, Series] = {}
    for panel in panels:
        for series in panel.series:
            told.setdefault(series.label, series)
    entries = list(told.values())
    if len(entries) > max(_NAMED_SETTINGS, len(PALETTE)):
        kept = {round(i * (len(entries) - 1) / (_NAMED_SETTINGS - 1)) for i in range(_NAMED_SETTINGS)}
        subtitle = "\n".join(filter(None, [subtitle, f"{len(entries)} settings, some of them named below"]))
        entries = [series for i, series in enumerate(entries) if i in kept or series.best]
    names = [series.label + (" (best)" if series.best else "") for series in entries]
    longest = max(map(len, names), default=0)
    columns = max(1, min(len(names), _LEGEND_CHARACTERS // (longest + 8)))
    rows = math.ceil(len(names) / columns)
    show = len(names) > 1 or bool(names and entries[0].label)
    figure, all_axes = new_figure(
        len(panels), title=title, subtitle=subtitle, foot_inches=(rows * _TEXT_POINTS * _LINE_INCHES if show else 0)
    )
    if show:
        handles = [
            Line2D([], [], color=series.color, linewidth=2.4 if series.best else 1.4, marker="o", markersize=3.5)
            for series in entries
        ]
        legend = figure.legend(
            handles,
            names,
            loc="outside lower center",
            ncols=columns,
            fontsize=_TEXT_POINTS,
            frameon=False,
            handlelength=1.8,
            columnspacing=1.6,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    for axes, panel in zip(all_axes, panels, strict=True):
        axes.set_ylabel(panel.label, fontsize=_TEXT_POINTS, parse_math=False)
        if panel.title:
            axes.set_title(panel.title, fontsize=_TEXT_POINTS, loc="left", parse_math=False)
    return figure, all_axes


def _draw_series(axes: Axes, series: Series, *, marker: str, crowded: bool = False) -> None:
    thick, thin = (2.2, 1.3) if len(series.x) <= 100 and not crowded else (1.8, 0.8)
    axes.plot(
        series.x,
        series.y,
        color=series.color,
        label=series.label,
        linewidth=thick if series.best else thin,
        marker=marker,
        markersize=4.5 if series.best else 3.5,
        zorder=3 if series.best else 2.2,
    )


def _band(series: Series) -> tuple[list[float], list[float]]:
    """One standard deviation below and above; what is below zero though no value is, is cut off at a tenth of it."""
    pairs = [(y, 0.0 if math.isnan(sd) else sd) for y, sd in zip(series.y, series.spread, strict=True)]
    return [y - sd if y - sd > 0 or y <= 0 else y / 10 for y, sd in pairs], [y + sd for y, sd in pairs]


def _scale_panel(axes: Axes, panel: Panel) -> None:
    values = [value for series in panel.series for value in _reached(series)]
    _scale_values(axes, values, floor=panel.floor)
    if panel.label.endswith("(%)"):
        axes.set_ylim(top=min(axes.get_ylim()[1], 104.0))
    axes.set_ylabel(panel.label, fontsize=_TEXT_POINTS, parse_math=False)


def _share_y(all_axes: Sequence[Axes], panels: Sequence[Panel]) -> None:
    """One y scale for panels that show the same quantity."""
    joint = Panel("", [series for panel in panels for series in panel.series], floor=panels[0].floor)
    for axes, panel in zip(all_axes, panels, strict=True):
        _scale_panel(axes, Panel(panel.label, joint.series, floor=joint.floor))


def _reached(series: Series) -> list[float]:
    """The ends of the bands, which the axes must hold."""
    low, high = _band(series) if series.spread else (series.y, series.y)
    return [value for value in (*low, *high) if math.isfinite(value)]


def _scale_key(axes: Axes, values: Sequence[float]) -> None:
    """The scale of a swept key's axis: logarithmic where its values lie like decades, with 0 at the left end."""
    positive = [value for value in values if value > 0]
    if values and values[0] >= 0 and _like_decades(positive):
        if values[0] == 0:
            axes.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
            axes.set_xlim(-0.25 * positive[0], positive[-1] * 1.4)
        else:
            axes.set_xscale("log")
            axes.set_xlim(positive[0] / 1.4, positive[-1] * 1.4)
        if len(values) <= 6:
            axes.xaxis.set_major_locator(FixedLocator(list(values)))
        else:
            first, last = (math.floor(math.log10(value)) for value in (positive[0], positive[-1]))
            decades = [10.0**power for power in range(first, last + 2, 1 + (last - first) // 7)]
            axes.xaxis.set_major_locator(FixedLocator([0.0, *decades] if values[0] == 0 else decades))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))


def _like_decades(values: Sequence[float]) -> bool:
    """Whether positive values, ascending, span over a decade and are spaced by factors rather than by steps."""
    if len(values) < 2 or values[-1] < 10 * values[0]:
        return False
    middle = math.log(statistics.median(values))
    ends = math.log(values[0]), math.log(values[-1])
    return len(values) == 2 or abs(middle - sum(ends) / 2) < abs(middle - math.log((values[0] + values[-1]) / 2))


def _draw(axes: Axes, points: Sequence[tuple[float, float]], *, name: str, label: str) -> None:
    marked = len(points) <= _MARKED_POINTS
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


def _scale_epochs(axes: Axes, rows: Sequence[Mapping[str, float]], best_epoch: int | None) -> None:
    epochs = [row["epoch"] for row in rows] + ([] if best_epoch is None else [best_epoch])
    pad = max(0.02 * (max(epochs) - min(epochs)), 0.1 if len(rows) > 1 else 0.5)
    axes.set_xlim(min(epochs) - pad, max(epochs) + pad)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))


def _scale_values(axes: Axes, values: Sequence[float], *, floor: float = 0.0) -> None:
    """Choose the y scale: logarithmic over more than a decade, with zero kept at the foot of the axis."""
    if not values:
        return
    low, high = min(values), max(values)
    positive = [value for value in values if value > floor]
    if low >= 0 and positive and high > 10 * min(positive):
        few = high < 300 * min(positive)
        if low > floor:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=12))
            axes.set_ylim(low / 1.25, high * 1.25)
        else:  # linear from 0 to the lowest decade, logarithmic above
            lowest, highest = (math.floor(math.log10(value)) for value in (min(positive), high))
            decades = [10.0**power for power in range(lowest, highest + 1, 1 + (highest - lowest) // 8)]
            axes.set_yscale("symlog", linthresh=decades[0], linscale=0.4)
            ticks = [factor * decade for decade in decades for factor in ((1, 2, 5) if few else (1,))]
            axes.yaxis.set_major_locator(FixedLocator([0.0, *ticks]))
            axes.set_ylim(-0.15 * decades[0], high * 1.25)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        return
    bottom = 0.0 if 0 <= low <= high / 2 else low
    pad = 0.06 * (high - bottom) or 0.1 * abs(high)
    touches = low < bottom + pad  # a curve along the foot of the axis would be cut in half
    if low == high == 0:
        axes.set_ylim(-0.06, 1.0)
    else:
        axes.set_ylim(bottom - (pad if touches else 0.0), high + pad)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))


def _value(row: Mapping[str, float], column: str) -> float:
    return float(row.get(column, math.nan))


def _points(rows: Sequence[Mapping[str, float]], column: str) -> list[tuple[float, float]]:
    """The finite values of a column with their epochs; a test set seen every tenth epoch is still a line."""
    pairs = ((float(row["epoch"]), _value(row, column)) for row in rows)
    return [(epoch, value) for epoch, value in pairs if math.isfinite(value)]


def _all_values(rows: Sequence[Mapping[str, float]], quantity: str) -> list[float]:
    return [value for prefix in _COLUMNS.values() for _, value in _points(rows, f"{prefix}_{quantity}")]


def _results(rows: Sequence[Mapping[str, float]], best_epoch: int | None) -> str:
    """The numbers that a reader would otherwise measure off the axes: at the best and at the last epoch."""
    quantity, form = (
        ("error_percent", "error {:.2f} %") if _all_values(rows, "error_percent") else ("loss", "loss {:.4g}")
    )
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
    """A note on a train loss that is not finite at the end; nan elsewhere may mean not measured."""
    epoch = None
    for row in reversed(rows):
        if "train_loss" not in row or math.isfinite(row["train_loss"]):
            break
        epoch = int(row["epoch"])
    return "" if epoch is None else f"train loss not finite from epoch {epoch} on"


def _wrapped(text: str, width: int) -> list[str]:
    lines = []
    for part in re.sub(" (?=[±%])|(?<=±) ", "\N{NO-BREAK SPACE}", text).splitlines():
        # Joined overrides (a=1,b=2,...) have no spaces; break them at commas rather than inside a word.
        too_long = any(len(word) > width for word in part.split())
        lines += textwrap.wrap(re.sub(r",(?=\S)", ", ", part) if too_long else part, width)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]
