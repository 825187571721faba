"""Vanishing gradients in a deep net: the gradient norm at each layer, and the factors that cause it (A2.i, A2.ii)."""

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
from dlhw.runtime.randomness import generator, key
from dlhw.storage.answer import Answer, Check, at_most
from dlhw.training import init
from dlhw.views.plots import PALETTE, add_legend, label, new_figure

Initialization = Literal["default", "xavier", "he", "orthogonal", "uniform"]
Size = Annotated[int, Field(gt=0, le=1000)]
SMALLEST = 1e-140
"""The smallest gradient norm: its square must be a normal number in float64, with full precision."""


class Passes(NamedTuple):
    """The results of both passes of one sample, one tensor per layer; the last layer gives the logits."""

    probabilities: Tensor
    inputs: list[Tensor]
    """Inputs a, (in,)."""
    signals: list[Tensor]
    """Gradients of the loss by the layer's output z = W a + b, (out,)."""
    weights: list[Tensor]
    """Gradients by W, (out, in)."""
    biases: list[Tensor]
    """Gradients by b, (out,)."""
    slopes: list[Tensor]
    """ELU'(z), (out,), for all layers but the last."""


def forward_backward(weights: Weights, x: Tensor, y: Tensor) -> Passes:
    """Run dense layers with ELU between them, softmax and cross-entropy, forward and backward.

    x (features,) is one sample, y its class, and ``weights`` are pairs of a matrix and a bias. The gradient by W is the
    outer product of signal and input, so its norm is the product of their norms. Therefore the two are kept separate.
    """
    hidden = len(weights) - 1
    layers = [DENSE, ELU] * hidden + [DENSE]
    layer_parameters = [part for pair in weights[:-1] for part in (pair, ())] + [weights[-1]]
    passed = activations(layers, layer_parameters, x.unsqueeze(0))
    _, layer_gradients = gradients(layers, layer_parameters, passed, cross_entropy_backward(passed[-1], y.unsqueeze(0)))
    slopes = [ELU.backward(torch.ones_like(z), z, a)[0] for z, a in zip(passed[1:-1:2], passed[2::2], strict=True)]
    return Passes(
        probabilities=softmax(passed[-1])[0],
        inputs=[a[0] for a in passed[:-1:2]],
        signals=[by_bias for _, by_bias in layer_gradients[::2]],  # z = W a + b: the gradient by z is that by b
        weights=[by_weight for by_weight, _ in layer_gradients[::2]],
        biases=[by_bias for _, by_bias in layer_gradients[::2]],
        slopes=[slope[0] for slope in slopes],
    )


def loss(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
    """Compute the same loss with torch's operations, for autograd."""
    for weight, bias in weights[:-1]:
        x = nn.functional.elu(weight @ x + bias)
    weight, bias = weights[-1]
    return nn.functional.cross_entropy(weight @ x + bias, y)


def draw_weights(
    name: Initialization, *, features: int, hidden: list[int], classes: int, d: float, draws: int, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Draw the weights (draws, out, in) and biases (draws, out) of each layer."""
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
    """Return the norms (draws, layers) of tensors (draws, ...), one tensor per layer."""
    return torch.stack([torch.linalg.vector_norm(tensor.flatten(1), dim=1) for tensor in tensors], dim=1)


def factor_per_layer(layer_norms: Tensor) -> float:
    """Return the factor on a norm (draws, layers) from one hidden layer to the one before it: the median over draws."""
    logs = layer_norms[:, :-1].log()
    steps = logs.shape[1] - 1
    return float(((logs[:, 0] - logs[:, -1]) / steps).median().exp())


def predicted_factor(weights: Weights, results: Passes) -> float:
    """Return sqrt(width Var(W) mean(ELU'(z)^2)): the factor of one layer of a wide net on the signal's norm.

    The signal propagates backward as dz_l = (W^T dz_(l+1)) ELU'(z_l): each component is a sum over the units of the
    layer above, with variance Var(W) per term, multiplied by the slope. In a narrow net the norm varies from draw to
    draw, and its median is less than this root mean square. The result is the geometric mean over the inner hidden
    layers.
    """
    inner = [
        0.5 * torch.log(weight.shape[1] * weight.var() * slope.square().mean())
        for (weight, _), slope in zip(weights[1:-1], results.slopes[:-1], strict=True)
    ]
    return float(torch.stack(inner).mean().exp())


def against_autograd(weights: Weights, results: Passes, x: Tensor, y: Tensor, *, what: str) -> Check:
    """Compare the gradients by hand with autograd's, each difference relative to the largest gradient of its layer."""
    expected = torch.vmap(torch.func.grad(loss), in_dims=(0, None, None))(weights, x, y)
    pairs = zip([*results.weights, *results.biases], [pair[part] for part in (0, 1) for pair in expected], strict=True)
    apart = [
        (by_hand - by_autograd).flatten(1).abs().amax(1) / by_autograd.flatten(1).abs().amax(1)
        for by_hand, by_autograd in pairs
    ]
    worst = float(torch.stack(apart).amax())
    # Each layer of one pass rounds, and the layers of the other pass propagate it: layers times layers.
    tolerance = 1e-12 * max(1.0, len(weights) / 31) ** 2
    return at_most(f"{what}: largest relative difference between gradients by hand and by autograd", worst, tolerance)


@dataclass(frozen=True)
class GradientNorms:
    """The norms, (draws, layers), in the nets of one initialization."""

    name: str
    by_weight: Tensor
    """Norms of the gradient by W."""
    by_input: Tensor
    """Norms of the layer's input a."""
    by_signal: Tensor
    """Norms of the signal, the gradient by z = W a + b."""
    growth: float
    """The measured factor on the signal per layer of the backward pass."""
    predicted: float
    """The result of :func:`predicted_factor`."""
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
        """Return table rows with the quartiles of the three norms at each layer."""
        norms_of = {"weight_gradient": self.by_weight, "input": self.by_input, "signal": self.by_signal}
        parts = {"lower": 0.25, "median": 0.5, "upper": 0.75}
        columns = {
            f"{quantity}_{part}": layer_norms.quantile(q, dim=0).tolist()
            for quantity, layer_norms in norms_of.items()
            for part, q in parts.items()
        }
        return [
            {"init": self.name, "layer": layer + 1, **{name: values[layer] for name, values in columns.items()}}
            for layer in range(self.by_weight.shape[1])
        ]


def measure_norms(name: Initialization, weights: Weights, x: Tensor, y: Tensor) -> GradientNorms:
    """Run both passes of all drawn nets; compare with autograd and with the product of the two factors."""
    results = torch.vmap(forward_backward, in_dims=(0, None, None))(weights, x, y)
    by_weight, by_input, by_signal = norms(results.weights), norms(results.inputs), norms(results.signals)
    product = by_input * by_signal
    if not ((by_weight > SMALLEST) & (by_weight < 1 / SMALLEST)).all():
        raise UsageError(
            f"study.inits={name}: gradient norms of {len(weights)} layers range from {float(by_weight.min()):.0e} to "
            f"{float(by_weight.max()):.0e}, beyond the full precision of float64; use a smaller study.depth"
        )
    apart = float(((by_weight - product).abs() / product).max())
    checks = [
        against_autograd(weights, results, x, y, what=f"{len(weights) - 1} hidden layers, {name}"),
        at_most(f"{name}: |dW| = |dz| |a|, largest relative difference over all layers", apart, 1e-12),
    ]
    growth, predicted = factor_per_layer(by_signal), predicted_factor(weights, results)
    return GradientNorms(name, by_weight, by_input, by_signal, growth, predicted, checks)


def plot_norms(nets: Sequence[GradientNorms], *, title: str, draws: int) -> Figure:
    """Plot the three norms against the layer: for each initialization the median with a band between the quartiles."""
    figure, all_axes = new_figure(
        3,
        title=title,
        subtitle=f"median over {draws} draws of the weights, bands between the quartiles; "
        "left = middle x right; dotted: prediction for wide nets",
        foot_inches=0.5,
    )
    quantities = ("gradient by W", "input a of the layer", "gradient by W a + b")
    for axes, quantity in zip(all_axes, quantities, strict=True):
        axes.set_yscale("log")
        label(axes, x="layer", y=f"norm of the {quantity}", legend=False)
    for color, net in zip(PALETTE, nets, strict=False):
        for axes, layer_norms in zip(all_axes, (net.by_weight, net.by_input, net.by_signal), strict=True):
            lower, middle, upper = (layer_norms.quantile(q, dim=0).tolist() for q in (0.25, 0.5, 0.75))
            layer_numbers = range(1, len(middle) + 1)
            legend = f"{net.name}: signal x {net.growth:.2f} per layer backward"
            axes.plot(layer_numbers, middle, color=color, linewidth=1.4, label=legend)
            axes.fill_between(layer_numbers, lower, upper, color=color, alpha=0.15, linewidth=0)
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
    depth: Annotated[int, Field(ge=3, le=1000)],
    output_depth: Size,
    width: Size,
    x: Annotated[list[FiniteFloat], Field(min_length=1, max_length=1000)],
    classes: Annotated[int, Field(ge=2, le=1000)],
    label_of_x: Annotated[int, Field(ge=0, le=999)],
    inits: Annotated[list[Initialization], Field(min_length=1, max_length=len(PALETTE))],
    d: Annotated[float, Field(gt=0)],
    draws: Annotated[int, Field(ge=2, le=100_000)],
) -> Answer:
    """Compute the output of a net of ``output_depth`` hidden layers, and the gradient norms of a deep net by layer."""
    if label_of_x >= classes:
        raise UsageError(f"study.label_of_x={label_of_x}: must be a class, from 0 to {classes - 1}")
    if not any(x):
        raise UsageError(f"study.x={x}: must contain a number that is not 0")
    if len(set(inits)) < len(inits):
        raise UsageError(f"study.inits={inits}: must not contain duplicates")
    sample, y = torch.tensor(x, dtype=torch.float64), torch.tensor(label_of_x)
    settings: dict[str, Any] = {"features": len(x), "classes": classes, "d": d, "draws": draws, "seed": seed}

    shallow = draw_weights(inits[0], hidden=[width] * output_depth, **settings)
    output = torch.vmap(forward_backward, in_dims=(0, None, None))(shallow, sample, y)
    nets = [measure_norms(name, draw_weights(name, hidden=[width] * depth, **settings), sample, y) for name in inits]
    probabilities = ", ".join(f"{p:.6f}" for p in output.probabilities[0].tolist())
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
            "gradients": plot_norms(
                nets, title=f"backprop_depth: {depth} hidden layers of {width} units, ELU", draws=draws
            )
        },
        messages=[f"output of {output_depth} hidden layers, {inits[0]} weights, x = {x}: ({probabilities})"],
    )
