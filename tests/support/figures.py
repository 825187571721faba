"""Draw figures, and read the lines and texts that they show."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dlhw.views import plots


def curves(
    rows: Sequence[Mapping[str, float]],
    *,
    title: str,
    subtitle: str = "",
    best_epoch: int | None,
    flood: float = 0.0,
    train_label: str = "train",
    loss_label: str = "loss",
) -> Figure:
    """Draw the learning curves of :func:`dlhw.views.plots.curves_png` with matplotlib."""
    quantities = plots._quantities(rows, loss_label)
    notes = "\n".join(filter(None, [subtitle, plots._results(rows, best_epoch), plots._divergence(rows)]))
    figure, all_axes = plots.new_figure(len(quantities), title=title, subtitle=notes)
    lines = plots._draw_curves(all_axes, rows, quantities, best_epoch=best_epoch, flood=flood, train_label=train_label)
    if lines:
        handles, names = list(lines.values()), list(lines)
        place = {"bbox_to_anchor": (0.5, 0.0), "borderaxespad": 0.0}
        legend = plots.add_legend(figure, handles, names, loc="lower center", columns=len(lines), **place)
        for handle in legend.get_lines():
            handle.set_linewidth(max(1.4, handle.get_linewidth()))
    height = figure.get_figheight()
    top = (plots._PANEL_INCHES - plots._GAP_INCHES) / height
    figure.set_layout_engine("none")
    plots._fit_to_labels(all_axes, height=height, top=top, foot_inches=0.24 if lines else 0.0)
    return figure


def draw(figure: Figure) -> tuple[int, int]:
    """Draw a figure as saving does. Return its size in pixels."""
    from PIL import Image

    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file).size


def labelled_line(axes: Axes, label: str) -> Line2D:
    """Return the only line with this label."""
    (match,) = (candidate for candidate in axes.get_lines() if candidate.get_label() == label)
    return match


def heading(figure: Figure) -> str:
    """Return the title and the lines below it."""
    return "\n".join(text.get_text() for text in figure.texts)


def legend_labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]
