"""The Jacobian of a deep tanh net by reverse and by forward mode: equal, and what each costs (B2.b-e)."""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from matplotlib.axes import Axes
from pydantic import Field
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dlhw.answer import Answer, Check, at_most, equal
from dlhw.plots import COLORS, PALETTE, add_legend, label, new_figure
from dlhw.runtime import generator

Weights = dict[str, Tensor]
"""W1 (K, D), W2 ... WL (K, K) and WF (P, K), in the order in which they are applied."""
Size = Annotated[int, Field(gt=0)]
QUARTILES = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)


def network(x: Tensor, weights: Weights) -> Tensor:
    """f(x) = WF tanh(WL ... tanh(W1 x)) (B2.a): x (..., D) to (..., P).

    In rows, h' = tanh(h_before' W'), which lets a batch of backward passes be one matrix product for each layer.
    """
    *hidden, last = weights.values()
    row = x[..., None, :]
    for weight in hidden:
        row = torch.tanh(row @ weight.mT)
    return (row @ last.mT).squeeze(-2)


def forward_mode(x: Tensor, weights: Weights) -> Tensor:
    """df/dx (..., P, D) by pushing the D unit tangents through the net beside its values (B2.c).

    With h = tanh(a) and a = W h_before, the chain rule is dh/dx = diag(1 - h^2) W dh_before/dx: read from the right,
    every layer multiplies D columns. The start is dx/dx = I.
    """
    *hidden, last = weights.values()
    column = x[..., None]
    tangents = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    for weight in hidden:
        column = torch.tanh(weight @ column)
        tangents = (1 - column**2) * (weight @ tangents)
    return last @ tangents


def reverse_mode(x: Tensor, weights: Weights) -> Tensor:
    """df/dx (..., P, D) by autograd (B2.b): one backward pass that carries all P unit rows as a batch."""
    x = x.detach().requires_grad_()
    f = network(x, weights)
    rows = torch.eye(f.shape[-1], dtype=x.dtype, device=x.device)
    rows = rows.view(-1, *[1] * (f.dim() - 1), f.shape[-1]).expand(-1, *f.shape)
    (found,) = torch.autograd.grad(f, x, rows, is_grads_batched=True)
    return found.movedim(0, -2)


def reverse_mode_by_rows(x: Tensor, weights: Weights) -> Tensor:
    """The same by P backward passes, one for each output."""
    x = x.detach().requires_grad_()
    f = network(x, weights)
    rows = [torch.autograd.grad(output.sum(), x, retain_graph=True)[0] for output in f.unbind(-1)]
    return torch.stack(rows, -2)


METHODS: dict[str, Callable[[Tensor, Weights], Tensor]] = {
    "forward mode, ours": forward_mode,
    "reverse mode, batched": reverse_mode,
    "reverse mode, by rows": reverse_mode_by_rows,
    "torch.func.jacfwd": torch.func.jacfwd(network),
    "torch.func.jacrev": torch.func.jacrev(network),
}
FORWARD, REVERSE, BY_ROWS, *_ = METHODS


def operations(depth: int, *, width: int, inputs: int, outputs: int) -> dict[str, int]:
    """Multiplications when a product of M1 x M2 and M2 x M3 takes M1 M2 M3 (B2.e), of matrix products alone.

    One column through all matrices takes K D + (L - 1) K^2 + P K. Forward mode pushes the D tangents beside the values
    (which it does not need beyond the last tanh), reverse mode computes the values, then pulls P rows back. For many
    layers the ratio is (1 + P) / (1 + D), without the values P / D.
    """
    hidden = width * inputs + (depth - 1) * width**2
    last = outputs * width
    return {
        FORWARD: hidden + inputs * (hidden + last),
        REVERSE: hidden + last + outputs * (hidden + last),
        BY_ROWS: hidden + last + outputs * (hidden + last),
    }


def counted(method: Callable[[Tensor, Weights], Tensor], x: Tensor, weights: Weights) -> int:
    """Multiplications as torch counts them while a method runs: it counts additions as well."""
    with FlopCounterMode(display=False) as counter:
        method(x, weights)
    return int(counter.get_total_flops()) // 2


def draw(
    source: torch.Generator, *, draws: int, depth: int, width: int, inputs: int, outputs: int
) -> tuple[Tensor, Weights]:
    """Normal inputs (draws, D) and weights, these of variance one over the number of a unit's inputs."""
    sizes = [inputs, *[width] * depth, outputs]
    names = [*(f"W{layer}" for layer in range(1, depth + 1)), "WF"]

    def normal(*shape: int) -> Tensor:
        return torch.randn(draws, *shape, generator=source, dtype=torch.float64)

    weights = {
        name: normal(rows, columns) / math.sqrt(columns)
        for name, columns, rows in zip(names, sizes, sizes[1:], strict=False)
    }
    return normal(inputs), weights


def largest_differences(x: Tensor, weights: Weights) -> dict[str, float]:
    """Each method's largest difference from forward mode, relative to a Jacobian's largest entry, over all draws."""
    reference = forward_mode(x, weights)
    size = reference.abs().amax((-2, -1))
    others = {
        REVERSE: reverse_mode,
        BY_ROWS: reverse_mode_by_rows,
        "torch.func.jacfwd": torch.func.vmap(torch.func.jacfwd(network)),
        "torch.func.jacrev": torch.func.vmap(torch.func.jacrev(network)),
    }
    return {
        name: float(((method(x, weights) - reference).abs().amax((-2, -1)) / size).max())
        for name, method in others.items()
    }


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def seconds(calls: Sequence[Callable[[], object]], device: torch.device, *, warmup: int, repeats: int) -> Tensor:
    """Seconds of each call, (repeats, calls): taken in turn, so that a slow moment of the machine strikes all alike."""
    taken = torch.empty(warmup + repeats, len(calls), dtype=torch.float64)
    for repeat in range(warmup + repeats):
        for index, call in enumerate(calls):
            synchronize(device)
            started = time.perf_counter()
            call()
            synchronize(device)
            taken[repeat, index] = time.perf_counter() - started
    return taken[warmup:]


def jacobian(
    *,
    depths: Annotated[list[Size], Field(min_length=1)],
    width: Size,
    inputs: Size,
    outputs: Size,
    draws: Size,
    warmup: Annotated[int, Field(ge=1)],
    repeats: Annotated[int, Field(ge=4)],
    seed: int,
    device: torch.device,
) -> Answer:
    """Compare the methods in float64, count their operations, and time them in float32 for one x at a time."""
    depths = sorted(set(depths))
    sizes = {"width": width, "inputs": inputs, "outputs": outputs}
    drawn = {depth: draw(generator(seed, "jacobian", depth), draws=draws, depth=depth, **sizes) for depth in depths}
    checks: list[Check] = []
    equality: list[dict[str, object]] = []
    for depth, (x, weights) in drawn.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.func.jacfwd uses what torch is to drop
            apart = largest_differences(x, weights)
        equality += [{"depth": depth, "method": name, "largest_difference": each} for name, each in apart.items()]
        checks += [
            at_most(f"{name} against forward mode, L = {depth}, {draws} draws", each, 1e-12)
            for name, each in apart.items()
        ]
        one = x[0], {name: weight[0] for name, weight in weights.items()}
        checks += [
            equal(f"multiplications of {name}, L = {depth}, by torch's counter", counted(METHODS[name], *one), count)
            for name, count in operations(depth, **sizes).items()
        ]

    places = [device] if device.type == "cpu" else [device, torch.device("cpu")]
    predicted = [counts[REVERSE] / counts[FORWARD] for counts in (operations(depth, **sizes) for depth in depths)]
    limit = (1 + outputs) / (1 + inputs)
    numbers = {f"ratio_by_operations_{depth}": ratio for depth, ratio in zip(depths, predicted, strict=True)}
    figure, panels = new_figure(
        2 * len(places),
        title="jacobian: forward and reverse mode, measured and by operations",
        subtitle=f"{inputs} inputs, {outputs} outputs, width {width}, one x in float32; quartiles of {repeats}",
        columns=2,
        foot_inches=0.7,
    )
    times: list[dict[str, Any]] = []
    ratios: list[dict[str, Any]] = []
    for row, place in enumerate(places):
        calls = [
            functools.partial(
                method,
                x[0].to(place, torch.float32),
                {name: weight[0].to(place, torch.float32) for name, weight in weights.items()},
            )
            for x, weights in drawn.values()
            for method in METHODS.values()
        ]
        taken = seconds(calls, place, warmup=warmup, repeats=repeats).view(repeats, len(depths), len(METHODS))
        time_axes, ratio_axes = panels[2 * row : 2 * row + 2]
        label(time_axes, x="hidden layers L", y="milliseconds", title=_described(place))
        label(ratio_axes, x="hidden layers L", y="time or operations, as a ratio", title="reverse over forward mode")
        for index, (name, color) in enumerate(zip(METHODS, PALETTE, strict=False)):
            spread = _with_bars(time_axes, depths, taken[..., index] * 1e3, color=color, name=name)
            times += [
                {
                    "device": place.type,
                    "depth": depth,
                    "method": name,
                    "multiplications": operations(depth, **sizes).get(name, ""),
                    **{f"{quartile}_seconds": value / 1e3 for quartile, value in each.items()},
                }
                for depth, each in zip(depths, spread, strict=True)
            ]
            if name in (REVERSE, BY_ROWS):
                spread = _with_bars(ratio_axes, depths, taken[..., index] / taken[..., 0], color=color, name=name)
                ratios += [
                    {"device": place.type, "depth": depth, "reverse": name, "by_operations": ratio, **each}
                    for depth, ratio, each in zip(depths, predicted, spread, strict=True)
                ]
        ratio_axes.plot(depths, predicted, "D-", color=COLORS["reference"], markersize=4, label="by operations")
        ratio_axes.axhline(limit, color=COLORS["reference"], linestyle=":", label="its limit (1 + P) / (1 + D)")
        ratio_axes.set_ylim(bottom=0)
        time_axes.set_yscale("log")
        for axes in (time_axes, ratio_axes):
            axes.set_xticks(depths)
    numbers |= {f"ratio_{row['device']}_{row['depth']}": row["q50"] for row in ratios if row["reverse"] == REVERSE}
    entries = {name: each for axes in panels for each, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    add_legend(figure, list(entries.values()), list(entries), loc="outside lower center", columns=3)
    return Answer(
        numbers=numbers,
        checks=checks,
        tables={"equality": equality, "times": times, "ratios": ratios},
        figures={"jacobian": figure},
        told=[
            "L = {depth}, {device}: {reverse} takes {q50:.2f} ({q25:.2f} to {q75:.2f}) times as long as forward mode, "
            "{by_operations:.2f} times as many multiplications".format(**row)
            for row in ratios
        ],
    )


def _with_bars(axes: Axes, depths: list[int], values: Tensor, *, color: str, name: str) -> list[dict[str, float]]:
    """Draw the median over the first dimension with quartiles as bars, and return the three for each depth."""
    low, middle, high = values.quantile(QUARTILES, dim=0)
    axes.errorbar(
        depths,
        middle.tolist(),
        yerr=torch.stack([middle - low, high - middle]).numpy(),
        color=color,
        marker="o",
        markersize=4,
        capsize=3,
        linewidth=1.4,
        linestyle="--" if name.startswith("torch") else "-",
        label=name,
    )
    quartiles = zip(low.tolist(), middle.tolist(), high.tolist(), strict=True)
    return [{"q25": first, "q50": second, "q75": third} for first, second, third in quartiles]


def _described(device: torch.device) -> str:
    """The device by its name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else device.type
