"""Panels that compare settings: lines, bands, colours, scales, legends."""

from __future__ import annotations

import math

import pytest

from dlhw.views.comparison.panels import (
    Panel,
    Series,
    compared_against,
    compared_curves,
    compared_layers,
    setting_colors,
)
from dlhw.views.plots import PALETTE
from support.figures import draw, labelled_line, legend_labels


def series_of_settings(count: int, **options: object) -> list[Series]:
    """Return falling lines for b = 0, 1, ..., of which b = 1 is the best."""
    colors = setting_colors([float(i) for i in range(count)])
    return [
        Series(f"b = {i}", colors[i], [1, 2, 3], [i + 3.0, i + 2.0, i + 1.0], best=i == 1, **options)  # type: ignore[arg-type]
        for i in range(count)
    ]


def test_compared_curves_show_means_bands_and_setting_names() -> None:
    losses = series_of_settings(3, spread=[0.5, 0.5, math.nan])
    panels = [Panel("train loss", losses), Panel("error (%)", series_of_settings(3))]
    figure = compared_curves(panels, title="t", subtitle="n = 2")
    draw(figure)
    loss, error = figure.axes
    assert (loss.get_ylabel(), error.get_ylabel()) == ("train loss", "error (%)")
    assert list(labelled_line(loss, "b = 2").get_ydata()) == [5, 4, 3]
    band = loss.collections[0].get_paths()[0].vertices
    assert {(x, y) for x, y in band} >= {(1, 2.5), (1, 3.5), (2, 1.5), (2, 2.5), (3, 1.0)}
    assert not error.collections
    assert legend_labels(figure) == ["b = 0", "b = 1 (best)", "b = 2"]
    assert labelled_line(loss, "b = 1").get_zorder() > labelled_line(loss, "b = 2").get_zorder()
    assert [labelled_line(axes, "b = 2").get_color() for axes in figure.axes] == [PALETTE[2]] * 2


def test_accuracy_axis_is_linear_and_loss_axis_logarithmic() -> None:
    series = Series("", PALETTE[0], [1, 2, 3], [0.01, 0.5, 0.99])
    figure = compared_curves([Panel("test accuracy", [series]), Panel("test loss", [series])], title="t")
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log"]


def test_many_settings_have_a_colour_scale_and_a_shortened_legend() -> None:
    figure = compared_curves([Panel("loss", series_of_settings(40, spread=[0.1] * 3))], title="t")
    draw(figure)
    labels = legend_labels(figure)
    assert len(labels) <= 11
    assert {"b = 0", "b = 1 (best)", "b = 39"} <= set(labels)
    assert len(figure.axes[0].get_lines()) == 40
    assert len(figure.axes[0].collections) == 1


def test_setting_colours_are_distinct_and_ordered_by_value() -> None:
    assert setting_colors([None] * 7) == list(PALETTE)
    rising = setting_colors([float(i) for i in range(20)])
    falling = setting_colors([-float(i) for i in range(20)])
    assert len(set(rising)) == 20
    assert rising == falling[::-1]
    assert setting_colors([None] * 20) == rising
    assert set(setting_colors([1.0, 2.0] * 5, best=3)) == {rising[0], rising[-1], PALETTE[1]}


@pytest.mark.parametrize(
    ("x", "scale"),
    [
        ([0.01, 0.02, 0.03], "linear"),
        ([0.0, 0.05, 0.1, 0.15, 0.2], "linear"),
        ([0.001, 0.01, 0.1], "log"),
        ([0.0, 0.001, 0.01, 0.1], "symlog"),
        ([1.0, 100.0], "log"),
        ([10.0 * i for i in range(1, 20)], "linear"),
        ([-1.0, 1.0, 100.0], "linear"),
        ([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0], "log"),
    ],
)
def test_key_axis_is_logarithmic_if_its_values_are_spaced_by_factors(x: list[float], scale: str) -> None:
    series = Series("", PALETTE[0], x, [float(i) for i in range(1, len(x) + 1)], [0.1] * len(x))
    figure = compared_against([Panel("val", [series]), Panel("test", [series])], key="b", optimum=x[0], title="t")
    draw(figure)
    for axes in figure.axes:
        assert axes.get_xscale() == scale
        left, right = axes.get_xlim()
        assert left < x[0] < x[-1] < right
        assert axes.get_xlabel() == "b"
    if scale == "symlog":
        assert "0" in [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert not figure.legends


def test_layers_before_and_after_training_share_the_y_axis() -> None:
    before, after = (
        Panel("std", [Series("a", PALETTE[0], [1, 2], y)], title=title)
        for y, title in (([1.0, 0.001], "before training"), ([5.0, 50.0], "after 3 epochs"))
    )
    figure = compared_layers([before, after], layers=["in", "out"], title="t")
    draw(figure)
    left, right = figure.axes
    assert left.get_ylim() == right.get_ylim()
    assert left.get_yscale() == right.get_yscale() == "log"
    assert [text.get_text() for text in left.get_xticklabels()] == ["in", "out"]


def test_equal_lines_are_all_visible() -> None:
    """Each of three equal lines has a dash where the others have a gap; markers are rings of different sizes."""
    equal = [Series(f"b = {i}", PALETTE[i], [1, 2, 3], [3.0, 2.0, 1.0]) for i in range(3)]
    figure = compared_curves(
        [Panel("loss", [*equal, Series("other", PALETTE[3], [1, 2, 3], [1.0, 2.0, 3.0])])], title="t"
    )
    draw(figure)
    lines = [labelled_line(figure.axes[0], f"b = {i}") for i in range(3)]
    assert [line.get_linestyle() for line in lines] == ["--"] * 3
    assert [line._unscaled_dash_pattern for line in lines] == [
        (0.0, (6.0, 12.0)),
        (12.0, (6.0, 12.0)),
        (6.0, (6.0, 12.0)),
    ]
    assert [line.get_markersize() for line in lines] == [8.5, 6.0, 3.5]
    assert labelled_line(figure.axes[0], "other").get_linestyle() == "-"
