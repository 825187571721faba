"""Ctrl-C and SIGTERM: a signal is never lost, and it acts only where the program can stop.

Python raises KeyboardInterrupt between any two instructions. Inside a context manager of a library, a destructor or a
callback of C code it may become another error or nothing at all. So :func:`install` notes every signal. It raises at
once where the program itself runs (:func:`stoppable`), and otherwise as soon as this code is entered again.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_received: int | None = None
_stoppable = False


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM was received."""


def install() -> None:
    """Note SIGINT and SIGTERM from now on; they end the program where it is :func:`stoppable`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _note)


def received() -> int | None:
    """Return the number of the signal that was received; None if there was none."""
    return _received


def raise_received() -> None:
    """Raise Interrupted if a signal was received, even if an earlier exception for it was lost."""
    if _received is not None:
        raise Interrupted


def ignore() -> None:
    """Ignore further signals, because the program is ending."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def stoppable(stop: bool = True) -> Iterator[None]:
    """Within this context signals raise at once; with ``stop=False`` only at its end."""
    global _stoppable  # noqa: PLW0603
    before, _stoppable = _stoppable, stop
    try:
        if stop:
            raise_received()
        yield
    finally:
        _stoppable = before
    if before:
        raise_received()


def _note(number: int, frame: FrameType | None) -> None:
    global _received  # noqa: PLW0603
    _received = _received or number
    if _stoppable:
        raise Interrupted
