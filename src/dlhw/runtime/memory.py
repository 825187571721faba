"""Recognize failed allocations of memory, which Python, numpy and torch report by different errors."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from dlhw.errors import NotEnoughMemory, UsageError

_FAILED = re.compile(
    r"can't allocate memory|cannot allocate memory|CUDA out of memory|Unable to allocate"
    r"|failed to map segment from shared object(?!: Operation not permitted)"  # that is a folder without execution
)
_TOO_LARGE = re.compile(
    r"Storage size calculation overflowed|integer multiplication overflow|Overflow when unpacking long"
    r"|Maximum allowed dimension exceeded|array is too big"
)
"""Messages about a size that no memory has. Other errors may have them too, so they count only while building."""
_REQUESTED = re.compile(r"(?:tried to allocate|Unable to allocate) ([\d.]+) (bytes|[KMGTPE]iB)", re.IGNORECASE)
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


@contextlib.contextmanager
def allocating(what: str, *, building: bool = False) -> Iterator[None]:
    """Raise NotEnoughMemory, with a message that starts with ``what``, instead of any error of a failed allocation.

    While ``building`` an object of given sizes, an overflow of a size counts as a failed allocation.
    """
    try:
        yield
    except (MemoryError, ImportError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, NotEnoughMemory | UsageError) or not _is_failed_allocation(error, building):
            raise
        requested = _REQUESTED.search(str(error))
        amount = f" for {_rounded(float(requested[1]), requested[2])}" if requested else ""
        raise NotEnoughMemory(f"{what}: not enough memory{amount}; choose smaller sizes") from error


def _is_failed_allocation(error: Exception, building: bool) -> bool:
    text = str(error)
    overflow = building and _TOO_LARGE.search(text) is not None
    return isinstance(error, MemoryError) or _FAILED.search(text) is not None or overflow


def _rounded(size: float, unit: str) -> str:
    number = _UNITS.index(unit)
    while size >= 1024 and number + 1 < len(_UNITS):
        size, number = size / 1024, number + 1
    return f"{size:.3g} {_UNITS[number]}"
