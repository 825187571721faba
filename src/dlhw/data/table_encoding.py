"""The step from the columns of a table to the inputs of a model: standardized numbers and one-hot categories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dlhw.data.preparation import NEGLIGIBLE
from dlhw.errors import UsageError
from dlhw.runtime.paths import shortened

if TYPE_CHECKING:
    import pandas as pd

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


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
    def of(cls, values: pd.Series[Any], training: Rows) -> Column:
        """Learn from the training rows of a column, some of which have a value."""
        learned = values.iloc[training]
        name, missing = str(values.name), bool(learned.isna().any())
        if not is_number(values):
            return cls(name, tuple(sorted(set(texts(learned.dropna())))), has_missing=missing)
        numbers = learned.to_numpy(float, na_value=np.nan)
        fill = float(np.nanmedian(numbers))
        numbers = np.where(np.isnan(numbers), fill, numbers)
        mean, std = float(numbers.mean()), float(numbers.std())
        return cls(name, None, mean, std if std > NEGLIGIBLE * abs(mean) else 1.0, fill, missing)

    def encode(self, values: pd.Series[Any]) -> Floats:
        """Return the inputs (N, len(inputs)) for values of this column.

        Raise UsageError for a value that is not a finite number, if the column was one in training.
        """
        missing = values.isna().to_numpy(bool)
        encoded = self._numbers(values, missing) if self.categories is None else self._indicators(values, missing)
        return np.concatenate([encoded, missing[:, None]], 1, dtype=float) if self.has_missing else encoded

    def _numbers(self, values: pd.Series[Any], missing: npt.NDArray[np.bool_]) -> Floats:
        import pandas as pd

        numbers: Floats = pd.to_numeric(values, errors="coerce").to_numpy(float, na_value=np.nan)
        wrong = ~np.isfinite(numbers) & ~missing
        if wrong.any():
            value = shortened(values.iloc[int(np.flatnonzero(wrong)[0])])
            raise UsageError(f"column {shortened(self.name)}: {value} is not a finite number, as in training")
        return ((np.where(missing, self.fill, numbers) - self.mean) / self.std)[:, None]

    def _indicators(self, values: pd.Series[Any], missing: npt.NDArray[np.bool_]) -> Floats:
        assert self.categories is not None
        index_of = {value: index for index, value in enumerate(self.categories)}
        indices = np.array([index_of.get(text, -1) for text in texts(values)], np.int64)
        known = (indices >= 0) & ~missing
        result = np.zeros((len(values), len(self.categories)))
        result[np.flatnonzero(known), indices[known]] = 1
        return result


@dataclass(frozen=True)
class TableEncoder:
    """Turns rows of a table into samples: numbers are standardized, categories become inputs that are 0 or 1."""

    columns: tuple[Column, ...]
    kind: ClassVar[str] = "table"

    @classmethod
    def of(cls, features: pd.DataFrame, training: Rows) -> TableEncoder:
        """Learn from the training rows of all columns."""
        return cls(tuple(Column.of(features[name], training) for name in features))

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs of a model."""
        return [name for column in self.columns for name in column.inputs]

    def __call__(self, raw: Any) -> Tensor:
        """Return the samples (N, len(inputs)), float64, of the rows of a DataFrame.

        A category that training did not have is 0 in all inputs. Raise UsageError for anything but a DataFrame, for a
        missing column and for an invalid value.
        """
        import pandas as pd

        if not isinstance(raw, pd.DataFrame):
            kind = type(raw).__name__
            raise UsageError(f"samples are a {kind}; this network was trained on a table and needs a pandas.DataFrame")
        missing = [column.name for column in self.columns if column.name not in raw]
        if missing:
            raise UsageError(f"no column {', '.join(map(shortened, missing[:5]))}; the network was trained with it")
        return torch.from_numpy(np.concatenate([column.encode(raw[column.name]) for column in self.columns], 1))

    @property
    def state(self) -> dict[str, Any]:
        return {"kind": self.kind, "columns": [{**vars(column)} for column in self.columns]}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        return cls(tuple(Column(**column) for column in state["columns"]))


def is_number(values: pd.Series[Any]) -> bool:
    """Return whether a column has numbers and missing values only; booleans are categories."""
    return values.dtype.kind in "iuf"


def texts(values: pd.Series[Any]) -> list[str]:
    """Return values as texts; whole numbers without a decimal point, which missing values add in a file's column."""
    return [
        str(int(value)) if isinstance(value, float) and value.is_integer() else str(value) for value in values.tolist()
    ]
