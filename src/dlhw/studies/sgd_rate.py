"""How fast stochastic gradient descent must flatten a smooth function, and how fast it does (A3)."""

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
from dlhw.runs.answer import Answer, Check, at_most, close
from dlhw.runtime.randomness import generator
from dlhw.views.plots import COLORS, PALETTE, label, new_figure

POWERS = {"constant": 0.0, "k^(-3/4)": 0.75, "k^(-1/2)": 0.5}
KEYS = {"constant": "constant", "k^(-3/4)": "k34", "k^(-1/2)": "k12"}  # in summary.json
"""The three step sizes of A3.iv by name: p in alpha_k = alpha / k^p, k = 1, 2, ..."""

ERRORS = 5.0  # standard errors that an estimate may be off before it counts as a disagreement
DECADES = [10**power for power in range(1, 7)]  # values of t in the table of right-hand sides


@dataclass(frozen=True)
class Problem:
    """f(w) = sum_j phi_j(w_j), with stochastic gradient f'(w) + noise * (D independent random signs).

    So f' is L-Lipschitz with the largest |phi_j''| as L (Assumption 1), the stochastic gradient's mean is f'(w), and
    E|stochastic gradient|^2 = |f'(w)|^2 + D noise^2. All of f's values here are 0 at least, and 0 is taken: f* = 0.
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
    """(D,): |w_j| never exceeds it."""
    steepest: Tensor
    """(D,): the largest |phi_j'| in the box."""

    @property
    def sigma_squared(self) -> float:
        """Assumption 2: no E|stochastic gradient|^2 is larger in the box."""
        return float(self.steepest.square().sum()) + len(self.start) * self.noise**2

    @property
    def excess(self) -> float:
        """f(w_0) - f*."""
        return float(self.value(self.start).sum())


def quadratic(curvature: Tensor, start: Tensor, noise: float) -> Problem:
    """phi_j(w) = h_j w^2 / 2: its slope has no bound on the line, but the iterates stay in a box, where it has.

    A step is w_j <- (1 - a h_j) w_j -+ a noise. For 0 < a <= 1/L, 1 - a h_j is in [0, 1), so
    |w_j| <= (1 - a h_j) |w_j| + a h_j (noise / h_j) is a mean of the old |w_j| and noise / h_j, and by induction
    never more than max(|start_j|, noise / h_j). There |phi_j'| is at most max(h_j |start_j|, noise).
    """
    box = torch.maximum(start.abs(), noise / curvature)
    return Problem(
        "quadratic",
        lambda w: curvature * w.square() / 2,
        lambda w: curvature * w,
        float(curvature.max()),
        start,
        noise,
        box,
        curvature * box,
    )


def waves(curvature: Tensor, start: Tensor, noise: float) -> Problem:
    """phi_j(w) = h_j (1 - cos w): not convex, with minima, maxima and saddles; |phi_j'| and |phi_j''| at most h_j."""
    return Problem(
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
    """alpha / k^power for k = 1, ..., steps: k counts from 1, since 1 / k^p has no value at 0."""
    return alpha / torch.arange(1, steps + 1, dtype=torch.float64) ** power


def expected_value(problem: Problem, w: Tensor, alpha: Tensor) -> Tensor:
    """E[f(w_{k+1})] given w_k = w, exactly: (..., D) to (...).

    f is a sum over coordinates and a sign is + or - with probability 1/2, so E f(w_{k+1}) is the sum over j of
    (phi_j(u_j + a noise) + phi_j(u_j - a noise)) / 2 with u = w - a f'(w). No sampling.
    """
    mean, spread = w - alpha * problem.slope(w), alpha * problem.noise
    return (problem.value(mean + spread) + problem.value(mean - spread)).sum(-1) / 2


def one_step_bound(problem: Problem, w: Tensor, alpha: Tensor) -> Tensor:
    """A3.i: f(w) - a |f'(w)|^2 + a^2 L / 2 E|stochastic gradient|^2, which E[f(w_{k+1})] does not exceed.

    Assumption 1 at w_{k+1} = w - a g: f(w_{k+1}) <= f(w) - a f'(w).g + a^2 L / 2 |g|^2; then the mean, E g = f'(w).
    """
    flatness = problem.slope(w).square().sum(-1)
    second_moment = flatness + w.shape[-1] * problem.noise**2
    rate = alpha.squeeze(-1)
    return problem.value(w).sum(-1) - rate * flatness + rate**2 * problem.lipschitz / 2 * second_moment


def right_hand_side(problem: Problem, alphas: Tensor) -> Tensor:
    """A3.iii for t = 1, 2, ...: (f(w_0) - f*) / sum a_k + sigma^2 L / 2 * sum a_k^2 / sum a_k, over the first t steps.

    A3.i summed over k telescopes to A3.ii, sum a_k E|f'(w_k)|^2 <= f(w_0) - E f(w_t) + sigma^2 L / 2 sum a_k^2. The
    least of the E|f'(w_k)|^2 is at most their mean weighted by a_k: divide by sum a_k, and f(w_t) >= f*.
    """
    total, squares = alphas.cumsum(-1), alphas.square().cumsum(-1)
    return (problem.excess + problem.sigma_squared * problem.lipschitz / 2 * squares) / total


def leading_term(problem: Problem, alpha: float, power: float, t: int) -> float:
    """A3.iv: what :func:`right_hand_side` tends to as t grows, for the powers of ``POWERS``.

    p = 0:   sums t a and t a^2: sigma^2 L a / 2, which stays.
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
class Measured:
    """Of the runs of one problem, all step sizes at once; the first axis is the step size, the second t."""

    flatness: Tensor
    """Mean of |f'(w_k)|^2 over the runs, k = 0, ..., steps - 1."""
    flatness_error: Tensor
    telescoped: Tensor
    """Mean of sum_{k<t} a_k |f'(w_k)|^2 - f(w_0) + f(w_t), t = 1, ..., steps: the left of A3.ii less f's fall."""
    telescoped_error: Tensor
    slack: Tensor
    """(step sizes,): the least of right less left of A3.i, over all runs and steps."""
    outside: float
    """How far any |w_j| came out of the box."""


def descend(problem: Problem, alphas: Tensor, *, runs: int, draws: torch.Generator) -> Measured:
    """``runs`` independent runs for each row of ``alphas`` (step sizes, steps), as one tensor (step sizes, runs, D)."""
    w = problem.start.expand(len(alphas), runs, -1).clone()
    sums = torch.zeros(w.shape[:2], dtype=w.dtype)
    flatness, telescoped = [], []
    slack = torch.full((len(alphas),), math.inf, dtype=w.dtype)
    outside = torch.tensor(-math.inf, dtype=w.dtype)
    for alpha in alphas.T[:, :, None, None]:
        gradient = problem.slope(w)
        squared = gradient.square().sum(-1)
        margin = one_step_bound(problem, w, alpha) - expected_value(problem, w, alpha)
        slack = torch.minimum(slack, margin.amin(-1))
        signs = 2 * torch.randint(2, w.shape[1:], generator=draws).to(w) - 1
        w = w - alpha * (gradient + problem.noise * signs)
        sums += alpha.squeeze(-1) * squared
        left = sums - problem.excess + problem.value(w).sum(-1)
        flatness.append(torch.stack(_mean_and_standard_error(squared)))
        telescoped.append(torch.stack(_mean_and_standard_error(left)))
        outside = torch.maximum(outside, (w.abs() - problem.box).max())  # unlike max(), keeps nan
    means, errors = torch.stack(flatness, -1)
    left_means, left_errors = torch.stack(telescoped, -1)
    return Measured(means, errors, left_means, left_errors, slack, float(outside))


def _mean_and_standard_error(of_runs: Tensor) -> tuple[Tensor, Tensor]:
    return of_runs.mean(-1), of_runs.std(-1) / math.sqrt(of_runs.shape[-1])


def growth_table(problem: Problem, alphas: Tensor, alpha: float, power: float) -> list[dict[str, float]]:
    """A3.iv at t = 10, ..., 10^6: the right-hand side, its leading term, and the power of t over the last decade."""
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
    """Of one problem the least E|f'(w_k)|^2 so far and its bound, (step sizes, steps) each."""

    problem: Problem
    best: Tensor
    error: Tensor
    """Standard error of ``best``."""
    bounds: Tensor
    checks: list[Check]
    rows: list[dict[str, Any]]
    """The above at t = 10, 100, ... and after the last step."""
    growth: list[dict[str, Any]]
    """The rows of :func:`growth_table`, of all step sizes."""

    @property
    def numbers(self) -> dict[str, float]:
        """Estimate and bound after the last step."""
        return {
            f"{self.problem.name}_{KEYS[name]}_{what}": float(values[i, -1])
            for i, name in enumerate(POWERS)
            for what, values in (("least", self.best), ("bound", self.bounds))
        }


def estimated(problem: Problem, rates: dict[str, float], *, runs: int, steps: int, seed: int) -> Estimates:
    """Runs of one problem with all step sizes, alpha by name from ``rates``, held against A3.i to A3.iv."""
    alphas = torch.stack([step_sizes(rates[name], power, steps) for name, power in POWERS.items()])
    found = descend(problem, alphas, runs=runs, draws=generator(seed, "sgd_rate", problem.name))
    bounds = right_hand_side(problem, alphas)
    best, at = found.flatness.cummin(-1)
    error = found.flatness_error.gather(-1, at)
    allowed = problem.sigma_squared * problem.lipschitz / 2 * alphas.square().cumsum(-1)
    rounding = 1e-12 * (problem.excess + problem.sigma_squared / problem.lipschitz)
    checks = [at_most(f"{problem.name}: how far an iterate came out of its box", found.outside, rounding)]
    rows, growth = [], []
    for i, (name, power) in enumerate(POWERS.items()):
        which, names = f"{problem.name}, {name}", {"function": problem.name, "step_size": name}
        beyond = float((found.telescoped[i] - ERRORS * found.telescoped_error[i] - allowed[i]).max())
        of_bound = float(((best[i] - ERRORS * error[i]) / bounds[i]).max())
        table = growth_table(problem, step_sizes(rates[name], power, DECADES[-1]), rates[name], power)
        # What comes after the leading term, relative to it: f(w_0) / (a t) for p = 0, else
        # -zeta(p) (1 - p) / t^(1 - p), which is 0.027 for p = 3/4 and 0.0007 for p = 1/2.
        constant = 1e-9 + 1.001e-6 * problem.excess / (rates[name] * table[-1]["leading_term"])
        rest = {0.0: constant, 0.75: 0.03, 0.5: 0.001}[power]
        checks += [
            at_most(f"{which}: A3.i, left less right, every step and run", -float(found.slack[i]), rounding),
            at_most(f"{which}: A3.ii, left less right and {ERRORS:g} errors", beyond, rounding),
            at_most(f"{which}: A3.iii, largest (estimate - {ERRORS:g} errors) / bound", of_bound, 1.0),
            close(f"{which}: right-hand side / leading term at t = 10^6", table[-1]["ratio"], 1.0, within=rest),
        ]
        growth += [names | row for row in table]
        rows += [
            {
                **names,
                "t": t,
                "least_squared_gradient": float(best[i, t - 1]),
                "standard_error": float(error[i, t - 1]),
                "bound": float(bounds[i, t - 1]),
            }
            for t in [decade for decade in DECADES if decade < steps] + [steps]
        ]
    return Estimates(problem, best, error, bounds, checks, rows, growth)


def draw_rates(found: Sequence[Estimates], *, runs: int) -> Figure:
    """The estimates with their bands, and their bounds, against t: a panel for each problem."""
    figure, all_axes = new_figure(
        2,
        title="sgd_rate: least squared gradient so far, and the bound on it",
        subtitle=f"mean of {runs} runs with its 95 % band (lines) against the right-hand side of A3.iii (dashed)",
        panel_inches=3.4,
    )
    for each, axes in zip(found, all_axes, strict=True):
        times = torch.arange(1, each.best.shape[-1] + 1)
        for name, color, best, error, bound in zip(POWERS, PALETTE, each.best, each.error, each.bounds, strict=False):
            low, high = best - 1.96 * error, best + 1.96 * error
            axes.loglog(times, bound, color=color, linewidth=1.4, linestyle="--")
            axes.loglog(times, best, color=color, linewidth=1.6, label=f"alpha {name}")
            axes.fill_between(times, low, high, color=color, alpha=0.25, linewidth=0, label="_band")
        label(axes, x="steps t", y="least E|f'(w)|^2 so far", title=f"{each.problem.name}", place="lower left")
    return figure


def draw_growth(problem: Problem, rates: dict[str, float]) -> Figure:
    """The bound of one problem up to t = 10^6, and what it tends to."""
    figure, (axes,) = new_figure(
        1,
        title=f"sgd_rate: the right-hand side of A3.iii as t grows ({problem.name})",
        subtitle="lines: the sums, added up; dotted: what they tend to: sigma^2 L alpha / 2, t^(-1/4), log t / t^(1/2)",
    )
    shown = torch.logspace(0, 6, 200).long() - 1
    late = shown[shown >= 9]
    dotted: dict[str, Any] = {"color": COLORS["reference"], "linestyle": ":", "linewidth": 1.6}
    for color, (name, power) in zip(PALETTE, POWERS.items(), strict=False):
        whole = right_hand_side(problem, step_sizes(rates[name], power, DECADES[-1]))
        axes.loglog(shown + 1, whole[shown], color=color, linewidth=2.0, label=f"alpha {name}")
        axes.loglog(late + 1, [leading_term(problem, rates[name], power, int(t) + 1) for t in late], **dotted)
    axes.plot([], [], label="leading term (A3.iv)", **dotted)
    label(axes, x="steps t", y="bound on the least E|f'(w_k)|^2")
    return figure


def sgd_rate(
    *,
    dimension: Annotated[int, Field(ge=1)],
    lipschitz: Annotated[float, Field(ge=1e-6, le=1e6)],
    condition: Annotated[float, Field(ge=1, le=1e6)],
    start: Annotated[float, Field(ge=-1e6, le=1e6)],
    noise: Annotated[float, Field(ge=0, le=1e6)],
    constant_rate: Annotated[float, Field(gt=0, le=1)],
    decaying_rate: Annotated[float, Field(gt=0, le=1)],
    runs: Annotated[int, Field(ge=30)],
    steps: Annotated[int, Field(ge=10)],
    seed: int,
) -> Answer:
    """The least E|f'(w_k)|^2 so far against the bound of A3.iii, on a quadratic and on waves, which are not convex."""
    if start == noise == 0:
        raise UsageError("study.start=0: with study.noise=0 nothing moves; start elsewhere or give noise")
    curvature = lipschitz * torch.logspace(0, -math.log10(condition), dimension, dtype=torch.float64)
    first = torch.full((dimension,), start, dtype=torch.float64)
    rates = {name: (constant_rate if power == 0 else decaying_rate) / lipschitz for name, power in POWERS.items()}
    problems = quadratic(curvature, first, noise), waves(curvature, first, noise)
    found = [estimated(problem, rates, runs=runs, steps=steps, seed=seed) for problem in problems]
    return Answer(
        numbers={name: value for each in found for name, value in each.numbers.items()},
        checks=[check for each in found for check in each.checks],
        tables={
            "measured": [row for each in found for row in each.rows],
            "right_hand_side": [row for each in found for row in each.growth],
        },
        figures={"rates": draw_rates(found, runs=runs), "right_hand_side": draw_growth(problems[-1], rates)},
    )
