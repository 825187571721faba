"""Start Python programs in separate processes, which are forked where possible because that is faster."""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

FORKS = sys.platform == "linux"  # on other systems, forking a process that has loaded torch is unsafe
PATIENCE = 600.0
"""Seconds to wait for something that takes one second on an idle machine."""
FROM_OUTSIDE = ("HYDRA_FULL_ERROR", "DLHW_DATA", "FORCE_COLOR")  # variables that change the behaviour of dlhw


@dataclass(frozen=True)
class Ended:
    """The exit code of a program, or minus the number of the signal that killed it, and its output."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines on stderr."""
        return self.err.splitlines()


def environment(**more: str) -> dict[str, str]:
    """Return the environment of this process with one thread and without variables that change the results."""
    kept = {name: value for name, value in os.environ.items() if name not in FROM_OUTSIDE}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


class Process:
    """A process that runs ``python -m MODULE ARGUMENT...`` or ``python -c CODE ARGUMENT...`` in the folder ``at``.

    It has its own session. With ``cold`` it is a new Python process; otherwise it is forked from a process that has
    imported the libraries.
    """

    def __init__(
        self, *arguments: str | Path, at: Path, env: Mapping[str, str] | None = None, cold: bool = False
    ) -> None:
        self._out, self._err = _unnamed_file(), _unnamed_file()
        weakref.finalize(self, lambda *files: [os.close(file) for file in files], self._out, self._err)
        self.code: int | None = None
        words = [str(word) for word in arguments]
        env = dict(environment() if env is None else env)
        self._popen: subprocess.Popen[bytes] | None = None
        if cold or not FORKS:
            self._popen = subprocess.Popen(
                [sys.executable, *words],
                cwd=at,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=self._out,
                stderr=self._err,
                start_new_session=True,
            )
            self.pid = self._popen.pid
            return
        content = json.dumps({"arguments": words, "at": str(at), "env": env}).encode()
        self._report, report = os.pipe()
        files = [self._out, self._err, report]
        socket.send_fds(_server(), [len(content).to_bytes(4, "big")], files)
        _server().sendall(content)
        os.close(report)
        self.pid = int(self._reported(PATIENCE))

    def _reported(self, seconds: float) -> str:
        """Return the next line of the report: first the process id, then the exit code. Raise TimeoutExpired."""
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self._report], [], [], seconds)[0]:
                raise subprocess.TimeoutExpired("a forked process", seconds)
            byte = os.read(self._report, 1)
            assert byte, "the server of forked processes has ended"
            line += byte
        return line.decode()

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait for the exit code, or minus the signal that killed the process. Raise TimeoutExpired."""
        if self.code is None:
            if self._popen is not None:
                self.code = self._popen.wait(seconds)
            else:
                self.code = int(self._reported(seconds))
                os.close(self._report)
        return self.code

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, sent: signal.Signals) -> None:
        """Send a signal unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, sent)

    def kill(self) -> None:
        """Kill the process unless it has ended, and wait for its end."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    @property
    def out(self) -> str:
        """The output of the process to stdout so far."""
        return os.pread(self._out, 1 << 30, 0).decode()

    @property
    def err(self) -> str:
        """The output of the process to stderr so far."""
        return os.pread(self._err, 1 << 30, 0).decode()

    def end(self, seconds: float = PATIENCE) -> Ended:
        """Wait for the end of the process. Kill it and raise AssertionError after ``seconds``."""
        try:
            code = self.wait(seconds)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise AssertionError(f"the process did not end; it wrote {self.out}{self.err}") from error
        return Ended(code, self.out, self.err)

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition is true. Raise AssertionError if the process ends before that."""
        wait_for(lambda: condition() or self.poll() is not None)
        assert condition(), f"the process ended with {self.code}: {self.err}"


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until a condition is true. Raise AssertionError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still waiting after {seconds} seconds"
        time.sleep(0.01)


def _unnamed_file() -> int:
    """Return the descriptor of an empty file that is deleted when it is closed."""
    file, name = tempfile.mkstemp()
    os.unlink(name)
    return file


@functools.cache
def _server() -> socket.socket:
    """Start the server, which ends with this process, and return a connection to it."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("server.py")), str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        env=environment(),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    theirs.close()

    def close() -> None:
        ours.close()
        process.wait()

    atexit.register(close)
    return ours
