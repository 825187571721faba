"""The panels that the figures and the animation of a network in the plane share: output, points and losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator
from torch import Tensor

from dlhw.views.playground.networks import HALF_SIDE
from dlhw.views.playground.snapshots import Points, Training
from dlhw.views.plots import COLORS, MARKED_POINTS, TEXT_POINTS, Numbers, scale_epochs, scale_values

COLORMAP = LinearSegmentedColormap.from_list("playground", ["#f59322", "#e8eaeb", "#0877bd"])
"""The colours of the page for -1, 0 and +1."""
LIMITS = Normalize(-1, 1, clip=True)
OPACITY = 160 / 255
"""That of the output, as on the page, so that points of the same colour can be seen on it."""
EXTENT = (-HALF_SIDE, HALF_SIDE, -HALF_SIDE, HALF_SIDE)


def draw_surface(axes: Axes, surface: Tensor, *, animated: bool = False) -> Any:
    """Draw the output of a network over the square, clipped to [-1, 1]."""
    axes.grid(False)
    axes.set_aspect("equal")
    image = axes.imshow(
        surface.clamp(-1, 1).numpy(),
        cmap=COLORMAP,
        norm=LIMITS,
        alpha=OPACITY,
        extent=EXTENT,
        interpolation="bilinear",
        animated=animated,
    )
    axes.set(xlim=EXTENT[:2], ylim=EXTENT[2:])
    return image


def draw_points(axes: Axes, points: Sequence[Points], *, area: float) -> list[PathCollection]:
    """Draw points in the colours of their targets clipped to [-1, 1]; those of the test part have a white centre."""
    drawn = []
    for part in points:
        x, y = part.inputs.T.numpy()
        colors = COLORMAP(LIMITS(part.targets.numpy()))
        drawn.append(axes.scatter(x, y, s=area, c=colors, edgecolors=edge_color(part), linewidths=0.12 * area**0.5))
        if part.part == "test":
            drawn.append(axes.scatter(x, y, s=0.25 * area, c="white", edgecolors="none"))
    return drawn


def edge_color(points: Points) -> str:
    """Return the colour around points: white, or grey where numbers near 0 would make them invisible."""
    return "white" if bool((points.targets.abs() == 1).all()) else "#777777"


def point_handles(points: Sequence[Points]) -> tuple[list[Line2D], list[str]]:
    """Return the entries of a legend for points."""
    styles: dict[str, dict[str, Any]] = {
        "training": {"markerfacecolor": COLORS["reference"], "markeredgecolor": "white", "markeredgewidth": 0.4},
        "test": {"markerfacecolor": "white", "markeredgecolor": COLORS["reference"], "markeredgewidth": 1.2},
    }
    handles = [Line2D([], [], linestyle="", marker="o", markersize=4.5, **styles[part.part]) for part in points]
    return handles, [part.label for part in points]


def draw_losses(axes: Axes, training: Training) -> None:
    """Draw the losses of all parts on a logarithmic axis."""
    values: list[float] = []
    order = {"train": 2.0, "validation": 2.2, "test": 2.1}
    for name, zorder in order.items():
        epochs, losses = training.curve(name)
        marker = "o" if len(epochs) <= MARKED_POINTS else ""
        axes.plot(
            epochs, losses, color=COLORS[name], label=name, linewidth=1.0, marker=marker, markersize=2.5, zorder=zorder
        )
        values += losses
    scale_values(axes, values)
    if values and min(values) > 0 and axes.get_yscale() == "linear":  # they span less than a decade
        axes.set_ylim(min(values) / 1.05, max(values) * 1.05)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(Numbers(aligned=True))
        axes.yaxis.set_minor_locator(NullLocator())
    if training.rows:
        scale_epochs(axes, training.rows, training.best_epoch)
    axes.set_xlabel("epoch", fontsize=TEXT_POINTS)
    axes.set_ylabel("loss", fontsize=TEXT_POINTS)


def losses_text(training: Training, epoch: int | None, *parts: str) -> str:
    """Return the losses of an epoch as text, such as ``train loss 0.34, test loss 0.36``."""
    losses = training.losses(epoch)
    return ", ".join(f"{part} loss {losses[part]:.3g}" for part in parts if part in losses)
