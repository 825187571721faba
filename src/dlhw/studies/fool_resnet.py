"""The amount of noise that makes a network fail: random noise, and noise along the sign of the gradient (D6.2)."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from dlhw.models.pretrained import TorchvisionNetwork
from dlhw.runtime.options import PathText
from dlhw.runtime.paths import printable
from dlhw.runtime.randomness import generator
from dlhw.storage.answer import Answer, Check, at_most, close, equal, text
from dlhw.studies.imagenet import (
    check_crop,
    class_index,
    logits,
    picture_path,
    plot_answers,
    plot_picture,
    probabilities,
    read_picture,
    smallest_size,
    top_classes,
)
from dlhw.views.plots import PALETTE, add_legend, new_figure
from dlhw.views.plots import label as name_axes

Kind = Literal["gaussian", "uniform", "signs"]
Size = Annotated[float, Field(gt=0)]
Label = Annotated[int, Field(ge=0, le=999)] | str
Count = Annotated[int, Field(ge=1, le=4096)]
Row = dict[str, Any]
WITHIN = 0.01  # relative precision of the smallest sizes
FGSM, RANDOM, TARGETED = "along the gradient's sign", "random", "targeted"


@dataclass(frozen=True, eq=False)
class Noise:
    """One direction or several in which the pixels are moved, and the network's answers for the moved pixels."""

    name: str
    directions: Tensor  # (K, 3, H, W)
    watched: int  # the class that the noise is meant to avoid or, with ``targeted``, to reach
    network: TorchvisionNetwork
    pixels: Tensor
    targeted: bool = False

    def disturbed(self, size: float) -> Tensor:
        """Return the disturbed pictures (K, 3, H, W), clamped to 0..255."""
        return (self.pixels + size * self.directions).clamp(0, 255)

    @functools.cache  # noqa: B019  # bisection revisits sizes; the object lives as long as the study
    def outcome(self, size: float) -> Tensor:
        """Return the probabilities (K, classes) for the disturbed pictures."""
        return probabilities(self.network, self.disturbed(size))

    def fooled(self, size: float) -> Tensor:
        """Return which of the K directions succeed."""
        return (self.outcome(size).argmax(1) == self.watched) == self.targeted

    def row(self, size: float) -> Row:
        """Return the share of success and the probability of the watched class as a table row."""
        watched = self.outcome(size)[:, self.watched]
        spread = {"lowest": watched.min(), "median": watched.quantile(0.5), "highest": watched.max()}
        share = self.fooled(size).double().mean().item()
        return {"noise": self.name, "size": size, "share": share, **{name: x.item() for name, x in spread.items()}}


def random_noise(shape: torch.Size, source: torch.Generator, kind: Kind) -> Tensor:
    """Draw independent values of mean 0 and root mean square 1."""
    if kind == "gaussian":
        return torch.randn(shape, generator=source, dtype=torch.float64)
    values = 2 * torch.rand(shape, generator=source, dtype=torch.float64) - 1
    return values * math.sqrt(3) if kind == "uniform" else values.sign()


def gradient(network: TorchvisionNetwork, pixels: Tensor, index: int) -> tuple[Tensor, Check]:
    """Return the gradient of the cross-entropy of class ``index`` by the pixels, and a check of its size.

    To first order loss(x + h sign(g)) - loss(x) = h |g|_1, which no other change of at most h per pixel exceeds
    (Goodfellow et al. 2015). The check compares |g|_1 with central differences. All is computed in float64: if p is
    close to 1, g is proportional to 1 - p, which float32 rounds.
    """
    device = next(network.parameters()).device
    exact = copy.deepcopy(network).to("cpu" if device.type == "mps" else device, torch.float64)

    def loss(x: Tensor) -> Tensor:
        return cross_entropy(logits(exact, x).cpu(), torch.tensor([index]))

    x = pixels.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(x), x)
    step = 1e-4  # of 255: small beside the sizes at which networks fail
    with torch.no_grad():
        measured = (loss(pixels + step * slope.sign()) - loss(pixels - step * slope.sign())).item() / (2 * step)
    total = slope.abs().sum().item()
    what = f"slope of the loss of {network.categories[index]} along the gradient's sign, by central differences"
    return slope, close(what, measured, total, within=0.01 * total + 1e-9)


def fool_resnet(
    *,
    picture: PathText,
    resize: Count,
    crop: Count,
    label: Label | None,
    target: Label | None,
    noise: Kind,
    sizes: Annotated[list[Size], Field(min_length=2, max_length=100)],
    draws: Count,
    network: TorchvisionNetwork,
    seed: int,
) -> Answer:
    """Find the network's answer for a picture, and the smallest noise of each kind that changes this answer."""
    check_crop(network, resize=resize, crop=crop)
    path = picture_path(picture)
    pixels = read_picture(path, resize=resize, crop=crop)
    clean = probabilities(network, pixels)[0]
    first_answer = int(clean.argmax())
    true_class = None if label is None else class_index(network, "study.label", label)
    checks = (
        []
        if true_class is None
        else [equal("predicted class", network.categories[first_answer], network.categories[true_class])]
    )

    slope, check = gradient(network, pixels, first_answer)
    drawn = [random_noise(pixels.shape, generator(seed, "fool", draw), noise) for draw in range(draws)]
    fgsm = Noise(FGSM, slope.sign(), first_answer, network, pixels)
    random = Noise(f"{RANDOM}, {noise}", torch.cat(drawn), first_answer, network, pixels)
    kinds, checks = [fgsm, random], [*checks, check]
    sizes = sorted(set(sizes))
    needed = {
        "fgsm": smallest_size(lambda size: bool(fgsm.fooled(size).all()), sizes, within=WITHIN),
        "random_any": smallest_size(lambda size: bool(random.fooled(size).any()), sizes, within=WITHIN),
        "random_half": smallest_size(
            lambda size: random.fooled(size).double().mean().item() >= 0.5, sizes, within=WITHIN
        ),
    }
    if target is not None:
        target_class = class_index(network, "study.target", target)
        slope, check = gradient(network, pixels, target_class)
        targeted = Noise(TARGETED, -slope.sign(), target_class, network, pixels, targeted=True)
        needed["targeted"] = smallest_size(lambda size: bool(targeted.fooled(size).all()), sizes, within=WITHIN)
        kinds, checks = [*kinds, targeted], [*checks, check]
    integer_size = next((size for size in range(1, math.floor(sizes[-1]) + 1) if fgsm.fooled(float(size)).all()), None)
    rows = [kind.row(size) for kind in kinds for size in sizes]
    title = f"fool_resnet: {network.architecture} on {printable(path.name)}"
    return Answer(
        numbers={
            "probability": clean[first_answer].item(),
            **{f"smallest_{kind}": size for kind, size in needed.items()},
            "smallest_fgsm_8_bit": math.nan if integer_size is None else integer_size,
            "random_over_fgsm": needed["random_half"] / needed["fgsm"],
        },
        checks=[*checks, *verify(fgsm, needed["fgsm"], integer_size)],
        tables={"top5": top_classes(network, clean), "noise": rows},
        figures={
            "fool_resnet": _pictures(
                [(fgsm, needed["fgsm"]), (random, needed["random_half"])], clean, sizes[-1], true_class, title
            ),
            "curves": _curves(rows, needed, network.categories[first_answer], title, draws),
        },
        messages=[
            *("{rank}. {class}: {probability:.4f}".format(**row) for row in top_classes(network, clean)),
            *(
                f"{name}: succeeds from size {text(size)} of 255"
                if math.isfinite(size)
                else f"{name}: does not succeed up to size {text(sizes[-1])} of 255"
                for name, size in needed.items()
            ),
        ],
    )


def verify(fgsm: Noise, size: float, integer_size: int | None) -> list[Check]:
    """Check the largest change of a pixel and, if an integer size succeeds, the answer for the 8-bit picture."""
    names, checks = fgsm.network.categories, []
    if math.isfinite(size):
        change = (fgsm.disturbed(size) - fgsm.pixels).abs().max().item()
        checks.append(
            at_most("largest change of a pixel at the smallest size along the gradient's sign", change, size + 1e-9)
        )
    if integer_size is not None:
        stored = fgsm.disturbed(float(integer_size)).to(torch.uint8)
        answer = names[int(probabilities(fgsm.network, stored.double()).argmax())]
        checks.append(
            Check(
                f"predicted class of the 8-bit picture, {integer_size} of 255 along the gradient's sign",
                answer,
                f"any class except {names[fgsm.watched]}",
                answer != names[fgsm.watched],
            )
        )
    return checks


def _pictures(
    shown: list[tuple[Noise, float]], clean: Tensor, largest: float, true_class: int | None, title: str
) -> Figure:
    """Plot the picture and its answers, and each noise at its smallest size, amplified, with the disturbed picture."""
    figure, panels = new_figure(
        6,
        title=title,
        subtitle="Each noise at the smallest size that succeeds (random: with half of the draws), in units of 1/255",
        columns=3,
        panel_inches=2.75,
    )
    first = shown[0][0]
    names, first_answer = first.network.categories, first.watched
    plot_picture(panels[0], first.pixels[0], f"{names[first_answer]} {clean[first_answer]:.2f}")
    plot_answers(panels[3], top_classes(first.network, clean), true_class=true_class)
    name_axes(panels[3], x="probability, undisturbed", y="")
    for (noise, size), noise_axes, axes in zip(shown, (panels[1], panels[4]), (panels[2], panels[5]), strict=True):
        succeeds = math.isfinite(size)
        used = size if succeeds else largest
        index = int(noise.fooled(used).double().argmax())
        direction = noise.directions[index]
        outcome = noise.outcome(used)[index]
        answer = int(outcome.argmax())
        plot_picture(noise_axes, 127.5 + 63 * direction, f"{noise.name}, {text(round(used, 3))} of 255, amplified")
        plot_picture(
            axes,
            noise.disturbed(used)[index],
            f"{names[answer]} {outcome[answer]:.2f}" + ("" if succeeds else f" (not fooled up to {text(largest)})"),
        )
    return figure


def _curves(rows: list[Row], needed: dict[str, float], first_answer: str, title: str, draws: int) -> Figure:
    """Plot the probability and the share of success against the size of the noise."""
    figure, (left, right) = new_figure(
        2,
        title=title,
        subtitle=f"random: median, minimum and maximum of {draws} draws; dotted: smallest sizes that succeed",
        foot_inches=0.3,
    )
    name_axes(left, x="root mean square of the noise (of 255)", y=f"probability of {first_answer}")
    name_axes(right, x="root mean square of the noise (of 255)", y="share of draws that succeed")
    kinds = list(dict.fromkeys(row["noise"] for row in rows))
    colors = dict(zip(kinds, (PALETTE[1], PALETTE[0], PALETTE[2]), strict=False))
    for kind, color in colors.items():
        matches = [row for row in rows if row["noise"] == kind]
        sizes = [row["size"] for row in matches]
        name = f"{kind} (probability of the target)" if kind == TARGETED else kind
        left.plot(sizes, [row["median"] for row in matches], "o-", color=color, markersize=3.5, label=name)
        left.fill_between(
            sizes,
            [row["lowest"] for row in matches],
            [row["highest"] for row in matches],
            color=color,
            alpha=0.2,
            linewidth=0,
        )
        right.plot(sizes, [row["share"] for row in matches], "o-", color=color, markersize=3.5, label=kind)
    marked = {"fgsm": kinds[0], "random_half": kinds[1], "targeted": TARGETED}
    for name, kind in marked.items():
        if math.isfinite(needed.get(name, math.nan)):
            right.axvline(needed[name], color=colors[kind], linestyle=":", linewidth=1.2)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_ylim(-0.03, 1.03)
    add_legend(figure, *left.get_legend_handles_labels(), loc="outside lower center", columns=len(kinds))
    return figure
