"""Stochastic gradient descent on smooth functions: the smallest squared gradient so far, and the bound on it (A3)."""

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
from dlhw.intervals import Z_95, mean_and_standard_error
from dlhw.runtime.randomness import generator
from dlhw.storage.answer import Answer, Check, at_most, close
from dlhw.views.plots import COLORS, PALETTE, label, new_figure

POWERS = {"constant": 0.0, "k^(-3/4)": 0.75, "k^(-1/2)": 0.5}
"""The three step sizes of A3.iv by name: p in alpha_k = alpha / k^p, k = 1, 2, ..."""
KEYS = {"constant": "constant", "k^(-3/4)": "k34", "k^(-1/2)": "k12"}
"""Their names in summary.json."""

ERRORS = 5.0  # an estimate disagrees if it is off by more than this many standard errors
DECADES = [10**power for power in range(1, 7)]  # values of t in the table of right-hand sides


@dataclass(frozen=True)
class SmoothFunction:
    """f(w) = sum_j phi_j(w_j), with the stochastic gradient f'(w) + noise * (D independent random signs).

    f' is Lipschitz continuous, with L the maximum of |phi_j''| (Assumption 1). The mean of the stochastic gradient is
    f'(w), and E|stochastic gradient|^2 = |f'(w)|^2 + D noise^2. The minimum f* of every function in this file is 0.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    """phi_j(w_j), (..., D) to (..., D)."""
    slope: Callable[[Tensor], Tensor]
    """phi_j'(w_j), (..., D) to (..., D)."""
    lipschitz: float
    start: Tensor
    noise: float
    box: Tensor
    """(D,): the bound that no |w_j| exceeds."""
    steepest: Tensor
    """(D,): the maximum of |phi_j'| in the box."""

    @property
    def sigma_squared(self) -> float:
        """The bound of Assumption 2 on E|stochastic gradient|^2 in the box."""
        return float(self.steepest.square().sum()) + len(self.start) * self.noise**2

    @property
    def excess(self) -> float:
        """f(w_0) - f*."""
        return float(self.value(self.start).sum())


def quadratic(curvature: Tensor, start: Tensor, noise: float) -> SmoothFunction:
    """Return phi_j(w) = h_j w^2 / 2. Its slope is unbounded on the line, but bounded in the box of the iterates.

    A step is w_j <- (1 - a h_j) w_j -+ a noise. For 0 < a <= 1/L, 1 - a h_j is in [0, 1), so the new |w_j| is at most
    (1 - a h_j) |w_j| + a h_j (noise / h_j), a weighted mean of the old |w_j| and noise / h_j. By induction |w_j| never
    exceeds max(|start_j|, noise / h_j), and there |phi_j'| is at most max(h_j |start_j|, noise).
    """
    box = torch.maximum(start.abs(), noise / curvature)
    return SmoothFunction(
        "quadratic",
        lambda w: curvature * w.square() / 2,
        lambda w: curvature * w,
        float(curvature.max()),
        start,
        noise,
        box,
        curvature * box,
    )


def waves(curvature: Tensor, start: Tensor, noise: float) -> SmoothFunction:
    """Return phi_j(w) = h_j (1 - cos w): not convex, with many minima; |phi_j'| and |phi_j''| are at most h_j."""
    return SmoothFunction(
        "waves",
        lambda w: curvature * (1 - w.cos()),
        lambda w: curvature * w.sin(),
        float(curvature.max()),
        start,
        noise,
        torch.full_like(start, math.inf),
        curvature,
    )


def step_sizes(alpha: float, power: float, steps: int) -> Tensor:
    """Return alpha / k^power for k = 1, ..., steps. k starts at 1, since 1 / k^p is undefined at 0."""
    return alpha / torch.arange(1, steps + 1, dtype=torch.float64) ** power


def expected_value(problem: SmoothFunction, w: Tensor, alpha: Tensor) -> Tensor:
    """Return E[f(w_{k+1})] given w_k = w, exactly: (..., D) to (...).

    f is a sum over coordinates, and each sign is + or - with probability 1/2. So E f(w_{k+1}) is the sum over j of
    (phi_j(u_j + a noise) + phi_j(u_j - a noise)) / 2 with u = w - a f'(w), without sampling.
    """
    mean, spread = w - alpha * problem.slope(w), alpha * problem.noise
    return (problem.value(mean + spread) + problem.value(mean - spread)).sum(-1) / 2


def one_step_bound(problem: SmoothFunction, w: Tensor, alpha: Tensor) -> Tensor:
    """Return the bound of A3.i on E[f(w_{k+1})]: f(w) - a |f'(w)|^2 + a^2 L / 2 E|stochastic gradient|^2.

    Assumption 1 at w_{k+1} = w - a g gives f(w_{k+1}) <= f(w) - a f'(w).g + a^2 L / 2 |g|^2. Take the mean, with
    E g = f'(w).
    """
    squared_gradient = problem.slope(w).square().sum(-1)
    second_moment = squared_gradient + w.shape[-1] * problem.noise**2
    rate = alpha.squeeze(-1)
    return problem.value(w).sum(-1) - rate * squared_gradient + rate**2 * problem.lipschitz / 2 * second_moment


def right_hand_side(problem: SmoothFunction, alphas: Tensor) -> Tensor:
    """Return the bound of A3.iii for t = 1, 2, ...: [f(w_0) - f* + sigma^2 L / 2 sum_k a_k^2] / sum_k a_k.

    A3.i summed over k < t telescopes to A3.ii, sum a_k E|f'(w_k)|^2 <= f(w_0) - E f(w_t) + sigma^2 L / 2 sum a_k^2. The
    minimum of the E|f'(w_k)|^2 is at most their mean weighted by a_k: divide by sum a_k, and use f(w_t) >= f*.
    """
    total, squares = alphas.cumsum(-1), alphas.square().cumsum(-1)
    return (problem.excess + problem.sigma_squared * problem.lipschitz / 2 * squares) / total


def leading_term(problem: SmoothFunction, alpha: float, power: float, t: int) -> float:
    """Return the leading term of :func:`right_hand_side` for large t (A3.iv), for the powers of ``POWERS``.

    p = 0:   the sums are t a and t a^2: sigma^2 L a / 2, a constant.
    p = 3/4: sum k^(-3/4) ~ 4 t^(1/4), and sum k^(-3/2) -> zeta(3/2) = 2.612...: of order t^(-1/4).
    p = 1/2: sum k^(-1/2) ~ 2 t^(1/2), and sum 1/k ~ log t + 0.577...: of order log t / t^(1/2).
    """
    noise = problem.sigma_squared * problem.lipschitz / 2 * alpha
    if power == 0.0:
        return noise
    if power == 0.75:
        return (problem.excess / alpha + noise * 2.6123753486854883) / (4 * math.sqrt(math.sqrt(t)))
    return (problem.excess / alpha + noise * (math.log(t) + 0.5772156649015329)) / (2 * math.sqrt(t))


@dataclass(frozen=True)
class RunStatistics:
    """Statistics over the runs on one function; the first dimension is the step size, the second t."""

    squared_gradient: Tensor
    """Mean of |f'(w_k)|^2 over the runs, k = 0, ..., steps - 1."""
    squared_gradient_error: Tensor
    telescoped: Tensor
    """Mean of sum_{k<t} a_k |f'(w_k)|^2 - [f(w_0) - f(w_t)], t = 1, ..., steps: from A3.ii."""
    telescoped_error: Tensor
    slack: Tensor
    """(step sizes,): the minimum over all runs and steps of A3.i's right-hand side minus its left-hand side."""
    outside: float
    """The largest distance by which any |w_j| exceeded the box; negative if none did."""


def descend(problem: SmoothFunction, alphas: Tensor, *, runs: int, source: torch.Generator) -> RunStatistics:
    """Run ``runs`` independent descents for each row of ``alphas`` (step sizes, steps), all at once."""
    w = problem.start.expand(len(alphas), runs, -1).clone()
    sums = torch.zeros(w.shape[:2], dtype=w.dtype)
    squared_gradients, telescoped = [], []
    slack = torch.full((len(alphas),), math.inf, dtype=w.dtype)
    outside = torch.tensor(-math.inf, dtype=w.dtype)
    for alpha in alphas.T[:, :, None, None]:
        gradient = problem.slope(w)
        squared = gradient.square().sum(-1)
        margin = one_step_bound(problem, w, alpha) - expected_value(problem, w, alpha)
        slack = torch.minimum(slack, margin.amin(-1))
        signs = 2 * torch.randint(2, w.shape[1:], generator=source).to(w) - 1
        w = w - alpha * (gradient + problem.noise * signs)
        sums += alpha.squeeze(-1) * squared
        left = sums - problem.excess + problem.value(w).sum(-1)
        squared_gradients.append(torch.stack(mean_and_standard_error(squared)))
        telescoped.append(torch.stack(mean_and_standard_error(left)))
        outside = torch.maximum(outside, (w.abs() - problem.box).max())  # unlike max(), keeps nan
    means, errors = torch.stack(squared_gradients, -1)
    left_means, left_errors = torch.stack(telescoped, -1)
    return RunStatistics(means, errors, left_means, left_errors, slack, float(outside))


def growth_table(problem: SmoothFunction, alphas: Tensor, alpha: float, power: float) -> list[dict[str, float]]:
    """Return rows for A3.iv at t = 10, ..., 10^6: the bound, its leading term, and their exponents of t.

    An exponent is that of the last decade.
    """
    bounds = right_hand_side(problem, alphas)
    rows = []
    for t in DECADES:
        value, before = float(bounds[t - 1]), float(bounds[t // 10 - 1])
        leading = leading_term(problem, alpha, power, t)
        of_leading = leading / leading_term(problem, alpha, power, t // 10)
        rows.append(
            {
                "t": t,
                "right_hand_side": value,
                "leading_term": leading,
                "ratio": value / leading,
                "exponent": math.log10(value / before),
                "exponent_of_leading_term": math.log10(of_leading),
            }
        )
    return rows


@dataclass(frozen=True)
class Estimates:
    """The estimated minimum of E|f'(w_k)|^2 so far for one function, and its bound, (step sizes, steps) each."""

    problem: SmoothFunction
    best: Tensor
    error: Tensor
    """Standard error of ``best``."""
    bounds: Tensor
    checks: list[Check]
    rows: list[dict[str, Any]]
    """The estimates and bounds at t = 10, 100, ... and after the last step."""
    growth: list[dict[str, Any]]
    """The rows of :func:`growth_table` for all step sizes."""

    @property
    def numbers(self) -> dict[str, float]:
        """The estimate and the bound after the last step."""
        return {
            f"{self.problem.name}_{KEYS[name]}_{what}": float(values[i, -1])
            for i, name in enumerate(POWERS)
            for what, values in (("least", self.best), ("bound", self.bounds))
        }


def estimate(problem: SmoothFunction, rates: dict[str, float], *, runs: int, steps: int, seed: int) -> Estimates:
    """Run one function with all step sizes, alpha by name from ``rates``, and compare the results with A3."""
    alphas = torch.stack([step_sizes(rates[name], power, steps) for name, power in POWERS.items()])
    statistics = descend(problem, alphas, runs=runs, source=generator(seed, "sgd_rate", problem.name))
    bounds = right_hand_side(problem, alphas)
    best, at = statistics.squared_gradient.cummin(-1)
    error = statistics.squared_gradient_error.gather(-1, at)
    allowed = problem.sigma_squared * problem.lipschitz / 2 * alphas.square().cumsum(-1)
    rounding = 1e-12 * (problem.excess + problem.sigma_squared / problem.lipschitz)
    checks = [at_most(f"{problem.name}: largest distance of an iterate outside its box", statistics.outside, rounding)]
    rows, growth = [], []
    for i, (name, power) in enumerate(POWERS.items()):
        setting, columns = f"{problem.name}, {name}", {"function": problem.name, "step_size": name}
        beyond = float((statistics.telescoped[i] - ERRORS * statistics.telescoped_error[i] - allowed[i]).max())
        of_bound = float(((best[i] - ERRORS * error[i]) / bounds[i]).max())
        table = growth_table(problem, step_sizes(rates[name], power, DECADES[-1]), rates[name], power)
        # The next term, relative to the leading term, is f(w_0) / (a t) for p = 0 and -zeta(p) (1 - p) / t^(1 - p)
        # otherwise, which is 0.027 for p = 3/4 and 0.0007 for p = 1/2.
        constant = 1e-9 + 1.001e-6 * problem.excess / (rates[name] * table[-1]["leading_term"])
        rest = {0.0: constant, 0.75: 0.03, 0.5: 0.001}[power]
        checks += [
            at_most(
                f"{setting}: A3.i, maximum of left minus right over all steps and runs",
                -float(statistics.slack[i]),
                rounding,
            ),
            at_most(
                f"{setting}: A3.ii, maximum of left minus right minus {ERRORS:g} standard errors", beyond, rounding
            ),
            at_most(f"{setting}: A3.iii, maximum of (estimate - {ERRORS:g} standard errors) / bound", of_bound, 1.0),
            close(f"{setting}: right-hand side / leading term at t = 10^6", table[-1]["ratio"], 1.0, within=rest),
        ]
        growth += [columns | row for row in table]
        rows += [
            {
                **columns,
                "t": t,
                "least_squared_gradient": float(best[i, t - 1]),
                "standard_error": float(error[i, t - 1]),
                "bound": float(bounds[i, t - 1]),
            }
            for t in [decade for decade in DECADES if decade < steps] + [steps]
        ]
    return Estimates(problem, best, error, bounds, checks, rows, growth)


def plot_rates(estimates: Sequence[Estimates], *, runs: int) -> Figure:
    """Plot the estimates with their 95 % bands, and their bounds, against t: one panel per function."""
    figure, all_axes = new_figure(
        2,
        title="sgd_rate: smallest squared gradient so far, and its bound",
        subtitle=f"lines: mean of {runs} runs with a 95 % band; dashed: the right-hand side of A3.iii",
        panel_inches=3.4,
    )
    for curves, axes in zip(estimates, all_axes, strict=True):
        times = torch.arange(1, curves.best.shape[-1] + 1)
        for name, color, best, error, bound in zip(
            POWERS, PALETTE, curves.best, curves.error, curves.bounds, strict=False
        ):
            low, high = best - Z_95 * error, best + Z_95 * error
            axes.loglog(times, bound, color=color, linewidth=1.4, linestyle="--")
            axes.loglog(times, best, color=color, linewidth=1.6, label=f"alpha {name}")
            axes.fill_between(times, low, high, color=color, alpha=0.25, linewidth=0, label="_band")
        label(axes, x="steps t", y="min E|f'(w)|^2 so far", title=curves.problem.name, place="lower left")
    return figure


def plot_growth(problem: SmoothFunction, rates: dict[str, float]) -> Figure:
    """Plot the bound of one function up to t = 10^6, and its leading term."""
    figure, (axes,) = new_figure(
        1,
        title=f"sgd_rate: the right-hand side of A3.iii for large t ({problem.name})",
        subtitle="lines: computed sums; dotted: leading terms, of order 1, t^(-1/4) and log t / t^(1/2)",
    )
    shown = torch.logspace(0, 6, 200).long() - 1
    late = shown[shown >= 9]
    dotted: dict[str, Any] = {"color": COLORS["reference"], "linestyle": ":", "linewidth": 1.6}
    for color, (name, power) in zip(PALETTE, POWERS.items(), strict=False):
        whole = right_hand_side(problem, step_sizes(rates[name], power, DECADES[-1]))
        axes.loglog(shown + 1, whole[shown], color=color, linewidth=2.0, label=f"alpha {name}")
        axes.loglog(late + 1, [leading_term(problem, rates[name], power, int(t) + 1) for t in late], **dotted)
    axes.plot([], [], label="leading term (A3.iv)", **dotted)
    label(axes, x="steps t", y="bound on min E|f'(w_k)|^2")
    return figure


def sgd_rate(
    *,
    dimension: Annotated[int, Field(ge=1, le=100_000)],
    lipschitz: Annotated[float, Field(ge=1e-6, le=1e6)],
    condition: Annotated[float, Field(ge=1, le=1e6)],
    start: Annotated[float, Field(ge=-1e6, le=1e6)],
    noise: Annotated[float, Field(ge=0, le=1e6)],
    constant_rate: Annotated[float, Field(gt=0, le=1)],
    decaying_rate: Annotated[float, Field(gt=0, le=1)],
    runs: Annotated[int, Field(ge=30, le=100_000)],
    steps: Annotated[int, Field(ge=10, le=10_000_000)],
    seed: int,
) -> Answer:
    """Compare the smallest E|f'(w_k)|^2 so far with the bound of A3.iii, on a convex and on a non-convex function."""
    if start == noise == 0:
        raise UsageError("study.start=0: the iterates never move with study.noise=0; one of the two must not be 0")
    curvature = lipschitz * torch.logspace(0, -math.log10(condition), dimension, dtype=torch.float64)
    first = torch.full((dimension,), start, dtype=torch.float64)
    rates = {name: (constant_rate if power == 0 else decaying_rate) / lipschitz for name, power in POWERS.items()}
    problems = quadratic(curvature, first, noise), waves(curvature, first, noise)
    estimates = [estimate(problem, rates, runs=runs, steps=steps, seed=seed) for problem in problems]
    return Answer(
        numbers={name: value for part in estimates for name, value in part.numbers.items()},
        checks=[check for part in estimates for check in part.checks],
        tables={
            "measured": [row for part in estimates for row in part.rows],
            "right_hand_side": [row for part in estimates for row in part.growth],
        },
        figures={"rates": plot_rates(estimates, runs=runs), "right_hand_side": plot_growth(problems[-1], rates)},
    )
