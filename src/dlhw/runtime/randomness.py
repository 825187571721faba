"""Randomness keyed by where it is used, so that a resumed run needs no stored random state."""

from __future__ import annotations

import hashlib

import torch


def key(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose at one place of a run, e.g. ``key(0, "order", epoch)``.

    Equal arguments give equal randomness however the run got there; different ones are unrelated.
    """
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator keyed as in :func:`key`; on the CPU so that no draw depends on the device."""
    return torch.Generator().manual_seed(key(seed, *purpose))
