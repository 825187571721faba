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
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from dlhw.errors import ChecksFailed, NotEnoughMemory, UsageError
from dlhw.runtime.memory import allocating

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from dlhw.runs.record import Record

log = logging.getLogger("dlhw")


@contextlib.contextmanager
def recorded(cfg: DictConfig, record: Record, *, in_sweep: bool) -> Iterator[None]:
    """Record in the run's directory and in the log why the run ends early, and raise the error again.

    Outside a sweep, an error that the log explains in one line is replaced by SystemExit.
    """
    from dlhw.training.run import TrainingFailed  # imports torch

    try:
        with allocating("the run"):
            yield
    except KeyboardInterrupt:
        if not (record.path / "config.yaml").exists():
            record.discard()
        elif not in_sweep:
            log.warning("interrupted; resume with %s", shlex.quote(f"resume={record.path}"))
        raise
    except UsageError as error:
        if in_sweep and not record.finished:
            record.fail(error)
            log.error("%s", error)
        elif cfg.resume is None and not in_sweep:
            record.discard()
        raise
    except (ChecksFailed, TrainingFailed, NotEnoughMemory, OSError) as error:
        if isinstance(error, ChecksFailed):  # the summary is written already
            log.error("%s (see %s)", error, record.path / "tables" / "checks.csv")
        else:
            record.fail(error)
            log.error("%s (the results so far are in %s)", error, record.path)
        if in_sweep:
            raise
        raise SystemExit(1) from error
    except Exception as error:
        record.fail(error)
        with (record.path / "run.log").open("a") as file:
            traceback.print_exc(file=file)
        if in_sweep:
            log.error("%s: %s (traceback in %s)", type(error).__name__, error, record.path / "run.log")
        raise


def failure_of(job: Callable[[], object]) -> Exception | None:
    """Run a job of a sweep. Return its error, which its directory and the log already contain; None on success."""
    try:
        job()
    except Exception as error:
        return error
    return None


@contextlib.contextmanager
def end_program(directory: Path | str) -> Iterator[None]:
    """End the program with one line and exit code 1 after a UsageError or OSError.

    For an OSError without a file name, the line names ``directory``.
    """
    try:
        yield
    except (UsageError, OSError) as error:
        stop(error, directory)


def stop(error: UsageError | OSError, directory: Path | str = "") -> NoReturn:
    """End the program with the error's line and exit code 1; with HYDRA_FULL_ERROR=1 raise the error instead."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    print(one_line(error, directory), file=sys.stderr)
    sys.exit(1)


def one_line(error: UsageError | OSError, directory: Path | str = "") -> str:
    """Return the error as one line. That of an OSError starts with its file, or with ``directory`` if it has none."""
    return f"{error.filename or directory}: {error.strerror or error}" if isinstance(error, OSError) else str(error)
