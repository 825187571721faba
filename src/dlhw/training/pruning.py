"""Pruning: which weights of K models of one structure to set to 0, and what is left of the models (C1.3).

Weights are stacks (K, out, in), one for each layer, from the inputs to the output. Biases are never pruned.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def flat(weights: Sequence[Tensor]) -> Tensor:
    """Return all weights of each model in one row: tensors (K, *shape) to (K, W)."""
    return torch.cat([weight.detach().flatten(1) for weight in weights], 1)


def smallest(scores: Tensor, count: int) -> Tensor:
    """Return a mask that is True for the ``count`` smallest of the scores (..., W) of each model.

    With scores |w| this is global magnitude pruning, with random scores it is random pruning. Of equal scores, the
    first count as smaller.
    """
    return scores.argsort(dim=-1, stable=True).argsort(dim=-1) < count


def by_layer(rows: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Return rows (K, W), such as a mask, in the shapes of the weights: the inverse of :func:`flat`."""
    parts = rows.split([weight[0].numel() for weight in weights], 1)
    return [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]


def set_to_zero(weights: Sequence[Tensor], pruned: Sequence[Tensor]) -> None:
    """Set the weights to 0 where the masks (K, *shape) are True: in place, and not recorded by autograd."""
    for weight, mask in zip(weights, pruned, strict=True):
        weight.detach().masked_fill_(mask, 0.0)


def units_left(weights: Sequence[Tensor]) -> Tensor:
    """Return how many hidden units of each model, (K,), weights other than 0 connect to the inputs and to the output.

    The others can be removed without a change of the output. A unit that no input reaches is constant, so the biases of
    the next layer can absorb it; a unit that does not reach the output has no effect.
    """
    connected = [(weight.detach() != 0).float() for weight in weights]
    from_input, to_output = [torch.ones_like(connected[0][:, 0])], [torch.ones_like(connected[-1][:, :, 0])]
    for layer in connected[:-1]:
        from_input.append((layer @ from_input[-1].unsqueeze(2)).squeeze(2).clamp(max=1))
    for layer in reversed(connected[1:]):
        to_output.append((to_output[-1].unsqueeze(1) @ layer).squeeze(1).clamp(max=1))
    used = [before * after for before, after in zip(from_input[1:], reversed(to_output[1:]), strict=True)]
    return torch.cat(used, 1).sum(1).long()
