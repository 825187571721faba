"""The forward pass and the loss of K models of the most common kind as plain operations on stacks.

``torch.func.vmap`` computes the same numbers for any model, but for small networks its bookkeeping takes longer than
the arithmetic, and torch's kernel for the cross entropy is slow for thousands of rows of ten numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from dlhw.models.playground import Features
from dlhw.training.objective import DataLoss, half_mse, mse

Forward = Callable[[Mapping[str, Tensor], Tensor], Tensor]
ELEMENTWISE_LOSSES = (half_mse, mse)
"""Losses for numeric targets that act on K models as on one: from outputs (..., B) and targets to losses (...)."""
ELEMENTWISE = (Features, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.GELU, nn.LeakyReLU, nn.SiLU, nn.Identity)


def forward(model: nn.Module) -> Forward | None:
    """Return the forward pass of K models like this one, from their stacked weights and inputs (K, B, *shape).

    Inputs (1, B, *shape) are those of all models. None for models other than a sequence of a flattening and then dense
    layers and activations, each used once and without hooks.
    """
    if type(model) is not nn.Sequential or not model or len(set(model)) < len(model):
        return None
    (_, first), *layers = model.named_children()
    if type(first) is not nn.Flatten or (first.start_dim, first.end_dim) != (1, -1):
        return None
    if not all(type(layer) in (nn.Linear, *ELEMENTWISE) for _, layer in layers):
        return None
    if any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules()):
        return None

    def forward(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return outputs (K, B, C) for weights (K, out, in), biases (K, out) and inputs (K or 1, B, *shape)."""
        x = x.flatten(2)
        x = x.squeeze(0) if len(x) == 1 else x  # matmul then computes one large product
        for name, layer in layers:
            if isinstance(layer, nn.Linear):
                x = torch.matmul(x, state[f"{name}.weight"].transpose(1, 2))
                if layer.bias is not None:
                    x = x + state[f"{name}.bias"].unsqueeze(1)
            else:
                x = layer(x)
        return x

    return forward


def loss(of_one: DataLoss) -> DataLoss | None:
    """Return the loss of K models, from outputs (K, B, ...) and targets (K, B) or (1, B), if it is known.

    ``of_one`` is the loss of one model: one of ``ELEMENTWISE_LOSSES``, or torch's cross entropy with no other option
    than ``label_smoothing``.
    """
    function, options = getattr(of_one, "func", of_one), getattr(of_one, "keywords", {})
    if function in ELEMENTWISE_LOSSES:
        return of_one
    if function is nn.functional.cross_entropy and options.keys() <= {"label_smoothing"}:
        return functools.partial(_cross_entropy, **options)
    return None


def _cross_entropy(logits: Tensor, y: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the means over B of log sum exp(logits) - (1 - s) logits[y] - s mean(logits), (K,).

    The largest logit is subtracted first, so that nothing overflows and no digits cancel.
    """
    logits = logits - logits.detach().amax(2, keepdim=True)
    target = logits.gather(2, y.expand(len(logits), -1).unsqueeze(2)).squeeze(2)
    if label_smoothing:
        target = torch.lerp(target, logits.mean(2), label_smoothing)
    return (logits.exp().sum(2).log() - target).mean(1)
