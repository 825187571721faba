"""The four equations of backpropagation for convolution, max pooling and a dense output, all with sigmoids (D3).

For N images a0 (N, H, W), each with a net of its own: z1[j,k] = b1 + sum_lm w1[l,m] a0[j+l,k+m], a1 = s(z1), a2[j,k]
is the maximum of the 2x2 patch of a1 at (2j, 2k), z3[i] = b3[i] + sum_jk w3[i,j,k] a2[j,k], a3 = s(z3), and the cost
is C = 1/2 sum_i (a3[i] - y[i])^2.
"""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor, nn

from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError
from dlhw.runtime.randomness import generator
from dlhw.storage.answer import Answer, at_most
from dlhw.views.plots import PALETTE, TEXT_POINTS, new_figure


class Parameters(NamedTuple):
    """The parameters of N nets: w1 (N, K, K), b1 (N,), w3 (N, C, P, Q), b3 (N, C); P and Q are the pooled sizes."""

    w1: Tensor
    b1: Tensor
    w3: Tensor
    b3: Tensor


class Forward(NamedTuple):
    """Activations: a1 (N, 2 P, 2 Q), a2 (N, P, Q), a3 (N, C)."""

    a1: Tensor
    a2: Tensor
    a3: Tensor


def patches(a1: Tensor) -> Tensor:
    """Reshape (N, 2 P, 2 Q) to (N, P, Q, 4), with the four numbers of each 2x2 patch in the last dimension."""
    return a1.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3)


def forward(p: Parameters, a0: Tensor) -> Forward:
    """Compute all activations. Rows and columns of a1 that fill no patch are dropped, as pooling ignores them."""
    rows, columns = p.w3.shape[2:]
    fields = a0.unfold(1, p.w1.shape[1], 1).unfold(2, p.w1.shape[2], 1)
    z1 = p.b1[:, None, None] + torch.einsum("nlm,njklm->njk", p.w1, fields)
    a1 = torch.sigmoid(z1)[:, : 2 * rows, : 2 * columns]
    a2 = patches(a1).amax(3)
    return Forward(a1, a2, torch.sigmoid(p.b3 + torch.einsum("nijk,njk->ni", p.w3, a2)))


class Deltas(NamedTuple):
    """Gradients of C by z3 (N, C) and by z1 (N, 2 P, 2 Q)."""

    delta3: Tensor
    delta1: Tensor


def deltas(p: Parameters, activations: Forward, y: Tensor) -> Deltas:
    """Compute the first two equations, with s' = s (1 - s).

    (1) delta3[i] = dC/da3[i] s'(z3[i]) = (a3[i] - y[i]) s'(z3[i]), as in a dense net.
    (2) a2[j,k] equals the largest number of its patch, so z1[j,k] affects C only if a1[j,k] is the largest of the patch
    at (j // 2, k // 2). Then delta1[j,k] = s'(z1[j,k]) sum_i delta3[i] w3[i, j // 2, k // 2], otherwise 0.
    """
    a1, a3 = activations.a1, activations.a3
    delta3 = (a3 - y) * a3 * (1 - a3)
    by_a2 = torch.einsum("ni,nijk->njk", delta3, p.w3)
    return Deltas(delta3, spread(by_a2) * largest_of_patch(a1) * a1 * (1 - a1))


def spread(values: Tensor) -> Tensor:
    """Repeat each number of (N, P, Q) at the four places of its patch: (N, 2 P, 2 Q)."""
    return values.repeat_interleave(2, 1).repeat_interleave(2, 2)


def largest_of_patch(a1: Tensor) -> Tensor:
    """Return whether each number of a1 is the maximum of its patch; the first one if several are equal."""
    numbers = patches(a1)
    chosen = numbers.argmax(3, keepdim=True) == torch.arange(4, device=a1.device)
    mask: Tensor = chosen.unflatten(3, (2, 2)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return mask


def gradients(activations: Forward, delta: Deltas, a0: Tensor, kernel: int) -> Parameters:
    """Compute the last two equations.

    (3) b3[i] is added to z3[i] alone: dC/db3[i] = delta3[i]. b1 is added to every z1: dC/db1 = sum_jk delta1[j,k].
    (4) dC/dw3[i,j,k] = delta3[i] a2[j,k], as in a dense net. w1[l,m] is multiplied by a0[j+l,k+m] in every z1[j,k]:
    dC/dw1[l,m] = sum_jk delta1[j,k] a0[j+l,k+m], the input convolved with the deltas.
    """
    delta3, delta1 = delta
    rows, columns = delta1.shape[1:]
    fields = a0.unfold(1, kernel, 1).unfold(2, kernel, 1)[:, :rows, :columns]
    return Parameters(
        w1=torch.einsum("njk,njklm->nlm", delta1, fields),
        b1=delta1.sum((1, 2)),
        w3=torch.einsum("ni,njk->nijk", delta3, activations.a2),
        b3=delta3,
    )


def cost(p: Parameters, a0: Tensor, y: Tensor) -> Tensor:
    """Compute the sum of all N costs with torch's convolution, pooling and dense layer, for autograd."""
    count = len(a0)
    z1 = nn.functional.conv2d(a0.unsqueeze(0), p.w1.unsqueeze(1), p.b1, groups=count)[0]
    a2 = nn.functional.max_pool2d(torch.sigmoid(z1), 2)
    a3 = torch.sigmoid(torch.baddbmm(p.b3.unsqueeze(2), p.w3.flatten(2), a2.flatten(1).unsqueeze(2))).squeeze(2)
    total: Tensor = 0.5 * (a3 - y).square().sum()
    return total


def conv_backprop(
    *,
    seed: int,
    data: Dataset,
    kernel: Annotated[int, Field(gt=0, le=1000)],
    draws: Annotated[int, Field(gt=0, le=100_000)],
) -> Answer:
    """Compare the gradients by the equations with autograd's on the first ``draws`` training images, one net each."""
    if len(data.shape) != 3 or data.shape[0] != 1 or not data.classes:
        raise UsageError(f"dataset={data.name}: must contain images of one channel in classes")
    rows, columns = ((side - kernel + 1) // 2 for side in data.shape[1:])
    if min(rows, columns) < 1:
        raise UsageError(
            f"study.kernel={kernel}: too large for {data.shape[1]}x{data.shape[2]} images; the convolution must leave "
            "at least one 2x2 patch"
        )
    x, labels = data.train[:draws]
    a0, y = data.normalize(x).squeeze(1).double().cpu(), nn.functional.one_hot(labels.cpu(), len(data.classes)).double()
    source = generator(seed, "conv_backprop")
    count, classes = y.shape

    def normal(*shape: int, fan_in: int) -> Tensor:
        return torch.randn(count, *shape, generator=source, dtype=torch.float64) / math.sqrt(fan_in)

    p = Parameters(
        w1=normal(kernel, kernel, fan_in=kernel * kernel),
        b1=normal(fan_in=1),
        w3=normal(classes, rows, columns, fan_in=rows * columns),
        b3=normal(classes, fan_in=1),
    )
    activations = forward(p, a0)
    delta = deltas(p, activations, y)
    by_equations = gradients(activations, delta, a0, kernel)
    leaves = Parameters(*(tensor.clone().requires_grad_() for tensor in p))
    by_autograd = Parameters(*torch.autograd.grad(cost(leaves, a0, y), tuple(leaves)))

    table, checks = [], []
    for name, computed, expected in zip(Parameters._fields, by_equations, by_autograd, strict=True):
        difference = float((computed - expected).abs().max())
        table.append({"gradient": name, "largest": float(expected.abs().max()), "largest_difference": difference})
        checks.append(
            at_most(f"largest difference between dC/d{name} by the equations and by autograd", difference, 1e-12)
        )
    reached = float((delta.delta1 != 0).double().mean())
    return Answer(
        numbers={"nets": count, "share_of_units_reached": reached},
        checks=checks,
        tables={"gradients": table},
        figures={"route": plot_route(a0[0], activations, delta)},
        messages=[f"delta1 is not 0 at {100 * reached:.1f} % of the units, one unit of each 2x2 patch"],
    )


def plot_route(image: Tensor, activations: Forward, delta: Deltas) -> Figure:
    """Plot the activations of the first image, and the deltas that go back through the largest unit of each patch."""
    figure, all_axes = new_figure(
        4,
        title="conv_backprop: activations and deltas of one image",
        subtitle="rings: the largest unit of each 2x2 patch; delta1 is 0 at all other units",
        columns=4,
        panel_inches=1.9,
    )
    a1, delta1 = activations.a1[0], delta.delta1[0]
    maps = {"input a0": image, "a1 = s(z1)": a1, "pooled a2": activations.a2[0], "delta1 = dC/dz1": delta1}
    for axes, (name, values) in zip(all_axes, maps.items(), strict=True):
        signed = values is delta1
        edge = float(values.abs().max()) if signed else None
        axes.imshow(values.numpy(), cmap="RdBu_r" if signed else "gray", vmin=edge and -edge, vmax=edge)
        axes.set_title(name, fontsize=TEXT_POINTS)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(False)
    rows, columns = largest_of_patch(a1.unsqueeze(0))[0].nonzero().T.tolist()
    for axes in (all_axes[1], all_axes[3]):
        axes.scatter(columns, rows, s=22, facecolors="none", edgecolors=PALETTE[4], linewidths=1.2)
    return figure
