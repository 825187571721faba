"""Signals are noted, and stop the program only where it can stop."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import pytest

from dlhw.runtime import signals
from dlhw.runtime.signals import Interrupted


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signals.install()
    yield
    signals.install()
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    signal.getsignal(number)  # the handler of a signal runs before the next instruction


def events_of(run: Callable[[list[str]], None]) -> list[str]:
    """Return what a function lists before it is interrupted."""
    events: list[str] = []
    with pytest.raises(Interrupted):
        run(events)
    return events


def test_signals_of_the_system_are_noted_and_ignored_together() -> None:
    assert {signal.SIGINT, signal.SIGTERM} <= set(signals.NUMBERS)
    assert ("SIGBREAK" in dir(signal)) == (len(signals.NUMBERS) == 3)
    signals.ignore()
    assert {signal.getsignal(number) for number in signals.NUMBERS} == {signal.SIG_IGN}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_raises_at_once_in_stoppable_code(number: int) -> None:
    def run(events: list[str]) -> None:
        with signals.stoppable():
            send(number)
            events.append("went on")

    assert events_of(run) == []
    assert signals.received() == number


def test_signal_outside_of_stoppable_code_raises_when_such_code_is_entered() -> None:
    def run(events: list[str]) -> None:
        send(signal.SIGTERM)
        events.append("composed")
        with signals.stoppable():
            events.append("trained")

    assert events_of(run) == ["composed"]


def test_signal_in_protected_code_raises_at_its_end() -> None:
    def run(events: list[str]) -> None:
        with signals.stoppable():
            with signals.stoppable(False):
                send(signal.SIGINT)
                events.append("composed")
            events.append("trained")

    assert events_of(run) == ["composed"]


def test_protected_code_outside_of_stoppable_code_does_not_raise() -> None:
    with signals.stoppable(False):
        send(signal.SIGINT)
    assert signals.received() == signal.SIGINT


def test_error_after_a_signal_is_the_interruption() -> None:
    def run(events: list[str]) -> None:
        with signals.stoppable():
            try:
                send(signal.SIGINT)
            except Interrupted:  # as a context manager of a library might do
                events.append("replaced")
                raise AttributeError("flags") from None

    assert events_of(run) == ["replaced"]


def test_lost_exception_is_raised_again_at_the_next_check() -> None:
    def run(events: list[str]) -> None:
        with signals.stoppable():
            with contextlib.suppress(Interrupted):  # as in a destructor
                send(signal.SIGINT)
            events.append("lost")
            signals.raise_received()
            events.append("went on")

    assert events_of(run) == ["lost"]


def test_other_errors_are_unchanged() -> None:
    with pytest.raises(ZeroDivisionError), signals.stoppable():
        1 / 0  # noqa: B018


def test_second_signal_counts_only_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with pytest.raises(Interrupted), signals.stoppable():
        send(signal.SIGINT)
    now += 0.5
    send(signal.SIGTERM)
    assert signals.received() == signal.SIGINT
    now += 1.5
    with pytest.raises(Interrupted):
        send(signal.SIGTERM)


def test_ignored_signals_have_no_effect() -> None:
    signals.ignore()
    send(signal.SIGTERM)
    assert signals.received() is None
