"""Compare torch's default library for fp32 matrix products on the CPU with oneDNN: time and error, by size.

    python scripts/benchmark_products.py

The sizes are those of linear layers, alone and in ensembles. The errors are the largest ones relative to the bound for
fp32 of :func:`dlhw.runtime.products.relative_error`; factors that are rounded to bf16 would give more than 100.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import dlhw  # noqa: F401  # before torch: sets how long its threads spin

# isort: split
import torch

from dlhw.runtime.devices import use_threads
from dlhw.runtime.products import Library, computed_by, is_exact_in_onednn, relative_error

LIBRARIES: tuple[Library, Library] = ("default", "oneDNN")
SIZES = (
    (1, 32, 64, 32),
    (1, 128, 64, 64),
    (1, 128, 500, 10),
    (1, 128, 128, 128),
    (1, 128, 784, 32),
    (1, 128, 784, 100),
    (1, 128, 784, 500),
    (1, 1000, 784, 500),
    (8, 32, 64, 32),
    (64, 32, 64, 32),
    (21, 128, 784, 500),
)
"""Networks, samples, inputs, outputs."""


def microseconds(product: Callable[[], torch.Tensor], multiply_adds: int) -> float:
    """Return the shortest mean time of five series of calls."""
    calls = max(10, 10**9 // (multiply_adds + 50_000))
    means = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(calls):
            product()
        means.append((time.perf_counter() - started) / calls)
    return 1e6 * min(means)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    use_threads()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, exact in oneDNN: {is_exact_in_onednn()}\n")
    print("| networks x samples x inputs x outputs | multiply-adds | default, us | oneDNN, us | ratio | errors |")
    print("|---|--:|--:|--:|--:|--:|")
    for count, samples, inputs, outputs in SIZES:
        x, weight = torch.randn(count, samples, inputs), torch.randn(count, outputs, inputs).mT
        x, weight = (x[0], weight[0]) if count == 1 else (x, weight)
        multiply_adds = count * samples * inputs * outputs
        times, errors = [], []
        for library in LIBRARIES:
            with computed_by(library):
                times.append(microseconds(partial(torch.matmul, x, weight), multiply_adds))
                errors.append(relative_error(x @ weight, x, weight))
        size = " x ".join(map(str, (count, samples, inputs, outputs)))
        print(
            f"| {size} | {multiply_adds / 1e6:.2f} M | {times[0]:.0f} | {times[1]:.0f} | {times[1] / times[0]:.2f} "
            f"| {errors[0]:.2f}, {errors[1]:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
