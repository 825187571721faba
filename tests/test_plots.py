"""The figures say what the rows say, for every shape of run, without a warning."""

from __future__ import annotations

import io
import math
import subprocess
import sys

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dlhw.plots import COLORS, DPI, PALETTE, curves, new_figure


def run(epochs: int, *, test: bool = True, **fixed: float) -> list[dict[str, float]]:
    rows = []
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "step": 10 * epoch, "lr": 0.1, "train_accuracy": 90.0}
        row |= {"train_loss": 2.0 / epoch, "train_error_percent": 60.0 / epoch}
        row |= {"val_loss": 2.5 / epoch, "val_error_percent": 65.0 / epoch}
        if test:
            row |= {"test_loss": 2.6 / epoch, "test_error_percent": 66.0 / epoch}
        rows.append(row | fixed)
    return rows


def draw(figure: Figure) -> tuple[int, int]:
    """Draw everything, as saving does; the size in pixels comes back."""
    from PIL import Image

    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file).size


def line(axes: Axes, label: str) -> Line2D:
    (found,) = (each for each in axes.get_lines() if each.get_label() == label)
    return found


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


def legend_labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_lines_hold_the_rows() -> None:
    rows = run(4)
    figure = curves(rows, title="t", best_epoch=3)
    for axes, quantity in zip(figure.axes, ("loss", "error_percent"), strict=True):
        for label, prefix in (("train", "train"), ("validation", "val"), ("test", "test")):
            drawn = line(axes, label)
            assert list(drawn.get_xdata()) == [1, 2, 3, 4]
            assert list(drawn.get_ydata()) == [row[f"{prefix}_{quantity}"] for row in rows]
            assert drawn.get_color() == COLORS[label]
    draw(figure)


def test_axes_and_legend_name_what_they_show() -> None:
    figure = curves(
        run(4),
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


def test_best_epoch_is_a_line_at_that_epoch_in_both_panels() -> None:
    figure = curves(run(4), title="t", best_epoch=3)
    for axes in figure.axes:
        assert list(line(axes, "best epoch 3").get_xdata()) == [3, 3]


def test_no_best_epoch_no_line() -> None:
    assert legend_labels(curves(run(4), title="t", best_epoch=None)) == ["train", "validation", "test"]


def test_flood_level_is_a_line_at_b_inside_the_loss_panel_only() -> None:
    loss, error = curves(run(4), title="t", best_epoch=3, flood=0.003).axes
    assert list(line(loss, "b = 0.003").get_ydata()) == [0.003, 0.003]
    bottom, top = loss.get_ylim()
    assert bottom < 0.003 < top
    assert "b = 0.003" not in [each.get_label() for each in error.get_lines()]


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
def test_loss_is_logarithmic_when_it_spans_more_than_a_decade(epochs: int, fixed: dict[str, float], scale: str) -> None:
    rows = run(epochs, **fixed)
    loss = curves(rows, title="t", best_epoch=1).axes[0]
    assert loss.get_yscale() == scale
    bottom, top = loss.get_ylim()
    for name in ("train_loss", "val_loss", "test_loss"):
        assert all(bottom < row[name] < top for row in rows)


def test_the_error_of_one_sample_does_not_stretch_the_axis() -> None:
    error = curves(run(40, train_error_percent=0.0018), title="t", best_epoch=1).axes[1]
    assert error.get_yscale() == "symlog"
    low = min(tick for tick in error.get_yticks() if tick > 0)
    assert low == 1.0  # the decade of the lowest other value, 65 / 40


def test_zero_has_a_tick_when_it_is_reached() -> None:
    figure = curves(run(40, train_loss=0.0), title="t", best_epoch=1)
    draw(figure)
    assert "0" in [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_few_epochs_have_markers_many_have_none() -> None:
    for epochs, marker in ((1, "o"), (2, "o"), (20, "o"), (500, "")):
        drawn = line(curves(run(epochs), title="t", best_epoch=1).axes[0], "train")
        assert drawn.get_marker() in ({marker} if marker else {"", "None"})


def test_epoch_ticks_are_whole_numbers() -> None:
    for epochs in (1, 2, 3, 500):
        figure = curves(run(epochs), title="t", best_epoch=1)
        draw(figure)
        assert all(float(tick).is_integer() for tick in figure.axes[0].get_xticks())


def test_numbers_of_the_best_and_the_last_epoch_are_written_out() -> None:
    written = texts(curves(run(4), title="The title", subtitle="The subtitle", best_epoch=2))
    assert written.splitlines() == [
        "The title",
        "The subtitle",
        "best epoch 2: validation error 32.50 %, test error 33.00 %",
        "last epoch 4: validation error 16.25 %, test error 16.50 %",
    ]


def test_without_test_columns_there_is_no_test_line() -> None:
    figure = curves(run(4, test=False), title="t", best_epoch=4)
    assert legend_labels(figure) == ["train", "validation", "best epoch 4"]
    assert "best epoch 4: validation error 16.25 %" in texts(figure)
    assert "test" not in texts(figure)


def test_without_errors_there_is_only_the_loss() -> None:
    rows = [{"epoch": epoch, "train_loss": 1.0, "val_loss": 0.51234} for epoch in (1, 2)]
    figure = curves(rows, title="regression", best_epoch=2, loss_label="mean squared error")
    assert [axes.get_ylabel() for axes in figure.axes] == ["mean squared error"]
    assert "best epoch 2: validation loss 0.5123" in texts(figure)


def test_a_test_set_seen_now_and_then_is_a_line_through_what_was_seen() -> None:
    rows = run(40)
    for row in rows:
        if row["epoch"] % 10:
            row["test_loss"] = row["test_error_percent"] = math.nan
    assert list(line(curves(rows, title="t", best_epoch=1).axes[0], "test").get_xdata()) == [10, 20, 30, 40]


def test_divergence_is_named() -> None:
    rows = run(6)
    for row in rows[3:]:
        row["train_loss"], row["val_loss"] = math.nan, math.inf
    figure = curves(rows, title="t", best_epoch=2)
    draw(figure)
    assert "train loss not finite from epoch 4 on" in texts(figure)
    assert "not finite" not in texts(curves(run(6), title="t", best_epoch=2))


NOTHING_FINITE = {"train_loss": math.nan, "val_loss": math.nan, "test_loss": math.inf}


@pytest.mark.parametrize("epochs", [1, 2, 20, 500])
@pytest.mark.parametrize("best_epoch", [None, 1])
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
def test_every_shape_of_run_is_drawn_without_a_warning(
    epochs: int, best_epoch: int | None, fixed: dict[str, float]
) -> None:
    figure = curves(run(epochs, **fixed), title="t", best_epoch=best_epoch, flood=0.05)
    draw(figure)  # a warning, which an odd value may raise only here, is an error
    assert [axes.get_xlabel() for axes in figure.axes] == ["epoch", "epoch"]


def test_any_title_is_drawn_as_it_is_and_leaves_the_panels_their_size() -> None:
    short = curves(run(4), title="t", best_epoch=3)
    long = curves(run(4), title="optimizer.lr=0.1,model=mlp," * 12, subtitle="cost $x_1 and $\\frac{", best_epoch=3)
    (width, height), (long_width, long_height) = draw(short), draw(long)
    assert width == long_width
    assert height < long_height
    inches = [figure.axes[0].get_window_extent().height / figure.dpi for figure in (short, long)]
    assert inches[0] == pytest.approx(inches[1], rel=0.02)
    assert "cost $x_1 and $\\frac{" in texts(long)
    for text in long.texts:
        assert text.get_window_extent().x1 < long_width


def test_heading_stands_above_the_panels() -> None:
    figure = curves(run(4), title="words " * 40, subtitle="more words " * 30, best_epoch=3)
    draw(figure)
    lowest = min(text.get_window_extent().y0 for text in figure.texts)
    assert all(axes.get_tightbbox().y1 <= lowest for axes in figure.axes)


def test_new_figure_prints_well() -> None:
    figure, panels = new_figure(3, title="t")
    assert len(panels) == 3
    assert figure.dpi == DPI >= 150
    assert len(set(PALETTE)) == len(PALETTE)


def test_plots_do_not_import_pyplot() -> None:
    code = "import sys, dlhw.plots; sys.exit('matplotlib.pyplot' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
