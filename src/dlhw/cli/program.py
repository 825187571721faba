"""The command line: what Hydra calls for every run, where the run lies, and which configs are of the same run.

Only this module, ``composition``, ``mistakes``, ``build`` and ``sweeps`` know Hydra. It does not import torch, so that
help and completion answer at once.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dlhw.cli.composition import CONFIG_NAME, PLUGINS, Loader, conf_dir, parsed, prepare, quoted, stop
from dlhw.errors import UsageError
from dlhw.runtime import processes

NOT_COMPARED = ("data_dir", "output_dir", "resume", "comparison")
"""Keys in which two configs of the same run may differ."""
PATHS = (("init", "run"), ("model", "weights"), ("dataset", "cache_dir"))
"""Options that are paths, to what must be found again when the run is resumed."""
_YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Program:
    """What Hydra calls for every config: ``task(cfg, directory, overrides, in_sweep)``.

    ``check(cfg, overrides)`` raises UsageError; overrides are what the run was given on the command line.
    """

    task: Callable[[DictConfig, Path, Sequence[str], bool], None]
    check: Callable[[DictConfig, Sequence[str]], None]

    def __call__(self, cfg: DictConfig) -> None:
        settings = HydraConfig.get()
        in_sweep = settings.mode == RunMode.MULTIRUN
        try:
            self.task(cfg, Path(settings.runtime.output_dir), settings.overrides.task, in_sweep)
        except UsageError as error:
            if in_sweep:
                raise
            stop(error)


def command_line(program: Program) -> None:
    """Run the program as the command line asks.

    A UsageError ends it with its message and exit code 1, Ctrl-C with 130, SIGTERM with 143.
    """
    prepare()
    Loader.ends_program = True
    Loader.composed.clear()
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda text: text not in ("-m", "--multirun"))  # argparse wants it first
    signal.signal(signal.SIGTERM, _terminate)
    try:
        hydra.main(config_path=str(conf_dir()), config_name=CONFIG_NAME, version_base="1.3")(program)()
    except KeyboardInterrupt as interruption:
        caught = signal.SIGTERM if isinstance(interruption, Terminated) else signal.SIGINT
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # on the way out already
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.exit(128 + caught)


def compose(*overrides: str) -> DictConfig:
    """The config that a command line with these overrides gives: for scripts, notebooks and tests.

    Raises UsageError.
    """
    prepare()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra.compose(CONFIG_NAME, overrides=list(overrides))


class Terminated(KeyboardInterrupt):
    """SIGTERM, handled like Ctrl-C."""


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def to_yaml(cfg: DictConfig) -> str:
    """The resolved config as ``config.yaml`` keeps it: that of the run itself, also when it is being resumed."""
    kept: dict[str, Any] = {"resume": None, "data_dir": _absolute(cfg.data_dir)}  # it may be resumed from elsewhere
    for group, name in PATHS:
        path = OmegaConf.select(cfg, f"{group}.{name}")
        if isinstance(path, str) and (name != "weights" or os.path.exists(path)):  # weights may be published ones
            kept.setdefault(group, {})[name] = _absolute(path)
    return OmegaConf.to_yaml(OmegaConf.merge(cfg, kept), resolve=True)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def same_run(cfg: DictConfig, directory: Path) -> bool:
    """Whether the run in ``directory`` has this config, apart from where its data and its directory are."""
    stored = identity_of_run(directory)
    return stored is not None and stored == identity(cfg)


def identity(cfg: DictConfig) -> dict[str, Any] | None:
    """What of a config makes the run, equal for configs of the same run; None where values cannot be resolved."""
    try:
        content = yaml.load(to_yaml(without_hydra(cfg)), _YamlLoader)
    except OmegaConfBaseException:
        return None
    return {name: value for name, value in content.items() if name not in NOT_COMPARED}


def identity_of_run(directory: Path) -> dict[str, Any] | None:
    """The :func:`identity` of the run in a directory; None when there is none."""
    try:
        content = yaml.load((directory / "config.yaml").read_text(), _YamlLoader)
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        return None
    if not isinstance(content, dict):
        return None
    return {name: value for name, value in content.items() if name not in NOT_COMPARED}


def without_hydra(cfg: DictConfig) -> DictConfig:
    """A copy of the config without Hydra's own part."""
    return OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "hydra"])


class ClaimDirectory(Callback):
    """Gives every run, and every sweep but ours, a directory of its own, just before Hydra writes there."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        if processes.rank():  # the first process alone writes the run
            logging.disable()
            config.hydra.run.dir = tempfile.mkdtemp(prefix="dlhw-")
            atexit.register(shutil.rmtree, config.hydra.run.dir, ignore_errors=True)
        elif config.resume is None:
            claim(config, "run", stop)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if processes.world_size() > 1:
            stop(UsageError("torchrun: trains one run with all its processes; start a sweep without it"))
        if config.resume is not None:
            stop(UsageError(f"resume={config.resume}: one run is resumed at a time, without -m"))
        if config.hydra.sweeper._target_ not in PLUGINS:  # ours looks for mistakes first
            claim(config, "sweep", stop)


def claim(config: DictConfig, kind: str, refuse: Callable[[UsageError], NoReturn] | None = None) -> Path:
    """Create the directory of a run or sweep and note it in its config.

    Raises UsageError where there is one, or hands it to ``refuse``: Hydra makes a warning of a callback's errors.
    """
    from dlhw.runs.record import claim_directory  # imports torch

    chosen = names_directory(config, kind)
    try:
        directory = claim_directory(Path(config.hydra[kind].dir), exact=chosen)
    except UsageError as error:
        if refuse is None:
            raise
        refuse(error)
    config.hydra[kind].dir = str(directory)
    if kind == "sweep" and not chosen:
        config.hydra.overrides.hydra.append(quoted(f"hydra.sweep.dir={directory}"))  # for every job alike
    return directory


def check_all_read(cfg: DictConfig, overrides: Sequence[str], *, of: Collection[str], read: Collection[str]) -> None:
    """Raises UsageError for overrides ``of`` these groups and keys that a study does not ``read``."""
    keys = [str(parsed(line).key_or_group) for line in overrides]
    ignored = [key for key in keys if key.partition(".")[0] in of and not {key, key.partition(".")[0]} & {*read}]
    if ignored:
        own = [f"study.{name}" for name in cfg.study if name != "_target_"]
        raise UsageError(
            f"{', '.join(ignored)}: not read by the study {cfg.study._target_.rpartition('.')[2]}, which reads "
            f"{', '.join([*own, *sorted(set(read) - {'study', 'comparison'})])}"
        )


def names_directory(config: DictConfig, kind: str) -> bool:
    """Whether the command line says where the run or sweep is to be."""
    return any(line.startswith(f"hydra.{kind}.dir=") for line in config.hydra.overrides.hydra)
