"""Figures of a report: confusion matrix, accuracy by class, mistakes, saliency maps and filters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from dlhw.views import mosaics
from dlhw.views.plots import COLORS, LINE_INCHES, PALETTE, TEXT_POINTS, WIDTH_INCHES, add_legend, label, new_figure
from dlhw.views.report.evaluation import PARTS, Accuracy, EvaluatedPart
from dlhw.views.report.filters import LayerFilters

Picture = npt.NDArray[np.float64]

MOST_CELLS = 12  # with more classes, the cells of a confusion matrix have no room for numbers
MOST_TICKS = 40  # with more classes, only every second, third, ... class is named beside a matrix
MOST_CLASSES = 100  # drawn in the figure of accuracies
MOST_FILTERS = 64
CAPTION_POINTS = 6.5
HEAT = "inferno"  # for saliency maps; its lightness rises evenly, so it is readable in grey print


def confusion(parts: Sequence[EvaluatedPart], *, name: str) -> Figure:
    """Draw the confusion matrix of each part, true classes in rows, coloured by the share of the row."""
    classes = parts[0].classes
    side_by_side = len(classes) <= 4 and len(parts) > 1
    figure, all_axes = new_figure(
        len(parts),
        title=f"{name}: confusion matrix",
        subtitle="Percent of each true class" + (", and the number of pictures" if len(classes) <= MOST_CELLS else ""),
        columns=len(parts) if side_by_side else 1,
        panel_inches=3.0 if len(classes) <= 4 else 5.2 if len(classes) <= MOST_CELLS else 6.4,
    )
    for axes, evaluated in zip(all_axes, parts, strict=True):
        percent = 100 * evaluated.confusion / evaluated.confusion.sum(1, keepdim=True).clamp(min=1)
        image = axes.imshow(percent.numpy(), cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="auto")
        bar = figure.colorbar(image, cax=axes.inset_axes((1.04, 0.1, 0.035, 0.8)), ticks=[0, 1, 5, 20, 50, 100])
        bar.set_label("percent of the row", fontsize=TEXT_POINTS)
        bar.ax.tick_params(labelsize=8.5)
        axes.grid(False)
        _name_classes(axes, classes)
        label(
            axes,
            x="predicted class",
            y="true class",
            title=f"{PARTS[evaluated.part]}: {len(evaluated.labels):,} pictures",
        )
        if len(classes) <= MOST_CELLS:
            _write_cells(axes, evaluated.confusion, percent)
    return figure


def _write_cells(axes: Axes, counts: Tensor, percent: Tensor) -> None:
    points = TEXT_POINTS if len(counts) <= 4 else 6.5
    for (row, column), count in np.ndenumerate(counts.numpy()):
        if count:
            share = float(percent[row, column])
            axes.text(
                column,
                row,
                f"{share:.1f} %\n{count:,}",
                ha="center",
                va="center",
                fontsize=points,
                color="white" if share > 40 else "black",
            )


def _name_classes(axes: Axes, classes: Sequence[str]) -> None:
    every = -(-len(classes) // MOST_TICKS)
    positions = range(0, len(classes), every)
    names = [shortened(classes[i]) for i in positions]
    points = 8.5 if len(classes) <= MOST_CELLS else 6.0
    slanted = sum(map(len, names)) > 40
    axes.set_yticks(positions, names, fontsize=points, parse_math=False)
    axes.set_xticks(positions, names, fontsize=points, parse_math=False, rotation=90 if slanted else 0)


def per_class(parts: Sequence[EvaluatedPart], confidence: float, *, name: str) -> Figure:
    """Draw the accuracy of each class and of the whole part, with intervals."""
    classes = min(len(parts[0].classes), MOST_CLASSES)
    row_inches = 0.26 if classes <= 20 else 0.12
    figure, all_axes = new_figure(
        len(parts),
        title=f"{name}: accuracy of each class",
        subtitle="\n".join(evaluated.summary(confidence) for evaluated in parts),
        panel_inches=0.95 + row_inches * max(classes, 4),
    )
    lowest = 99.0
    for axes, evaluated in zip(all_axes, parts, strict=True):
        rows = list(zip(evaluated.classes, evaluated.by_class(confidence), strict=True))
        title = PARTS[evaluated.part]
        if len(rows) > classes:
            title += f": the {classes} of {len(rows):,} classes with the lowest accuracy"
            rows = sorted((row for row in rows if row[1].count), key=lambda row: row[1].value)[:classes]
        _draw_accuracies(axes, rows, evaluated.accuracy(confidence), points=8.5 if classes <= 20 else 5.5)
        lowest = min(lowest, *(100 * accuracy.interval[0] for _, accuracy in rows if accuracy.count))
        label(axes, x="accuracy (%)", y="", title=title, legend=False)
    for axes in all_axes:  # the same scale for all parts
        axes.set_xlim(lowest - 0.04 * (100 - lowest), 100 + 0.04 * (100 - lowest))
    entries = {text: artist for artist, text in zip(*all_axes[0].get_legend_handles_labels(), strict=True)}
    add_legend(figure, list(entries.values()), list(entries), loc="outside lower center", columns=len(entries))
    return figure


def _draw_accuracies(axes: Axes, rows: Sequence[tuple[str, Accuracy]], whole: Accuracy, *, points: float) -> None:
    heights = [height for height, (_, accuracy) in enumerate(rows) if accuracy.count]
    known = [rows[height][1] for height in heights]
    lows, highs = ([100 * accuracy.interval[end] for accuracy in known] for end in (0, 1))
    values = [100 * accuracy.value for accuracy in known]
    interval = f"{100 * whole.confidence:g} % interval"
    size = 4.5 if points > 8 else 2.5
    axes.plot(values, heights, "o", color=PALETTE[1], markersize=size, zorder=3, label="class (pictures)")
    axes.hlines(heights, lows, highs, color=COLORS["reference"], linewidth=1.4, label=f"its {interval}")
    low, high = whole.interval
    axes.axvline(100 * whole.value, color=PALETTE[0], linewidth=1.2, zorder=1.5, label="all classes")
    axes.axvspan(100 * low, 100 * high, color=PALETTE[5], alpha=0.3, linewidth=0, zorder=1, label=f"their {interval}")
    axes.set_yticks(
        range(len(rows)),
        [f"{shortened(name)} ({accuracy.count:,})" for name, accuracy in rows],
        fontsize=points,
        parse_math=False,
    )
    axes.set_ylim(len(rows) - 0.5, -0.5)


def mistakes(
    evaluated: EvaluatedPart, positions: Sequence[int], pictures: Tensor, *, names: Sequence[str], name: str
) -> Figure:
    """Draw the ``pictures`` (N, H, W, 3) at ``positions`` with true class, predicted class and file name."""
    captions = [
        _prediction(evaluated, position) + (f"\n{_file(names[int(evaluated.rows[position])])}" if names else "")
        for position in positions
    ]
    return _grid(
        list(pictures.double().numpy()),
        captions,
        title=f"{name}: the most confident mistakes",
        subtitle=f"{len(positions):,} of {_mistakes(len(evaluated.mistakes))} among {len(evaluated.labels):,} "
        f"{PARTS[evaluated.part]} pictures, with the predicted probability of the wrong class",
        columns=5,
    )


def saliency(
    evaluated: EvaluatedPart, positions: Sequence[int], pictures: Tensor, maps: Tensor, *, source: str, name: str
) -> Figure:
    """Draw each of the ``pictures`` (N, H, W, 3) at ``positions`` beside a copy overlaid with its map (N, H, W)."""
    height, width = maps.shape[1:]
    gap = np.ones((height, -(-width // 20), 3))
    pairs = [
        np.concatenate([picture, gap, overlaid(picture, heat)], axis=1)
        for picture, heat in zip(pictures.double().numpy(), maps.double().numpy(), strict=True)
    ]
    right = (evaluated.predicted == evaluated.labels)[list(positions)]
    captions = [
        _prediction(evaluated, position) + ("" if heat.any() else "\nmap is zero everywhere")
        for position, heat in zip(positions, maps, strict=True)
    ]
    return _grid(
        pairs,
        captions,
        title=f"{name}: where the predictions come from",
        subtitle=f"{source}, for the predicted class; brighter is larger\n"
        f"{int(right.sum())} correct predictions first, then {_mistakes(int((~right).sum()))}; "
        f"{PARTS[evaluated.part]} pictures",
        columns=3,
    )


def _mistakes(count: int) -> str:
    return f"{count:,} mistake{'' if count == 1 else 's'}"


def filters(layer: LayerFilters, *, name: str) -> Figure:
    """Draw the filters before and after training and their change; at most the 64 that changed most.

    They are in colour if the layer has three input channels. Otherwise only the first channel is drawn.
    """
    count, channels, *size = layer.before.shape
    change = layer.change
    if count > MOST_FILTERS:
        order = change.flatten(1).norm(dim=1).argsort(descending=True, stable=True)[:MOST_FILTERS]
        which = f"The {MOST_FILTERS} of {count} filters that changed most, in order"
    else:
        order = change.new_ones(count).nonzero()[:, 0]
        which = f"All {count} filters"
    drawn_channels = 3 if channels == 3 else 1
    if channels not in (1, 3):
        which += f", first of {channels} channels"
    before, after, difference = (weights[order, :drawn_channels] for weights in (layer.before, layer.after, change))
    largest_weights = before.abs().maximum(after.abs()).amax((1, 2, 3), keepdim=True)
    largest = difference.abs().max()
    scale = f"black to white is -{largest:.2g} to {largest:.2g}" if largest > 0 else "no filter changed"
    return mosaics.side_by_side(
        {
            "before": mosaics.mosaic(mosaics.around_grey(before, largest_weights)),
            "after": mosaics.mosaic(mosaics.around_grey(after, largest_weights)),
            "after \N{MINUS SIGN} before": mosaics.mosaic(mosaics.around_grey(difference, largest)),
        },
        title=f"{name}: filters of layer {layer.name}, {'x'.join(map(str, size))}, before and after training",
        subtitle=f"{which}; grey is 0. Before and after: one scale per filter.\n"
        f"Difference: one scale for all filters, {scale}.",
    )


def overlaid(picture: Picture, heat: Picture) -> Picture:
    """Overlay a picture (H, W, 3), in grey, with a map (H, W) in colours, more opaque where the map is larger."""
    strength: Picture = (heat / max(heat.max(), 1e-30))[..., None]
    grey: Picture = picture.mean(2, keepdims=True)
    opacity: Picture = 0.25 + 0.5 * strength
    colours: Picture = colormaps[HEAT](strength[..., 0])[..., :3]
    return (1 - opacity) * grey + opacity * colours


def _grid(pictures: Sequence[Picture], captions: Sequence[str], *, title: str, subtitle: str, columns: int) -> Figure:
    columns = min(columns, max(2, len(captions)))
    height, width = pictures[0].shape[:2]
    lines = max(caption.count("\n") + 1 for caption in captions)
    figure, all_axes = new_figure(
        len(captions),
        title=title,
        subtitle=subtitle,
        columns=columns,
        panel_inches=0.95 * WIDTH_INCHES / columns * height / width + lines * CAPTION_POINTS * LINE_INCHES + 0.12,
    )
    for axes, picture, caption in zip(all_axes, pictures, captions, strict=True):
        axes.imshow(picture, interpolation="nearest" if height < 64 else "auto")
        axes.set_title(caption, fontsize=CAPTION_POINTS, parse_math=False, pad=3)
        axes.axis("off")
    return figure


def _prediction(evaluated: EvaluatedPart, position: int) -> str:
    true, predicted = (
        shortened(evaluated.classes[int(column[position])]) for column in (evaluated.labels, evaluated.predicted)
    )
    probability = 100 * float(evaluated.probability[position])
    return f"true: {true}\npredicted: {predicted}, {probability:.1f} %"


def _file(name: str) -> str:
    return shortened(PurePosixPath(name).name, 26)


def shortened(text: str, longest: int = 18) -> str:
    """Replace the middle of a long text, where related names differ least, by an ellipsis."""
    if len(text) <= longest:
        return text
    kept = longest - 1
    return f"{text[: kept - kept // 2]}\N{HORIZONTAL ELLIPSIS}{text[-(kept // 2) :]}"
