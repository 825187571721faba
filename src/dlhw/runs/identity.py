"""Which configs describe the same run, and what may change when a run or a sweep is resumed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

MAY_DIFFER = ("data_dir", "output_dir", "resume", "comparison")
"""Keys in which two configs of the same run may differ."""
NOT_SETTINGS = ("seed", "name", "hydra", *MAY_DIFFER)
"""Keys in which two runs of the same settings may differ."""
RESUMED_RUN_MAY_CHANGE = ("data_dir", "trainer.epochs")
"""Keys that a command line may override besides ``resume=RUN``."""
RESUMED_SWEEP_MAY_CHANGE = ("data_dir",)
"""Keys that a command line may override besides ``resume=SWEEP``."""
STORED_ABSOLUTE = (("init", "run"), ("model", "weights"), ("dataset", "cache_dir"))
"""Options that are paths. They are absolute in ``config.yaml``, so that a run can be resumed from another directory."""
_YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def without_hydra(cfg: DictConfig) -> DictConfig:
    """Return a copy of the config without the key ``hydra``."""
    return OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "hydra"])


def to_yaml(cfg: DictConfig) -> str:
    """Return the text of ``config.yaml``: the resolved config, without ``resume`` and with absolute paths."""
    stored: dict[str, Any] = {"resume": None, "data_dir": _absolute(cfg.data_dir)}
    for group, name in STORED_ABSOLUTE:
        path = OmegaConf.select(cfg, f"{group}.{name}")
        if isinstance(path, str) and (name != "weights" or os.path.exists(path)):  # "DEFAULT" names published weights
            stored.setdefault(group, {})[name] = _absolute(path)
    return OmegaConf.to_yaml(OmegaConf.merge(cfg, stored), resolve=True)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def same_run(cfg: DictConfig, directory: Path) -> bool:
    """Return whether the run in ``directory`` has this config, apart from the keys that may differ."""
    stored = identity_of_run(directory)
    return stored is not None and stored == identity(cfg)


def identity(cfg: DictConfig) -> dict[str, Any] | None:
    """Return the values that are equal for configs of the same run; None if an interpolation cannot be resolved."""
    try:
        return _compared(yaml.load(to_yaml(without_hydra(cfg)), _YamlLoader))
    except OmegaConfBaseException:
        return None


def identity_of_run(directory: Path) -> dict[str, Any] | None:
    """Return the :func:`identity` of the run in a directory; None if its ``config.yaml`` is missing or invalid."""
    try:
        content = yaml.load((directory / "config.yaml").read_text(), _YamlLoader)
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        return None
    return _compared(content) if isinstance(content, dict) else None


def _compared(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in MAY_DIFFER}
