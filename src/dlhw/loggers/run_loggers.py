"""Send what a run writes to its loggers, in threads, so that a logger that fails or hangs does not disturb the run."""

from __future__ import annotations

import functools
import json
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dlhw.loggers.content import LoggedRun, Logger, conclusion
from dlhw.runtime.files import write_atomically
from dlhw.runtime.paths import printable, shell_line
from dlhw.storage.record import Row, as_written
from dlhw.storage.stored import RESTORE, Unreadable, read_text

log = logging.getLogger("dlhw")

PATIENCE = 60.0
"""The seconds that the end of a run waits for a call to return. To import MLflow and create a database takes 20."""
IDENTIFIERS = "loggers.json"
"""The file in the run directory with the identifiers of the loggers that need one."""
_file = threading.Lock()


class Log:
    """The log of one run at one logger: which rows it has, and its identifier. Errors are raised."""

    def __init__(self, name: str, logger: Logger, directory: Path) -> None:
        self.name = name
        self.logger = logger
        self.directory = directory
        self.epochs = 0
        self._key = f"{name} {logger.place}".strip()

    def start(self) -> None:
        """Begin or continue the log."""
        known = read_identifiers(self.directory).get(self._key)
        identifier, self.epochs = self.logger.start(LoggedRun(self.directory), known)
        if identifier not in (None, known):
            with _file:
                content = read_identifiers(self.directory) | {self._key: identifier}
                write_atomically(self.directory / IDENTIFIERS, f"{json.dumps(content, indent=2)}\n".encode())

    def rows(self, rows: Sequence[Row]) -> None:
        """Send the rows that the logger does not have, with the digits of metrics.csv."""
        new = [as_written(row) for row in rows if row["epoch"] > self.epochs]
        if new:
            self.logger.rows(new)
            self.epochs = int(new[-1]["epoch"])

    def end(self) -> None:
        """Send the result in ``summary.json``, if there is one."""
        result = conclusion(self.directory)
        if result is not None:
            self.logger.end(result)


def read_identifiers(directory: Path) -> dict[str, str]:
    """Return the identifiers of a run's loggers by name. Raise Unreadable if the file is damaged."""
    path = directory / IDENTIFIERS
    text = read_text(path, remedy=RESTORE, largest=2**16)
    try:
        content = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise Unreadable(path, "not valid JSON", RESTORE) from error
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise Unreadable(path, "not the identifiers of loggers", RESTORE)
    return content


class RunLoggers:
    """The loggers of a run in training. A logger that fails or hangs is switched off with one warning."""

    def __init__(self, directory: Path, loggers: Mapping[str, Logger]) -> None:
        self._logs = [_BackgroundLog(name, logger, directory) for name, logger in loggers.items()]
        for each in self._logs:
            each.do(each.log.start)

    def rows(self, rows: Sequence[Row]) -> None:
        """Send rows of metrics."""
        for each in self._logs:
            each.do(functools.partial(each.log.rows, rows))

    def end(self) -> None:
        """Send the result in ``summary.json``."""
        for each in self._logs:
            each.do(each.log.end)

    def close(self) -> None:
        """Wait until everything is sent; a call that takes longer than ``PATIENCE`` is abandoned."""
        for each in self._logs:
            each.close()


class _BackgroundLog:
    """A log whose calls are made by the thread of its logger."""

    def __init__(self, name: str, logger: Logger, directory: Path) -> None:
        self.log = Log(name, logger, directory)
        self._thread = _thread(name)
        self._on = True

    def do(self, action: Callable[[], None]) -> None:
        """Take the action later, unless an earlier one failed."""
        if self._on and self._thread.hangs:
            self._switch_off("an earlier call has not returned")
        if self._on:
            self._thread.actions.put(functools.partial(self._take, action))

    def _take(self, action: Callable[[], None]) -> None:
        try:
            if self._on:
                action()
        except BaseException as error:  # libraries also raise SystemExit, which would end the thread
            self._switch_off(error)

    def _switch_off(self, why: BaseException | str) -> None:
        if self._on:
            reason = why if isinstance(why, str) else f"{type(why).__name__}: {why}".partition("\n")[0]
            self._on = False
            name, directory = self.log.name, self.log.directory
            command = shell_line(["dlhw", "export", str(directory), "--to", name])
            log.warning("logger=%s: off for this run (%s); write the rest with: %s", name, printable(reason), command)

    def close(self) -> None:
        """Close the log, also after a failure."""
        if self._thread.hangs:
            return
        closed = threading.Event()

        def close() -> None:
            try:
                self.log.logger.close()
            except BaseException as error:
                self._switch_off(error)
            closed.set()

        self._thread.actions.put(close)
        if not self._thread.wait_for(closed):
            self._switch_off(f"a call has not returned for {PATIENCE:g} seconds")


class _Thread:
    """A thread that takes actions in order. It does not keep the program from ending."""

    def __init__(self, name: str) -> None:
        self.actions: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.hangs = False
        self._taken = 0
        threading.Thread(target=self._run, name=f"logger {name}", daemon=True).start()

    def _run(self) -> None:
        while True:
            self.actions.get()()
            self._taken += 1
            self.hangs = False

    def wait_for(self, event: threading.Event) -> bool:
        """Wait for an event that an action sets. Return False if one action takes longer than ``PATIENCE``."""
        taken = self._taken
        while not event.wait(PATIENCE):
            if self._taken == taken:
                self.hangs = True
                return False
            taken = self._taken
        return True


@functools.cache
def _thread(name: str) -> _Thread:
    """Return the thread of the logger with this name, which serves all runs of this process."""
    return _Thread(name)
