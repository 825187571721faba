"""Draw the panels of a comparison's figures: a line per setting, with its spread over the seeds."""

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

_NAMED_SETTINGS = 10  # at most, in the legend of a colour scale
_BEST_ON_SCALE = PALETTE[1]  # differs from every colour of the scale
_LEGEND_CHARACTERS = 100  # width of a legend across the figure; a handle is about ten characters wide


@dataclass(frozen=True)
class Series:
    """A line of a comparison: the mean of a setting over its seeds, and the spread."""

    label: str
    color: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = ()  # standard deviations of y, nan if unknown; or empty
    best: bool = False  # drawn on top, thicker, and labelled as best


@dataclass(frozen=True)
class Panel:
    """One panel of a comparison. Values up to ``floor`` count as zero when the scale is chosen."""

    label: str
    series: Sequence[Series]
    title: str = ""
    floor: float = field(default=0.0, kw_only=True)


def setting_colors(values: Sequence[float | None], *, best: int | None = None) -> list[str]:
    """Return a colour for each setting: from the palette, or from a colour scale if there are more settings.

    ``values`` holds the number by which each setting is placed on the scale, or None. Unless all have numbers, the
    scale follows their order. The ``best`` one gets a colour that is not on the scale.
    """
    count = len(values)
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    numbers = [value for value in values if value is not None]
    keys = numbers if len(numbers) == count else [float(i) for i in range(count)]
    order = sorted(set(keys))
    scale = colormaps["viridis"]  # without its light end, which is invisible in print
    colors = [to_hex(scale(0.88 * order.index(key) / max(1, len(order) - 1))) for key in keys]
    if best is not None:
        colors[best] = _BEST_ON_SCALE
    return colors


def compared_curves(
    panels: Sequence[Panel], *, x: str = "epoch", log_x: bool = False, title: str, subtitle: str = ""
) -> Figure:
    """Draw metrics against ``x``: a panel per metric, a line per setting, a band of one standard deviation.

    If there are more settings than colours in the palette, only the best one has a band.
    """
    figure, all_axes = _panels(panels, title=title, subtitle=subtitle)
    for axes, panel in zip(all_axes, panels, strict=True):
        for series in panel.series:
            marked = len(series.x) <= MARKED_POINTS and len(panel.series) <= len(PALETTE)
            marker, crowded = "o" if marked else "", len(panel.series) > len(PALETTE)
            _draw_series(axes, series, marker=marker, crowded=crowded, hidden=_hidden(series, panel))
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
    """Draw metrics at the best epoch against a numeric key, with error bars of one standard deviation.

    ``optimum`` is marked by a line. The key's axis is logarithmic if its values are spaced by factors, with 0 at its
    left end. Set ``share_y`` if the panels show the same quantity.
    """
    figure, all_axes = _panels(panels, title=title, subtitle=subtitle)
    for axes, panel in zip(all_axes, panels, strict=True):
        for series in panel.series:
            _draw_series(axes, series, marker="o", hidden=_hidden(series, panel))
            if series.spread:
                low, high = _band(series)
                sides = [[y - a for y, a in zip(series.y, low, strict=True)]]
                sides += [[b - y for y, b in zip(series.y, high, strict=True)]]
                axes.errorbar(
                    series.x, series.y, sides, fmt="none", ecolor=series.color, elinewidth=1.0, capsize=2.5, zorder=2
                )
        if optimum is not None:
            axes.axvline(optimum, color=COLORS["reference"], linewidth=0.9, linestyle=":", zorder=1.6)
        _scale_key(axes, sorted({x for other in panels for series in other.series for x in series.x}))
        axes.set_xlabel(key, fontsize=TEXT_POINTS, parse_math=False)
        _scale_panel(axes, panel)
    if share_y:
        _share_y(all_axes, panels)
    return figure


def compared_layers(panels: Sequence[Panel], *, layers: Sequence[str] = (), title: str, subtitle: str = "") -> Figure:
    """Draw a quantity of each layer, with a line per setting: one panel before training, one after it."""
    figure, all_axes = _panels(panels, title=title, subtitle=subtitle)
    for axes, panel in zip(all_axes, panels, strict=True):
        for series in panel.series:
            crowded = len(panel.series) > len(PALETTE)
            _draw_series(axes, series, marker="o", crowded=crowded, hidden=_hidden(series, panel))
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
    """Return axes for the panels, with a legend below. With a colour scale it names only some settings."""
    labelled: dict[str, Series] = {}
    for panel in panels:
        for series in panel.series:
            labelled.setdefault(series.label, series)
    entries = list(labelled.values())
    if len(entries) > max(_NAMED_SETTINGS, len(PALETTE)):
        kept = {round(i * (len(entries) - 1) / (_NAMED_SETTINGS - 1)) for i in range(_NAMED_SETTINGS)}
        subtitle = "\n".join(filter(None, [subtitle, f"{len(entries)} settings; the legend shows some of them"]))
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


def _hidden(series: Series, panel: Panel) -> tuple[int, int]:
    """Return how many series of the panel have exactly these values, and which of them this series is."""
    equal = [other for other in panel.series if list(other.x) == list(series.x) and list(other.y) == list(series.y)]
    return len(equal), next(i for i, other in enumerate(equal) if other is series)


def _draw_series(
    axes: Axes, series: Series, *, marker: str, crowded: bool = False, hidden: tuple[int, int] = (1, 0)
) -> None:
    """Draw a line. Those with equal values (see :func:`_hidden`) get dashes in turn and rings, so that all are seen."""
    thick, thin = (2.2, 1.3) if len(series.x) <= 100 and not crowded else (1.8, 0.8)
    equal, place = hidden
    dash, ring = 6.0, 2.5 * min(4, equal - 1 - place)
    axes.plot(
        series.x,
        series.y,
        color=series.color,
        label=series.label,
        linewidth=thick if series.best else thin,
        linestyle="-" if equal == 1 else (dash * ((equal - place) % equal), (dash, dash * (equal - 1))),
        dash_capstyle="butt",
        marker=marker,
        markersize=(4.5 if series.best else 3.5) + ring,
        zorder=3 if series.best else 2.2,
    )


def _band(series: Series) -> tuple[list[float], list[float]]:
    """Return the means minus and plus one standard deviation. Below a positive mean, the lower end is positive, too."""
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
    """Use one y scale for panels that show the same quantity."""
    joint = Panel("", [series for panel in panels for series in panel.series], floor=panels[0].floor)
    for axes, panel in zip(all_axes, panels, strict=True):
        _scale_panel(axes, Panel(panel.label, joint.series, floor=joint.floor))


def _band_ends(series: Series) -> list[float]:
    """Return the finite ends of the bands, which the axes must include."""
    low, high = _band(series) if series.spread else (series.y, series.y)
    return [value for value in (*low, *high) if math.isfinite(value)]


def _scale_key(axes: Axes, values: Sequence[float]) -> None:
    """Set the scale of a key's axis: logarithmic if its values are spaced by factors, with 0 at the left end."""
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
    """Whether positive values, ascending, span more than a decade and are spaced by factors rather than evenly."""
    if len(values) < 2 or values[-1] < 10 * values[0]:
        return False
    middle = math.log(statistics.median(values))
    ends = math.log(values[0]), math.log(values[-1])
    return len(values) == 2 or abs(middle - sum(ends) / 2) < abs(middle - math.log((values[0] + values[-1]) / 2))
