"""Figures about a classifier: confusion matrix, accuracy by class, and grids of pictures with what it says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from dlhw.plots import COLORS, PALETTE, TEXT_POINTS, label, new_figure
from dlhw.report.judgement import Accuracy, Judged

PARTS = {"val": "validation", "test": "test"}
MOST_CELLS = 12  # classes up to which the cells of a confusion matrix have room for their numbers
MOST_TICKS = 40  # class names beside a matrix; of more classes every second, third, ... is named
MOST_CLASSES = 100  # in the figure of accuracies
WIDE = 0.05  # an interval from 86 to 95 % decides little between two models
HEAT = "inferno"  # of saliency maps: grows evenly in lightness, so that it reads in grey print, too


def confusion(parts: Sequence[Judged], *, name: str) -> Figure:
    """Of each part a matrix: true classes in rows, shares of a row as colours; numbers where they fit."""
    classes = parts[0].classes
    side_by_side = len(classes) <= 4 and len(parts) > 1
    figure, all_axes = new_figure(
        len(parts),
        title=f"{name}: which class is taken for which",
        subtitle="Percent of the pictures of each true class" + (
            ", below their number" if len(classes) <= MOST_CELLS else ""
        ),
        columns=len(parts) if side_by_side else 1,
        panel_inches=3.0 if len(classes) <= 4 else 5.2 if len(classes) <= MOST_CELLS else 6.4,
    )
    for axes, judged in zip(all_axes, parts, strict=True):
        percent = 100 * judged.confusion / judged.confusion.sum(1, keepdim=True).clamp(min=1)
        drawn = axes.imshow(percent, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
        figure.colorbar(drawn, ax=axes, label="percent of the row", shrink=0.8, ticks=[0, 1, 5, 20, 50, 100])
        axes.grid(False)
        _name_classes(axes, classes)
        label(axes, x="predicted class", y="true class", title=f"{PARTS[judged.part]}: {len(judged.labels):,} pictures")
        if len(classes) <= MOST_CELLS:
            _write_cells(axes, judged.confusion, percent)
    return figure


def _write_cells(axes: Axes, counts: Tensor, percent: Tensor) -> None:
    points = TEXT_POINTS if len(counts) <= 4 else 6.5
    for (row, column), count in np.ndenumerate(counts.numpy()):
        if count:
            share = float(percent[row, column])
            axes.text(
                column,
                row,
                f"{share:.1f} %\n{count:,}",
                ha="center",
                va="center",
                fontsize=points,
                color="white" if share > 30 else "black",
            )


def _name_classes(axes: Axes, classes: Sequence[str]) -> None:
    every = -(-len(classes) // MOST_TICKS)
    at = range(0, len(classes), every)
    names = [shortened(classes[i]) for i in at]
    points = 8.5 if len(classes) <= MOST_CELLS else 6.0
    slanted = sum(map(len, names)) > 40
    axes.set_yticks(at, names, fontsize=points, parse_math=False)
    axes.set_xticks(at, names, fontsize=points, parse_math=False, rotation=90 if slanted else 0)


def per_class(parts: Sequence[Judged], confidence: float, *, name: str) -> Figure:
    """The accuracy of each class with its interval, beside that of the whole part with its own."""
    classes = min(len(parts[0].classes), MOST_CLASSES)
    row_inches = 0.26 if classes <= 20 else 0.12
    figure, all_axes = new_figure(
        len(parts),
        title=f"{name}: accuracy of each class",
        subtitle="\n".join(judged.told(confidence) for judged in parts),
        panel_inches=0.95 + row_inches * max(classes, 4),
    )
    for axes, judged in zip(all_axes, parts, strict=True):
        rows = list(zip(judged.classes, judged.by_class(confidence), strict=True))
        title = PARTS[judged.part]
        if len(rows) > classes:
            title += f": the {classes} of {len(rows):,} classes with the lowest accuracy"
            rows = sorted((row for row in rows if row[1].count), key=lambda row: row[1].value)[:classes]
        _draw_accuracies(axes, rows, judged.accuracy(confidence), points=8.5 if classes <= 20 else 5.5)
        label(axes, x="accuracy (%)", y="", title=title, legend=False)
    handles, names = all_axes[0].get_legend_handles_labels()
    ...
    return figure


def _draw_accuracies(
    axes: Axes, rows: Sequence[tuple[str, Accuracy]], whole: Accuracy, *, points: float
) -> None:
    low, high = whole.interval
    axes.axvspan(100 * low, 100 * high, color=PALETTE[5], alpha=0.3, linewidth=0, label="all classes, interval")
    axes.axvline(100 * whole.value, color=PALETTE[0], linewidth=1.2, label="all classes")
    for height, (_, accuracy) in enumerate(rows):
        if accuracy.count:
            axes.hlines(height, *(100 * end for end in accuracy.interval), color=COLORS["reference"], linewidth=1.4)
            axes.plot(100 * accuracy.value, height, "o", color=PALETTE[1], markersize=4 if points > 8 else 2.5)
    axes.set_yticks(
        range(len(rows)),
        [f"{shortened(name)} ({accuracy.count:,})" for name, accuracy in rows],
        fontsize=points,
        parse_math=False,
    )
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(right=101)
