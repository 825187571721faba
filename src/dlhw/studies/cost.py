"""The cost of a model: parameters and multiply-adds of each layer for one sample (C5.5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dlhw.data.tensors import Dataset
from dlhw.storage.answer import Answer


def cost(*, data: Dataset, model: nn.Module) -> Answer:
    """Return the table ``cost``: layer, kind, output shape, parameters, multiply-adds of one sample's forward pass.

    Multiply-adds are those of matrix products and convolutions, half of the operations in torch's flop counter.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    leaves = {name: layer for name, layer in model.named_modules() if not list(layer.children())}

    def note(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
            shapes[name] = tuple(output.shape[1:]) if isinstance(output, Tensor) else ()

        return hook

    handles = [layer.register_forward_hook(note(name)) for name, layer in leaves.items()]
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(data.normalize(data.train[:1][0]))
    for handle in handles:
        handle.remove()
    root = type(model).__name__
    counts = counter.get_flop_counts()
    rows: list[dict[str, Any]] = [
        {
            "layer": name,
            "kind": type(layer).__name__,
            "output": "x".join(map(str, shapes.get(name, ()))),
            "parameters": sum(parameter.numel() for parameter in layer.parameters()),
            "multiply_adds": sum(counts.get(f"{root}.{name}", {}).values()) // 2,
        }
        for name, layer in leaves.items()
    ]
    numbers = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "multiply_adds": sum(row["multiply_adds"] for row in rows),
    }
    return Answer(numbers, tables={"cost": rows})
