"""Draw figures, and read the lines and texts that they show."""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D


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
