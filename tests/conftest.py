"""What several test files share: composing a config as the command line does, and asking a study."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
import torch
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.singleton import Singleton
from hydra.types import RunMode
from omegaconf import DictConfig
from torch import nn

from dlhw.cli import assembly, composition
from dlhw.cli.build import validate
from dlhw.runs.answer import Answer

Compose = Callable[..., DictConfig]
Ask = Callable[..., Answer]


def pytest_configure() -> None:
    """Settle what the tests and the processes they start inherit, before torch is imported."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tensors are tiny: more threads only wait for each other
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C


@pytest.fixture(scope="session")
def compose() -> Compose:
    """``compose("model=cnn", ...)``: the config of a command line, Hydra's own part included."""

    def composed(*overrides: str, sweep: bool = False) -> DictConfig:
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

    return composed


@pytest.fixture(scope="session")
def ask(compose: Compose) -> Ask:
    """``ask("experiment=jacobian", "study.depths=[3]")``: what a study that reads no data answers, on the CPU.

    One that asks a network is given ``network``.
    """

    def asked(*overrides: str, network: nn.Module | None = None) -> Answer:
        cfg = compose(*overrides)
        components = validate(cfg)
        given = {"seed": cfg.seed, "device": torch.device("cpu"), "network": network}
        arguments = assembly.study_arguments(components)
        assert arguments is not None
        answer: Answer = components["study"].partial(**{name: given[name] for name in arguments})()
        return answer

    return asked
