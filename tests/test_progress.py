"""Progress on the console: complete log lines, and a progress bar at a terminal only."""

from __future__ import annotations

import io
import logging
import logging.config
import random
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from rich.console import Console

from dlhw.runtime import progress
from dlhw.runtime.progress import ConsoleHandler, Progress

ROW = {"train_loss": 0.25, "val_loss": 0.5, "train_error_percent": 7.5, "val_error_percent": 12.25}
HIDE_CURSOR, SHOW_CURSOR, ERASE_LINE = "\x1b[?25l", "\x1b[?25h", "\x1b[2K"


class Clock:
    """A clock that advances only when a test sets ``seconds``."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def fake_console(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], io.StringIO]]:
    """``fake_console(terminal)`` replaces the console that the logger ``dlhw`` writes to, and returns its file."""
    logger, handler = logging.getLogger("dlhw"), ConsoleHandler()
    level = logger.level

    def replace_console(terminal: bool) -> io.StringIO:
        file = io.StringIO()
        environment = {"TERM": "xterm", "COLUMNS": "100", "LINES": "25"}
        fake = Console(file=file, force_terminal=terminal, _environ=environment)
        monkeypatch.setattr(progress, "console", lambda: fake)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        return file

    yield replace_console
    logger.removeHandler(handler)
    logger.setLevel(level)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "dlhw"]


def test_bar_writes_nothing_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # allows colours, but does not make it a terminal
    progress.console.cache_clear()
    with Progress(3, 2) as bar:
        for _ in range(3):
            bar.step()
            bar.step()
            bar.epoch(ROW)
    progress.console.cache_clear()
    assert capfd.readouterr() == ("", "")


def test_console_is_shared_and_writes_to_stderr() -> None:
    progress.console.cache_clear()
    assert progress.console() is progress.console()
    assert progress.console().stderr


def test_log_line_at_a_terminal_is_complete_and_above_the_bar(
    fake_console: Callable[[bool], io.StringIO],
) -> None:
    file = fake_console(True)
    long = "[bold]not markup[/bold] :smile: 'text' 1234 " + "x" * 200
    with Progress(3, 2, label="b=0.05") as bar:
        bar.step()
        before = file.tell()
        logging.getLogger("dlhw").info(long)
        written = file.getvalue()[before:]
    assert ERASE_LINE in written[: written.index(long)]
    assert long + "\n" in written
    assert "b=0.05 epoch 1/3 " in written[written.index(long) + len(long) :]


def test_bar_shows_epochs_results_and_times(fake_console: Callable[[bool], io.StringIO]) -> None:
    file, clock = fake_console(True), Clock()
    with Progress(4, 2, clock=clock) as bar:
        bar.step()
        bar.step()
        clock.seconds += 60
        before = file.tell()
        bar.epoch(ROW)
        written = file.getvalue()[before:]
        written = written[written.index("left 03:00\n") + 11 :]  # the text after the log line
    assert "epoch 2/4 " in written
    assert "0:01:00, left 0:03:00" in written
    assert "loss 0.250, val 0.500  error 7.50, val 12.25 %" in written


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_bar_is_removed_even_after_an_error(
    fake_console: Callable[[bool], io.StringIO], error: type[BaseException] | None
) -> None:
    file, streams = fake_console(True), (sys.stdout, sys.stderr)

    def train() -> None:
        with Progress(3, 2):
            assert HIDE_CURSOR in file.getvalue()
            if error is not None:
                raise error

    if error is None:
        train()
    else:
        with pytest.raises(error):
            train()
    written = file.getvalue()
    assert written.rindex(SHOW_CURSOR) > written.rindex(HIDE_CURSOR)
    assert written.endswith(ERASE_LINE)  # the bar is erased
    assert (sys.stdout, sys.stderr) == streams
    logging.getLogger("dlhw").info("after")
    assert file.getvalue()[len(written) :] == "after\n"


def test_first_and_last_epoch_and_one_per_interval_are_logged(
    fake_console: Callable[[bool], io.StringIO], caplog: pytest.LogCaptureFixture
) -> None:
    file, clock = fake_console(False), Clock()
    with Progress(12, 1, label="b=0.05", log_every_seconds=10, clock=clock) as bar:
        for _ in range(12):
            bar.step()
            clock.seconds += 4
            bar.epoch(ROW)
    assert messages(caplog) == [
        f"b=0.05  epoch {epoch}/12  loss 0.250, val 0.500  error 7.50, val 12.25 %  left 00:{left}"
        for epoch, left in ((" 1", "44"), (" 4", "32"), (" 7", "20"), ("10", "08"), ("12", "00"))
    ]
    assert file.getvalue() == "".join(f"{message}\n" for message in messages(caplog))


def test_last_epoch_of_a_run_that_stops_early_is_logged(
    fake_console: Callable[[bool], io.StringIO], caplog: pytest.LogCaptureFixture
) -> None:
    fake_console(False)
    with Progress(100, 1, clock=Clock()) as bar:
        for _ in range(3):
            bar.step()
            bar.epoch(ROW)
    assert [message[:13] for message in messages(caplog)] == ["epoch   1/100", "epoch   3/100"]


def test_resumed_run_estimates_the_time_left_from_the_epochs_since_resuming(
    fake_console: Callable[[bool], io.StringIO], caplog: pytest.LogCaptureFixture
) -> None:
    fake_console(False)
    clock = Clock()
    with Progress(10, 5, start_epoch=8, clock=clock) as bar:
        clock.seconds += 30
        bar.epoch({})
    assert messages(caplog) == ["epoch  9/10  left 00:30"]


def test_log_line_omits_missing_values_and_shows_nan(
    fake_console: Callable[[bool], io.StringIO], caplog: pytest.LogCaptureFixture
) -> None:
    fake_console(False)
    with Progress(1, 1, clock=Clock()) as bar:
        bar.epoch({"train_loss": float("nan"), "val_error_percent": 100.0})
    assert messages(caplog) == ["epoch 1/1  loss nan  error val 100.00 %  left 00:00"]


def test_line_of_a_long_run_fits_80_columns(
    fake_console: Callable[[bool], io.StringIO], caplog: pytest.LogCaptureFixture
) -> None:
    fake_console(False)
    clock = Clock()
    with Progress(9999, 1, clock=clock) as bar:
        bar.step()
        clock.seconds += 3
        bar.epoch({f"{part}_{name}": 98.7654321 for part in ("train", "val") for name in ("loss", "error_percent")})
    assert messages(caplog) == ["epoch    1/9999  loss 98.8, val 98.8  error 98.77, val 98.77 %  left 8:19:54"]
    assert len(messages(caplog)[0]) < 80


def test_bar_does_not_change_the_random_state(fake_console: Callable[[bool], io.StringIO]) -> None:
    fake_console(True)
    before = random.getstate(), torch.get_rng_state().tolist()
    with Progress(2, 1) as bar:
        bar.step()
        bar.epoch(ROW)
    assert (random.getstate(), torch.get_rng_state().tolist()) == before


@pytest.fixture
def configured_logger() -> Iterator[logging.Logger]:
    """A logger whose handler is configured by its dotted name, as in a config file."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"plain": {"format": "<%(levelname)s> %(message)s"}},
            "handlers": {
                "console": {"class": "dlhw.runtime.progress.ConsoleHandler", "formatter": "plain", "level": "INFO"}
            },
            "loggers": {"test_progress": {"handlers": ["console"], "level": "DEBUG", "propagate": False}},
        }
    )
    logger = logging.getLogger("test_progress")
    yield logger
    logger.handlers.clear()


@pytest.mark.parametrize("terminal", [False, True])
def test_handler_from_a_config_uses_its_format_and_level(
    fake_console: Callable[[bool], io.StringIO], configured_logger: logging.Logger, terminal: bool
) -> None:
    file = fake_console(terminal)
    configured_logger.info("[red]%s[/red] %s", "a", "y" * 300)
    configured_logger.debug("too low")
    assert file.getvalue() == f"<INFO> [red]a[/red] {'y' * 300}\n"


def test_warnings_are_coloured_at_a_terminal_only(
    fake_console: Callable[[bool], io.StringIO], configured_logger: logging.Logger
) -> None:
    file = fake_console(False)
    configured_logger.warning("careful")
    assert file.getvalue() == "<WARNING> careful\n"
    file = fake_console(True)
    configured_logger.warning("careful")
    assert file.getvalue() == "\x1b[33m<WARNING> careful\x1b[0m\n"


def test_broken_stream_does_not_raise(
    fake_console: Callable[[bool], io.StringIO],
    configured_logger: logging.Logger,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = fake_console(False)

    def write(text: str) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(file, "write", write)
    configured_logger.info("a message")
    assert "BrokenPipeError" in capsys.readouterr().err  # reported by logging
