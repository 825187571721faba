"""What goes on inside a model, layer by layer, on a fixed batch: pure functions that change nothing."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from dlhw.data.tensors import Dataset


def layers(model: nn.Module, data: Dataset, *, samples: Annotated[int, Field(gt=0)]) -> list[dict[str, Any]]:
    """Per parameter: its norm and the norm of the cross-entropy's gradient on the first training samples.

    One row per parameter: name, size, norm, gradient_norm (Frobenius). The model is watched in evaluation mode.
    """
    training = model.training
    model.eval()
    parameters = dict(model.named_parameters())
    x, y = data.train.x[:samples], data.train.y[:samples]
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        loss = nn.functional.cross_entropy(model(data.normalize(x)), y)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
    model.train(training)

    def norm(tensor: Tensor) -> float:
        return float(torch.linalg.vector_norm(tensor.detach()))

    return [
        {"parameter": name, "size": value.numel(), "norm": norm(value), "gradient_norm": norm(gradient)}
        for (name, value), gradient in zip(parameters.items(), gradients, strict=True)
    ]
