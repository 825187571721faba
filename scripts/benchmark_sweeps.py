"""Compare the jobs per second of sweeps with the vectorized, the basic and the joblib launcher.

    python scripts/benchmark_sweeps.py                     small networks on digits, 1 to 256 jobs, all launchers
    python scripts/benchmark_sweeps.py --mnist             C5.3's 21 flood levels on MNIST, basic and vectorized
    python scripts/benchmark_sweeps.py --playground        networks of the playground per second, at once and one by one
    python scripts/benchmark_sweeps.py --step              single training steps of K variants, without files
    python scripts/benchmark_sweeps.py --sizes             the same for networks of several sizes, and for processes

The first three run whole commands, ``python -m dlhw.train -m ...``, each in its own directory. They print Markdown
tables with the seconds from the start of the first job to the end of the last one (from the sweep's summary.json), jobs
per second, and the ratio to Hydra's basic launcher in the same round. The launchers take turns in every round. With all
launchers every job writes the same files: weights, metrics, curves.png, summary. joblib (one process per core, with one
thread each) is measured only if hydra-joblib-launcher is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dlhw.runtime.threads import usable_cores

if TYPE_CHECKING:
    from omegaconf import DictConfig

DIGITS = ["dataset=digits", "model.hidden=[32]", "trainer.batch_size=32"]
MNIST = ["experiment=mnist_mlp", "regularization=flooding", "trainer.train_metrics=running"]
PLAYGROUND = ["experiment=playground", "report=none", "probe=none", "trainer.train_metrics=running"]
LEVELS = ",".join(f"{level / 100:g}" for level in range(21))
SIZES = (
    ("digits", 64, 32, 32),
    ("digits", 64, 100, 128),
    ("mnist", 784, 32, 128),
    ("mnist", 784, 100, 128),
    ("mnist", 784, 200, 128),
    ("mnist", 784, 500, 128),
)
"""Dataset, its inputs, hidden units and batch size."""
LAUNCHERS = {
    "basic": ["hydra/launcher=basic"],
    "vectorized": ["hydra/launcher=vectorized"],
    "joblib": ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={usable_cores()}"],
}


def sweep(overrides: Sequence[str], launcher: str) -> float:
    """Run a sweep and return the seconds of its jobs. Raises CalledProcessError if a job fails."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "dlhw.train", "-m", *overrides, *LAUNCHERS[launcher]]
        threads = {"OMP_NUM_THREADS": "1"} if launcher == "joblib" else {}
        subprocess.run(
            [*command, f"hydra.sweep.dir={directory}/sweep"],
            check=True,
            capture_output=True,
            env={**os.environ, **threads},
        )
        seconds: float = json.loads(Path(directory, "sweep", "summary.json").read_text())["seconds"]
    return seconds


def measure(overrides: Sequence[str], launchers: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each launcher in each round."""
    seconds: dict[str, list[float]] = {launcher: [] for launcher in launchers}
    for _ in range(rounds):
        for launcher in launchers:
            seconds[launcher].append(sweep(overrides, launcher))
            print(f"  {launcher} {seconds[launcher][-1]:.1f} s", file=sys.stderr, flush=True)
    return seconds


def table_rows(jobs: int, seconds: dict[str, list[float]]) -> Iterator[str]:
    """Yield a Markdown row per launcher."""
    for launcher, times in seconds.items():
        ratios = [basic / time for basic, time in zip(seconds["basic"], times, strict=True)]
        yield (
            f"| {jobs} | {launcher} | {statistics.median(times):.1f} | {jobs / statistics.median(times):.2f} "
            f"| {statistics.median(ratios):.1f} | {min(ratios):.1f}–{max(ratios):.1f} |"
        )


def networks_per_second(counts: Sequence[int], epochs: int, rounds: int, where: Sequence[str]) -> Iterator[str]:
    """Yield a table with the networks of the playground that are trained per second, one by one and at once.

    One by one, the number of networks does not change the result, so only eight are trained.
    """
    yield f"| networks, {epochs} epochs each | seconds | networks per second | times one by one | min–max |"
    yield "|---|--:|--:|--:|--:|"
    fixed = [
        *PLAYGROUND,
        f"trainer.epochs={epochs}",
        "trainer.threads=1",
        "trainer.evaluation_batch_size=1000000",
        *where,
    ]
    rates: dict[str, list[float]] = {}
    for number in range(rounds):
        for name, launcher, count in [("one by one", "basic", 8), *((f"{n} at once", "vectorized", n) for n in counts)]:
            rates.setdefault(name, []).append(count / sweep([*fixed, f"seed=range({count})"], launcher))
            print(f"  round {number + 1}, {name}: {rates[name][-1]:.2f} per second", file=sys.stderr, flush=True)
    for name, values in rates.items():
        ratios = [value / alone for value, alone in zip(values, rates["one by one"], strict=True)]
        count = int(name.split()[0]) if name[0].isdigit() else 8
        rate, ratio = statistics.median(values), statistics.median(ratios)
        yield f"| {name} | {count / rate:.1f} | {rate:.2f} | {ratio:.1f} | {min(ratios):.1f}–{max(ratios):.1f} |"


def seconds_of_steps(cfgs: Sequence[DictConfig], *, steps: int) -> list[float]:
    """Return the seconds of training steps on one repeated batch, for one run or several vectorized ones."""
    from dlhw.cli.assembly import assemble
    from dlhw.data.batches import Batches
    from dlhw.runtime import devices
    from dlhw.runtime.products import computed_by
    from dlhw.storage.record import Record
    from dlhw.training.loop import Training
    from dlhw.training.run import TrainingRun
    from dlhw.training.variants import Ensemble, Single

    built = [assemble(cfg) for cfg in cfgs]
    parts, count = built[0], len(built)
    models, optimizers, schedule = [own.model for own in built], [own.optimizer for own in built], parts.schedule
    variants = (
        Ensemble(models, optimizers, [schedule] * count) if count > 1 else Single(models[0], optimizers[0], schedule)
    )
    runs = [TrainingRun(Record(Path()), seed=0, regularization=own.regularization) for own in built]
    training = Training(variants, runs, parts.data, parts.data_loss, trainer=parts.trainer, precision=parts.precision)
    batch = next(Batches(parts.data, [0], size=parts.trainer.batch_size, steps=1)(1))
    times = []
    with computed_by(training.matrix_products):
        for _ in range(steps):
            started = time.perf_counter()
            training.step(*batch)
            devices.synchronize(parts.precision.device)
            times.append(time.perf_counter() - started)
    return times


def milliseconds(count: int, *overrides: str) -> float:
    """Return the median time of one step of ``count`` networks at once, with up to eight learning rates."""
    from dlhw.cli.program import compose

    cfgs = [compose(*overrides, f"optimizer.lr={0.1 + k * 8 // count / 100}") for k in range(count)]
    return 1e3 * statistics.median(seconds_of_steps(cfgs, steps=60)[10:])


def steps(counts: Sequence[int], batch_size: int, threads: Sequence[int]) -> Iterator[str]:
    """Yield a table with the milliseconds of one step of K small vectorized networks on digits, and of one network."""
    fixed = [*DIGITS, f"trainer.batch_size={batch_size}"]
    yield "| K | threads | ms per step | ms per step and variant | speed-up |"
    yield "|--:|--:|--:|--:|--:|"
    for number in threads:
        alone = milliseconds(1, *fixed, f"trainer.threads={number}")
        for count in counts:
            took = milliseconds(count, *fixed, f"trainer.threads={number}") if count > 1 else alone
            yield f"| {count} | {number} | {took:.2f} | {took / count:.3f} | {alone * count / took:.1f} |"


def sizes(where: Sequence[str]) -> Iterator[str]:
    """Yield a table with the milliseconds per step and network of networks of several sizes, by way of training."""
    cores = usable_cores()
    yield "| network | batch | multiply-adds | one at a time | 8 at once | 21 at once | a process per core |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for dataset, inputs, hidden, batch in SIZES:
        fixed = [f"dataset={dataset}", f"model.hidden=[{hidden}]", f"trainer.batch_size={batch}", *where]
        with_one_thread, with_all = (milliseconds(1, *fixed, f"trainer.threads={number}") for number in (1, cores))
        times = [min(with_one_thread, with_all), milliseconds(8, *fixed) / 8, milliseconds(21, *fixed) / 21]
        cells = " | ".join(f"{time:.3f}" for time in (*times, with_one_thread / cores))
        multiply_adds = batch * hidden * (inputs + 10) / 1e6
        yield f"| {inputs}-{hidden}-10 | {batch} | {multiply_adds:.1f} M | {cells} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", action="store_true", help="C5.3's grid on MNIST instead of small networks on digits")
    parser.add_argument("--playground", action="store_true", help="networks of the playground")
    parser.add_argument("--step", action="store_true", help="single steps instead of sweeps")
    parser.add_argument("--sizes", action="store_true", help="single steps of networks of several sizes")
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--epochs", type=int, default=None, help="default: 50, on MNIST 2, on the playground 100")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--launchers", nargs="+", choices=LAUNCHERS, default=list(LAUNCHERS))
    parser.add_argument("--batch-size", type=int, default=32, help="for --step")
    parser.add_argument("where", nargs="*", help="more overrides, such as trainer.device=cuda")
    options = parser.parse_args()
    launchers = [
        name
        for name in dict.fromkeys(["basic", *options.launchers])
        if name != "joblib" or importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is not None
    ]
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    print(f"{platform.machine()}, {usable_cores()} cores, OMP_NUM_THREADS {threads}\n")
    if options.sizes:
        for line in sizes(options.where):
            print(line, flush=True)
        return
    if options.playground:
        counts = [64, 1024] if options.jobs == parser.get_default("jobs") else options.jobs
        for line in networks_per_second(counts, options.epochs or 100, options.rounds, options.where):
            print(line, flush=True)
        return
    if options.step:
        cores = usable_cores()
        print("\n".join(steps(options.jobs, options.batch_size, sorted({1, cores}))))
        return
    print("| jobs | launcher | seconds | jobs per second | times basic | min–max |\n|--:|---|--:|--:|--:|--:|")
    if options.mnist:
        names = [name for name in launchers if name != "joblib"]
        fixed = [*MNIST, f"trainer.epochs={options.epochs or 2}", f"regularization.flood={LEVELS}", *options.where]
        print("\n".join(table_rows(21, measure(fixed, names, options.rounds))))
        return
    for jobs in options.jobs:
        rates = [f"{0.05 + 0.02 * k:g}" for k in range(min(8, jobs))]
        grid = [f"optimizer.lr={','.join(rates)}", f"seed=range({max(1, jobs // 8)})"]
        fixed = [*DIGITS, f"trainer.epochs={options.epochs or 50}", *grid, *options.where]
        print("\n".join(table_rows(jobs, measure(fixed, launchers, options.rounds))), flush=True)


if __name__ == "__main__":
    main()
