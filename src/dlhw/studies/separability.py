"""Two sets of points: their convex hulls intersect exactly when no hyperplane separates the sets (C2.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import linprog
from scipy.spatial import ConvexHull

from dlhw.errors import UsageError
from dlhw.intervals import score_interval
from dlhw.runtime.randomness import generator
from dlhw.storage.answer import Answer, at_most, equal
from dlhw.views.plots import COLORS, PALETTE, TEXT_POINTS, label, new_figure

Array = NDArray[np.float64]

TOLERANCE = 1e-8
"""Two hulls intersect if their distance is at most this. The solver works to 1e-10 and the points have size 1 to 100,
so that a distance of zero is computed as less than this. The study reports the nearest values on either side of it."""

_SOLVER = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}

SHIFT = 2.0**-16
"""The distance by which touching pairs are moved apart: exact in float64, and far above TOLERANCE."""


@dataclass(frozen=True)
class NearestPoints:
    """The nearest points of two hulls, as convex combinations, and their distance in the maximum norm."""

    weights_x: Array
    """Convex coefficients (n,) of the points x."""
    weights_y: Array
    """Convex coefficients (k,) of the points y."""
    gap: float

    @property
    def intersect(self) -> bool:
        """Whether the hulls have a common point."""
        return self.gap <= TOLERANCE


@dataclass(frozen=True)
class Hyperplane:
    """A hyperplane w.x + w0 = 0 with sum |w_i| <= 1; its margin is min(w.x + w0, -(w.y + w0)) over all points."""

    w: Array
    w0: float
    margin: float

    @property
    def separates(self) -> bool:
        """Whether all x are on one side and all y on the other."""
        return 2 * self.margin > TOLERANCE


def _solve(cost: Array, **program: Any) -> Array:
    """Return the solution of a linear program that has one."""
    result = linprog(cost, options=_SOLVER, **program)
    if not result.success:
        raise UsageError(f"study.distances: the solver failed, {result.message.splitlines()[0]}; use smaller distances")
    solution: Array = result.x
    return solution


def nearest_points(x: Array, y: Array) -> NearestPoints:
    """Return nearest points of the hulls of x (n, D) and y (k, D): min over convex a, b of max_i |(X^T a - Y^T b)_i|.

    This is a linear program in (a, b, t): minimize t subject to -t <= X^T a - Y^T b <= t in each coordinate. The gap is
    recomputed from a and b after they are made exact convex coefficients, so that it does not rely on the solver.
    """
    n, (k, dimension) = len(x), y.shape
    difference, slack = np.hstack((x.T, -y.T)), np.full((dimension, 1), -1.0)
    solution = _solve(
        np.r_[np.zeros(n + k), 1.0],
        A_ub=np.block([[difference, slack], [-difference, slack]]),
        b_ub=np.zeros(2 * dimension),
        A_eq=np.array([[1.0] * n + [0.0] * (k + 1), [0.0] * n + [1.0] * k + [0.0]]),
        b_eq=np.ones(2),
    )
    weights_x, weights_y = (np.clip(part, 0, None) for part in (solution[:n], solution[n : n + k]))
    weights_x, weights_y = weights_x / weights_x.sum(), weights_y / weights_y.sum()
    return NearestPoints(weights_x, weights_y, float(np.abs(weights_x @ x - weights_y @ y).max()))


def hyperplane(x: Array, y: Array) -> Hyperplane:
    """Return the hyperplane with the widest margin between the points x and the points y.

    Maximize m subject to w.x + w0 >= m for all x, w.y + w0 <= -m for all y, and sum |w_i| <= 1. This is a linear
    program in (w, u, w0, m), where u bounds |w|. It always has the solution w = 0, m = 0, so m > 0 means that a
    separating hyperplane exists. For convex combinations p of x and q of y, w.p + w0 >= m and w.q + w0 <= -m give 2 m
    <= w.(p - q) <= max_i |p_i - q_i|: if the hulls intersect, the margin is zero (C2.2). The two linear programs are
    duals of each other, so the maximum of 2 m is the minimum distance: if the hulls are disjoint, the margin is
    positive.
    """
    dimension = x.shape[1]
    eye, none = np.eye(dimension), np.zeros((dimension, 2))
    solution = _solve(
        np.r_[np.zeros(2 * dimension + 1), -1.0],
        A_ub=np.block(
            [
                [-x, np.zeros_like(x), -np.ones((len(x), 1)), np.ones((len(x), 1))],
                [y, np.zeros_like(y), np.ones((len(y), 1)), np.ones((len(y), 1))],
                [eye, -eye, none],
                [-eye, -eye, none],
                [np.zeros((1, dimension)), np.ones((1, dimension)), np.zeros((1, 2))],
            ]
        ),
        b_ub=np.r_[np.zeros(len(x) + len(y) + 2 * dimension), 1.0],
        bounds=[(None, None)] * dimension + [(0, None)] * dimension + [(None, None)] * 2,
    )
    w, w0 = solution[:dimension], float(solution[2 * dimension])
    w = w / max(1.0, np.abs(w).sum())
    return Hyperplane(w, w0, float(min((x @ w + w0).min(), -(y @ w + w0).max())))


def touching(kind: str, points: int, dimension: int, source: torch.Generator) -> tuple[Array, Array]:
    """Draw a pair of point sets on either side of a tilted wall, x in front, that intersect only in the wall.

    All coordinates are small multiples of 1/16, which float64 adds and doubles without rounding, so the sets touch
    exactly. ``kind`` is "vertex on vertex", "vertex on edge" or "edge on edge". Adding to the first coordinate moves x
    away from the wall.
    """

    def eighths(count: int) -> Array:
        numbers: Array = (torch.randint(-16, 17, (count, dimension), generator=source) / 8).to(torch.float64).numpy()
        return numbers

    x, y, edge = eighths(points), eighths(points), eighths(2)
    x[:, 0], y[:, 0], edge[:, 0] = 1 + np.abs(x[:, 0]), -1 - np.abs(y[:, 0]), 0
    middle = edge.mean(axis=0)
    if kind == "vertex on vertex":
        x[0] = y[0] = edge[0]
    elif kind == "vertex on edge":
        x[:2], y[0] = edge, middle
    else:
        x[:2], y[:2] = edge, (middle, 2 * edge[1] - middle)
    tilt = torch.randint(-2, 3, (dimension - 1,), generator=source).to(torch.float64).numpy()
    x[:, 0], y[:, 0] = x[:, 0] + x[:, 1:] @ tilt, y[:, 0] + y[:, 1:] @ tilt
    return x, y


KINDS = ("vertex on vertex", "vertex on edge", "edge on edge")


def separability(
    *,
    dimension: Annotated[int, Field(ge=2, le=1000)],
    points: Annotated[list[Annotated[int, Field(ge=2, le=10_000)]], Field(min_length=1)],
    distances: Annotated[list[Annotated[float, Field(ge=0, le=100)]], Field(min_length=1)],
    draws: Annotated[int, Field(ge=1, le=100_000)],
    touching_draws: Annotated[int, Field(ge=1, le=100_000)],
    seed: int,
) -> Answer:
    """Solve both linear programs on many pairs of sets: separated, overlapping and touching."""
    rows: list[dict[str, Any]] = []
    drawn: list[tuple[NearestPoints, Hyperplane]] = []
    for count in dict.fromkeys(points):
        for distance in dict.fromkeys(distances):
            source = generator(seed, "separability", count, repr(distance))
            clouds = torch.randn(draws, 2, count, dimension, dtype=torch.float64, generator=source)
            clouds[:, 0, :, 0] += distance
            pairs = [(nearest_points(x, y), hyperplane(x, y)) for x, y in clouds.numpy()]
            drawn += pairs
            separable = sum(plane.separates for _, plane in pairs)
            low, high = score_interval(separable, draws)
            share = {"separable": separable / draws, "low": low, "high": high}
            rows.append({"points": count, "distance": distance, "draws": draws, **share})
    cases = {"drawn": drawn}
    for kind in KINDS:
        source = generator(seed, "separability", kind)
        touching_pairs = [touching(kind, max(3, points[0]), dimension, source) for _ in range(touching_draws)]
        shift = np.eye(dimension)[0] * SHIFT
        cases[f"{kind}, touching"] = [(nearest_points(x, y), hyperplane(x, y)) for x, y in touching_pairs]
        cases[f"{kind}, moved apart"] = [
            (nearest_points(x + shift, y), hyperplane(x + shift, y)) for x, y in touching_pairs
        ]
    table = [_outcomes(name, pairs) for name, pairs in cases.items()]
    all_pairs = [pair for pairs in cases.values() for pair in pairs]
    agreed = sum(near.intersect != plane.separates for near, plane in all_pairs)
    gaps = np.array([near.gap for near, _ in all_pairs])
    return Answer(
        numbers={
            "pairs": len(all_pairs),
            "separable_of_drawn": table[0]["separable"] / len(drawn),
            "largest_gap_called_zero": float(max(gaps[gaps <= TOLERANCE], default=0.0)),
            "smallest_gap_called_positive": float(min(gaps[gaps > TOLERANCE], default=math.inf)),
        },
        checks=[
            equal(
                "pairs with either intersecting hulls or a separating hyperplane, but not both (C2.2)",
                agreed,
                len(gaps),
            ),
            at_most(
                "largest difference between the gap and twice the margin (duality)",
                max(abs(near.gap - 2 * plane.margin) for near, plane in all_pairs),
                TOLERANCE,
            ),
            equal("touching pairs that a hyperplane separates", _separated(cases, "touching"), 0),
            equal(
                "touching pairs that a hyperplane separates after moving them apart by 2^-16",
                _separated(cases, "apart"),
                len(KINDS) * touching_draws,
            ),
        ],
        tables={"cases": table, "distances": rows},
        figures={"pairs": _pairs(generator(seed, "separability", "figure")), "fractions": _fractions(rows, dimension)},
    )


def _separated(cases: dict[str, list[tuple[NearestPoints, Hyperplane]]], ending: str) -> int:
    return sum(plane.separates for name, pairs in cases.items() if name.endswith(ending) for _, plane in pairs)


def _outcomes(name: str, pairs: Sequence[tuple[NearestPoints, Hyperplane]]) -> dict[str, Any]:
    return {
        "pairs": name,
        "count": len(pairs),
        "hulls_meet": sum(near.intersect for near, _ in pairs),
        "separable": sum(plane.separates for _, plane in pairs),
        "largest_difference": max(abs(near.gap - 2 * plane.margin) for near, plane in pairs),
    }


def _fractions(rows: list[dict[str, Any]], dimension: int) -> Figure:
    figure, (axes,) = new_figure(
        1,
        title="separability: how often a hyperplane separates two normal point sets",
        subtitle=f"{dimension} dimensions, {rows[0]['draws']} pairs per point; bars: 95 % Wilson intervals",
    )
    counts = list(dict.fromkeys(row["points"] for row in rows))
    for i, count in enumerate(counts):
        selected = sorted((row for row in rows if row["points"] == count), key=lambda row: row["distance"])
        shares = np.array([row["separable"] for row in selected])
        bars = np.stack((shares - [row["low"] for row in selected], [row["high"] for row in selected] - shares))
        axes.errorbar(
            [row["distance"] for row in selected],
            shares,
            yerr=bars.clip(min=0),
            color=PALETTE[i % len(PALETTE)],
            marker="os^vD"[i % 5],
            markersize=4,
            linewidth=1.3,
            capsize=2,
            label=f"{count} points in each set",
        )
    axes.set_ylim(-0.03, 1.03)
    label(axes, x="distance of the centres (standard deviations)", y="fraction of pairs that are separable")
    return figure


def _pairs(source: torch.Generator) -> Figure:
    """Plot a separable, a touching and an intersecting pair in the plane, with the proof of each."""
    x = torch.randn(8, 2, dtype=torch.float64, generator=source).clamp(-1.8, 1.8).numpy()
    y = torch.randn(8, 2, dtype=torch.float64, generator=source).clamp(-1.8, 1.8).numpy()
    apart, near = np.array([2.4, 1.2]), np.array([0.2, 0.1])
    corner = np.array([[0.25, 1.25], [-2.0, 1.5], [-1.5, -0.5]])  # a quarter of the way along the other set's edge
    shown = [
        (x + apart, y - apart),
        (np.array([[0.0, 2.0], [1.0, -1.0], [2.5, 1.5]]), corner),
        (x + near, y - near),
    ]
    figure, all_axes = new_figure(
        3,
        title="separability: a margin, or a common point of the hulls",
        subtitle="line: the hyperplane of the widest margin (|w1| + |w2| = 1); star: a common point; numbers: its "
        "convex coefficients in either set; middle panel: the sets touch",
        panel_inches=2.6,
    )
    for axes, (first, second) in zip(all_axes, shown, strict=True):
        nearest, plane = nearest_points(first, second), hyperplane(first, second)
        for cloud, weights, color, marker in (
            (first, nearest.weights_x, PALETTE[0], "o"),
            (second, nearest.weights_y, PALETTE[1], "s"),
        ):
            corners = cloud[ConvexHull(cloud).vertices]
            axes.fill(*corners.T, color=color, alpha=0.18, linewidth=0)
            axes.plot(*cloud.T, marker, color=color, markersize=4)
            for point, weight in zip(cloud, weights, strict=True):
                if nearest.intersect and weight > 1e-9:
                    side: dict[str, Any] = (
                        {"ha": "left", "xytext": (4, 3)} if marker == "o" else {"ha": "right", "xytext": (-5, -9)}
                    )
                    note = f"{weight:.2f}"
                    axes.annotate(note, point, textcoords="offset points", fontsize=8, color=color, **side)
        axes.margins(0.12)
        axes.set_aspect("equal", adjustable="datalim")
        title = "separable" if plane.separates else "common point: not separable"
        if plane.separates:
            _line(axes, plane)
        else:
            axes.plot(*(nearest.weights_x @ first), "*", color="black", markersize=10, zorder=4)
        axes.set_title(title, fontsize=TEXT_POINTS)
        label(axes, x="first coordinate", y="second coordinate" if axes is all_axes[0] else "")
    return figure


def _line(axes: Axes, plane: Hyperplane) -> None:
    look: dict[str, Any] = {"color": COLORS["reference"], "linewidth": 1.3}
    for level, style in ((0.0, "-"), (plane.margin, ":"), (-plane.margin, ":")):
        foot = plane.w * (level - plane.w0) / (plane.w @ plane.w)
        across = np.array([-plane.w[1], plane.w[0]]) / np.linalg.norm(plane.w)
        axes.axline((foot[0], foot[1]), (foot[0] + across[0], foot[1] + across[1]), **look, linestyle=style)
