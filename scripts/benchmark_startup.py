"""How long until the first step of a run, and how much memory does it take?

    python scripts/benchmark_startup.py

starts processes of two kinds in turn: one trains C5.2's net on MNIST until its first update of the weights, the
other only imports torch. It prints seconds from the start of the process, their difference, and the peak resident
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
import dlhw.train, dlhw.training.acceleration

def stop():
    print(time.monotonic(), flush=True)
    os._exit(0)

dlhw.training.acceleration.undecorated_step = lambda optimizer: stop
dlhw.train.main()
"""
TRAIN = "import dlhw.train; dlhw.train.main()"
IMPORT_TORCH = "import time, torch; print(time.monotonic())"
# In a process of its own because Linux counts what the parent held when a child was started as the child's.
PEAK_MEMORY = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, capture_output=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def print_startup(data_dir: Path, *, device: str, times: int = 5) -> None:
    """Seconds from the start of a process until its first update of the weights, and peak memory of a run."""
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
    """From now until the moment, on the machine's monotonic clock, that a Python program prints."""
    started = time.monotonic()
    return float(printed("-c", program, *arguments)) - started


def _peak_mib(program: str, *arguments: str) -> float:
    peak = int(printed("-c", PEAK_MEMORY, sys.executable, "-c", program, *arguments))
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB elsewhere


def printed(*arguments: str) -> str:
    """What Python prints, started with these arguments in a process of its own."""
    return subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="where to train")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("DLHW_DATA", "data"), help="holds MNIST/")
    options = parser.parse_args()
    print_startup(options.data_dir, device=options.device)


if __name__ == "__main__":
    main()
