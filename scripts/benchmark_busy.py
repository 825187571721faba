"""Measure how much other busy processes slow down training, for several settings of OpenMP.

    python scripts/benchmark_busy.py                                   as shipped, libgomp's default, and others
    python scripts/benchmark_busy.py --settings "" GOMP_SPINCOUNT=3000 as shipped, and one other number of turns

A setting is a list of environment variables, separated by spaces; the empty one is what dlhw sets by itself. For each
setting the script starts ``python -m dlhw.train experiment=mnist_mlp`` and measures some epochs, with their evaluation,
on the machine as it is. Then it starts busy processes, which only compute, and measures the next epochs of the same
run. The settings take turns in every round. The machine should be idle apart from this script.

The fair share is what a scheduler can give: t threads beside b busy processes on c cores get t c / (t + b) cores, so
that an epoch takes (t + b) / c times as long. A ratio of 1 in the column "of the fair share" means that waiting costs
nothing beyond that. An epoch that takes longer than ``--limit`` seconds counts as that long, marked by "≥".
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SETTINGS = ("GOMP_SPINCOUNT=300000", "", "OMP_WAIT_POLICY=PASSIVE", "OMP_NUM_THREADS=1")
NAMES = {"GOMP_SPINCOUNT=300000": "libgomp's default", "": "as shipped", "OMP_NUM_THREADS=1": "one thread"}
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "KMP_BLOCKTIME", "KMP_USE_YIELD", "KMP_LIBRARY")
"""Variables that a setting removes unless it sets them."""
BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@dataclass(frozen=True)
class Epochs:
    """Seconds per epoch on the quiet machine and beside busy processes; ``bounded`` if the latter are a lower bound."""

    quiet: float
    busy: float
    bounded: bool = False


@contextlib.contextmanager
def killed_at_end(commands: Sequence[Sequence[str]], environment: dict[str, str] | None = None) -> Iterator[None]:
    """Start processes, and kill them at the end of the context."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def seconds_of_epochs(run: Path) -> list[float]:
    """Return the seconds of the epochs that a run has finished."""
    with contextlib.suppress(FileNotFoundError):
        lines = (run / "timing.csv").read_text().splitlines(keepends=True)
        return [float(line.split(",")[1]) for line in lines[1:] if line.endswith("\n")]
    return []


def wait_for_epochs(run: Path, count: int, seconds: float) -> list[float]:
    """Wait until a run has finished ``count`` epochs, at most ``seconds``. Return the seconds of each."""
    deadline = time.monotonic() + seconds
    while len(epochs := seconds_of_epochs(run)) < count and time.monotonic() < deadline:
        time.sleep(0.05)
    return epochs


def measure_run(setting: str, options: argparse.Namespace) -> Epochs:
    """Train with a setting: a first epoch, quiet epochs, an epoch in which the busy processes start, busy epochs."""
    variables = dict(variable.split("=", 1) for variable in setting.split())
    environment = {name: value for name, value in os.environ.items() if name not in WAITING} | variables
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory, "run")
        command = [sys.executable, "-m", "dlhw.train", "experiment=mnist_mlp", "trainer.device=cpu"]
        command += [f"data_dir={options.data_dir.absolute()}", f"hydra.run.dir={run}", *options.overrides]
        with killed_at_end([command], environment):
            quiet = wait_for_epochs(run, 1 + options.epochs, 120)
            if len(quiet) <= options.epochs:
                raise SystemExit(f"{setting or 'as shipped'}: training has not finished {1 + options.epochs} epochs")
            with killed_at_end([[sys.executable, "-c", BUSY]] * options.busy):
                started = len(quiet)
                busy = wait_for_epochs(run, started + 1 + options.epochs, options.limit)[started + 1 :]
    measured = statistics.median(busy) if busy else options.limit
    return Epochs(statistics.median(quiet[1:]), measured, bounded=not busy)


def fair_share(setting: str, busy: int) -> float:
    """Return how many times longer an epoch takes if the cores are shared equally among all threads."""
    cores = usable_cores()
    variables = dict(variable.split("=", 1) for variable in setting.split())
    threads = int(variables.get("OMP_NUM_THREADS", cores))
    return max(1.0, (threads + busy) / cores)


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def print_table(results: dict[str, list[Epochs]], busy: int) -> None:
    """Print medians and ranges over the rounds; ratios are within one round."""
    print("| setting | quiet, s | min–max | to the first row | busy, s | min–max | busy / quiet | of the fair share |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    first = next(iter(results.values()))
    for setting, rounds in results.items():
        quiet, beside = [epochs.quiet for epochs in rounds], [epochs.busy for epochs in rounds]
        to_first = statistics.median(a.quiet / b.quiet for a, b in zip(rounds, first, strict=True))
        slower = statistics.median(epochs.busy / epochs.quiet for epochs in rounds)
        mark = "≥ " if any(epochs.bounded for epochs in rounds) else ""
        print(
            f"| {NAMES.get(setting, setting)} | {statistics.median(quiet):.2f} | {min(quiet):.2f}–{max(quiet):.2f} "
            f"| {to_first:.2f} | {mark}{statistics.median(beside):.2f} | {min(beside):.2f}–{max(beside):.2f} "
            f"| {mark}{slower:.1f} | {mark}{slower / fair_share(setting, busy):.2f} |",
            flush=True,
        )


def parse_arguments() -> argparse.Namespace:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--settings", nargs="+", default=list(SETTINGS), metavar="NAME=VALUE", help="environment variables to compare")
    add("--rounds", type=int, default=3, help="number of rounds")
    add("--epochs", type=int, default=5, help="measured epochs per turn, quiet and busy")
    add("--busy", type=int, default=usable_cores(), help="number of busy processes")
    add("--limit", type=float, default=30, help="seconds to wait for busy epochs")
    add("--data-dir", type=Path, default=os.environ.get("DLHW_DATA", "data"), help="folder with MNIST/")
    add("overrides", nargs="*", help="of the run, such as trainer.compile=true")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results: dict[str, list[Epochs]] = {setting: [] for setting in options.settings}
    for turn in range(1, options.rounds + 1):
        for setting, rounds in results.items():
            rounds.append(measure_run(setting, options))
            print(f"round {turn}/{options.rounds}: {setting or 'as shipped'}: {rounds[-1]}", file=sys.stderr)
    print(f"{platform.machine()}, {usable_cores()} cores, {options.busy} busy processes, {options.rounds} rounds\n")
    print_table(results, options.busy)


if __name__ == "__main__":
    main()
