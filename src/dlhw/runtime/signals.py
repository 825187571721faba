"""Ctrl-C and SIGTERM: a signal is never lost, and it stops the program where it can stop.

Python raises KeyboardInterrupt between any two instructions. In a context manager of a library, in a destructor or in a
callback of C code, the exception may become another one or disappear. So :func:`install` notes every signal. It raises
at once in code that is :func:`stoppable`, and otherwise when such code is entered.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType

NUMBERS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name))
"""The signals that end a run. Windows sends SIGBREAK for Ctrl-Break and when the console is closed."""
REPEATED_SECONDS = 1.0
"""Further signals within this time count as one: a terminal and a scheduler may each send one."""


class Interrupted(KeyboardInterrupt):
    """One of the signals was received."""


class _State:
    """The state of this process; a plain class, because this module must be imported at once."""

    received: int | None = None
    at = 0.0
    stoppable = False


_state = _State()


def install() -> None:
    """Note these signals from now on. They raise Interrupted in code that is :func:`stoppable`.

    A second signal, unless it follows within a second, raises everywhere.
    """
    _state.received, _state.stoppable = None, False
    reinstall()


def reinstall() -> None:
    """Note the signals again after a library has replaced the handlers."""
    for number in NUMBERS:
        signal.signal(number, _note)


def ignore() -> None:
    """Ignore further signals, because the program is ending."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def received() -> int | None:
    """Return the number of the first signal that was received; None if there was none."""
    return _state.received


def raise_received() -> None:
    """Raise Interrupted if a signal was received, even if an earlier exception for it has disappeared."""
    if _state.received is not None:
        raise Interrupted


@contextlib.contextmanager
def stoppable(stop: bool = True) -> Iterator[None]:
    """Let signals raise at once in this context; with ``stop=False`` only at its end, if the code around is stoppable.

    An error after a signal is replaced by Interrupted.
    """
    before, _state.stoppable = _state.stoppable, stop
    try:
        if stop:
            raise_received()
        yield
    except Exception:
        raise_received()
        raise
    finally:
        _state.stoppable = before
    if before:
        raise_received()


def _note(number: int, frame: FrameType | None) -> None:
    first, now = _state.received is None, time.monotonic()
    if not first and now - _state.at < REPEATED_SECONDS:
        return
    _state.received, _state.at = _state.received or number, now
    if _state.stoppable or not first:
        raise Interrupted
