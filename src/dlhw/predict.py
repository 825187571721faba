"""What a finished run says of pictures: ``python -m dlhw.predict RUN PICTURE...``."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dlhw import load_run
from dlhw.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from dlhw.reading import Run
    from dlhw.runtime.devices import Precision

Prediction = dict[str, Any]

BATCH_SIZE = 64
ENLARGED_SIDE = 32
"""Of CIFAR-10's pictures, the only ones that are no files and may be resized."""
GREY_OF_65536 = (19595, 38470, 7471)
"""What red, green and blue count for in grey, as in Pillow's mode L (ITU-R 601-2)."""
log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Classify the pictures that the command line names.

    A picture that cannot be read is named on stderr, the others are classified, and the exit code is 1. A mistake ends
    the program with one line and exit code 1.
    """
    parser = argparse.ArgumentParser(
        prog="python -m dlhw.predict",
        description="Classify pictures with the network of a finished run: the most probable classes of each. Pictures "
        "are prepared as the run's own were.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the directory of a run on pictures with classes")
    parser.add_argument(
        "pictures", nargs="+", type=Path, metavar="PICTURE", help="a file, or a folder for all below it"
    )
    parser.add_argument("--top", type=_count, default=5, metavar="K", help="so many classes of each (default: 5)")
    parser.add_argument("--weights", choices=("best", "last"), default="best", help="of which epoch (default: best)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: auto)")
    parser.add_argument("--json", action="store_true", help="one JSON document: a list with an entry for each picture")
    given = parser.parse_args(arguments)
    try:
        found = predict(given.run, given.pictures, top=given.top, weights=given.weights, device=given.device)
    except (UsageError, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error, file=sys.stderr)
        sys.exit(1)
    failed = [each for each in found if "error" in each]
    for each in failed:
        print(f"{each['picture']}: {each['error']}", file=sys.stderr)
    if given.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    elif len(failed) < len(found):
        print(table(found))
    sys.exit(1 if failed else 0)


def predict(
    path: Path,
    pictures: Sequence[Path],
    *,
    top: int,
    weights: Literal["best", "last"],
    device: Literal["auto", "cpu", "cuda", "mps"],
) -> list[Prediction]:
    """What the run at ``path`` says of each picture, in order; a folder stands for the pictures below it.

    Of each ``picture`` the ``predictions``, the most probable class first, or the ``error``. Raises UsageError.
    """
    import torch

    from dlhw.data.pictures import Unreadable
    from dlhw.runtime.devices import pick_device

    try:
        place = pick_device(device)
    except UsageError as error:  # it speaks of the config's key
        raise UsageError(str(error).replace("trainer.device=", "--device ")) from error
    network = opened(path, weights, place)
    files = expanded(pictures)
    # Names on disks are bytes; those that are no text are shown escaped.
    found: list[Prediction] = [{"picture": os.fsencode(file).decode("utf-8", "backslashreplace")} for file in files]
    for start in range(0, len(files), BATCH_SIZE):
        inputs: dict[int, Tensor] = {}
        for at, file in enumerate(files[start : start + BATCH_SIZE], start):
            try:
                inputs[at] = prepared(file, shape=network.shape, options=network.options, dtype=network.dtype)
            except Unreadable as reason:
                found[at]["error"] = str(reason)
        if inputs:
            likeliest = network.likeliest(torch.stack(list(inputs.values())).to(place), top)
            for at, predictions in zip(inputs, likeliest, strict=True):
                found[at]["predictions"] = predictions
    return found


@dataclass(frozen=True)
class Network:
    """A run's network in evaluation mode, with what its inputs and outputs are.

    Args:
        model: normalized pictures (N, *shape) to logits.
        shape: of one picture, (C, H, W).
        options: the run's data set, as its config has it.
        classes: names of the outputs.
        precision: the run's, in which it was evaluated.
    """

    model: nn.Module
    shape: tuple[int, ...]
    options: Mapping[str, Any]
    classes: tuple[str, ...]
    precision: Precision

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and inputs."""
        return next(self.model.parameters()).dtype

    def likeliest(self, x: Tensor, top: int) -> list[list[Prediction]]:
        """Of each input the most probable classes, ``top`` of them if there are as many, with their probabilities."""
        import torch

        with torch.inference_mode(), self.precision.autocast():
            found = self.model(x).cpu().double().softmax(1).topk(min(top, len(self.classes)))
        return [
            [{"class": self.classes[index], "probability": value} for value, index in zip(*each, strict=True)]
            for each in zip(found.values.tolist(), found.indices.tolist(), strict=True)
        ]


def opened(path: Path, weights: Literal["best", "last"], place: torch.device) -> Network:
    """The network of the run at ``path``. Raises UsageError where there is none that classifies pictures."""
    from omegaconf import OmegaConf

    from dlhw.cli.build import choice
    from dlhw.runs import checkpoint
    from dlhw.runtime.devices import Precision

    sweep = [name for name in ("multirun.yaml", "sweep.csv") if (path / name).is_file()]
    if sweep and not (path / "config.yaml").is_file():
        jobs = sorted(job.parent for job in path.rglob("best.pt"))
        raise UsageError(
            f"{path}: a sweep's directory; name one of its runs" + (f", such as {jobs[0]}" if jobs else "")
        )
    run = load_run(path)
    if run.config.study.get("_target_") is not None:
        raise UsageError(f"{path}: the run of a study, which leaves no network; name one that was trained")
    model = run.model(weights)
    state = checkpoint.load(path / f"{weights}.pt")
    shape, name = tuple(state["shape"]), choice(run.config, "dataset")
    if state["outputs"] == 1:
        raise UsageError(f"{path}: predicts a number (dataset={name}); name a run on pictures with classes")
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UsageError(f"{path}: its samples are no pictures (dataset={name}); name a run on pictures with classes")
    options: Any = OmegaConf.to_container(run.config.dataset, resolve=True)
    named = run.config.trainer.precision
    precision = Precision("fp32" if named == "tf32" and place.type != "cuda" else named, place)
    return Network(model.to(place), shape, options, class_names(run, state["outputs"]), precision)


def class_names(run: Run, outputs: int) -> tuple[str, ...]:
    """What the run's summary calls its classes; where it does not, because training was interrupted, their numbers."""
    names = run.summary.get("data", {}).get("classes", [])
    if len(names) == outputs:
        return tuple(names)
    log.warning("%s: its summary does not name the classes; they are shown by number", run.path)
    return tuple(map(str, range(outputs)))


def prepared(path: Path, *, shape: tuple[int, ...], options: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
    """The picture in a file as it would be given to a network for pictures of this ``shape`` (C, H, W) in training.

    ``options`` are the data set's. The short side becomes ``resize`` and of that the middle ``crop`` is taken; where
    the data set has no files, both are as large as its pictures. One channel is grey. Then comes the data set's own
    normalization. Raises Unreadable.
    """
    import torch

    from dlhw.data.normalization import Normalization
    from dlhw.data.pictures import read

    size = options.get("size")
    side = shape[-1] if size is None else ENLARGED_SIDE
    pixels = read(path, resize=options.get("resize", side), crop=options.get("crop", side))
    if shape[0] == 1:
        weights = torch.tensor(GREY_OF_65536).view(3, 1, 1)
        pixels = ((pixels * weights).sum(0, keepdim=True) + 2**15 >> 16).to(torch.uint8)
    normalize = Normalization.of_pixels(options["mean"], options["std"], largest=255, shape=shape, size=size)
    return normalize.to("cpu", dtype)(pixels[None])[0]


def expanded(paths: Sequence[Path]) -> list[Path]:
    """The files that are meant: of a folder all pictures below it, by name. Raises UsageError for one without any."""
    from dlhw.data.pictures import files_below, is_picture

    files: list[Path] = []
    for path in paths:
        below = sorted(filter(is_picture, files_below(path))) if path.is_dir() else [path]
        if not below:
            raise UsageError(f"{path}: a folder without pictures")
        files += below
    return files


def table(found: Sequence[Prediction]) -> str:
    """The predictions for a reader: a line for each class, the picture in the first of its lines."""
    shown = [each for each in found if "predictions" in each]
    width = max(len(each["picture"]) for each in shown)
    lines = [f"{'picture':{width}}  probability  class"]
    for each in shown:
        for place, likely in enumerate(each["predictions"]):
            name = "" if place else each["picture"]
            lines.append(f"{name:{width}}  {100 * likely['probability']:9.2f} %  {likely['class']}")
    return "\n".join(lines)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number, 1 or greater")
    return int(text)


if __name__ == "__main__":
    main()
