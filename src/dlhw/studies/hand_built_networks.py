"""One-hidden-layer ReLU networks with weights chosen by hand, which represent functions exactly (B3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pydantic import Field
from torch import Tensor

from dlhw.errors import UsageError
from dlhw.storage.answer import Answer, Check, at_most, equal
from dlhw.views.plots import PALETTE, add_legend, label, new_figure

FUNCTION: dict[str, Any] = {"color": PALETTE[0]}
NETWORK: dict[str, Any] = {"color": PALETTE[1], "linestyle": "--", "linewidth": 1.5}
CORNERS = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64)


@dataclass(frozen=True)
class HandBuiltNetwork:
    """The function sum_j out_j relu(w_j^T x + b_j): weights (H, D), biases (H,), out (H,)."""

    weights: Tensor
    biases: Tensor
    out: Tensor

    def units(self, x: Tensor) -> Tensor:
        """Return the contribution of each hidden unit to the output: (N, D) to (N, H)."""
        return self.out * torch.relu(torch.nn.functional.linear(x, self.weights, self.biases))

    def __call__(self, x: Tensor) -> Tensor:
        return self.units(x).sum(1)


def network(weights: list[list[float]], biases: list[float], out: list[float]) -> HandBuiltNetwork:
    """Return a network in float64."""
    return HandBuiltNetwork(*(torch.tensor(values, dtype=torch.float64) for values in (weights, biases, out)))


def xnor_network() -> HandBuiltNetwork:
    """Return relu(a + b - 1) + relu(1 - a - b), B3.1.

    XNOR depends only on the sum a + b: it is 1, 0, 1 for a sum of 0, 1, 2, which is the distance |a + b - 1|. An
    absolute value is relu(u) + relu(-u), one unit for each sign.
    """
    return network([[1, 1], [-1, -1]], [-1, 1], [1, 1])


def tent_network() -> HandBuiltNetwork:
    """Return 2 relu(x) - 4 relu(x - 1/2) + 2 relu(x - 1), B3.2.

    A continuous piecewise linear function is a sum of units, one at each kink, whose weight is the change of slope
    there. The tent's slopes are 0, 2, -2, 0, so they change by 2, -4, 2 at 0, 1/2, 1.
    """
    return network([[1], [1], [1]], [0, -0.5, -1], [2, -4, 2])


def shrink_network(s: float) -> HandBuiltNetwork:
    """Return relu(x - s) - relu(-x - s), B3.3.

    For x > s the function is x - s, for x < -s it is x + s = -(-x - s), otherwise 0. Each side is one unit, which is
    zero on the other side and between the two, because s is not negative.
    """
    return network([[1], [-1]], [-s, -s], [1, -1])


def tent(x: Tensor) -> Tensor:
    """Return 2 x on [0, 1/2], 2 (1 - x) on [1/2, 1], 0 elsewhere (B3.2)."""
    rising, falling = (x >= 0) & (x <= 0.5), (x > 0.5) & (x <= 1)
    return torch.where(rising, 2 * x, torch.where(falling, 2 * (1 - x), torch.zeros_like(x)))


def shrink(x: Tensor, s: float) -> Tensor:
    """Return sign(x) max(|x| - s, 0) (B3.3)."""
    return torch.sign(x) * torch.clamp(x.abs() - s, min=0)


def with_neighbours(x: Tensor, kinks: list[float]) -> Tensor:
    """Return the points, the kinks, and the floats next to each kink on either side, sorted."""
    at = torch.tensor(kinks, dtype=x.dtype)
    infinity = torch.tensor(torch.inf, dtype=x.dtype)
    beside = [torch.nextafter(at, infinity), torch.nextafter(at, -infinity)]
    return torch.cat([x, at, *beside]).sort().values


def hand_built_networks(
    *,
    s: Annotated[float, Field(ge=0)],
    limit: Annotated[float, Field(ge=1, le=1e12)],
    points: Annotated[int, Field(ge=11, le=10_000_000)],
) -> Answer:
    """Compare each network with its function on a grid from -limit to limit, at the kinks and right beside them."""
    if s >= limit:
        raise UsageError(f"study.s={s:g}: must be less than study.limit={limit:g}, the end of the grid")
    tolerance = 16 * torch.finfo(torch.float64).eps * limit  # a few roundings of values of up to 4 limit
    grid = torch.linspace(-limit, limit, points, dtype=torch.float64)
    networks = {"XNOR": xnor_network(), "tent": tent_network(), "shrink": shrink_network(s)}
    at_corners = networks["XNOR"](CORNERS)
    pairs = torch.cartesian_prod(*[torch.linspace(-limit, limit, min(points, 201), dtype=torch.float64)] * 2)
    distance = (pairs.sum(1) - 1).abs()

    checks: list[Check] = [
        equal(f"XNOR of {a:g} and {b:g} (B3.1)", output, float(a == b))
        for (a, b), output in zip(CORNERS.tolist(), at_corners.tolist(), strict=True)
    ]
    differences = {"XNOR": float((networks["XNOR"](pairs) - distance).abs().max())}
    checks.append(
        at_most("XNOR: largest difference between network and |a + b - 1| on the plane", differences["XNOR"], tolerance)
    )
    curves: dict[str, tuple[Tensor, Callable[[Tensor], Tensor], list[float]]] = {
        "tent": (grid, tent, [0.0, 0.5, 1.0]),
        "shrink": (grid, lambda x: shrink(x, s), [-s, s]),
    }
    values: list[dict[str, object]] = []
    for name, (inputs, function, kinks) in curves.items():
        x = with_neighbours(inputs, kinks)
        expected, outputs = function(x), networks[name](x[:, None])
        differences[name] = float((outputs - expected).abs().max())
        checks.append(
            at_most(
                f"{name}: largest difference between network and function on {len(x)} points including the kinks",
                differences[name],
                tolerance,
            )
        )
        values += [
            {"function": name, "x": point, "value": value, "network": output}
            for point, value, output in zip(x.tolist(), expected.tolist(), outputs.tolist(), strict=True)
        ]
    return Answer(
        numbers={f"largest_difference_{name}": difference for name, difference in differences.items()},
        checks=checks,
        tables={"weights": weights_table(networks), "values": values},
        figures={"functions": plot_networks(networks, s=s)},
        messages=[f"{name}(x) = {formula(net)}" for name, net in networks.items()],
    )


def weights_table(networks: dict[str, HandBuiltNetwork]) -> list[dict[str, object]]:
    """Return a table row for each hidden unit."""
    return [
        {"network": name, "unit": unit + 1, "weights": " ".join(f"{w:g}" for w in weights), "bias": bias, "out": out}
        for name, net in networks.items()
        for unit, (weights, bias, out) in enumerate(
            zip(net.weights.tolist(), net.biases.tolist(), net.out.tolist(), strict=True)
        )
    ]


def formula(net: HandBuiltNetwork) -> str:
    """Return the network as a formula: ``2 relu(x) - 4 relu(x - 0.5)``, with x1 and x2 for two inputs."""
    inputs = ["x"] if net.weights.shape[1] == 1 else ["x1", "x2"]

    def total(factors: list[float], names: list[str]) -> str:
        """Return the sum of factor times name; an empty name means a constant, a factor of 0 is left out."""
        result = ""
        for factor, name in zip(factors, names, strict=True):
            if factor:
                sign = ("-" if factor < 0 else "") if not result else (" - " if factor < 0 else " + ")
                size = "" if abs(factor) == 1 and name else f"{abs(factor):g}"
                result += sign + " ".join(filter(None, (size, name)))
        return result

    units = [
        f"relu({total([*weights, bias], [*inputs, ''])})"
        for weights, bias in zip(net.weights.tolist(), net.biases.tolist(), strict=True)
    ]
    return total(net.out.tolist(), units)


def plot_networks(networks: dict[str, HandBuiltNetwork], *, s: float) -> Figure:
    """Plot each function with its network on top, and the hidden units that add up to it.

    XNOR's network depends on x1 + x2 alone, so it is plotted along this sum.
    """
    figure, panels = new_figure(
        len(networks),
        title="hand_built_networks: functions, networks and their hidden units",
        subtitle="thin lines: contribution of each ReLU unit to the output; XNOR: against the sum of its inputs",
        foot_inches=0.35,
    )
    along = torch.tensor([0.5, 0.5], dtype=torch.float64)
    sums = torch.linspace(-0.5, 2.5, 601, dtype=torch.float64)
    tents = torch.linspace(-0.5, 1.5, 601, dtype=torch.float64)
    shrunk = torch.linspace(-3, 3, 601, dtype=torch.float64) * (s or 1)
    lines = {
        "XNOR": (sums, sums[:, None] * along, "x1 + x2", None, (-0.3, 1.8)),
        "tent": (tents, tents[:, None], "x", tent(tents), (-2, 2)),
        "shrink": (shrunk, shrunk[:, None], "x", shrink(shrunk, s), (-2.2 * (s or 1), 2.2 * (s or 1))),
    }
    for axes, (name, (x, points, axis, function, span)) in zip(panels, lines.items(), strict=True):
        label(axes, x=axis, y="value", title=name if name != "shrink" else f"shrink, s = {s:g}")
        for unit, color in zip(networks[name].units(points).mT.tolist(), PALETTE[2:], strict=False):
            axes.plot(x, unit, color=color, linewidth=1.3)
        if function is None:
            axes.plot(CORNERS.sum(1), (CORNERS[:, 0] == CORNERS[:, 1]).double(), "o", **FUNCTION, markersize=7)
        else:
            axes.plot(x, function, **FUNCTION, linewidth=5, alpha=0.45, solid_capstyle="butt")
        axes.plot(x, networks[name](points), **NETWORK)
        axes.set_ylim(*span)
    units = [Line2D([], [], color=color, linewidth=1.3) for color in PALETTE[2:5]]
    handles = [Line2D([], [], **FUNCTION, linewidth=5, alpha=0.45), Line2D([], [], **NETWORK), *units]
    names = ["function", "network", *(f"unit {unit}" for unit in (1, 2, 3))]
    add_legend(figure, handles, names, loc="outside lower center", columns=5)
    return figure
