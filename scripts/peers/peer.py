"""What the programs in this folder share: arguments, data, and the lines that they print.

Each program trains a network on 48,000 images of MNIST with one framework, from arrays in memory and without
logging, checkpoints or progress bars. It prints a JSON line with the seconds of each epoch after the first, which is
the warm-up and includes compilation, and a line with the validation error on the other 12,000 training images at the
end. ``benchmark_loop.py --peers`` runs the programs. This module needs only NumPy.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MEAN, STD = 0.1307, 0.3081  # of pixel / 255
BATCH, MOMENTUM = 128, 0.9
LR = {"mlp": 0.1, "cnn": 0.01}
HIDDEN, CLASSES = 500, 10
CHANNELS, KERNEL = (16, 32), 5
LARGEST_ERROR_PERCENT = 6.0  # of two epochs or more; a linear classifier has 8


@dataclass(frozen=True)
class Data:
    """Pixels (N, 28, 28) and labels (N)."""

    x: NDArray[np.uint8]
    y: NDArray[np.int64]
    x_val: NDArray[np.uint8]
    y_val: NDArray[np.int64]


def parse_arguments(
    summary: str | None, arguments: list[str] | None = None, *, precisions: tuple[str, ...] = ("fp32",)
) -> argparse.Namespace:
    """Parse the arguments of a program; ``summary`` is its docstring."""
    parser = argparse.ArgumentParser(
        description=(summary or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="mlp", choices=["mlp", "cnn"], help="784-500-10 (C5.2), or two convolutions (C5.5)")
    add("--precision", default=precisions[0], choices=precisions, help="of the arithmetic; the weights are fp32")
    add("--epochs", type=int, default=1, help="measured epochs, after a warm-up epoch")
    add("--data-dir", type=Path, default=os.environ.get("DLHW_DATA", "data"), help="folder with MNIST/")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error(f"--epochs={options.epochs}: must be at least 1")
    return options


def load(data_dir: Path) -> Data:
    """Read 48,000 images for training and 12,000 for validation."""
    x = read(data_dir / "MNIST" / "raw" / "train-images-idx3-ubyte", header=16).reshape(-1, 28, 28)
    y = read(data_dir / "MNIST" / "raw" / "train-labels-idx1-ubyte", header=8).astype(np.int64)
    return Data(x[:48_000], y[:48_000], x[48_000:], y[48_000:])


def read(path: Path, *, header: int) -> NDArray[np.uint8]:
    """Read the values in ``path`` or, if there is no such file, in ``path``.gz."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        with gzip.open(f"{path}.gz") as stream:
            content = stream.read()
    return np.frombuffer(bytearray(content), np.uint8, offset=header)


def standardized(x: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return (pixel / 255 - mean) / standard deviation."""
    return ((x / 255 - MEAN) / STD).astype(np.float32)


class Clock:
    """Print the seconds between the ends of successive epochs."""

    def __init__(self) -> None:
        self.last: float | None = None

    def epoch_ended(self) -> None:
        now = time.perf_counter()
        if self.last is not None:
            print(json.dumps({"seconds": now - self.last}), flush=True)
        self.last = now


def finish(predicted: NDArray[np.integer], y: NDArray[np.int64]) -> None:
    """Print the validation error. Exit if it is too large, which means that the program trains something else."""
    error = 100 * float(np.mean(predicted != y))
    print(json.dumps({"val_error_percent": error}), flush=True)
    if not error <= LARGEST_ERROR_PERCENT:
        sys.exit(f"the validation error is {error:.2f} %, expected at most {LARGEST_ERROR_PERCENT:.0f} %")
