"""Inspect a dataset of pictures: counts, sizes, pictures before and after the transforms, copies across parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from dlhw.data.groups import FARTHEST, divided_pairs, near_pairs, perceptual_hashes
from dlhw.data.pictures import read_full_size
from dlhw.data.tensors import Dataset, Split
from dlhw.errors import UsageError
from dlhw.runtime.randomness import generator
from dlhw.storage.answer import Answer, Check, Number, at_most, equal
from dlhw.views.plots import PALETTE, TEXT_POINTS, WIDTH_INCHES, new_figure

Row = dict[str, Any]
MOST_CLASSES = 10
"""Maximum number of classes in the figure, the first ones."""
MOST_PAIRS, MOST_ROWS = 8, 1000
"""Maximum number of pairs of copies in the figure and in the table."""
_AT_ONCE = 256  # pictures


def samples(
    *,
    per_class: Annotated[int, Field(ge=1, le=6)],
    augmented: Annotated[int, Field(ge=0, le=6)],
    compared: Annotated[int, Field(ge=2, le=1_000_000)],
    distance: Annotated[int, Field(ge=0, le=FARTHEST)],
    data: Dataset,
    seed: int,
) -> Answer:
    """Describe a dataset of pictures, and find pictures that its parts share; see ``conf/study/samples.yaml``."""
    if not data.classes or data.train.pool_x.ndim != 4 or data.train.pool_x.shape[1] not in (1, 3):
        raise UsageError(
            f"study=samples: dataset={data.name} has no pictures in classes; expected one such as mnist or face_mask"
        )
    counts = [
        {"class": name, **{part: int((split.y == label).sum()) for part, split in data.parts.items()}}
        for label, name in enumerate(data.classes)
    ]
    channels, largest = channel_table(data)
    shared = copies(data, compared=compared, distance=distance, seed=seed)
    chosen = draw_rows(data, per_class, seed=seed)
    figures = {"samples": _plot_samples(data, chosen, largest, augmented=augmented, seed=seed)}
    if shared.nearest:
        figures["copies"] = _plot_copies(data, shared, largest)
    numbers: dict[str, Number] = {
        **{f"{part}_pictures": len(split) for part, split in data.parts.items()},
        "classes": len(data.classes),
        "compared_pictures": shared.compared,
        "identical_pairs_across": shared.identical,
        "near_pairs_across": shared.pairs,
    }
    numbers |= {name: data.about[name] for name in ("leaked_percent", "leaked_percent_by_file") if name in data.about}
    tables: dict[str, list[Row]] = {"counts": counts, "sizes": _sizes(data), "channels": channels}
    return Answer(
        numbers,
        [*_disjoint(data), _displayed_as_stored(data, chosen, largest)],
        tables | {"copies": [{name: pair[name] for name in pair if name != "pixels"} for pair in shared.nearest]},
        figures,
        [_line(row) for row in (*counts, *_sizes(data), *channels)],
    )


def draw_rows(data: Dataset, per_class: int, *, seed: int) -> list[Tensor]:
    """Draw training pictures of each of the first classes: rows in the pool, ``per_class`` or as many as there are."""
    labels, rows = data.train.y.cpu(), data.train.all_rows()[0].cpu()
    order = torch.randperm(len(rows), generator=generator(seed, "samples"))
    return [rows[order[labels[order] == label][:per_class]] for label in range(min(MOST_CLASSES, len(data.classes)))]


def channel_table(data: Dataset) -> tuple[list[Row], int]:
    """Return rows with mean and deviation of each channel, of pixels and network inputs, and the largest pixel."""
    sums = torch.zeros(2, data.train.pool_x.shape[1], dtype=torch.float64)
    largest = 0
    for start in range(0, len(data.train), _AT_ONCE):
        x = data.train[start : start + _AT_ONCE][0].cpu()
        largest = max(largest, int(x.max()))
        x = x.double()
        sums += torch.stack((x.sum((0, 2, 3)), x.square().sum((0, 2, 3))))
    mean, square = sums / (len(data.train) * data.train.pool_x[0, 0].numel())
    std = (square - mean.square()).clamp(min=0).sqrt()
    scale, shift = (t.double().cpu().flatten() for t in (data.normalize.scale, data.normalize.shift))
    columns = {
        "mean": mean / largest,
        "std": std / largest,
        "input_mean": mean * scale + shift,
        "input_std": std * scale,
    }
    names = ("red", "green", "blue") if len(mean) == 3 else ("grey",)
    return [
        {"channel": name, **{column: float(values[i]) for column, values in columns.items()}}
        for i, name in enumerate(names)
    ], largest


@dataclass(frozen=True)
class Copies:
    """Pairs of near-identical pictures that are in different parts."""

    compared: int
    pairs: int
    identical: int
    nearest: list[Row]
    """The nearest pairs, at most MOST_ROWS."""


def copies(data: Dataset, *, compared: int, distance: int, seed: int) -> Copies:
    """Find near-identical pictures in different parts, among ``compared`` pictures of each part, drawn by the seed."""
    hashes, places = [], []
    for number, (name, part) in enumerate(data.parts.items()):
        order = torch.randperm(len(part), generator=generator(seed, "samples", "compared", name))[:compared]
        for positions in order.sort().values.split(_AT_ONCE):
            hashes.append(perceptual_hashes(part[positions.to(part.pool_y.device)][0].cpu()))
            places += [(number, position) for position in positions.tolist()]
    at = np.array(places)
    pairs = divided_pairs(near_pairs(np.concatenate(hashes), distance), at[:, 0])
    pairs = pairs[np.argsort(pairs[:, 2], kind="stable")]
    parts = list(data.parts.items())

    def pixels(place: Sequence[int]) -> Tensor:
        part = parts[place[0]][1]
        return part.pool_x[part.all_rows()[0, place[1]]].cpu()

    identical = [torch.equal(pixels(at[i]), pixels(at[j])) for i, j, apart in pairs.tolist() if apart == 0]
    nearest = []
    for number, (i, j, apart) in enumerate(pairs[:MOST_ROWS].tolist()):
        row: Row = {"distance": apart, "identical": number < len(identical) and identical[number]}
        for side, (part_index, position) in (("first", at[i].tolist()), ("second", at[j].tolist())):
            name, part = parts[part_index]
            index = int(part.all_rows()[0, position])
            row |= {f"{side}_part": name, f"{side}_class": data.classes[int(part.pool_y[index])]}
            row[side] = data.names[index] if data.names else position
        nearest.append({**row, "pixels": (pixels(at[i]), pixels(at[j]))})
    return Copies(len(at), len(pairs), sum(identical), nearest)


def _disjoint(data: Dataset) -> list[Check]:
    """Check that no sample is in two parts, among the parts that share a pool."""
    by_pool: dict[int, list[Tensor]] = {}
    for part in data.parts.values():
        by_pool.setdefault(id(part.pool_x), []).append(part.all_rows()[0])
    pools = [torch.cat(parts) for parts in by_pool.values()]
    return [equal("samples in more than one part", sum(len(rows) - len(rows.unique()) for rows in pools), 0)]


def _displayed_as_stored(data: Dataset, chosen: list[Tensor], largest: int) -> Check:
    """Check that the network's inputs, transformed back, equal the pictures, resized if the dataset has a size."""
    x = data.train.pool_x[torch.cat(chosen).to(data.train.pool_x.device)].cpu().double()
    if (size := data.normalize.size) is not None:
        x = torch.nn.functional.interpolate(x, (size, size), mode="bilinear", antialias=True)
    rows = torch.cat(chosen)
    difference = float((_network_view(data, data.train, rows, largest) - x / largest).abs().max())
    return at_most("largest difference between the network input, transformed back, and the picture", difference, 1e-5)


def _network_view(data: Dataset, part: Split, rows: Tensor, largest: int, changed: Tensor | None = None) -> Tensor:
    """Return pictures (N, C, H, W), or ``changed`` ones, as network inputs transformed back to 0..1."""
    x = part.pool_x[rows.to(part.pool_x.device)] if changed is None else changed
    inputs = data.normalize.inverse(data.normalize(x.to(data.device)))
    return (inputs / largest).double().cpu()


def _before(data: Dataset, row: int, largest: int) -> Tensor:
    """Return a training picture (C, H, W) in 0..1 from its file, or from the pool if there are no files."""
    if not data.names:
        return data.train.pool_x[row].cpu().double() / largest
    picture = read_full_size(Path(data.about["root"]) / data.names[row])
    picture.thumbnail((400, 400))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).double() / 255


def _plot_samples(data: Dataset, chosen: list[Tensor], largest: int, *, augmented: int, seed: int) -> Figure:
    """Plot a row for each class: pictures as stored, as network inputs, and as training inputs."""
    changes = data.augmentation is not None and data.augmentation.changes_pictures
    per_class = max(map(len, chosen))
    views = augmented if changes else 0
    columns = 2 * per_class + views
    size = "x".join(map(str, data.shape[1:]))
    shown = "" if len(chosen) == len(data.classes) else f"; {len(chosen)} of {len(data.classes)} classes"
    figure, panels = new_figure(
        len(chosen) * columns,
        title=f"samples: {data.name} before and after the transforms",
        subtitle=f"before: as stored; after: network inputs ({size}), transformed back to colours"
        + ("; then the first picture with augmentation" if views else "")
        + shown,
        columns=columns,
        panel_inches=min(2.0, WIDTH_INCHES / columns),
    )
    for label, rows in enumerate(chosen):
        line = panels[label * columns : (label + 1) * columns]
        after = _network_view(data, data.train, rows, largest)
        for position, row in enumerate(rows.tolist()):
            _show(line[position], _before(data, row, largest))
            _show(line[per_class + position], after[position])
        for epoch, axes in enumerate(line[2 * per_class :], start=1):
            _show(axes, _augmented(data, int(rows[0]), largest, seed=seed, epoch=epoch))
        for axes in line[len(rows) : per_class] + line[per_class + len(rows) : 2 * per_class]:
            axes.set_axis_off()
        name = data.classes[label]
        name = name if len(name) <= 14 else name[:13] + "\N{HORIZONTAL ELLIPSIS}"
        line[0].set_ylabel(name, fontsize=TEXT_POINTS, rotation=0, ha="right", va="center", parse_math=False)
    heads = {0: "before", per_class: "after", **{2 * per_class + epoch: f"epoch {epoch + 1}" for epoch in range(views)}}
    for column, head in heads.items():
        panels[column].set_title(head, fontsize=TEXT_POINTS)
    return figure


def _augmented(data: Dataset, row: int, largest: int, *, seed: int, epoch: int) -> Tensor:
    """Return a training picture (C, H, W) in 0..1 as an epoch of a run with this seed augments it."""
    assert data.augmentation is not None
    with torch.random.fork_rng(devices=[]):
        changed = data.augmentation.augment(data.train.pool_x[row], seed=seed, epoch=epoch, row=row)
    return _network_view(data, data.train, torch.tensor([row]), largest, changed[None])[0]


def _plot_copies(data: Dataset, shared: Copies, largest: int) -> Figure:
    """Plot some pairs, no picture twice; first those that are only near-identical, which file hashes miss."""
    shown: list[Row] = []
    used: set[tuple[str, object]] = set()
    for pair in sorted(shared.nearest, key=lambda pair: (pair["identical"], pair["distance"])):
        both = {(pair["first_part"], pair["first"]), (pair["second_part"], pair["second"])}
        if not both & used and len(shown) < MOST_PAIRS:
            shown.append(pair)
            used |= both
    figure, panels = new_figure(
        2 * len(shown),
        title=f"samples: copies in two parts of {data.name}",
        subtitle=f"{shared.pairs} near-identical pairs, {shared.identical} of them identical; {len(shown)} are shown",
        columns=4 if len(shown) > 1 else 2,
        panel_inches=1.95,
    )
    for number, pair in enumerate(shown):
        for axes, side, picture in zip(panels[2 * number :], ("first", "second"), pair["pixels"], strict=False):
            _show(axes, picture.double() / largest)
            distance = "identical" if pair["identical"] else f"distance {pair['distance']} of 256"
            text = f"{pair[f'{side}_part']}: {pair[f'{side}_class']}\n{distance}"
            axes.set_title(text, fontsize=TEXT_POINTS, color=PALETTE[number % 2], parse_math=False)
    return figure


def _show(axes: Axes, picture: Tensor) -> None:
    """Plot a picture (C, H, W) in 0..1, grey or in colours."""
    image = picture.clamp(0, 1).permute(1, 2, 0).squeeze(-1).numpy()
    axes.imshow(image, cmap="gray", vmin=0, vmax=1)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _sizes(data: Dataset) -> list[Row]:
    """Return rows of width and height in the files, or of all pictures if there are no files."""
    height, width = data.train.pool_x.shape[-2:]
    sizes = data.about.get("pixels", {"all": [width, height]})
    return [{"size": name, "width": size[0], "height": size[1]} for name, size in sizes.items()]


def _line(row: Row) -> str:
    (kind, name), *rest = row.items()
    numbers = (f"{column} {value:.4f}" if isinstance(value, float) else f"{column} {value}" for column, value in rest)
    return f"{kind} {name}: {', '.join(numbers)}"
