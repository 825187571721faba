"""Figures of a single run: lines, axes, headings and labels; no figure causes a warning when it is drawn."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from dlhw.views.plots import COLORS, DPI, PALETTE, Numbers, column_label, label, new_figure
from support.figures import curves, draw, heading, labelled_line, legend_labels
from support.marks import slow


def metric_rows(epochs: int, *, test: bool = True, **fixed: float) -> list[dict[str, float]]:
    """Return rows of metrics.csv with losses and errors in proportion to 1 / epoch, or ``fixed`` values."""
    rows = []
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "step": 10 * epoch, "lr": 0.1, "train_accuracy": 90.0}
        row |= {"train_loss": 2.0 / epoch, "train_error_percent": 60.0 / epoch}
        row |= {"val_loss": 2.5 / epoch, "val_error_percent": 65.0 / epoch}
        if test:
            row |= {"test_loss": 2.6 / epoch, "test_error_percent": 66.0 / epoch}
        rows.append(row | fixed)
    return rows


def test_lines_show_the_values_of_the_rows() -> None:
    rows = metric_rows(4)
    figure = curves(rows, title="t", best_epoch=3)
    for axes, quantity in zip(figure.axes, ("loss", "error_percent"), strict=True):
        for name, prefix in (("train", "train"), ("validation", "val"), ("test", "test")):
            drawn = labelled_line(axes, name)
            assert list(drawn.get_xdata()) == [1, 2, 3, 4]
            assert list(drawn.get_ydata()) == [row[f"{prefix}_{quantity}"] for row in rows]
            assert drawn.get_color() == COLORS[name]
    draw(figure)


def test_axes_and_legend_are_labelled() -> None:
    figure = curves(
        metric_rows(4),
        title="t",
        best_epoch=3,
        flood=0.05,
        train_label="train (flooded)",
        loss_label="cross-entropy (nats)",
    )
    loss, error = figure.axes
    assert (loss.get_xlabel(), loss.get_ylabel()) == ("epoch", "cross-entropy (nats)")
    assert (error.get_xlabel(), error.get_ylabel()) == ("epoch", "error (%)")
    assert legend_labels(figure) == ["train (flooded)", "validation", "test", "b = 0.05", "best epoch 3"]


def test_best_epoch_is_a_vertical_line_in_both_panels() -> None:
    figure = curves(metric_rows(4), title="t", best_epoch=3)
    for axes in figure.axes:
        assert list(labelled_line(axes, "best epoch 3").get_xdata()) == [3, 3]


def test_legend_without_a_best_epoch_has_only_the_curves() -> None:
    assert legend_labels(curves(metric_rows(4), title="t", best_epoch=None)) == ["train", "validation", "test"]


def test_flood_level_is_a_horizontal_line_in_the_loss_panel_only() -> None:
    loss, error = curves(metric_rows(4), title="t", best_epoch=3, flood=0.003).axes
    assert list(labelled_line(loss, "b = 0.003").get_ydata()) == [0.003, 0.003]
    bottom, top = loss.get_ylim()
    assert bottom < 0.003 < top
    assert "b = 0.003" not in [curve.get_label() for curve in error.get_lines()]


@pytest.mark.parametrize(
    ("epochs", "fixed", "scale"),
    [
        (4, {}, "linear"),  # 2.6 to 0.5: less than a decade
        (40, {}, "log"),
        (40, {"train_loss": 0.0}, "symlog"),  # zero stays on the axis
        (4, {"train_loss": 0.0}, "linear"),
        (40, {"train_loss": -1.0}, "linear"),
        (2, {"train_loss": 0.0, "val_loss": 0.0, "test_loss": 0.0}, "linear"),
    ],
)
def test_scale_of_the_loss_axis_follows_the_range_of_losses(epochs: int, fixed: dict[str, float], scale: str) -> None:
    rows = metric_rows(epochs, **fixed)
    loss = curves(rows, title="t", best_epoch=1).axes[0]
    assert loss.get_yscale() == scale
    bottom, top = loss.get_ylim()
    for name in ("train_loss", "val_loss", "test_loss"):
        assert all(bottom < row[name] < top for row in rows)


def test_error_of_a_single_sample_does_not_stretch_the_axis() -> None:
    error = curves(metric_rows(40, train_error_percent=0.0018), title="t", best_epoch=1).axes[1]
    assert error.get_yscale() == "symlog"
    low = min(tick for tick in error.get_yticks() if tick > 0)
    assert low == 1.0  # the decade of the lowest other value, 65 / 40


def test_axis_has_a_tick_at_zero_if_a_value_is_zero() -> None:
    figure = curves(metric_rows(40, train_loss=0.0), title="t", best_epoch=1)
    draw(figure)
    assert "0" in [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_only_short_curves_have_markers() -> None:
    for epochs, marker in ((1, "o"), (2, "o"), (20, "o"), (500, "")):
        drawn = labelled_line(curves(metric_rows(epochs), title="t", best_epoch=1).axes[0], "train")
        assert drawn.get_marker() in ({marker} if marker else {"", "None"})


def test_epoch_ticks_are_whole_numbers() -> None:
    for epochs in (1, 2, 3, 500):
        figure = curves(metric_rows(epochs), title="t", best_epoch=1)
        draw(figure)
        assert all(float(tick).is_integer() for tick in figure.axes[0].get_xticks())


def test_heading_contains_the_results_of_the_best_and_the_last_epoch() -> None:
    lines = heading(curves(metric_rows(4), title="The title", subtitle="The subtitle", best_epoch=2)).splitlines()
    assert lines == [
        "The title",
        "The subtitle",
        "best epoch 2: validation error 32.50 %, test error 33.00 %",
        "last epoch 4: validation error 16.25 %, test error 16.50 %",
    ]


def test_rows_without_test_columns_give_no_test_line() -> None:
    figure = curves(metric_rows(4, test=False), title="t", best_epoch=4)
    assert legend_labels(figure) == ["train", "validation", "best epoch 4"]
    assert "best epoch 4: validation error 16.25 %" in heading(figure)
    assert "test" not in heading(figure)


def test_rows_without_errors_give_only_a_loss_panel() -> None:
    rows = [{"epoch": epoch, "train_loss": 1.0, "val_loss": 0.51234} for epoch in (1, 2)]
    figure = curves(rows, title="regression", best_epoch=2, loss_label="mean squared error")
    assert [axes.get_ylabel() for axes in figure.axes] == ["mean squared error"]
    assert "best epoch 2: validation loss 0.5123" in heading(figure)


def test_regression_has_a_panel_of_mean_squared_errors() -> None:
    rows = [{"epoch": epoch, **{f"{part}_{name}": 10.0 / epoch for part in ("train", "val", "test")
                                for name in ("loss", "mse")}} for epoch in (1, 2, 3)]  # fmt: skip
    figure = curves(rows, title="boston", best_epoch=3)
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "mean squared error"]
    assert "best epoch 3: validation squared error 3.333, test squared error 3.333" in heading(figure)


def test_test_line_skips_epochs_without_evaluation() -> None:
    rows = metric_rows(40)
    for row in rows:
        if row["epoch"] % 10:
            row["test_loss"] = row["test_error_percent"] = math.nan
    assert list(labelled_line(curves(rows, title="t", best_epoch=1).axes[0], "test").get_xdata()) == [10, 20, 30, 40]


def test_heading_notes_divergence() -> None:
    rows = metric_rows(6)
    for row in rows[3:]:
        row["train_loss"], row["val_loss"] = math.nan, math.inf
    figure = curves(rows, title="t", best_epoch=2)
    draw(figure)
    assert "train loss not finite from epoch 4 on" in heading(figure)
    assert "not finite" not in heading(curves(metric_rows(6), title="t", best_epoch=2))


EQUAL = {"train_loss": 0.5, "val_loss": 0.5, "test_loss": 0.5}
NOTHING_FINITE = {"train_loss": math.nan, "val_loss": math.nan, "test_loss": math.inf}


@pytest.mark.parametrize("epochs", [1, slow(2), 20, slow(500)])
@pytest.mark.parametrize("best_epoch", [slow(None), 1])
@pytest.mark.parametrize(
    "fixed",
    [
        {},
        {"train_loss": 0.0, "train_error_percent": 0.0},
        {"train_error_percent": 100.0, "val_error_percent": 100.0, "test_error_percent": 100.0},
        NOTHING_FINITE,
        NOTHING_FINITE | {"train_error_percent": math.nan, "val_error_percent": 0.0, "test_error_percent": 0.0},
        {"train_loss": 1e-300},
        {"val_loss": 1e30},
    ],
)
def test_extreme_values_are_drawn_without_warnings(
    epochs: int, best_epoch: int | None, fixed: dict[str, float]
) -> None:
    figure = curves(metric_rows(epochs, **fixed), title="t", best_epoch=best_epoch, flood=0.05)
    draw(figure)  # some warnings are raised only here; pytest turns them into errors
    assert [axes.get_xlabel() for axes in figure.axes] == ["epoch", "epoch"]


def test_long_heading_is_drawn_verbatim_and_keeps_the_size_of_the_panels() -> None:
    short = curves(metric_rows(4), title="t", best_epoch=3)
    long = curves(
        metric_rows(4), title="optimizer.lr=0.1,model=mlp," * 12, subtitle="cost $x_1 and $\\frac{", best_epoch=3
    )
    (width, height), (long_width, long_height) = draw(short), draw(long)
    assert width == long_width
    assert height < long_height
    inches = [figure.axes[0].get_window_extent().height / figure.dpi for figure in (short, long)]
    assert inches[0] == pytest.approx(inches[1], rel=0.02)
    assert "cost $x_1 and $\\frac{" in heading(long)
    for text in long.texts:
        assert text.get_window_extent().x1 < long_width


def test_heading_is_above_the_panels() -> None:
    figure = curves(metric_rows(4), title="words " * 40, subtitle="more words " * 30, best_epoch=3)
    draw(figure)
    lowest = min(text.get_window_extent().y0 for text in figure.texts)
    assert all(axes.get_tightbbox().y1 <= lowest for axes in figure.axes)


@pytest.mark.parametrize(
    "fixed",
    [{}, {"train_loss": -123456.0}, {"val_loss": 1e30}, {"train_loss": 1e-12}, {"train_loss": 2.3025851}, EQUAL],
    ids=str,
)
@pytest.mark.parametrize("epochs", [1, 3, 500, 20000])
def test_labels_are_complete_and_do_not_overlap(epochs: int, fixed: dict[str, float]) -> None:
    rows = metric_rows(epochs, **fixed)[:: max(1, epochs // 500)]
    figure = curves(rows, title="t", best_epoch=1, flood=0.05, train_label="train (evaluated)")
    width, height = draw(figure)
    for axes in figure.axes:
        shown = [axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = axis.get_view_interval()
            shown += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        boxes = [text.get_window_extent() for text in (*shown, *figure.texts, figure.legends[0])]
        assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_tick_labels_are_short_and_distinct() -> None:
    assert Numbers().format_ticks([0.0, 0.1 + 0.2, -1e-7]) == ["0", "0.3", "\N{MINUS SIGN}1e\N{MINUS SIGN}07"]
    assert Numbers(aligned=True).format_ticks([0.0, 0.25, -0.5]) == ["0.00", "0.25", "\N{MINUS SIGN}0.50"]
    assert Numbers().format_ticks([2.3025851, 2.3025852]) == ["2.3025851", "2.3025852"]


@pytest.mark.parametrize(
    ("column", "label"),
    [
        ("val_error_percent", "validation error (%)"),
        ("train_loss", "train loss"),
        ("weight_norm", "weight norm"),
        ("near_zero_percent", "near zero (%)"),
    ],
)
def test_column_labels(column: str, label: str) -> None:
    assert column_label(column) == label


def test_labels_are_not_parsed_as_tex() -> None:
    figure, (axes,) = new_figure(1, title="t")
    axes.plot([1, 2], [3, 4], label="costs $3 to $4")
    label(axes, x="a_b", y="$y$", title="x^2")
    texts = [axes.xaxis.label, axes.yaxis.label, axes.title, *axes.get_legend().get_texts()]
    assert [text.get_text() for text in texts] == ["a_b", "$y$", "x^2", "costs $3 to $4"]
    assert not any(text.get_parse_math() for text in texts)
    label(axes, x="x", y="y", legend=False)
    figure.draw_without_rendering()


def test_new_figure_has_print_resolution_and_distinct_colours() -> None:
    figure, panels = new_figure(3, title="t")
    assert len(panels) == 3
    assert figure.dpi == DPI >= 150
    assert len(set(PALETTE)) == len(PALETTE)


def test_four_panels_are_in_two_rows_of_a_taller_figure() -> None:
    (_, two), (_, four) = new_figure(2, title="t"), new_figure(4, title="t")
    assert [axes.get_subplotspec().rowspan.start for axes in four] == [0, 0, 1, 1]
    assert four[0].figure.get_figheight() - two[0].figure.get_figheight() == pytest.approx(2.9)


def test_plots_do_not_import_pyplot_or_torch() -> None:
    code = "import sys, dlhw.views.plots; sys.exit('matplotlib.pyplot' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
