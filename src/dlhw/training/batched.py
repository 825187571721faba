"""The forward pass and the loss of K models of the most common kind as plain operations on stacks.

``torch.func.vmap`` computes the same numbers for any model, but for small networks its bookkeeping takes longer than
the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from dlhw.training.objective import DataLoss

Forward = Callable[[Mapping[str, Tensor], Tensor], Tensor]
ELEMENTWISE = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.GELU, nn.LeakyReLU, nn.SiLU, nn.Identity)


def forward(model: nn.Module) -> Forward | None:
    """Return the forward pass of K models like this one, from their stacked weights and inputs (K, B, *shape).

    Inputs (1, B, *shape) are those of all models. None if the model is not a sequence of dense layers and activations,
    or if a layer has hooks.
    """
    if type(model) is not nn.Sequential or not all(
        type(layer) in (nn.Linear, nn.Flatten, *ELEMENTWISE) for layer in model
    ):
        return None
    if any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules()):
        return None
    layers = list(model.named_children())
    if any(type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) != (1, -1) for _, layer in layers):
        return None

    def forward(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return outputs (K, B, C) for weights (K, out, in), biases (K, out) and inputs (K or 1, B, *shape)."""
        shared = len(x) == 1
        x = x.squeeze(0) if shared else x
        for name, layer in layers:
            if isinstance(layer, nn.Flatten):
                x = x.flatten(1 if shared else 2)
            elif isinstance(layer, nn.Linear):
                x = torch.matmul(x, state[f"{name}.weight"].transpose(1, 2))
                if layer.bias is not None:
                    x = x + state[f"{name}.bias"].unsqueeze(1)
            else:
                x = layer(x)
        return x

    return forward


def cross_entropy(loss: DataLoss) -> DataLoss | None:
    """Return torch's cross entropy of K models, from logits (K, B, C) and labels (K, B) or (1, B); None for others.

    The formula is that of :func:`dlhw.training.acceleration.vectorizable`, with one more dimension.
    """
    if getattr(loss, "func", loss) is not nn.functional.cross_entropy or any(
        getattr(loss, "keywords", {"label_smoothing": 0.0}).values()
    ):
        return None

    def batched(logits: Tensor, y: Tensor) -> Tensor:
        logits = logits - logits.detach().amax(2, keepdim=True)
        target = logits.gather(2, y.expand(len(logits), -1).unsqueeze(2)).squeeze(2)
        return (logits.exp().sum(2).log() - target).mean(1)

    return batched
