"""What a forked child does: it behaves like a new process of ``python -m MODULE ARGUMENT...``."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import runpy
import signal
import sys
import tempfile
import threading
import traceback
import weakref
from typing import TextIO

from command_line import Command
from preloading import unload

CLOSED = -1
"""Instead of the descriptor of a stream: the child has no such stream, as with ``>&-`` in a shell."""
NOT_INHERITED = ("HYDRA_FULL_ERROR", "DLHW_DATA", "FORCE_COLOR", "COLUMNS", "PYTHONIOENCODING")
"""Variables that change the behaviour of dlhw. A child has them only if its command sets them."""


def run_in_child(command: Command, out: int, err: int) -> None:
    """Prepare this process for the command, run it, and end as the interpreter does."""
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for name in NOT_INHERITED:
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
            unload(command.module)  # it runs as __main__, and other modules may import it again
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
    """Create the streams of ``sys`` for descriptors 0, 1 and 2."""
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
