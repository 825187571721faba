"""Measure how much other busy processes slow down training, for several settings of OpenMP.

    python scripts/benchmark_busy.py                                   as shipped, libgomp's default, and others
    python scripts/benchmark_busy.py --settings "" GOMP_SPINCOUNT=3000 as shipped, and one other number of turns

A setting is a list of environment variables, separated by spaces; the empty one is what dlhw sets by itself. For each
setting the script starts ``python -m dlhw.train experiment=mnist_mlp`` and suspends it after the first epoch. Then the
runs take turns: one is resumed, finishes some epochs with their evaluation, and is suspended again. After some rounds
the script starts busy processes, which only compute, and measures as many rounds beside them. The machine should be
idle apart from this script.

The fair share is what a scheduler can give: t threads beside b busy processes on c cores get t c / (t + b) cores, so
that an epoch takes (t + b) / c times as long. A ratio of 1 in the column "of the fair share" means that waiting costs
nothing beyond that. A turn ends after ``--limit`` seconds; "≥" marks a lower bound.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from dlhw.runtime.threads import SPINNING, usable_cores

SETTINGS = ("GOMP_SPINCOUNT=300000", "", "OMP_WAIT_POLICY=PASSIVE", "OMP_NUM_THREADS=1")
NAMES = {"GOMP_SPINCOUNT=300000": "libgomp's default", "": "as shipped", "OMP_NUM_THREADS=1": "one thread"}
WAITING = (*SPINNING, "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_LIBRARY")
"""Variables that a setting removes unless it sets them."""
BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@dataclass
class Run:
    """A run of the shipped command with a setting, which computes only while it is measured."""

    setting: str
    directory: Path
    process: psutil.Popen
    quiet: list[float] = field(default_factory=list)
    """Seconds per epoch in each round, without other processes."""
    busy: list[float] = field(default_factory=list)
    """Seconds per epoch in each round, beside busy processes."""
    bounded: bool = False
    """Whether some of these are only lower bounds."""
    unfinished: float = 0.0
    """Seconds already spent on the epoch that a turn left unfinished."""

    @property
    def name(self) -> str:
        return NAMES.get(self.setting, self.setting)

    @property
    def threads(self) -> int:
        return int(variables(self.setting).get("OMP_NUM_THREADS", usable_cores()))

    def finished_epochs(self) -> int:
        """Return the number of rows in ``timing.csv``, which has a header."""
        with contextlib.suppress(FileNotFoundError):
            return (self.directory / "timing.csv").read_text().count("\n") - 1
        return 0

    def seconds_per_epoch(self, count: int, limit: float = math.inf) -> tuple[float, bool]:
        """Resume the run until ``count`` more epochs are finished, or for ``limit`` seconds, and suspend it again.

        Return the seconds per epoch, and whether this is only a lower bound.
        """
        before, started = self.finished_epochs(), time.monotonic() - self.unfinished
        epochs, of_last = 0, started
        self.process.resume()
        while True:
            time.sleep(0.01)
            if (now := self.finished_epochs() - before) > epochs:
                epochs, of_last = now, time.monotonic()
            elapsed = time.monotonic() - started
            if epochs >= count or elapsed > self.unfinished + limit:
                break
            if self.process.poll() is not None:
                raise SystemExit(f"{self.name}: training ended with exit code {self.process.returncode}")
        self.process.suspend()
        self.unfinished = started + elapsed - of_last
        return (elapsed / epochs, False) if epochs >= count else (elapsed / (epochs + 1), True)


def variables(setting: str) -> dict[str, str]:
    return dict(variable.split("=", 1) for variable in setting.split())


@contextlib.contextmanager
def killed_at_end(command: Sequence[str], **options: Any) -> Iterator[psutil.Popen]:
    """Start a process, and kill it at the end of the context."""
    process = psutil.Popen(command, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def measure(options: argparse.Namespace) -> list[Run]:
    """Start a run for each setting, then measure them in turn: all rounds without and all with busy processes."""
    with contextlib.ExitStack() as stack:
        runs: list[Run] = []
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for setting in options.settings:
            directory = root / str(len(runs))
            command = [sys.executable, "-m", "dlhw.train", "experiment=mnist_mlp", "trainer.device=cpu"]
            command += [f"data_dir={options.data_dir.absolute()}", f"hydra.run.dir={directory}", *options.overrides]
            env = {name: value for name, value in os.environ.items() if name not in WAITING} | variables(setting)
            process = stack.enter_context(killed_at_end(command, env=env, stderr=(root / "stderr").open("wb")))
            runs.append(Run(setting, directory, process))
            runs[-1].seconds_per_epoch(1)
        for _, run in itertools.product(range(options.rounds), runs):
            run.quiet.append(run.seconds_per_epoch(options.epochs)[0])
            print(f"{run.name}: quiet, {run.quiet[-1]:.2f} s", file=sys.stderr)
        for _ in range(options.busy):
            stack.enter_context(killed_at_end([sys.executable, "-c", BUSY]))
        for _, run in itertools.product(range(options.rounds), runs):
            seconds, bounded = run.seconds_per_epoch(options.epochs, options.limit)
            run.busy.append(seconds)
            run.bounded |= bounded
            print(f"{run.name}: busy, {seconds:.2f} s", file=sys.stderr)
    return runs


def print_table(runs: Sequence[Run], busy: int) -> None:
    """Print medians and ranges over the rounds. Ratios of quiet epochs are within one round."""
    print("| setting | quiet, s | min–max | ratio | busy, s | min–max | busy / quiet | of the fair share |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for run in runs:
        ratio = statistics.median(own / first for own, first in zip(run.quiet, runs[0].quiet, strict=True))
        slower = statistics.median(run.busy) / statistics.median(run.quiet)
        fair = max(1.0, (run.threads + busy) / usable_cores())
        mark = "≥ " if run.bounded else ""
        print(
            f"| {run.name} | {statistics.median(run.quiet):.2f} | {min(run.quiet):.2f}–{max(run.quiet):.2f} "
            f"| {ratio:.2f} | {mark}{statistics.median(run.busy):.2f} | {min(run.busy):.2f}–{max(run.busy):.2f} "
            f"| {mark}{slower:.1f} | {mark}{slower / fair:.2f} |",
            flush=True,
        )


def parse_arguments() -> argparse.Namespace:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--settings", nargs="+", default=list(SETTINGS), metavar="NAME=VALUE", help="environment variables to compare")
    add("--rounds", type=int, default=3, help="number of rounds")
    add("--epochs", type=int, default=2, help="epochs per turn")
    add("--busy", type=int, default=usable_cores(), help="number of busy processes")
    add("--limit", type=float, default=30, help="longest turn beside busy processes, in seconds")
    add("--data-dir", type=Path, default=os.environ.get("DLHW_DATA", "data"), help="folder with MNIST/")
    add("overrides", nargs="*", help="of the run, such as trainer.compile=true")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    runs = measure(options)
    print(f"{platform.machine()}, {usable_cores()} cores, {options.busy} busy processes, {options.rounds} rounds\n")
    print_table(runs, options.busy)


if __name__ == "__main__":
    main()
