"""Draw learning curves as PNG files in a fraction of the time that matplotlib takes.

matplotlib creates, measures and draws several artists for every tick. A :class:`Plot` holds only what learning curves
need, under the names of matplotlib's methods, and is drawn with few calls of matplotlib's renderer: all grid lines are
one path, and so are all texts of one colour. The outlines of texts are kept, because the figures of a sweep share most
of them.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from matplotlib.backend_bases import GraphicsContextBase
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgba
from matplotlib.font_manager import FontProperties
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path
from matplotlib.scale import LogTransform, SymmetricalLogTransform
from matplotlib.textpath import text_to_path
from matplotlib.ticker import Formatter, Locator, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from matplotlib.transforms import Affine2D, Bbox, IdentityTransform, Transform
from numpy.typing import ArrayLike, NDArray
from PIL import Image

Points = NDArray[np.float64]
_IDENTITY = IdentityTransform()

_ASCENT, _DESCENT, _DIGIT = 0.76, 0.24, 0.73
"""Of a line of text, and the height of a digit, in font sizes."""
_BORDER, _HANDLE, _HANDLE_GAP, _COLUMN_GAP = 0.4, 1.8, 0.8, 1.6
"""Of a legend, in font sizes."""
_MAJOR, _MINOR = (3.5, 0.8), (2.0, 0.6)
"""Length and width of ticks in points."""
_PAD_POINTS = 3.5  # between a tick and its label
_DOTS = (1.0, 1.65)  # in line widths

GRID_COLOR, GRID_POINTS = "#E4E4E4", 0.6
AXIS_COLOR, AXIS_POINTS = "#666666", 0.8
TICK_POINTS = 8.5
"""The font size of tick labels."""


@dataclass(frozen=True)
class Curve:
    """A line through points. A line across the whole panel has no ``x`` or no ``y``."""

    x: Sequence[float] | None
    y: Sequence[float] | None
    color: str
    label: str
    linewidth: float
    zorder: float
    linestyle: Literal["-", ":"] | tuple[Literal[0], tuple[float, ...]] = "-"
    marker: str = ""
    markersize: float = 6.0


class Axis:
    """One axis of a panel: its limits, scale, ticks and label."""

    def __init__(self) -> None:
        self.limits = (0.0, 1.0)
        self.scale: Transform = _IDENTITY
        self.label, self.label_points, self.label_place = "", 10.0, (0.5, 0.5)
        self.lowest_positive = 1.0
        """The smallest positive value that is drawn."""
        self._major: Locator = MaxNLocator(nbins=5, steps=[1, 2, 5, 10])
        self._minor: Locator = NullLocator()
        self._formatter: Formatter = StrMethodFormatter("{x:g}")

    def set_major_locator(self, locator: Locator) -> None:
        self._major = locator

    def set_minor_locator(self, locator: Locator) -> None:
        self._minor = locator

    def set_major_formatter(self, formatter: Formatter) -> None:
        self._formatter = formatter

    def set_minor_formatter(self, formatter: Formatter) -> None:
        """Do nothing: minor ticks have no labels."""

    def set_label_coords(self, x: float, y: float) -> None:
        self.label_place = (x, y)

    def get_view_interval(self) -> tuple[float, float]:
        return self.limits

    def get_major_formatter(self) -> Formatter:
        return self._formatter

    def get_majorticklocs(self) -> ArrayLike:
        return self._values(self._major)

    def get_minorticklocs(self) -> ArrayLike:
        return self._values(self._minor)

    def _values(self, locator: Locator) -> ArrayLike:
        low, high = self.limits
        starts_above_zero = isinstance(locator, LogLocator)
        values: ArrayLike = locator.tick_values(self.lowest_positive if starts_above_zero and low <= 0 else low, high)
        return values

    def shares(self, values: ArrayLike) -> Points:
        """Return the places of values, 0 at the lower end of the axis and 1 at the upper end."""
        low, high = self.scale.transform(np.asarray(self.limits, float))
        return np.asarray((self.scale.transform(np.asarray(values, float)) - low) / (high - low))


class Panel:
    """One panel of a plot."""

    def __init__(self) -> None:
        self.xaxis, self.yaxis = Axis(), Axis()
        self.lines: list[Curve] = []
        self.place = (0.0, 0.0, 1.0, 1.0)

    def plot(self, x: Sequence[float], y: Sequence[float], **style: Any) -> None:
        self.lines.append(Curve(x, y, **style))

    def axhline(self, y: float, **style: Any) -> None:
        self.lines.append(Curve(None, [y, y], **style))

    def axvline(self, x: float, **style: Any) -> None:
        self.lines.append(Curve([x, x], None, **style))

    def get_legend_handles_labels(self) -> tuple[list[Curve], list[str]]:
        return self.lines, [line.label for line in self.lines]

    def set_xlim(self, left: float, right: float) -> None:
        self.xaxis.limits = (left, right)

    def set_ylim(self, bottom: float | None = None, top: float | None = None) -> None:
        low, high = self.yaxis.limits
        self.yaxis.limits = (low if bottom is None else bottom, high if top is None else top)

    def get_ylim(self) -> tuple[float, float]:
        return self.yaxis.limits

    def set_yscale(self, name: Literal["log", "symlog"], **options: float) -> None:
        self.yaxis.scale = LogTransform(10.0) if name == "log" else SymmetricalLogTransform(10.0, **options)
        values = [value for line in self.lines for value in line.y or () if value > 0]
        self.yaxis.lowest_positive = min(values, default=1.0)

    def set_xlabel(self, text: str, *, fontsize: float, parse_math: bool = False) -> None:
        self.xaxis.label, self.xaxis.label_points = text, fontsize

    def set_ylabel(self, text: str, *, fontsize: float, parse_math: bool = False) -> None:
        self.yaxis.label, self.yaxis.label_points = text, fontsize

    def set_position(self, place: tuple[float, float, float, float]) -> None:
        """Set left, bottom, width and height as fractions of the plot."""
        self.place = place


@dataclass(frozen=True)
class Text:
    """A line of text; ``x`` and ``below_top`` are in inches from the left and the upper edge."""

    text: str
    x: float
    below_top: float
    points: float
    bold: bool
    color: str


@dataclass(frozen=True)
class Plot:
    """Panels with a heading, and a legend at the bottom."""

    width_inches: float
    height_inches: float
    dpi: int
    texts: Sequence[Text]
    panels: Sequence[Panel]
    legend: Sequence[Curve]
    legend_points: float


def png(plot: Plot) -> bytes:
    """Draw a plot and return the content of a PNG file."""
    drawing = _Drawing(plot)
    for panel in plot.panels:
        drawing.panel(panel)
    for text in plot.texts:
        baseline = (plot.height_inches - text.below_top) * plot.dpi - _ASCENT * drawing.pixels(text.points)
        drawing.text(text.text, text.x * plot.dpi, baseline, points=text.points, bold=text.bold, color=text.color)
    if plot.legend:
        drawing.legend(plot.legend, points=plot.legend_points)
    return drawing.finished()


class _Drawing:
    """A picture. Positions are in pixels from the lower left corner."""

    def __init__(self, plot: Plot) -> None:
        self.dpi = plot.dpi
        self.width, self.height = (int(inches * plot.dpi) for inches in (plot.width_inches, plot.height_inches))
        renderer: Any = RendererAgg  # matplotlib has no types for it
        self._renderer = renderer(self.width, self.height, plot.dpi)
        corners = [(0, 0), (self.width, 0), (self.width, self.height), (0, self.height)]
        self._renderer.draw_path(self._style(color="white", points=0.0), Path(corners), _IDENTITY, to_rgba("white"))
        self._texts: dict[Any, list[tuple[Points, NDArray[np.uint8]]]] = defaultdict(list)

    def pixels(self, points: float) -> float:
        return float(points * self.dpi / 72)

    def panel(self, panel: Panel) -> None:
        """Draw the grid, the lines and the axes of a panel."""
        left, bottom, width, height = panel.place
        size = np.array([self.width, self.height])
        box = Bbox([size * (left, bottom), size * (left + width, bottom + height)])
        xs, x_names = _ticks(panel.xaxis, box.x0, box.x1)
        ys, y_names = _ticks(panel.yaxis, box.y0, box.y1)
        grid = [((x, box.y0), (x, box.y1)) for x in xs] + [((box.x0, y), (box.x1, y)) for y in ys]
        self.segments(grid, color=GRID_COLOR, points=GRID_POINTS)
        minor_xs = _positions(panel.xaxis, panel.xaxis.get_minorticklocs(), box.x0, box.x1)
        minor_ys = _positions(panel.yaxis, panel.yaxis.get_minorticklocs(), box.y0, box.y1)
        for (length, points), at_x, at_y in ((_MAJOR, xs, ys), (_MINOR, minor_xs, minor_ys)):
            end = self.pixels(length)
            ticks = [((x, box.y0 - end), (x, box.y0)) for x in at_x] + [((box.x0 - end, y), (box.x0, y)) for y in at_y]
            self.segments(ticks, color=AXIS_COLOR, points=points)
        for line in sorted(panel.lines, key=lambda line: line.zorder):
            shares = [
                (0.0, 1.0) if values is None else axis.shares(values)
                for axis, values in ((panel.xaxis, line.x), (panel.yaxis, line.y))
            ]
            places = np.array([box.x0, box.y0]) + np.column_stack(shares) * np.array([box.width, box.height])
            self.line(line, places, marked=places, clip=box)
        self.segments(
            [((box.x0, box.y0), (box.x0, box.y1)), ((box.x0, box.y0), (box.x1, box.y0))],
            color=AXIS_COLOR,
            points=AXIS_POINTS,
        )

        digit, away = self.pixels(TICK_POINTS), self.pixels(_MAJOR[0] + _PAD_POINTS)
        for x, name in zip(xs, x_names, strict=True):
            self.text(name, x, box.y0 - away - _ASCENT * digit, points=TICK_POINTS, align="center")
        for y, name in zip(ys, y_names, strict=True):
            self.text(name, box.x0 - away, y - _DIGIT / 2 * digit, points=TICK_POINTS, align="right")
        for axis in (panel.xaxis, panel.yaxis):
            x, y = (box.min + np.array(axis.label_place) * box.size).tolist()
            style: dict[str, Any] = {"points": axis.label_points, "align": "center"}
            if axis is panel.xaxis:
                self.text(axis.label, x, y - _ASCENT * self.pixels(axis.label_points), **style)
            else:
                self.text(axis.label, x - _DESCENT * self.pixels(axis.label_points), y, **style, upright=True)

    def segments(self, segments: Sequence[tuple[tuple[float, float], tuple[float, float]]], **style: Any) -> None:
        """Draw horizontal and vertical lines as one path, at whole pixels."""
        if segments:
            codes = np.tile(np.array([Path.MOVETO, Path.LINETO], np.uint8), len(segments))
            self._stroke(Path(np.array(segments).reshape(-1, 2), codes), cap="butt", **style)

    def line(self, line: Curve, points: Points, *, marked: Points, clip: Bbox | None = None) -> None:
        """Draw a line in its own style through ``points``, with its markers at ``marked``."""
        dashes = _DOTS if line.linestyle == ":" else None if isinstance(line.linestyle, str) else line.linestyle[1]
        self._stroke(Path(points), dashes=dashes, color=line.color, points=line.linewidth, clip=clip)
        if line.marker:
            marker, size = MarkerStyle(line.marker), self.pixels(line.markersize)
            gc = self._style(color=line.color, points=1.0, clip=clip)
            snap = marker.get_snap_threshold()
            gc.set_snap(snap is not None and size >= snap)
            gc.set_joinstyle(marker.get_joinstyle())
            shape = marker.get_transform() + Affine2D().scale(size)
            self._renderer.draw_markers(gc, marker.get_path(), shape, Path(marked), _IDENTITY, to_rgba(line.color))

    def _stroke(
        self,
        path: Path,
        *,
        dashes: tuple[float, ...] | None = None,
        cap: Literal["butt", "projecting"] = "projecting",
        **style: Any,
    ) -> None:
        gc = self._style(**style)
        gc.set_capstyle("butt" if dashes else cap)
        if dashes:
            gc.set_dashes(0, [length * gc.get_linewidth() for length in dashes])
        self._renderer.draw_path(gc, path, _IDENTITY)

    def _style(self, *, color: Any, points: float, clip: Bbox | None = None) -> GraphicsContextBase:
        gc: GraphicsContextBase = self._renderer.new_gc()
        gc.set_foreground(color)
        gc.set_linewidth(points)
        gc.set_joinstyle("round")
        if clip is not None:
            gc.set_clip_rectangle(clip)
        return gc

    def legend(self, lines: Sequence[Curve], *, points: float) -> None:
        """Draw the entries side by side at the bottom of the picture."""
        em = self.pixels(points)
        widths = [em * (_HANDLE + _HANDLE_GAP + _outline(line.label, bold=False)[2]) for line in lines]
        x = (self.width - sum(widths) - em * _COLUMN_GAP * (len(lines) - 1)) / 2
        baseline = em * (_BORDER + _DESCENT)
        for line, width in zip(lines, widths, strict=True):
            y = baseline + 0.35 * em
            ends = np.array([(x, y), (x + _HANDLE * em, y)])
            handle = replace(line, linewidth=max(1.4, line.linewidth))
            self.line(handle, ends, marked=ends.mean(0, keepdims=True))
            self.text(line.label, x + (_HANDLE + _HANDLE_GAP) * em, baseline, points=points)
            x += width + _COLUMN_GAP * em

    def text(
        self,
        text: str,
        x: float,
        y: float,
        *,
        points: float,
        align: Literal["left", "center", "right"] = "left",
        bold: bool = False,
        upright: bool = False,
        color: Any = "black",
    ) -> None:
        """Draw a text with its baseline at ``y``; upright, turned to the left, with its baseline at ``x``."""
        vertices, codes, width = _outline(text, bold=bold)
        em = self.pixels(points)
        start = {"left": 0.0, "center": -width / 2, "right": -width}[align] * em
        placed = vertices * em + np.array([start, 0.0])
        turned = placed @ np.array([[0.0, 1.0], [-1.0, 0.0]]) if upright else placed
        self._texts[color].append((turned + np.array([x, y]), codes))

    def finished(self) -> bytes:
        """Return the content of the PNG file."""
        for color, outlines in self._texts.items():
            vertices, codes = (np.concatenate(arrays) for arrays in zip(*outlines, strict=True))
            gc = self._style(color=color, points=0.0)
            gc.set_snap(False)
            self._renderer.draw_path(gc, Path(vertices, codes), _IDENTITY, to_rgba(color))
        size = (self.width, self.height)
        picture = Image.frombuffer("RGBA", size, self._renderer.buffer_rgba(), "raw", "RGBA", 0, 1).convert("RGB")
        return _png_file(np.asarray(picture), dpi=self.dpi)


def _ticks(axis: Axis, start: float, end: float) -> tuple[list[float], list[str]]:
    """Return the positions of the major ticks of an axis from ``start`` to ``end``, and their labels."""
    low, high = axis.get_view_interval()
    values = [value for value in np.asarray(axis.get_majorticklocs()).tolist() if low <= value <= high]
    return _positions(axis, values, start, end), axis.get_major_formatter().format_ticks(values)


def _positions(axis: Axis, values: ArrayLike, start: float, end: float) -> list[float]:
    """Return the positions of the values inside an axis from ``start`` to ``end``."""
    shares: Iterable[float] = axis.shares(values).tolist()
    return [start + (end - start) * share for share in shares if -1e-9 <= share <= 1 + 1e-9]


@functools.lru_cache(maxsize=1024)
def _outline(text: str, *, bold: bool) -> tuple[Points, NDArray[np.uint8], float]:
    """Return the outline of a text in font sizes, vertices (n, 2) and their codes, and its width."""
    font = FontProperties(size=text_to_path.FONT_SCALE, weight="bold" if bold else "normal")
    vertices, codes = text_to_path.get_text_path(font, text)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    outline = np.asarray(vertices, float).reshape(-1, 2) / text_to_path.FONT_SCALE
    return outline, np.asarray(codes, np.uint8), width / text_to_path.FONT_SCALE


def _png_file(pixels: NDArray[np.uint8], *, dpi: float) -> bytes:
    """Return a PNG file of (height, width, 3) colours. Pillow takes 8 ms longer, because it compares filters."""
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each row starts with its filter, 0 for none
    rows[:, 1:] = pixels.reshape(height, -1)
    per_metre = round(dpi / 0.0254)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
        b"pHYs": struct.pack(">IIB", per_metre, per_metre, 1),
        b"IDAT": zlib.compress(rows.data, 1),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks.items()
    )
