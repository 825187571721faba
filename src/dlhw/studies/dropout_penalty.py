"""Dropout as a penalty: the amount that it adds to the loss on average, and the second-order formula for it (A4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor
from torch.func import grad, jacrev, vmap

from dlhw.errors import UsageError
from dlhw.intervals import mean_and_standard_error
from dlhw.runtime.randomness import generator
from dlhw.storage.answer import Answer, Check, at_most
from dlhw.views.plots import COLORS, PALETTE, label, new_figure

Loss = Callable[[Tensor], Tensor]
"""The loss as a function of the hidden layer: (..., d) to (...)."""

ERRORS = 5.0  # an estimate disagrees if it is off by more than this many standard errors
ROUNDING = 1e-13  # relative error of a loss; a penalty is a difference of losses and has the same absolute error
SHOWN_RATES = (0.01, 0.1, 0.5)  # dropout rates in the figure of the formula's error
SCALES = torch.logspace(-3, 0, 31, dtype=torch.float64)  # factors on the hidden layer in that figure


def linear_loss(weight: Tensor, y: float) -> Loss:
    """Return the loss (W h - y)^2 as a function of h; W is a row."""
    return lambda h: (h @ weight - y).square()


def net_loss(inner: Tensor, outer: Tensor, y: float) -> Loss:
    """Return the loss (u . tanh(V h) - y)^2 as a function of h; ``inner`` is V, (width, d), and ``outer`` is u."""
    return lambda h: ((h @ inner.T).tanh() @ outer - y).square()


def noise(dropped: Tensor, q: Tensor) -> Tensor:
    """Return eta of A4: -1 for a dropped unit, q / (1 - q) for a kept one, so that (1 + eta) h is 0 or h / (1 - q).

    E eta = -q + (1 - q) q / (1 - q) = 0. E eta^2 = q + q^2 / (1 - q) = q / (1 - q) is the variance.
    """
    return torch.where(dropped, -1.0, q / (1 - q))


def second_order(loss: Loss, h: Tensor, q: Tensor) -> Tensor:
    """Return the right-hand side of A4.(1): q / (2 (1 - q)) * sum_k H_kk h_k^2, with H the Hessian of the loss by h.

    Taylor: loss((1 + eta) h) - loss(h) ~ gradient . (eta h) + (eta h)^T H (eta h) / 2. The mean of the first term is 0.
    In the mean of the second only the diagonal remains, since E eta_j eta_k = 0 for j != k and E eta_k^2 = q / (1 - q).
    """
    diagonal = torch.diagonal(jacrev(grad(loss))(h))
    penalty: Tensor = q / (2 * (1 - q)) * (diagonal * h.square()).sum()
    return penalty


def linear_penalty(weight: Tensor, x: Tensor, q: Tensor) -> Tensor:
    """Return q / (1 - q) * sum_k W_k^2 x_k^2: both sides of A4.(1) for F(x) = W x and squared error (A4.iii).

    H = 2 W^T W, so H_kk = 2 W_k^2. The loss is quadratic in x, so the formula is exact.
    """
    return q / (1 - q) * (weight * x).square().sum()


def exact(loss: Loss, h: Tensor, q: Tensor) -> Tensor:
    """Return the left-hand side of A4.(1), the mean over all 2^d sets of dropped units, for q (Q,): (Q,)."""
    d = h.shape[-1]
    dropped = (torch.arange(2**d)[:, None] >> torch.arange(d)) % 2 == 1
    rate = q[:, None, None]
    chance = torch.where(dropped, rate, 1 - rate).prod(-1)
    return (chance * (loss(h * (1 + noise(dropped, rate))) - loss(h))).sum(-1)


def slope_at_zero(loss: Loss, h: Tensor) -> Tensor:
    """Return d/dq of the left-hand side at q = 0: sum_k [loss(h without unit k) - loss(h)] + sum_k h_k d loss / d h_k.

    To first order in q at most one unit is dropped, each with probability q, and the others are scaled by 1 + q. The
    slope of the second-order formula is sum_k H_kk h_k^2 / 2 instead. The two differ from the third derivatives on, for
    every q: dropping a unit is a step of length h_k, no matter how rarely it happens.
    """
    without = h * (1 - torch.eye(h.shape[-1], dtype=h.dtype))
    slope: Tensor = (loss(without) - loss(h)).sum() + (h * grad(loss)(h)).sum()
    return slope


def sampled(loss: Loss, h: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over draws of what ``eta`` (Q, draws, d) adds to the loss, (Q,), and its standard error, (Q,)."""
    return mean_and_standard_error(loss(h * (1 + eta)) - loss(h))


def models(
    source: torch.Generator, *, inputs: int, hidden: int, width: int, gain: float, residual: float
) -> tuple[Tensor, Tensor, dict[str, Loss]]:
    """Draw a hidden layer h and two models: return h, the linear model's W, and the losses as functions of h."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    h = (gain / math.sqrt(inputs) * normal(hidden, inputs) @ normal(inputs)).tanh()
    row = gain / math.sqrt(hidden) * normal(hidden)
    inner, outer = gain / math.sqrt(hidden) * normal(width, hidden), gain / math.sqrt(width) * normal(width)
    linear = linear_loss(row, float(h @ row) - residual)
    return h, row, {"linear": linear, "net": net_loss(inner, outer, float((inner @ h).tanh() @ outer) - residual)}


@dataclass(frozen=True)
class Penalties:
    """The amounts, (Q,) each, that dropout adds to the loss of one model on average."""

    name: str
    sampled: Tensor
    error: Tensor
    """The standard error of ``sampled``."""
    exact: Tensor
    second_order: Tensor
    checks: list[Check]

    def rows(self, rates: list[float]) -> list[dict[str, object]]:
        """Return the four values at each rate as table rows."""
        columns = zip(rates, self.sampled, self.error, self.exact, self.second_order, strict=True)
        names = ("q", "sampled", "standard_error", "exact", "second_order")
        return [{"model": self.name, **dict(zip(names, map(float, values), strict=True))} for values in columns]


def compare_sides(name: str, loss: Loss, h: Tensor, q: Tensor, eta: Tensor, *, closed: Tensor | None) -> Penalties:
    """Compute both sides of A4.(1) for one model; compare them with each other and with the closed form, if any."""
    left, error = sampled(loss, h, eta)
    true_penalty, right = exact(loss, h, q), second_order(loss, h, q)
    checks = [
        at_most(
            f"{name}: largest |Monte Carlo - exact| in standard errors",
            _largest_size((left - true_penalty) / error),
            ERRORS,
        )
    ]
    if closed is not None:
        off = float(((true_penalty - closed).abs() / (loss(h) + closed)).max())
        checks += [
            at_most(
                f"{name}: largest |Monte Carlo - closed form| in standard errors",
                _largest_size((left - closed) / error),
                ERRORS,
            ),
            at_most(
                f"{name}: largest |mean over all masks - closed form|, relative to the loss with dropout", off, ROUNDING
            ),
            at_most(
                f"{name}: largest relative difference between second-order formula and closed form",
                _largest_relative_difference(right, closed),
                1e-10,
            ),
        ]
    return Penalties(name, left, error, true_penalty, right, checks)


def moments(q: Tensor, eta: Tensor) -> list[Check]:
    """Check the mean and variance of the noise, from its two values and from the draws (A4.i)."""
    mean, error = mean_and_standard_error(eta.flatten(1))
    dropped, kept = noise(torch.tensor([[True], [False]]), q)
    variance = _largest_relative_difference(q * dropped**2 + (1 - q) * kept**2, q / (1 - q))
    return [
        at_most("E[eta] = 0 (A4.i), from its two values", _largest_size(q * dropped + (1 - q) * kept), 1e-15),
        at_most("E[eta] = 0, Monte Carlo: largest |mean| in standard errors", _largest_size(mean / error), ERRORS),
        at_most("E[eta^2] = q / (1 - q), largest relative difference, from its two values", variance, 1e-14),
    ]


def plot_penalties(q: Tensor, penalties: Sequence[Penalties], *, subtitle: str) -> Figure:
    """Plot both sides against q, one panel per model."""
    title = "dropout_penalty: increase of the expected loss by dropout"
    figure, all_axes = new_figure(2, title=title, subtitle=subtitle, panel_inches=3.2)
    dots: dict[str, Any] = {"color": COLORS["reference"], "fmt": "o", "markersize": 3.5, "capsize": 2}
    for model, axes in zip(penalties, all_axes, strict=True):
        axes.plot(q, model.exact, color=PALETTE[0], linewidth=2.0, label="exact, mean over all masks")
        axes.plot(q, model.second_order, color=PALETTE[1], linewidth=1.6, linestyle="--", label="second-order formula")
        axes.errorbar(q, model.sampled, 2 * model.error, label="Monte Carlo", **dots)
        label(axes, x="dropout rate q", y="E[loss with dropout] - loss", title=model.name, place="upper left")
    return figure


def formula_errors(loss: Loss, h: Tensor) -> tuple[Tensor, list[Check], float]:
    """Return the formula's relative errors (scales, rates) for the hidden layers ``SCALES`` times ``h``, with checks.

    The third value is the ratio of the formula to the exact left-hand side at ``h`` as q tends to 0.
    """
    q = torch.tensor(SHOWN_RATES, dtype=h.dtype)
    layers = SCALES[:, None] * h
    formula = vmap(lambda layer: second_order(loss, layer, q))(layers)
    true_penalty = vmap(lambda layer: exact(loss, layer, q))(layers)
    off = ((formula - true_penalty) / true_penalty).abs()
    tiny = torch.tensor([1e-6], dtype=h.dtype)
    slope = slope_at_zero(loss, h)
    rounding = ROUNDING * loss(layers[0]) / true_penalty[0].abs()
    checks = [
        at_most(
            "net: |exact left-hand side / q - slope at q = 0|, relative to |slope| + loss",
            float(((exact(loss, h, tiny) / tiny - slope) / (slope.abs() + loss(h))).abs()),
            1e-4,
        ),
        at_most(
            "net: ratio of the formula's errors at scales 0.001 (minus rounding) and 0.01",
            float((off[0] - rounding).max() / off[10].max()),
            0.2,
        ),
    ]
    return off, checks, float(second_order(loss, h, tiny) / tiny / slope)


def plot_accuracy(off: Tensor) -> Figure:
    """Plot the formula's relative error against the scale of the hidden layer, one line for each of ``SHOWN_RATES``."""
    figure, (axes,) = new_figure(
        1,
        title="dropout_penalty: the formula is accurate for small activations",
        subtitle="the net with a scaled hidden layer; the error does not vanish as q tends to 0; it changes sign at "
        "the dips",
    )
    for i, rate in enumerate(SHOWN_RATES):
        axes.loglog(SCALES, off[:, i], color=PALETTE[i], linewidth=1.8, label=f"q = {rate:g}")
    guide = SCALES * float(off[0].max() / SCALES[0]) * 2
    axes.loglog(SCALES, guide, color=COLORS["reference"], linestyle=":", label="proportional to the scale")
    label(axes, x="factor on the hidden activations", y="relative error of the formula", place="lower right")
    return figure


def _largest_size(values: Tensor) -> float:
    return float(values.abs().max())


def _largest_relative_difference(values: Tensor, expected: Tensor) -> float:
    return float(((values - expected) / expected).abs().max())


def dropout_penalty(
    *,
    rates: Annotated[list[Annotated[float, Field(gt=0, le=0.5)]], Field(min_length=2, max_length=100)],
    inputs: Annotated[int, Field(ge=1, le=1000)],
    hidden: Annotated[int, Field(ge=1, le=12)],
    width: Annotated[int, Field(ge=1, le=10_000)],
    gain: Annotated[float, Field(ge=0.01, le=100)],
    residual: Annotated[float, Field(ge=-100, le=100)],
    draws: Annotated[int, Field(ge=1000, le=10_000_000)],
    seed: int,
) -> Answer:
    """Compute both sides of A4.(1) as functions of q, for the linear model and for a small tanh net."""
    if draws * min(rates) < 100:
        raise UsageError(
            f"study.draws={draws}: drops a unit only {draws * min(rates):g} times at q = {min(rates):g}, too few for a "
            f"standard error; must be {math.ceil(100 / min(rates))} or more"
        )
    q = torch.tensor(rates, dtype=torch.float64)
    source, masks = (generator(seed, "dropout_penalty", purpose) for purpose in ("model", "masks"))
    h, weight, losses = models(source, inputs=inputs, hidden=hidden, width=width, gain=gain, residual=residual)
    eta = noise(torch.rand(len(q), draws, hidden, generator=masks, dtype=q.dtype) < q[:, None, None], q[:, None, None])
    closed = {"linear": linear_penalty(weight, h, q)}
    penalties = [compare_sides(name, loss, h, q, eta, closed=closed.get(name)) for name, loss in losses.items()]
    errors, error_checks, limit = formula_errors(losses["net"], h)
    subtitle = f"one sample, {hidden} hidden units; {draws} draws per point; bars: two standard errors"
    numbers: dict[str, float] = {}
    for model in penalties:
        numbers[f"{model.name}_exact_at_largest_q"] = float(model.exact[q.argmax()])
        numbers[f"{model.name}_formula_at_largest_q"] = float(model.second_order[q.argmax()])
    return Answer(
        numbers={**numbers, "net_formula_over_exact_as_q_to_0": limit},
        checks=[*moments(q, eta), *(check for model in penalties for check in model.checks), *error_checks],
        tables={"penalties": [row for model in penalties for row in model.rows(rates)]},
        figures={"penalty": plot_penalties(q, penalties, subtitle=subtitle), "accuracy": plot_accuracy(errors)},
        messages=[f"sum of squared hidden activations times squared weights: {float((weight * h).square().sum()):.6g}"],
    )
