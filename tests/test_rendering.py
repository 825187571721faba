"""The quick drawing of learning curves shows the same as matplotlib's own."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dlhw.views.plots import DPI, curves
from dlhw.views.rendering import png


@pytest.mark.parametrize("epochs", [4, 60])  # with and without markers
def test_picture_looks_like_matplotlibs(epochs: int) -> None:
    rows = [{"epoch": n, "train_loss": 2 / n, "val_loss": 2.5 / n, "val_error_percent": 60 / n} for n in
            range(1, epochs + 1)]  # fmt: skip
    figure = curves(rows, title="title", best_epoch=3, flood=0.05)
    picture = Image.open(io.BytesIO(png(figure)))
    expected = io.BytesIO()
    figure.savefig(expected, format="png")
    drawn, own = (np.asarray(image.convert("L"), float) for image in (picture, Image.open(expected)))
    assert drawn.shape == own.shape
    assert picture.info["dpi"] == pytest.approx((DPI, DPI), abs=0.1)
    rows_and_columns = [np.abs((255 - drawn).sum(axis) - (255 - own).sum(axis)).sum() for axis in (0, 1)]
    ink = (255 - own).sum()
    assert max(rows_and_columns) < 0.2 * ink
