"""The Jacobian of a deep tanh net by reverse and by forward mode: equal, and what each costs (B2.b-e)."""

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

from dlhw.runs.answer import Answer, Check, at_most, equal
from dlhw.runtime.devices import synchronize
from dlhw.runtime.randomness import generator
from dlhw.views.plots import COLORS, PALETTE, add_legend, label, new_figure

Weights = dict[str, Tensor]
"""W1 (K, D), W2 ... WL (K, K) and WF (P, K), in the order in which they are applied."""
Row = dict[str, Any]
Draws = dict[int, tuple[Tensor, Weights]]
"""Of each depth many x and weights."""
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.func.jacfwd uses what torch is to drop
        found = {name: method(x, weights) - reference for name, method in others.items()}
    return {name: float((each.abs().amax((-2, -1)) / size).max()) for name, each in found.items()}


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


def agreement(x: Tensor, weights: Weights, apart: dict[str, float], counts: dict[str, int]) -> list[Check]:
    """Of one depth: the methods against forward mode, and torch's count of multiplications, for one x, against ours."""
    at, one = f"L = {len(weights) - 1}", (x[0], {name: weight[0] for name, weight in weights.items()})
    return [
        *(at_most(f"{name} against forward mode, {at}, {len(x)} draws", each, 1e-12) for name, each in apart.items()),
        *(
            equal(f"multiplications of {name}, {at}, by torch's counter", counted(METHODS[name], *one), count)
            for name, count in counts.items()
        ),
    ]


def _quartiles(values: Tensor, unit: str = "") -> list[dict[str, float]]:
    """Over the first dimension of values (repeats, depths), for each depth."""
    names = [f"q{100 * quartile:.0f}{unit}" for quartile in QUARTILES.tolist()]
    return [dict(zip(names, each, strict=True)) for each in values.quantile(QUARTILES, dim=0).mT.tolist()]


def timed(
    drawn: Draws, counts: dict[int, dict[str, int]], device: torch.device, *, warmup: int, repeats: int
) -> tuple[list[Row], list[Row]]:
    """Quartiles for each method and depth, the first draw in float32: of seconds, and of reverse over forward mode."""
    calls = [
        functools.partial(
            method,
            x[0].to(device, torch.float32),
            {name: weight[0].to(device, torch.float32) for name, weight in weights.items()},
        )
        for x, weights in drawn.values()
        for method in METHODS.values()
    ]
    taken = seconds(calls, device, warmup=warmup, repeats=repeats).view(-1, len(drawn), len(METHODS)).unbind(-1)
    by_method = dict(zip(METHODS, taken, strict=True))
    times = [
        {"device": device.type, "depth": depth, "method": name, "multiplications": count.get(name, ""), **each}
        for name, values in by_method.items()
        for (depth, count), each in zip(counts.items(), _quartiles(values, "_seconds"), strict=True)
    ]
    predicted = {depth: count[REVERSE] / count[FORWARD] for depth, count in counts.items()}
    ratios = [
        {"device": device.type, "depth": depth, "reverse": name, "by_operations": predicted[depth], **each}
        for name in (REVERSE, BY_ROWS)
        for each, depth in zip(_quartiles(by_method[name] / by_method[FORWARD]), counts, strict=True)
    ]
    return times, ratios


def drawing(times: list[Row], ratios: list[Row], *, limit: float, subtitle: str) -> Figure:
    """Time and ratio against the depth, a row of panels for each device; ``limit`` is the ratio for many layers."""
    devices = list(dict.fromkeys(row["device"] for row in times))
    title = "jacobian: forward and reverse mode, measured and by operations"
    figure, panels = new_figure(2 * len(devices), title=title, subtitle=subtitle, columns=2, foot_inches=0.7)
    for device, time_axes, ratio_axes in zip(devices, panels[::2], panels[1::2], strict=True):
        label(time_axes, x="hidden layers L", y="milliseconds", title=_described(torch.device(device)))
        label(ratio_axes, x="hidden layers L", y="time or operations, as a ratio", title="reverse over forward mode")
        for name, color in zip(METHODS, PALETTE, strict=False):
            rows = [row for row in times if (row["device"], row["method"]) == (device, name)]
            _draw_bars(time_axes, rows, unit="_seconds", factor=1e3, color=color, name=name)
            rows = [row for row in ratios if (row["device"], row["reverse"]) == (device, name)]
            if rows:
                _draw_bars(ratio_axes, rows, color=color, name=name)
        predicted = {row["depth"]: row["by_operations"] for row in ratios}
        reference = COLORS["reference"]
        ratio_axes.plot(
            *zip(*predicted.items(), strict=True), "D-", color=reference, markersize=4, label="by operations"
        )
        ratio_axes.axhline(limit, color=reference, linestyle=":", label="its limit (1 + P) / (1 + D)")
        ratio_axes.set_ylim(bottom=0)
        time_axes.set_yscale("log")
        for axes in (time_axes, ratio_axes):
            axes.set_xticks(list(predicted))
    entries = {name: each for axes in panels for each, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    add_legend(figure, list(entries.values()), list(entries), loc="outside lower center", columns=3)
    return figure


def _draw_bars(axes: Axes, rows: list[Row], *, unit: str = "", factor: float = 1.0, color: str, name: str) -> None:
    """The medians with the quartiles as bars."""
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


def _described(device: torch.device) -> str:
    """The device by its name."""
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
    warmup: Annotated[int, Field(ge=1)],
    repeats: Annotated[int, Field(ge=4)],
    seed: int,
    device: torch.device,
) -> Answer:
    """Compare the methods in float64, count their operations, and time them in float32 for one x at a time."""
    depths = sorted(set(depths))
    sizes = {"width": width, "inputs": inputs, "outputs": outputs}
    drawn = {depth: draw(generator(seed, "jacobian", depth), draws=draws, depth=depth, **sizes) for depth in depths}
    apart = {depth: largest_differences(*each) for depth, each in drawn.items()}
    counts = {depth: operations(depth, **sizes) for depth in depths}
    devices = [device] if device.type == "cpu" else [device, torch.device("cpu")]
    found = [timed(drawn, counts, each, warmup=warmup, repeats=repeats) for each in devices]
    times, ratios = (list(itertools.chain(*rows)) for rows in zip(*found, strict=True))
    subtitle = f"{inputs} inputs, {outputs} outputs, width {width}, one x in float32; quartiles of {repeats}"
    return Answer(
        numbers={
            **{f"ratio_by_operations_{row['depth']}": row["by_operations"] for row in ratios},
            **{f"ratio_{row['device']}_{row['depth']}": row["q50"] for row in ratios if row["reverse"] == REVERSE},
        },
        checks=[check for depth in depths for check in agreement(*drawn[depth], apart[depth], counts[depth])],
        tables={
            "equality": [
                {"depth": depth, "method": name, "largest_difference": each}
                for depth, by_name in apart.items()
                for name, each in by_name.items()
            ],
            "times": times,
            "ratios": ratios,
        },
        figures={"jacobian": drawing(times, ratios, limit=(1 + outputs) / (1 + inputs), subtitle=subtitle)},
        messages=[
            "L = {depth}, {device}: {reverse} takes {q50:.2f} ({q25:.2f} to {q75:.2f}) times as long as forward mode, "
            "{by_operations:.2f} times as many multiplications".format(**row)
            for row in ratios
        ],
    )
