"""The cost of the backward pass relative to the forward pass: multiply-adds counted and seconds measured (E1)."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dlhw.runtime.devices import synchronize
from dlhw.runtime.randomness import generator
from dlhw.storage.answer import Answer, equal
from dlhw.views.plots import COLORS, PALETTE, TEXT_POINTS, add_legend, label, new_figure

Count = Annotated[int, Field(ge=1, le=100_000)]
Counts = Annotated[list[Count], Field(min_length=1, max_length=100)]


@dataclass(frozen=True)
class Net:
    """A net with its input shape, and the multiply-adds of each of its products for one sample, first layer first."""

    name: str
    width: int
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    products: list[int]


def one_hidden(width: int, inputs: int, outputs: int) -> Net:
    """Return E1's net: W2 s(W1 x) without biases."""
    return Net(
        "one hidden layer",
        width,
        lambda: nn.Sequential(
            nn.Linear(inputs, width, bias=False), nn.Sigmoid(), nn.Linear(width, outputs, bias=False)
        ),
        (inputs,),
        [inputs * width, width * outputs],
    )


def mlp(width: int, inputs: int, outputs: int, depth: int) -> Net:
    """Return a net with ``depth`` hidden layers of ``width`` ReLU units."""
    sizes = [inputs, *[width] * depth, outputs]

    def make() -> nn.Module:
        layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(sizes)]
        return nn.Sequential(*[part for layer in layers for part in layer][:-1])

    return Net(f"MLP, {depth} hidden", width, make, (inputs,), [a * b for a, b in itertools.pairwise(sizes)])


def cnn(width: int, side: int, outputs: int, depth: int) -> Net:
    """Return a net with ``depth`` 3x3 convolutions of ``width`` channels on 3-channel pictures, then a linear layer.

    All convolutions preserve the size of the pictures.
    """
    channels = [3, *[width] * depth]

    def make() -> nn.Module:
        layers = [(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in itertools.pairwise(channels)]
        flat = (nn.Flatten(), nn.Linear(side * side * width, outputs))
        return nn.Sequential(*[part for layer in layers for part in layer], *flat)

    products = [side * side * 9 * a * b for a, b in itertools.pairwise(channels)]
    return Net(f"CNN, {depth} convolutions", width, make, (3, side, side), [*products, side * side * width * outputs])


def predicted(products: Sequence[int]) -> tuple[int, int]:
    """Return the predicted multiply-adds of forward and backward for one sample (E1).

    Forward, z_l = W_l u_(l-1) takes F_l. Backward, dL/dz_l gives dL/dW_l = dL/dz_l u_(l-1)^T and dL/du_(l-1) = W_l^T
    dL/dz_l: products of the same three sizes, F_l each. The derivative by the input of the first layer is not needed.
    So backward takes 2 F - F_1, and the ratio of backward to forward is 2 - F_1 / F.
    """
    return sum(products), 2 * sum(products) - products[0]


def counted(net: Net, batch: int, source: torch.Generator) -> tuple[int, int]:
    """Return the multiply-adds of both passes by torch's counter, half of its operations."""
    model, x, target = _prepare(net, batch, source, torch.device("cpu"))
    with FlopCounterMode(display=False) as forward:
        loss = (model(x) - target).square().sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops() // 2, backward.get_total_flops() // 2


def time_passes(
    net: Net, batch: int, repeats: int, source: torch.Generator, device: torch.device
) -> list[tuple[float, float]]:
    """Return the seconds of both passes, ``repeats`` times after three warm-up runs."""
    model, x, target = _prepare(net, batch, source, device)

    def now() -> float:
        synchronize(device)
        return time.perf_counter()

    def run_once() -> tuple[float, float]:
        model.zero_grad()
        start = now()
        loss = (model(x) - target).square().sum()
        middle = now()
        loss.backward()
        return middle - start, now() - middle

    return [run_once() for _ in range(3 + repeats)][3:]


def pass_cost(
    *,
    widths: Counts,
    channels: Counts,
    depth: Annotated[int, Field(ge=2, le=1000)],
    inputs: Count,
    outputs: Count,
    side: Count,
    batch: Count,
    repeats: Annotated[int, Field(ge=2, le=100_000)],
    seed: int,
    device: torch.device,
) -> Answer:
    """Count both passes of three kinds of nets, compare with the prediction, and time them."""
    widths, channels = sorted(set(widths)), sorted(set(channels))
    nets = [one_hidden(width, inputs, outputs) for width in widths]
    nets += [mlp(width, inputs, outputs, depth) for width in widths]
    nets += [cnn(width, side, outputs, depth) for width in channels]
    rows: list[dict[str, Any]] = []
    agreements: list[tuple[bool, bool]] = []
    for net in nets:
        forward, backward = predicted(net.products)
        counts = counted(net, batch, generator(seed, "pass_cost", net.name, net.width))
        seconds = time_passes(net, batch, repeats, generator(seed, "pass_cost", net.name, net.width), device)
        agreements.append((counts[0] == batch * forward, counts[1] == batch * backward))
        rows.append(
            {
                "net": net.name,
                "width": net.width,
                "forward_multiply_adds": counts[0],
                "backward_multiply_adds": counts[1],
                "ratio": counts[1] / counts[0],
                "ratio_predicted": 2 - net.products[0] / sum(net.products),
                **_quartiles("forward_seconds", [first for first, _ in seconds]),
                **_quartiles("backward_seconds", [second for _, second in seconds]),
                **_quartiles("seconds_ratio", [second / first for first, second in seconds]),
            }
        )
    threads = torch.get_num_threads()
    on_cpu = f"{device.type}, {threads} thread{'s' * (threads > 1)}"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else on_cpu
    kinds = list(dict.fromkeys(net.name for net in nets))
    widest = {kind: [row for row in rows if row["net"] == kind][-1] for kind in kinds}
    key = dict(zip(kinds, ("one_hidden", "mlp", "cnn"), strict=True))
    return Answer(
        numbers={
            "timed_on": where,
            **{f"ratio_{key[kind]}": row["ratio"] for kind, row in widest.items()},
            **{f"seconds_ratio_{key[kind]}": row["seconds_ratio"] for kind, row in widest.items()},
        },
        checks=[
            equal(
                "nets with F counted multiply-adds in the forward pass (E1)", sum(f for f, _ in agreements), len(nets)
            ),
            equal(
                "nets with 2 F - F_1 counted multiply-adds in the backward pass",
                sum(b for _, b in agreements),
                len(nets),
            ),
        ],
        tables={"passes": rows},
        figures={"cost": _plot_cost(rows, kinds, batch, where), "ratio": _plot_ratio(rows, kinds, batch, where)},
    )


def _prepare(net: Net, batch: int, source: torch.Generator, device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    """Return the net with weights of variance 1 / fan-in and zero biases, a random batch, and a target of zeros."""
    with torch.device("meta"):
        model = net.make()
    model.to_empty(device=device)
    for value in model.parameters():
        nn.init.zeros_(value)
        if value.ndim > 1:
            value.data.copy_(torch.randn(value.shape, generator=source) / value[0].numel() ** 0.5)
    x = torch.randn(batch, *net.shape, generator=source).to(device)
    return model, x, torch.zeros_like(model(x))


def _quartiles(name: str, values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {name: middle, f"{name}_low": low, f"{name}_high": high}


def _plot_quartiles(axes: Axes, rows: list[dict[str, Any]], column: str, **look: Any) -> None:
    """Plot the median of a column with its quartiles against the width."""
    middle = [row[column] for row in rows]
    low = [row[column] - row[f"{column}_low"] for row in rows]
    high = [row[f"{column}_high"] - row[column] for row in rows]
    axes.errorbar(
        [row["width"] for row in rows], middle, yerr=(low, high), capsize=2, linewidth=1.2, markersize=4, **look
    )


def _plot_cost(rows: list[dict[str, Any]], kinds: list[str], batch: int, where: str) -> Figure:
    figure, (counts, seconds) = new_figure(
        2,
        title="pass_cost: forward and backward, counted and timed",
        subtitle=f"batches of {batch}; solid: forward, dashed: backward; seconds: medians and quartiles on {where}",
        panel_inches=3.1,
        foot_inches=0.3,
    )
    for i, kind in enumerate(kinds):
        selected = [row for row in rows if row["net"] == kind]
        look: dict[str, Any] = {"color": PALETTE[i], "marker": "os^"[i]}
        for name, style in (("forward", "-"), ("backward", "--")):
            values = [row[f"{name}_multiply_adds"] for row in selected]
            shown = kind if name == "forward" else None
            counts.plot([row["width"] for row in selected], values, linestyle=style, markersize=4, label=shown, **look)
            _plot_quartiles(seconds, selected, f"{name}_seconds", linestyle=style, **look)
    for axes, name in ((counts, "multiply-adds"), (seconds, "seconds")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("width (units or channels)", fontsize=TEXT_POINTS)
        axes.set_ylabel(name, fontsize=TEXT_POINTS)
    add_legend(figure, *counts.get_legend_handles_labels(), loc="outside lower center", columns=3)
    return figure


def _plot_ratio(rows: list[dict[str, Any]], kinds: list[str], batch: int, where: str) -> Figure:
    figure, all_axes = new_figure(
        len(kinds),
        title="pass_cost: backward / forward is 2 minus the first layer's share",
        subtitle=f"batches of {batch}; seconds: medians and quartiles on {where}",
    )
    for i, (axes, kind) in enumerate(zip(all_axes, kinds, strict=True)):
        selected = [row for row in rows if row["net"] == kind]
        widths = [row["width"] for row in selected]
        axes.axhline(2, color=COLORS["reference"], linewidth=1, linestyle=":", label="2")
        axes.plot(widths, [row["ratio_predicted"] for row in selected], color="black", linewidth=1, label="2 - F_1/F")
        counted = [row["ratio"] for row in selected]
        axes.plot(widths, counted, "o", color=PALETTE[0], markersize=5, label="counted multiply-adds")
        _plot_quartiles(axes, selected, "seconds_ratio", color=PALETTE[1], marker="s", linestyle="--", label="seconds")
        axes.set_xscale("log", base=2)
        axes.set_ylim(0, max(3.0, 1.1 * max(row["seconds_ratio_high"] for row in rows)))
        last = axes is all_axes[-1]
        if not last:
            axes.set_xlabel("width", fontsize=TEXT_POINTS)
            axes.set_ylabel("backward / forward" if i == 0 else "", fontsize=TEXT_POINTS)
        else:
            label(axes, x="channels", y="", place="lower right")
        axes.set_title(kind, fontsize=TEXT_POINTS)
    return figure
