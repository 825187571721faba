"""Compare the time per epoch of this project's training loop with that of other loops.

    python scripts/benchmark_loop.py

The script measures seconds per epoch on MNIST (48,000 training samples, batches of 128, SGD with momentum, no
evaluation) for the network of C5.2 (784-500-10, ReLU) and the convolutional network of C5.5. It prints Markdown tables
with times and their ratios to the same loop written by hand in twenty lines. ``Training.fit`` is measured with
everything it does: batches, running metrics, learning-rate schedule, metrics.csv, progress, and a checkpoint after
every epoch, which is more often than the default.

The loops take turns in every round, so that a change in the machine's speed affects all of them, and ratios are between
times of the same round. In each turn the first epoch is a warm-up and does not count. ``--all`` adds the slow loops,
``--equal-error`` the validation error after ten epochs in fp32 and in the fastest setting. OMP_NUM_THREADS limits the
number of threads.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import nn

from dlhw.cli.assembly import assemble, make_model
from dlhw.cli.build import build
from dlhw.cli.program import compose
from dlhw.data.tensors import Dataset, Split
from dlhw.runs.record import Record, Row
from dlhw.runtime import devices
from dlhw.training.loop import Training
from dlhw.training.run import Result, TrainingRun
from dlhw.training.variants import Single

MEAN, STD = 0.1307, 0.3081  # of pixel / 255
BATCH, LR, MOMENTUM = 128, 0.1, 0.9
BASELINE = "by hand, fp32"

Epoch = Callable[[], object]
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


def by_hand(model: nn.Module, train: Split, *, precision: devices.Precision) -> Epoch:
    """Return a hand-written fast loop: data on the device, no synchronization within an epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, fused=True)

    def epoch() -> float:
        total = torch.zeros((), device=train.x.device)
        for batch in torch.randperm(len(train), device=train.x.device).split(BATCH):
            x = train.x[batch].float().sub_(255 * MEAN).div_(255 * STD)
            with precision.autocast():
                loss = F.cross_entropy(model(x), train.y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        return total.item()  # synchronizes with the device

    return epoch


def with_data_loader(model: nn.Module, data_dir: Path, *, workers: int, device: torch.device) -> Epoch:
    """Return the loop of tutorials: a DataLoader that transforms single images, and ``loss.item()`` in every step."""
    from torchvision import datasets, transforms

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])
    images = datasets.MNIST(data_dir, train=True, transform=transform)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(images, range(48_000)), batch_size=BATCH, shuffle=True, num_workers=workers
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)

    def epoch() -> float:
        running = 0.0
        for batch in loader:
            x, y = (tensor.to(device) for tensor in batch)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            running += loss.item()
        return running

    return epoch


def matrix_products(steps: int, *, dtype: torch.dtype, device: torch.device) -> Epoch:
    """Return only the five matrix products of a step of the 784-500-10 network: a lower bound for every loop."""
    sizes = {"x": (BATCH, 784), "w1": (500, 784), "h": (BATCH, 500), "w2": (10, 500), "logits": (BATCH, 10)}
    x, w1, h, w2, logits = (torch.randn(size, device=device, dtype=dtype) for size in sizes.values())
    dw1, dh, dw2 = torch.empty_like(w1), torch.empty_like(h), torch.empty_like(w2)

    def epoch() -> None:
        for _ in range(steps):
            torch.mm(x, w1.T, out=h)
            torch.mm(h, w2.T, out=logits)
            torch.mm(logits.T, h, out=dw2)
            torch.mm(logits, w2, out=dh)
            torch.mm(dh.T, x, out=dw1)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return epoch


def with_sklearn(train: Split) -> Epoch:
    """Return scikit-learn's MLPClassifier with the same network, one epoch per call."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    x = train.x.cpu().flatten(1).float().sub_(255 * MEAN).div_(255 * STD).numpy()
    y = train.y.cpu().numpy()
    options = {"learning_rate_init": LR, "momentum": MOMENTUM, "nesterovs_momentum": False, "alpha": 0}
    options |= {"batch_size": BATCH, "max_iter": 1, "warm_start": True}
    classifier = MLPClassifier((500,), solver="sgd", **options)

    def epoch() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(x, y)

    return epoch


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
    """Return the seconds of ``epochs`` epochs of ``fit`` after a warm-up epoch, with a checkpoint after each."""
    fixed = [f"trainer.epochs={epochs + 1}", "trainer.checkpoint_seconds=0"]
    cfg = composed(model, setting, *options.where, *fixed)
    with tempfile.TemporaryDirectory() as directory:
        record = Clocked(Path(directory))
        train(cfg, record, evaluate=False)
    return [end - start for start, end in zip(record.recorded, record.recorded[1:], strict=False)]


def theirs(epoch: Epoch, epochs: int, *, device: torch.device) -> list[float]:
    """Return the seconds of ``epochs`` calls after a warm-up call, with torch's defaults."""
    devices.configure_torch(device, devices.Precision("fp32", device), deterministic=False)
    epoch()
    seconds = []
    for _ in range(epochs):
        started = time.perf_counter()
        epoch()
        seconds.append(time.perf_counter() - started)
    return seconds


def make_loops(model: str, data: Dataset, options: argparse.Namespace) -> dict[str, Loop]:
    """Return the loops to measure on ``model``, by name, in the order of the table."""
    device = devices.pick_device(options.device)
    on_device = Split(data.train.x.to(device), data.train.y.to(device))
    cfg = composed(model, "fp32")

    def fresh() -> nn.Module:
        return make_model(cfg, shape=data.shape, outputs=data.outputs).to(device)

    epochs: dict[str, Epoch] = {}
    for precision in (devices.Precision("fp32", device), devices.Precision("bf16", device)):
        epochs[f"by hand, {precision.name}"] = by_hand(fresh(), on_device, precision=precision)
    if model == "mlp":
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            products = matrix_products(len(data.train) // BATCH, dtype=dtype, device=device)
            epochs[f"matrix products alone, {name}"] = products
    if model == "mlp" or options.all:
        for workers in (0, 2):
            loop = with_data_loader(fresh(), options.data_dir, workers=workers, device=device)
            epochs[f"DataLoader and transforms, {workers} workers"] = loop
    if model == "mlp" and options.all:
        epochs["scikit-learn's MLPClassifier"] = with_sklearn(data.train)

    loops: dict[str, Loop] = {}
    for name, epoch in epochs.items():
        loops[name] = functools.partial(theirs, epoch, device=device)
    fitting = f"{SETTINGS[model]} {CUDA_SETTINGS if device.type == 'cuda' else ''}".split()
    for setting in options.settings or fitting:
        loops[f"fit, {setting}"] = functools.partial(ours, model, setting, options)
    return loops


def measure(loops: dict[str, Loop], *, rounds: int, epochs: int) -> dict[str, list[float]]:
    """Return seconds per epoch by name: for each round the mean over its epochs."""
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(1, rounds + 1):
        for name, loop in loops.items():
            seconds[name].append(statistics.mean(loop(epochs)))
            print(f"round {turn}/{rounds}: {name}: {seconds[name][-1]:.3f} s", file=sys.stderr)
    return seconds


def print_table(title: str, seconds: dict[str, list[float]]) -> None:
    """Print median, minimum and maximum over the rounds; ratios are to the baseline in the same round."""
    print(f"\n{title}\n")
    print("| loop | seconds per epoch | min–max | ratio | min–max |")
    print("|---|--:|--:|--:|--:|")
    for name, times in seconds.items():
        ratios = [time / baseline for time, baseline in zip(times, seconds[BASELINE], strict=True)]
        spread = [f"{statistics.median(row):.3f} | {min(row):.3f}–{max(row):.3f}" for row in (times, ratios)]
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


def parse_arguments() -> argparse.Namespace:
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
    add("--all", action="store_true", help="add scikit-learn, and the DataLoader loop for the CNN")
    add("--equal-error", action="store_true", help="add the error after 10 epochs, for fp32 and the fastest setting")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    options.where = [f"trainer.device={options.device}", f"data_dir={options.data_dir}"]
    print(machine(devices.pick_device(options.device)), flush=True)
    data = build(composed("mlp", "fp32"), "dataset", data_dir=str(options.data_dir), seed=0)
    for model in options.models:
        seconds = measure(make_loops(model, data, options), rounds=options.rounds, epochs=options.epochs)
        print_table(f"{model}, {options.rounds} rounds", seconds)
        if options.equal_error:
            fits = [name for name in seconds if name.startswith("fit, ")]
            fastest = min(fits, key=lambda name: statistics.median(seconds[name])).removeprefix("fit, ")
            print_equal_error(model, sorted({"fp32", fastest}), options=options)


if __name__ == "__main__":
    main()
