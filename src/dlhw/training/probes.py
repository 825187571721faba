"""Probes: statistics of each layer of a model on a fixed batch. They never change the model or the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError
from dlhw.models.modes import evaluating
from dlhw.runtime.options import Count
from dlhw.training.init import LAYERS

SATURATED: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.Tanh: lambda output: output.abs() > 0.99,
    nn.Sigmoid: lambda output: (output < 0.01) | (output > 0.99),
    nn.ReLU: lambda output: output == 0,
}
"""Whether an activation is saturated (has almost no slope), from its output."""

NORM_OR_ACTIVATION = ("torch.nn.modules.batchnorm", "torch.nn.modules.activation")
"""Modules whose classes count as part of the preceding layer; pooling and dropout do not."""


@dataclass
class ProbedLayer:
    """A dense or convolutional layer, and the output of ``last``, the last norm or activation after it."""

    name: str
    layer: nn.Module
    last: nn.Module
    output: Tensor


def check(probe: Callable[..., Any], data: Dataset) -> None:
    """Raise UsageError if a probe cannot be used with this dataset; called before training, to fail early."""
    if probe is layers and data.numeric_targets:
        raise UsageError(f"probe=layers: needs class labels; dataset={data.name} has numbers; expected probe=none")


def layers(model: nn.Module, data: Dataset, *, samples: Count) -> list[dict[str, Any]]:
    """Return a row per dense or convolutional layer, computed on the first training samples in evaluation mode (B4.c).

    The output of a layer is taken after its norm and activation, before pooling; for the last layer it is the logits.

    - ``name``: the layer's name in the model.
    - ``activation_mean``, ``activation_std``: over the samples and units of the output.
    - ``saturated_percent``: percentage of the output with |tanh| > 0.99, a sigmoid within 0.01 of 0 or 1, or a ReLU of
      0; empty for other activations.
    - ``activation_gradient_norm``: L2 norm of the gradient of the mean cross-entropy with respect to the output.
    - ``weight_norm``, ``weight_gradient_norm``: L2 norms of the layer's weights and of their gradient.

    Gradients are empty if the layer is frozen or no layer before it is trained.
    """
    x, y = data.train[:samples]
    with evaluating(model), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        logits, probed = _forward(model, data.normalize(x))
        if not probed:
            raise UsageError(
                f"probe=layers: needs dense or convolutional modules, which {type(model).__name__} does not call; "
                "expected probe=none"
            )
        loss = nn.functional.cross_entropy(logits, y)
        sources = [layer.output for layer in probed] + [_weight(layer.layer) for layer in probed]
        computed = iter(torch.autograd.grad(loss, [source for source in sources if source.requires_grad]))
        gradients = [next(computed) if source.requires_grad else None for source in sources]
    by_output, by_weight = gradients[: len(probed)], gradients[len(probed) :]
    return [
        {
            "layer": number,
            "name": layer.name,
            "activation_mean": float(layer.output.detach().mean()),
            "activation_std": float(layer.output.detach().std(correction=0)),
            "saturated_percent": _saturated_percent(layer),
            "activation_gradient_norm": _norm(output_gradient),
            "weight_norm": _norm(_weight(layer.layer)),
            "weight_gradient_norm": _norm(weight_gradient),
        }
        for number, (layer, output_gradient, weight_gradient) in enumerate(
            zip(probed, by_output, by_weight, strict=True), 1
        )
    ]


def weights(model: nn.Module, data: Dataset) -> list[dict[str, Any]]:
    """Return a row per weight and bias of the dense layers: the whole network, if it has no other parameters.

    - ``layer``, ``name``: the layer's number, from 1, and its name in the model.
    - ``unit``: the number of the unit, from 0.
    - ``source``: the number of the unit or input before the weight, from 0; ``bias`` for a bias.
    - ``weight``: its value.
    """
    dense = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not dense:
        raise UsageError(
            f"probe=weights: needs dense layers, which {type(model).__name__} does not have; expected probe=none"
        )
    rows = []
    for number, (name, layer) in enumerate(dense, 1):
        columns: dict[object, list[float]] = {} if layer.bias is None else {"bias": layer.bias.tolist()}
        columns |= dict(enumerate(layer.weight.T.tolist()))
        rows += [
            {"layer": number, "name": name, "unit": unit, "source": source, "weight": column[unit]}
            for unit in range(layer.out_features)
            for source, column in columns.items()
        ]
    return rows


def _forward(model: nn.Module, x: Tensor) -> tuple[Tensor, list[ProbedLayer]]:
    probed: list[ProbedLayer] = []

    def make_hook(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(module, LAYERS):
                probed.append(ProbedLayer(name, module, module, output))
            elif probed:
                probed[-1].last, probed[-1].output = module, output

        return hook

    handles = [
        module.register_forward_hook(make_hook(name))
        for name, module in model.named_modules()
        if isinstance(module, LAYERS) or type(module).__module__ in NORM_OR_ACTIVATION
    ]
    try:
        return model(x), probed
    finally:
        for handle in handles:
            handle.remove()


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight


def _saturated_percent(probed: ProbedLayer) -> float:
    saturated = SATURATED.get(type(probed.last))
    return math.nan if saturated is None else 100 * float(saturated(probed.output).sum()) / probed.output.numel()


def _norm(tensor: Tensor | None) -> float:
    return math.nan if tensor is None else float(torch.linalg.vector_norm(tensor.detach()))
