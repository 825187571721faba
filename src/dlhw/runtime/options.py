"""Types of options, for the annotations of functions whose options are in a config."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from dlhw.errors import UsageError
from dlhw.runtime.bounds import LARGEST_COUNT, LARGEST_SIDE
from dlhw.runtime.paths import read_path, shortened

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
SampleOrder = Literal["shuffled", "fixed"]
PrecisionName = Literal["fp32", "tf32", "bf16", "fp64"]
Count = Annotated[int, Field(gt=0, le=LARGEST_COUNT)]
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
"""A side of a picture in pixels."""
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
FractionOrZero = Annotated[float, Field(ge=0, lt=1)]


def _expanded(text: str) -> str:
    try:
        return str(read_path(text))
    except UsageError as error:
        raise PydanticCustomError("path", "{reason}", {"reason": _without_value(error, text)}) from error


def _without_value(error: UsageError, text: str) -> str:
    """Return the reason of an error of :func:`read_path`; the line about the option starts with its key and value."""
    return str(error).removeprefix(f"{shortened(text)}: ")


PathText = Annotated[str, AfterValidator(_expanded)]
"""A path as text, with ``~`` replaced; validated by :func:`dlhw.runtime.paths.read_path`."""
