"""How long does training on a folder of pictures take here, and how long the way torchvision's users write it?

    python scripts/benchmark_pictures.py                     all tables, face_mask and hymenoptera in --data-dir
    python scripts/benchmark_pictures.py --data DIR          another folder of pictures, one folder for each class
    python scripts/benchmark_pictures.py --quick             a few made-up pictures, to see that it runs

prints Markdown tables:

- cnn: a small CNN at 128 pixels, trained and validated.
- frozen: the last layer of a ResNet18 at 224 pixels; and what computing its frozen part once changes.
- whole: training steps of a whole ResNet18.
- augmentation: pictures augmented, without a model.

The first two run whole commands in processes of their own, ``python -m dlhw.train`` and reference_pictures.py, on the
same pictures, sorted into train and val by links that this script makes, from the same weights. Cold means that no
picture was decoded before; the operating system has the files in memory for all. An epoch is timed from the end of the
one before, with training, validation and checkpoint; a whole run from the start of the process to its end. The
reference trains --reference-epochs, the time of more is extrapolated. Contestants take turns, round after round; a
ratio is between times of one round.

That both sides do the same work is checked: as many pictures and steps, and the weights that dlhw trained give the same
validation loss and accuracy when the reference judges them.
OMP_NUM_THREADS limits the threads.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmark_loop import OVERRIDES, machine
from benchmark_startup import printed
from benchmark_sweeps import seconds_of_steps
from dlhw.cli.assembly import load_data, set_up_process
from dlhw.cli.build import build, make_model, validate
from dlhw.cli.program import compose
from dlhw.data.batches import Batches
from dlhw.data.tensors import Dataset
from dlhw.runtime import devices

BATCH, WORKERS = 32, (0, 2)
STAMPED = """
import json, time
import dlhw.train
from dlhw.record import Record

append = Record.append

def stamped(self, row, *, seconds):
    print(json.dumps({"at": time.monotonic(), **row}), flush=True)
    append(self, row, seconds=seconds)

Record.append = stamped
dlhw.train.main()
"""
"""dlhw's command, which also prints each epoch's row with the time."""


@dataclass(frozen=True)
class Task:
    """What both sides do: ``ours`` are overrides, ``theirs`` arguments of the reference."""

    name: str
    dataset: str
    resize: int
    crop: int
    ours: tuple[str, ...]
    theirs: tuple[str, ...]


TASKS = {
    "cnn": Task(
        "small CNN at 128 pixels", "face_mask", 128, 128,
        ("model=picture_cnn", "optimizer.lr=0.003"), ("--model=cnn", "--lr=0.003"),
    ),
    "frozen": Task(
        "last layer of a ResNet18 at 224 pixels", "hymenoptera", 256, 224,
        ("model=resnet18", "model.weights=null", "trainer.trains=head", "optimizer.lr=0.001"),
        ("--model=resnet18", "--head-only", "--lr=0.001"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Timed:
    """A process that printed its epochs."""

    started: float
    ended: float
    rows: list[dict[str, Any]]

    @property
    def first(self) -> float:
        """Seconds until the end of its first epoch."""
        return float(self.rows[0]["at"]) - self.started

    @property
    def epoch(self) -> float:
        """Seconds of a later one."""
        ends = [float(row["at"]) for row in self.rows]
        return statistics.median(end - start for start, end in itertools.pairwise(ends))

    def whole(self, epochs: int) -> float:
        """Seconds of the process, had it trained so many epochs."""
        return self.ended - self.started + (epochs - len(self.rows)) * self.epoch


def timed(*arguments: str) -> Timed:
    """What Python does with these arguments."""
    started = time.monotonic()
    lines = printed(*arguments).splitlines()
    return Timed(started, time.monotonic(), [json.loads(line) for line in lines])


class Bench:
    """Runs of both sides on the pictures in ``root``, which has train and val."""

    def __init__(self, task: Task, root: Path, directory: Path, options: argparse.Namespace) -> None:
        self.task, self.root, self.directory, self.options = task, root, directory, options
        self.device = devices.pick_device(options.device).type
        self.runs = 0

    def overrides(self, *more: str, cache: Path) -> list[str]:
        return [
            "dataset=image_folder", f"dataset.root={self.root}", f"dataset.resize={self.task.resize}",
            f"dataset.crop={self.task.crop}", f"dataset.cache_dir={cache}", "optimizer.momentum=0.9",
            f"trainer.batch_size={BATCH}", f"trainer.device={self.device}", *self.task.ours, *more,
        ]  # fmt: skip

    def ours(self, *more: str, epochs: int, cache: Path) -> Timed:
        """dlhw's command; its run directory is ``self.latest`` then."""
        self.runs += 1
        fixed = [f"trainer.epochs={epochs}", f"hydra.run.dir={self.latest}"]
        return timed("-c", STAMPED, *self.overrides(*more, cache=cache), *fixed)

    def theirs(self, *more: str, epochs: int, weights: Path) -> Timed:
        fixed = [f"--resize={self.task.resize}", f"--crop={self.task.crop}", f"--batch-size={BATCH}"]
        fixed += [f"--epochs={epochs}", f"--device={self.device}", f"--weights={weights}"]
        program = Path(__file__).with_name("reference_pictures.py")
        return timed(str(program), str(self.root), *self.task.theirs, *fixed, *more)

    @property
    def latest(self) -> Path:
        return self.directory / f"run-{self.runs}"

    def initial(self, cache: Path) -> Path:
        """A file with the weights that dlhw starts from."""
        cfg = compose(*self.overrides(cache=cache))
        data = build(cfg, "dataset", data_dir=cfg.data_dir, seed=cfg.seed)
        path = self.directory / "initial.pt"
        torch.save({"model": make_model(cfg, shape=data.shape, outputs=data.outputs).state_dict()}, path)
        return path

    def check(self, own: Timed, reference: Timed) -> None:
        """Exits unless the run ``own``, the latest one, and the reference did the same work."""
        ours, theirs = own.rows, reference.rows
        (judged,) = self.theirs(epochs=0, weights=self.latest / "last.pt").rows
        data = json.loads((self.latest / "summary.json").read_text())["data"]
        same = {
            "pictures": ([data["train"], data["val"]], [theirs[0]["train"], theirs[0]["val"]]),
            "steps": (ours[0]["step"], theirs[0]["step"]),
            "validation accuracy": (ours[-1]["val_accuracy"], judged["val_accuracy"]),
            "validation loss": (ours[-1]["val_loss"], judged["val_loss"]),
        }
        for what, (mine, other) in same.items():
            # Large JPEGs are decoded at a fraction of their size here, which changes pixels by a level or two.
            if not np.allclose(mine, other, rtol=0.02, atol=0.01 * what.startswith("validation")):
                sys.exit(f"not the same work: {what} {mine} in dlhw, {other} in the reference")
        told = [f"{what} {mine} and {other}" for what, (mine, other) in same.items()]
        told.append(f"training loss of epoch 1, in other orders, {ours[0]['train_loss']} and {theirs[0]['train_loss']}")
        print(f"\nThe same work, dlhw and reference: {'; '.join(told)}.", flush=True)


def parts_of(setting: str) -> list[str]:
    """The overrides of a sum such as channels_last+bf16."""
    return [OVERRIDES[part] for part in setting.split("+")]


def compared(bench: Bench, settings: Sequence[str], plain: Sequence[str] = ()) -> None:
    """Print the table of the reference and of dlhw, cold and warm, and warm in further settings.

    With ``plain`` also that of dlhw with these overrides, for as many epochs as the reference.
    """
    options, results = bench.options, dict[str, list[Timed]]()
    flip = options.flip and bench.task is TASKS["cnn"]
    own, other = (["augmentation=flip"], ["--flip"]) if flip else ([], [])

    def add(name: str, result: Timed) -> Timed:
        results.setdefault(name, []).append(result)
        print(f"{bench.task.name}: {name}: {result.epoch:.3f} s per epoch", file=sys.stderr)
        return result

    fewer = options.epochs if options.full else options.reference_epochs
    for turn in range(options.rounds):
        cache = bench.directory / f"cache-{turn}"
        add("dlhw, cold", bench.ours(*own, epochs=options.epochs, cache=cache))
        weights = bench.initial(cache)
        references = [
            add(f"reference, {n} workers", bench.theirs(f"--workers={n}", *other, epochs=fewer, weights=weights))
            for n in WORKERS
        ]
        warm = add("dlhw, warm", bench.ours(*own, epochs=options.epochs, cache=cache))
        if not turn:
            bench.check(warm, references[0])
        for setting in settings:
            add(f"dlhw, warm, {setting}", bench.ours(*own, *parts_of(setting), epochs=options.epochs, cache=cache))
        if plain:
            plainly = add(f"dlhw, warm, {' '.join(plain)}", bench.ours(*plain, epochs=fewer, cache=cache))
    train, val = (references[0].rows[0][part] for part in ("train", "val"))
    title = f"{bench.task.name}, {train} + {val} pictures, rounds: {options.rounds}, epochs of the reference: {fewer}"
    print_table(title, results, options.epochs)
    if plain:
        each, all_epochs = plainly.epoch / warm.epoch, plainly.whole(options.epochs) / warm.whole(options.epochs)
        print(
            f"\nWith {' '.join(plain)} a later epoch takes {each:.1f} times as long, {options.epochs} epochs "
            f"{all_epochs:.1f} times (last round). In metrics.csv {apart(warm.rows, plainly.rows)}."
        )


def apart(rows: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> str:
    """What differs most between two runs, over the epochs that both have."""
    differences = {
        f"{name} of epoch {row['epoch']}": abs(row[name] - other[name]) / max(abs(other[name]), 1e-12)
        for row, other in zip(rows, others, strict=False)
        for name in row
        if name != "at"
    }
    where = max(differences, key=lambda name: differences[name])
    count = min(len(rows), len(others))
    if not differences[where]:
        return f"nothing differs in the {count} epochs that both have"
    return f"{where} differs most in the {count} epochs that both have, by a share of {differences[where]:.1g}"


def print_table(title: str, results: dict[str, list[Timed]], epochs: int) -> None:
    """Medians over the rounds; ratios to the reference with the better number of workers, with smallest and largest."""

    def best(value: Callable[[Timed], float]) -> list[float]:
        references = [[value(run) for run in runs] for name, runs in results.items() if name.startswith("reference")]
        return min(references, key=statistics.median)

    def cells(runs: Sequence[Timed], value: Callable[[Timed], float]) -> list[str]:
        seconds = [value(run) for run in runs]
        ratios = [reference / own for reference, own in zip(best(value), seconds, strict=True)]
        return [
            f"{statistics.median(seconds):.2f}",
            f"{statistics.median(ratios):.1f}",
            f"{min(ratios):.1f}–{max(ratios):.1f}",
        ]

    print(f"\n{title}\n")
    print(
        f"| | until the end of epoch 1, s | a later epoch, s | times reference | min–max "
        f"| {epochs} epochs, s | times reference | min–max |\n|---|--:|--:|--:|--:|--:|--:|--:|"
    )
    for name, runs in results.items():
        first = f"{statistics.median(run.first for run in runs):.2f}"
        row = [first, *cells(runs, lambda run: run.epoch), *cells(runs, lambda run: run.whole(epochs))]
        print(f"| {name} | {' | '.join(row)} |", flush=True)


def whole(bench: Bench, settings: Sequence[str], cache: Path) -> None:
    """Print pictures per second of training all of a ResNet18."""
    print("\nTraining steps of a whole ResNet18 at 224 pixels\n")
    print("| dlhw | pictures per second | times fp32 |\n|---|--:|--:|")
    rates: list[float] = []
    for setting in ["fp32", *settings]:
        cfg = compose(*bench.overrides("trainer.trains=all", *parts_of(setting), cache=cache))
        rates.append(BATCH / statistics.median(seconds_of_steps([cfg], steps=bench.options.steps + 1)[1:]))
        print(f"| {setting} | {rates[-1]:.1f} | {rates[-1] / rates[0]:.1f} |", flush=True)


def augmentation(bench: Bench, cache: Path) -> None:
    """Print pictures per second of augmentation, ours and in a DataLoader, from decoded pictures and from files."""
    from torchvision import datasets
    from torchvision.transforms import v2

    from reference_pictures import AUGMENTATIONS, Changed, loaded

    decode = [v2.Resize(bench.task.resize), v2.CenterCrop(bench.task.crop), v2.PILToTensor()]
    print("\nPictures of 224 pixels augmented per second\n")
    print(
        "| augmentation | workers | dlhw | DataLoader, decoded pictures | times | ImageFolder and DataLoader | times |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, transforms in AUGMENTATIONS.items():
        for workers in WORKERS:
            chosen = [f"augmentation={name}", f"augmentation.workers={workers}"]
            cfg = compose(*bench.overrides(*chosen, cache=cache))
            components = validate(cfg)
            data = load_data(components, set_up_process(components)[1])
            steps = -(-len(data.train) // BATCH)
            batches = Batches(data, [0], size=BATCH, steps=steps)
            x, y = data.train[:]
            decoded = Changed(x, y.tolist(), v2.Compose(transforms))
            files = datasets.ImageFolder(bench.root / "train", v2.Compose([*decode, *transforms]))
            own = per_second(batches, len(data.train), bench.options.passes)
            others = []
            for pictures in (decoded, files):
                loader = loaded(pictures, batch_size=BATCH, workers=workers)
                rate = per_second(lambda epoch, loader=loader: loader, len(data.train), bench.options.passes)  # type: ignore[misc]
                others += [f"{rate:.0f}", f"{own / rate:.1f}"]
            print(f"| {name} | {workers} | {own:.0f} | {' | '.join(others)} |", flush=True)


def per_second(epochs: Callable[[int], Iterable[Any]], count: int, passes: int) -> float:
    """How many of ``count`` pictures an epoch gives, in the median of several after one that starts the workers."""
    seconds = []
    for epoch in range(1, passes + 2):
        started = time.perf_counter()
        for _ in epochs(epoch):
            pass
        seconds.append(time.perf_counter() - started)
    return count / statistics.median(seconds[1:])


def sorted_by_links(task: Task, directory: Path, options: argparse.Namespace) -> Path:
    """A folder with train and val, classes in them, and in these links to the pictures as dlhw divides them."""
    if options.data is not None:
        source = ["dataset=image_folder", f"dataset.root={options.data}"]
    else:
        source = [f"dataset={task.dataset}"]
    fixed = [f"data_dir={options.data_dir}", f"dataset.cache_dir={directory / 'sorting'}"]
    cfg = compose(*source, *fixed)
    data: Dataset = build(cfg, "dataset", data_dir=cfg.data_dir, seed=cfg.seed)
    home, root = Path(data.about["root"]).absolute(), directory / "sorted"
    for part in ("train", "val"):
        rows = data.parts[part].all_rows()[0].tolist()
        for row in rows[:: -(-len(rows) // (options.pictures or len(rows)))]:
            target = home / data.names[row]
            link = root / part / data.classes[int(data.train.pool_y[row])] / f"{row:06}{target.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
    return root


def made_up(folder: Path, *, count: int = 48) -> Path:
    """A folder of pictures as photos are in size, bright ones and dark ones."""
    draws = np.random.default_rng(0)
    for number in range(count):
        path = folder / ("bright", "dark")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = draws.integers(100 * (1 - number % 2), 156 + 100 * (1 - number % 2), (12, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(path)
    return folder


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, tables = parser.add_argument, ["cnn", "frozen", "whole", "augmentation"]
    add("--tables", nargs="+", choices=tables, default=tables)
    add("--data", type=Path, help="folder of pictures; unset: face_mask for cnn, hymenoptera for the others")
    add("--data-dir", type=Path, default=os.environ.get("DLHW_DATA", "data"), help="folder that holds these two")
    add("--pictures", type=int, help="take so many of train, and of val, at most")
    add("--rounds", type=int, default=3, help="how often each contestant has its turn")
    add("--epochs", type=int, default=20, help="of dlhw in the first two tables, at least 2")
    add("--reference-epochs", type=int, default=2, help="of the reference, at least 2")
    add("--full", action="store_true", help="all epochs of the reference, too")
    add("--flip", action="store_true", help="the small CNN's pictures are flipped at random on both sides")
    add("--steps", type=int, default=5, help="of training that count, for each setting of the whole ResNet18")
    add("--passes", type=int, default=3, help="over the pictures that count, for each augmentation")
    add("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="where to train")
    add("--quick", action="store_true", help="made-up pictures unless --data is given, 3 epochs, one round")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.epochs, options.steps, options.passes = 1, 3, 1, 1
    if min(options.epochs, options.reference_epochs) < 2:
        parser.error("--epochs, --reference-epochs: at least 2, the first also starts the process")
    return options


def main() -> None:
    options = parse_arguments()
    print(machine(devices.pick_device(options.device)), flush=True)
    settings = ["channels_last", "bf16", "channels_last+bf16"]
    with tempfile.TemporaryDirectory() as temporary:
        if options.quick and options.data is None:
            options.data = made_up(Path(temporary, "made_up"))
        benches = {}
        for name, task in TASKS.items():
            directory = Path(temporary, name)
            directory.mkdir()
            benches[name] = Bench(task, sorted_by_links(task, directory, options), directory, options)
        cache = Path(temporary, "cache")
        for table in options.tables:
            if table == "cnn":
                compared(benches["cnn"], settings)
            elif table == "frozen":
                compared(benches["frozen"], settings[2:], plain=["trainer.frozen_once=false"])
            elif table == "whole":
                whole(benches["frozen"], settings, cache)
            else:
                augmentation(benches["frozen"], cache)


if __name__ == "__main__":
    main()
