"""Classify pictures with a finished run: ``python -m dlhw.predict RUN PICTURE...``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dlhw import load_run
from dlhw.cli import failures
from dlhw.errors import UsageError
from dlhw.runtime.paths import printable, read_path

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from dlhw.reading import Run
    from dlhw.runtime.devices import Precision

Prediction = dict[str, Any]

BATCH_SIZE = 64
CIFAR_SIDE = 32
"""Side of CIFAR-10's pictures. No other dataset has both fixed pictures and an option ``size``."""
GREY_OF_65536 = (19595, 38470, 7471)
"""Weights of red, green and blue in grey, as in Pillow's mode L (ITU-R 601-2)."""
log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Classify the pictures that the command line names.

    Unreadable pictures are reported on stderr and the others are classified; the exit code is then 1. An
    invalid argument ends the program with a one-line message and exit code 1.
    """
    parser = argparse.ArgumentParser(
        prog="python -m dlhw.predict",
        description="Classify pictures with the network of a finished run, and print the most probable classes. "
        "Pictures are prepared as in training.",
    )
    parser.add_argument("run", metavar="RUN", help="the directory of a run that classifies pictures")
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE", help="a file, or a folder with pictures")
    parser.add_argument("--top", type=_count, default=5, metavar="K", help="number of classes per picture (default: 5)")
    parser.add_argument(
        "--weights",
        choices=("best", "last"),
        default="best",
        help="epoch of the weights (default: best)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: auto)")
    parser.add_argument("--json", action="store_true", help="print JSON: a list with one entry per picture")
    options = parser.parse_args(arguments)
    with failures.end_program(options.run):
        results = predict(
            read_path(options.run, key="RUN"),
            options.pictures,
            top=options.top,
            weights=options.weights,
            device=options.device,
        )
        failed = [result for result in results if "error" in result]
        for result in failed:
            print(f"{result['picture']}: {result['error']}", file=sys.stderr)
        if options.json:
            print(json.dumps(results, indent=2, ensure_ascii=False))
        elif len(failed) < len(results):
            print(table(results))
        sys.exit(1 if failed else 0)


def predict(
    path: Path,
    pictures: Sequence[Path],
    *,
    top: int,
    weights: Literal["best", "last"],
    device: Literal["auto", "cpu", "cuda", "mps"],
) -> list[Prediction]:
    """Classify pictures with the run at ``path``; a folder means the pictures in it and its subfolders.

    Each result has the ``picture`` and either its ``predictions``, the most probable class first, or an ``error``.
    Raise UsageError.
    """
    import torch

    from dlhw.data.pictures import Unreadable
    from dlhw.runtime.devices import pick_device, use_threads

    try:
        torch_device = pick_device(device)
    except UsageError as error:  # its message names the config key
        raise UsageError(str(error).replace("trainer.device=", "--device ")) from error
    use_threads()
    classifier = open_classifier(path, weights, torch_device)
    files = picture_files(pictures)
    results: list[Prediction] = [{"picture": printable(file)} for file in files]
    for start in range(0, len(files), BATCH_SIZE):
        inputs: dict[int, Tensor] = {}
        for index, file in enumerate(files[start : start + BATCH_SIZE], start):
            try:
                inputs[index] = prepare(
                    file, shape=classifier.shape, options=classifier.options, dtype=classifier.dtype
                )
            except Unreadable as error:
                results[index]["error"] = str(error)
        if inputs:
            batch = torch.stack(list(inputs.values())).to(torch_device)
            for index, predictions in zip(inputs, classifier.top_classes(batch, top), strict=True):
                results[index]["predictions"] = predictions
    return results


@dataclass(frozen=True)
class PictureClassifier:
    """The network of a run, in evaluation mode, with a description of its inputs and outputs.

    Args:
        model: maps normalized pictures (N, *shape) to logits.
        shape: the shape of a picture, (C, H, W).
        options: the dataset options of the run's config.
        classes: the names of the classes.
        precision: the precision of the run.
    """

    model: nn.Module
    shape: tuple[int, ...]
    options: Mapping[str, Any]
    classes: tuple[str, ...]
    precision: Precision

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and inputs."""
        return next(self.model.parameters()).dtype

    def top_classes(self, x: Tensor, top: int) -> list[list[Prediction]]:
        """Return the ``top`` most probable classes of each input, with their probabilities."""
        import torch

        with torch.inference_mode(), self.precision.autocast():
            best = self.model(x).cpu().double().softmax(1).topk(min(top, len(self.classes)))
        return [
            [{"class": self.classes[index], "probability": value} for value, index in zip(values, indices, strict=True)]
            for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]


def open_classifier(path: Path, weights: Literal["best", "last"], device: torch.device) -> PictureClassifier:
    """Open the network of the run at ``path``. Raise UsageError if the run does not classify pictures."""
    from omegaconf import OmegaConf

    from dlhw.cli.build import choice
    from dlhw.runtime.devices import Precision

    run = load_run(path)
    if run.config.study.get("_target_") is not None:
        raise UsageError(f"{path}: a run of a study, which does not save a network; expected a training run")
    model = run.model(weights)
    state = run.checkpoint(weights)
    shape, name = tuple(state["shape"]), choice(run.config, "dataset")
    if state["outputs"] == 1:
        raise UsageError(f"{path}: a regression run (dataset={name}); expected a run on pictures with classes")
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UsageError(
            f"{path}: a run on samples that are not pictures (dataset={name}); expected a run on pictures with classes"
        )
    options: Any = OmegaConf.to_container(run.config.dataset, resolve=True)
    trained = run.config.trainer.precision
    precision = Precision("fp32" if trained == "tf32" and device.type != "cuda" else trained, device)
    return PictureClassifier(
        model.to(device, precision.dtype), shape, options, class_names(run, state["outputs"]), precision
    )


def class_names(run: Run, outputs: int) -> tuple[str, ...]:
    """Return the class names in the run's summary, or numbers if training was interrupted before it was written."""
    names = run.summary.get("data", {}).get("classes", [])
    if len(names) == outputs:
        return tuple(names)
    log.warning("%s: no class names in summary.json; showing class numbers", run.path)
    return tuple(map(str, range(outputs)))


def prepare(path: Path, *, shape: tuple[int, ...], options: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
    """Read the picture in a file as the input of a network for pictures of ``shape`` (C, H, W), as in training.

    ``options`` are those of the dataset. The short side is resized to ``resize``, followed by a center crop of size
    ``crop``; for datasets that are not files, both equal the size of their pictures. A picture with one channel is
    converted to grey. The normalization is that of the dataset. Raise Unreadable.
    """
    import torch

    from dlhw.data.normalization import Normalization
    from dlhw.data.pictures import read

    size = options.get("size")
    side = shape[-1] if size is None else CIFAR_SIDE
    pixels = read(path, resize=options.get("resize", side), crop=options.get("crop", side))
    if shape[0] == 1:
        weights = torch.tensor(GREY_OF_65536).view(3, 1, 1)
        pixels = ((pixels * weights).sum(0, keepdim=True) + 2**15 >> 16).to(torch.uint8)
    normalize = Normalization.of_pixels(options["mean"], options["std"], largest=255, shape=shape, size=size)
    return normalize.to("cpu", dtype)(pixels[None])[0]


def picture_files(paths: Sequence[Path]) -> list[Path]:
    """Replace each folder by the pictures in it, sorted by name. Raise UsageError for a folder without pictures."""
    from dlhw.data.pictures import files_below, is_picture

    files: list[Path] = []
    for path in paths:
        path_files = sorted(filter(is_picture, files_below(path))) if path.is_dir() else [path]
        if not path_files:
            raise UsageError(f"{path}: a folder without pictures")
        files += path_files
    return files


def table(results: Sequence[Prediction]) -> str:
    """Format the predictions: a line per class, and the picture's name in the first line of each picture."""
    classified = [result for result in results if "predictions" in result]
    width = max(len(result["picture"]) for result in classified)
    lines = [f"{'picture':{width}}  probability  class"]
    for result in classified:
        for rank, prediction in enumerate(result["predictions"]):
            name = "" if rank else result["picture"]
            lines.append(f"{name:{width}}  {100 * prediction['probability']:9.2f} %  {prediction['class']}")
    return "\n".join(lines)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number, 1 or greater")
    return int(text)


if __name__ == "__main__":
    main()
