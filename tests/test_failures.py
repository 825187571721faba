"""The effects of an error on a run: the exception that is raised, the run directory and the log."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dlhw import load_run
from dlhw.cli import failures
from dlhw.errors import ChecksFailed, TrainingFailed, UsageError
from dlhw.storage.record import Record
from dlhw.storage.stored import read_summary
from support.composing import compose

FULL = OSError(errno.ENOSPC, "No space left on device", "metrics.csv")


def raised_exception(
    error: BaseException, directory: Path, *, in_sweep: bool, resume: str | None = None, started: bool = True
) -> BaseException:
    """Return the exception that reaches the caller when a run in ``directory`` raises ``error``."""
    directory.mkdir()
    if started:
        (directory / "config.yaml").touch()
    with (
        pytest.raises(BaseException) as raised,  # noqa: PT011
        failures.recorded(OmegaConf.create({"resume": resume}), Record(directory), in_sweep=in_sweep),
    ):
        raise error
    return raised.value


@pytest.mark.parametrize("in_sweep", [False, True])
@pytest.mark.parametrize("error", [TrainingFailed("loss nan"), FULL, ChecksFailed("1 of 2 checks disagree")], ids=repr)
def test_expected_failure_exits_a_single_run_with_code_1_and_is_reraised_in_a_sweep(
    tmp_path: Path, error: Exception, in_sweep: bool, caplog: pytest.LogCaptureFixture
) -> None:
    raised = raised_exception(error, tmp_path / "run", in_sweep=in_sweep)
    if in_sweep:
        assert raised is error
    else:
        assert isinstance(raised, SystemExit)
        assert raised.code == 1
    assert [record.getMessage().startswith(str(error)) for record in caplog.records] == [True]
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, ChecksFailed):  # the study writes the summary itself
        reason = None
    assert read_summary(tmp_path / "run").get("reason") == reason


@pytest.mark.parametrize("in_sweep", [False, True])
def test_unexpected_error_is_reraised_and_logged_with_its_traceback(tmp_path: Path, in_sweep: bool) -> None:
    error = ZeroDivisionError("by 0")
    assert raised_exception(error, tmp_path / "run", in_sweep=in_sweep) is error
    assert read_summary(tmp_path / "run") == {"status": "failed", "reason": "ZeroDivisionError: by 0"}
    assert "ZeroDivisionError: by 0" in (tmp_path / "run" / "run.log").read_text()


@pytest.mark.parametrize("error", [ZeroDivisionError("by 0"), FULL], ids=repr)
def test_run_that_fails_before_its_config_is_written_has_one(tmp_path: Path, error: Exception) -> None:
    cfg = compose("seed=3", "dataset=digits")
    with pytest.raises((ZeroDivisionError, SystemExit)), failures.recorded(cfg, Record(tmp_path), in_sweep=False):
        raise error
    assert load_run(tmp_path).config.seed == 3
    assert load_run(tmp_path).summary["status"] == "failed"


@pytest.mark.parametrize(
    ("in_sweep", "resume", "exists", "status"),
    [
        (False, None, False, None),
        (False, "run", True, None),
        (True, None, True, "failed"),
        (True, "run", True, "failed"),
    ],
)
def test_usage_error_removes_a_new_run_and_marks_a_job_as_failed(
    tmp_path: Path, in_sweep: bool, resume: str | None, exists: bool, status: str | None
) -> None:
    error = UsageError("seed=-1: must be a whole number")
    assert raised_exception(error, tmp_path / "run", in_sweep=in_sweep, resume=resume) is error
    assert (tmp_path / "run").exists() is exists
    assert read_summary(tmp_path / "run").get("status") == status


@pytest.mark.parametrize("in_sweep", [False, True])
@pytest.mark.parametrize("started", [False, True])
def test_interrupted_run_is_kept_if_it_has_started(
    tmp_path: Path, in_sweep: bool, started: bool, caplog: pytest.LogCaptureFixture
) -> None:
    error = KeyboardInterrupt()
    assert raised_exception(error, tmp_path / "run", in_sweep=in_sweep, started=started) is error
    assert (tmp_path / "run").exists() is started
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    resume = [] if in_sweep else [f"interrupted; next: dlhw resume={tmp_path / 'run'}"]
    assert warnings == (resume if started else ["interrupted before the run began"])


def test_failure_of_returns_the_exception_of_a_job_but_not_an_interrupt() -> None:
    def fail() -> None:
        raise FULL

    def interrupt() -> None:
        raise KeyboardInterrupt

    assert failures.failure_of(fail) is FULL
    assert failures.failure_of(lambda: 3) is None
    with pytest.raises(KeyboardInterrupt):
        failures.failure_of(interrupt)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UsageError("seed=-1: must be a whole number"), "seed=-1: must be a whole number"),
        (FULL, "metrics.csv: No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device"), "here: No space left on device"),
    ],
    ids=repr,
)
def test_error_ends_the_program_with_one_line_unless_full_errors_are_requested(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as raised, failures.end_program("here"):
        raise error
    assert raised.value.code == 1
    assert capsys.readouterr().err == f"{line}\n"
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(type(error)), failures.end_program("here"):
        raise error


def test_a_program_without_memory_ends_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), failures.end_program():
        raise MemoryError
    assert capsys.readouterr().err == "the program: not enough memory; choose smaller sizes\n"


def test_a_program_ignores_the_backend_of_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    with failures.end_program():
        assert os.environ["MPLBACKEND"] == "agg"
