"""Run commands of dlhw in forked children, with a time limit, signals and changed surroundings.

A new Python process needs seconds to import torch; a forked one has it already. :func:`preload` imports the libraries
once; :func:`run` and :func:`run_all` fork for every command. A child behaves like ``python -m MODULE ARGUMENT...`` in
its own process group, folder and environment. This needs Linux, and a parent without threads.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import io
import os
import pkgutil
import runpy
import shlex
import signal
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

LIBRARIES = (
    "hydra",
    "matplotlib.pyplot",
    "pandas",
    "rich.progress",
    "sklearn.datasets",
    "sklearn.model_selection",
    "torch",
    "torchvision.transforms.v2",
)
CLOSED = -1
"""In place of the descriptor of a stream: the child has none, as with ``>&-`` in a shell."""
INHERITED = ("HYDRA_FULL_ERROR", "DLHW_DATA", "FORCE_COLOR", "COLUMNS", "PYTHONIOENCODING")
"""Variables that change the behaviour of dlhw; children do not inherit them."""


@dataclass(frozen=True)
class Interruption:
    """A signal for a running command.

    Args:
        number: of the signal.
        after: seconds since the start of the command, or since the interruption before this one.
        when: sent once this is true; it is asked every few milliseconds.
        whole_group: sent to all processes of the command, as a terminal does with Ctrl-C.
    """

    number: int
    after: float = 0.0
    when: Callable[[], object] | None = None
    whole_group: bool = False


@dataclass(frozen=True)
class Command:
    """A command line, or a Python function, with its surroundings.

    Args:
        arguments: of the command line.
        at: the working directory.
        module: ``dlhw.train``, ``dlhw.compare`` or ``dlhw.predict``.
        function: called instead of the module, without arguments.
        env: changes of the environment; None removes a variable.
        stdin: descriptor or CLOSED; None is the empty file.
        stdout: descriptor or CLOSED; None captures the output.
        stderr: likewise.
        prepare: called in the child before the program starts, to change limits for example.
        shell: what ``prepare`` and the streams are in a shell: a format with ``{}`` for the command.
        seconds: time limit; then all processes of the command are killed.
        interruptions: signals, sent in this order.
        cold: start a new Python process instead of a fork: slower, but with everything that happens at import.
        name: any text that tells this command from others.
    """

    arguments: tuple[str, ...]
    at: Path
    module: str = "dlhw.train"
    function: Callable[[], object] | None = None
    env: Mapping[str, str | None] = field(default_factory=dict)
    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    prepare: Callable[[], object] | None = None
    shell: str = "{}"
    seconds: float = 60.0
    interruptions: tuple[Interruption, ...] = ()
    cold: bool = False
    name: str = ""

    def text(self) -> str:
        """Return the shell line that repeats this command."""
        changes = [f"-u {name}" for name, value in self.env.items() if value is None]
        changes += [f"{name}={shlex.quote(value)}" for name, value in self.env.items() if value is not None]
        if self.function is None:
            words = ["python", "-m", self.module, *map(shlex.quote, self.arguments)]
        else:
            words = ["python", "-c", shlex.quote(f"{getattr(self.function, '__qualname__', self.function)}()")]
        line = " ".join([*(["env", *changes] if changes else []), *words])
        signals = [
            f"{signal.Signals(one.number).name} after {one.after:.3f} s{' when a condition holds' if one.when else ''}"
            for one in self.interruptions
        ]
        note = f"  # {', '.join(signals)}" if signals else ""
        return f"cd {shlex.quote(str(self.at))} && {self.shell.format(line)}{note}"


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Args:
        command: the command.
        code: its exit code, or minus the number of the signal that ended it.
        out: its output to stdout, if captured.
        err: its output to stderr, if captured.
        seconds: its duration.
        timed_out: whether it was killed at its time limit.
        sent: seconds from its start to each interruption that was sent.
        orphans: whether processes of it were running after its end; they are killed.
    """

    command: Command
    code: int
    out: str
    err: str
    seconds: float
    timed_out: bool
    sent: tuple[float, ...]
    orphans: bool

    @property
    def argv(self) -> tuple[str, ...]:
        """The arguments of the command line."""
        return self.command.arguments


def command_text(outcome: Outcome) -> str:
    """Return the shell line that repeats a command."""
    return outcome.command.text()


@functools.cache
def preload() -> None:
    """Import the libraries and all modules of dlhw."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in LIBRARIES:
        importlib.import_module(name)
    import dlhw

    for module in pkgutil.walk_packages(dlhw.__path__, "dlhw."):
        with contextlib.suppress(ImportError):  # a module that needs an optional package
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()  # so that garbage collection in a child copies no pages
    atexit.register(gc.unfreeze)


def run(command: Command) -> Outcome:
    """Run one command, and wait for its end."""
    (outcome,) = run_all([command])
    return outcome


def run_all(commands: Iterable[Command], *, jobs: int = 2) -> Iterator[Outcome]:
    """Run commands, ``jobs`` of them at a time, and yield their outcomes as they end.

    The next command is taken from ``commands`` when there is room for it.
    """
    preload()
    waiting = iter(commands)
    running: list[Child] = []
    more = True
    try:
        while more or running:
            while more and len(running) < jobs:
                command = next(waiting, None)
                if command is None:
                    more = False
                else:
                    running.append(Child(command))
            ended = [child for child in running if child.ended()]
            running = [child for child in running if child not in ended]
            if not ended:
                time.sleep(0.005)
            yield from (child.outcome() for child in ended)
    finally:
        for child in running:
            child.kill()


class Child:
    """A command that has been started. Call :meth:`ended` repeatedly, which also sends its signals."""

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
                _run_in_child(command, self._out, self._err)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(98)  # the child must never go on as its parent
        with contextlib.suppress(OSError):  # the child does the same; whoever is first
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
        grace = time.monotonic() + (0 if self._timed_out else 2)  # seconds for helper processes of libraries
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


def _run_in_child(command: Command, out: int, err: int) -> None:
    """Set up the surroundings, run the command and end this process as the interpreter does."""
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for name in INHERITED:
            os.environ.pop(name, None)
        for name, value in command.env.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        os.chdir(command.at)
        _set_descriptors(command, out, err)
        if command.prepare is not None:
            command.prepare()
        _open_streams(command)
        if command.cold:
            os.execv(sys.executable, [sys.executable, "-m", command.module, *command.arguments])
        for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
            finalizer.atexit = False  # those of the parent, such as of temporary folders
        tempfile.tempdir = None  # the next use reads TMPDIR
        with contextlib.suppress(OSError):
            sys.path[0] = os.getcwd()
        import torch

        torch.set_num_threads(1)
    except BaseException:
        traceback.print_exc()
        os._exit(99)
    code = _call(command)
    for step in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
        step()
    if not (_flush(sys.stdout) & _flush(sys.stderr)):
        os._exit(120)
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)  # the interpreter also takes all modules apart, which would take seconds here


def _call(command: Command) -> int:
    """Call the module or function, and return the exit code, or minus SIGINT for a KeyboardInterrupt."""
    try:
        if command.function is None:
            sys.argv[:] = [command.module, *command.arguments]
            _unload(command.module)  # it runs as __main__, and other modules may import it again
            runpy.run_module(command.module, run_name="__main__", alter_sys=True)
        else:
            command.function()
    except SystemExit as error:
        return _exit_code(error)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__.tb_next if error.__traceback__ else None)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _flush(stream: TextIO | None) -> bool:
    """Flush a stream at the end, and return whether that worked; the interpreter prints such an error of stdout."""
    try:
        if stream is not None and not stream.closed:
            stream.flush()
    except Exception as error:
        if stream is sys.stdout and sys.stderr is not None:
            print(f"Exception ignored in: {stream}\n{type(error).__name__}: {error}", file=sys.stderr)
        return False
    return True


def _set_descriptors(command: Command, out: int, err: int) -> None:
    """Connect descriptors 0, 1 and 2, and close all others."""
    null = os.open(os.devnull, os.O_RDONLY)
    chosen = (command.stdin, command.stdout, command.stderr)
    defaults = zip(chosen, (null, out, err), strict=True)
    sources = [os.dup(default if given is None or given == CLOSED else given) for given, default in defaults]
    for number, source in enumerate(sources):
        os.dup2(source, number)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):
                os.close(int(name))


def _open_streams(command: Command) -> None:
    """Open the streams of ``sys`` anew, on descriptors 0, 1 and 2."""
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "utf-8").partition(":")
    given_streams = (command.stdin, command.stdout, command.stderr)
    for number, (name, given) in enumerate(zip(("stdin", "stdout", "stderr"), given_streams, strict=True)):
        stream = None
        if given == CLOSED:
            os.close(number)
        else:
            buffer = open(number, "wb" if number else "rb", closefd=False)  # noqa: SIM115
            stream = io.TextIOWrapper(
                buffer,
                encoding=encoding or "utf-8",
                errors="backslashreplace" if number == 2 else errors or "strict",
                line_buffering=number == 2 or os.isatty(number),
            )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _unload(name: str) -> None:
    package, _, last = name.rpartition(".")
    sys.modules.pop(name, None)
    if package in sys.modules:
        vars(sys.modules[package]).pop(last, None)


def _exit_code(error: SystemExit) -> int:
    """Return the exit code for ``sys.exit(...)``; any object other than a number or None is printed."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(error.code, file=sys.stderr)
    return 1
