"""The heavy ball on a quadratic with momenta below 0, up to 1, at 1 and above, measured and predicted (D1.4)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from dlhw.errors import UsageError
from dlhw.storage.answer import Answer, at_most, equal
from dlhw.views.plots import COLORS, PALETTE, label, new_figure

SMALLEST = 1e-300  # replaces the length of a state of length 0, which has no logarithm


def iteration_matrix(mu: Tensor, stiffness: Tensor) -> Tensor:
    """Return the matrix (..., 2, 2) of the step (w, v) -> (w_next, v_next), with ``stiffness`` eta lambda.

    On a quadratic the components along the eigenvectors of the Hessian are independent, with the eigenvalues lambda as
    curvatures: v_next = mu v - eta lambda w and w_next = w + v_next = (1 - eta lambda) w + mu v.
    """
    mu, stiffness = torch.broadcast_tensors(mu, stiffness)
    rows = [torch.stack([1 - stiffness, mu], -1), torch.stack([-stiffness, mu], -1)]
    return torch.stack(rows, -2)


def spectral_radius(mu: Tensor, stiffness: Tensor) -> Tensor:
    """Return the largest absolute eigenvalue of the matrix: the asymptotic factor per step on the distance.

    The determinant is mu, the trace is s = 1 + mu - eta lambda: z^2 - s z + mu = 0. For s^2 < 4 mu the roots are
    conjugate with absolute value sqrt(mu): oscillation. Otherwise it is (|s| + sqrt(s^2 - 4 mu)) / 2.
    """
    trace = 1 + mu - stiffness
    discriminant = trace.square() - 4 * mu
    real = (trace.abs() + discriminant.clamp(min=0).sqrt()) / 2
    return torch.where(discriminant < 0, mu.clamp(min=0).sqrt().expand_as(real), real)


def stable(mu: Tensor, stiffness: Tensor) -> Tensor:
    """Return whether the spectral radius is below 1: |mu| < 1 and 0 < eta lambda < 2 (1 + mu).

    Both roots of z^2 - s z + mu are inside the unit circle if and only if |mu| < 1 and |s| < 1 + mu (Jury's criterion),
    where s = 1 + mu - eta lambda.
    """
    return (mu.abs() < 1) & (stiffness > 0) & (stiffness < 2 * (1 + mu))


def heavy_ball(mu: Tensor, stiffness: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Run v <- mu v - eta lambda w, w <- w + v from w = 1, v = 0 for all ``mu`` (M,) and ``stiffness`` (K,) at once.

    Return the directions of the states as unit vectors (w, v), (steps + 1, M, K, 2), and the logarithms of their
    lengths, (steps + 1, M, K). They are separate so that nothing overflows or underflows.
    """
    mu, stiffness = torch.broadcast_tensors(mu[:, None], stiffness[None, :])
    w, v, logarithm = torch.ones_like(mu), torch.zeros_like(mu), torch.zeros_like(mu)
    directions, logarithms = [torch.stack([w, v], -1)], [logarithm]
    for _ in range(steps):
        v = mu * v - stiffness * w
        w = w + v
        length = torch.hypot(w, v).clamp(min=SMALLEST)
        w, v, logarithm = w / length, v / length, logarithm + length.log()
        directions.append(torch.stack([w, v], -1))
        logarithms.append(logarithm)
    return torch.stack(directions), torch.stack(logarithms)


def measured_rate(logarithms: Tensor) -> Tensor:
    """Return the factor per step from logarithms (steps + 1, ...): the slope of a line through their second half."""
    late = logarithms[len(logarithms) // 2 :]
    times = torch.arange(len(late), dtype=late.dtype)
    times = (times - times.mean()).reshape(-1, *[1] * (late.ndim - 1))
    return ((times * late).sum(0) / times.square().sum()).exp()


def invariant(w: Tensor, v: Tensor, stiffness: Tensor) -> Tensor:
    """Return v^2 - a v w + a w^2 with a = eta lambda: the energy that steps without friction (mu = 1) preserve.

    With u = v - a w and w_next = w + u it is u^2 - a u w_next + a w_next^2 = u^2 + a u w + a w^2; substitute u.
    """
    return v.square() - stiffness * v * w + stiffness * w.square()


def momentum_range(
    *,
    rate: Annotated[float, Field(gt=0)],
    curvatures: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1, max_length=6)],
    shown: Annotated[list[Annotated[float, Field(ge=-2, le=2)]], Field(min_length=1, max_length=len(PALETTE))],
    lowest: Annotated[float, Field(ge=-2)],
    highest: Annotated[float, Field(le=2)],
    points: Annotated[int, Field(ge=3, le=100_000)],
    steps: Annotated[int, Field(ge=200, le=1_000_000)],
) -> Answer:
    """Measure the heavy ball's rate for momenta from ``lowest`` to ``highest``; compare it with the spectral radius."""
    if lowest >= highest:
        raise UsageError(f"study.lowest={lowest:g}: must be below study.highest={highest:g}")
    stiffness = rate * torch.tensor(curvatures, dtype=torch.float64)
    if not ((stiffness >= 1e-6) & (stiffness <= 10)).all():
        raise UsageError(
            f"study.rate={rate:g}: its product with each of study.curvatures={curvatures} must be from 1e-6 to 10"
        )
    mu = torch.linspace(lowest, highest, points, dtype=torch.float64)
    radius = spectral_radius(mu[:, None], stiffness)
    measured = measured_rate(heavy_ball(mu, stiffness, steps)[1])
    by_eigenvalues = torch.linalg.eigvals(iteration_matrix(mu[:, None], stiffness)).abs().amax(-1)

    grid_mu = torch.linspace(-1.4985, 1.4985, 300, dtype=torch.float64)  # no grid point is on a border
    grid_stiffness = torch.linspace(0.01 * math.pi / 3, 4.999, 200, dtype=torch.float64)
    map_radius = spectral_radius(grid_mu[:, None], grid_stiffness)
    predicted = stable(grid_mu[:, None], grid_stiffness)

    gentle = stiffness[stiffness < 4]
    directions, logarithms = heavy_ball(torch.ones(1, dtype=torch.float64), gentle, steps)
    w, v = (directions * logarithms.exp()[..., None]).unbind(-1)
    energy = invariant(w, v, gentle) / gentle
    checks = [
        at_most(
            "spectral radius: largest difference between formula and eigenvalues",
            float((radius - by_eigenvalues).abs().max()),
            1e-6,
        ),
        at_most(
            "factor per step: largest |measured - spectral radius| / max(spectral radius, 0.1)",
            float(((measured - radius).abs() / radius.clamp(min=0.1)).max()),
            10 / steps,
        ),
        equal(
            "pairs of momentum and step size with incorrectly predicted stability",
            int(((map_radius < 1) != predicted).sum()),
            0,
        ),
    ]
    if len(gentle):
        # Rounding of a step changes the energy by epsilon times the condition of the quadratic form, about
        # (1 + a)^2 / (a (1 - a / 4)).
        rounding = steps * 1e-15 * (1 + gentle).square() / (gentle * (1 - gentle / 4))
        change = float(((energy - 1).abs() / rounding).max())
        checks.append(
            at_most("mu = 1: largest relative change of the energy, divided by the rounding bound", change, 1.0)
        )
    best = radius.amax(-1).argmin()
    return Answer(
        numbers={
            "best_momentum": float(mu[best]),
            "best_factor_per_step": float(radius.amax(-1)[best]),
            "factor_per_step_without_momentum": float(spectral_radius(torch.zeros(1, dtype=mu.dtype), stiffness).max()),
        },
        checks=checks,
        tables={
            "rates": [
                {"momentum": momentum, "curvature": curvature, "measured": factor, "spectral_radius": expected}
                for momentum, factors, radii in zip(mu.tolist(), measured.tolist(), radius.tolist(), strict=True)
                for curvature, factor, expected in zip(curvatures, factors, radii, strict=True)
            ]
        },
        figures={
            "trajectories": _plot_trajectories(shown, stiffness),
            "spectral_radius": _plot_radius(mu, radius, measured, stiffness),
            "stability": _plot_stability(grid_mu, grid_stiffness, map_radius),
        },
    )


def _plot_trajectories(shown: list[float], stiffness: Tensor, steps: int = 80) -> Figure:
    flat = stiffness.min()[None]
    directions, logarithms = heavy_ball(torch.tensor(shown, dtype=torch.float64), flat, steps)
    w, v = (directions * logarithms.exp()[..., None])[:, :, 0].unbind(-1)
    energy = w.square() / 2 + v.square() / (2 * flat)
    figure, (left, right) = new_figure(
        2,
        title="momentum_range: the heavy ball with and without friction",
        subtitle=f"along the flattest direction, eta lambda = {float(flat):g}, from w = 1, v = 0",
        panel_inches=3.3,
    )
    for color, mu, path, total in zip(PALETTE, shown, w.T, energy.T, strict=False):
        left.plot(path, color=color, linewidth=1.3, label=f"mu = {mu:g}")
        right.semilogy(total, color=color, linewidth=1.3, label=f"mu = {mu:g}")
    left.set_ylim(-2.2, 2.2)
    floor = max(float(energy.min()), 1e-8)
    right.set_ylim(floor / 2, min(float(energy.max()), 1e6) * 2)
    label(left, x="step", y="w")
    left.get_legend().remove()  # type: ignore[union-attr]  # the legend of the other panel is the same
    label(right, x="step", y="energy w^2 / 2 + v^2 / (2 eta lambda)", place="lower left")
    return figure


def _plot_radius(mu: Tensor, radius: Tensor, measured: Tensor, stiffness: Tensor) -> Figure:
    figure, (axes,) = new_figure(
        1,
        title="momentum_range: factor per step against momentum",
        subtitle="lines: spectral radius of the iteration; points: measured on runs; below 1 the run converges",
        panel_inches=3.6,
    )
    for i, value in enumerate(stiffness.tolist()):
        axes.plot(mu, radius[:, i], color=PALETTE[i], linewidth=1.6, label=f"eta lambda = {value:g}")
        axes.plot(mu, measured[:, i], "o", color=PALETTE[i], markersize=3.5)
    axes.axhline(1.0, color=COLORS["reference"], linestyle="--", linewidth=1.0)
    label(axes, x="momentum mu", y="factor per step")
    return figure


def _plot_stability(mu: Tensor, stiffness: Tensor, radius: Tensor) -> Figure:
    figure, (axes,) = new_figure(
        1,
        title="momentum_range: which momenta and step sizes converge",
        subtitle="the spectral radius is below 1 inside the black border, |mu| < 1 and eta lambda < 2 (1 + mu)",
        panel_inches=3.6,
    )
    contours = axes.contourf(
        mu.numpy(),
        stiffness.numpy(),
        radius.T.numpy(),
        levels=[0.1 * i for i in range(16)],
        cmap="cividis",
        extend="max",
    )
    figure.colorbar(contours, ax=axes, label="spectral radius")
    axes.plot([-1, 1, 1], [0, 4, 0], color="black", linewidth=2.0, label="border")
    label(axes, x="momentum mu", y="eta lambda", place="upper left")
    return figure
