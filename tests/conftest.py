"""Settings of the test session, and the fixture that runs studies."""

from __future__ import annotations

import os
import signal

import dlhw  # noqa: F401  # before torch, because it sets how long torch's threads spin

# isort: split
import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn

from dlhw.cli import assembly
from dlhw.cli.build import validate
from dlhw.runtime import threads
from dlhw.storage.answer import Answer
from support import composing
from support.composing import Ask

MOST_WORKERS = 6  # each takes about 1 GB of memory


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run on all cores, unless the options include ``-n``, the names of tests or files, ``-k`` or a debugger."""
    option = config.option
    if not config.pluginmanager.hasplugin("xdist") or hasattr(config, "workerinput"):
        return
    names_tests = any("::" in argument or argument.endswith(".py") for argument in config.args)
    single_process = names_tests or option.usepdb or option.trace or option.collectonly or option.keyword
    if option.numprocesses is None and not option.tx and not single_process and usable_cores() > 1:
        option.numprocesses = usable_cores()
        if option.dist == "no":
            option.dist = "worksteal"  # adjacent tests share fixtures; they stay together until a worker is idle


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return the number of workers for ``-n auto``."""
    return usable_cores()


def usable_cores() -> int:
    """Return the number of cores that this process may use, but at most ``MOST_WORKERS``."""
    return min(threads.usable_cores(), MOST_WORKERS)


settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_configure() -> None:
    """Set what the tests and the processes that they start inherit."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tensors are too small for several threads
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # torch read the environment when it was imported
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores Ctrl-C


@pytest.fixture(scope="session")
def ask() -> Ask:
    """``ask("experiment=jacobian", "study.depths=[3]")``: the answer of a study that reads no data, on the CPU.

    ``network`` is the model that the study examines, if it needs one.
    """

    def run_study(*overrides: str, network: nn.Module | None = None) -> Answer:
        cfg = composing.compose(*overrides)
        components = validate(cfg)
        available = {"seed": cfg.seed, "device": torch.device("cpu"), "network": network}
        arguments = assembly.study_arguments(components)
        assert arguments is not None
        answer: Answer = components["study"].partial(**{name: available[name] for name in arguments})()
        return answer

    return run_study
