"""Gradient descent on least squares: the iterates in closed form, their rate, and the stable step sizes (B5)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from dlhw.errors import UsageError
from dlhw.runtime.randomness import generator
from dlhw.storage.answer import Answer, Check, at_most, equal
from dlhw.views.plots import COLORS, PALETTE, label, new_figure

SMALLEST = 1e-6
"""Singular values below this fraction of the largest count as zero; X^T X has their squares, rounded at 1e-16."""

MOST_STEPS = 1000
"""Maximum number of steps with diverging step sizes: 1.2 times 2 / lambda_max multiplies the error by 1.4 per step."""


def gradient(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """Return X^T (X w - y), the gradient of 1/2 |X w - y|^2 (B5.a): X (..., N, D), w (..., D), y (..., N).

    |X (w + d) - y|^2 / 2 = |X w - y|^2 / 2 + d^T X^T (X w - y) + |X d|^2 / 2, and the last term is of second order.
    """
    residual = (x @ w[..., None]).squeeze(-1) - y
    result: Tensor = torch.einsum("...nd,...n->...d", x, residual)
    return result


def minimizer(x: Tensor, y: Tensor, start: Tensor) -> Tensor:
    """Return the w with X^T X w = X^T y, where the gradient is zero, that is nearest to the start (B5.a).

    It is X^+ y, the shortest minimizer, plus the part of the start that X maps to zero, (I - X^+ X) w_0. If the columns
    of X are independent, the only minimizer is (X^T X)^-1 X^T y.
    """
    inverse: Tensor = torch.linalg.pinv(x, rtol=SMALLEST)
    return start + (inverse @ (y[..., None] - x @ start[..., None])).squeeze(-1)


def descend(x: Tensor, y: Tensor, start: Tensor, rate: Tensor, iterations: int) -> Tensor:
    """Return w_0 ... w_K of w <- w - alpha X^T (X w - y), (..., K + 1, D); ``rate`` is alpha."""
    w = start
    iterates = [w]
    for _ in range(iterations):
        w = w - rate[..., None] * gradient(x, w, y)
        iterates.append(w)
    return torch.stack(iterates, -2)


def closed_form(x: Tensor, y: Tensor, start: Tensor, rate: Tensor, iterations: int) -> Tensor:
    """Return w_k = w* + (I - alpha X^T X)^k (w_0 - w*), k = 0 ... K, B5.c: (..., K + 1, D).

    As X^T y = X^T X w*, a step is w_next - w* = w - w* - alpha X^T X (w - w*): the error is multiplied by I - alpha X^T
    X. With X^T X = V diag(lambda) V^T the power is V diag((1 - alpha lambda)^k) V^T, for all k at once. Directions that
    X maps to zero have lambda = 0 and do not change, so w* may be any minimizer.
    """
    w = minimizer(x, y, start)
    values, vectors = torch.linalg.eigh(x.mT @ x)
    powers = torch.arange(iterations + 1, dtype=x.dtype)[:, None]
    factors = (1 - rate[..., None, None] * values[..., None, :]) ** powers
    along = vectors.mT @ (start - w)[..., None]
    result: Tensor = w[..., None, :] + (factors * along.mT) @ vectors.mT
    return result


def slowest(eigenvalues: Tensor, rate: Tensor) -> Tensor:
    """Return max_i |1 - alpha lambda_i| over the nonzero eigenvalues: the factor on the slowest part of the error.

    It is below 1 exactly for 0 < alpha < 2 / lambda_max.
    """
    nonzero = eigenvalues > SMALLEST**2 * eigenvalues.amax(-1, keepdim=True)
    factors = (1 - rate[..., None] * eigenvalues).abs()
    return torch.where(nonzero, factors, 0.0).amax(-1)


@dataclass(frozen=True)
class LeastSquares:
    """Draws of least-squares problems with their starting points."""

    x: Tensor
    y: Tensor
    start: Tensor

    @property
    def eigenvalues(self) -> Tensor:
        """The eigenvalues of X^T X, in increasing order."""
        values: Tensor = torch.linalg.eigvalsh(self.x.mT @ self.x)
        return values

    @property
    def largest_stable(self) -> Tensor:
        """2 / lambda_max: descent converges for every smaller alpha."""
        return 2 / self.eigenvalues.amax(-1)

    def only(self, draw: int) -> LeastSquares:
        """Return one of the draws, without the dimension of draws."""
        return LeastSquares(self.x[draw], self.y[draw], self.start[draw])


def draw(source: torch.Generator, *, draws: int, samples: int, features: int, rank: int | None) -> LeastSquares:
    """Draw problems with normal entries; with a rank, X is a product of two normal factors of this rank."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(draws, *shape, generator=source, dtype=torch.float64)

    x = normal(samples, features) if rank is None else normal(samples, rank) @ normal(rank, features) / math.sqrt(rank)
    return LeastSquares(x, normal(samples), normal(features))


def relative(differences: Tensor, size: Tensor) -> float:
    """Return the largest length of the differences relative to ``size``: lengths, or vectors with these lengths."""
    lengths = size.norm(dim=-1) if size.dim() == differences.dim() else size
    return float((differences.norm(dim=-1) / lengths.clamp_min(1e-300)).max())


def against_formulas(problem: LeastSquares, w: Tensor, alpha: Tensor, *, name: str) -> list[Check]:
    """Compare the gradient, the minimizer, the first iterates and all iterates with a second method each (B5.a-c).

    Rounding perturbs X by eps |X|. This changes X^+ y by eps |X| |X^+|^2 |y|, the gradient X^T (X w* - y) at w* = w_0 +
    X^+ (y - X w_0) by eps |X|^2 |X^+| (|y| + |X| |w_0|), and w_k by k eps times the larger of |w_k| and the bound on
    the growth of |w_0 - w*|. Sums of D or N products multiply these by D or N.
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
    (by_autograd,) = torch.autograd.grad(loss, leaf)
    by_torch = torch.linalg.lstsq(x, y[..., None], rcond=SMALLEST, driver="gelsd").solution.squeeze(-1)
    g = gradient(x, problem.start, y)
    shortest = minimizer(x, y, torch.zeros_like(problem.start))
    step = alpha[:, None]
    second = problem.start - 2 * step * g + step**2 * (x.mT @ (x @ g[..., None])).squeeze(-1)
    return [
        at_most(
            f"gradient: largest relative difference from autograd (B5.a), {name}", relative(g - by_autograd, g), 1e-12
        ),
        at_most(
            f"X^+ y: largest difference from torch.linalg.lstsq, relative to |X| |X^+|^2 |y| (B5.a), {name}",
            relative(shortest - by_torch, most / least**2 * y.norm(dim=-1)),
            rounding,
        ),
        at_most(
            f"gradient at w*, relative to its terms (B5.a), {name}", relative(gradient(x, nearest, y), terms), rounding
        ),
        at_most(
            f"w_1 = w_0 - a g (B5.b), largest relative difference, {name}",
            relative(w[:, 1] - (problem.start - step * g), w[:, 1]),
            1e-12,
        ),
        at_most(
            f"w_2 = w_0 - 2 a g + a^2 X^T X g (B5.b), largest relative difference, {name}",
            relative(w[:, 2] - second, w[:, 2]),
            1e-12,
        ),
        at_most(
            f"w_0 ... w_{iterations}: largest relative difference from the closed form (B5.c), {name}",
            relative(w - formula, reached),
            rounding * iterations,
        ),
    ]


def rate_by_step(problem: LeastSquares, rates: int, iterations: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Measure the rate for step sizes up to 1.2 times 2 / lambda_max.

    Return the step sizes as fractions of 2 / lambda_max, the measured and the predicted factors on the error, and
    whether the error shrinks. Descent starts one unit away from w* along every eigenvector, so that no direction is
    missing. The measured factor is that of the last step before rounding dominates the error.
    """
    values, vectors = torch.linalg.eigh(problem.x.mT @ problem.x)
    nonzero = (values > SMALLEST**2 * values.max()).to(values.dtype)
    nearest = minimizer(problem.x, problem.y, torch.zeros_like(problem.start))
    fractions = 1.2 * torch.arange(1, rates + 1, dtype=values.dtype) / rates
    alpha = fractions * problem.largest_stable
    start = (nearest + vectors @ nonzero).expand(rates, -1)
    w = descend(problem.x, problem.y.expand(rates, -1), start, alpha, min(iterations, MOST_STEPS))
    error = (w - nearest).norm(dim=-1)
    last = (error[:, :-1] > 1e-7 * error[:, :1]).cumprod(1).sum(1, keepdim=True)  # steps before rounding dominates
    measured = (error.gather(1, last) / error.gather(1, last - 1)).squeeze(1)
    return fractions, measured, slowest(values, alpha), error[:, -1] < error[:, 0]


@dataclass(frozen=True)
class DescentErrors:
    """Results for the draws of one problem; curves are those of the first draw, (iterations + 1,) or (rates,)."""

    name: str
    error: Tensor
    """|w_k - w*|, with w* the minimizer nearest to the start."""
    bound: Tensor
    """The bound on the error, by the eigenvalue along which it shrinks most slowly."""
    to_shortest: Tensor
    """|w_k - X^+ y|."""
    stays: float
    """|w* - X^+ y| / |w_0|: the part of the start that remains."""
    fractions: Tensor
    """Step sizes relative to 2 / lambda_max, with the measured and predicted factors of :func:`rate_by_step`."""
    measured: Tensor
    predicted: Tensor
    checks: list[Check]

    @property
    def numbers(self) -> dict[str, float]:
        """The step size with the smallest predicted factor, and that factor."""
        best, name = int(self.predicted.argmin()), self.name.replace(" ", "_")
        return {f"best_fraction_{name}": float(self.fractions[best]), f"best_rate_{name}": float(self.predicted[best])}

    @property
    def errors(self) -> list[dict[str, object]]:
        """Table rows by iteration."""
        pairs = zip(self.error.tolist(), self.bound.tolist(), strict=True)
        return [
            {"problem": self.name, "iteration": k, "error": error, "bound": bound}
            for k, (error, bound) in enumerate(pairs)
        ]

    @property
    def rates(self) -> list[dict[str, object]]:
        """Table rows by step size."""
        columns = zip(self.fractions.tolist(), self.measured.tolist(), self.predicted.tolist(), strict=True)
        return [
            {"problem": self.name, "fraction": fraction, "measured": measured, "theory": predicted}
            for fraction, measured, predicted in columns
        ]


def compare(name: str, problem: LeastSquares, *, rate: float, iterations: int, rates: int) -> DescentErrors:
    """Compare the iterates of all draws with the formulas; compare error and rate of the first draw with the theory."""
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
        at_most(f"largest excess of the error over its bound by the eigenvalues, relative, {name}", excess, 1e-10),
        at_most(
            f"largest excess of the measured rate over max |1 - alpha lambda|, {name}",
            float((factors - predicted).max()),
            1e-6,
        ),
        equal(
            f"step sizes where the error shrinks if and only if alpha < 2 / lambda_max, {name}",
            int((shrinks == (fractions < 1))[clear].sum()),
            int(clear.sum()),
        ),
    ]
    stays = float((nearest - shortest).norm(dim=-1)[0] / start[0].norm())
    to_shortest = (w[0] - shortest[0]).norm(dim=-1)
    return DescentErrors(name, error[0], bound[0], to_shortest, stays, fractions, factors, predicted, checks)


def plot_errors(full: DescentErrors, deficient: DescentErrors, *, subtitle: str) -> Figure:
    """Plot the relative error by iteration with its bound, and the factor on the error by step size."""
    title = "least_squares_gd: error by iteration and rate by step size"
    figure, (error_axes, rate_axes) = new_figure(2, title=title, subtitle=subtitle, panel_inches=3.3)
    for color, result in zip(PALETTE, (full, deficient), strict=False):
        name, first, visible = result.name, result.error[0], result.bound > result.error[0] * 1e-16
        bound = (result.bound / first)[visible]
        error_axes.plot(result.error / first, color=color, linewidth=1.6, label=name)
        error_axes.plot(bound, color=color, linewidth=1.0, linestyle="--", label=f"{name}, bound")
        if result is deficient:
            to_shortest = result.to_shortest / first
            error_axes.plot(to_shortest, color=color, linewidth=1.0, linestyle="-.", label=f"{name}, to X^+ y")
        rate_axes.plot(result.fractions, result.predicted, color=color, linewidth=1.2, label=f"theory, {name}")
        rate_axes.plot(result.fractions, result.measured, "o", color=color, markersize=3.5, label=f"measured, {name}")
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
    samples: Annotated[int, Field(gt=1, le=100_000)],
    features: Annotated[int, Field(gt=1, le=10_000)],
    rank: Annotated[int, Field(gt=0, le=10_000)],
    draws: Annotated[int, Field(gt=0, le=100_000)],
    iterations: Annotated[int, Field(ge=50, le=100_000)],
    rate: Annotated[float, Field(gt=0, le=2)],
    rates: Annotated[int, Field(ge=12, le=10_000)],
    seed: int,
) -> Answer:
    """Compare the iterates with the closed form over many draws, and the first draw's error and rate with theory."""
    if rank >= min(samples, features):
        raise UsageError(
            f"study.rank={rank}: must be less than study.samples={samples} and study.features={features}; "
            "otherwise X is not rank-deficient"
        )
    if rate > 1 and iterations * math.log(2 * rate - 1) > 300:
        raise UsageError(
            f"study.rate={rate:g}: overflows float64 in study.iterations={iterations}; use fewer iterations"
        )
    results = []
    for name, problem_rank in {"full rank": None, f"rank {rank}": rank}.items():
        source = generator(seed, "least_squares_gd", name)
        problem = draw(source, draws=draws, samples=samples, features=features, rank=problem_rank)
        results.append(compare(name, problem, rate=rate, iterations=iterations, rates=rates))
    full, deficient = results
    subtitle = f"first draw of {draws}, X {samples} x {features}; left: alpha = {rate:g} times 2 / lambda_max"
    return Answer(
        numbers={**full.numbers, "stays_of_the_start": deficient.stays, **deficient.numbers},
        checks=full.checks + deficient.checks,
        tables={"errors": full.errors + deficient.errors, "rates": full.rates + deficient.rates},
        figures={"least_squares": plot_errors(full, deficient, subtitle=subtitle)},
    )
