"""Run dlhw and a usual torchvision program on the same pictures and weights, and measure both.

``benchmark_pictures.py`` uses this to fill its tables.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmark_startup import printed
from dlhw.cli.assembly import make_model
from dlhw.cli.build import build
from dlhw.cli.program import compose
from dlhw.data.tensors import Dataset
from dlhw.runtime import devices

BATCH = 32
STAMPED = """
import json, time
import dlhw.train
from dlhw.storage.record import Record

append = Record.append

def stamped(self, row, *, seconds):
    print(json.dumps({"at": time.monotonic(), **row}), flush=True)
    append(self, row, seconds=seconds)

Record.append = stamped
dlhw.train.main()
"""
"""The training command of dlhw, which also prints each epoch's row with the time."""


@dataclass(frozen=True)
class Task:
    """The work to measure: ``ours`` holds overrides for dlhw, ``theirs`` arguments for the reference."""

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
    """The times and epochs of a process."""

    started: float
    ended: float
    rows: list[dict[str, Any]]

    @property
    def first(self) -> float:
        """Seconds until the end of the first epoch."""
        return float(self.rows[0]["at"]) - self.started

    @property
    def epoch(self) -> float:
        """Median seconds of a later epoch."""
        ends = [float(row["at"]) for row in self.rows]
        return statistics.median(end - start for start, end in itertools.pairwise(ends))

    def whole(self, epochs: int) -> float:
        """Return the seconds of the process, extrapolated to so many epochs."""
        return self.ended - self.started + (epochs - len(self.rows)) * self.epoch


def timed(*arguments: str) -> Timed:
    """Run Python with these arguments and measure it."""
    started = time.monotonic()
    lines = printed(*arguments).splitlines()
    return Timed(started, time.monotonic(), [json.loads(line) for line in lines])


class Bench:
    """Run both programs on the pictures in ``root``, which has train and val."""

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
        """Run dlhw; the run directory is then ``self.latest``."""
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
        """Write a file with the initial weights of dlhw, and return its path."""
        cfg = compose(*self.overrides(cache=cache))
        data = build(cfg, "dataset", data_dir=cfg.data_dir, seed=cfg.seed)
        path = self.directory / "initial.pt"
        torch.save({"model": make_model(cfg, shape=data.shape, outputs=data.outputs).state_dict()}, path)
        return path

    def check(self, run: Timed, reference: Timed) -> None:
        """Exit unless ``run``, the latest run of dlhw, and the reference did the same work."""
        ours, theirs = run.rows, reference.rows
        (evaluated,) = self.theirs(epochs=0, weights=self.latest / "last.pt").rows
        data = json.loads((self.latest / "summary.json").read_text())["data"]
        same = {
            "pictures": ([data["train"], data["val"]], [theirs[0]["train"], theirs[0]["val"]]),
            "steps": (ours[0]["step"], theirs[0]["step"]),
            "validation accuracy": (ours[-1]["val_accuracy"], evaluated["val_accuracy"]),
            "validation loss": (ours[-1]["val_loss"], evaluated["val_loss"]),
        }
        for what, (mine, other) in same.items():
            # dlhw decodes large JPEGs at a fraction of their size, which changes pixels by one or two levels.
            if not np.allclose(mine, other, rtol=0.02, atol=0.01 * what.startswith("validation")):
                sys.exit(f"the programs did different work: {what} {mine} in dlhw, {other} in the reference")
        losses = f"{ours[0]['train_loss']} and {theirs[0]['train_loss']}"
        results = [f"{what} {mine} and {other}" for what, (mine, other) in same.items()]
        results.append(f"training loss of epoch 1, with other orders of the batches, {losses}")
        print(f"\ndlhw and the reference did the same work: {'; '.join(results)}.", flush=True)


def link_by_split(task: Task, directory: Path, options: argparse.Namespace) -> Path:
    """Make train/CLASS/ and val/CLASS/ folders of links to the pictures, split as dlhw splits them."""
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


def generate_pictures(folder: Path, *, count: int = 48) -> Path:
    """Generate bright and dark pictures of the size of photos in a folder, and return it."""
    draws = np.random.default_rng(0)
    for number in range(count):
        path = folder / ("bright", "dark")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = draws.integers(100 * (1 - number % 2), 156 + 100 * (1 - number % 2), (12, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(path)
    return folder
