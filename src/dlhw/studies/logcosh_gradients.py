"""The gradients of a one-hidden-layer net by derivation, by autograd and by finite differences (B1.a-c)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from dlhw.errors import UsageError
from dlhw.runtime.randomness import generator
from dlhw.storage.answer import Answer, Check, at_most, close
from dlhw.views.plots import COLORS, PALETTE, label, new_figure

Values = dict[str, Tensor]
Path = Callable[[Tensor], Tensor]
"""J as a function of the displacement of one component of the weights or of the data."""

DISTRIBUTIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "uniform": lambda empty, source: empty.uniform_(-1, 1, generator=source),
    "normal": lambda empty, source: empty.normal_(generator=source),
}
NAMES = {"W1": "dJ/dW1", "w2": "dJ/dw2", "b1": "dJ/db1", "b2": "dJ/db2", "x": "dJ/dx"}
ROUNDING = torch.finfo(torch.float64).eps
MOST_NUMBERS = 2**18
"""Maximum number of perturbed weights in memory at once."""
MOST_WORK = 1.2e11
"""Maximum number of multiplications, with ten for a tanh: one or two minutes on one CPU core."""


def log_cosh(z: Tensor) -> Tensor:
    """Return log cosh z for any z: |z| + log(1 + exp(-2 |z|)) - log 2.

    This is the logarithm of cosh z = exp(|z|) (1 + exp(-2 |z|)) / 2, and no part of it overflows.
    """
    size = z.abs()
    return size + torch.log1p(torch.exp(-2 * size)) - math.log(2)


def cost(values: Values) -> Tensor:
    """Return J = 1/N sum_i log cosh(yhat_i - y_i) with yhat = w2^T tanh(W1 x + b1) + b2 (B1.a), for any leading shape.

    Args:
        values: x (..., N, D), y (..., N), W1 (..., H, D), b1 (..., H), w2 (..., H), b2 (...); leading shapes broadcast.
    """
    hidden = torch.tanh(values["x"] @ values["W1"].mT + values["b1"][..., None, :])
    predicted = (hidden @ values["w2"][..., None]).squeeze(-1) + values["b2"][..., None]
    return log_cosh(predicted - values["y"]).mean(-1)


def gradients(values: Values) -> Values:
    """Return the derivatives of :func:`cost` by W1, w2, b1, b2 and x, from the derived formulas (B1.a).

    (log cosh)' = tanh, so the derivative of J by yhat_i is e_i = tanh(yhat_i - y_i) / N. As yhat_i = w2^T h_i + b2,
        dJ/dw2 = sum_i e_i h_i,  dJ/db2 = sum_i e_i.
    tanh' = 1 - tanh^2, so the derivative by the argument of unit j is delta_ij = e_i w2_j (1 - h_ij^2). It is linear:
        dJ/dW1 = sum_i delta_i x_i^T,  dJ/db1 = sum_i delta_i,  dJ/dx_i = W1^T delta_i.
    """
    x, w1, w2 = values["x"], values["W1"], values["w2"]
    hidden = torch.tanh(x @ w1.mT + values["b1"][..., None, :])
    predicted = (hidden @ w2[..., None]).squeeze(-1) + values["b2"][..., None]
    e = torch.tanh(predicted - values["y"]) / x.shape[-2]
    delta = e[..., None] * w2[..., None, :] * (1 - hidden**2)
    return {
        "W1": delta.mT @ x,
        "w2": (e[..., None, :] @ hidden).squeeze(-2),
        "b1": delta.sum(-2),
        "b2": e.sum(-1),
        "x": delta @ w1,
    }


def by_autograd(values: Values) -> Values:
    """Return the same derivatives by torch's reverse mode (B1.b), from the sum of the draws' independent costs."""
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    slopes = torch.autograd.grad(cost(leaves).sum(), [leaves[name] for name in NAMES])
    return dict(zip(NAMES, slopes, strict=True))


def along_each_component(values: Values, name: str, measure: Callable[[Path, Tensor], Tensor]) -> Tensor:
    """Apply ``measure`` to the path t -> J(value + t e) and t = 0, for every component e of one value.

    The result has the shape (draws, *shape of the value). The components are an additional batch dimension of t and of
    J; the loop over blocks only limits memory.
    """
    value = values[name]
    draws, shape = value.shape[0], value.shape[1:]
    size = math.prod(shape)

    def measured(directions: Tensor) -> Tensor:
        towards = directions.view(-1, 1, *shape)
        start = torch.zeros(len(directions), draws, dtype=value.dtype)
        return measure(lambda t: cost({**values, name: value + t.view(*t.shape, *[1] * len(shape)) * towards}), start)

    largest_value = max(tensor.numel() for tensor in values.values())
    blocks = torch.eye(size, dtype=value.dtype).split(max(1, MOST_NUMBERS // largest_value))
    return torch.cat([measured(block) for block in blocks]).mT.reshape(value.shape)


def by_differences(values: Values, name: str, step: float) -> Tensor:
    """Return (J(value + h e) - J(value - h e)) / (2 h) for every component e of one value (B1.c)."""
    return along_each_component(values, name, lambda path, t: (path(t + step) - path(t - step)) / (2 * step))


def third_derivatives(values: Values, name: str) -> Tensor:
    """Return d^3 J / dv^3 for every component v of one value.

    In the Taylor series of J(v + h) - J(v - h) the even powers cancel: 2 h J' + h^3 J''' / 3 + ... So the error of a
    central difference is h^2 J''' / 6.
    """

    def differentiate_thrice(path: Path, t: Tensor) -> Tensor:
        t.requires_grad_()
        derivative = path(t)
        for _ in range(3):
            (derivative,) = torch.autograd.grad(derivative.sum(), t, create_graph=True)
        return derivative.detach()

    return along_each_component(values, name, differentiate_thrice)


def draw(distribution: str, *, draws: int, samples: int, inputs: int, hidden: int, source: torch.Generator) -> Values:
    """Draw data and weights; weights are divided by the root of their fan-in, so that tanh does not saturate."""
    shapes = {
        "x": (samples, inputs),
        "y": (samples,),
        "W1": (hidden, inputs),
        "b1": (hidden,),
        "w2": (hidden,),
        "b2": (),
    }
    fan_in = {"W1": inputs, "w2": hidden}
    return {
        name: DISTRIBUTIONS[distribution](torch.empty(draws, *shape, dtype=torch.float64), source)
        / math.sqrt(fan_in.get(name, 1))
        for name, shape in shapes.items()
    }


def largest(gradient: Tensor) -> Tensor:
    """Return the largest absolute component of each draw: (draws,)."""
    return gradient.abs().reshape(len(gradient), -1).amax(1)


def relative(differences: Values, gradient: Values) -> Values:
    """Return each draw's largest component of the differences, relative to the gradient's largest in any draw, by name.

    A single draw's gradient by b2, which is one number, may be near zero and is no suitable scale.
    """
    return {name: largest(difference) / largest(gradient[name]).max() for name, difference in differences.items()}


def differences(values: Values, gradient: Values, step: float) -> Values:
    """Return central differences with this step minus the gradient, by name."""
    return {name: by_differences(values, name, step) - gradient[name] for name in NAMES}


def worst(by_name: Values) -> Tensor:
    """Return each draw's maximum over the names: (draws,)."""
    return torch.stack(list(by_name.values())).amax(0)


def _slope(x: Tensor, y: Tensor) -> float:
    """Return the slope of the least-squares line through (log x, log y)."""
    a, b = x.log() - x.log().mean(), y.log() - y.log().mean()
    return float((a * b).sum() / (a * a).sum())


@dataclass(frozen=True)
class GradientErrors:
    """The draws of one distribution: the gradients at one step, then the errors of differences over many steps."""

    distribution: str
    rows: list[dict[str, Any]]
    """A table row for each gradient: its size and the errors of the two other methods."""
    autograd: float
    """The largest error of autograd."""
    finite: float
    """The largest error of central differences, with the step of the table."""
    errors: list[list[float]]
    """Quantiles 0.05, 0.5 and 0.95 over the draws, for each step of the sweep."""
    truncation: float
    """Median of |J'''| / 6, relative like the errors; times h^2 it is the truncation error."""
    checks: list[Check]

    def curve(self, sweep: list[float]) -> list[dict[str, object]]:
        """Return the errors as table rows, one for each step."""
        name, factor = self.distribution, self.truncation
        return [
            {"distribution": name, "step": h, "q05": a, "median": b, "q95": c, "truncation": factor * h**2}
            for h, a, b, c in zip(sweep, *self.errors, strict=True)
        ]

    def numbers(self, sweep: list[float]) -> dict[str, float]:
        """Return the largest differences, and the step with the smallest median error."""
        error, step = min(zip(self.errors[1], sweep, strict=True))
        named = {"autograd": self.autograd, "differences": self.finite, "best_step": step, "best_error": error}
        return {f"{self.distribution}_{name}": value for name, value in named.items()}


def compare(distribution: str, values: Values, *, step: float, sweep: list[float]) -> GradientErrors:
    """Compare the three gradients at the same draws, and measure the error of differences for many steps."""
    derived, automatic = gradients(values), by_autograd(values)
    deviations = {name: automatic[name] - derived[name] for name in NAMES}
    autograd = {name: float(error.max()) for name, error in relative(deviations, derived).items()}
    finite = relative(differences(values, derived, step), derived)
    rows = [
        {
            "distribution": distribution,
            "gradient": NAMES[name],
            "largest_component": float(derived[name].abs().max()),
            "derived_against_autograd": autograd[name],
            "derived_against_differences": float(finite[name].max()),
        }
        for name in NAMES
    ]

    errors = torch.stack([worst(relative(differences(values, derived, h), derived)) for h in sweep])
    quantiles = errors.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64), dim=1)
    cubic = worst(relative({name: third_derivatives(values, name) / 6 for name in NAMES}, derived))
    at = 1e-3
    ratio = float((worst(relative(differences(values, derived, at), derived)) / (cubic * at**2)).median())
    h = torch.tensor(sweep, dtype=torch.float64)
    slope = _slope(h[h < 1e-7], quantiles[1][h < 1e-7])
    largest_autograd, largest_finite = max(autograd.values()), float(worst(finite).max())
    allowed = 100 * (step**2 + ROUNDING / step)
    checks = [
        at_most(
            f"largest relative difference between derivation and autograd, {distribution} draws (B1.b)",
            largest_autograd,
            1e-12,
        ),
        at_most(
            f"largest relative difference between derivation and central differences, {distribution} draws (B1.c)",
            largest_finite,
            allowed,
        ),
        close(f"median of error / (h^2 |J'''| / 6) at h = {at:g}, {distribution} draws", ratio, 1.0, within=0.01),
        close(f"log-log slope of the error below h = 1e-7, {distribution} draws", slope, -1.0, within=0.25),
    ]
    truncation = float(cubic.median())
    return GradientErrors(distribution, rows, largest_autograd, largest_finite, quantiles.tolist(), truncation, checks)


def plot_steps(results: Sequence[GradientErrors], sweep: list[float], *, step: float, subtitle: str) -> Figure:
    """Plot the error of central differences against their step, with its two parts, truncation and rounding."""
    title = "logcosh_gradients: error of central differences against their step"
    figure, (axes,) = new_figure(1, title=title, subtitle=subtitle, panel_inches=3.6)
    for color, result in zip(PALETTE, results, strict=False):
        low, middle, high = result.errors
        truncation, legend = [result.truncation * h**2 for h in sweep], f"h^2 |J'''| / 6, {result.distribution}"
        axes.fill_between(sweep, low, high, color=color, alpha=0.2, linewidth=0)
        axes.plot(sweep, middle, "o-", color=color, markersize=3, linewidth=1.4, label=f"{result.distribution} draws")
        axes.plot(sweep, truncation, color=color, linestyle="--", linewidth=1.0, label=legend)
    rounding = [ROUNDING / h for h in sweep]
    axes.plot(sweep, rounding, color=COLORS["reference"], linestyle=":", linewidth=1.2, label="eps / h")
    axes.axvline(step, color=COLORS["reference"], linewidth=0.8, label=f"h = {step:g} in the table")
    axes.set(xscale="log", yscale="log", ylim=(1e-13, 1))
    label(axes, x="step h", y="largest difference / largest component", place="lower left")
    return figure


def logcosh_gradients(
    *,
    inputs: Annotated[int, Field(gt=0, le=10_000)],
    hidden: Annotated[int, Field(gt=0, le=10_000)],
    samples: Annotated[int, Field(gt=0, le=100_000)],
    draws: Annotated[int, Field(ge=10, le=100_000)],
    step: Annotated[float, Field(ge=1e-9, le=1e-2)],
    steps: Annotated[int, Field(ge=12, le=1000)],
    seed: int,
) -> Answer:
    """Compare the three gradients over many draws, and measure the error of finite differences by step."""
    components = hidden * (inputs + 2) + 1 + samples * inputs
    work = len(DISTRIBUTIONS) * (2 * steps + 20) * components * draws * samples * hidden * (inputs + 10)
    if work > MOST_WORK:
        raise UsageError(
            f"study.samples={samples}: differences by all {components} components take {work / MOST_WORK:.1f} times "
            "the maximum number of operations; reduce study.samples, study.draws, study.steps, study.hidden or "
            "study.inputs"
        )
    sweep = torch.logspace(-11, -0.5, steps, dtype=torch.float64).tolist()
    results = []
    for distribution in DISTRIBUTIONS:
        source = generator(seed, "logcosh_gradients", distribution)
        values = draw(distribution, draws=draws, samples=samples, inputs=inputs, hidden=hidden, source=source)
        results.append(compare(distribution, values, step=step, sweep=sweep))
    rows = [row for result in results for row in result.rows]
    net = f"{inputs}-{hidden}-1 tanh net, {samples} samples; median of {draws} draws; band: 5 to 95 %"
    return Answer(
        numbers={name: value for result in results for name, value in result.numbers(sweep).items()},
        checks=[check for result in results for check in result.checks],
        tables={"differences": rows, "steps": [row for result in results for row in result.curve(sweep)]},
        figures={"steps": plot_steps(results, sweep, step=step, subtitle=net)},
        messages=[
            "{distribution} draws, {gradient}: largest relative difference from autograd "
            "{derived_against_autograd:.1e}, from central differences {derived_against_differences:.1e}".format(**row)
            for row in rows
        ],
    )
