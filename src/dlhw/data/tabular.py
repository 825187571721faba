"""Regression datasets: tables of numbers, read or downloaded, split, and standardized by the training part."""

from __future__ import annotations

import csv
import pickle
import zlib
from pathlib import Path

import torch
from torch import Tensor

from dlhw.data.arrays import from_arrays
from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError
from dlhw.runtime.downloads import removing_empty
from dlhw.runtime.options import Fraction

BOSTON = ("CRIM", "ZN", "INDUS", "CHAS", "NOX", "RM", "AGE", "DIS", "RAD", "TAX", "PTRATIO", "B", "LSTAT", "MEDV")
BOSTON_ROWS = 506
UNPICKLING_ERRORS = (pickle.UnpicklingError, EOFError, ImportError, AttributeError, LookupError, TypeError, ValueError)
"""What reading an undamaged file raises if its content is not scikit-learn's."""


def boston(
    *, data_dir: str | Path, seed: int, test_fraction: Fraction, validation_fraction: Fraction, download: bool
) -> Dataset:
    """506 census tracts (13,) and the median value of their homes in 1000 $ (Harrison & Rubinfeld 1978; B1.d).

    Read from ``boston.csv`` in ``data_dir``, which has a header, or downloaded from OpenML (dataset 531). Raise
    UsageError if neither is available.
    """
    path = Path(data_dir) / "boston.csv"
    table = _read_boston(path) if path.is_file() else _fetch_boston(path, download=download)
    return from_arrays(
        table[:, :-1],
        table[:, -1],
        name="boston",
        seed=seed,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
    )


def diabetes(*, data_dir: str | Path, seed: int, test_fraction: Fraction, validation_fraction: Fraction) -> Dataset:
    """442 patients (10,) and the progression of their disease after a year; comes with scikit-learn."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True, scaled=False)
    return from_arrays(
        x,
        y,
        name="diabetes",
        seed=seed,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
    )


def california_housing(
    *, data_dir: str | Path, seed: int, test_fraction: Fraction, validation_fraction: Fraction, download: bool
) -> Dataset:
    """20,640 block groups (8,) and the median value of their homes in 100,000 $, downloaded by scikit-learn once.

    scikit-learn stores them as a pickle, which can contain code: do not use a file from an untrusted source. Raise
    UsageError if the file is not in ``data_dir`` and the download fails.
    """
    from sklearn.datasets import fetch_california_housing

    path = Path(data_dir, "cal_housing_py3.pkz")
    try:
        if path.exists():
            zlib.decompress(path.read_bytes())  # verifies the checksum, which unpickling alone does not
        x, y = fetch_california_housing(data_home=str(data_dir), download_if_missing=download, return_X_y=True)
    except OSError as error:
        raise UsageError(
            f"dataset=california_housing: not in {data_dir}, and the download failed: {_reason(error)}; copy "
            "cal_housing_py3.pkz there from a computer that has downloaded it, or use dataset=diabetes, which needs no "
            "download"
        ) from error
    except (zlib.error, *UNPICKLING_ERRORS) as error:
        raise UsageError(f"{path}: damaged ({_reason(error)}); delete it to download it again") from error
    return from_arrays(
        x,
        y,
        name="california_housing",
        seed=seed,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
    )


def _read_boston(path: Path) -> Tensor:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = filter(None, csv.reader(file))
            table = torch.tensor([[float(cell) for cell in row] for row in rows], dtype=torch.float64)
    except (OSError, ValueError, csv.Error) as error:
        reason = _reason(error)
        raise UsageError(f"{path}: cannot be read as a table of numbers ({reason:.200})") from error
    if tuple(name.strip().upper() for name in header) != BOSTON:
        raise UsageError(f"{path}: must have the columns {','.join(BOSTON)}")
    return _checked_boston(table, str(path))


def _checked_boston(table: Tensor, where: str) -> Tensor:
    """Return the table. Raise UsageError if its shape is wrong or a cell is not finite."""
    if table.shape != (BOSTON_ROWS, len(BOSTON)):
        raise UsageError(f"{where}: must have the columns {','.join(BOSTON)} and {BOSTON_ROWS} rows of numbers")
    for row, column in (~table.isfinite()).nonzero().tolist():
        value = table[row, column].item()
        raise UsageError(f"{where}: row {row + 1}, column {BOSTON[column]}: {value} is not a finite number")
    return table


def _fetch_boston(path: Path, *, download: bool) -> Tensor:
    reason = "dataset.download=false"
    if download:
        from sklearn.datasets import fetch_openml

        try:
            with removing_empty(path.parent / "openml"):
                frame = fetch_openml(data_id=531, data_home=str(path.parent), as_frame=True, parser="liac-arff").frame
            table = torch.from_numpy(frame[list(BOSTON)].astype(float).to_numpy(copy=True))
        except (OSError, KeyError, ValueError) as error:
            reason = f"the download failed: {_reason(error)}"
        else:
            return _checked_boston(table, "dataset=boston from OpenML")
    raise UsageError(
        f"dataset=boston: no file {path}, and {reason}; put it there (columns {','.join(BOSTON)}), or use "
        "dataset=diabetes, which needs no download"
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())
