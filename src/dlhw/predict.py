"""Apply a finished run to files: ``dlhw predict RUN PICTURE...`` or ``dlhw predict RUN TABLE``."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dlhw import load_run
from dlhw.cli import failures
from dlhw.errors import UsageError
from dlhw.runtime.paths import printable, read_path
from dlhw.runtime.wording import text_table

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dlhw.applying import Network
    from dlhw.reading import Run

Prediction = dict[str, Any]

BATCH_SIZE = 64
CIFAR_SIDE = 32
"""Side of CIFAR-10's pictures. No other dataset has both fixed pictures and an option ``size``."""
GREY_OF_65536 = (19595, 38470, 7471)
"""Weights of red, green and blue in grey, as in Pillow's mode L (ITU-R 601-2)."""
LARGEST_PIXEL = 255


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="dlhw predict",
        description="Apply the network of a finished run to pictures or to the rows of a table, prepared as in "
        "training. Print the most probable classes, or the predicted numbers.",
    )
    parser.add_argument("run", metavar="RUN", help="a run, a folder of runs (the newest), or 'last'")
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="a picture, a folder with pictures, or a table"
    )
    parser.add_argument("--top", type=_count, default=5, metavar="K", help="number of classes per sample (default: 5)")
    parser.add_argument(
        "--weights",
        choices=("best", "last"),
        default="best",
        help="epoch of the weights (default: best)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: auto)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON: a list with one entry per sample")
    form.add_argument("--csv", action="store_true", help="print CSV: one row per sample")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Apply the run that the command line names to files.

    Unreadable pictures are reported on stderr and the others are classified; the exit code is then 1. An
    invalid argument ends the program with a one-line message and exit code 1.
    """
    options = argument_parser().parse_args(arguments)
    with failures.end_program(options.run):
        results = predict(
            load_run(read_path(options.run, key="RUN")),
            options.files,
            top=options.top,
            weights=options.weights,
            device=options.device,
        )
        failed = [result for result in results if "error" in result]
        for result in failed:
            print(f"{result['picture']}: {result['error']}", file=sys.stderr)
        if options.json:
            print(json.dumps(results, indent=2, ensure_ascii=False))
        elif options.csv:
            csv.writer(sys.stdout, lineterminator="\n").writerows(csv_rows(results))
        elif len(failed) < len(results):
            print(table(results))
        sys.exit(1 if failed else 0)


def predict(
    run: Run,
    files: Sequence[Path],
    *,
    top: int,
    weights: Literal["best", "last"],
    device: Literal["auto", "cpu", "cuda", "mps"],
) -> list[Prediction]:
    """Apply a run to pictures, where a folder means the pictures in it and its subfolders, or to the rows of tables.

    Each result has the ``picture``, or the ``table`` and the ``row`` counted from 1, and the ``predictions``, the most
    probable class first, the predicted ``number``, or an ``error``. Raise UsageError.
    """
    from dlhw.data.table_encoding import TableEncoder
    from dlhw.runtime.devices import use_threads

    if run.config.study.get("_target_") is not None:
        raise UsageError(f"{run.path}: a run of a study, which does not save a network; expected a training run")
    use_threads()
    try:
        network = run.network(weights, device=device)
    except UsageError as error:  # its message names the config key
        raise UsageError(str(error).replace("trainer.device=", "--device ")) from error
    if isinstance(network.prepare, TableEncoder):
        return [result for file in files for result in _predict_table(network, file, top=top)]
    _require_pictures(run, network)
    return _predict_pictures(network, picture_files(files), run.config.dataset, top=top)


def _predict_table(network: Network, file: Path, *, top: int) -> Iterator[Prediction]:
    from dlhw.data.table_files import read_table

    table = read_table(file)
    if table.empty:
        raise UsageError(f"{printable(file)}: has no rows")
    try:
        outputs = network.outputs(table)
    except UsageError as error:
        raise UsageError(f"{printable(file)}: {error}") from error
    for number, result in enumerate(_results(network, outputs, top), 1):
        yield {"table": printable(file), "row": number, **result}


def _require_pictures(run: Run, network: Network) -> None:
    """Raise UsageError unless the run classifies pictures of bytes."""
    name = run.summary.get("data", {}).get("name", "?")
    if not network.classes:
        raise UsageError(f"{run.path}: a regression run (dataset={name}); expected a run on pictures with classes")
    is_picture = len(network.shape) == 3 and network.shape[0] in (1, 3) and network.prepare is None
    if not is_picture:
        raise UsageError(
            f"{run.path}: a run on samples that are not pictures (dataset={name}); expected a run on pictures with "
            "classes"
        )


def _predict_pictures(
    network: Network, files: Sequence[Path], options: Mapping[str, Any], *, top: int
) -> list[Prediction]:
    """Classify pictures. ``options`` are those of the dataset in the run's config."""
    import torch

    from dlhw.data.pictures import Unreadable

    of_files = network.with_normalization(network.normalize.for_pixels_up_to(LARGEST_PIXEL))
    results: list[Prediction] = [{"picture": printable(file)} for file in files]
    for start in range(0, len(files), BATCH_SIZE):
        pixels: dict[int, Tensor] = {}
        for index, file in enumerate(files[start : start + BATCH_SIZE], start):
            try:
                pixels[index] = picture_pixels(file, network.shape, options)
            except Unreadable as error:
                results[index]["error"] = str(error)
        if pixels:
            outputs = of_files.outputs(torch.stack(list(pixels.values())))
            for index, result in zip(pixels, _results(network, outputs, top), strict=True):
                results[index] |= result
    return results


def picture_pixels(path: Path, shape: tuple[int, ...], options: Mapping[str, Any]) -> Tensor:
    """Read the picture in a file as uint8 pixels (C, H, W) for a network whose inputs have ``shape``, as in training.

    The short side is resized to ``resize``, followed by a center crop of size ``crop``; for datasets that are not
    files, both equal the size of their pictures. A picture with one channel is converted to grey. Raise Unreadable.
    """
    import torch

    from dlhw.data.pictures import read

    side = shape[-1] if options.get("size") is None else CIFAR_SIDE
    pixels = read(path, resize=options.get("resize", side), crop=options.get("crop", side))
    if shape[0] == 1:
        weights = torch.tensor(GREY_OF_65536).view(3, 1, 1)
        pixels = ((pixels * weights).sum(0, keepdim=True) + 2**15 >> 16).to(torch.uint8)
    return pixels


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


def _results(network: Network, outputs: torch.Tensor, top: int) -> Iterator[Prediction]:
    """Yield the most probable classes of each sample, or its predicted number."""
    if not network.classes:
        yield from ({"number": value} for value in outputs[:, 0].tolist())
        return
    if outputs.shape[1] == 1:  # targets -1 and +1: the sign is the class, without a probability
        yield from ({"predictions": [{"class": name}]} for name in network.named(outputs))
        return
    best = outputs.softmax(1).topk(min(top, len(network.classes)))
    for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        pairs = zip(values, indices, strict=True)
        yield {"predictions": [{"class": network.classes[index], "probability": value} for value, index in pairs]}


def table(results: Sequence[Prediction]) -> str:
    """Format the predictions: a line per class, and the sample's name in the first line of each sample."""
    rows = []
    for result in results:
        name = result["picture"] if "picture" in result else f"{result['table']} row {result['row']}"
        if "number" in result:
            rows.append((name, f"{result['number']:.6g}", ""))
        for rank, prediction in enumerate(result.get("predictions", ())):
            share = f"{100 * prediction['probability']:.2f} %" if "probability" in prediction else ""
            rows.append(("" if rank else name, share, prediction["class"]))
    numbers = any("number" in result for result in results)
    header = ("sample", "number" if numbers else "probability", "" if numbers else "class")
    return text_table(header, rows, right=header[1:2])


def csv_rows(results: Sequence[Prediction]) -> Iterator[tuple[object, ...]]:
    """Yield a header, then a row per sample: its name, and the most probable class or the number."""
    names = ("table", "row") if any("row" in result for result in results) else ("picture",)
    if any("number" in result for result in results):
        yield *names, "number"
        yield from ((*(result[name] for name in names), result["number"]) for result in results)
        return
    yield *names, "class", "probability"
    for result in results:
        first = (result.get("predictions") or [{}])[0]
        yield *(result[name] for name in names), first.get("class", ""), first.get("probability", "")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number, 1 or greater")
    return int(text)


if __name__ == "__main__":
    main()
