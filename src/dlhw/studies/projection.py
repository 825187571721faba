"""Least squares as an orthogonal projection onto the column space (C2.1)."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pydantic import Field
from torch import Tensor

from dlhw.errors import UsageError
from dlhw.runtime.randomness import generator
from dlhw.storage.answer import Answer, at_most, equal
from dlhw.views.plots import COLORS, PALETTE, TEXT_POINTS, label, new_figure

Vector = Annotated[list[float], Field(min_length=3, max_length=3)]

CONDITION = 100.0
"""Maximum ratio of the nonzero singular values drawn; its square costs four of float64's sixteen digits."""

RANK_TOLERANCE = 1e-9
"""Singular values below this fraction of the largest count as zero; drawn ones are far above or far below it."""


def solver(x: Tensor) -> Tensor:
    """Return (X^T X)^+ X^T, (draws, D, N): the map from y to theta*, the shortest minimizer of ||y - X theta||.

    ||y - X theta||^2 is convex with the gradient -2 X^T (y - X theta), so it is minimal exactly where the normal
    equations X^T X theta = X^T y hold. They have a solution for every y, as the range of X^T X is that of X^T.

    Args:
        x: (draws, N, D).
    """
    inverse: Tensor = torch.linalg.pinv(x.mT @ x, rtol=RANK_TOLERANCE, hermitian=True)
    return inverse @ x.mT


def projector(x: Tensor) -> Tensor:
    """Return P = X (X^T X)^+ X^T, (draws, N, N): the map from y to yhat = X theta*.

    P is symmetric, P P = X (X^T X)^+ X^T X (X^T X)^+ X^T = P, and P X = X: it preserves the column space. So it is the
    orthogonal projection: X^T (y - P y) = (X - P X)^T y = 0.
    """
    onto: Tensor = x @ solver(x)
    return onto


def onto_columns(x: Tensor) -> Tensor:
    """Return U U^T, (draws, N, N), the orthogonal projection onto the column space by an orthonormal basis.

    U contains the left singular vectors of X whose singular values are not zero. U U^T y is the sum of the components
    of y along them. It does not involve least squares.
    """
    basis, sizes, _ = torch.linalg.svd(x, full_matrices=False)
    basis = basis * (sizes > RANK_TOLERANCE * sizes[..., :1])[..., None, :]
    onto: Tensor = basis @ basis.mT
    return onto


def applied(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return the product of each matrix with its vector: (draws, M, N) and (draws, N) give (draws, M)."""
    return (matrix @ vector[..., None])[..., 0]


def draw(draws: int, points: int, features: int, *, rank: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw X (draws, N, D) of the given rank and a normal y (draws, N).

    X = Q diag(s) R^T with orthonormal columns in Q and R. The singular values s lie between 1 / CONDITION and 1,
    uniform on a log scale.
    """

    def orthonormal(size: int) -> Tensor:
        normal = torch.randn(draws, size, rank, dtype=torch.float64, generator=source)
        columns: Tensor = torch.linalg.qr(normal).Q
        return columns

    sizes = CONDITION ** -torch.rand(draws, 1, rank, dtype=torch.float64, generator=source)
    x = (orthonormal(points) * sizes) @ orthonormal(features).mT
    return x, torch.randn(draws, points, dtype=torch.float64, generator=source)


def gaps(x: Tensor, y: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
    """Return by how much other points z of the column space are farther from y than yhat, measured and by Pythagoras.

    For z = X (theta* + m), z - yhat = X m lies in the column space and y - yhat is orthogonal to it, so
    ||y - z||^2 - ||y - yhat||^2 = ||X m||^2, which is never negative.

    Args:
        x: (draws, N, D).
        y: (draws, N).
        moves: (draws, candidates, D), the m.

    Returns:
        Both sides, (draws, candidates), relative to ||y||^2.
    """
    theta = applied(solver(x), y)
    shift = moves @ x.mT
    residual = y - applied(x, theta)
    others = y[:, None] - (theta[:, None] + moves) @ x.mT
    size = y.square().sum(-1)[:, None]
    return (others.square().sum(-1) - residual.square().sum(-1)[:, None]) / size, shift.square().sum(-1) / size


def projection(
    *,
    points: Annotated[int, Field(ge=2, le=10_000)],
    features: Annotated[int, Field(ge=1, le=10_000)],
    ranks: Annotated[list[Annotated[int, Field(ge=1, le=10_000)]], Field(min_length=1)],
    draws: Annotated[int, Field(ge=1, le=100_000)],
    candidates: Annotated[int, Field(ge=1, le=100_000)],
    columns: Annotated[list[Vector], Field(min_length=2, max_length=2)],
    target: Vector,
    seed: int,
) -> Answer:
    """Compute residuals, projection matrices and candidates for many drawn problems, of full and of deficient rank."""
    if max(ranks) > min(points, features):
        raise UsageError(
            f"study.ranks={ranks}: a {points} x {features} matrix cannot have rank {max(ranks)}; "
            f"must be at most {min(points, features)}"
        )
    if len(set(ranks)) < len(ranks):
        raise UsageError(f"study.ranks={ranks}: must not contain duplicates")
    rows, measured, predicted = [], [], []
    for rank in ranks:
        source = generator(seed, "projection", rank)
        x, y = draw(draws, points, features, rank=rank, source=source)
        theta, p, onto = applied(solver(x), y), projector(x), onto_columns(x)
        yhat = applied(x, theta)
        residual = y - yhat
        directions = x / x.norm(dim=-2, keepdim=True)
        moves = torch.randn(draws, candidates, features, dtype=x.dtype, generator=source)
        # distances from theta* between 1e-4 and 10, uniform on a log scale
        moves = moves * 10 ** torch.empty(draws, candidates, 1, dtype=x.dtype).uniform_(-4, 1, generator=source)
        measured_gaps, theory = gaps(x, y, moves)
        measured.append(measured_gaps)
        predicted.append(theory)
        size = y.norm(dim=-1)
        rows.append(
            {
                "rank": rank,
                "draws": draws,
                "residual_by_columns": (applied(directions.mT, residual).abs().amax(-1) / size).max().item(),
                "residual_by_yhat": ((residual * yhat).sum(-1).abs() / size.square()).max().item(),
                "idempotent": (p @ p - p).abs().max().item(),
                "symmetric": (p - p.mT).abs().max().item(),
                "formula_less_basis": (p - onto).abs().max().item(),
                "yhat_less_projection": (applied(onto, y) - yhat).abs().max().item(),
                "trace_less_rank": (p.diagonal(dim1=-2, dim2=-1).sum(-1) - rank).abs().max().item(),
                "pythagoras": (measured_gaps - theory).abs().max().item() / max(1.0, theory.max().item()),
                "least_gap": measured_gaps.min().item(),
            }
        )
    largest = {name: max(row[name] for row in rows) for name in rows[0]}
    nearer = sum((measured_gaps < -1e-12).sum().item() for measured_gaps in measured)
    plane, drawn = torch.tensor(columns, dtype=torch.float64).T, torch.tensor(target, dtype=torch.float64)
    if int(torch.linalg.matrix_rank(plane, rtol=1e-6)) < 2:
        raise UsageError(f"study.columns={columns}: must be two linearly independent vectors")
    return Answer(
        numbers={"residual_by_columns": largest["residual_by_columns"], "candidates": len(rows) * draws * candidates},
        checks=[
            at_most("largest |residual . column| / (|y| |column|) (C2.1)", largest["residual_by_columns"], 1e-10),
            at_most("largest |residual . yhat| / |y|^2", largest["residual_by_yhat"], 1e-10),
            at_most("largest entry of |P P - P|", largest["idempotent"], 1e-10),
            at_most("largest entry of |P - P^T|", largest["symmetric"], 1e-10),
            at_most("largest entry of |P - U U^T|", largest["formula_less_basis"], 1e-10),
            at_most("largest entry of |X theta* - U U^T y|", largest["yhat_less_projection"], 1e-10),
            at_most("largest |trace P - rank X|", largest["trace_less_rank"], 1e-10),
            equal("points of the column space nearer to y than yhat", int(nearer), 0),
            at_most("Pythagoras: largest relative difference between the two sides", largest["pythagoras"], 1e-10),
        ],
        tables={"ranks": rows},
        figures={"plane": _plot_plane(plane, drawn), "candidates": _plot_candidates(measured, predicted, ranks)},
    )


def _plot_plane(x: Tensor, y: Tensor) -> Figure:
    """Plot y in three dimensions, the plane of the two columns, yhat in it, and the residual at a right angle."""
    yhat = projector(x) @ y
    residual = y - yhat
    figure, _ = new_figure(
        0,
        columns=1,
        title="projection: yhat = X theta* is the point of the plane that is nearest to y",
        subtitle=f"three samples, two columns x1 and x2; |y - yhat| = {residual.norm():.3f}, "
        f"(y - yhat) . yhat = {residual @ yhat:.0e}",
        foot_inches=4.2,
    )
    axes: Any = figure.add_subplot(projection="3d", computed_zorder=False)
    # the part of the plane that contains all plotted points, with a margin
    theta = solver(x) @ y
    ends = [(min(0.0, t) - 0.25, max(1.0, t) + 0.25) for t in theta.tolist()]
    around = [(ends[0][i], ends[1][j]) for i, j in ((0, 0), (0, 1), (1, 1), (1, 0))]
    corners = torch.tensor(around, dtype=x.dtype) @ x.T
    axes.plot_trisurf(*corners.T.numpy(), triangles=[(0, 1, 2), (0, 2, 3)], color=PALETTE[5], alpha=0.3)
    arrows = [
        ("x1", x[:, 0], COLORS["reference"]),
        ("x2", x[:, 1], COLORS["reference"]),
        ("y", y, PALETTE[0]),
        ("yhat", yhat, PALETTE[2]),
    ]
    for name, tip, color in arrows:
        axes.quiver(0, 0, 0, *tip.tolist(), color=color, linewidth=2, arrow_length_ratio=0.08)
        axes.text(*(1.06 * tip).tolist(), name, color=color, fontsize=TEXT_POINTS + 1, fontweight="bold")
    axes.plot(*torch.stack((yhat, y)).T.numpy(), color=PALETTE[1], linewidth=2, linestyle="--")
    middle = yhat + 0.5 * residual
    axes.text(*middle.tolist(), "  y - yhat", color=PALETTE[1], fontsize=TEXT_POINTS + 1, fontweight="bold")
    if residual.norm() > 1e-9 and yhat.norm() > 1e-9:
        side = 0.12 * min(residual.norm().item(), yhat.norm().item())
        up, back = side * residual / residual.norm(), -side * yhat / yhat.norm()
        axes.plot(*torch.stack((yhat + up, yhat + up + back, yhat + back)).T.numpy(), color="black", linewidth=1.2)
    spans = [high - low for low, high in (axes.get_xlim(), axes.get_ylim(), axes.get_zlim())]
    axes.set_box_aspect(spans, zoom=1.0)
    axes.view_init(elev=32, azim=-58)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_pane_color("white")
        axis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelsize=TEXT_POINTS - 1)
    for name in "xyz":
        getattr(axes, f"set_{name}label")(f"sample {'xyz'.index(name) + 1}", fontsize=TEXT_POINTS)
    return figure


def _plot_candidates(measured: list[Tensor], predicted: list[Tensor], ranks: list[int]) -> Figure:
    figure, (axes,) = new_figure(
        1,
        title="projection: no other point of the column space is nearer to y",
        subtitle="candidates z = X theta; |y - z|^2 exceeds |y - yhat|^2 by |z - yhat|^2 (Pythagoras)",
    )
    shown = [torch.stack((theory.flatten(), gap.flatten())) for gap, theory in zip(measured, predicted, strict=True)]
    shown = [pairs[:, :: max(1, pairs.shape[1] // 400)] for pairs in shown]
    for i, (rank, pairs) in enumerate(zip(ranks, shown, strict=True)):
        axes.plot(
            *pairs.numpy(),
            marker="osv^D"[i % 5],
            markersize=3,
            linestyle="",
            markerfacecolor="none",
            color=PALETTE[i % len(PALETTE)],
            label=f"rank {rank}",
        )
    ends = [min(pairs[0].min().item() for pairs in shown), max(pairs[0].max().item() for pairs in shown)]
    axes.plot(ends, ends, color=COLORS["reference"], linewidth=1, zorder=1, label="Pythagoras: equal")
    axes.set_xscale("log")
    axes.set_yscale("log")
    label(axes, x="|z - yhat|^2 / |y|^2", y="(|y - z|^2 - |y - yhat|^2) / |y|^2")
    return figure
