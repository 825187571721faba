"""The quick drawing of learning curves shows the same as matplotlib's own."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dlhw.views import rendering
from dlhw.views.plots import COLORS, DPI, curves_png
from support.figures import curves


def rows(epochs: int, *, test: bool = True, quantity: str = "error_percent", **fixed: float) -> list[dict[str, float]]:
    parts = ("train", "val", "test") if test else ("train", "val")
    row = {f"{part}_{name}": scale * (1 + k / 4) for k, part in enumerate(parts)
           for name, scale in (("loss", 2.0), (quantity, 60.0))}  # fmt: skip
    return [
        {"epoch": epoch, **{name: value / epoch for name, value in row.items()}, **fixed}
        for epoch in range(1, epochs + 1)
    ]


@pytest.mark.parametrize(
    ("of", "options"),
    [
        (rows(1), {}),
        (rows(4), {"best_epoch": 3, "flood": 0.05}),  # with markers
        (rows(60), {"best_epoch": 3, "title": "a_name: a model on data,\nin two lines"}),
        (rows(60, train_loss=0.0), {"flood": 0.05}),  # a logarithmic axis from zero
        (rows(20, train_loss=0.5, val_loss=0.5, test_loss=0.5, train_error_percent=100.0), {}),
        (rows(40, quantity="mse", test=False), {"best_epoch": 40}),
        (rows(9, train_loss=math.nan, val_loss=math.nan, test_loss=math.inf), {"best_epoch": None}),
        (rows(9, train_loss=1e-300), {}),
    ],
)
def test_picture_looks_like_matplotlibs(of: list[dict[str, float]], options: dict[str, Any]) -> None:
    options = {"title": "cost $x_1", "best_epoch": 1} | options
    picture, expected = Image.open(io.BytesIO(curves_png(of, **options))), io.BytesIO()
    curves(of, **options).savefig(expected, format="png")
    drawn, own = (np.asarray(image.convert("RGB"), float) for image in (picture, Image.open(expected)))
    assert drawn.shape == own.shape
    assert picture.info["dpi"] == pytest.approx((DPI, DPI), abs=0.1)
    # Texts may be at other fractions of a pixel, so that only their blocks of pixels have equal colours.
    height, width = (size // 20 * 20 for size in own.shape[:2])
    blocks = [255 - image[:height, :width].reshape(height // 20, 20, width // 20, 20, 3).mean((1, 3))
              for image in (drawn, own)]  # fmt: skip
    assert np.abs(blocks[0] - blocks[1]).max() < 40
    assert np.abs(blocks[0] - blocks[1]).sum() < 0.1 * blocks[1].sum()


class Noted(rendering._Drawing):
    """A drawing that notes its texts with their positions, and the ends of its straight lines by colour and width."""

    def __init__(self, plot: rendering.Plot) -> None:
        super().__init__(plot)
        self.texts: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.ends: dict[tuple[str, float], list[Any]] = defaultdict(list)

    def text(self, text: str, x: float, y: float, **style: Any) -> None:
        self.texts[text].append((x, y))
        super().text(text, x, y, **style)

    def segments(self, segments: Any, **style: Any) -> None:
        self.ends[style["color"], style["points"]].append(segments)
        super().segments(segments, **style)


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[Noted]:
    """The drawings of a test."""
    drawings: list[Noted] = []

    def drawing(plot: rendering.Plot) -> Noted:
        drawings.append(Noted(plot))
        return drawings[-1]

    monkeypatch.setattr(rendering, "_Drawing", drawing)
    return drawings


def test_names_in_the_legend_are_beside_the_handles_of_their_curves(noted: list[Noted]) -> None:
    picture = Image.open(io.BytesIO(curves_png(rows(40), title="t", best_epoch=None)))
    (drawing,) = noted
    for name, color in (("train", COLORS["train"]), ("validation", COLORS["validation"]), ("test", COLORS["test"])):
        ((x, y),) = drawing.texts[name]
        pixel = picture.getpixel((int(x) - 20, picture.height - int(y) - 8))
        assert pixel == tuple(bytes.fromhex(color[1:])), name


def test_every_label_of_an_axis_has_a_tick_and_a_line_of_the_grid(noted: list[Noted]) -> None:
    curves_png(rows(400), title="t", best_epoch=None)
    (drawing,) = noted
    ticks = drawing.ends[rendering.AXIS_COLOR, rendering._MAJOR[1]][0]
    grid = drawing.ends[rendering.GRID_COLOR, rendering.GRID_POINTS][0]
    below = {round(top[0]) for bottom, top in ticks if bottom[0] == top[0]}
    beside = {round(right[1]) for left, right in ticks if left[1] == right[1]}
    label_places = {round(x) for places in drawing.texts.values() for x, _ in places}
    assert len(below) >= 4
    assert below <= label_places
    assert len(ticks) == len(grid)
    assert {round(start[0]) for start, end in grid if start[0] == end[0]} == below
    assert {round(start[1]) for start, end in grid if start[1] == end[1]} == beside
    minor = drawing.ends[rendering.AXIS_COLOR, rendering._MINOR[1]][0]
    assert len(minor) >= 4  # of the logarithmic axis


@pytest.mark.parametrize("value", [1e300, 1.7e308, -1.7e308, 5e-324])
def test_values_near_the_limits_of_floating_point_numbers_can_be_drawn(value: float) -> None:
    picture = curves_png(rows(4, train_loss=value, val_loss=value, test_loss=value), title="t", best_epoch=1)
    assert Image.open(io.BytesIO(picture)).width == 1152
