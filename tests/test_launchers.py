"""Launchers: each runs the same jobs, its workers end with the sweep, and a sweep that was killed can be resumed."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from support.commands import SMALL, start
from support.processes import wait_for
from support.sweeps import QUICK, summary_statuses


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("hydra_plugins.hydra_joblib_launcher", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]),
        ("hydra_plugins.hydra_submitit_launcher", ["hydra/launcher=submitit_local"]),
        ("hydra_plugins.hydra_ray_launcher", ["hydra/launcher=ray"]),
    ],
    ids=["joblib", "submitit", "ray"],
)
def test_other_launchers_run_the_same_jobs(tmp_path: Path, module: str, options: list[str]) -> None:
    pytest.importorskip(module)
    line = ("-m", *QUICK, "trainer.epochs=2", "optimizer.lr=0.1,1e35")
    with_launcher, with_default = tmp_path / "launcher", tmp_path / "default"
    for path, launcher in ((with_launcher, options), (with_default, [])):
        path.mkdir()
        result = start(*line, *launcher, at=path, cold=True).end()
        assert result.code == 1, result.err
        assert summary_statuses(path / "S") == {"optimizer.lr=0.1": "finished", "optimizer.lr=1e+35": "failed"}
    ours, expected = (path / "S" / "optimizer.lr=0.1" / "metrics.csv" for path in (with_launcher, with_default))
    assert ours.read_bytes() == expected.read_bytes()
    again = start("resume=S", at=with_launcher, cold=True).end()
    assert "2 jobs, 1 of them already finished" in again.err


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "vectorized"])
def test_killed_sweep_resumes_to_the_table_of_an_uninterrupted_sweep(tmp_path: Path, launcher: str) -> None:
    options = ("model.dropout=0.2", "trainer.epochs=150", "trainer.checkpoint_seconds=0", f"hydra/launcher={launcher}")
    line = ("-m", *SMALL, *options, "optimizer.lr=0.1,0.3", "seed=0,1")
    process = start(*line, "hydra.sweep.dir=S", at=tmp_path)
    halfway = tmp_path / "S" / "optimizer.lr=0.1,seed=1" / "metrics.csv"
    process.until(lambda: halfway.exists() and halfway.read_text().count("\n") > 70)
    process.kill()
    assert process.code == -signal.SIGKILL
    assert len(summary_statuses(tmp_path / "S")) == (1 if launcher == "basic" else 0)
    for directory in "ST":
        assert start(*line, f"hydra.sweep.dir={directory}", at=tmp_path).end().code == 0
    resumed, uninterrupted = ((tmp_path / directory / "sweep.csv").read_text() for directory in "ST")
    if launcher == "basic":
        assert resumed == uninterrupted
    for cell, expected in zip(re.split("[,\n]", resumed), re.split("[,\n]", uninterrupted), strict=True):
        # rounding depends on how many jobs are trained at once after resuming
        assert cell == expected or float(cell) == pytest.approx(float(expected), rel=1e-5)


def live_processes(session: int) -> list[int]:
    """The ids of the live processes of a session: its first process and all that this one has started."""
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = stat.read_text().rpartition(")")
        except OSError:  # it has ended meanwhile
            continue
        state, _, _, session_of_process = rest.split()[:4]
        if int(session_of_process) == session and state != "Z":
            pids.append(int(stat.parent.name))
    return pids


@pytest.mark.thorough
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_when_the_sweep_ends(tmp_path: Path, sent: signal.Signals) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    options = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=S", "trainer.epochs=100000"]
    process = start("-m", *SMALL, *options, "seed=0,1", at=tmp_path, cold=True)
    try:
        process.until(lambda: len(list(tmp_path.glob("S/*/metrics.csv"))) == 2)
        assert len(live_processes(process.pid)) > 2
        process.send_signal(sent)
        assert process.wait() == (143 if sent == signal.SIGTERM else -sent)
        wait_for(lambda: not live_processes(process.pid))
    finally:
        for pid in live_processes(process.pid):
            os.kill(pid, signal.SIGKILL)
