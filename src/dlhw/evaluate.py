"""The command that measures a finished run on labelled data: ``dlhw evaluate RUN dataset.root=FOLDER``."""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dlhw.cli import failures
from dlhw.errors import UsageError
from dlhw.runtime.paths import read_path
from dlhw.runtime.wording import text_table

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from dlhw.applying import Evaluation
    from dlhw.reading import Run

log = logging.getLogger("dlhw")
MOST_CLASSES = 12
"""Larger confusion matrices are not printed."""


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="dlhw evaluate",
        description="Measure a finished run on its test part (without one, its validation part), or on all samples of "
        "other labelled data: accuracy with a 95 %% interval and confusion matrix, or errors of a regression. Nothing "
        "is selected or written.",
    )
    parser.add_argument("run", metavar="RUN", help="a run, a folder of runs (the newest), or 'last'")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="dataset.KEY=VALUE",
        help="other labelled data of the same kind, such as dataset.root=FOLDER or dataset.path=FILE",
    )
    parser.add_argument("--part", choices=("train", "val", "test"), help="of the run's own data")
    parser.add_argument("--weights", choices=("best", "last"), default="best", help="(default: best)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate the run that the command line names. An error ends the program with one line and exit code 1."""
    options = argument_parser().parse_args(arguments)
    with failures.end_program(options.run):
        from dlhw import load_run

        result = evaluate(
            load_run(read_path(options.run, key="RUN")), options.overrides, part=options.part, weights=options.weights
        )
        print(json.dumps(content(result), indent=2, ensure_ascii=False) if options.json else report(result))


def evaluate(run: Run, overrides: Sequence[str] = (), *, part: str | None = None, weights: Any = "best") -> Evaluation:
    """Evaluate a run on a part of its data or, with overrides of ``dataset``, on all samples of other data.

    Raise UsageError.
    """
    from dlhw.applying import Evaluation

    network = run.network(weights)
    if not overrides:
        return run.evaluate_part(network, part)
    if part is not None:
        raise UsageError(f"--part {part}: invalid with other data, of which all samples are used")
    pairs, sha256 = labelled_samples(other_config(run, overrides), classifies=bool(network.classes))
    if run.summary.get("data", {}).get("sha256") == sha256:
        log.warning("these are the samples that the run was trained on; --part test evaluates its test part")
    return Evaluation.joined([network.evaluate(x, y) for x, y in pairs])


def labelled_samples(config: DictConfig, *, classifies: bool) -> tuple[list[tuple[Any, Any]], str]:
    """Return raw samples and labels of each part of a config's dataset, and the SHA-256 of the data.

    Raise UsageError.
    """
    from dlhw.cli.build import validated
    from dlhw.data import tables
    from dlhw.reading import raw_part

    component = validated(config, "dataset", {"data_dir", "seed"})
    if component.target is tables.table:  # the columns are prepared as in training, whatever values they have
        options = component.options
        x, y, sha256 = tables.labelled_rows(
            options["path"], config.data_dir, target=options["target"], classifies=classifies
        )
        return [(x, y)], sha256
    data = component.build(data_dir=config.data_dir, seed=config.seed)
    return [raw_part(data, name) for name in data.parts], data.sha256


def other_config(run: Run, overrides: Sequence[str]) -> DictConfig:
    """Return a run's config with another dataset. Raise UsageError for overrides of something else."""
    from hydra.errors import HydraException
    from omegaconf import OmegaConf, open_dict

    from dlhw.cli import program
    from dlhw.cli.composition import parsed, quoted

    for text in overrides:
        if not re.match(r"(dataset|data_dir|dataset\.[\w.]+)=", text):
            raise UsageError(f"{text}: invalid here; expected dataset=NAME or dataset.KEY=VALUE")
    try:
        lines = [parsed(quoted(text)) for text in overrides]
    except HydraException as error:
        raise UsageError(f"{' '.join(overrides)}: {' '.join(str(error).splitlines()[0].split())}") from error
    if swept := [str(line.input_line) for line in lines if line.is_sweep_override()]:
        raise UsageError(f"{swept[0]}: several values; expected one")
    config = run.config.copy()
    chosen = [str(line.input_line) for line in lines if line.key_or_group == "dataset"]
    with open_dict(config):
        if chosen and (other := program.compose(*chosen).dataset)._target_ != config.dataset._target_:
            config.dataset = other
        for line in lines:
            if line.key_or_group != "dataset":
                OmegaConf.update(config, str(line.key_or_group), line.value())
        classes = run.checkpoint()["classes"]
        settings = {
            "task": "classification" if classes else "regression",
            "validation_fraction": 0.5,  # all parts are used
            "test_fraction": 0.0,
        }
        for name, value in settings.items():
            if name in config.dataset and f"dataset.{name}" not in {str(line.key_or_group) for line in lines}:
                config.dataset[name] = value
    return config


def content(result: Evaluation) -> dict[str, Any]:
    """Return the numbers of an evaluation as a mapping of plain values, with the confusion matrix of a classifier."""
    counts = {"classes": list(result.classes), "confusion": result.confusion.to_numpy().tolist()}
    return {"part": result.part or None, **result.numbers, **(counts if result.classes else {})}


def report(result: Evaluation) -> str:
    """Return the evaluation as text, with the confusion matrix and the accuracy of each class."""
    if not result.classes or len(result.classes) > MOST_CLASSES:
        return str(result)
    counts = result.confusion.to_numpy()
    header = ("true \\ predicted", *result.classes, "accuracy")
    rows = [
        (name, *map(str, row), f"{100 * row[index] / row.sum():.1f} %" if row.sum() else "")
        for index, (name, row) in enumerate(zip(result.classes, counts, strict=True))
    ]
    return f"{result}\n\n{text_table(header, rows, right=header[1:])}"


if __name__ == "__main__":
    main()
