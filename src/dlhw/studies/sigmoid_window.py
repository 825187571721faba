"""The range of inputs over which a sigmoid unit does not shrink gradients, as a function of the weight (D1.2, D1.3)."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import brentq, minimize_scalar

from dlhw.storage.answer import Answer, at_most, close
from dlhw.views.plots import COLORS, PALETTE, label, new_figure

Array = NDArray[np.float64]


def slope(z: float) -> float:
    """Return the sigmoid's derivative s(z) (1 - s(z)), in a form in which no exponential overflows."""
    small = math.exp(-abs(z))
    return small / (1 + small) ** 2


def bound(weight: Array) -> Array:
    """Return 2 / |w| ln(|w| (1 + sqrt(1 - 4 / |w|)) / 2 - 1), D1.3b, for weights with |w| >= 4.

    Let s = sigmoid(w a + b). |w| s (1 - s) >= 1 is quadratic in s and holds between the roots
    (1 -+ sqrt(1 - 4 / |w|)) / 2. For z = ln(s / (1 - s)) the upper end is z+ = ln(|w| s+ - 1), since
    1 / (1 - s+) = |w| s+, and the lower end is -z+. As z = w a + b, a has a range of 2 z+ / |w|: the bound is exact.
    """
    size = np.abs(weight)
    widths: Array = 2 / size * np.log(size * (1 + np.sqrt(1 - 4 / size)) / 2 - 1)
    return widths


def measured_width(weight: float) -> float:
    """Return the width by root finding: where |w| slope(w a) crosses 1 on either side of a = 0."""
    size = abs(weight)
    if size <= 4:
        return 0.0
    edge = brentq(lambda a: size * slope(size * a) - 1, 0.0, 40 / size, xtol=1e-15)
    return 2 * float(edge)


def sigmoid_window(
    *,
    largest_weight: Annotated[float, Field(gt=8, le=1e6)],
    points: Annotated[int, Field(ge=10, le=1_000_000)],
) -> Answer:
    """Compute the bound and the measured width against |w|, and the weight with the greatest bound."""
    weights = np.linspace(4, largest_weight, points)
    bounds = bound(weights)
    widths = np.array([measured_width(weight) for weight in weights])
    best = minimize_scalar(
        lambda weight: -bound(np.array(weight)), bounds=(4, largest_weight), method="bounded", options={"xatol": 1e-10}
    )
    at, widest = float(best.x), float(-best.fun)

    figure, (axes,) = new_figure(
        1,
        title="sigmoid_window: inputs a for which |w s'(w a + b)| is at least 1",
        subtitle=f"the widest range of inputs is {widest:.4f}, at |w| = {at:.4f}",
    )
    axes.plot(weights, bounds, color=PALETTE[0], linewidth=2.2, label="bound by formula")
    axes.plot(weights, widths, color=PALETTE[1], linewidth=1.2, linestyle="--", label="width by root finding")
    axes.plot([at], [widest], "o", color=COLORS["reference"], label="widest")
    label(axes, x="|w|", y="width of the range of a")
    rows = [
        {"weight": weight, "bound": upper, "width": width, "largest_factor": weight / 4}
        for weight, upper, width in zip(weights.tolist(), bounds.tolist(), widths.tolist(), strict=True)
    ]
    return Answer(
        numbers={"weight_at_widest": at, "widest": widest},
        checks=[
            close("|w| with the greatest bound (D1.3c)", at, 6.9, within=0.05),
            close("the greatest bound (D1.3c)", widest, 0.45, within=0.005),
            at_most("largest difference between bound and measured width", float(np.abs(bounds - widths).max()), 1e-9),
            close("smallest |w| with a window (D1.3a)", 1 / slope(0.0), 4.0, within=1e-12),
        ],
        tables={"widths": rows},
        figures={"widths": figure},
        messages=[f"the slope of the sigmoid is at most {slope(0.0):g}, so |w| must be at least {1 / slope(0.0):g}"],
    )
