"""Two sets of points: their convex hulls meet exactly when no hyperplane separates them (C2.2)."""

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
from dlhw.runs.answer import Answer, at_most, equal
from dlhw.runtime.randomness import generator
from dlhw.views.plots import COLORS, PALETTE, TEXT_POINTS, label, new_figure

Array = NDArray[np.float64]

TOLERANCE = 1e-8
"""Hulls this near to each other are said to meet. The solver works to 1e-10 and the points are of size 1 to 100, so
what is zero comes out below it; the study tells how far from it, on either side, the values that occurred are."""

_SOLVER = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}

SHIFT = 2.0**-16
"""How far touching pairs are moved apart: exact in float64, and far above TOLERANCE."""


@dataclass(frozen=True)
class Meeting:
    """The nearest points of two hulls: their convex coefficients, and their distance as the largest coordinate's."""

    of_x: Array
    of_y: Array
    gap: float

    @property
    def meets(self) -> bool:
        """Whether there is a common point."""
        return self.gap <= TOLERANCE


@dataclass(frozen=True)
class Hyperplane:
    """w and w0 with the sum of |w_i| at most 1, and the least of w.x + w0 over x and -(w.y + w0) over y."""

    w: Array
    w0: float
    margin: float

    @property
    def separates(self) -> bool:
        """Whether all x are on one side and all y on the other."""
        return 2 * self.margin > TOLERANCE


def _solved(cost: Array, **program: Any) -> Array:
    """The solution of a linear program that has one."""
    found = linprog(cost, options=_SOLVER, **program)
    if not found.success:
        raise UsageError(f"study.distances: the solver fails, {found.message.splitlines()[0]}; take smaller ones")
    solution: Array = found.x
    return solution


def meeting(x: Array, y: Array) -> Meeting:
    """Nearest points of the hulls of x (n, D) and y (k, D): min over convex a, b of max_i |(X'a - Y'b)_i|.

    A linear program in (a, b, t): t is least such that -t <= X'a - Y'b <= t in each coordinate. The gap is
    computed again from a and b, made convex coefficients exactly, so that no claim of the solver is taken on trust.
    """
    n, (k, dimension) = len(x), y.shape
    difference, slack = np.hstack((x.T, -y.T)), np.full((dimension, 1), -1.0)
    found = _solved(
        np.r_[np.zeros(n + k), 1.0],
        A_ub=np.block([[difference, slack], [-difference, slack]]),
        b_ub=np.zeros(2 * dimension),
        A_eq=np.array([[1.0] * n + [0.0] * (k + 1), [0.0] * n + [1.0] * k + [0.0]]),
        b_eq=np.ones(2),
    )
    of_x, of_y = (np.clip(part, 0, None) for part in (found[:n], found[n : n + k]))
    of_x, of_y = of_x / of_x.sum(), of_y / of_y.sum()
    return Meeting(of_x, of_y, float(np.abs(of_x @ x - of_y @ y).max()))


def hyperplane(x: Array, y: Array) -> Hyperplane:
    """The widest margin: max of m with w.x + w0 >= m for all x, w.y + w0 <= -m for all y, and sum |w_i| <= 1.

    A linear program in (w, u, w0, m), u bounding |w|. With w = 0 it has m = 0, so m > 0 says that a separating
    hyperplane exists. For convex p of x and q of y, w.p + w0 >= m and w.q + w0 <= -m give
    2 m <= w.(p - q) <= max_i |p_i - q_i|: hulls that meet leave no margin (C2.2). The two linear programs are each
    other's duals, so the largest 2 m is the least distance: hulls that do not meet leave one.
    """
    dimension = x.shape[1]
    eye, none = np.eye(dimension), np.zeros((dimension, 2))
    found = _solved(
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
    w, w0 = found[:dimension], float(found[2 * dimension])
    w = w / max(1.0, np.abs(w).sum())
    return Hyperplane(w, w0, float(min((x @ w + w0).min(), -(y @ w + w0).max())))


def touching(kind: str, points: int, dimension: int, source: torch.Generator) -> tuple[Array, Array]:
    """A pair on either side of a tilted wall, x in front, that meets in the wall and nowhere else.

    All coordinates are small multiples of 1/16, which float64 adds and doubles without rounding: they touch exactly.
    ``kind`` is "vertex on vertex", "vertex on edge" or "edge on edge". Moved along the first axis, x leaves the wall.
    """

    def eighths(count: int) -> Array:
        drawn: Array = (torch.randint(-16, 17, (count, dimension), generator=source) / 8).to(torch.float64).numpy()
        return drawn

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


def wilson(successes: float, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval for a probability: all p with |successes / trials - p| <= z sqrt(p (1 - p) / trials)."""
    share, spread = successes / trials, z**2 / trials
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return (share + spread / 2 - half) / (1 + spread), (share + spread / 2 + half) / (1 + spread)


def separability(
    *,
    dimension: Annotated[int, Field(ge=2)],
    points: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1)],
    distances: Annotated[list[Annotated[float, Field(ge=0, le=100)]], Field(min_length=1)],
    draws: Annotated[int, Field(ge=1)],
    touching_draws: Annotated[int, Field(ge=1)],
    seed: int,
) -> Answer:
    """Both linear programs on many pairs, far apart, overlapping and touching."""
    rows: list[dict[str, Any]] = []
    found: list[tuple[Meeting, Hyperplane]] = []
    for count in dict.fromkeys(points):
        for distance in dict.fromkeys(distances):
            source = generator(seed, "separability", count, repr(distance))
            clouds = torch.randn(draws, 2, count, dimension, dtype=torch.float64, generator=source)
            clouds[:, 0, :, 0] += distance
            pairs = [(meeting(x, y), hyperplane(x, y)) for x, y in clouds.numpy()]
            found += pairs
            separable = sum(plane.separates for _, plane in pairs)
            low, high = wilson(separable, draws)
            share = {"separable": separable / draws, "low": low, "high": high}
            rows.append({"points": count, "distance": distance, "draws": draws, **share})
    cases = {"drawn": found}
    for kind in KINDS:
        source = generator(seed, "separability", kind)
        touched = [touching(kind, max(3, points[0]), dimension, source) for _ in range(touching_draws)]
        away = np.eye(dimension)[0] * SHIFT
        cases[f"{kind}, touching"] = [(meeting(x, y), hyperplane(x, y)) for x, y in touched]
        cases[f"{kind}, moved apart"] = [(meeting(x + away, y), hyperplane(x + away, y)) for x, y in touched]
    table = [_counted(name, pairs) for name, pairs in cases.items()]
    everything = [pair for pairs in cases.values() for pair in pairs]
    agreed = sum(near.meets != plane.separates for near, plane in everything)
    gaps = np.array([near.gap for near, _ in everything])
    return Answer(
        numbers={
            "pairs": len(everything),
            "separable_of_drawn": table[0]["separable"] / len(found),
            "largest_gap_called_zero": float(max(gaps[gaps <= TOLERANCE], default=0.0)),
            "smallest_gap_called_positive": float(min(gaps[gaps > TOLERANCE], default=math.inf)),
        },
        checks=[
            equal("pairs of which either the hulls meet or a hyperplane separates, not both (C2.2)", agreed, len(gaps)),
            at_most(
                "largest difference of the gap and twice the margin (duality)",
                max(abs(near.gap - 2 * plane.margin) for near, plane in everything),
                TOLERANCE,
            ),
            equal("touching pairs that a hyperplane separates", _separated(cases, "touching"), 0),
            equal("of these moved apart by 2^-16", _separated(cases, "apart"), len(KINDS) * touching_draws),
        ],
        tables={"cases": table, "distances": rows},
        figures={"pairs": _pairs(generator(seed, "separability", "figure")), "fractions": _fractions(rows, dimension)},
    )


def _separated(cases: dict[str, list[tuple[Meeting, Hyperplane]]], ending: str) -> int:
    return sum(plane.separates for name, pairs in cases.items() if name.endswith(ending) for _, plane in pairs)


def _counted(name: str, pairs: Sequence[tuple[Meeting, Hyperplane]]) -> dict[str, Any]:
    return {
        "pairs": name,
        "count": len(pairs),
        "hulls_meet": sum(near.meets for near, _ in pairs),
        "separable": sum(plane.separates for _, plane in pairs),
        "largest_difference": max(abs(near.gap - 2 * plane.margin) for near, plane in pairs),
    }


def _fractions(rows: list[dict[str, Any]], dimension: int) -> Figure:
    figure, (axes,) = new_figure(
        1,
        title="separability: how often a hyperplane separates two normal point sets",
        subtitle=f"{dimension} dimensions, {rows[0]['draws']} pairs per point; bars: Wilson's 95 % intervals",
    )
    counts = list(dict.fromkeys(row["points"] for row in rows))
    for i, count in enumerate(counts):
        mine = sorted((row for row in rows if row["points"] == count), key=lambda row: row["distance"])
        shares = np.array([row["separable"] for row in mine])
        bars = np.stack((shares - [row["low"] for row in mine], [row["high"] for row in mine] - shares))
        axes.errorbar(
            [row["distance"] for row in mine],
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
    """A separable, a touching and an intersecting pair in the plane, with what proves it."""
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
        subtitle="line: the hyperplane of the widest margin (|w1| + |w2| = 1); star: the common point, beside points "
        "the convex coefficients that make it of either set; in the middle the sets touch",
        panel_inches=2.6,
    )
    for axes, (first, second) in zip(all_axes, shown, strict=True):
        nearest, plane = meeting(first, second), hyperplane(first, second)
        for cloud, weights, color, marker in (
            (first, nearest.of_x, PALETTE[0], "o"),
            (second, nearest.of_y, PALETTE[1], "s"),
        ):
            corners = cloud[ConvexHull(cloud).vertices]
            axes.fill(*corners.T, color=color, alpha=0.18, linewidth=0)
            axes.plot(*cloud.T, marker, color=color, markersize=4)
            for point, weight in zip(cloud, weights, strict=True):
                if nearest.meets and weight > 1e-9:
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
            axes.plot(*(nearest.of_x @ first), "*", color="black", markersize=10, zorder=4)
        axes.set_title(title, fontsize=TEXT_POINTS)
        label(axes, x="first coordinate", y="second coordinate" if axes is all_axes[0] else "")
    return figure


def _line(axes: Axes, plane: Hyperplane) -> None:
    look: dict[str, Any] = {"color": COLORS["reference"], "linewidth": 1.3}
    for level, style in ((0.0, "-"), (plane.margin, ":"), (-plane.margin, ":")):
        foot = plane.w * (level - plane.w0) / (plane.w @ plane.w)
        across = np.array([-plane.w[1], plane.w[0]]) / np.linalg.norm(plane.w)
        axes.axline((foot[0], foot[1]), (foot[0] + across[0], foot[1] + across[1]), **look, linestyle=style)
