"""Gradient descent on least squares: every iterate in closed form, how fast, and for which step sizes (B5)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from dlhw.errors import UsageError
from dlhw.runs.answer import Answer, Check, at_most, equal
from dlhw.runtime.randomness import generator
from dlhw.views.plots import COLORS, PALETTE, label, new_figure

SMALLEST = 1e-6
"""Singular values below this fraction of the largest count as zero; X'X has their squares, rounded at 1e-16."""

MOST_STEPS = 1000
"""Of descent with steps that diverge: 1.2 times 2 / lambda_max multiplies the error by 1.4 in each."""


def gradient(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """X'(X w - y), the gradient of 1/2 |X w - y|^2 (B5.a): X (..., N, D), w (..., D), y (..., N).

    |X (w + d) - y|^2 / 2 = |X w - y|^2 / 2 + d' X'(X w - y) + |X d|^2 / 2, and the last term is of second order.
    """
    residual = (x @ w[..., None]).squeeze(-1) - y
    found: Tensor = torch.einsum("...nd,...n->...d", x, residual)
    return found


def minimizer(x: Tensor, y: Tensor, start: Tensor) -> Tensor:
    """Of all w with X'X w = X'y, where the gradient is zero, the one that is nearest to the start (B5.a).

    That is X^+ y, the shortest, plus the part of the start that X maps to zero, (I - X^+ X) w_0. With columns that are
    independent there is but one, (X'X)^-1 X'y.
    """
    inverse: Tensor = torch.linalg.pinv(x, rtol=SMALLEST)
    return start + (inverse @ (y[..., None] - x @ start[..., None])).squeeze(-1)


def descend(x: Tensor, y: Tensor, start: Tensor, rate: Tensor, iterations: int) -> Tensor:
    """w_0 ... w_K of w <- w - alpha X'(X w - y): (..., K + 1, D). ``rate`` is alpha, with the leading shape or less."""
    w = start
    found = [w]
    for _ in range(iterations):
        w = w - rate[..., None] * gradient(x, w, y)
        found.append(w)
    return torch.stack(found, -2)


def closed_form(x: Tensor, y: Tensor, start: Tensor, rate: Tensor, iterations: int) -> Tensor:
    """w_k = w* + (I - alpha X'X)^k (w_0 - w*), k = 0 ... K, B5.c: (..., K + 1, D).

    As X'y = X'X w*, a step is w_next - w* = w - w* - alpha X'X (w - w*): the error is multiplied by I - alpha X'X. With
    X'X = V diag(lambda) V' the power is V diag((1 - alpha lambda)^k) V', for all k at once. What X maps to zero has
    lambda = 0 and stays, so any minimizer may be w*.
    """
    w = minimizer(x, y, start)
    values, vectors = torch.linalg.eigh(x.mT @ x)
    powers = torch.arange(iterations + 1, dtype=x.dtype)[:, None]
    factors = (1 - rate[..., None, None] * values[..., None, :]) ** powers
    along = vectors.mT @ (start - w)[..., None]
    found: Tensor = w[..., None, :] + (factors * along.mT) @ vectors.mT
    return found


def slowest(eigenvalues: Tensor, rate: Tensor) -> Tensor:
    """max_i |1 - alpha lambda_i| over the eigenvalues that are not zero: no step shrinks the error by less.

    It is below 1 exactly for 0 < alpha < 2 / lambda_max.
    """
    there = eigenvalues > SMALLEST**2 * eigenvalues.amax(-1, keepdim=True)
    factors = (1 - rate[..., None] * eigenvalues).abs()
    return torch.where(there, factors, 0.0).amax(-1)


@dataclass(frozen=True)
class Problem:
    """Draws of least squares, with their starts."""

    x: Tensor
    y: Tensor
    start: Tensor

    @property
    def eigenvalues(self) -> Tensor:
        """Of X'X, in rising order."""
        found: Tensor = torch.linalg.eigvalsh(self.x.mT @ self.x)
        return found

    @property
    def largest_stable(self) -> Tensor:
        """2 / lambda_max: descent converges for any smaller alpha."""
        return 2 / self.eigenvalues.amax(-1)

    def only(self, draw: int) -> Problem:
        """One of the draws, without the dimension of draws."""
        return Problem(self.x[draw], self.y[draw], self.start[draw])


def draw(source: torch.Generator, *, draws: int, samples: int, features: int, rank: int | None) -> Problem:
    """Normal entries; with a rank, X is a product of normal factors that have it."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(draws, *shape, generator=source, dtype=torch.float64)

    x = normal(samples, features) if rank is None else normal(samples, rank) @ normal(rank, features) / math.sqrt(rank)
    return Problem(x, normal(samples), normal(features))


def relative(differences: Tensor, size: Tensor) -> float:
    """The largest length of the differences, each over a size or over the length of what it is a difference of."""
    lengths = size.norm(dim=-1) if size.dim() == differences.dim() else size
    return float((differences.norm(dim=-1) / lengths.clamp_min(1e-300)).max())


def against_formulas(problem: Problem, w: Tensor, alpha: Tensor, *, name: str) -> list[Check]:
    """Gradient, minimizer, first iterates and all iterates, each found in a second way (B5.a-c).

    Rounding moves X by eps |X|, thus X^+ y by eps |X| |X^+|^2 |y|, X'(X w* - y), where w* = w_0 + X^+ (y - X w_0), by
    eps |X|^2 |X^+| (|y| + |X| |w_0|), and w_k by k eps times the larger of |w_k| and what |w_0 - w*| can have grown to.
    Sums of D or N products multiply that by these.
    """
    x, y, iterations = problem.x, problem.y, w.shape[-2] - 1
    formula = closed_form(x, y, problem.start, alpha, iterations)
    values = torch.linalg.svdvals(x)
    most, least = values[:, 0], torch.where(values > SMALLEST * values[:, :1], values, torch.inf).amin(-1)
    nearest = minimizer(x, y, problem.start)
    terms = most**2 / least * (most * problem.start.norm(dim=-1) + y.norm(dim=-1))
    growth = slowest(problem.eigenvalues, alpha).clamp_min(1)[:, None] ** torch.arange(iterations + 1)
    reached = torch.maximum(w.norm(dim=-1), (problem.start - nearest).norm(dim=-1)[:, None] * growth)
    rounding = 16 * max(x.shape[-2:]) * torch.finfo(x.dtype).eps
    leaf = problem.start.clone().requires_grad_()
    loss = 0.5 * ((x @ leaf[..., None]).squeeze(-1) - y).square().sum()
    (automatic,) = torch.autograd.grad(loss, leaf)
    by_torch = torch.linalg.lstsq(x, y[..., None], rcond=SMALLEST, driver="gelsd").solution.squeeze(-1)
    g = gradient(x, problem.start, y)
    shortest = minimizer(x, y, torch.zeros_like(problem.start))
    step = alpha[:, None]
    second = problem.start - 2 * step * g + step**2 * (x.mT @ (x @ g[..., None])).squeeze(-1)
    return [
        at_most(f"gradient against autograd (B5.a), {name}", relative(g - automatic, g), 1e-12),
        at_most(
            f"X^+ y against torch.linalg.lstsq (B5.a), {name}",
            relative(shortest - by_torch, most / least**2 * y.norm(dim=-1)),
            rounding,
        ),
        at_most(f"gradient at w* over its terms (B5.a), {name}", relative(gradient(x, nearest, y), terms), rounding),
        at_most(f"w_1 = w_0 - a g (B5.b), {name}", relative(w[:, 1] - (problem.start - step * g), w[:, 1]), 1e-12),
        at_most(f"w_2 = w_0 - 2 a g + a^2 X'X g (B5.b), {name}", relative(w[:, 2] - second, w[:, 2]), 1e-12),
        at_most(
            f"w_0 ... w_{iterations} against the closed form (B5.c), {name}",
            relative(w - formula, reached),
            rounding * iterations,
        ),
    ]


def rate_by_step(problem: Problem, rates: int, iterations: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For step sizes up to 1.2 times 2 / lambda_max: these, the measured factor, the predicted one, and what shrinks.

    Descent starts one unit off w* along every eigenvector, lest a direction be missing. The factor is that of the last
    step before the error is lost in rounding.
    """
    values, vectors = torch.linalg.eigh(problem.x.mT @ problem.x)
    there = (values > SMALLEST**2 * values.max()).to(values.dtype)
    nearest = minimizer(problem.x, problem.y, torch.zeros_like(problem.start))
    fractions = 1.2 * torch.arange(1, rates + 1, dtype=values.dtype) / rates
    alpha = fractions * problem.largest_stable
    start = (nearest + vectors @ there).expand(rates, -1)
    w = descend(problem.x, problem.y.expand(rates, -1), start, alpha, min(iterations, MOST_STEPS))
    error = (w - nearest).norm(dim=-1)
    last = (error[:, :-1] > 1e-7 * error[:, :1]).cumprod(1).sum(1, keepdim=True)  # steps from errors that are exact
    measured = (error.gather(1, last) / error.gather(1, last - 1)).squeeze(1)
    return fractions, measured, slowest(values, alpha), error[:, -1] < error[:, 0]


@dataclass(frozen=True)
class Measured:
    """The draws of one problem; curves are those of the first draw, (iterations + 1,) or (rates,)."""

    name: str
    error: Tensor
    """|w_k - w*|, with w* the minimizer nearest to the start."""
    bound: Tensor
    """On the error, by the eigenvalue along which it shrinks least."""
    to_shortest: Tensor
    """|w_k - X^+ y|."""
    stays: float
    """|w* - X^+ y| / |w_0|: what remains of the start."""
    fractions: Tensor
    """Step sizes, over 2 / lambda_max; with :func:`rate_by_step`'s measured and predicted factors."""
    measured: Tensor
    predicted: Tensor
    checks: list[Check]

    @property
    def numbers(self) -> dict[str, float]:
        """The step size with the least predicted factor, and that factor."""
        best, name = int(self.predicted.argmin()), self.name.replace(" ", "_")
        return {f"best_fraction_{name}": float(self.fractions[best]), f"best_rate_{name}": float(self.predicted[best])}

    @property
    def errors(self) -> list[dict[str, object]]:
        """Rows by iteration."""
        pairs = zip(self.error.tolist(), self.bound.tolist(), strict=True)
        return [
            {"problem": self.name, "iteration": k, "error": each, "bound": most} for k, (each, most) in enumerate(pairs)
        ]

    @property
    def rates(self) -> list[dict[str, object]]:
        """Rows by step size."""
        columns = zip(self.fractions.tolist(), self.measured.tolist(), self.predicted.tolist(), strict=True)
        return [{"problem": self.name, "fraction": at, "measured": each, "theory": most} for at, each, most in columns]


def measured(name: str, problem: Problem, *, rate: float, iterations: int, rates: int) -> Measured:
    """Iterates of all draws against the formulas; error and rate of the first draw against the theory."""
    x, y, start = problem.x, problem.y, problem.start
    alpha = rate * problem.largest_stable
    w = descend(x, y, start, alpha, iterations)
    nearest, shortest = minimizer(x, y, start), minimizer(x, y, torch.zeros_like(start))
    error = (w - nearest[:, None]).norm(dim=-1)
    bound = slowest(problem.eigenvalues, alpha)[:, None] ** torch.arange(iterations + 1) * error[:, :1]
    excess = float(((error - bound) / torch.maximum(error, error[:, :1])).max())

    fractions, factors, predicted, shrinks = rate_by_step(problem.only(0), rates, iterations)
    clear = (fractions - 1).abs() > 0.04
    checks = [
        *against_formulas(problem, w, alpha, name=name),
        at_most(f"error above the bound by eigenvalue, {name}", excess, 1e-10),
        at_most(f"rate above the largest |1 - alpha lambda|, {name}", float((factors - predicted).max()), 1e-6),
        equal(
            f"step sizes at which the error shrinks are those below 2 / lambda_max, {name}",
            int((shrinks == (fractions < 1))[clear].sum()),
            int(clear.sum()),
        ),
    ]
    stays = float((nearest - shortest).norm(dim=-1)[0] / start[0].norm())
    to_shortest = (w[0] - shortest[0]).norm(dim=-1)
    return Measured(name, error[0], bound[0], to_shortest, stays, fractions, factors, predicted, checks)


def drawing(full: Measured, deficient: Measured, *, subtitle: str) -> Figure:
    """Error by iteration, relative to the first, with its bound; and the factor of the error by step size."""
    title = "least_squares_gd: error by iteration, and rate by step size"
    figure, (error_axes, rate_axes) = new_figure(2, title=title, subtitle=subtitle, panel_inches=3.3)
    for color, each in zip(PALETTE, (full, deficient), strict=False):
        name, first, above = each.name, each.error[0], each.bound > each.error[0] * 1e-16
        bound = (each.bound / first)[above]
        error_axes.plot(each.error / first, color=color, linewidth=1.6, label=name)
        error_axes.plot(bound, color=color, linewidth=1.0, linestyle="--", label=f"{name}, bound")
        if each is deficient:
            to_shortest = each.to_shortest / first
            error_axes.plot(to_shortest, color=color, linewidth=1.0, linestyle="-.", label=f"{name}, to X^+ y")
        rate_axes.plot(each.fractions, each.predicted, color=color, linewidth=1.2, label=f"theory, {name}")
        rate_axes.plot(each.fractions, each.measured, "o", color=color, markersize=3.5, label=f"measured, {name}")
    error_axes.set_yscale("log")
    error_axes.set_ylim(top=error_axes.get_ylim()[1] * 1e9)  # room for the legend
    rate_axes.axhline(1, color=COLORS["reference"], linewidth=0.8)
    rate_axes.axvline(1, color=COLORS["reference"], linewidth=0.8, linestyle=":")
    rate_axes.set_ylim(bottom=0)
    label(error_axes, x="iteration k", y="|w_k - w*| / |w_0 - w*|", place="upper right")
    label(rate_axes, x="alpha / (2 / lambda_max)", y="factor of the error in a step", place="lower left")
    return figure


def least_squares_gd(
    *,
    samples: Annotated[int, Field(gt=1)],
    features: Annotated[int, Field(gt=1)],
    rank: Annotated[int, Field(gt=0)],
    draws: Annotated[int, Field(gt=0)],
    iterations: Annotated[int, Field(ge=50, le=100_000)],
    rate: Annotated[float, Field(gt=0, le=2)],
    rates: Annotated[int, Field(ge=12)],
    seed: int,
) -> Answer:
    """Iterates against the closed form over many draws; error and rate of the first draw against the theory."""
    if rank >= min(samples, features):
        raise UsageError(
            f"study.rank={rank}: must be less than study.samples={samples} and study.features={features}, "
            "or X is not rank-deficient"
        )
    if rate > 1 and iterations * math.log(2 * rate - 1) > 300:
        raise UsageError(f"study.rate={rate:g}: diverges beyond float64 in study.iterations={iterations}; take fewer")
    found = []
    for name, of_rank in {"full rank": None, f"rank {rank}": rank}.items():
        source = generator(seed, "least_squares_gd", name)
        problem = draw(source, draws=draws, samples=samples, features=features, rank=of_rank)
        found.append(measured(name, problem, rate=rate, iterations=iterations, rates=rates))
    full, deficient = found
    subtitle = f"first draw of {draws}, X {samples} x {features}; alpha = {rate:g} of 2 / lambda_max on the left"
    return Answer(
        numbers={**full.numbers, "stays_of_the_start": deficient.stays, **deficient.numbers},
        checks=full.checks + deficient.checks,
        tables={"errors": full.errors + deficient.errors, "rates": full.rates + deficient.rates},
        figures={"least_squares": drawing(full, deficient, subtitle=subtitle)},
    )
