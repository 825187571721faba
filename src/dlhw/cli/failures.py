"""How errors affect a run, its directory and the exit code.

==========================  ============================================  =================  ====================
the run ends with           its directory                                 in the log         exit code
==========================  ============================================  =================  ====================
KeyboardInterrupt           removed if the run has not begun              how to resume      130, SIGTERM 143
UsageError                  removed if the run is new                     the message        1
ChecksFailed                complete, with ``status: failed``             ``checks.csv``     1
NotEnoughMemory             ``status: failed``                            the directory      1
TrainingFailed, OSError     ``status: failed``                            the directory      1
any other error             ``status: failed``, traceback in ``run.log``  a traceback        1
==========================  ============================================  =================  ====================

A job of a sweep differs in three ways: after a UsageError its directory remains, with ``status: failed``; the sweep
logs how to resume it; its error goes to the launcher, and the sweep ends with exit code 1 if a job failed.
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from dlhw.errors import ChecksFailed, NotEnoughMemory, TrainingFailed, UsageError
from dlhw.runtime import signals
from dlhw.runtime.memory import allocating
from dlhw.runtime.paths import printable_lines, shell_line

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from dlhw.storage.record import Record

log = logging.getLogger("dlhw")


@contextlib.contextmanager
def recorded(cfg: DictConfig, record: Record, *, in_sweep: bool) -> Iterator[None]:
    """Record in the run's directory and in the log why the run ends early, and raise the error again.

    Outside a sweep, an error that the log explains in one line is replaced by SystemExit.
    """
    try:
        with signals.stoppable(), allocating("the run"):
            yield
    except KeyboardInterrupt:
        if not (record.path / "config.yaml").exists():
            log.warning("interrupted before the run began")
            record.discard()
        elif not in_sweep:
            log.warning("interrupted; next: %s", shell_line(["dlhw", f"resume={record.path}"]))
        raise
    except UsageError as error:
        if in_sweep and not record.finished:
            _fail(cfg, record, error)
            log.error("%s", error)
        elif cfg.resume is None and not in_sweep:
            record.discard()
        raise
    except (ChecksFailed, TrainingFailed, NotEnoughMemory, OSError) as error:
        if isinstance(error, ChecksFailed):  # the summary is written already
            log.error("%s (see %s)", error, record.path / "tables" / "checks.csv")
        else:
            _fail(cfg, record, error)
            log.error("%s (the results so far are in %s)", error, record.path)
        if in_sweep:
            raise
        raise SystemExit(1) from error
    except Exception as error:
        _fail(cfg, record, error)
        with contextlib.suppress(OSError), (record.path / "run.log").open("a", encoding="utf-8") as file:
            traceback.print_exc(file=file)
        if in_sweep:
            log.error("%s: %s (traceback in %s)", type(error).__name__, error, record.path / "run.log")
        raise


def _fail(cfg: DictConfig, record: Record, error: Exception) -> None:
    """Record that the run failed; its directory has a config even if it failed before its first files were written."""
    from omegaconf.errors import OmegaConfBaseException

    from dlhw.storage.identity import to_yaml

    if not (record.path / "config.yaml").exists():
        with contextlib.suppress(OSError, OmegaConfBaseException):  # a full disk; a value that refers to nothing
            record.write_config(to_yaml(cfg), new=True)
    record.fail(error)


def failure_of(job: Callable[[], object]) -> Exception | None:
    """Run a job of a sweep. Return its error, which its directory and the log already contain; None on success."""
    try:
        job()
    except Exception as error:
        return error
    return None


@contextlib.contextmanager
def end_program(directory: Path | str = "") -> Iterator[None]:
    """End the program with the exit code of the table above, and with one line for a UsageError or OSError.

    For an OSError without a file name, the line names ``directory``.
    """
    try:
        try:
            _prepare_streams()
            _require_working_directory()
            os.environ["MPLBACKEND"] = "agg"  # figures are files, whatever backend a notebook has set
            with allocating("the program"):
                yield
        except SystemExit as ended:
            if ended.code:
                raise
        _flush_output()
        signals.raise_received()
    except KeyboardInterrupt:
        signals.ignore()
        logging.disable()  # a library whose import was interrupted may log at exit
        with contextlib.suppress(OSError):
            _flush_output()
        sys.exit(128 + (signals.received() or signal.SIGINT))
    except BrokenPipeError:  # the reader of the output has ended, for example head
        sys.exit(0)
    except (UsageError, NotEnoughMemory, OSError) as error:
        with contextlib.suppress(OSError):
            _flush_output()
        stop(error, directory)


def _prepare_streams() -> None:
    """Open closed standard streams, which would otherwise become files of the run, and escape unknown characters."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _flush_output() -> None:
    """Write what was printed. If that fails, Python must not try again at exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise


def _require_working_directory() -> None:
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UsageError("the working directory has been deleted; change to another directory") from error


def stop(error: UsageError | NotEnoughMemory | OSError, directory: Path | str = "") -> NoReturn:
    """End the program with the error's line and exit code 1; with HYDRA_FULL_ERROR=1 raise the error instead.

    The SystemExit has the error as its cause.
    """
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    if not _called_from_python.get():
        with contextlib.suppress(OSError):  # the reader of stderr may have ended
            print(printable_lines(one_line(error, directory)), file=sys.stderr)
    raise SystemExit(1) from error


_called_from_python = contextvars.ContextVar("called_from_python", default=False)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Raise the errors that would end the program, for callers in Python, without printing them."""
    token = _called_from_python.set(True)
    try:
        yield
    except SystemExit as ended:
        if isinstance(ended.__cause__, Exception):
            raise ended.__cause__ from None
        if ended.code not in (0, None, 1):
            raise
    finally:
        _called_from_python.reset(token)


def one_line(error: UsageError | NotEnoughMemory | OSError, directory: Path | str = "") -> str:
    """Return the error as one line. That of an OSError starts with its file, or with ``directory`` if it has none."""
    if not isinstance(error, OSError):
        return str(error)
    place = error.filename if error.filename is not None else directory
    return f"{place}: {error.strerror or error}" if place else str(error.strerror or error)
