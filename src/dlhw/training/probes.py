"""What goes on inside a model, layer by layer, on a fixed batch: pure functions that change nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError
from dlhw.models.modes import evaluating
from dlhw.training.init import LAYERS

SATURATED: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.Tanh: lambda output: output.abs() > 0.99,
    nn.Sigmoid: lambda output: (output < 0.01) | (output > 0.99),
    nn.ReLU: lambda output: output == 0,
}
"""Where an activation has next to no slope, from its output."""

NORM_OR_ACTIVATION = ("torch.nn.modules.batchnorm", "torch.nn.modules.activation")
"""Where the classes are defined that still belong to a layer's output; pooling and dropout do not."""


@dataclass
class Watched:
    """A dense or convolution layer, and what the last norm or activation after it, ``last``, made of its output."""

    name: str
    layer: nn.Module
    last: nn.Module
    output: Tensor


def layers(model: nn.Module, data: Dataset, *, samples: Annotated[int, Field(gt=0)]) -> list[dict[str, Any]]:
    """One row per dense or convolution layer on the first training samples, in evaluation mode (B4.c).

    ``activation_mean`` and ``activation_std`` are over samples and units of the layer's output after norm and
    activation, before pooling (of the last layer: the logits); ``saturated_percent`` is the share of it with
    |tanh| > 0.99, a sigmoid within 0.01 of 0 or 1, a ReLU of 0 (empty for others). ``activation_gradient_norm`` is
    the norm of the batch's mean cross-entropy's gradient by that output, over all samples; ``weight_norm`` and
    ``weight_gradient_norm`` are those of the layer's weights. Where a layer is frozen, or all before it, there are no
    gradients by it. ``name`` is the layer's in the model.
    """
    x, y = data.train[:samples]
    with evaluating(model), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        logits, watched = _forward(model, data.normalize(x))
        if not watched:
            raise UsageError(f"probe=layers: sees no layers in {type(model).__name__}, which computes them by itself")
        loss = nn.functional.cross_entropy(logits, y)
        sources = [each.output for each in watched] + [_weight(each.layer) for each in watched]
        found = iter(torch.autograd.grad(loss, [source for source in sources if source.requires_grad]))
        gradients = [next(found) if source.requires_grad else None for source in sources]
    by_output, by_weight = gradients[: len(watched)], gradients[len(watched) :]
    return [
        {
            "layer": number,
            "name": each.name,
            "activation_mean": float(each.output.detach().mean()),
            "activation_std": float(each.output.detach().std(correction=0)),
            "saturated_percent": _saturated_percent(each),
            "activation_gradient_norm": _norm(output_gradient),
            "weight_norm": _norm(_weight(each.layer)),
            "weight_gradient_norm": _norm(weight_gradient),
        }
        for number, (each, output_gradient, weight_gradient) in enumerate(
            zip(watched, by_output, by_weight, strict=True), 1
        )
    ]


def _forward(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Watched]]:
    watched: list[Watched] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(module, LAYERS):
                watched.append(Watched(name, module, module, output))
            elif watched:
                watched[-1].last, watched[-1].output = module, output

        return hook

    handles = [
        module.register_forward_hook(note(name))
        for name, module in model.named_modules()
        if isinstance(module, LAYERS) or type(module).__module__ in NORM_OR_ACTIVATION
    ]
    try:
        return model(x), watched
    finally:
        for handle in handles:
            handle.remove()


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight


def _saturated_percent(watched: Watched) -> float:
    saturated = SATURATED.get(type(watched.last))
    return math.nan if saturated is None else 100 * float(saturated(watched.output).double().mean())


def _norm(tensor: Tensor | None) -> float:
    return math.nan if tensor is None else float(torch.linalg.vector_norm(tensor.detach()))
