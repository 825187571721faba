"""A run that is interrupted by a signal prints how to resume it, and resumes exactly."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from support.commands import RUN_FILES, SMALL, Ended, dlhw, files, summary
from support.processes import Process

LONG = (*SMALL, "trainer.epochs=6", "trainer.checkpoint_seconds=0")
STEPS_BEFORE_SIGNAL = 20  # in the middle of the third epoch of 9 steps
WAITING = f"""
import os, time
from dlhw import train
from dlhw.runtime.progress import Progress

steps, step = iter(range(1, 10_000)), Progress.step

def waiting(progress):
    step(progress)
    if next(steps) == {STEPS_BEFORE_SIGNAL}:
        os.write(1, b"waiting")
        while True:  # a signal that arrives just before a long sleep would not end it
            time.sleep(0.01)

Progress.step = waiting
train.main()
"""
"""The program, which waits for a signal after ``STEPS_BEFORE_SIGNAL`` steps."""


@dataclass(frozen=True)
class Interrupted:
    ended: Ended
    path: Path
    rows: int
    files: set[str]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[signal.Signals, Interrupted]:
    """Runs of ``LONG`` that received a signal in their third epoch, by signal."""
    root = tmp_path_factory.mktemp("interrupted")
    processes = {
        sent: Process("-c", WAITING, *LONG, f"hydra.run.dir={sent.name}", at=root)
        for sent in (signal.SIGTERM, signal.SIGINT)
    }
    result = {}
    try:
        for sent, process in processes.items():
            process.until(lambda process=process: process.out)
            process.send_signal(sent)
        for sent, process in processes.items():
            ended, path = process.end(), root / sent.name
            rows = len((path / "metrics.csv").read_text().splitlines()) - 1
            result[sent] = Interrupted(ended, path, rows, files(path))
    finally:
        for process in processes.values():
            process.kill()
    return result


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ``LONG`` without an interruption."""
    root = tmp_path_factory.mktemp("uninterrupted")
    assert dlhw(*LONG, "hydra.run.dir=run", at=root).code == 0
    return root / "run"


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_interrupted_run_prints_the_resume_command_and_resumes_exactly(
    interrupted: dict[signal.Signals, Interrupted], uninterrupted: Path, sent: signal.Signals, code: int
) -> None:
    run = interrupted[sent]
    assert run.ended.code == code
    assert run.ended.lines[-1] == f"interrupted; next: dlhw resume={run.path}"
    assert "Traceback" not in run.ended.err
    assert run.rows == 2
    assert "summary.json" not in run.files
    assert "curves.png" in run.files

    ended = dlhw(f"resume={run.path}", at=run.path.parent)
    assert ended.code == 0, ended.err
    assert summary(run.path)["status"] == "finished"
    assert files(run.path) >= RUN_FILES
    assert (run.path / "metrics.csv").read_bytes() == (uninterrupted / "metrics.csv").read_bytes()
    for weights in ("best.pt", "last.pt"):
        resumed, expected = (
            torch.load(path / weights, weights_only=True)["model"] for path in (run.path, uninterrupted)
        )
        assert all(torch.equal(resumed[name], expected[name]) for name in expected)
