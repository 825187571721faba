"""Measure the time until a run's first update of the weights, and the memory that a run needs.

    python scripts/benchmark_startup.py

The script starts two kinds of processes in turn: one trains the network of C5.2 on MNIST until the first update, the
other only imports torch. It prints the seconds from the start of the process, their difference, and the peak resident
memory of a run of two epochs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FIRST_UPDATE = """
import os, time
import dlhw.training.acceleration

def stop():
    print(time.monotonic(), flush=True)
    os._exit(0)

dlhw.training.acceleration.undecorated_step = lambda optimizer: stop
import dlhw.train
dlhw.train.main()
"""
TRAIN = "import dlhw.train; dlhw.train.main()"
IMPORT_TORCH = "import time, torch; print(time.monotonic())"
# This needs its own process, because Linux counts the parent's memory at the start of a child as the child's.
PEAK_MEMORY = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, capture_output=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def print_startup(data_dir: Path, *, device: str, times: int = 5) -> None:
    """Print the seconds from the start of a process until its first update, and the peak memory of a run."""
    with tempfile.TemporaryDirectory() as directory:
        arguments = ["experiment=mnist_mlp", f"data_dir={data_dir.absolute()}", f"output_dir={directory}"]
        arguments += [f"trainer.device={device}", "trainer.epochs=2"]
        pairs = [(_seconds_until(FIRST_UPDATE, *arguments), _seconds_until(IMPORT_TORCH)) for _ in range(times)]
        peaks = {
            "python -m dlhw.train experiment=mnist_mlp trainer.epochs=2": _peak_mib(TRAIN, *arguments),
            "import torch": _peak_mib("import torch"),
        }
    print(f"\nStart-up, {times} pairs of processes in turn\n")
    print("| from the start of the process | seconds | min–max |")
    print("|---|--:|--:|")
    update, torch_alone = zip(*pairs, strict=True)
    rows = {"first update of the weights": update, "import torch": torch_alone}
    rows["difference"] = tuple(after - before for after, before in pairs)
    for name, seconds in rows.items():
        print(f"| {name} | {statistics.median(seconds):.2f} | {min(seconds):.2f}–{max(seconds):.2f} |")
    print("\n| process | peak resident memory, MiB |\n|---|--:|")
    for name, mib in peaks.items():
        print(f"| `{name}` | {mib:.0f} |", flush=True)


def _seconds_until(program: str, *arguments: str) -> float:
    """Start a Python program, and return the seconds until the time that it prints, on the monotonic clock."""
    started = time.monotonic()
    return float(printed("-c", program, *arguments)) - started


def _peak_mib(program: str, *arguments: str) -> float:
    peak = int(printed("-c", PEAK_MEMORY, sys.executable, "-c", program, *arguments))
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB elsewhere


def printed(*arguments: str) -> str:
    """Run Python with these arguments and return its output."""
    return subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="where to train")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("DLHW_DATA", "data"), help="folder with MNIST/")
    options = parser.parse_args()
    print_startup(options.data_dir, device=options.device)


if __name__ == "__main__":
    main()
