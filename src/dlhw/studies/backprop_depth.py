"""What becomes of gradients in a deep net: their norm at each layer, and which factor made it so (A2.i, A2.ii)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
from matplotlib.figure import Figure
from pydantic import Field, FiniteFloat
from torch import Tensor, nn

from dlhw.errors import UsageError
from dlhw.models.by_hand import DENSE, ELU, Weights, activations, cross_entropy_backward, gradients, softmax
from dlhw.models.dense import mlp
from dlhw.runs.answer import Answer, Check, at_most
from dlhw.runtime.randomness import generator, key
from dlhw.training import init
from dlhw.views.plots import PALETTE, add_legend, label, new_figure

Initialization = Literal["default", "xavier", "he", "orthogonal", "uniform"]
Size = Annotated[int, Field(gt=0)]
SMALLEST = 1e-140
"""The squares in a norm must be numbers that float64 holds with all digits."""


class Passes(NamedTuple):
    """What both passes of one sample leave behind, of each dense layer in turn; the last gives the logits."""

    probabilities: Tensor
    inputs: list[Tensor]
    """a, (in,)."""
    signals: list[Tensor]
    """Gradients of the loss by the layer's output z = W a + b, (out,)."""
    weights: list[Tensor]
    """Gradients by W, (out, in)."""
    biases: list[Tensor]
    """Gradients by b, (out,)."""
    slopes: list[Tensor]
    """ELU'(z), (out,), of all layers but the last."""


def passes(weights: Weights, x: Tensor, y: Tensor) -> Passes:
    """Forward and backward through dense layers with ELU between, then softmax and cross-entropy.

    x (features,) and y a class; ``weights`` are pairs of a matrix and a bias. The gradient by W is the outer product of
    signal and input, so that its norm is the product of theirs; that is why the two are kept apart.
    """
    hidden = len(weights) - 1
    layers = [DENSE, ELU] * hidden + [DENSE]
    own = [part for pair in weights[:-1] for part in (pair, ())] + [weights[-1]]
    passed = activations(layers, own, x.unsqueeze(0))
    _, found = gradients(layers, own, passed, cross_entropy_backward(passed[-1], y.unsqueeze(0)))
    slopes = [ELU.backward(torch.ones_like(z), z, a)[0] for z, a in zip(passed[1:-1:2], passed[2::2], strict=True)]
    return Passes(
        probabilities=softmax(passed[-1])[0],
        inputs=[a[0] for a in passed[:-1:2]],
        signals=[by_bias for _, by_bias in found[::2]],  # z = W a + b: the gradient by z is that by b
        weights=[by_weight for by_weight, _ in found[::2]],
        biases=[by_bias for _, by_bias in found[::2]],
        slopes=[slope[0] for slope in slopes],
    )


def loss(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
    """The same loss in torch's operations, for autograd."""
    for weight, bias in weights[:-1]:
        x = nn.functional.elu(weight @ x + bias)
    weight, bias = weights[-1]
    return nn.functional.cross_entropy(weight @ x + bias, y)


def drawn(
    name: Initialization, *, features: int, hidden: list[int], classes: int, d: float, draws: int, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Weights (draws, out, in) and biases (draws, out) of each layer."""
    options: dict[str, Any] = {"d": d} if name == "uniform" else {}
    if name != "default":
        options["bias"] = 0.0
    source = generator(seed, "backprop_depth", name, len(hidden))
    nets = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, "backprop_depth", "layers", len(hidden)))
        for _ in range(draws):
            net = mlp((features,), classes, hidden=hidden, activation="ELU", dropout=0.0, batch_norm=False).double()
            with torch.no_grad():
                getattr(init, name)(net, generator=source, **options)
            nets.append(list(net.parameters()))
    stacked = [torch.stack(same).detach() for same in zip(*nets, strict=True)]
    return list(zip(stacked[::2], stacked[1::2], strict=True))


def norms(tensors: list[Tensor]) -> Tensor:
    """(draws, layers) from tensors (draws, ...), one of each layer."""
    return torch.stack([torch.linalg.vector_norm(tensor.flatten(1), dim=1) for tensor in tensors], dim=1)


def factor_per_layer(of_layers: Tensor) -> float:
    """By what a norm (draws, layers) grows from one hidden layer to the one before it: the median over the draws."""
    logs = of_layers[:, :-1].log()
    steps = logs.shape[1] - 1
    return float(((logs[:, 0] - logs[:, -1]) / steps).median().exp())


def predicted_factor(weights: Weights, found: Passes) -> float:
    """sqrt(width Var(W) mean of ELU'(z)^2): what one layer of a wide net does to the signal's norm.

    The signal goes back as dz_l = (W' dz_(l+1)) ELU'(z_l): each of its numbers sums a term for each unit of the layer
    above, with variance Var(W), and is multiplied by the slope. The norm of few such numbers varies from draw to draw,
    and its median lies below this root mean square. Geometric mean over the layers between hidden ones.
    """
    inner = [
        0.5 * torch.log(weight.shape[1] * weight.var() * slope.square().mean())
        for (weight, _), slope in zip(weights[1:-1], found.slopes[:-1], strict=True)
    ]
    return float(torch.stack(inner).mean().exp())


def against_autograd(weights: Weights, found: Passes, x: Tensor, y: Tensor, *, what: str) -> Check:
    """The gradients by hand against autograd's, each difference relative to the largest gradient of its layer."""
    expected = torch.vmap(torch.func.grad(loss), in_dims=(0, None, None))(weights, x, y)
    pairs = zip([*found.weights, *found.biases], [pair[part] for part in (0, 1) for pair in expected], strict=True)
    apart = [
        (by_hand - by_autograd).flatten(1).abs().amax(1) / by_autograd.flatten(1).abs().amax(1)
        for by_hand, by_autograd in pairs
    ]
    worst = float(torch.stack(apart).amax())
    tolerance = (
        1e-12 * max(1.0, len(weights) / 31) ** 2
    )  # what one pass rounds, the other passes on: layers times layers
    return at_most(f"{what}: gradients by hand and by autograd, largest relative difference", worst, tolerance)


@dataclass(frozen=True)
class Measured:
    """The nets of one initialization; norms are (draws, layers)."""

    name: str
    by_weight: Tensor
    """Of the gradient by W."""
    by_input: Tensor
    """Of the layer's input a."""
    by_signal: Tensor
    """Of the gradient by z = W a + b."""
    growth: float
    """Of the signal, per layer on its way back."""
    predicted: float
    """What :func:`predicted_factor` says of that."""
    checks: list[Check]

    @property
    def numbers(self) -> dict[str, float]:
        return {
            f"{self.name}_first_layer": float(self.by_weight[:, 0].median()),
            f"{self.name}_last_layer": float(self.by_weight[:, -1].median()),
            f"{self.name}_signal_per_layer": self.growth,
            f"{self.name}_signal_predicted": self.predicted,
        }

    @property
    def rows(self) -> list[dict[str, object]]:
        """Of each layer the quartiles of the three norms."""
        norms_of = {"weight_gradient": self.by_weight, "input": self.by_input, "signal": self.by_signal}
        parts = {"lower": 0.25, "median": 0.5, "upper": 0.75}
        columns = {
            f"{quantity}_{part}": of_layers.quantile(q, dim=0).tolist()
            for quantity, of_layers in norms_of.items()
            for part, q in parts.items()
        }
        return [
            {"init": self.name, "layer": layer + 1, **{name: values[layer] for name, values in columns.items()}}
            for layer in range(self.by_weight.shape[1])
        ]


def measured(name: Initialization, weights: Weights, x: Tensor, y: Tensor) -> Measured:
    """Both passes of all drawn nets, held against autograd and against the product of the two factors."""
    found = torch.vmap(passes, in_dims=(0, None, None))(weights, x, y)
    by_weight, by_input, by_signal = norms(found.weights), norms(found.inputs), norms(found.signals)
    product = by_input * by_signal
    if not ((by_weight > SMALLEST) & (by_weight < 1 / SMALLEST)).all():
        raise UsageError(
            f"study.inits={name}: gradients of {len(weights)} layers lie between {float(by_weight.min()):.0e} and "
            f"{float(by_weight.max()):.0e}, beyond what float64 holds with all digits; take a smaller study.depth"
        )
    apart = float(((by_weight - product).abs() / product).max())
    checks = [
        against_autograd(weights, found, x, y, what=f"{len(weights) - 1} hidden layers, {name}"),
        at_most(f"{name}: |dW| = |dz| |a| at every layer, largest relative difference", apart, 1e-12),
    ]
    growth, predicted = factor_per_layer(by_signal), predicted_factor(weights, found)
    return Measured(name, by_weight, by_input, by_signal, growth, predicted, checks)


def drawing(nets: Sequence[Measured], *, title: str, draws: int) -> Figure:
    """The three norms against the layer, a line of medians for each initialization in a band between quartiles."""
    figure, all_axes = new_figure(
        3,
        title=title,
        subtitle=f"median over {draws} draws of the weights, bands from quartile to quartile; "
        "left = middle x right; dotted: root mean square in wide nets",
        foot_inches=0.5,
    )
    words = ("gradient by W", "input a of the layer", "gradient by W a + b")
    for axes, quantity in zip(all_axes, words, strict=True):
        axes.set_yscale("log")
        label(axes, x="layer", y=f"norm of the {quantity}", legend=False)
    for color, net in zip(PALETTE, nets, strict=False):
        for axes, of_layers in zip(all_axes, (net.by_weight, net.by_input, net.by_signal), strict=True):
            lower, middle, upper = (of_layers.quantile(q, dim=0).tolist() for q in (0.25, 0.5, 0.75))
            places = range(1, len(middle) + 1)
            told = f"{net.name}: signal x {net.growth:.2f} per layer back"
            axes.plot(places, middle, color=color, linewidth=1.4, label=told)
            axes.fill_between(places, lower, upper, color=color, alpha=0.15, linewidth=0)
        hidden = net.by_signal.shape[1] - 1
        last = float(net.by_signal[:, -2].median())
        line = [last * net.predicted ** (hidden - layer) for layer in range(1, hidden + 1)]
        all_axes[2].plot(range(1, hidden + 1), line, color=color, linewidth=1.2, linestyle=":")
    handles, names = all_axes[0].get_legend_handles_labels()
    add_legend(figure, handles, names, loc="outside lower center", columns=2)
    return figure


def backprop_depth(
    *,
    seed: int,
    depth: Annotated[int, Field(ge=3)],
    output_depth: Size,
    width: Size,
    x: Annotated[list[FiniteFloat], Field(min_length=1)],
    classes: Annotated[int, Field(ge=2)],
    label_of_x: Annotated[int, Field(ge=0)],
    inits: Annotated[list[Initialization], Field(min_length=1, max_length=len(PALETTE))],
    d: Annotated[float, Field(gt=0)],
    draws: Annotated[int, Field(ge=2)],
) -> Answer:
    """The output of a net of ``output_depth`` hidden layers, and the gradient's norm at each layer of a deep one."""
    if label_of_x >= classes:
        raise UsageError(f"study.label_of_x={label_of_x}: must be a class, 0 to {classes - 1}")
    if not any(x):
        raise UsageError(f"study.x={x}: must have a number that is not 0")
    if len(set(inits)) < len(inits):
        raise UsageError(f"study.inits={inits}: names one twice")
    sample, y = torch.tensor(x, dtype=torch.float64), torch.tensor(label_of_x)
    settings: dict[str, Any] = {"features": len(x), "classes": classes, "d": d, "draws": draws, "seed": seed}

    shallow = drawn(inits[0], hidden=[width] * output_depth, **settings)
    output = torch.vmap(passes, in_dims=(0, None, None))(shallow, sample, y)
    nets = [measured(name, drawn(name, hidden=[width] * depth, **settings), sample, y) for name in inits]
    first = ", ".join(f"{p:.6f}" for p in output.probabilities[0].tolist())
    return Answer(
        numbers={name: value for net in nets for name, value in net.numbers.items()},
        checks=[
            against_autograd(shallow, output, sample, y, what=f"{output_depth} hidden layers, {inits[0]}"),
            *(check for net in nets for check in net.checks),
        ],
        tables={
            "layers": [row for net in nets for row in net.rows],
            "output": [
                {"draw": draw, **{f"p{i}": p for i, p in enumerate(row)}}
                for draw, row in enumerate(output.probabilities.tolist())
            ],
        },
        figures={
            "gradients": drawing(
                nets, title=f"backprop_depth: {depth} hidden layers of {width} units, ELU", draws=draws
            )
        },
        messages=[f"output of {output_depth} hidden layers, {inits[0]} weights, x = {x}: ({first})"],
    )
