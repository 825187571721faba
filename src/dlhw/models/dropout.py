"""Dropout with keyed masks, which do not depend on the device, the batch of variants, or earlier draws."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Constants of the SplitMix64 generator (Steele, Lea & Flood 2014), as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64
_NEXT_PASS = 0x5851F42D4C957F2D


class Dropout(nn.Module):
    """In training, set each value to zero with probability ``rate`` and divide the others by 1 - rate.

    Value i of a pass is dropped if a hash of (key, i) is in the lowest fraction ``rate`` of all 64-bit numbers. The
    buffer ``key`` is set at the start of every epoch and changes with every pass. So variants with different keys and
    rates can be computed by one ``torch.func.vmap``, with the same masks as when computed separately.
    """

    rate: Tensor
    key: Tensor
    threshold: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.register_buffer("rate", torch.tensor(rate, dtype=torch.float64), persistent=False)
        self.register_buffer("threshold", torch.tensor(int(rate * 2**64) - 2**63), persistent=False)
        self.register_buffer("key", torch.tensor(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = hashed(x.numel(), self.key) >= self.threshold
        self.key.add_(_NEXT_PASS)
        return x * (kept.view(x.shape) / (1 - self.rate)).to(x.dtype)


def hashed(count: int, key: Tensor) -> Tensor:
    """Return ``count`` numbers, uniform over all int64: the SplitMix64 sequence from ``key``, a scalar int64."""
    z = (torch.arange(count, device=key.device) + key) * _GOLDEN
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _FIRST  # the mask makes the shift unsigned
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _SECOND
    return z ^ ((z >> 31) & (2**33 - 1))
