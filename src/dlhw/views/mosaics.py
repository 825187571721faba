"""Many small pictures as one: filters, or the maps that they give, as tiles of a grid."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from torch import Tensor

from dlhw.views.plots import TEXT_POINTS, new_figure


def mosaic(tiles: Tensor) -> Tensor:
    """Tiles (N, C, H, W) in 0..1 as one picture (rows, columns, C) of about as many rows as columns, on white."""
    count, channels, height, width = tiles.shape
    columns = math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    gap = max(1, height // 14)
    spaced = torch.ones(rows * columns, channels, height + gap, width + gap, dtype=torch.float64)
    spaced[:count, :, :height, :width] = tiles
    grid = spaced.view(rows, columns, channels, height + gap, width + gap).permute(0, 3, 1, 4, 2)
    return grid.reshape(rows * (height + gap), columns * (width + gap), channels)[:-gap, :-gap]


def around_grey(weights: Tensor, largest: Tensor) -> Tensor:
    """Weights of -largest..largest as 0..1: middle grey is 0."""
    return 0.5 + weights / (2 * largest.clamp(min=1e-12))


def side_by_side(mosaics: Mapping[str, Tensor], *, title: str, subtitle: str) -> Figure:
    """The mosaics under their names, in grey where they have one channel."""
    inches = 7.0 if len(mosaics) == 1 else 7.5 / len(mosaics)
    figure, panels = new_figure(len(mosaics), title=title, subtitle=subtitle, panel_inches=inches)
    for axes, (name, each) in zip(panels, mosaics.items(), strict=True):
        axes.imshow(each.squeeze(2).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(name, fontsize=TEXT_POINTS)
    return figure
