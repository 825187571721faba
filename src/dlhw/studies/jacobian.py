"""The Jacobian of a deep tanh net by reverse and by forward mode: equal results at different costs (B2.b-e)."""

from __future__ import annotations

import functools
import itertools
import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dlhw.runtime.devices import synchronize
from dlhw.runtime.randomness import generator
from dlhw.storage.answer import Answer, Check, at_most, equal
from dlhw.views.plots import COLORS, PALETTE, add_legend, label, new_figure

Weights = dict[str, Tensor]
"""W1 (K, D), W2 ... WL (K, K) and WF (P, K), in the order of application."""
Row = dict[str, Any]
Draws = dict[int, tuple[Tensor, Weights]]
"""Draws of x and weights by depth."""
Size = Annotated[int, Field(gt=0, le=10_000)]
QUARTILES = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)


def tanh_net(x: Tensor, weights: Weights) -> Tensor:
    """Compute f(x) = WF tanh(WL ... tanh(W1 x)) (B2.a): x (..., D) to (..., P).

    The vectors are rows, h = tanh(h_before W^T), so that a batch of backward passes is one matrix product per layer.
    """
    *hidden, last = weights.values()
    row = x[..., None, :]
    for weight in hidden:
        row = torch.tanh(row @ weight.mT)
    return (row @ last.mT).squeeze(-2)


def forward_mode(x: Tensor, weights: Weights) -> Tensor:
    """Return df/dx (..., P, D) by propagating the D unit tangents through the net together with its values (B2.c).

    With h = tanh(a) and a = W h_before, the chain rule is dh/dx = diag(1 - h^2) W dh_before/dx: evaluated from the
    right, every layer multiplies D columns. The start is dx/dx = I.
    """
    *hidden, last = weights.values()
    column = x[..., None]
    tangents = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    for weight in hidden:
        column = torch.tanh(weight @ column)
        tangents = (1 - column**2) * (weight @ tangents)
    return last @ tangents


def reverse_mode(x: Tensor, weights: Weights) -> Tensor:
    """Return df/dx (..., P, D) by autograd (B2.b): one backward pass with all P unit rows as a batch."""
    x = x.detach().requires_grad_()
    f = tanh_net(x, weights)
    rows = torch.eye(f.shape[-1], dtype=x.dtype, device=x.device)
    rows = rows.view(-1, *[1] * (f.dim() - 1), f.shape[-1]).expand(-1, *f.shape)
    (result,) = torch.autograd.grad(f, x, rows, is_grads_batched=True)
    return result.movedim(0, -2)


def reverse_mode_by_rows(x: Tensor, weights: Weights) -> Tensor:
    """Return the same by P backward passes, one for each output."""
    x = x.detach().requires_grad_()
    f = tanh_net(x, weights)
    rows = [torch.autograd.grad(output.sum(), x, retain_graph=True)[0] for output in f.unbind(-1)]
    return torch.stack(rows, -2)


METHODS: dict[str, Callable[[Tensor, Weights], Tensor]] = {
    "forward mode": forward_mode,
    "reverse mode, batched": reverse_mode,
    "reverse mode, row by row": reverse_mode_by_rows,
    "torch.func.jacfwd": torch.func.jacfwd(tanh_net),
    "torch.func.jacrev": torch.func.jacrev(tanh_net),
}
FORWARD, REVERSE, BY_ROWS, *_ = METHODS


def operations(depth: int, *, width: int, inputs: int, outputs: int) -> dict[str, int]:
    """Return the number of multiplications in matrix products (B2.e): a product of M1 x M2 and M2 x M3 takes M1 M2 M3.

    One column through all matrices takes K D + (L - 1) K^2 + P K. Forward mode propagates the D tangents together with
    the values, which it needs up to the last tanh. Reverse mode computes the values and propagates P rows backward. For
    many layers the ratio tends to (1 + P) / (1 + D), and without the values to P / D.
    """
    hidden = width * inputs + (depth - 1) * width**2
    last = outputs * width
    return {
        FORWARD: hidden + inputs * (hidden + last),
        REVERSE: hidden + last + outputs * (hidden + last),
        BY_ROWS: hidden + last + outputs * (hidden + last),
    }


def counted(method: Callable[[Tensor, Weights], Tensor], x: Tensor, weights: Weights) -> int:
    """Return the multiplications of a method by torch's counter, which counts additions as well."""
    with FlopCounterMode(display=False) as counter:
        method(x, weights)
    return int(counter.get_total_flops()) // 2


def draw(
    source: torch.Generator, *, draws: int, depth: int, width: int, inputs: int, outputs: int
) -> tuple[Tensor, Weights]:
    """Draw normal inputs (draws, D) and weights with variance 1 / fan-in."""
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
    """Return each method's largest difference from forward mode, relative to the Jacobian's largest entry."""
    reference = forward_mode(x, weights)
    size = reference.abs().amax((-2, -1))
    others = {
        REVERSE: reverse_mode,
        BY_ROWS: reverse_mode_by_rows,
        "torch.func.jacfwd": torch.func.vmap(torch.func.jacfwd(tanh_net)),
        "torch.func.jacrev": torch.func.vmap(torch.func.jacrev(tanh_net)),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.func.jacfwd uses deprecated parts of torch
        differences = {name: method(x, weights) - reference for name, method in others.items()}
    return {name: float((values.abs().amax((-2, -1)) / size).max()) for name, values in differences.items()}


def time_calls(calls: Sequence[Callable[[], object]], device: torch.device, *, warmup: int, repeats: int) -> Tensor:
    """Return the seconds of each call, (repeats, calls). Calls alternate, so that a slow moment affects all of them."""
    taken = torch.empty(warmup + repeats, len(calls), dtype=torch.float64)
    for repeat in range(warmup + repeats):
        for index, call in enumerate(calls):
            synchronize(device)
            started = time.perf_counter()
            call()
            synchronize(device)
            taken[repeat, index] = time.perf_counter() - started
    return taken[warmup:]


def agreement(x: Tensor, weights: Weights, differences: dict[str, float], counts: dict[str, int]) -> list[Check]:
    """Compare the methods with forward mode at one depth, and torch's counts of multiplications for one x with ours."""
    at, first_draw = f"L = {len(weights) - 1}", (x[0], {name: weight[0] for name, weight in weights.items()})
    return [
        *(
            at_most(f"{name}: largest relative difference from forward mode, {at}, {len(x)} draws", difference, 1e-12)
            for name, difference in differences.items()
        ),
        *(
            equal(f"{name}: multiplications by torch's counter, {at}", counted(METHODS[name], *first_draw), count)
            for name, count in counts.items()
        ),
    ]


def _quartiles(values: Tensor, unit: str = "") -> list[dict[str, float]]:
    """Return the quartiles over the first dimension of values (repeats, depths), for each depth."""
    names = [f"q{100 * quartile:.0f}{unit}" for quartile in QUARTILES.tolist()]
    return [dict(zip(names, quartiles, strict=True)) for quartiles in values.quantile(QUARTILES, dim=0).mT.tolist()]


def time_methods(
    drawn: Draws, counts: dict[int, dict[str, int]], device: torch.device, *, warmup: int, repeats: int
) -> tuple[list[Row], list[Row]]:
    """Time all methods at all depths with the first draw in float32: return rows of seconds, and rows of ratios."""
    calls = [
        functools.partial(
            method,
            x[0].to(device, torch.float32),
            {name: weight[0].to(device, torch.float32) for name, weight in weights.items()},
        )
        for x, weights in drawn.values()
        for method in METHODS.values()
    ]
    taken = time_calls(calls, device, warmup=warmup, repeats=repeats).view(-1, len(drawn), len(METHODS)).unbind(-1)
    by_method = dict(zip(METHODS, taken, strict=True))
    times = [
        {"device": device.type, "depth": depth, "method": name, "multiplications": count.get(name, ""), **quartiles}
        for name, values in by_method.items()
        for (depth, count), quartiles in zip(counts.items(), _quartiles(values, "_seconds"), strict=True)
    ]
    predicted = {depth: count[REVERSE] / count[FORWARD] for depth, count in counts.items()}
    ratios = [
        {"device": device.type, "depth": depth, "reverse": name, "by_operations": predicted[depth], **quartiles}
        for name in (REVERSE, BY_ROWS)
        for quartiles, depth in zip(_quartiles(by_method[name] / by_method[FORWARD]), counts, strict=True)
    ]
    return times, ratios


def plot_times(times: list[Row], ratios: list[Row], *, limit: float, subtitle: str) -> Figure:
    """Plot time and ratio against the depth, a row of panels per device; ``limit`` is the ratio for many layers."""
    devices = list(dict.fromkeys(row["device"] for row in times))
    title = "jacobian: forward and reverse mode, measured and by operations"
    figure, panels = new_figure(2 * len(devices), title=title, subtitle=subtitle, columns=2, foot_inches=0.7)
    for device, time_axes, ratio_axes in zip(devices, panels[::2], panels[1::2], strict=True):
        label(time_axes, x="hidden layers L", y="milliseconds", title=_device_name(torch.device(device)))
        label(ratio_axes, x="hidden layers L", y="time or operations, as a ratio", title="reverse over forward mode")
        for name, color in zip(METHODS, PALETTE, strict=False):
            rows = [row for row in times if (row["device"], row["method"]) == (device, name)]
            _plot_quartiles(time_axes, rows, unit="_seconds", factor=1e3, color=color, name=name)
            rows = [row for row in ratios if (row["device"], row["reverse"]) == (device, name)]
            if rows:
                _plot_quartiles(ratio_axes, rows, color=color, name=name)
        predicted = {row["depth"]: row["by_operations"] for row in ratios}
        reference = COLORS["reference"]
        ratio_axes.plot(
            *zip(*predicted.items(), strict=True), "D-", color=reference, markersize=4, label="by operations"
        )
        ratio_axes.axhline(limit, color=reference, linestyle=":", label="limit (1 + P) / (1 + D)")
        ratio_axes.set_ylim(bottom=0)
        time_axes.set_yscale("log")
        for axes in (time_axes, ratio_axes):
            axes.set_xticks(list(predicted))
    entries = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    add_legend(figure, list(entries.values()), list(entries), loc="outside lower center", columns=3)
    return figure


def _plot_quartiles(axes: Axes, rows: list[Row], *, unit: str = "", factor: float = 1.0, color: str, name: str) -> None:
    """Plot the medians, with the quartiles as error bars."""
    low, middle, high = ([factor * row[quartile + unit] for row in rows] for quartile in ("q25", "q50", "q75"))
    axes.errorbar(
        [row["depth"] for row in rows],
        middle,
        yerr=[[m - q for q, m in zip(low, middle, strict=True)], [q - m for q, m in zip(high, middle, strict=True)]],
        color=color,
        marker="o",
        markersize=4,
        capsize=3,
        linewidth=1.4,
        linestyle="--" if name.startswith("torch") else "-",
        label=name,
    )


def _device_name(device: torch.device) -> str:
    """Return the name of a device for a title."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else device.type


def jacobian(
    *,
    depths: Annotated[list[Size], Field(min_length=1)],
    width: Size,
    inputs: Size,
    outputs: Size,
    draws: Size,
    warmup: Annotated[int, Field(ge=1, le=100_000)],
    repeats: Annotated[int, Field(ge=4, le=100_000)],
    seed: int,
    device: torch.device,
) -> Answer:
    """Compare the methods in float64, count their operations, and time them in float32 for one x at a time."""
    depths = sorted(set(depths))
    sizes = {"width": width, "inputs": inputs, "outputs": outputs}
    drawn = {depth: draw(generator(seed, "jacobian", depth), draws=draws, depth=depth, **sizes) for depth in depths}
    differences = {depth: largest_differences(*drawn[depth]) for depth in depths}
    counts = {depth: operations(depth, **sizes) for depth in depths}
    devices = [device] if device.type == "cpu" else [device, torch.device("cpu")]
    results = [time_methods(drawn, counts, device, warmup=warmup, repeats=repeats) for device in devices]
    times, ratios = (list(itertools.chain(*rows)) for rows in zip(*results, strict=True))
    subtitle = f"{inputs} inputs, {outputs} outputs, width {width}, one x in float32; quartiles of {repeats} calls"
    return Answer(
        numbers={
            **{f"ratio_by_operations_{row['depth']}": row["by_operations"] for row in ratios},
            **{f"ratio_{row['device']}_{row['depth']}": row["q50"] for row in ratios if row["reverse"] == REVERSE},
        },
        checks=[check for depth in depths for check in agreement(*drawn[depth], differences[depth], counts[depth])],
        tables={
            "equality": [
                {"depth": depth, "method": name, "largest_difference": difference}
                for depth, by_name in differences.items()
                for name, difference in by_name.items()
            ],
            "times": times,
            "ratios": ratios,
        },
        figures={"jacobian": plot_times(times, ratios, limit=(1 + outputs) / (1 + inputs), subtitle=subtitle)},
        messages=[
            "{reverse}, L = {depth}, {device}: {q50:.2f} ({q25:.2f} to {q75:.2f}) times as long as forward mode, "
            "{by_operations:.2f} times as many multiplications".format(**row)
            for row in ratios
        ],
    )
