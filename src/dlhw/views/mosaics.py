"""Draw many small pictures, such as filters or feature maps, as the tiles of one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from torch import Tensor

from dlhw.views.plots import TEXT_POINTS, new_figure


def mosaic(tiles: Tensor) -> Tensor:
    """Arrange tiles (N, C, H, W) in [0, 1] in a square grid on white. Return a picture (height, width, C)."""
    count, channels, height, width = tiles.shape
    columns = math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    gap = max(1, height // 14)
    spaced = torch.ones(rows * columns, channels, height + gap, width + gap, dtype=torch.float64)
    spaced[:count, :, :height, :width] = tiles
    grid = spaced.view(rows, columns, channels, height + gap, width + gap).permute(0, 3, 1, 4, 2)
    return grid.reshape(rows * (height + gap), columns * (width + gap), channels)[:-gap, :-gap]


def around_grey(weights: Tensor, largest: Tensor) -> Tensor:
    """Map weights in [-largest, largest] to [0, 1], so that 0 is drawn as middle grey."""
    return 0.5 + weights / (2 * largest.clamp(min=1e-12))


def side_by_side(mosaics: Mapping[str, Tensor], *, title: str, subtitle: str) -> Figure:
    """Draw mosaics side by side, with their names as titles; in grey if they have one channel."""
    inches = 7.0 if len(mosaics) == 1 else 7.5 / len(mosaics)
    figure, panels = new_figure(len(mosaics), title=title, subtitle=subtitle, panel_inches=inches)
    for axes, (name, picture) in zip(panels, mosaics.items(), strict=True):
        axes.imshow(picture.squeeze(2).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(name, fontsize=TEXT_POINTS)
    return figure
