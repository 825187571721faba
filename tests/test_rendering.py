"""The quick drawing of learning curves shows the same as matplotlib's own."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dlhw.views.plots import DPI, curves, curves_png


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
    drawn, own = (np.asarray(image.convert("L"), float) for image in (picture, Image.open(expected)))
    assert drawn.shape == own.shape
    assert picture.info["dpi"] == pytest.approx((DPI, DPI), abs=0.1)
    # Texts may be at other fractions of a pixel, so that only their blocks of pixels are equally dark.
    height, width = (size // 20 * 20 for size in own.shape)
    blocks = [255 - image[:height, :width].reshape(height // 20, 20, width // 20, 20).mean((1, 3))
              for image in (drawn, own)]  # fmt: skip
    assert np.abs(blocks[0] - blocks[1]).max() < 40
    assert np.abs(blocks[0] - blocks[1]).sum() < 0.1 * blocks[1].sum()
