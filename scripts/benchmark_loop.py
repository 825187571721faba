"""Compare the time per epoch of this project's training loop with that of other loops.

    python scripts/benchmark_loop.py

The script measures seconds per epoch on MNIST (48,000 training samples, batches of 128, SGD with momentum, no
evaluation) for the network of C5.2 (784-500-10, ReLU) and the convolutional network of C5.5. It prints Markdown tables
with times and their ratios to the same loop written by hand in twenty lines. ``Training.fit`` is measured with
everything it does: batches, running metrics, learning-rate schedule, metrics.csv, progress, and a checkpoint every two
seconds. ``--peers`` adds other frameworks (the programs in ``peers``), which
uv installs outside of this environment; the table then has the ratio to JAX, too.

The loops take turns in every round, so that a change in the machine's speed affects all of them, and ratios are between
times of the same round. Each turn is a new process, whose first epoch is a warm-up and does not count. ``--all`` adds
the slow loops, ``--equal-error`` the validation error after ten epochs in fp32 and in the fastest setting.
OMP_NUM_THREADS limits the number of threads, except for those of JAX; on Linux, ``taskset`` limits the processors of
all.
"""

from __future__ import annotations

import dlhw  # noqa: F401  # before torch: sets how long its threads spin

# isort: split
import argparse
import contextlib
import functools
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn

from dlhw.cli.assembly import assemble, make_model
from dlhw.cli.build import build
from dlhw.cli.program import compose
from dlhw.data.tensors import Dataset, Split
from dlhw.errors import UsageError
from dlhw.runtime import devices
from dlhw.runtime.options import PrecisionName
from dlhw.runtime.products import computed_by, is_exact_in_onednn
from dlhw.storage.record import Record, Row
from dlhw.training.loop import Training
from dlhw.training.run import Result, TrainingRun
from dlhw.training.variants import Single
from handwritten_loops import BATCH, Epoch, by_hand, matrix_products, with_data_loader, with_sklearn
from peer_programs import JITTED, PEERS, Unavailable, find_uv, peer_loops

BASELINE = "by hand, fp32"

Loop = Callable[[int], list[float]]  # trains a warm-up epoch, then n epochs; returns the seconds of these n

# A setting combines these with +, such as compile+bf16.
OVERRIDES = {
    "fp32": "trainer.precision=fp32",
    "tf32": "trainer.precision=tf32",
    "bf16": "trainer.precision=bf16",
    "compile": "trainer.compile=true",
    "channels_last": "trainer.channels_last=true",
    "cuda_graphs": "trainer.cuda_graphs=true",
}
SETTINGS = {
    "mlp": "fp32 bf16 compile compile+bf16",
    "cnn": "fp32 bf16 channels_last channels_last+bf16 compile+channels_last compile+channels_last+bf16",
}
CUDA_SETTINGS = "tf32 cuda_graphs bf16+cuda_graphs"


def composed(model: str, setting: str, *overrides: str) -> DictConfig:
    """Return the config of C5.2 with this model and setting, and with running train metrics."""
    lines = ["experiment=mnist_mlp", f"model={model}", "trainer.train_metrics=running", *overrides]
    return compose(*lines, *(OVERRIDES[part] for part in setting.split("+")))


def train(cfg: DictConfig, record: Record, *, evaluate: bool) -> Result:
    """``fit`` on what ``cfg`` describes; without evaluation, one sample stands for validation and test."""
    parts = assemble(cfg)
    data = parts.data
    if not evaluate:
        one_sample = Split(*data.val[:1])
        data = replace(data, val=one_sample, test=one_sample)
    run = TrainingRun(record, seed=cfg.seed, regularization=parts.regularization)
    single = Single(parts.model, parts.optimizer, parts.schedule)
    Training(single, [run], data, parts.data_loss, trainer=parts.trainer, precision=parts.precision).fit()
    return run.result(parts.trainer)


class Clocked(Record):
    """A run directory that notes the time at which each epoch is recorded.

    The difference of two such times is a whole epoch with checkpoint and progress, which timing.csv does not include.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.recorded: list[float] = []

    def append(self, row: Row, *, seconds: float) -> None:
        self.recorded.append(time.perf_counter())
        super().append(row, seconds=seconds)


def ours(model: str, setting: str, options: argparse.Namespace, epochs: int) -> list[float]:
    """Return the seconds of ``epochs`` epochs of ``fit`` after a warm-up epoch."""
    cfg = composed(model, setting, *options.where, f"trainer.epochs={epochs + 1}")
    with tempfile.TemporaryDirectory() as directory:
        record = Clocked(Path(directory))
        train(cfg, record, evaluate=False)
    return [end - start for start, end in zip(record.recorded, record.recorded[1:], strict=False)]


def theirs(make_epoch: Callable[[], Epoch], epochs: int, *, device: torch.device) -> list[float]:
    """Return the seconds of ``epochs`` calls after a warm-up call, with torch's defaults except for the threads."""
    devices.configure_torch(device, devices.Precision("fp32", device), deterministic=False)
    epoch = make_epoch()
    epoch()
    seconds = []
    for _ in range(epochs):
        started = time.perf_counter()
        epoch()
        seconds.append(time.perf_counter() - started)
    return seconds


def make_loops(model: str, options: argparse.Namespace) -> dict[str, Loop]:
    """Return the loops to measure on ``model``, by name, in the order of the table."""
    device = devices.pick_device(options.device)
    cfg = composed(model, "fp32", *options.where)

    @functools.cache
    def train() -> Split:
        data: Dataset = build(cfg, "dataset", data_dir=str(options.data_dir), seed=0)
        return Split(data.train.x.to(device), data.train.y.to(device))

    def fresh() -> nn.Module:
        return make_model(cfg, shape=train().x.shape[1:], outputs=10).to(device)

    def products(dtype: torch.dtype) -> Epoch:
        return matrix_products(len(train()) // BATCH, dtype=dtype, device=device)

    def by_hand_in(name: PrecisionName) -> Callable[[], Epoch]:
        return lambda: by_hand(fresh(), train(), precision=devices.Precision(name, device))

    def data_loader(workers: int) -> Callable[[], Epoch]:
        return lambda: with_data_loader(fresh(), options.data_dir, workers=workers, device=device)

    makers: dict[str, Callable[[], Epoch]] = {f"by hand, {name}": by_hand_in(name) for name in ("fp32", "bf16")}
    if model == "mlp":
        makers["matrix products alone, fp32"] = lambda: products(torch.float32)
        makers["matrix products alone, bf16"] = lambda: products(torch.bfloat16)
        if device.type == "cpu" and is_exact_in_onednn():
            makers["matrix products alone, fp32 by oneDNN"] = lambda: computed_by("oneDNN")(products(torch.float32))
    if options.all:
        makers |= {f"DataLoader and transforms, {workers} workers": data_loader(workers) for workers in (0, 2)}
    if model == "mlp" and options.all:
        makers["scikit-learn's MLPClassifier"] = lambda: with_sklearn(train())

    loops: dict[str, Loop] = {name: functools.partial(theirs, maker, device=device) for name, maker in makers.items()}
    fitting = f"{SETTINGS[model]} {CUDA_SETTINGS if device.type == 'cuda' else ''}".split()
    for setting in options.settings or fitting:
        loops[f"fit, {setting}"] = functools.partial(ours, model, setting, options)
    return loops


def in_new_process(model: str, name: str, options: argparse.Namespace, epochs: int) -> list[float]:
    """Return the seconds of a loop in a process of its own, as a user would start it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run_loop, model, name, options, epochs).result()


def run_loop(model: str, name: str, options: argparse.Namespace, epochs: int) -> list[float]:
    return make_loops(model, options)[name](epochs)


def measure(loops: dict[str, Loop], *, rounds: int, epochs: int) -> dict[str, list[float]]:
    """Return seconds per epoch by name: for each round the mean over its epochs. Leave out programs that fail."""
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(1, rounds + 1):
        for name in list(seconds):
            try:
                seconds[name].append(statistics.mean(loops[name](epochs)))
            except Unavailable as error:
                print(f"{name} is left out: {error}", flush=True)
                del seconds[name]
            else:
                print(f"round {turn}/{rounds}: {name}: {seconds[name][-1]:.3f} s", file=sys.stderr)
    return seconds


def print_table(title: str, seconds: dict[str, list[float]]) -> None:
    """Print median, minimum and maximum over the rounds; ratios are to times of the same round."""
    columns = {"ratio": BASELINE}
    if JITTED in seconds:
        columns["ratio to JAX"] = JITTED
    print(f"\n{title}\n")
    print("| loop |", *(f"{column} | min–max |" for column in ("seconds per epoch", *columns)))
    print(f"|---|{'--:|--:|' * (1 + len(columns))}")
    for name, times in seconds.items():
        rows = [times]
        for reference in columns.values():
            rows.append([time / other for time, other in zip(times, seconds[reference], strict=True)])
        spread = [f"{statistics.median(row):.3f} | {min(row):.3f}–{max(row):.3f}" for row in rows]
        print(f"| {name} | {' | '.join(spread)} |", flush=True)


def print_equal_error(model: str, settings: Sequence[str], *, options: argparse.Namespace) -> None:
    """Print the validation error after ten epochs in each setting, for seeds 0, 1, 2 (different splits)."""
    print(f"\nValidation error of the {model} after 10 epochs, percent, seeds 0, 1, 2\n")
    print("| setting | seed 0 | seed 1 | seed 2 | mean ± sd |")
    print("|---|--:|--:|--:|--:|")
    for setting in settings:
        errors = []
        for seed in range(3):
            cfg = composed(model, setting, f"seed={seed}", "trainer.epochs=10", *options.where)
            with tempfile.TemporaryDirectory() as directory:
                errors.append(train(cfg, Record(Path(directory)), evaluate=True).final["val_error_percent"])
        cells = [f"{error:.2f}" for error in errors]
        cells.append(f"{statistics.mean(errors):.2f} ± {statistics.stdev(errors):.2f}")
        print(f"| {setting} | {' | '.join(cells)} |", flush=True)


def machine(device: torch.device) -> str:
    """Return one line with processor or GPU, threads, versions and command."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(FileNotFoundError):  # Linux only
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), name)
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)} ({name})"
    return (
        f"{name}; {torch.get_num_threads()} threads; torch {torch.__version__}; Python "
        f"{platform.python_version()}; `python {' '.join(sys.argv)}`"
    )


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="*", choices=["mlp", "cnn"], default=["mlp", "cnn"], help="networks; none: no tables")
    add("--rounds", type=int, default=3, help="number of rounds")
    add("--epochs", type=int, default=1, help="measured epochs per turn, after a warm-up epoch")
    add(
        "--settings",
        nargs="+",
        metavar="PART+PART",
        help=f"of fit, combinations of {', '.join(OVERRIDES)}; default: all",
    )
    add("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="where to train")
    add("--data-dir", type=Path, default=os.environ.get("DLHW_DATA", "data"), help="folder with MNIST/")
    add("--all", action="store_true", help="add the slow loops: DataLoader, scikit-learn")
    add(
        "--peers",
        nargs="*",
        choices=list(PEERS),
        default=argparse.SUPPRESS,
        help="add other frameworks, which uv downloads; none: all of them",
    )
    add("--equal-error", action="store_true", help="add the error after 10 epochs, for fp32 and the fastest setting")
    options = parser.parse_args(arguments, argparse.Namespace(peers=None))
    if options.peers is not None:
        if devices.pick_device(options.device).type != "cpu":
            parser.error("--peers: the other frameworks are measured on the CPU; add --device cpu")
        try:
            find_uv()
        except Unavailable as error:
            parser.error(f"--peers: {error}")
    return options


def main() -> None:
    options = parse_arguments()
    options.where = [f"trainer.device={options.device}", f"data_dir={options.data_dir}"]
    devices.use_threads()
    print(machine(devices.pick_device(options.device)), flush=True)
    for model in options.models:
        loops: dict[str, Loop] = {
            name: functools.partial(in_new_process, model, name, options) for name in make_loops(model, options)
        }
        if options.peers is not None:
            loops |= peer_loops(options.peers or list(PEERS), model, options.data_dir)
        seconds = measure(loops, rounds=options.rounds, epochs=options.epochs)
        print_table(f"{model}, {options.rounds} rounds", seconds)
        if options.equal_error:
            fits = [name for name in seconds if name.startswith("fit, ")]
            fastest = min(fits, key=lambda name: statistics.median(seconds[name])).removeprefix("fit, ")
            print_equal_error(model, sorted({"fp32", fastest}), options=options)


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(str(error))
