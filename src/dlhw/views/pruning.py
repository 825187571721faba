"""Figures of pruned networks: histograms of the sizes of weights, and the loss against the number of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from dlhw.views.plots import COLORS, PALETTE, Numbers, add_legend, label, new_figure
from dlhw.views.rendering import TICK_POINTS

BINS = np.logspace(-4, 1, 31)
"""Edges of the bins of |w|. Weights beyond them count in the first and the last bin."""


def plot_histograms(panels: Mapping[str, Mapping[str, Tensor]], *, initial: float, title: str, subtitle: str) -> Figure:
    """Plot the shares of weights by log10 |w|, for each panel some settings by name with their weights.

    Weights that are 0 are in no bin; a note in the panel has their share. The dotted line is for weights from
    U(-initial, initial).
    """
    figure, all_axes = new_figure(len(panels), title=title, subtitle=subtitle, panel_inches=2.5, foot_inches=0.3)
    edges = np.array([0.0, *BINS[1:-1], np.inf])
    before = 100 * np.diff(np.minimum(edges, initial) / initial)
    for axes, (name, weights_by_setting) in zip(all_axes, panels.items(), strict=True):
        axes.stairs(before, BINS, color=COLORS["reference"], linestyle=":", linewidth=1.2, label="before training")
        notes = 0
        for color, (setting, weights) in zip(PALETTE, weights_by_setting.items(), strict=False):
            sizes = weights.abs().flatten().double()
            counts, _ = np.histogram(sizes[sizes > 0].numpy(), edges)
            axes.stairs(100 * counts / len(sizes), BINS, color=color, linewidth=1.6, label=setting)
            if zeros := float((sizes == 0).double().mean()):
                note = f"{setting}: {100 * zeros:.0f} % are 0"
                height = 0.95 - 0.09 * notes
                axes.text(0.03, height, note, color=color, fontsize=TICK_POINTS, transform=axes.transAxes, va="top")
                notes += 1
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        label(axes, x="|w| after training", y="weights (%)" if axes is all_axes[0] else "", title=name, legend=False)
    _same_limits(all_axes)
    handles, names = all_axes[0].get_legend_handles_labels()
    add_legend(figure, handles, names, loc="outside lower center", columns=4)
    return figure


@dataclass(frozen=True)
class Curve:
    """The losses of networks with several numbers of weights; one row of losses (n, S) for each number."""

    name: str
    weights: Sequence[int]
    losses: Tensor
    color: str
    marker: str
    dashed: bool


def plot_losses(panels: Mapping[str, Sequence[Curve]], *, level: float, title: str, subtitle: str) -> Figure:
    """Plot the median test loss against the number of weights, in rows of three panels; a band for solid curves.

    The bands are between the quartiles. ``level`` is the loss below which a network counts as successful.
    """
    figure, all_axes = new_figure(
        len(panels), title=title, subtitle=subtitle, columns=3, panel_inches=2.7, foot_inches=0.6
    )
    for i, (axes, (name, curves)) in enumerate(zip(all_axes, panels.items(), strict=True)):
        axes.set_xscale("log")
        axes.set_yscale("log")
        for curve in curves:
            lower, median, upper = curve.losses.quantile(torch.tensor([0.25, 0.5, 0.75]).to(curve.losses), dim=1)
            style = "--" if curve.dashed else "-"
            axes.plot(
                curve.weights,
                median,
                style,
                color=curve.color,
                linewidth=1.5,
                marker=curve.marker,
                markersize=3,
                label=curve.name,
            )
            if not curve.dashed:
                axes.fill_between(curve.weights, lower, upper, color=curve.color, alpha=0.15, linewidth=0)
        axes.axhline(level, color=COLORS["reference"], linestyle=":", linewidth=1, label=f"test loss {level:g}")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_major_formatter(Numbers())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(Numbers())
        axes.yaxis.set_minor_formatter(NullFormatter())
        label(axes, x="weights left", y="" if i % 3 else "test loss", title=name, legend=False)
    _same_limits(all_axes)
    handles, names = all_axes[0].get_legend_handles_labels()
    add_legend(figure, handles, names, loc="outside lower center", columns=2)
    return figure


def _same_limits(all_axes: Sequence[Axes]) -> None:
    lows, highs = zip(*(axes.get_ylim() for axes in all_axes), strict=True)
    left, right = zip(*(axes.get_xlim() for axes in all_axes), strict=True)
    for axes in all_axes:
        axes.set_ylim(min(lows), max(highs))
        axes.set_xlim(min(left), max(right))
