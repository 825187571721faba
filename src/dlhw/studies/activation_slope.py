"""Gradients through a deep net of sigmoid(c z): does a steeper activation prevent vanishing gradients? (D1.2)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from matplotlib.figure import Figure
from pydantic import Field
from scipy.optimize import brentq
from torch import Tensor

from dlhw.errors import UsageError
from dlhw.runtime.randomness import generator
from dlhw.storage.answer import Answer, at_most
from dlhw.views.plots import COLORS, PALETTE, label, new_figure

SETTLED = 5  # layers excluded at either end, where the factor differs from that of the middle layers
STEEPEST = 300.0  # largest c in the search for the balanced one


def activation(z: Tensor, c: Tensor) -> Tensor:
    """Return sigmoid(c z). Its slope c s (1 - s) is at most c / 4, at z = 0."""
    return torch.sigmoid(c * z)


def gradients(weights: Tensor, x: Tensor, c: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """Return gradient norms through the nets z_1 = x, z_{l+1} = W_l sigmoid(c z_l), for each c and each draw.

    Backpropagation: delta_L = slope_L * output, delta_l = slope_l * W_l^T delta_{l+1}.

    Args:
        weights: (R, depth - 1, D, D) for R draws.
        x: (R, D).
        c: (K,).
        output: (R, D), the gradient of the loss by the output of the last layer's sigmoid.

    Returns:
        The norms of the gradients by z_l, (depth, K, R), and the share of saturated units, (K,). A unit is saturated
        if its slope is below a hundredth of the maximum c / 4.
    """
    c = c[:, None, None]
    z = x.expand(len(c), -1, -1)
    slopes = []
    for layer in range(weights.shape[1] + 1):
        s = activation(z, c)
        slopes.append(c * s * (1 - s))
        if layer < weights.shape[1]:
            z = torch.einsum("rij,krj->kri", weights[:, layer], s)
    delta = slopes[-1] * output
    norms = [delta.norm(dim=-1)]
    for layer in reversed(range(weights.shape[1])):
        delta = slopes[layer] * torch.einsum("rij,kri->krj", weights[:, layer], delta)
        norms.append(delta.norm(dim=-1))
    saturated = (torch.stack(slopes) < c / 400).to(x.dtype).mean((0, 2, 3))
    return torch.stack(norms[::-1]), saturated


def layer_factor(c: float, gain: float) -> float:
    """Return the factor chi by which a layer of a wide net multiplies |gradient|^2: gain^2 E[slope(z)^2].

    Weights have variance gain^2 / D, so W^T delta has mean square gain^2 |delta|^2 / D per unit, times the squared
    slope. z is normal with the variance q that is a fixed point of the layer: q = gain^2 E[sigmoid(c z)^2].
    """
    normal = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    density = torch.exp(-normal.square() / 2) / math.sqrt(2 * math.pi) * (normal[1] - normal[0])
    q = 0.3 * gain**2
    for _ in range(60):
        s = torch.sigmoid(c * math.sqrt(q) * normal)
        q = gain**2 * float((density * s.square()).sum())
    return gain**2 * float((density * (c * s * (1 - s)).square()).sum())


def balanced(gain: float, factor: float) -> float:
    """Return the c at which :func:`layer_factor` equals ``factor``."""
    return float(brentq(lambda c: layer_factor(c, gain) - factor, 1e-3, STEEPEST, xtol=1e-6))


def plot_slopes(
    norms: Tensor, factor: Tensor, *, slopes: list[float], gain: float, width: int, stable: tuple[float, float]
) -> Figure:
    """Plot norms (layers, K, R) of K slopes and R nets by layer, and factors (K,) on their squares against theory."""
    depth, _, draws = norms.shape
    figure, (left, right) = new_figure(
        2,
        title="activation_slope: a steeper activation, sigmoid(c z)",
        subtitle=f"{depth} layers of {width} units; left: median of {draws} nets, band from 10 to 90 %; right: in the "
        f"grey range the whole net changes |gradient| by a factor below 10",
        panel_inches=3.4,
    )
    layers = torch.arange(1, depth + 1)
    low, centre, high = (norms / norms[-1]).quantile(torch.tensor([0.1, 0.5, 0.9], dtype=norms.dtype), dim=-1)
    for i, slope in enumerate(slopes):
        left.semilogy(layers, centre[:, i], color=PALETTE[i], linewidth=1.6, label=f"c = {slope:g}")
        left.fill_between(layers, low[:, i], high[:, i], color=PALETTE[i], alpha=0.2, linewidth=0)
    label(left, x="layer", y="|gradient| / that of the last layer", place="lower right")
    line = torch.logspace(math.log10(slopes[0] / 2), math.log10(slopes[-1] * 2), 60, dtype=torch.float64)
    predicted = [math.sqrt(layer_factor(slope, gain)) for slope in line.tolist()]
    right.axvspan(*stable, color="#BBBBBB", alpha=0.6, linewidth=0)
    right.loglog(line, predicted, color=COLORS["reference"], linewidth=1.4, label="wide nets, theory")
    for i, slope in enumerate(slopes):
        right.plot(slope, factor[i].sqrt(), "o", color=PALETTE[i])
    right.plot([], [], "o", color=COLORS["reference"], label="measured")
    right.axhline(1.0, color=COLORS["reference"], linestyle="--", linewidth=1.0)
    label(right, x="c (largest slope c / 4)", y="factor on |gradient| per layer", place="upper left")
    return figure


def activation_slope(
    *,
    slopes: Annotated[list[Annotated[float, Field(gt=0, le=100)]], Field(min_length=2, max_length=len(PALETTE))],
    depth: Annotated[int, Field(ge=4 * SETTLED, le=1000)],
    width: Annotated[int, Field(ge=20, le=2000)],
    gain: Annotated[float, Field(ge=0.2, le=5)],
    draws: Annotated[int, Field(ge=10, le=10_000)],
    seed: int,
) -> Answer:
    """Compute gradient norms by layer for several c, the factor per layer, and the range of c with stable gradients."""
    if sorted(set(slopes)) != slopes:
        raise UsageError(f"study.slopes={slopes}: must be in increasing order, without duplicates")
    source = generator(seed, "activation_slope")
    weights = (
        gain / math.sqrt(width) * torch.randn(draws, depth - 1, width, width, generator=source, dtype=torch.float64)
    )
    x, output = torch.randn(2, draws, width, generator=source, dtype=torch.float64)
    c = torch.tensor(slopes, dtype=torch.float64)
    norms, saturated = gradients(weights, x * gain / math.sqrt(2), c, output)

    if not ((norms.square() >= torch.finfo(norms.dtype).tiny) & norms.square().isfinite()).all():
        raise UsageError(
            f"study.depth={depth}: gradients overflow or underflow float64; use fewer layers, or study.slopes nearer "
            "to 10"
        )
    middle = norms[SETTLED:-SETTLED].square()
    ratios = (middle[:-1] / middle[1:]).mean(0)  # (K, R): independent draws, so their spread gives the error
    factor, error = ratios.mean(-1), ratios.std(-1) / math.sqrt(draws)
    theory = torch.tensor([layer_factor(slope, gain) for slope in slopes], dtype=torch.float64)
    whole = (norms[0] / norms[-1]).median(-1).values
    shrinking, growing = (balanced(gain, 10 ** (power / (depth - 1))) for power in (-2, 2))
    balanced_c = balanced(gain, 1.0)

    return Answer(
        numbers={
            "balanced_c": balanced_c,
            "stable_from_c": shrinking,
            "stable_to_c": growing,
            "least_change_through_the_net": float(whole.min()),
            "largest_change_through_the_net": float(whole.max()),
        },
        checks=[
            at_most(
                "factor on |gradient|^2 per layer: largest |measured - theory| minus 5 standard errors, relative",
                float((((factor - theory).abs() - 5 * error) / theory).max()),
                5 / width,
            )
        ],
        tables={
            "slopes": [
                {
                    "c": slope,
                    "largest_slope": slope / 4,
                    "factor": math.sqrt(measured),
                    "factor_theory": math.sqrt(expected),
                    "first_over_last": change,
                    "saturated_percent": 100 * share,
                }
                for slope, measured, expected, change, share in zip(
                    slopes, factor.tolist(), theory.tolist(), whole.tolist(), saturated.tolist(), strict=True
                )
            ]
        },
        figures={
            "slopes": plot_slopes(norms, factor, slopes=slopes, gain=gain, width=width, stable=(shrinking, growing))
        },
    )
