"""Run commands of dlhw in forked children, with a time limit, signals and changed surroundings.

:func:`preload` imports the libraries once, and a :class:`Child` is forked for every command. It behaves like
``python -m MODULE ARGUMENT...`` in its own process group, folder and environment. This needs Linux, and a parent
without threads.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

from command_line import Command, Outcome
from forked import run_in_child
from preloading import import_everything


@functools.cache
def preload() -> None:
    """Import the libraries and all modules of dlhw."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import_everything()
    gc.collect()
    gc.freeze()  # so that garbage collection in a child copies no pages
    atexit.register(gc.unfreeze)


class Child:
    """A command that was started. Call :meth:`ended` repeatedly; it also sends the signals."""

    def __init__(self, command: Command) -> None:
        preload()
        assert threading.active_count() == 1, "a process with threads must not fork"
        self.command = command
        self._out, self._err = _unnamed_file(), _unnamed_file()
        self._code: int | None = None
        self._sent: list[float] = []
        self._timed_out = self._orphans = False
        sys.stdout.flush()
        sys.stderr.flush()
        self._started = time.monotonic()
        self.pid = os.fork()
        if not self.pid:
            try:
                run_in_child(command, self._out, self._err)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(98)  # the child must never continue as its parent
        with contextlib.suppress(OSError):  # the child does the same
            os.setpgid(self.pid, self.pid)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def ended(self) -> bool:
        """Send the signals that are due, and return whether the command has ended."""
        if self._code is not None:
            return True
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self._end(status)
        elif self.seconds > self.command.seconds:
            self._timed_out = True
            self.kill()
        elif len(self._sent) < len(self.command.interruptions):
            following = self.command.interruptions[len(self._sent)]
            before = self._sent[-1] if self._sent else 0.0
            if self.seconds - before >= following.after and (following.when is None or following.when()):
                self._sent.append(self.seconds)
                os.kill(-self.pid if following.whole_group else self.pid, following.number)
        return self._code is not None

    def kill(self) -> None:
        """Kill all processes of the command."""
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._end(os.waitpid(self.pid, 0)[1])

    def outcome(self) -> Outcome:
        """Return how the command ended."""
        assert self._code is not None
        out, err = (os.pread(file, 1 << 24, 0).decode(errors="backslashreplace") for file in (self._out, self._err))
        for file in (self._out, self._err):
            os.close(file)
        return Outcome(
            self.command, self._code, out, err, self._seconds, self._timed_out, tuple(self._sent), self._orphans
        )

    def _end(self, status: int) -> None:
        self._code, self._seconds = os.waitstatus_to_exitcode(status), self.seconds
        if self.command.others_seconds is None:
            return
        grace = time.monotonic() + (0 if self._timed_out else self.command.others_seconds)
        while left := _processes_of_group(self.pid):
            if time.monotonic() > grace:
                self._orphans = not self._timed_out
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.02)


def _processes_of_group(group: int) -> list[int]:
    """Return the processes of a group that have not ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, 0)
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, process_group = path.read_text().rpartition(")")[2].split()[:3]
                if process_group == str(group) and state not in "ZX":
                    found.append(int(path.parent.name))
        return found
    return []


def _unnamed_file() -> int:
    """Return the descriptor of an empty file that is deleted when it is closed."""
    file, name = tempfile.mkstemp()
    os.unlink(name)
    return file


def run(command: Command) -> Outcome:
    """Run one command, and wait for its end."""
    child = Child(command)
    try:
        while not child.ended():
            time.sleep(0.005)
    finally:
        child.kill()
    return child.outcome()
