"""The handwritten digits that come with scikit-learn: real data without a download."""

from __future__ import annotations

import functools
import gzip
import importlib.util
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, FiniteFloat

from dlhw.data.tensors import Dataset, Split, assemble
from dlhw.errors import UsageError

TEST_FROM = 1415
"""The first test sample. The file is ordered by writer, and all writers copied the same sequence of labels. The
sequence starts again here, so the last three writers (382 samples) are in the test part only."""


def digits(
    *,
    data_dir: str | Path,
    seed: int,
    mean: FiniteFloat,
    std: Annotated[float, Field(gt=0, allow_inf_nan=False)],
    validation_fraction: Annotated[float, Field(gt=0, lt=1)],
) -> Dataset:
    """1797 images (1, 8, 8) of 0..16. ``data_dir`` is not used: the file comes with scikit-learn.

    The test part is the same for every seed. Its writers are not in the training and validation parts, so the test
    error is a few percent higher than the validation error.
    """
    return assemble(
        "digits",
        *_parts(),
        seed=seed,
        validation_fraction=validation_fraction,
        mean=mean,
        std=std,
        largest=16,
        classes=tuple("0123456789"),
    )


@functools.cache  # the jobs of a sweep share them
def _parts() -> tuple[Split, Split]:
    table = torch.from_numpy(_read())
    x, y = table[:, :64].reshape(-1, 1, 8, 8).contiguous(), table[:, 64].long()
    return Split(x[:TEST_FROM], y[:TEST_FROM]), Split(x[TEST_FROM:], y[TEST_FROM:])


def _read() -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Return rows of 64 pixels and the label, as ``sklearn.datasets.load_digits`` reads them."""
    package = importlib.util.find_spec("sklearn")  # importing it takes 3 s, finding it 10 ms
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return np.loadtxt(file, delimiter=",", dtype=np.uint8)
    except (OSError, EOFError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); reinstall scikit-learn") from error
