"""Nets whose derivatives are written out: each layer a formula forward and a formula backward, no autograd between.

A layer is a pair of pure functions, ``y = forward(x, *weights)`` and ``dx, *dweights = backward(dy, x, y, *weights)``;
``d`` before a name is the gradient of the loss by it. :func:`activations` and :func:`gradients` are backpropagation
itself. :class:`ByHand` gives a net of torch's layers these formulas, so that it trains like any other.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dlhw.models import convolutional, dense

ALPHA = 1.0
"""Of ELU, as A2 has it."""


class Layer(NamedTuple):
    """A layer's two formulas."""

    forward: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor, ...]]


Weights = Sequence[Sequence[Tensor]]
"""Of each layer its weights; none for an activation."""


def activations(layers: Sequence[Layer], weights: Weights, x: Tensor) -> list[Tensor]:
    """The forward pass: x and the output of every layer, the net's last."""
    passed = [x]
    for layer, own in zip(layers, weights, strict=True):
        passed.append(layer.forward(passed[-1], *own))
    return passed


def gradients(
    layers: Sequence[Layer], weights: Weights, passed: Sequence[Tensor], dy: Tensor
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """The backward pass: from ``dy``, the gradient by the net's output, those by its input and by all weights.

    The chain rule from the last layer to the first: each turns the gradient by its output into that by its input,
    which is the output of the layer before. ``passed`` is what :func:`activations` returned.
    """
    found: list[tuple[Tensor, ...]] = []
    for layer, own, (x, y) in reversed(list(zip(layers, weights, itertools.pairwise(passed), strict=True))):
        dy, *of_weights = layer.backward(dy, x, y, *own)
        found.append(tuple(of_weights))
    return dy, found[::-1]


# y_ni = sum_j W_ij x_nj + b_i. So dL/dx_nj = sum_i dy_ni W_ij, which is dy W; dL/dW_ij = sum_n dy_ni x_nj, which is
# dy' x; and dL/db_i = sum_n dy_ni, for b_i adds to every sample.


def dense_forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(N, in), weight (out, in), bias (out,) to (N, out)."""
    return x @ weight.T + bias


def dense_backward(dy: Tensor, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by x, weight and bias."""
    return dy @ weight, dy.T @ x, dy.sum(0)


# Activations act on each number alone, so dx = dy f'(x). From y = f(x): tanh' = 1 - y^2, and s(x) = 1 / (1 + e^-x) has
# s' = e^-x s^2 = y (1 - y). ELU is x above 0, with slope 1, and alpha (e^x - 1) below, with slope alpha e^x; written
# y + alpha that would lose its digits where e^x is small. ReLU has slope 1 above 0 and 0 below; at 0 it is 0 here.


def tanh_backward(dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor]:
    """dy (1 - y^2)."""
    return (dy * (1 - y * y),)


def sigmoid_forward(x: Tensor) -> Tensor:
    """1 / (1 + e^-x), from e^-|x|, which cannot overflow."""
    small = torch.exp(-x.abs())
    return torch.where(x >= 0, 1.0, small) / (1 + small)


def sigmoid_backward(dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor]:
    """dy y (1 - y)."""
    return (dy * y * (1 - y),)


def relu_forward(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return torch.where(x > 0, x, 0.0)


def relu_backward(dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor]:
    """dy where x > 0."""
    return (torch.where(x > 0, dy, 0.0),)


def elu_forward(x: Tensor) -> Tensor:
    """x above 0, alpha (e^x - 1) below."""
    return torch.where(x > 0, x, ALPHA * torch.expm1(x.clamp(max=0)))


def elu_backward(dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor]:
    """dy above 0, dy alpha e^x below."""
    return (torch.where(x > 0, dy, dy * ALPHA * torch.exp(x.clamp(max=0))),)


def flatten_forward(x: Tensor) -> Tensor:
    """(N, ...) to (N, features)."""
    return x.flatten(1).clone()


def flatten_backward(dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor]:
    """The same numbers in x's shape."""
    return (dy.view(x.shape),)


# y[n,o,i,j] = b[o] + sum_{c,k,l} W[o,c,k,l] x[n,c,i+k,j+l], with x padded by p zeros on each side. For the output
# (i, j) W[o,c,k,l] meets x at (i+k, j+l): dW[o,c,k,l] = sum_{n,i,j} dy[n,o,i,j] x[n,c,i+k,j+l]. Padded x at (u, v)
# adds to the outputs (u-k, v-l): dx[n,c,u,v] = sum_{o,k,l} dy[n,o,u-k,v-l] W[o,c,k,l], a convolution of dy with W
# turned by 180 degrees. dy must be padded by K-1 to meet all of padded x, so by K-1-p to meet x itself.


def windows(x: Tensor, size: int, *, padding: int) -> Tensor:
    """All square patches (N, C, H', W', size, size) of (N, C, H, W)."""
    x = nn.functional.pad(x, [padding] * 4)
    return x.unfold(2, size, 1).unfold(3, size, 1)


def convolution_forward(x: Tensor, weight: Tensor, bias: Tensor, *, padding: int) -> Tensor:
    """(N, C, H, W), weight (out, C, K, K), bias (out,) to (N, out, H', W') with H' = H + 2 padding - K + 1."""
    patches = windows(x, weight.shape[2], padding=padding)
    return torch.einsum("ncijkl,ockl->noij", patches, weight) + bias[:, None, None]


def convolution_backward(
    dy: Tensor, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, *, padding: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by x, weight and bias."""
    size = weight.shape[2]
    dweight = torch.einsum("ncijkl,noij->ockl", windows(x, size, padding=padding), dy)
    turned = windows(dy, size, padding=size - 1 - padding)
    dx = torch.einsum("noijkl,ockl->ncij", turned, weight.flip(2, 3))
    return dx, dweight, dy.sum((0, 2, 3))


# The largest of a patch is the only one that moves y, at rate 1; the first of equal ones counts. Rows and columns that
# fill no patch are left out.


def pooling_patches(x: Tensor, size: int) -> Tensor:
    """(N, C, H, W) in patches (N, C, H // size, W // size, size * size) side by side."""
    return x.unfold(2, size, size).unfold(3, size, size).flatten(4)


def max_pooling_forward(x: Tensor, *, size: int) -> Tensor:
    """The largest number of every patch."""
    return pooling_patches(x, size).amax(4)


def max_pooling_backward(dy: Tensor, x: Tensor, y: Tensor, *, size: int) -> tuple[Tensor]:
    """dy at the largest number of every patch, 0 elsewhere."""
    largest = pooling_patches(x, size).argmax(4, keepdim=True)
    chosen = largest == torch.arange(size * size, device=x.device)
    (count, channels, rows, columns), (height, width) = dy.shape, x.shape[2:]
    patches = (dy.unsqueeze(4) * chosen).view(count, channels, rows, columns, size, size)
    whole = patches.transpose(3, 4).reshape(count, channels, rows * size, columns * size)
    return (nn.functional.pad(whole, [0, width - columns * size, 0, height - rows * size]),)


DENSE = Layer(dense_forward, dense_backward)
ELU = Layer(elu_forward, elu_backward)
RELU = Layer(relu_forward, relu_backward)
TANH = Layer(torch.tanh, tanh_backward)
SIGMOID = Layer(sigmoid_forward, sigmoid_backward)
FLATTEN = Layer(flatten_forward, flatten_backward)


def convolution(padding: int) -> Layer:
    """A convolution of stride 1 whose input is padded by so many zeros on each side."""
    given: dict[str, Any] = {"padding": padding}
    return Layer(functools.partial(convolution_forward, **given), functools.partial(convolution_backward, **given))


def max_pooling(size: int) -> Layer:
    """The largest number of every ``size`` x ``size`` patch."""
    given: dict[str, Any] = {"size": size}
    return Layer(functools.partial(max_pooling_forward, **given), functools.partial(max_pooling_backward, **given))


# L = mean_n (log sum_c e^z_nc - z_ny). Its derivative by z_nc: e^z_nc / sum_k e^z_nk, the probability p_nc that softmax
# gives, minus 1 where c is the true class; all divided by N.


def cross_entropy_forward(logits: Tensor, y: Tensor) -> Tensor:
    """Mean over N of -log softmax(logits)[y], from logits (N, C) and classes (N,); the largest is subtracted first."""
    logits = logits - logits.amax(1, keepdim=True)
    return (logits.exp().sum(1).log() - logits.gather(1, y.unsqueeze(1)).squeeze(1)).mean()


def softmax(logits: Tensor) -> Tensor:
    """e^z_c / sum_k e^z_k of (N, C)."""
    powers = (logits - logits.amax(1, keepdim=True)).exp()
    return powers / powers.sum(1, keepdim=True)


def cross_entropy_backward(logits: Tensor, y: Tensor) -> Tensor:
    """(softmax(logits) - onehot(y)) / N, the gradient by the logits (N, C)."""
    onehot = y.unsqueeze(1) == torch.arange(logits.shape[1], device=y.device)
    return (softmax(logits) - onehot.to(logits.dtype)) / len(logits)


class _CrossEntropy(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, y: Tensor) -> Tensor:
        return cross_entropy_forward(logits, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor, None]:
        return dloss * cross_entropy_backward(*ctx.saved_tensors), None


def cross_entropy_by_hand(input: Tensor, target: Tensor) -> Tensor:
    """:func:`cross_entropy_forward`, whose backward pass is :func:`cross_entropy_backward`."""
    loss: Tensor = _CrossEntropy.apply(input, target)
    return loss


class _Net(torch.autograd.Function):
    """All of a net as one function to autograd, which so sees none of its layers."""

    generate_vmap_rule = True

    @staticmethod
    def forward(layers: Sequence[Layer], counts: Sequence[int], x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        inner = activations(layers, _grouped(weights, counts), x)[1:]
        return inner[-1], *inner[:-1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.layers, ctx.counts, x, *weights = inputs
        y, *inner = output
        ctx.mark_non_differentiable(*inner)
        ctx.save_for_backward(*weights, x, *inner, y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *ignored: Tensor) -> tuple[Any, ...]:
        count = sum(ctx.counts)
        weights, passed = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        dx, by_layer = gradients(ctx.layers, _grouped(weights, ctx.counts), passed, dy)
        return None, None, dx, *itertools.chain.from_iterable(by_layer)


def _grouped(weights: Sequence[Tensor], counts: Sequence[int]) -> list[tuple[Tensor, ...]]:
    remaining = iter(weights)
    return [tuple(itertools.islice(remaining, count)) for count in counts]


class ByHand(nn.Module):
    """A net of torch's layers computed by the formulas here: torch's layers only hold the weights, under its names."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = net
        self.layers = [_formulas(layer) for layer in net]
        self.counts = [len(list(layer.parameters())) for layer in net]

    def forward(self, x: Tensor) -> Tensor:
        """(N, *shape) to logits (N, outputs)."""
        logits: Tensor = _Net.apply(self.layers, self.counts, x, *self.net.parameters())[0]
        return logits


FORMULAS: dict[type[nn.Module], Callable[[Any], Layer]] = {
    nn.Linear: lambda layer: DENSE,
    nn.Conv2d: lambda layer: convolution(layer.padding[0]),
    nn.MaxPool2d: lambda layer: max_pooling(layer.kernel_size),
    nn.Flatten: lambda layer: FLATTEN,
    nn.ELU: lambda layer: ELU,
    nn.ReLU: lambda layer: RELU,
    nn.Tanh: lambda layer: TANH,
    nn.Sigmoid: lambda layer: SIGMOID,
}


def _formulas(layer: nn.Module) -> Layer:
    return FORMULAS[type(layer)](layer)


ActivationName = Literal["ELU", "ReLU", "Tanh", "Sigmoid"]


def mlp_by_hand(
    shape: tuple[int, ...], outputs: int, *, hidden: list[dense.Width], activation: ActivationName
) -> ByHand:
    """:func:`dlhw.models.dense.mlp` by hand (A2)."""
    return ByHand(dense.mlp(shape, outputs, hidden=hidden, activation=activation, dropout=0.0, batch_norm=False))


def cnn_by_hand(
    shape: tuple[int, ...],
    outputs: int,
    *,
    channels: Annotated[list[dense.Width], Field(min_length=1)],
    kernel: Annotated[int, Field(gt=0)],
    activation: ActivationName,
) -> ByHand:
    """:func:`dlhw.models.convolutional.cnn` by hand."""
    return ByHand(
        convolutional.cnn(
            shape, outputs, channels=channels, kernel=kernel, activation=activation, dropout=0.0, batch_norm=False
        )
    )
