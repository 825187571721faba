"""Pictures for a network with ImageNet's classes: found, opened, disturbed, drawn, and its answers in words."""

from __future__ import annotations

import difflib
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from dlhw.data.pictures import Unreadable, read
from dlhw.errors import UsageError
from dlhw.models.pretrained import TorchvisionNetwork, misfit
from dlhw.views.plots import PALETTE, TEXT_POINTS

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's training pictures, red, green and blue in 0..1: what all of torchvision's weights want."""
MEAN_COLOR = 255 * torch.tensor(MEAN, dtype=torch.float64).view(3, 1, 1)
SAMPLES = ("china.jpg", "flower.jpg")
BATCH = 32


def located(picture: str) -> Path:
    """Where a picture is, or a folder of pictures; scikit-learn's two samples are found by their names alone."""
    path = Path(picture).expanduser()
    if path.exists():
        return path
    if picture not in SAMPLES:
        raise UsageError(f"study.picture={picture}: no such file or folder; {' and '.join(SAMPLES)} are always there")
    import sklearn

    return Path(sklearn.__file__).parent / "datasets" / "images" / picture


def check_crop(network: TorchvisionNetwork, *, resize: int, crop: int) -> None:
    """Raises UsageError where no such pictures can be made, or the network cannot take them."""
    if crop > resize:
        raise UsageError(f"study.crop={crop}: must not be larger than study.resize={resize}")
    reason = misfit(network, (3, crop, crop))
    if reason is not None:
        raise UsageError(f"study.crop={crop}: {network.architecture} cannot take such pictures ({reason})")


def opened(path: Path, *, resize: int, crop: int) -> Tensor:
    """The pixels of a picture, (1, 3, crop, crop) in 0..255, in float64. Raises UsageError if it cannot be read."""
    if path.is_dir():
        raise UsageError(f"study.picture={path}: is a folder; name one picture")
    try:
        return read(path, resize=resize, crop=crop)[None].to(torch.float64)
    except Unreadable as error:
        raise UsageError(f"study.picture={path}: {error}") from error


def logits(network: TorchvisionNetwork, pixels: Tensor) -> Tensor:
    """Of pixels (N, 3, H, W) in 0..255, differentiable; in the network's precision, on its device."""
    weight = next(network.parameters())
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    x = (pixels / 255 - mean.to(pixels)) / std.to(pixels)
    found: Tensor = network(x.to(weight.device, weight.dtype))
    return found


@torch.no_grad()
def probabilities(network: TorchvisionNetwork, pixels: Tensor) -> Tensor:
    """Of each class, (N, classes) in float64 on the CPU."""
    found = [logits(network, part).cpu() for part in pixels.split(BATCH)]
    return torch.cat(found).double().softmax(1)


def top(network: TorchvisionNetwork, probability: Tensor, count: int = 5) -> list[dict[str, Any]]:
    """The most probable classes of one picture (classes,), best first."""
    values, indices = probability.topk(min(count, len(probability)))
    return [
        {"rank": rank, "index": index, "class": network.categories[index], "probability": value}
        for rank, (value, index) in enumerate(zip(values.tolist(), indices.tolist(), strict=True), 1)
    ]


def class_index(network: TorchvisionNetwork, key: str, label: int | str) -> int:
    """The number of a class that is given by it or by its name. Raises UsageError with the nearest names."""
    names = network.categories
    if isinstance(label, int):
        if not 0 <= label < len(names):
            raise UsageError(f"{key}={label}: must be from 0 to {len(names) - 1}, or a class's name")
        return label
    by_name = {name.lower(): index for index, name in reversed(list(enumerate(names)))}
    if label.lower() not in by_name:
        near = difflib.get_close_matches(label.lower(), by_name, 3, cutoff=0.4)
        hint = "; did you mean " + " or ".join(names[by_name[name]] for name in near) + "?" if near else ""
        raise UsageError(f"{key}={label}: no class of ImageNet{hint}")
    return by_name[label.lower()]


def noisy(pixels: Tensor, sigma: float, source: torch.Generator) -> Tensor:
    """With Gaussian noise of standard deviation ``sigma`` on each pixel and colour, kept within 0..255."""
    noise = torch.randn(pixels.shape, generator=source, dtype=pixels.dtype)
    return (pixels + sigma * noise).clamp(0, 255)


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    """Smoothed by a Gaussian of standard deviation ``sigma`` pixels, cut off beyond three of them."""
    from torchvision.transforms.v2.functional import gaussian_blur

    if sigma == 0:
        return pixels
    reach = min(math.ceil(3 * sigma), min(pixels.shape[-2:]) - 1)
    smooth: Tensor = gaussian_blur(pixels, 2 * reach + 1, sigma)
    return smooth


def rotated(pixels: Tensor, degrees: float, *, fill: Tensor | float) -> Tensor:
    """Turned counter-clockwise about the middle; the corners that nothing falls into get ``fill``."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import rotate

    turned: Tensor = rotate(pixels - fill, degrees, InterpolationMode.BILINEAR) + fill
    return turned


def cropped(pixels: Tensor, share: float) -> Tensor:
    """The middle, ``share`` of the height and width, enlarged to the size of before."""
    from torchvision.transforms.v2.functional import center_crop, resize

    size = list(pixels.shape[-2:])
    enlarged: Tensor = resize(center_crop(pixels, [max(1, round(share * side)) for side in size]), size, antialias=True)
    return enlarged


def smallest(holds: Callable[[float], bool], sizes: Sequence[float], *, within: float) -> float:
    """The smallest size found at which something holds, nan if at none of ``sizes``.

    The first of them at which it holds, then bisection between it and the one before, to a relative ``within``. Where
    it holds at some sizes and not at larger ones, smaller ones between those tried may be overlooked.
    """
    below = 0.0
    for size in sorted(sizes):
        if holds(size):
            break
        below = size
    else:
        return math.nan
    while size - below > within * size:
        middle = (below + size) / 2
        below, size = (below, middle) if holds(middle) else (middle, size)
    return size


def draw_picture(axes: Axes, pixels: Tensor, title: str) -> None:
    """Pixels (3, H, W) in 0..255 under a title that is broken into lines."""
    axes.imshow(pixels.permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy())
    axes.set_axis_off()
    axes.set_title("\n".join(textwrap.wrap(title, 27)), fontsize=TEXT_POINTS - 1, parse_math=False)


def draw_answers(axes: Axes, answers: Sequence[dict[str, Any]], *, right: int | None = None) -> None:
    """Bars of :func:`top`, each with its class; that of the ``right`` one in another colour."""
    axes.grid(visible=False)
    axes.spines[["left"]].set_visible(False)
    places = list(range(len(answers)))
    colors = [PALETTE[2] if each["index"] == right else PALETTE[5] for each in answers]
    axes.barh(places, [each["probability"] for each in answers], color=colors, height=0.8)
    for place, each in zip(places, answers, strict=True):
        name = textwrap.shorten(each["class"], 26, placeholder="...")
        axes.text(
            0.02, place, f"{name} {each['probability']:.2f}", va="center", fontsize=TEXT_POINTS - 1.5, parse_math=False
        )
    axes.set_yticks([])
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
