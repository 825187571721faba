"""Threads: how long they spin, set before torch is loaded, and how many there are."""

from __future__ import annotations

import json
import os
import platform
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dlhw.runtime import cgroups, devices, threads
from support.processes import Process, environment

FAKE_TORCH = "import json, os; print(json.dumps(dict(os.environ)), flush=True); os._exit(0)"
"""A module in place of torch, which prints the environment at the time when torch would be loaded."""
CHILD = "import dlhw, os, sys; os.execv(sys.executable, [sys.executable, '-c', 'import torch'])"
WAITING = (*threads.SPINNING, "OMP_WAIT_POLICY", "KMP_LIBRARY")
limited_here = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="spinning is limited only on Linux on x86"
)


@limited_here
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
    env = {name: value for name, value in environment(PYTHONPATH=path).items() if name not in WAITING}
    ended = Process(*arguments, at=tmp_path, env=env, cold=True).end()
    assert ended.out, ended.err
    assert json.loads(ended.out).items() >= threads.SPINNING.items()


@pytest.fixture
def not_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables that say how threads wait, and restore them after the test."""
    for name in WAITING:
        monkeypatch.setenv(name, "restored")
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("not_limited")
@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_LIBRARY"])
def test_way_of_waiting_that_the_user_has_chosen_is_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="x86_64"), raising=False)
    monkeypatch.setenv(name, "chosen")
    threads.limit_spinning()
    assert os.environ[name] == "chosen"
    assert os.environ.keys() & threads.SPINNING.keys() <= {name}


@pytest.mark.usefixtures("not_limited")
@pytest.mark.parametrize(
    ("system", "machine", "limited"),
    [("linux", "x86_64", True), ("linux", "aarch64", False), ("darwin", "x86_64", False), ("win32", "", False)],
)
def test_spinning_is_limited_on_linux_on_x86(
    system: str, machine: str, limited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine), raising=False)
    threads.limit_spinning()
    assert (os.environ.items() >= threads.SPINNING.items()) == limited


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
    monkeypatch.setenv(name, "")
    assert threads.default_threads(6) == 4


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
