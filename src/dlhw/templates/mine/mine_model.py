"""The network of model/mine.yaml. Replace it with yours."""

from __future__ import annotations

import math

from torch import Tensor, nn


class Network(nn.Module):
    """Maps samples (N, *shape) to logits (N, outputs). The options come from model/mine.yaml."""

    def __init__(self, shape: tuple[int, ...], outputs: int, *, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(math.prod(shape), width), nn.ReLU(), nn.Linear(width, outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits
