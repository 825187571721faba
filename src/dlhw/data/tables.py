"""Datasets from tables in files: CSV or Parquet, with columns of numbers, categories and missing values."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dlhw.data.arrays import from_arrays
from dlhw.data.tensors import Dataset, Split, split_off
from dlhw.errors import UsageError
from dlhw.runtime.options import PathText
from dlhw.runtime.paths import places_of, printable, shortened

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Task = Literal["auto", "classification", "regression"]
Fraction = Annotated[float, Field(gt=0, lt=1)]
FractionOrNone = Annotated[float, Field(ge=0, lt=1)]

MOST_CLASSES = 20
"""Whole numbers with at most so many different values are classes, unless the task is given."""
MOST_CATEGORIES = 200
"""A column of texts with more different values, such as names or dates, is an error."""


@dataclass(frozen=True)
class Column:
    """How one column of a table becomes numbers.

    Args:
        categories: its values, each an input that is 1 or 0; None: the column is a number.
        mean, std: of a number, over the training part.
        fill: what replaces a missing number, the median of the training part.
        has_missing: whether the training part has missing values; then another input is 1 where the value is missing.
    """

    name: str
    categories: tuple[str, ...] | None
    mean: float = 0.0
    std: float = 1.0
    fill: float = 0.0
    has_missing: bool = False

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs of a model that this column becomes."""
        values = [self.name] if self.categories is None else [f"{self.name}={value}" for value in self.categories]
        return [*values, *([f"{self.name} is missing"] if self.has_missing else [])]

    @classmethod
    def of(cls, values: pd.Series[Any], training: Any) -> Column:
        """Learn from the training rows of a column. Raise UsageError if it has too many categories."""
        name, missing = str(values.name), bool(values.isna().iloc[training].any())
        if not _is_number(values):
            known = sorted(set(values.dropna().iloc[training].map(str)))
            return cls(name, tuple(known), has_missing=missing)
        numbers = values.iloc[training].astype(float)
        fill = float(numbers.median())
        filled = numbers.fillna(fill)
        return cls(name, None, float(filled.mean()), float(filled.std(ddof=0)) or 1.0, fill, missing)

    def encode(self, values: pd.Series[Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the inputs (N, len(inputs)) for the values of this column. Raise UsageError for a text in a number."""
        import pandas as pd

        missing = values.isna()
        if self.categories is not None:
            texts = values.map(str).where(~missing, "")
            columns = [(texts == value).to_numpy(float) for value in self.categories]
        else:
            numbers = pd.to_numeric(values, errors="coerce")
            if (wrong := numbers.isna() & ~missing).any():
                raise UsageError(
                    f"column {shortened(self.name)}: {shortened(values[wrong].iloc[0])} is not a number, as in training"
                )
            columns = [((numbers.astype(float).fillna(self.fill) - self.mean) / self.std).to_numpy(float)]
        return np.stack([*columns, *([missing.to_numpy(float)] if self.has_missing else [])], 1)


@dataclass(frozen=True)
class TableEncoder:
    """Turns rows of a table into samples: numbers are standardized, categories become inputs that are 0 or 1."""

    columns: tuple[Column, ...]
    kind: ClassVar[str] = "table"

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs of a model."""
        return [name for column in self.columns for name in column.inputs]

    def __call__(self, raw: pd.DataFrame) -> Tensor:
        """Return the samples (N, len(inputs)), float64.

        A category that training did not have is 0 in all inputs. Raise UsageError for a missing column.
        """
        missing = [column.name for column in self.columns if column.name not in raw]
        if missing:
            raise UsageError(f"no column {', '.join(map(shortened, missing[:5]))}; the network was trained with it")
        return torch.from_numpy(np.concatenate([column.encode(raw[column.name]) for column in self.columns], 1))

    @property
    def state(self) -> dict[str, Any]:
        return {"kind": self.kind, "columns": [{**vars(column)} for column in self.columns]}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        return cls(
            tuple(Column(**{**column, "categories": _as_tuple(column["categories"])}) for column in state["columns"])
        )


def _as_tuple(values: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)


def table(
    *,
    data_dir: str | Path,
    seed: int,
    path: PathText,
    target: str,
    task: Task,
    exclude: list[str],
    validation_fraction: Fraction,
    test_fraction: FractionOrNone,
) -> Dataset:
    """The rows of a table, with one of its columns as the target; all others, unless excluded, are features.

    Rows without a target are left out. Missing numbers are replaced by the median of the training part, with another
    input that says so. Raise UsageError for a file, column or value that cannot be used.
    """
    file = located(path, Path(data_dir))
    frame = read_table(file)
    where = f"dataset.path={printable(path)}"
    names = [str(name) for name in frame.columns]
    if target not in names:
        raise UsageError(f"dataset.target={shortened(target)}: no such column; {where} has {_listed(names)}")
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(f"dataset.exclude: {shortened(pattern)}: no such column; {where} has {_listed(names)}")
    kept = frame[frame[target].notna()]
    features = kept[[n for n in names if n != target and not any(fnmatchcase(n, pattern) for pattern in exclude)]]
    if features.empty:
        raise UsageError(f"{where}: no rows, or no column besides the target {shortened(target)}")
    classifies = _classifies(kept[target], task)
    training = _training_rows(len(kept), seed=seed, validation=validation_fraction, test=test_fraction)
    for name in features:
        _require_usable(features[name], where)
    encoder = TableEncoder(tuple(Column.of(features[name], training) for name in features))
    labels = _labels(kept[target]) if classifies else kept[target].to_numpy(float)
    about = _about(frame, features, encoder, target, left_out=len(frame) - len(kept))
    log.info("%s", _description(file, about, encoder, len(set(labels)) if classifies else 0))
    data = from_arrays(
        encoder(features),
        labels,
        seed=seed,
        name=file.stem,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        standardize=False,
        about=about,
    )
    parts = {part: replace(split, raw=features) for part, split in data.parts.items()}
    return data.with_parts(parts, prepare=encoder)


def located(path: str, data_dir: Path) -> Path:
    """Return the file that exists: the path itself, or below ``data_dir``. Raise UsageError if there is none."""
    places = places_of(Path(path), data_dir)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UsageError(
            f"dataset.path={printable(path)}: no such file; looked for {' and '.join(map(printable, places))}"
        )
    return found


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV file with any delimiter, or a Parquet file. Raise UsageError if it is not a table."""
    import pandas as pd

    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, sep=_delimiter(path), encoding="utf-8-sig", skipinitialspace=True)
    except ImportError as error:
        raise UsageError(f"{printable(path)}: Parquet needs pyarrow; install it (pip install pyarrow)") from error
    except (OSError, ValueError, UnicodeError, csv.Error) as error:  # pandas' errors are ValueErrors
        raise UsageError(
            f"{printable(path)}: cannot be read as a table ({shortened(' '.join(str(error).split()))})"
        ) from error
    frame.columns = [str(name).strip() for name in frame.columns]
    repeated = frame.columns[frame.columns.duplicated()]
    if len(repeated):
        raise UsageError(f"{printable(path)}: has two columns {shortened(repeated[0])}")
    return frame


def _delimiter(path: Path) -> str:
    """Return what separates the cells of the first line: a comma, semicolon, tab or bar."""
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        first = next((line for line in file if line.strip()), "")
    counts = {delimiter: len(next(csv.reader([first], delimiter=delimiter))) for delimiter in ",;\t|"}
    return max(counts, key=lambda delimiter: counts[delimiter])


def _is_number(values: pd.Series[Any]) -> bool:
    return values.dtype.kind in "iuf" or (values.dtype.kind == "O" and values.isna().all())


def _classifies(target: pd.Series[Any], task: Task) -> bool:
    """Return whether the target is a class. Raise UsageError for a regression on texts."""
    if task == "regression":
        if not _is_number(target):
            value = shortened(next(str(text) for text in target if not _is_number_text(text)))
            raise UsageError(f"dataset.task=regression: the target has the value {value}; expected numbers")
        return False
    if task == "classification" or not _is_number(target):
        return True
    values = target.unique()
    return len(values) <= MOST_CLASSES and bool((values == np.round(values)).all())


def _labels(target: pd.Series[Any]) -> Any:
    """Return the classes of the rows: texts or, without a missing value's decimal point, whole numbers."""
    whole = _is_number(target) and (target == np.round(target)).all()
    return target.to_numpy(np.int64) if whole else target.map(str).to_numpy()


def _is_number_text(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True


def _training_rows(rows: int, *, seed: int, validation: float, test: float) -> Any:
    """Return the rows that :func:`from_arrays` uses for training."""
    whole = Split(torch.arange(rows), torch.arange(rows))
    rest = split_off(whole, test, seed=seed, part="test")[0] if test else whole
    return split_off(rest, validation, seed=seed)[0].x.numpy()


def _require_usable(values: pd.Series[Any], where: str) -> None:
    name = shortened(values.name)
    if _is_number(values):
        if not np.isfinite(values.dropna().astype(float)).all():
            raise UsageError(f"{where}: column {name} has an infinite value")
        return
    different = values.dropna().map(str).nunique()
    if different > MOST_CATEGORIES:
        raise UsageError(
            f"{where}: column {name} has {different} different texts, such as {shortened(values.dropna().iloc[0])}; "
            f"expected numbers or at most {MOST_CATEGORIES} categories; leave it out with dataset.exclude=[{name}]"
        )


def _about(
    frame: pd.DataFrame, features: pd.DataFrame, encoder: TableEncoder, target: str, *, left_out: int
) -> dict[str, Any]:
    """Return the description of the table for the summary of a run."""
    missing = {str(name): int(count) for name, count in features.isna().sum().items() if count}
    return {
        "rows": len(frame),
        "rows_without_target": left_out,
        "target": target,
        "numbers": [column.name for column in encoder.columns if column.categories is None],
        "categories": {
            column.name: len(column.categories) for column in encoder.columns if column.categories is not None
        },
        "missing_values": missing,
        "excluded": [str(name) for name in frame.columns if name != target and name not in features],
        "inputs": len(encoder.inputs),
    }


def _description(file: Path, about: Mapping[str, Any], encoder: TableEncoder, classes: int) -> str:
    """Return the description as one line of a log."""
    return ", ".join(_facts(file, about, encoder, classes))


def _facts(file: Path, about: Mapping[str, Any], encoder: TableEncoder, classes: int) -> Iterator[str]:
    target = f"{classes} classes; dataset.task=regression predicts the number" if classes else "regression"
    yield f"{printable(file)}: {about['rows']:,} rows"
    if about["rows_without_target"]:
        yield f"{about['rows_without_target']:,} left out because they have no {shortened(about['target'])}"
    yield f"{len(about['numbers'])} numbers (standardized)"
    if about["categories"]:
        yield f"{', '.join(about['categories'])} as categories ({about['inputs']} inputs in all)"
    if about["missing_values"]:
        named = [f"{shortened(name)} {count}" for name, count in about["missing_values"].items()]
        yield f"missing values: {_listed(named)}"
    yield f"target {shortened(about['target'])}: {target}"


def _listed(names: Sequence[str], *, most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shortened(name, longest=40) for name in names[:most]) + more
