"""What several test files share: composing a config as the command line does, and asking a study."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.singleton import Singleton
from hydra.types import RunMode
from hypothesis import HealthCheck, settings
from omegaconf import DictConfig
from torch import nn

from dlhw.cli import assembly, composition
from dlhw.cli.build import validate
from dlhw.runs.answer import Answer
from support.composing import Ask, Compose
from support.composing import compose as composed

MOST_WORKERS = 6  # each takes about 1 GB of memory


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run on all cores, unless ``-n`` says otherwise, tests are named one by one, or a debugger is asked for."""
    option = config.option
    if not config.pluginmanager.hasplugin("xdist") or hasattr(config, "workerinput"):
        return
    named = any("::" in argument or argument.endswith(".py") for argument in config.args)
    alone = named or option.usepdb or option.trace or option.collectonly or option.keyword
    if option.numprocesses is None and not option.tx and not alone and usable_cores() > 1:
        option.numprocesses = usable_cores()
        if option.dist == "no":
            option.dist = "worksteal"  # neighbours, which share fixtures, stay together until a worker has nothing left


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """The number of workers for ``-n auto``."""
    return usable_cores()


def usable_cores() -> int:
    """The number of cores that this process may use, as far as there is memory for so many workers."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # a container may have a share of all cores
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, round(int(quota) / int(period)) or 1)
    return min(cores, MOST_WORKERS)


settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_configure() -> None:
    """Settle what the tests and the processes they start inherit, before torch is imported."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tensors are tiny: more threads only wait for each other
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C


@pytest.fixture(scope="session")
def compose() -> Compose:
    """``compose("model=cnn", ...)``: the config of a command line, Hydra's own part included."""

    @functools.lru_cache(256)
    def options_chosen(*overrides: str) -> DictConfig:
        return in_full(*overrides)

    def from_command_line(*overrides: str, sweep: bool = False) -> DictConfig:
        if not sweep and all(re.fullmatch(r"(?!resume)[\w/]+=\w+", line) for line in overrides):
            return copy.deepcopy(options_chosen(*overrides))
        return in_full(*overrides, sweep=sweep)

    def in_full(*overrides: str, sweep: bool = False) -> DictConfig:
        composition.prepare()
        before = Singleton.get_state()
        hydra = Hydra.create_main_hydra2("train", create_config_search_path(str(composition.conf_dir())))
        try:
            return hydra.compose_config(
                composition.CONFIG_NAME,
                list(overrides),
                run_mode=RunMode.MULTIRUN if sweep else RunMode.RUN,
                with_log_configuration=False,
            )
        finally:
            Singleton.set_state(before)

    return from_command_line


@pytest.fixture(scope="session")
def ask() -> Ask:
    """``ask("experiment=jacobian", "study.depths=[3]")``: what a study that reads no data answers, on the CPU.

    One that asks a network is given ``network``.
    """

    def asked(*overrides: str, network: nn.Module | None = None) -> Answer:
        cfg = composed(*overrides)
        components = validate(cfg)
        given = {"seed": cfg.seed, "device": torch.device("cpu"), "network": network}
        arguments = assembly.study_arguments(components)
        assert arguments is not None
        answer: Answer = components["study"].partial(**{name: given[name] for name in arguments})()
        return answer

    return asked
