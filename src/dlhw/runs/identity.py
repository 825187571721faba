"""Which configs describe the same run, and what may change when a run or a sweep is resumed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import dlhw
from dlhw.errors import UsageError
from dlhw.runs import stored
from dlhw.runs.schemas import Invalid
from dlhw.runtime.paths import read_path, shortened

log = logging.getLogger(__name__)

MAY_DIFFER = ("data_dir", "output_dir", "resume", "comparison")
"""Keys in which two configs of the same run may differ."""
NOT_SETTINGS = ("seed", "name", "hydra", *MAY_DIFFER)
"""Keys in which two runs of the same settings may differ."""
RESUMED_RUN_MAY_CHANGE = ("data_dir", "trainer.epochs")
"""Keys that a command line may override besides ``resume=RUN``."""
RESUMED_SWEEP_MAY_CHANGE = ("data_dir",)
"""Keys that a command line may override besides ``resume=SWEEP``."""
PATHS = ("dataset.cache_dir", "init.run", "study.picture", "study.labels")
"""Options of dlhw's own targets whose values are paths."""
PATHS_IF_PRESENT = ("dataset.root", "dataset.groups", "model.weights")
"""Options whose values are paths if there is such a file or folder.

``dataset.groups`` may also be a regular expression, and ``model.weights`` the name of published weights.
"""
_MOST_DIFFERENCES = 3


def without_hydra(cfg: DictConfig) -> DictConfig:
    """Return a copy of the config without the key ``hydra``."""
    return OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "hydra"])


def to_yaml(cfg: DictConfig) -> str:
    """Return the text of ``config.yaml``: the resolved config, without ``resume`` and with absolute paths."""
    return OmegaConf.to_yaml(_as_stored(cfg), resolve=True)


def _as_stored(cfg: DictConfig) -> DictConfig:
    result = OmegaConf.merge(cfg, {"resume": None})
    assert isinstance(result, DictConfig)
    result.data_dir = _absolute(cfg.get("data_dir"))
    for key in _path_keys(cfg):
        value = OmegaConf.select(cfg, key)
        if key in PATHS:
            OmegaConf.update(result, key, _absolute(value))
            continue
        folders = ("", result.data_dir) if key == "dataset.root" else ("",)  # where PictureFolder.locate searches
        for path in (_absolute(value, folder) for folder in folders):
            if isinstance(path, str) and os.path.exists(path):
                OmegaConf.update(result, key, path)
                break
    return result


def _path_keys(content: Mapping[str, Any]) -> list[str]:
    """Return the keys of ``PATHS`` and ``PATHS_IF_PRESENT`` that a config has."""
    result = []
    for key in (*PATHS, *PATHS_IF_PRESENT):
        name, _, option = key.partition(".")
        group = content.get(name)
        if isinstance(group, Mapping) and str(group.get("_target_")).startswith("dlhw."):
            result += [key] if isinstance(group.get(option), str) else []
    return result


def _absolute(text: Any, folder: str = "") -> Any:
    """Return the absolute path that a value names, in ``folder`` if it is relative; or an invalid path as it is."""
    try:
        return str(Path(folder, read_path(text)).absolute())
    except UsageError:
        return text


def move_paths(cfg: DictConfig, old_data_dir: str) -> None:
    """Change the paths inside an old ``data_dir`` to those inside the config's, in place."""
    for key in _path_keys(cfg):
        path = Path(OmegaConf.select(cfg, key))
        if path.is_absolute() and path.is_relative_to(old_data_dir):
            OmegaConf.update(cfg, key, str(Path(cfg.data_dir, path.relative_to(old_data_dir)).absolute()))


def same_run(cfg: DictConfig, directory: Path) -> bool:
    """Return whether the run in ``directory`` has this config, apart from the keys that may differ."""
    stored = identity_of_run(directory)
    return stored is not None and stored == identity(cfg)


def identity(cfg: DictConfig) -> dict[str, Any] | None:
    """Return the values that are equal for configs of the same run; None if an interpolation has no value."""
    try:
        return _compared(stored.parse_yaml(to_yaml(without_hydra(cfg))))
    except (OmegaConfBaseException, Invalid):
        return None


def identity_of_run(directory: Path) -> dict[str, Any] | None:
    """Return the :func:`identity` of the run in a directory; None without a ``config.yaml`` or if that is invalid.

    An invalid one is logged.
    """
    try:
        content = stored.read_config(directory)
    except stored.Unreadable as error:
        log.warning("%s", error)
        return None
    return None if content is None else _compared(content)


def _compared(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a config that is equal for the same run; paths inside ``data_dir`` are relative to it."""
    result = {name: value for name, value in content.items() if name not in MAY_DIFFER}
    for key in _path_keys(content):
        group, _, name = key.partition(".")
        path = Path(content[group][name])
        if path.is_absolute() and path.is_relative_to(content["data_dir"]):
            inside = path.relative_to(content["data_dir"]).as_posix()
            result[group] = {**result[group], name: f"data_dir/{inside}"}
    return result


def checkpoint_identity(cfg: DictConfig) -> dict[str, Any]:
    """Return what a checkpoint stores of its run: its config without what may change, and the version of dlhw."""
    content: Any = OmegaConf.to_container(_as_stored(without_hydra(cfg) if "hydra" in cfg else cfg), resolve=True)
    return {"config": _kept_by_resume(content), "dlhw": dlhw.__version__}


def _kept_by_resume(content: Mapping[str, Any]) -> dict[str, Any]:
    trainer = {name: value for name, value in content["trainer"].items() if name != "epochs"}
    return _compared({**content, "trainer": trainer})


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return which values differ, such as ``seed: 1 instead of 0``; empty if none does. At most three are named."""
    first, second = dict(_leaves(one)), dict(_leaves(other))
    lines = [
        f"{name}: {shortened(first.get(name, 'missing'), longest=40)} instead of "
        f"{shortened(second.get(name, 'missing'), longest=40)}"
        for name in dict.fromkeys([*second, *first])
        if name not in first or name not in second or first[name] != second[name]
    ]
    more = len(lines) - _MOST_DIFFERENCES
    return ", ".join(lines[:_MOST_DIFFERENCES]) + (f" and {more} more" if more > 0 else "")


def _leaves(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
