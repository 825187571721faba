"""Recognize failed allocations of memory, which Python, numpy and torch report by different errors."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from dlhw.errors import NotEnoughMemory, UsageError

_FAILED = re.compile(
    r"can't allocate memory|out of memory|not enough memory|Unable to allocate|Storage size calculation overflowed"
    r"|integer multiplication overflow|Overflow when unpacking long|Maximum allowed dimension exceeded"
    r"|array is too big"
)
_REQUESTED = re.compile(r"(?:tried to allocate|Unable to allocate) ([\d.]+) (bytes|[KMGTPE]iB)", re.IGNORECASE)
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


@contextlib.contextmanager
def allocating(what: str) -> Iterator[None]:
    """Raise NotEnoughMemory, with a message that starts with ``what``, instead of any error of a failed allocation."""
    try:
        yield
    except (MemoryError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, NotEnoughMemory | UsageError) or not _is_failed_allocation(error):
            raise
        requested = _REQUESTED.search(str(error))
        amount = f" for {_rounded(float(requested[1]), requested[2])}" if requested else ""
        raise NotEnoughMemory(f"{what}: not enough memory{amount}; choose smaller sizes") from error


def _is_failed_allocation(error: Exception) -> bool:
    return isinstance(error, MemoryError) or _FAILED.search(str(error)) is not None


def _rounded(size: float, unit: str) -> str:
    number = _UNITS.index(unit)
    while size >= 1024 and number + 1 < len(_UNITS):
        size, number = size / 1024, number + 1
    return f"{size:.3g} {_UNITS[number]}"
