"""Draw learning curves as PNG files in a fraction of the time that matplotlib takes.

matplotlib creates, measures and draws several artists for every tick. :func:`png` draws the same figure with few calls
of matplotlib's renderer: all grid lines are one path, and so are all texts of one colour. The outlines of a text are
kept, because the figures of a sweep share most of their texts.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backend_bases import GraphicsContextBase
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Affine2D, Bbox, IdentityTransform
from numpy.typing import ArrayLike, NDArray
from PIL import Image

Points = NDArray[np.float64]
_IDENTITY = IdentityTransform()

_DASHES = {"--": (5.0, 2.0), ":": (1.0, 1.65)}
"""Lengths of dashes and gaps in line widths."""
_ASCENT, _DESCENT, _DIGIT = 0.76, 0.24, 0.73
"""Of a line of text, and the height of a digit, in font sizes."""
_BORDER, _HANDLE, _HANDLE_GAP, _COLUMN_GAP = 0.4, 1.8, 0.8, 1.6
"""Of a legend, in font sizes."""
_MAJOR, _MINOR = (3.5, 0.8), (2.0, 0.6)
"""Length and width of ticks in points."""
_PAD_POINTS = 3.5  # between a tick and its label

GRID_COLOR, GRID_POINTS = "#E4E4E4", 0.6
AXIS_COLOR, AXIS_POINTS = "#666666", 0.8
TICK_POINTS = 8.5
"""The font size of tick labels."""


def png(figure: Figure) -> bytes:
    """Draw a figure of :func:`dlhw.views.plots.curves` and return the content of a PNG file.

    It has panels with lines, axes at the left and the bottom, and a grid; texts; and a legend at the bottom.
    """
    drawing = _Drawing(figure)
    for axes in figure.axes:
        drawing.panel(axes)
    for text in figure.texts:
        x, y = text.get_position()
        points = float(text.get_fontsize())
        drawing.text(
            text.get_text(),
            x * drawing.width,
            y * drawing.height - _ASCENT * drawing.pixels(points),
            points=points,
            bold=text.get_fontweight() == "bold",
            color=text.get_color(),
        )
    for legend in figure.legends:
        texts = legend.get_texts()
        drawing.legend(legend.get_lines(), [text.get_text() for text in texts], points=float(texts[0].get_fontsize()))
    return drawing.finished()


class _Drawing:
    """A picture. Positions are in pixels from the lower left corner."""

    def __init__(self, figure: Figure) -> None:
        self.dpi = figure.dpi
        self.width, self.height = (int(inches * figure.dpi) for inches in figure.get_size_inches())
        renderer: Any = RendererAgg  # matplotlib has no types for it
        self._renderer = renderer(self.width, self.height, figure.dpi)
        corners = [(0, 0), (self.width, 0), (self.width, self.height), (0, self.height)]
        self._renderer.draw_path(self._style(color="white", points=0.0), Path(corners), _IDENTITY, to_rgba("white"))
        self._texts: dict[Any, list[tuple[Points, NDArray[np.uint8]]]] = defaultdict(list)

    def pixels(self, points: float) -> float:
        return float(points * self.dpi / 72)

    def panel(self, axes: Axes) -> None:
        """Draw the grid, the lines and the axes of a panel."""
        box = axes.bbox
        xs, x_names = _ticks(axes.xaxis, box)
        ys, y_names = _ticks(axes.yaxis, box)
        grid = [((x, box.y0), (x, box.y1)) for x in xs] + [((box.x0, y), (box.x1, y)) for y in ys]
        self.segments(grid, color=GRID_COLOR, points=GRID_POINTS)
        minor_xs, minor_ys = (_positions(axis, axis.get_minorticklocs(), box) for axis in (axes.xaxis, axes.yaxis))
        for (length, width), at_x, at_y in ((_MAJOR, xs, ys), (_MINOR, minor_xs, minor_ys)):
            end = self.pixels(length)
            ticks = [((x, box.y0 - end), (x, box.y0)) for x in at_x] + [((box.x0 - end, y), (box.x0, y)) for y in at_y]
            self.segments(ticks, color=AXIS_COLOR, points=width)
        for line in sorted(axes.get_lines(), key=lambda line: line.get_zorder()):
            data = line.get_transform().transform(np.column_stack(line.get_data()))
            self.line(line, data, marked=data, clip=box)
        self.segments(
            [((box.x0, box.y0), (box.x0, box.y1)), ((box.x0, box.y0), (box.x1, box.y0))],
            color=AXIS_COLOR,
            points=AXIS_POINTS,
        )

        size, away = self.pixels(TICK_POINTS), self.pixels(_MAJOR[0] + _PAD_POINTS)
        for x, name in zip(xs, x_names, strict=True):
            self.text(name, x, box.y0 - away - _ASCENT * size, points=TICK_POINTS, align="center")
        for y, name in zip(ys, y_names, strict=True):
            self.text(name, box.x0 - away, y - _DIGIT / 2 * size, points=TICK_POINTS, align="right")
        x, y = axes.transAxes.transform(axes.xaxis.label.get_position())
        points = float(axes.xaxis.label.get_fontsize())
        self.text(axes.get_xlabel(), x, y - _ASCENT * self.pixels(points), points=points, align="center")
        x, y = axes.transAxes.transform(axes.yaxis.label.get_position())
        points = float(axes.yaxis.label.get_fontsize())
        self.text(axes.get_ylabel(), x - _DESCENT * self.pixels(points), y, points=points, align="center", upright=True)

    def segments(self, segments: Sequence[tuple[tuple[float, float], tuple[float, float]]], **style: Any) -> None:
        """Draw horizontal and vertical lines as one path, at whole pixels."""
        if segments:
            codes = np.tile(np.array([Path.MOVETO, Path.LINETO], np.uint8), len(segments))
            self._stroke(Path(np.array(segments).reshape(-1, 2), codes), dash_cap="butt", **style)

    def line(self, line: Line2D, points: Points, *, marked: Points, clip: Bbox | None = None) -> None:
        """Draw a line in its own style through ``points``, with its markers at ``marked``."""
        style: dict[str, Any] = {"color": line.get_color(), "points": line.get_linewidth(), "clip": clip}
        self._stroke(Path(points), dashes=_DASHES.get(str(line.get_linestyle())), **style)
        marker = MarkerStyle(line.get_marker())
        if len(np.asarray(marker.get_path().vertices)):
            gc = self._style(color=line.get_color(), points=line.get_markeredgewidth(), clip=clip)
            shape = marker.get_transform() + Affine2D().scale(self.pixels(line.get_markersize()))
            snap = marker.get_snap_threshold()
            gc.set_snap(snap is not None and self.pixels(line.get_markersize()) >= snap)
            gc.set_joinstyle(marker.get_joinstyle())
            self._renderer.draw_markers(
                gc, marker.get_path(), shape, Path(marked), _IDENTITY, to_rgba(line.get_color())
            )

    def _stroke(self, path: Path, *, dashes: tuple[float, ...] | None = None, dash_cap: str = "", **style: Any) -> None:
        gc = self._style(**style)
        gc.set_capstyle("butt" if dashes or dash_cap else "projecting")
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

    def legend(self, lines: Sequence[Line2D], names: Sequence[str], *, points: float) -> None:
        """Draw the entries side by side at the bottom of the picture."""
        em = self.pixels(points)
        widths = [em * (_HANDLE + _HANDLE_GAP + _outline(name, bold=False)[2]) for name in names]
        x = (self.width - sum(widths) - em * _COLUMN_GAP * (len(names) - 1)) / 2
        baseline = em * (_BORDER + _DESCENT)
        for line, name, width in zip(lines, names, widths, strict=True):
            y = baseline + 0.35 * em
            ends = np.array([(x, y), (x + _HANDLE * em, y)])
            self.line(line, ends, marked=ends.mean(0, keepdims=True))
            self.text(name, x + (_HANDLE + _HANDLE_GAP) * em, baseline, points=points)
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


def _ticks(axis: Axis, box: Bbox) -> tuple[list[float], list[str]]:
    """Return the positions of the major ticks inside the axis, and their labels."""
    low, high = sorted(axis.get_view_interval())
    values = [value for value in axis.get_majorticklocs() if low <= value <= high]
    return _positions(axis, values, box), axis.get_major_formatter().format_ticks(values)


def _positions(axis: Axis, values: ArrayLike, box: Bbox) -> list[float]:
    """Return the positions of the values inside the axis."""
    scale = axis.get_transform().transform
    low, high = scale(np.asarray(sorted(axis.get_view_interval()), float))
    start, length = (box.x0, box.width) if axis is axis.axes.xaxis else (box.y0, box.height)
    shares = (scale(np.asarray(values, float)) - low) / (high - low)
    return [start + length * share for share in shares if 0 <= share <= 1]


@functools.lru_cache(maxsize=1024)
def _outline(text: str, *, bold: bool) -> tuple[Points, NDArray[np.uint8], float]:
    """Return the outline of a text in font sizes, vertices (n, 2) and their codes, and its width."""
    font = FontProperties(size=text_to_path.FONT_SCALE, weight="bold" if bold else "normal")
    vertices, codes = text_to_path.get_text_path(font, text)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    outline = np.asarray(vertices, float).reshape(-1, 2) / text_to_path.FONT_SCALE
    return outline, np.asarray(codes, np.uint8), width / text_to_path.FONT_SCALE


def _png_file(pixels: NDArray[np.uint8], *, dpi: float) -> bytes:
    """Return a PNG file of (height, width, 3) colours. Choosing a filter for each row, as Pillow does, is slower."""
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
