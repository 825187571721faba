"""Figures of a network in the plane: its units and weights as on the page of the playground, and a filmstrip."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.path import Path as Curve
from torch import Tensor

from dlhw.views.playground.networks import FEATURE_LABELS, Network, grid, scaled
from dlhw.views.playground.panels import (
    COLORMAP,
    LIMITS,
    draw_losses,
    draw_points,
    draw_surface,
    losses_text,
    point_handles,
)
from dlhw.views.playground.snapshots import Training, dense_at_first
from dlhw.views.plots import COLORS, TEXT_POINTS, WIDTH_INCHES, new_figure

MOST_UNITS = 16
"""Units of a layer that are drawn."""
MOST_LAYERS = 8
"""Hidden layers that are drawn: of more, the first and the last ones."""
UNIT_SIDE = 30
"""Grid points on a side of the map of a unit."""
WIDEST_POINTS = 9.0  # for a weight as large as the widest, per inch of a unit
SMALL_POINTS = 7.5
FILMSTRIP_COLUMNS = 5


@dataclass(frozen=True)
class Column:
    """A column of maps: features or a hidden layer."""

    layer: int
    title: str
    shown: int
    hidden: int
    """Units that are not drawn."""


LEGEND: dict[str, Any] = {"fontsize": SMALL_POINTS, "frameon": False, "borderpad": 0}


def columns_of(network: Network) -> list[Column]:
    """Return the columns to draw. Of many layers, those in the middle are left out."""
    widths = [len(network.features), *network.hidden]
    layers = list(range(len(widths)))
    if len(widths) > MOST_LAYERS + 1:
        layers = [*layers[: MOST_LAYERS // 2 + 1], *layers[-MOST_LAYERS // 2 :]]
    titles = ["features", *(f"layer {number}" for number in layers[1:])]
    return [
        Column(layer, title, min(widths[layer], MOST_UNITS), max(0, widths[layer] - MOST_UNITS))
        for layer, title in zip(layers, titles, strict=True)
    ]


def network_figure(network: Network | None, surface: Tensor, training: Training) -> Figure:
    """Draw the features, units and weights, the output over the plane with the points, and the losses.

    Without a network, that is for other models, only the output and the losses.
    """
    epoch = training.best_epoch
    shown = " ".join(filter(None, ["best epoch", "" if epoch is None else str(epoch)]))
    losses = losses_text(training, epoch, "train", "validation", "test")
    subtitle = f"{shown[0].upper()}{shown[1:]}" + (f": {losses}" if losses else "")
    if network is not None:
        subtitle = f"{network.description}\n{subtitle}"
    most = max(column.shown for column in columns_of(network)) if network else 0
    height = max(4.7, 1.1 + 0.32 * most) if network else 4.3
    title = f"{training.name}: " + ("units, weights and output of the network" if network else "output of the network")
    figure, (plane, curves) = new_figure(2, title=title, subtitle=subtitle, panel_inches=height)
    figure.set_layout_engine("none")
    figure_height = figure.get_figheight()

    def place(axes: Axes, left: float, bottom: float, width: float, high: float) -> None:
        axes.set_position((left / WIDTH_INCHES, bottom / figure_height, width / WIDTH_INCHES, high / figure_height))

    side, left = (2.2, WIDTH_INCHES - 2.5) if network else (3.2, 0.2)
    bottom = height - 0.25 - side
    place(plane, left, bottom, side, side)
    if network:
        place(curves, left + 0.2, 0.42, side - 0.15, bottom - 0.42 - 0.98)
    else:
        place(curves, 4.4, bottom, 2.6, side - 0.1)
    draw_surface(plane, surface)
    draw_points(plane, training.points, area=11)
    plane.set_title("output", fontsize=TEXT_POINTS, pad=4)
    plane.spines[["top", "right", "left", "bottom"]].set_visible(False)
    plane.yaxis.tick_right()
    plane.set(xticks=[-6, -3, 0, 3, 6], yticks=[-6, -3, 0, 3, 6])
    plane.tick_params(labelsize=SMALL_POINTS, length=2)
    _add_legends(plane, training, side=side)
    draw_losses(curves, training)
    curves.tick_params(labelsize=SMALL_POINTS)
    _mark_epoch(curves, training)
    if network is None:
        return figure
    canvas = figure.add_axes((0, 0, 1, height / figure_height), zorder=-1)
    canvas.set(xlim=(0, WIDTH_INCHES), ylim=(0, height))
    canvas.axis("off")
    _draw_network(canvas, network, height=height, target=(left, bottom + side / 2))
    return figure


def _add_legends(plane: Axes, training: Training, *, side: float) -> None:
    """Draw the scale of colours and the legend of points below the surface, which is ``side`` inches high."""
    bar = plane.inset_axes((0.0, -0.38 / side, 1.0, 0.08 / side))
    bar.imshow(np.linspace(-1, 1, 256)[None], cmap=COLORMAP, aspect="auto", extent=(-1, 1, 0, 1))
    bar.set(yticks=[], xticks=[-1, 0, 1])
    bar.spines[:].set_visible(False)
    bar.tick_params(labelsize=SMALL_POINTS, length=2, pad=1.5)
    handles, names = point_handles(training.points)
    plane.legend(
        handles,
        names,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.53 / side),
        ncols=2,
        handletextpad=0.2,
        columnspacing=1.2,
        **LEGEND,
    )


def _mark_epoch(axes: Axes, training: Training) -> None:
    """Mark the best epoch, and add the legend above the losses."""
    epoch = training.best_epoch
    if epoch is not None:
        axes.axvline(epoch, color=COLORS["reference"], linewidth=0.9, linestyle=":")
        for part, loss in training.losses(epoch).items():
            axes.plot([epoch], [loss], "o", color=COLORS[part], markersize=4, clip_on=False)
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.44, 1.0),
        ncols=3,
        handlelength=1.2,
        handletextpad=0.4,
        columnspacing=1.0,
        **LEGEND,
    )


def _draw_network(canvas: Axes, network: Network, *, height: float, target: tuple[float, float]) -> None:
    """Draw the columns of maps and the weights, on axes in inches; the last weights end at ``target``."""
    columns = columns_of(network)
    most = max(column.shown for column in columns)
    top, bottom = height - 0.25, 0.7
    first, last = 0.72, target[0] - 0.72
    xs = [first + (last - first) * i / (len(columns) - 1) for i in range(len(columns))] if network.hidden else [1.8]
    pitch = min(0.62, (top - bottom) / most)
    size = min(0.46, 0.8 * pitch, 0.55 * (last - first) / max(1, len(xs) - 1))
    middle = target[1] if most * pitch <= 2 * (top - target[1]) else (top + bottom) / 2
    maps = network.units(grid(UNIT_SIDE), most=MOST_UNITS)
    centres = [
        [(x, middle + pitch * ((column.shown - 1) / 2 - unit)) for unit in range(column.shown)]
        for x, column in zip(xs, columns, strict=True)
    ]
    _draw_weights(canvas, network, columns, centres, size=size, target=target)
    for column, places in zip(columns, centres, strict=True):
        x, upper = places[0]
        canvas.text(x, upper + size / 2 + 0.07, column.title, ha="center", fontsize=SMALL_POINTS)
        for unit, (x, y) in enumerate(places):
            picture = scaled(maps[column.layer][:, unit]).view(UNIT_SIDE, UNIT_SIDE).numpy()
            _draw_unit(canvas, picture, x, y, size)
            if column.layer == 0:
                name = FEATURE_LABELS[network.features[unit]]
                canvas.text(x - size / 2 - 0.06, y, name, ha="right", va="center", fontsize=TEXT_POINTS)
            else:
                bias = COLORMAP(LIMITS(float(network.biases[column.layer - 1][unit])))
                corner, edge = (x - size / 2 - 0.02, y - size / 2 - 0.02), max(0.05, size / 6)
                canvas.add_patch(
                    Rectangle(corner, edge, edge, facecolor=bias, edgecolor="white", linewidth=0.5, zorder=4)
                )
        if column.hidden:
            lower = places[-1][1] - size / 2 - 0.07
            canvas.text(x, lower, f"+ {column.hidden:,} more", ha="center", va="top", fontsize=SMALL_POINTS)
    note = (
        "Lines: weights, blue if positive and orange if negative; the width grows with the magnitude, which is at "
        f"most {network.largest_weight:.3g}. Small square: bias. A map with values beyond ±1 is divided by its largest "
        "magnitude; the output is clipped to [-1, 1]."
    )
    if len(columns) <= len(network.hidden):
        note += f" {1 + len(network.hidden) - len(columns)} layers in the middle are not drawn."
    lines = textwrap.wrap(note, 88)
    canvas.text(0.1, 0.08, "\n".join(lines), fontsize=SMALL_POINTS - 0.7, color=COLORS["reference"], va="bottom")


def _draw_unit(canvas: Axes, values: npt.NDArray[np.float64], x: float, y: float, size: float) -> None:
    half = size / 2
    frame = Rectangle((x - half, y - half), size, size, facecolor="white", edgecolor="#888888", linewidth=0.5, zorder=3)
    canvas.add_patch(frame)
    canvas.imshow(
        values,
        cmap=COLORMAP,
        norm=LIMITS,
        extent=(x - half, x + half, y - half, y + half),
        aspect="auto",
        interpolation="bilinear",
        zorder=3.5,
    )


def _draw_weights(
    canvas: Axes,
    network: Network,
    columns: Sequence[Column],
    centres: Sequence[Sequence[tuple[float, float]]],
    *,
    size: float,
    target: tuple[float, float],
) -> None:
    """Draw the weights between adjacent layers as curves, the largest on top."""
    lines: list[tuple[float, Curve]] = []
    for i, column in enumerate(columns):
        if i + 1 == len(columns):
            ends = [target]
        elif columns[i + 1].layer == column.layer + 1:
            ends = [(x - size / 2, y) for x, y in centres[i + 1]]
        else:
            continue
        weight = network.weights[column.layer]
        for source, (x, y) in enumerate(centres[i]):
            for unit, end in enumerate(ends):
                start, value = (x + size / 2, y), float(weight[unit, source])
                bend = (start[0] + end[0]) / 2
                curve = Curve([start, (bend, y), (bend, end[1]), end], [1, 4, 4, 4])
                if np.isfinite(value):
                    lines.append((value, curve))
    lines.sort(key=lambda line: abs(line[0]))
    values = np.array([value for value, _ in lines])
    canvas.add_collection(
        PathCollection(
            [curve for _, curve in lines],
            facecolors="none",
            edgecolors=COLORMAP(LIMITS(values)),
            linewidths=0.3 + WIDEST_POINTS * size * np.abs(values) / max(1.0, network.largest_weight),
            zorder=2,
        ),
        autolim=False,
    )


def filmstrip(networks: Mapping[int, Network], training: Training, *, frames: int, side: int) -> Figure:
    """Draw the output with the training points at some epochs, which are closer together at the start."""
    epochs = sorted(networks)
    chosen = [epochs[i] for i in dense_at_first(len(epochs), frames)]
    figure, all_axes = new_figure(
        len(chosen),
        title=f"{training.name}: the output during training",
        subtitle="Training points on the output of the network over [-6, 6]², clipped to [-1, 1]",
        columns=min(FILMSTRIP_COLUMNS, len(chosen)),
        panel_inches=1.85,
        foot_inches=0.0,
    )
    for axes, epoch in zip(all_axes, chosen, strict=True):
        draw_surface(axes, networks[epoch].surface(side))
        draw_points(axes, training.points[:1], area=5)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        before = "before training" if epoch == 0 else losses_text(training, epoch, "test")
        axes.set_title(f"epoch {epoch:,}\n{before}", fontsize=SMALL_POINTS + 0.5)
    return figure
