"""The style of a comparison's figures: panels of lines, one per setting, each with its spread over the seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter

from dlhw.views.plots import (
    COLORS,
    LINE_INCHES,
    MARKED_POINTS,
    PALETTE,
    TEXT_POINTS,
    Numbers,
    add_legend,
    new_figure,
    scale_epochs,
    scale_values,
)

_NAMED_SETTINGS = 10  # a legend of a colour scale names no more of its settings
_BEST_ON_SCALE = PALETTE[1]  # stands out from every colour of the scale
_LEGEND_CHARACTERS = 100  # of a legend across the whole figure; a handle takes some ten of them


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


def compared_curves(
    panels: Sequence[Panel], *, x: str = "epoch", log_x: bool = False, title: str, subtitle: str = ""
) -> Figure:
    """Metrics against ``x``, a panel each, a line per setting with a band of one standard deviation over its seeds.

    Of more settings than the palette has colours, only the best has its band.
    """
    figure, all_axes = _panels(panels, title=title, subtitle=subtitle)
    for axes, panel in zip(all_axes, panels, strict=True):
        for series in panel.series:
            marked = len(series.x) <= MARKED_POINTS and len(panel.series) <= len(PALETTE)
            _draw_series(axes, series, marker="o" if marked else "", crowded=len(panel.series) > len(PALETTE))
            if series.spread and (series.best or len(panel.series) <= len(PALETTE)):
                low, high = _band(series)
                axes.fill_between(series.x, low, high, color=series.color, alpha=0.15, linewidth=0, zorder=1.5)
        if log_x:
            axes.set_xscale("log")
        else:
            scale_epochs(axes, [{"epoch": place} for series in panel.series for place in series.x], None)
        _scale_panel(axes, panel)
        axes.set_xlabel(x, fontsize=TEXT_POINTS)
    return figure


def compared_against(
    panels: Sequence[Panel], *, key: str, optimum: float | None, share_y: bool = True, title: str, subtitle: str = ""
) -> Figure:
    """Metrics at the best epoch against a numeric key, error bars of one standard deviation, ``optimum`` marked.

    The key's axis is logarithmic where its values are spread like decades, with 0 at its left end where it occurs.
    With ``share_y`` the panels show the same quantity.
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
        axes.set_xlabel(key, fontsize=TEXT_POINTS, parse_math=False)
        _scale_panel(axes, panel)
    if share_y:
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
        axes.set_xlabel("layer", fontsize=TEXT_POINTS)
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
    columns = math.ceil(len(names) / max(1, rows))
    show = len(names) > 1 or bool(names and entries[0].label)
    figure, all_axes = new_figure(
        len(panels), title=title, subtitle=subtitle, foot_inches=(rows * TEXT_POINTS * LINE_INCHES if show else 0)
    )
    if show:
        handles = [
            Line2D(
                [],
                [],
                color=series.color,
                linewidth=2.4 if series.best else 1.4,
                marker="o" if len(series.x) <= MARKED_POINTS else "",
                markersize=3.5,
            )
            for series in entries
        ]
        add_legend(figure, handles, names, loc="outside lower center", columns=columns)
    for axes, panel in zip(all_axes, panels, strict=True):
        axes.set_ylabel(panel.label, fontsize=TEXT_POINTS, parse_math=False)
        if panel.title:
            axes.set_title(panel.title, fontsize=TEXT_POINTS, loc="left", parse_math=False)
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
    values = [value for series in panel.series for value in _band_ends(series)]
    scale_values(axes, values, floor=panel.floor, linear=panel.label.endswith("accuracy"))
    for unit, whole in (("(%)", 100.0), ("accuracy", 1.0)):
        if panel.label.endswith(unit):
            axes.set_ylim(top=min(axes.get_ylim()[1], 1.04 * whole))
    axes.set_ylabel(panel.label, fontsize=TEXT_POINTS, parse_math=False)


def _share_y(all_axes: Sequence[Axes], panels: Sequence[Panel]) -> None:
    """One y scale for panels that show the same quantity."""
    joint = Panel("", [series for panel in panels for series in panel.series], floor=panels[0].floor)
    for axes, panel in zip(all_axes, panels, strict=True):
        _scale_panel(axes, Panel(panel.label, joint.series, floor=joint.floor))


def _band_ends(series: Series) -> list[float]:
    """The ends of the bands, which the axes must hold."""
    low, high = _band(series) if series.spread else (series.y, series.y)
    return [value for value in (*low, *high) if math.isfinite(value)]


def _scale_key(axes: Axes, values: Sequence[float]) -> None:
    """The scale of a swept key's axis: logarithmic where its values lie like decades, with 0 at the left end."""
    positive = [value for value in values if value > 0]
    if values and values[0] >= 0 and _spans_decades(positive):
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
        axes.xaxis.set_major_formatter(Numbers())
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))


def _spans_decades(values: Sequence[float]) -> bool:
    """Whether positive values, ascending, span over a decade and are spaced by factors rather than by steps."""
    if len(values) < 2 or values[-1] < 10 * values[0]:
        return False
    middle = math.log(statistics.median(values))
    ends = math.log(values[0]), math.log(values[-1])
    return len(values) == 2 or abs(middle - sum(ends) / 2) < abs(middle - math.log((values[0] + values[-1]) / 2))
