"""Create the report on a network of the playground after training, for ``report=playground``."""

from __future__ import annotations

from torch import nn

from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError
from dlhw.runs.answer import Answer
from dlhw.runs.record import Record


def check(data: Dataset) -> None:
    """Raise UsageError unless the samples are points in the plane with one number each; called before training."""
    if data.shape != (2,) or not data.numeric_targets:
        raise UsageError(
            f"report=playground: dataset={data.name} has no points in the plane with numeric targets; expected "
            "dataset=playground or report=none"
        )


def playground(model: nn.Module, data: Dataset, *, record: Record) -> Answer:
    """Return the figures."""
    return Answer({})
