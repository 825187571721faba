"""Random numbers keyed by their use, so that a resumed run needs no stored random state."""

from __future__ import annotations

import hashlib

import torch


def key(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed for one use in a run, such as ``key(0, "order", epoch)``.

    Equal arguments give equal keys, different ones give unrelated keys.
    """
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a generator seeded by :func:`key`, on the CPU, so that no draw depends on the device."""
    return torch.Generator().manual_seed(key(seed, *purpose))
