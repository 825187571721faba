"""The runs, sweeps and pictures whose files a drill changes: made once, then copied for every case.

All are as small as possible: scikit-learn's digits, eight hidden units, a few epochs.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from children import run
from command_line import Command
from fingerprints import fingerprint
from PIL import Image

SMALL = ("model.hidden=[8]", "model.dropout=0.2", "trainer.device=cpu", "trainer.checkpoint_seconds=0")
RUN = (*SMALL, "trainer.epochs=6", "probe=layers")
SWEEP = ("-m", *SMALL, "trainer.epochs=4", "optimizer.lr=0.1,0.3", "seed=0,1")
PICTURES = (
    *("dataset=image_folder", "dataset.root=photos", "dataset.resize=16", "dataset.crop=12", "dataset.cache_dir=cache"),
    *("dataset.validation_fraction=0.4", "dataset.groups=groups.csv", "model.hidden=[8]", "trainer.device=cpu"),
    *("trainer.epochs=2", "trainer.batch_size=8"),
)
OWN = ("--config-dir", "mine", "experiment=own")
MNIST = ("dataset=mnist", "dataset.download=false", "data_dir=data", "model.hidden=[8]", "trainer.device=cpu",
         "trainer.epochs=1", "trainer.steps_per_epoch=2")  # fmt: skip
OWN_YAML = """\
# @package _global_
# How small a network learns the digits?
defaults:
  - override /model: mlp
  - override /optimizer: adam
  - override /optimizer: momentum

name: own
width: 8
model:
  hidden: ["${width}"]
  dropout: 0.1
optimizer:
  lr: 0.05
trainer:
  epochs: 2
  device: cpu
"""
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class Corpus:
    """Directories that are created when they are first used.

    Args:
        root: an empty directory.
        data: the folder with ``MNIST``, if there is one.
    """

    def __init__(self, root: Path, data: Path | None) -> None:
        root.mkdir()
        self.root = root
        self.data = data
        self._made: set[str] = set()

    @property
    def has_idx(self) -> bool:
        """Whether the files of MNIST are there."""
        return self.data is not None and all((self.data / "MNIST" / "raw" / name).is_file() for name in IDX_FILES)

    def __getitem__(self, name: str) -> Path:
        """Return a directory of the corpus, created at the first use."""
        if name not in self._made:
            self._made.add(name)
            getattr(self, f"_{name}")()
        return self.root / name

    @functools.cache  # noqa: B019
    def expected(self, name: str) -> dict[str, str]:
        """Return the fingerprint of an undisturbed directory."""
        return fingerprint(self[name])

    def _train(self, *arguments: str, function: Callable[[], object] | None = None, code: int = 0) -> None:
        outcome = run(Command(arguments, at=self.root, function=function, seconds=300))
        assert outcome.code == code, f"the corpus could not be made: {outcome.command.text()}\n{outcome.err}"

    def _run(self) -> None:
        self._train(*RUN, "hydra.run.dir=run")

    def _long(self) -> None:
        self._train(*RUN, "trainer.epochs=8", "hydra.run.dir=long")

    def _other(self) -> None:
        self._train(*RUN, "seed=7", "optimizer.lr=0.2", "hydra.run.dir=other")

    def _wider(self) -> None:
        self._train(*RUN, "model.hidden=[12]", "optimizer=adam", "hydra.run.dir=wider")

    def _cut(self) -> None:
        arguments = (*RUN, "hydra.run.dir=cut")
        self._train(function=functools.partial(interrupted_at, 40, arguments), code=130)

    def _sweep(self) -> None:
        self._train(*SWEEP, "hydra.sweep.dir=sweep")

    def _cutsweep(self) -> None:
        arguments = (*SWEEP, "hydra.sweep.dir=cutsweep")
        self._train(function=functools.partial(interrupted_at, 2 * 36 + 20, arguments), code=130)

    def _photos(self) -> None:
        save_photos(self.root / "photos", per_class=6)
        names = [f"{number}{suffix}" for number, suffix in enumerate((".png", ".bmp", ".jpg") * 2)]
        lines = [f"{label}-{name[0]},{label}/{name}" for label in ("cat", "dog", "emu") for name in names]
        (self.root / "groups.csv").write_text("\n".join(["group,file", *lines]) + "\n")

    def _pictures(self) -> None:
        self["photos"]
        self._train(*PICTURES, "hydra.run.dir=pictures")

    def _mine(self) -> None:
        (self.root / "mine" / "experiment").mkdir(parents=True)
        (self.root / "mine" / "experiment" / "own.yaml").write_text(OWN_YAML)
        (self.root / "mine" / "experiment" / "beside.yaml").write_text(OWN_YAML.replace("own", "beside"))

    def _idx(self) -> None:
        assert self.data is not None
        raw = self.root / "idx" / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for name in IDX_FILES:
            (raw / name).symlink_to((self.data / "MNIST" / "raw" / name).absolute())


def interrupted_at(steps: int, arguments: tuple[str, ...]) -> None:
    """Run the command line, and interrupt it with SIGINT after some training steps."""
    from dlhw import train
    from dlhw.runtime.progress import Progress

    step, count = Progress.step, 0

    def stop(progress: Progress) -> None:
        nonlocal count
        step(progress)
        count += 1
        if count == steps:
            os.kill(os.getpid(), signal.SIGINT)

    setattr(Progress, "step", stop)  # noqa: B010
    sys.argv[:] = ["dlhw", *arguments]
    train.main()


def save_photos(root: Path, *, per_class: int, side: int = 24) -> None:
    """Save random pictures in three classes and three formats, with an old modification time."""
    draw = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog", "emu")):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = draw.integers(0, 256, (5, 6, 3), np.uint8) // 2 + 40 * label
            picture = Image.fromarray(pixels.astype(np.uint8)).resize((side + 6, side), Image.Resampling.BICUBIC)
            path = root / name / f"{number}{('.png', '.bmp', '.jpg')[number % 3]}"
            picture.save(path)
            os.utime(path, (1e9, 1e9))
