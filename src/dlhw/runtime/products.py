"""The library that computes fp32 matrix products on a CPU: torch's default, which is usually MKL, or oneDNN.

MKL does not use AVX-512 on processors of other makers than Intel, and oneDNN does. torch passes fp32 products to
oneDNN only together with the permission to compute them in bf16. Without bf16 matrix units, oneDNN does not use this
permission and computes in fp32, twice as fast as MKL on such processors. So oneDNN is used where its products are as
exact as those of fp32 arithmetic. The choice depends on the processor and the sizes, never on a measured time, so it is
the same in every run on a machine.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from dlhw.runtime.devices import Precision
from dlhw.runtime.randomness import generator

Library = Literal["oneDNN", "default"]
WORTHWHILE = 2**21
"""The number of multiply-adds in a product from which on oneDNN is faster; its calls take longer (docs/speed.md)."""


def fastest_library(weights: Sequence[Tensor], samples: int, precision: Precision) -> Library:
    """Return the library for the products of a training step with these stacked weights and ``samples`` per model.

    It does not depend on K, so a run that is resumed with others, or alone, keeps its library.

    Args:
        weights: parameters (K, *shape) of K models; those with the shape (K, out, in) are matrices.
        samples: samples per model in a batch.
        precision: the libraries differ only for fp32 on a CPU.
    """
    if precision.name != "fp32" or precision.device.type != "cpu":
        return "default"
    products = [weight[0].numel() * samples for weight in weights if weight.ndim == 3]
    if not products or sum(products) / len(products) < WORTHWHILE:
        return "default"
    return "oneDNN" if is_exact_in_onednn() else "default"


@contextlib.contextmanager
def computed_by(library: Library) -> Iterator[None]:
    """Compute fp32 products on the CPU by this library within the context.

    With oneDNN, ``torch.get_float32_matmul_precision`` raises RuntimeError within the context, because the setting that
    it reads and the newer one that is used here differ.
    """
    if library == "default":
        yield
        return
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


@functools.cache
def is_exact_in_onednn() -> bool:
    """Return whether oneDNN's products are as exact as fp32 arithmetic even if it is allowed to use bf16.

    Measured on the three products of a linear layer (forward, both gradients) and on a batch of products, against
    float64. Rounding the factors to bf16 or tf32 exceeds the bound of :func:`relative_error` at least tenfold.
    """
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled and _passes_on()):
        return False
    x, weight, gradient = (_normal(*shape) for shape in ((96, 640), (160, 640), (96, 160)))
    pairs = [(x, weight.T), (gradient, weight), (gradient.T, x), (x.view(3, 32, 640), weight.T.expand(3, 640, 160))]
    with computed_by("oneDNN"), torch.no_grad():
        return all(relative_error(a @ b, a, b) <= 1 for a, b in pairs)


def relative_error(product: Tensor, a: Tensor, b: Tensor) -> float:
    """Return the largest error of the product a b relative to the bound for fp32, 2 n^(1/2) 2^-24 |a| |b|.

    n is the number of terms of an inner product, and |a| |b| is the product of the absolute values. Rounding errors of
    fp32 stay below this bound with high probability (Higham and Mary, A new approach to probabilistic rounding error
    analysis, 2019).
    """
    a, b = a.double(), b.double()
    bound = 2 * math.sqrt(a.shape[-1]) * 2**-24 * (a.abs() @ b.abs())
    return ((product.double() - a @ b).abs() / bound).max().item()


def _passes_on() -> bool:
    """Return whether torch passes products to oneDNN on this processor; it does so from AVX-512 on."""
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(0, "products", *shape), dtype=torch.float32, device="cpu")
