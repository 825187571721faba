"""Threads: how long they spin, set before torch is loaded, and how many there are."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import pytest
import torch

from dlhw.runtime import cgroups, devices, threads
from support.processes import Process, environment

SPINNING = str(threads.SPIN_TURNS)
FAKE_TORCH = "import os; print(os.environ.get('GOMP_SPINCOUNT'), flush=True); os._exit(0)"
"""A module in place of torch, which prints the variable at the time when torch would be loaded."""
CHILD = "import dlhw, os, sys; os.execv(sys.executable, [sys.executable, '-c', 'import torch'])"


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("-m", "dlhw.train", "dataset=digits"), id="run"),
        pytest.param(("-m", "dlhw.train", "-m", "dataset=digits", "seed=0,1"), id="sweep"),
        pytest.param(("-m", "dlhw.predict", "run", "picture.png"), id="predict"),
        pytest.param(("-c", "from dlhw.train import main; main()", "dataset=digits"), id="console script"),
        pytest.param(("-c", "import dlhw; dlhw.load_run('.')"), id="load_run"),
        pytest.param(("-c", CHILD), id="child that does not import dlhw"),
    ],
)
def test_spinning_is_limited_when_torch_is_loaded(arguments: tuple[str, ...], tmp_path: Path) -> None:
    tmp_path.joinpath("torch.py").write_text(FAKE_TORCH)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    env = {name: value for name, value in environment(PYTHONPATH=path).items() if name != "GOMP_SPINCOUNT"}
    ended = Process(*arguments, at=tmp_path, env=env, cold=True).end()
    assert ended.out == f"{SPINNING}\n", ended.err


def test_spinning_is_limited_in_the_tests() -> None:
    assert os.environ["GOMP_SPINCOUNT"]


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_way_of_waiting_that_the_user_has_chosen_is_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv(name, "123")
    before = dict(os.environ)
    threads.limit_spinning()
    assert dict(os.environ) == before


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process have four cores, no quota and no variables that set the number of threads."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)), raising=False)
    monkeypatch.setattr(cgroups, "cpu_quota", lambda: None)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(("quota", "expected"), [(None, 4), (8.0, 4), (3.0, 3), (1.5, 2), (0.2, 1)])
def test_usable_cores_are_those_of_the_affinity_and_the_quota(
    quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "cpu_quota", lambda: quota)
    assert threads.usable_cores() == expected


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(("number_of_torch", "expected"), [(64, 4), (4, 4), (2, 2)])
def test_default_number_of_threads_is_at_most_that_of_the_usable_cores(number_of_torch: int, expected: int) -> None:
    assert threads.default_threads(number_of_torch) == expected


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_number_of_threads_in_the_environment_is_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "6")
    assert threads.default_threads(6) == 6


@pytest.mark.usefixtures("four_cores")
def test_training_uses_the_default_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    at_start = runpy.run_path(devices.__file__)
    cpu = torch.device("cpu")
    at_start["configure_torch"](cpu, devices.Precision("fp32", cpu), deterministic=True)
    at_start["configure_torch"](cpu, devices.Precision("fp32", cpu), threads=3, deterministic=True)
    assert used == [4, 3]
