"""Datasets from tables in files: one column is the target, the others are features."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dlhw.data.arrays import Array, Task, split_parts, targets_of
from dlhw.data.normalization import Normalization
from dlhw.data.table_encoding import TableEncoder, is_number, texts
from dlhw.data.table_files import read_table
from dlhw.data.tensors import Dataset, Split
from dlhw.errors import UsageError
from dlhw.runtime.hints import expected_one_of
from dlhw.runtime.options import Fraction, FractionOrZero, PathText
from dlhw.runtime.paths import existing_file, printable, shortened

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

ColumnName = Annotated[str, Field(coerce_numbers_to_str=True)]

MOST_CLASSES = 20
"""Whole numbers with at most so many different values are classes, unless the task is given."""
MOST_CATEGORIES = 200
"""A column of texts with more different values, such as names or dates, is an error."""
MOSTLY = 0.9
"""A column with a larger share of numbers, and many of them, is not meant as categories."""
LARGEST_NUMBER = 1e100
"""The largest absolute value of a feature: the squares of larger ones are infinite."""
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+")


def table(
    *,
    data_dir: str | Path,
    seed: int,
    path: PathText,
    target: ColumnName,
    task: Task,
    exclude: list[ColumnName],
    validation_fraction: Fraction,
    test_fraction: FractionOrZero,
) -> Dataset:
    """The rows of a table, with one of its columns as the target; all others, unless excluded, are features.

    Rows without a target are left out. Missing numbers are replaced by the median of the training part; another
    input is 1 where a number is missing. Raise UsageError for an invalid file, column or value.
    """
    file = existing_file(path, Path(data_dir), key="dataset.path")
    frame = read_table(file)
    rows = _rows_with(frame, target, file)
    excluded = _excluded([*map(str, frame)], target, exclude, file)
    labels, classifies = _labels(rows[target], task)
    classes, targets = _targets(labels, target, file, classifies=classifies)
    whole = Split(torch.arange(len(rows)), targets)
    parts = split_parts(
        {"train": whole}, classes, seed=seed, validation_fraction=validation_fraction, test_fraction=test_fraction
    )
    training = parts["train"].x.numpy()
    features = rows.drop(columns=[target, *excluded])
    features = features.loc[:, features.iloc[training].notna().any()]
    if not features.shape[1]:
        raise UsageError(f"{printable(file)}: has no column with values besides the target {shortened(target)}")
    for name in features:
        _require_usable(features[name], file)
    encoder = TableEncoder.of(features, training)
    x = encoder(features)
    parts = {part: replace(split, pool_x=x, raw=features) for part, split in parts.items()}
    about = _about(frame, features, encoder, target, excluded)
    log.info("%s", "; ".join(_facts(file, about, classes, parts)))
    return Dataset(
        name=file.name.partition(".")[0],
        train=parts["train"],
        val=parts["val"],
        test=parts.get("test"),
        normalize=Normalization.of_pixels(0.0, 1.0, largest=1, shape=tuple(x.shape[1:])),
        classes=classes,
        sha256=_sha256(file),
        about=about,
        prepare=encoder,
    )


def labelled_rows(path: str, data_dir: str | Path, *, target: str, classifies: bool) -> tuple[pd.DataFrame, Array, str]:
    """Return all rows of a table that have a target, these targets, and the file's SHA-256, for an evaluation.

    The targets are names of classes, or numbers to predict. Raise UsageError.
    """
    file = existing_file(path, Path(data_dir), key="dataset.path")
    rows = _rows_with(read_table(file), target, file)
    targets = rows[target]
    return rows, np.array(texts(targets), object) if classifies else targets.to_numpy(), _sha256(file)


def _rows_with(frame: pd.DataFrame, target: str, file: Path) -> pd.DataFrame:
    """Return the rows that have a target. Raise UsageError if there is no such column or no such row."""
    if target not in frame:
        hint = expected_one_of(target, [*map(str, frame)])
        raise UsageError(f"dataset.target={shortened(target)}: {printable(file)} has no such column{hint}")
    rows = frame[frame[target].notna()]
    if rows.empty:
        raise UsageError(f"{printable(file)}: has no rows with a value in the column {shortened(target)}")
    return rows


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _excluded(names: list[str], target: str, patterns: Sequence[str], file: Path) -> list[str]:
    """Return the columns that a pattern excludes. Raise UsageError if a pattern names no column."""
    columns = [name for name in names if name != target]
    matched = {
        pattern: [name for name in columns if name == pattern or fnmatchcase(name, pattern)] for pattern in patterns
    }
    for pattern, matches in matched.items():
        if not matches:
            hint = expected_one_of(pattern, columns)
            raise UsageError(
                f"dataset.exclude=[{shortened(pattern)}]: {printable(file)} has no such column besides the target{hint}"
            )
    excluded = {name for matches in matched.values() for name in matches}
    return [name for name in columns if name in excluded]


def _labels(target: pd.Series[Any], task: Task) -> tuple[Array, bool]:
    """Return the labels of the rows, and whether they are classes. Raise UsageError if they do not fit the task."""
    if not is_number(target):
        if task == "regression":
            raise UsageError(
                f"dataset.task=regression: the column {shortened(target.name)} has the value "
                f"{shortened(_first_text(target))}; expected numbers"
            )
        return np.array(texts(target), object), True
    values = target.to_numpy(float)
    whole = bool((values == np.round(values)).all() and np.isfinite(values).all())
    if task == "auto":
        return values, whole and len(np.unique(values)) <= MOST_CLASSES
    return values, task == "classification"


def _targets(labels: Array, target: str, file: Path, *, classifies: bool) -> tuple[tuple[str, ...], Tensor]:
    """Return the names of the classes, empty for regression, and the targets of all rows. Raise UsageError."""
    try:
        classes, targets = targets_of({"rows": labels}, task="classification" if classifies else "regression")
    except UsageError as error:
        reason = str(error).removeprefix("rows: ")
        raise UsageError(f"{printable(file)}: column {shortened(target)}: {reason}") from error
    return classes, targets["rows"]


def _first_text(values: pd.Series[Any]) -> str:
    """Return the first value of a column that is not a number."""
    import pandas as pd

    known = values.dropna()
    numbers = pd.to_numeric(known.map(str), errors="coerce")
    return str(known[numbers.isna()].iloc[0] if numbers.isna().any() else known.iloc[0])


def _require_usable(values: pd.Series[Any], file: Path) -> None:
    """Raise UsageError if a feature has a number that is too large, decimal commas or too many categories."""
    import pandas as pd

    where, name = printable(file), shortened(values.name)
    known = values.dropna()
    if is_number(values):
        if not (large := known[known.abs() > LARGEST_NUMBER]).empty:
            raise UsageError(
                f"{where}: column {name} has the value {large.iloc[0]}; expected at most {LARGEST_NUMBER:g}"
            )
        return
    different = set(texts(known))
    if all(DECIMAL_COMMA.fullmatch(text) for text in different):
        raise UsageError(
            f"{where}: column {name} has numbers with a comma, such as {shortened(known.iloc[0])}; expected a decimal "
            "point and no separator of thousands"
        )
    are_numbers = pd.to_numeric(known.map(str), errors="coerce").notna()
    if MOSTLY < are_numbers.mean() < 1 and len(different) > MOST_CLASSES:
        raise UsageError(
            f"{where}: column {name} has numbers, but also {shortened(known[~are_numbers].iloc[0])}; expected numbers "
            f"or empty cells; leave it out with dataset.exclude=[{name}]"
        )
    if len(different) > MOST_CATEGORIES or MOST_CLASSES < len(different) > len(known) / 2:
        raise UsageError(
            f"{where}: column {name} has {len(different)} different texts in {len(known)} cells, such as "
            f"{shortened(_first_text(values))}; expected numbers, or at most {MOST_CATEGORIES} categories that occur "
            f"several times; leave it out with dataset.exclude=[{name}]"
        )


def _about(
    frame: pd.DataFrame, features: pd.DataFrame, encoder: TableEncoder, target: str, excluded: Sequence[str]
) -> dict[str, Any]:
    """Return the description of the table for the summary of a run."""
    missing = {str(name): int(count) for name, count in features.isna().sum().items() if count}
    return {
        "rows": len(frame),
        "rows_without_target": len(frame) - len(features),
        "target": target,
        "numbers": [column.name for column in encoder.columns if column.categories is None],
        "categories": {
            column.name: len(column.categories) for column in encoder.columns if column.categories is not None
        },
        "missing_values": missing,
        "excluded": list(excluded),
        "without_values": [name for name in frame if name not in {*features, *excluded, target}],
        "inputs": len(encoder.inputs),
    }


def _facts(file: Path, about: Mapping[str, Any], classes: Sequence[str], parts: Mapping[str, Split]) -> Iterator[str]:
    """Yield the parts of the log line about a table."""
    yield f"{printable(file)}: {about['rows']:,} rows"
    if about["rows_without_target"]:
        yield f"left out {about['rows_without_target']:,} rows without {shortened(about['target'])}"
    for reason, key in (("excluded", "excluded"), ("without values", "without_values")):
        if about[key]:
            yield f"left out {_listed(about[key])} ({reason})"
    if about["numbers"]:
        yield f"numbers, standardized by the training part: {_listed(about['numbers'])}"
    if about["categories"]:
        yield f"categories: {_listed([f'{name} ({count})' for name, count in about['categories'].items()])}"
    if about["missing_values"]:
        yield f"missing values: {_listed([f'{name} ({n})' for name, n in about['missing_values'].items()])}"
    yield f"{about['inputs']} inputs"
    kind = f"{len(classes)} classes: {_listed(classes)}" if classes else "a number to predict (regression)"
    yield f"target {shortened(about['target'])}: {kind}"
    yield ", ".join(f"{part} {len(split):,}" for part, split in parts.items())


def _listed(names: Sequence[str], *, most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shortened(name, longest=40) for name in names[:most]) + more
