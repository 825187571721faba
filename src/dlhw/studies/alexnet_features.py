"""The first convolution of a network: its filters, its maps of a picture, and how disturbances change them (D5.1-2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor, nn

from dlhw.errors import UsageError
from dlhw.models.pretrained import TorchvisionNetwork
from dlhw.runtime.options import PathText
from dlhw.runtime.paths import printable
from dlhw.runtime.randomness import generator
from dlhw.storage.answer import Answer, Check, at_most, equal
from dlhw.studies import imagenet
from dlhw.studies.convolution import convolve, output_size
from dlhw.studies.imagenet import check_crop, picture_path, plot_picture, read_picture
from dlhw.views.mosaics import around_grey, mosaic, side_by_side
from dlhw.views.plots import TEXT_POINTS, new_figure

Count = Annotated[int, Field(ge=1, le=4096)]
Row = dict[str, Any]
Change = Callable[[Tensor], Tensor]


def first_convolution(network: TorchvisionNetwork) -> nn.Conv2d:
    """Return the convolution that processes the picture itself."""
    first: nn.Conv2d = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    return first


@torch.no_grad()
def input_and_maps(network: TorchvisionNetwork, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the input (3, H, W) and the output maps (M, h, w) of the first convolution for one picture, in float64.

    ``pixels`` are (1, 3, H, W) in 0..255.
    """
    kept: list[Tensor] = []

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kept.extend(tensor[0].cpu().double() for tensor in (inputs[0], output))

    handle = first_convolution(network).register_forward_hook(keep)
    try:
        imagenet.logits(network, pixels)
    finally:
        handle.remove()
    x, maps = kept
    return x, maps


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Pearson's correlation over the last dimension; 0 if one of the two is constant."""
    a, b = (values - values.mean(-1, keepdim=True) for values in (a, b))
    result: Tensor = (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt().clamp(min=1e-12)
    return result


def ranks(values: Tensor) -> Tensor:
    """Return the rank of each value among all. The :func:`correlation` of ranks is Spearman's correlation."""
    return values.argsort().argsort().double()


def by_hand(layer: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    """Compute the layer's sums over x (C, H, W) from their formula, with other weights (M, C, k, k), without bias."""
    if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise UsageError(f"model: its first convolution, {layer}, must have groups=1 and numeric zero padding")
    (down, across), (high, wide), (low, left) = layer.stride, layer.padding, layer.dilation
    return convolve(x[None], weight, stride=(down, across), padding=(high, wide), dilation=(low, left))[0]


def filter_rows(layer: nn.Conv2d, x: Tensor, maps: Tensor) -> list[Row]:
    """Return a table row for each filter: its composition, and how its map follows the picture's brightness.

    ``brightness_gain``: |sum of weights| / sum of |weights|, 1 for a filter that averages, 0 for one that compares.
    ``color_share``: the share of the squared weights that remains after the mean over the three channels is subtracted.
    ``follows_brightness``: correlation of the map with the mean of the same window of the picture.
    """
    weight = layer.weight.detach().cpu().double()
    mean = by_hand(layer, x, torch.full_like(weight[:1], 1 / weight[0].numel())).flatten()
    gain = weight.sum((1, 2, 3)) / weight.abs().sum((1, 2, 3)).clamp(min=1e-12)
    color = (weight - weight.mean(1, keepdim=True)).square().sum((1, 2, 3)) / weight.square().sum((1, 2, 3)).clamp(
        min=1e-12
    )
    follows = correlation(maps.flatten(1), mean)
    columns = {
        "brightness_gain": gain,
        "color_share": color,
        "follows_brightness": follows,
        "map_mean": maps.mean((1, 2)),
        "map_deviation": maps.std((1, 2)),
    }
    return [
        {"filter": index, **{name: values[index].item() for name, values in columns.items()}}
        for index in range(len(weight))
    ]


def changed_rows(maps: Tensor, changed: dict[str, Tensor], moved: dict[str, Change]) -> list[Row]:
    """Return a table row for each disturbance: how the maps correlate with the undisturbed maps, and their deviation.

    The deviation is relative to that of the undisturbed maps. For disturbances that move the picture, ``moved`` applies
    the same movement to the undisturbed maps. The correlation with these, ``with_moved_maps``, is 1 if the layer gives
    the same values at other places. Places outside the original picture are excluded.
    """
    rows = []
    quartiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    for name, after in changed.items():
        low, middle, high = correlation(maps.flatten(1), after.flatten(1)).quantile(quartiles).tolist()
        deviation = (after.std((1, 2)) / maps.std((1, 2)).clamp(min=1e-12)).quantile(0.5).item()
        row: Row = {"change": name, "q25": low, "q50": middle, "q75": high, "deviation_ratio": deviation}
        row["with_moved_maps"] = ""
        if name in moved:
            inside = (moved[name](torch.ones_like(maps[:1])) > 0.999).flatten()
            before = moved[name](maps).flatten(1)[:, inside]
            row["with_moved_maps"] = correlation(before, after.flatten(1)[:, inside]).quantile(0.5).item()
        rows.append(row)
    return rows


def alexnet_features(
    *,
    picture: PathText,
    resize: Count,
    crop: Count,
    share: Annotated[float, Field(gt=0, le=1)],
    blur: Annotated[float, Field(ge=0, le=1000)],
    rotation: Annotated[float, Field(ge=-180, le=180)],
    noise: Annotated[float, Field(ge=0, le=1000)],
    shown: Annotated[int, Field(ge=1, le=6)],
    network: TorchvisionNetwork,
    seed: int,
) -> Answer:
    """Compute the first convolution's filters and maps, also for the cropped, blurred, rotated and noisy picture."""
    check_crop(network, resize=resize, crop=crop)
    path = picture_path(picture)
    pixels = read_picture(path, resize=resize, crop=crop)
    layer = first_convolution(network)
    x, maps = input_and_maps(network, pixels)
    changes: dict[str, Change] = {
        f"crop to {share:g}": lambda x: imagenet.cropped(x, share),
        f"blur, {blur:g} pixels": lambda x: imagenet.blurred(x, blur),
        f"rotation by {rotation:g}\N{DEGREE SIGN}": lambda x: imagenet.rotated(x, rotation, fill=imagenet.MEAN_COLOR),
        f"noise, {noise:g} of 255": lambda x: imagenet.noisy(x, noise, generator(seed, "features", "noise")),
    }
    cropping, _, turning, _ = changes
    moved = {
        cropping: changes[cropping],
        turning: lambda x: imagenet.rotated(x, rotation, fill=0.0),
    }
    pictures = {"as it is": pixels, **{name: change(pixels) for name, change in changes.items()}}
    after = {name: input_and_maps(network, pictures[name])[1] for name in changes}
    filters, rows = filter_rows(layer, x, maps), changed_rows(maps, after, moved)
    gain, follows = (
        torch.tensor([abs(row[name]) for row in filters]) for name in ("brightness_gain", "follows_brightness")
    )
    count, height, width = maps.shape
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    side = "x".join(map(str, layer.kernel_size))
    name = f"{network.architecture} on {printable(path.name)}"
    order = maps.std((1, 2)).argsort(descending=True)[:shown]
    return Answer(
        numbers={
            "maps": count,
            "map_height": height,
            "map_width": width,
            "gain_to_brightness_rank_correlation": correlation(ranks(gain), ranks(follows)).item(),
            "color_filters": sum(row["color_share"] > 0.5 for row in filters),
        },
        checks=agreement(layer, x, maps),
        tables={"filters": filters, "changes": rows},
        figures={
            "maps": side_by_side(
                {"": mosaic(((maps - low) / (high - low).clamp(min=1e-12)).unsqueeze(1))},
                title=f"alexnet_features: {count} maps {height}x{width}, {name}",
                subtitle="Output of the first convolution, one map per filter; "
                "grey levels from each map's lowest to its highest value",
            ),
            "filters": _filters(layer, f"alexnet_features: {count} filters {side}, {network.architecture}"),
            "changes": _changes(pictures, {"as it is": maps, **after}, order, f"alexnet_features: {name}"),
        },
        messages=[
            f"first convolution: {count} maps of {height}x{width} from {tuple(x.shape)}, filters of {side}",
            *(
                "{change}: correlation with the undisturbed maps {q50:.3f} ({q25:.3f} to {q75:.3f})".format(**row)
                for row in rows
            ),
        ],
    )


def agreement(layer: nn.Conv2d, x: Tensor, maps: Tensor) -> list[Check]:
    """Compare the maps with the formulas of a convolution: their size, and each value."""
    weight = layer.weight.detach().cpu().double()
    bias = 0.0 if layer.bias is None else layer.bias.detach().cpu().double().view(-1, 1, 1)
    expected = by_hand(layer, x, weight) + bias
    assert isinstance(layer.padding, tuple)  # by_hand raises for others
    geometry = zip(x.shape[1:], layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
    size = "x".join(str(output_size(n, k, stride=s, padding=p, dilation=d)) for n, k, s, p, d in geometry)
    return [
        equal("size of a map, by (n + 2 p - k) / s + 1", "x".join(map(str, maps.shape[1:])), size),
        at_most(
            "largest relative difference between the maps and sums of filter times window",
            ((maps - expected).abs().max() / expected.abs().max()).item(),
            1e-2 if layer.weight.device.type == "cuda" else 1e-5,  # tf32
        ),
    ]


def _filters(layer: nn.Conv2d, title: str) -> Figure:
    weight = layer.weight.detach().cpu().double()
    scaled = around_grey(weight, weight.abs().amax((1, 2, 3), keepdim=True))
    return side_by_side(
        {"on the first channel (red)": mosaic(scaled[:, :1]), "in colour": mosaic(scaled)},
        title=title,
        subtitle="Each filter is scaled by its largest |weight|; middle grey is 0",
    )


def _changes(pictures: dict[str, Tensor], maps: dict[str, Tensor], order: Tensor, title: str) -> Figure:
    """Plot a row for each disturbance: the picture, then the maps that vary most, with the same scale in all rows."""
    columns = 1 + len(order)
    figure, panels = new_figure(
        columns * len(pictures),
        title=title,
        subtitle="The picture as it is and disturbed, and the maps that vary most; grey levels of the first row",
        columns=columns,
        panel_inches=7.2 / columns + 0.12,
    )
    first = maps["as it is"]
    for row, (name, pixels) in enumerate(pictures.items()):
        axes, *map_panels = panels[row * columns : (row + 1) * columns]
        plot_picture(axes, pixels[0], name)
        for panel, index in zip(map_panels, order.tolist(), strict=True):
            low, high = first[index].min().item(), first[index].max().item()
            panel.imshow(maps[name][index].numpy(), cmap="gray", vmin=low, vmax=high)
            panel.set_axis_off()
            panel.set_title(f"map {index}" if row == 0 else "", fontsize=TEXT_POINTS - 1)
    return figure
