"""Start Python programs as processes of their own, most of them without the seconds that a new process takes."""

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

FORKS = sys.platform == "linux"  # elsewhere, a process that has loaded torch cannot be trusted to fork
PATIENCE = 600.0
"""Seconds to wait for what takes one second on a calm machine."""
FROM_OUTSIDE = ("HYDRA_FULL_ERROR", "DLHW_DATA", "FORCE_COLOR")  # would change what the programs do


@dataclass(frozen=True)
class Ended:
    """How a program ended: its exit code, or minus the signal that killed it, and its output."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines on stderr."""
        return self.err.splitlines()


def environment(**more: str) -> dict[str, str]:
    """The environment of this process with one thread, without what would change the results."""
    kept = {name: value for name, value in os.environ.items() if name not in FROM_OUTSIDE}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


class Process:
    """``python -m MODULE ARGUMENT...`` or ``python -c CODE ARGUMENT...`` in the folder ``at``, in its own session.

    A ``cold`` one is a new Python process. Others are forked from a process that has imported the libraries.
    """

    def __init__(
        self, *arguments: str | Path, at: Path, env: Mapping[str, str] | None = None, cold: bool = False
    ) -> None:
        self._out, self._err = _nameless_file(), _nameless_file()
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
        """The next line of the report: the process id, then the exit code. Raises TimeoutExpired."""
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self._report], [], [], seconds)[0]:
                raise subprocess.TimeoutExpired("a forked process", seconds)
            byte = os.read(self._report, 1)
            assert byte, "the server of the tests is gone"
            line += byte
        return line.decode()

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit code, or minus the signal that killed the process. Raises TimeoutExpired."""
        if self.code is None:
            if self._popen is not None:
                self.code = self._popen.wait(seconds)
            else:
                self.code = int(self._reported(seconds))
                os.close(self._report)
        return self.code

    def poll(self) -> int | None:
        """The exit code, None while the process runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, sent: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, sent)

    def kill(self) -> None:
        """Kill the process, if it has not ended, and wait for that."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    @property
    def out(self) -> str:
        """What the process has written to stdout until now."""
        return os.pread(self._out, 1 << 30, 0).decode()

    @property
    def err(self) -> str:
        """What the process has written to stderr until now."""
        return os.pread(self._err, 1 << 30, 0).decode()

    def end(self, seconds: float = PATIENCE) -> Ended:
        """Wait for the end of the process. Kills one that takes longer."""
        try:
            code = self.wait(seconds)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise AssertionError(f"the process did not end; it wrote {self.out}{self.err}") from error
        return Ended(code, self.out, self.err)

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition. Raises AssertionError when the process ends before it holds."""
        wait_for(lambda: condition() or self.poll() is not None)
        assert condition(), f"the process ended with {self.code}: {self.err}"


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still waiting after {seconds} seconds"
        time.sleep(0.01)


def _nameless_file() -> int:
    """The descriptor of an empty file that goes away when it is closed."""
    file, name = tempfile.mkstemp()
    os.unlink(name)
    return file


@functools.cache
def _server() -> socket.socket:
    """A connection to the server, which ends when this process does."""
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
