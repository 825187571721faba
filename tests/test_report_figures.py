"""The figures of a report: pictures, captions, confusion matrix, accuracy by class, filters."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlhw.views.report import figures
from dlhw.views.report.classification import network_inputs, to_pictures
from dlhw.views.report.evaluation import EvaluatedPart, evaluate_part
from dlhw.views.report.filters import LayerFilters
from support.classifiers import random_pictures, small_cnn


@pytest.mark.parametrize(("channels", "size"), [(1, None), (3, None), (3, 12), (2, None)])
def test_pictures_are_drawn_at_the_size_of_the_network_input(channels: int, size: int | None) -> None:
    data = random_pictures(channels=channels, size=size)
    evaluated = evaluate_part(small_cnn(data).eval(), data, "val", data.val, batch_size=100)
    shown = to_pictures(data, network_inputs(data, evaluated, [2, 0]))
    x = data.val.x[[2, 0]].double()
    if size is not None:
        x = nn.functional.interpolate(x, (size, size), mode="bilinear", antialias=True)
    x = x if channels == 3 else x.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert shown.shape == (2, size or 8, size or 8, 3)
    white = data.normalize.inverse(data.normalize(data.val.x[[2, 0]])).max()
    assert float((shown - x.movedim(1, -1) / white).abs().max()) < 1e-12


def made_up_part(part: str, classes: int) -> EvaluatedPart:
    """Return 500 predictions, a fifth of them wrong. No sample is in the last class."""
    count = 500
    labels = torch.arange(count) % (classes - 1)
    predicted = torch.where(torch.arange(count) % 5 == 0, (labels + 1) % classes, labels)
    probability = torch.linspace(0.3, 1, count, dtype=torch.float64)
    names = tuple(f"$class_{i}$ of a rather long name" for i in range(classes))
    return EvaluatedPart(part, names, torch.arange(count), labels, predicted, probability, probability)


@pytest.mark.parametrize("parts", [("val",), ("val", "test")])
@pytest.mark.parametrize("classes", [2, 10, 101])
def test_counts_are_shown_for_few_classes_and_accuracies_for_at_most_100(classes: int, parts: tuple[str, ...]) -> None:
    evaluated = [made_up_part(part, classes) for part in parts]
    matrix, accuracies = figures.confusion(evaluated, name="x"), figures.per_class(evaluated, 0.95, name="x")
    matrix.canvas.draw()
    cells = [text.get_text() for axes in matrix.axes for text in axes.texts]
    counts = torch.cat([part.confusion.flatten() for part in evaluated])
    assert len(cells) == (int((counts > 0).sum()) if classes <= 12 else 0)
    if classes <= 12:
        assert sum(int(cell.splitlines()[1]) for cell in cells) == 500 * len(parts)
    accuracies.canvas.draw()
    for axes in accuracies.axes:
        assert len(axes.get_yticks()) == min(classes, 100)


def test_captions_contain_classes_probability_and_file_name() -> None:
    evaluated = made_up_part("val", 3)
    pictures = torch.zeros(2, 4, 4, 3)
    names = [f"val/a/{row}_and_more_words_than_there_is_room.jpg" for row in range(500)]
    figure = figures.mistakes(evaluated, evaluated.mistakes[:2], pictures, names=names, name="x")
    assert figure.axes[0].get_title() == (
        "true: $class_1$…ong name\npredicted: $class_2$…ong name, 99.4 %\n495_and_more_…_is_room.jpg"
    )


def tiles(axes: Any, count: int) -> Tensor:
    """Return the 3x3 filters in a mosaic, (count, 3, 3, ...)."""
    drawn = torch.as_tensor(axes.images[0].get_array())
    columns = math.ceil(math.sqrt(count))
    corners = [(4 * (i // columns), 4 * (i % columns)) for i in range(count)]
    return torch.stack([drawn[row : row + 3, column : column + 3] for row, column in corners])


def test_filters_and_their_change_are_drawn_around_middle_grey() -> None:
    before = torch.randn(5, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    change = 0.1 * before.flip(0)
    drawn = figures.filters(LayerFilters("conv1", before, before + change), name="x").axes
    largest = torch.maximum(before.abs(), (before + change).abs()).amax((1, 2, 3), keepdim=True)
    expected = [before / largest, (before + change) / largest, change / change.abs().max()]
    for axes, weights in zip(drawn, expected, strict=True):
        assert float((tiles(axes, 5) - (0.5 + weights.movedim(1, -1) / 2)).abs().max()) < 1e-12


def test_only_the_64_most_changed_filters_are_drawn() -> None:
    before = torch.zeros(100, 7, 3, 3, dtype=torch.float64)
    after = before + torch.arange(100).view(-1, 1, 1, 1)
    figure = figures.filters(LayerFilters("conv1", before, after), name="x")
    subtitle = " ".join(text.get_text() for text in figure.texts)
    assert "The 64 of 100 filters that changed most, in order, first of 7 channels" in subtitle
    shown = tiles(figure.axes[2], 64)[:, 0, 0]
    assert float((shown - (0.5 + torch.arange(99, 35, -1, dtype=torch.float64) / 198)).abs().max()) < 1e-12
