"""Pictures for networks with ImageNet's classes: read, disturb and plot them, and name the predicted classes."""

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
from dlhw.runtime.paths import printable, shortened
from dlhw.views.plots import PALETTE, TEXT_POINTS

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of red, green and blue in ImageNet's training pictures, in 0..1, as in torchvision."""
MEAN_COLOR = 255 * torch.tensor(MEAN, dtype=torch.float64).view(3, 1, 1)
SAMPLES = ("china.jpg", "flower.jpg")
BATCH = 32


def picture_path(picture: str) -> Path:
    """Return the path of a picture or a folder of pictures; the names of scikit-learn's two samples are valid, too."""
    path = Path(picture)
    if path.exists():
        return path
    if picture not in SAMPLES:
        raise UsageError(
            f"study.picture={shortened(picture)}: no such file or folder; {' and '.join(SAMPLES)} are always available"
        )
    import sklearn

    return Path(sklearn.__file__).parent / "datasets" / "images" / picture


def check_crop(network: TorchvisionNetwork, *, resize: int, crop: int) -> None:
    """Raise UsageError if the crop is larger than the picture, or if its size is invalid for the network."""
    if crop > resize:
        raise UsageError(f"study.crop={crop}: must not be larger than study.resize={resize}")
    reason = misfit(network, (3, crop, crop))
    if reason is not None:
        raise UsageError(f"study.crop={crop}: {network.architecture} cannot process pictures of this size ({reason})")


def read_picture(path: Path, *, resize: int, crop: int) -> Tensor:
    """Return a picture's pixels, (1, 3, crop, crop) in 0..255, in float64. Raise UsageError if it cannot be read."""
    if path.is_dir():
        raise UsageError(f"study.picture={printable(path)}: is a folder; must be a picture")
    try:
        return read(path, resize=resize, crop=crop)[None].to(torch.float64)
    except Unreadable as error:
        raise UsageError(f"study.picture={printable(path)}: {error}") from error


def logits(network: TorchvisionNetwork, pixels: Tensor) -> Tensor:
    """Return the logits for pixels (N, 3, H, W) in 0..255, differentiable, in the network's precision on its device."""
    weight = next(network.parameters())
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    x = (pixels / 255 - mean.to(pixels)) / std.to(pixels)
    result: Tensor = network(x.to(weight.device, weight.dtype))
    return result


@torch.no_grad()
def probabilities(network: TorchvisionNetwork, pixels: Tensor) -> Tensor:
    """Return the class probabilities for pixels (N, 3, H, W), (N, classes) in float64 on the CPU."""
    batches = [logits(network, part).cpu() for part in pixels.split(BATCH)]
    return torch.cat(batches).double().softmax(1)


def top_classes(network: TorchvisionNetwork, probability: Tensor, count: int = 5) -> list[dict[str, Any]]:
    """Return the most probable classes of one picture from its probabilities (classes,), best first."""
    values, indices = probability.topk(min(count, len(probability)))
    return [
        {"rank": rank, "index": index, "class": network.categories[index], "probability": value}
        for rank, (value, index) in enumerate(zip(values.tolist(), indices.tolist(), strict=True), 1)
    ]


def class_index(network: TorchvisionNetwork, key: str, label: int | str) -> int:
    """Return the index of a class that is given as its index or its name.

    Raise UsageError with the nearest names if there is no such class.
    """
    names = network.categories
    if isinstance(label, int):
        if not 0 <= label < len(names):
            raise UsageError(f"{key}={label}: must be from 0 to {len(names) - 1}, or a class's name")
        return label
    by_name = {name.lower(): index for index, name in reversed(list(enumerate(names)))}
    if label.lower() not in by_name:
        near = difflib.get_close_matches(label.lower(), by_name, 3, cutoff=0.4)
        hint = "; did you mean " + " or ".join(names[by_name[name]] for name in near) + "?" if near else ""
        raise UsageError(f"{key}={label}: not a class of ImageNet{hint}")
    return by_name[label.lower()]


def noisy(pixels: Tensor, sigma: float, source: torch.Generator) -> Tensor:
    """Add Gaussian noise of standard deviation ``sigma`` to each pixel and colour, and clamp to 0..255."""
    noise = torch.randn(pixels.shape, generator=source, dtype=pixels.dtype)
    return (pixels + sigma * noise).clamp(0, 255)


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    """Smooth with a Gaussian of standard deviation ``sigma`` pixels, cut off at three standard deviations."""
    from torchvision.transforms.v2.functional import gaussian_blur

    if sigma == 0:
        return pixels
    reach = min(math.ceil(3 * sigma), min(pixels.shape[-2:]) - 1)
    smooth: Tensor = gaussian_blur(pixels, 2 * reach + 1, sigma)
    return smooth


def rotated(pixels: Tensor, degrees: float, *, fill: Tensor | float) -> Tensor:
    """Rotate counter-clockwise about the centre; the corners outside the original picture get ``fill``."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import rotate

    turned: Tensor = rotate(pixels - fill, degrees, InterpolationMode.BILINEAR) + fill
    return turned


def cropped(pixels: Tensor, share: float) -> Tensor:
    """Crop the middle, ``share`` of the height and width, and enlarge it to the original size."""
    from torchvision.transforms.v2.functional import center_crop, resize

    size = list(pixels.shape[-2:])
    enlarged: Tensor = resize(center_crop(pixels, [max(1, round(share * side)) for side in size]), size, antialias=True)
    return enlarged


def smallest_size(holds: Callable[[float], bool], sizes: Sequence[float], *, within: float) -> float:
    """Return the smallest size at which a condition holds, nan if it holds at none of ``sizes``.

    Find the first of ``sizes`` at which it holds, then bisect between it and the one before, to a relative precision of
    ``within``. If the condition is not monotonic in the size, a smaller solution between two of ``sizes`` may be
    missed.
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


def plot_picture(axes: Axes, pixels: Tensor, title: str) -> None:
    """Plot pixels (3, H, W) in 0..255 under a title that is wrapped into lines."""
    axes.imshow(pixels.permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy())
    axes.set_axis_off()
    axes.set_title("\n".join(textwrap.wrap(title, 27)), fontsize=TEXT_POINTS - 1, parse_math=False)


def plot_answers(axes: Axes, answers: Sequence[dict[str, Any]], *, true_class: int | None = None) -> None:
    """Plot the rows of :func:`top_classes` as bars, ``true_class`` in another colour."""
    axes.grid(visible=False)
    axes.spines[["left"]].set_visible(False)
    places = list(range(len(answers)))
    colors = [PALETTE[2] if answer["index"] == true_class else PALETTE[5] for answer in answers]
    axes.barh(places, [answer["probability"] for answer in answers], color=colors, height=0.8)
    for place, answer in zip(places, answers, strict=True):
        name = textwrap.shorten(answer["class"], 26, placeholder="...")
        axes.text(
            0.02,
            place,
            f"{name} {answer['probability']:.2f}",
            va="center",
            fontsize=TEXT_POINTS - 1.5,
            parse_math=False,
        )
    axes.set_yticks([])
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
