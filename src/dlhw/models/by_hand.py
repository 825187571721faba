"""Networks with hand-written gradients: every layer has a forward and a backward formula, without autograd.

A layer is a pair of pure functions, ``y = forward(x, *weights)`` and ``dx, *dweights = backward(dy, x, y, *weights)``.
A ``d`` before a name means the gradient of the loss L with respect to it: dx = dL/dx. :func:`activations` and
:func:`gradients` are backpropagation. :class:`ByHand` applies these formulas to a network of torch's layers, so that it
trains like any other model.

Notation in the derivations: A^T is a transpose, f' the derivative of a function of one number.
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
"""The parameter alpha of ELU, as in A2."""


class Layer(NamedTuple):
    """The two formulas of a layer."""

    forward: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor, ...]]


Weights = Sequence[Sequence[Tensor]]
"""The weights of each layer; empty for an activation."""


def activations(layers: Sequence[Layer], weights: Weights, x: Tensor) -> list[Tensor]:
    """The forward pass: return x and the output of every layer; the last one is the output of the network."""
    outputs = [x]
    for layer, layer_weights in zip(layers, weights, strict=True):
        outputs.append(layer.forward(outputs[-1], *layer_weights))
    return outputs


def gradients(
    layers: Sequence[Layer], weights: Weights, outputs: Sequence[Tensor], dy: Tensor
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """The backward pass: from ``dy``, for the output of the network, return dx and the gradients of all weights.

    This is the chain rule, from the last layer to the first: each layer turns the gradient of its output into that of
    its input, which is the output of the layer before. ``outputs`` is the result of :func:`activations`.
    """
    by_layer: list[tuple[Tensor, ...]] = []
    for layer, layer_weights, (x, y) in reversed(list(zip(layers, weights, itertools.pairwise(outputs), strict=True))):
        dy, *dweights = layer.backward(dy, x, y, *layer_weights)
        by_layer.append(tuple(dweights))
    return dy, by_layer[::-1]


# y_ni = sum_j W_ij x_nj + b_i. So dL/dx_nj = sum_i dy_ni W_ij, which is dy W; dL/dW_ij = sum_n dy_ni x_nj, which is
# dy^T x; and dL/db_i = sum_n dy_ni, because b_i is added to every sample.


def dense_forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + b: from x (N, in), weight (out, in) and bias (out,) to (N, out)."""
    return x @ weight.T + bias


def dense_backward(dy: Tensor, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dx = dy W, dW = dy^T x, db = sum of dy over the samples."""
    return dy @ weight, dy.T @ x, dy.sum(0)


# An activation f acts on each number alone, so dx = dy f'(x). With y = f(x): tanh' = 1 - y^2, and the sigmoid
# s(x) = 1 / (1 + e^-x) has s' = e^-x s^2 = y (1 - y). ELU is x above 0, with derivative 1, and alpha (e^x - 1) below,
# with derivative alpha e^x; computed as y + alpha, this would lose precision where e^x is small. ReLU has derivative 1
# above 0 and 0 below; at 0, it is 0 here.


def tanh_backward(dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor]:
    """dx = dy (1 - y^2)."""
    return (dy * (1 - y * y),)


def sigmoid_forward(x: Tensor) -> Tensor:
    """1 / (1 + e^-x), computed with e^-|x|, which cannot overflow."""
    small = torch.exp(-x.abs())
    return torch.where(x >= 0, 1.0, small) / (1 + small)


def sigmoid_backward(dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor]:
    """dx = dy y (1 - y)."""
    return (dy * y * (1 - y),)


def relu_forward(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return torch.where(x > 0, x, 0.0)


def relu_backward(dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor]:
    """dx = dy where x > 0, and 0 elsewhere."""
    return (torch.where(x > 0, dy, 0.0),)


def elu_forward(x: Tensor) -> Tensor:
    """x above 0, alpha (e^x - 1) below."""
    return torch.where(x > 0, x, ALPHA * torch.expm1(x.clamp(max=0)))


def elu_backward(dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor]:
    """dx = dy where x > 0, and dy alpha e^x elsewhere."""
    return (torch.where(x > 0, dy, dy * ALPHA * torch.exp(x.clamp(max=0))),)


def flatten_forward(x: Tensor) -> Tensor:
    """From (N, ...) to (N, features)."""
    return x.flatten(1).clone()


def flatten_backward(dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor]:
    """dx: the values of dy in the shape of x."""
    return (dy.view(x.shape),)


# y[n,o,i,j] = b[o] + sum_{c,k,l} W[o,c,k,l] x[n,c,i+k,j+l], with x padded by p zeros on each side. In the output at
# (i, j), W[o,c,k,l] multiplies x at (i+k, j+l): dW[o,c,k,l] = sum_{n,i,j} dy[n,o,i,j] x[n,c,i+k,j+l]. Padded x at
# (u, v) contributes to the outputs at (u-k, v-l): dx[n,c,u,v] = sum_{o,k,l} dy[n,o,u-k,v-l] W[o,c,k,l], a convolution
# of dy with W rotated by 180 degrees. For all of padded x, dy is padded by K-1; for x itself, by K-1-p.


def windows(x: Tensor, size: int, *, padding: int) -> Tensor:
    """Return all square patches (N, C, rows, columns, size, size) of the padded x (N, C, H, W)."""
    x = nn.functional.pad(x, [padding] * 4)
    return x.unfold(2, size, 1).unfold(3, size, 1)


def convolution_forward(x: Tensor, weight: Tensor, bias: Tensor, *, padding: int) -> Tensor:
    """From x (N, C, H, W), weight (out, C, K, K) and bias (out,) to (N, out, rows, columns).

    There are H + 2 padding - K + 1 rows, and columns likewise.
    """
    patches = windows(x, weight.shape[2], padding=padding)
    return torch.einsum("ncijkl,ockl->noij", patches, weight) + bias[:, None, None]


def convolution_backward(
    dy: Tensor, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, *, padding: int
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dW and db, as derived above."""
    size = weight.shape[2]
    dweight = torch.einsum("ncijkl,noij->ockl", windows(x, size, padding=padding), dy)
    rotated = windows(dy, size, padding=size - 1 - padding)
    dx = torch.einsum("noijkl,ockl->ncij", rotated, weight.flip(2, 3))
    return dx, dweight, dy.sum((0, 2, 3))


# Only the largest value of a patch changes y, with derivative 1; of equal ones, the first. Rows and columns at the end
# that do not fill a patch are ignored.


def pooling_patches(x: Tensor, size: int) -> Tensor:
    """Return the adjacent patches (N, C, H // size, W // size, size * size) of (N, C, H, W)."""
    return x.unfold(2, size, size).unfold(3, size, size).flatten(4)


def max_pooling_forward(x: Tensor, *, size: int) -> Tensor:
    """The largest value of every patch."""
    return pooling_patches(x, size).amax(4)


def max_pooling_backward(dy: Tensor, x: Tensor, y: Tensor, *, size: int) -> tuple[Tensor]:
    """dx = dy at the largest value of every patch, and 0 elsewhere."""
    largest = pooling_patches(x, size).argmax(4, keepdim=True)
    is_largest = largest == torch.arange(size * size, device=x.device)
    (count, channels, rows, columns), (height, width) = dy.shape, x.shape[2:]
    patches = (dy.unsqueeze(4) * is_largest).view(count, channels, rows, columns, size, size)
    whole = patches.transpose(3, 4).reshape(count, channels, rows * size, columns * size)
    return (nn.functional.pad(whole, [0, width - columns * size, 0, height - rows * size]),)


DENSE = Layer(dense_forward, dense_backward)
ELU = Layer(elu_forward, elu_backward)
RELU = Layer(relu_forward, relu_backward)
TANH = Layer(torch.tanh, tanh_backward)
SIGMOID = Layer(sigmoid_forward, sigmoid_backward)
FLATTEN = Layer(flatten_forward, flatten_backward)


def convolution(padding: int) -> Layer:
    """A convolution of stride 1 whose input is padded by ``padding`` zeros on each side."""
    options: dict[str, Any] = {"padding": padding}
    return Layer(functools.partial(convolution_forward, **options), functools.partial(convolution_backward, **options))


def max_pooling(size: int) -> Layer:
    """Max pooling over adjacent patches of ``size`` x ``size``."""
    options: dict[str, Any] = {"size": size}
    return Layer(functools.partial(max_pooling_forward, **options), functools.partial(max_pooling_backward, **options))


# L = mean_n (log sum_c e^z_nc - z_ny). So dL/dz_nc = (p_nc - 1{c = y}) / N, where p_nc = e^z_nc / sum_k e^z_nk is the
# softmax probability and y the true class of sample n.


def cross_entropy_forward(logits: Tensor, y: Tensor) -> Tensor:
    """Mean of -log softmax(logits)[y] over N, from logits (N, C) and classes (N,).

    The largest logit is subtracted first, to prevent overflow.
    """
    logits = logits - logits.amax(1, keepdim=True)
    return (logits.exp().sum(1).log() - logits.gather(1, y.unsqueeze(1)).squeeze(1)).mean()


def softmax(logits: Tensor) -> Tensor:
    """e^z_c / sum_k e^z_k, for logits z (N, C)."""
    powers = (logits - logits.amax(1, keepdim=True)).exp()
    return powers / powers.sum(1, keepdim=True)


def cross_entropy_backward(logits: Tensor, y: Tensor) -> Tensor:
    """The gradient of the logits (N, C): (softmax(logits) - onehot(y)) / N."""
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


class _Network(torch.autograd.Function):
    """A whole network as one function, so that autograd sees none of its layers."""

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
        weights, outputs = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        dx, by_layer = gradients(ctx.layers, _grouped(weights, ctx.counts), outputs, dy)
        return None, None, dx, *itertools.chain.from_iterable(by_layer)


def _grouped(weights: Sequence[Tensor], counts: Sequence[int]) -> list[tuple[Tensor, ...]]:
    """Divide the weights by layer; ``counts`` is the number of weights of each layer."""
    remaining = iter(weights)
    return [tuple(itertools.islice(remaining, count)) for count in counts]


class ByHand(nn.Module):
    """A network of torch's layers, computed by the formulas of this module; torch's layers only hold the weights."""

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.net = network  # a name in checkpoints
        self.layers = [_formulas(layer) for layer in network]
        self.counts = [len(list(layer.parameters())) for layer in network]

    def forward(self, x: Tensor) -> Tensor:
        """From x (N, *shape) to logits (N, outputs)."""
        logits: Tensor = _Network.apply(self.layers, self.counts, x, *self.net.parameters())[0]
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
    """:func:`dlhw.models.dense.mlp` with hand-written gradients (A2)."""
    return ByHand(dense.mlp(shape, outputs, hidden=hidden, activation=activation, dropout=0.0, batch_norm=False))


def cnn_by_hand(
    shape: tuple[int, ...],
    outputs: int,
    *,
    channels: Annotated[list[dense.Width], Field(min_length=1)],
    kernel: Annotated[int, Field(gt=0, le=1000)],
    activation: ActivationName,
) -> ByHand:
    """:func:`dlhw.models.convolutional.cnn` with hand-written gradients."""
    return ByHand(
        convolutional.cnn(
            shape, outputs, channels=channels, kernel=kernel, activation=activation, dropout=0.0, batch_norm=False
        )
    )
