"""Which configs describe the same run, and what may change when a run or a sweep is resumed."""

from __future__ import annotations

import functools
import logging
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

import dlhw
from dlhw.runtime.paths import shortened
from dlhw.storage import stored
from dlhw.storage.schemas import Invalid

log = logging.getLogger(__name__)

MAY_DIFFER = ("data_dir", "output_dir", "resume", "comparison", "logger")
"""Keys in which two configs of the same run may differ."""
NOT_SETTINGS = ("seed", "name", "hydra", *MAY_DIFFER)
"""Keys in which two runs of the same settings may differ."""
RESUMED_RUN_MAY_CHANGE = ("data_dir", "trainer.epochs", "logger")
"""Keys that a command line may override besides ``resume=RUN``, with their options."""
RESUMED_SWEEP_MAY_CHANGE = ("data_dir", "logger")
"""Keys that a command line may override besides ``resume=SWEEP``, with their options."""
STORED_ABSOLUTE = (("init", "run"), ("model", "weights"), ("dataset", "cache_dir"))
"""Options that are paths. They are absolute in ``config.yaml``, so that a run can be resumed from another directory."""
_MOST_DIFFERENCES = 3


def is_among(key: str, names: Sequence[str]) -> bool:
    """Return whether a key of the command line is one of these, or an option of a group among them."""
    return any(f"{key}.".startswith(f"{name}.") for name in names)


def without_hydra(cfg: DictConfig) -> DictConfig:
    """Return the config without the key ``hydra``: itself if it has none, else a copy."""
    return OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "hydra"]) if "hydra" in cfg else cfg


def copied(cfg: DictConfig) -> DictConfig:
    """Return a copy of a whole config. This is five times as fast as ``copy.deepcopy``."""
    result: DictConfig = pickle.loads(pickle.dumps(cfg))
    return result


def to_yaml(cfg: DictConfig, resolved: Mapping[str, Any] | None = None) -> str:
    """Return the text of ``config.yaml``: the resolved config, without ``resume`` and with absolute paths.

    ``resolved`` holds the resolved values if they are known; to resolve a config takes some milliseconds.
    """
    return yaml_text(_as_stored(cfg, resolved))


def yaml_text(content: Mapping[str, Any], *, above: tuple[str, ...] = ()) -> str:
    """Return the text of a mapping as ``OmegaConf.to_yaml`` does, or its part of the text of ``{above: content}``.

    The texts of parts are kept, because most of them are equal in all jobs of a sweep.
    """
    return "".join(_yaml_of_entry(pickle.dumps(((*above, name), value))) for name, value in content.items())


@functools.lru_cache(maxsize=8192)
def _yaml_of_entry(pickled: bytes) -> str:
    """Return the lines of the last key of a path, from (path, value). Their line breaks depend on the depth."""
    path, value = pickle.loads(pickled)
    header = _yaml_of_entry(pickle.dumps((path, {}))) if isinstance(value, Mapping) and value else ""
    if header.count("\n") == 1:  # keys that are too long have two lines
        return header.removesuffix(" {}\n") + "\n" + yaml_text(value, above=path)
    entry = value
    for name in reversed(path):
        entry = {name: entry}
    lines = OmegaConf.to_yaml(OmegaConf.create(entry)).splitlines(keepends=True)
    return "".join(lines[len(path) - 1 :])


def _as_stored(cfg: DictConfig, resolved: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the resolved content of ``config.yaml``."""
    content = resolved or _resolved(cfg)
    values = absolute_paths(content) | {"resume": None}
    if all(_contains(content, name, value) for name, value in values.items()):
        return dict(content)
    if "${" not in str(_merged(_unresolved(cfg), values)):
        return _merged(content, values)
    cfg = copied(cfg)
    with read_write(cfg), open_dict(cfg):
        cfg.merge_with(values)  # other values may refer to these
    return _resolved(cfg)


def absolute_paths(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a resolved config that are stored as absolute paths."""
    paths: dict[str, Any] = {}
    if isinstance(content.get("data_dir"), str):
        paths["data_dir"] = _absolute(content["data_dir"])
    for group, name in STORED_ABSOLUTE:
        path = content[group].get(name) if isinstance(content.get(group), Mapping) else None
        if isinstance(path, str) and (name != "weights" or os.path.exists(path)):  # "DEFAULT" names published weights
            paths.setdefault(group, {})[name] = _absolute(path)
    return paths


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    content: Any = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    return dict(content)


def _unresolved(cfg: DictConfig) -> dict[str, Any]:
    content: Any = OmegaConf.to_container(cfg)
    return dict(content)


def _contains(content: Mapping[str, Any], name: str, value: Any) -> bool:
    if name not in content or not isinstance(value, Mapping):
        return name in content and content[name] == value
    return all(_contains(content[name], inner, other) for inner, other in value.items())


def _merged(content: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content with other values in mappings that it has; a reference to a mapping stays."""
    result = dict(content)
    for name, value in values.items():
        if not isinstance(value, Mapping):
            result[name] = value
        elif isinstance(content[name], Mapping):
            result[name] = _merged(content[name], value)
    return result


def _absolute(path: str) -> str:
    return str(Path(os.path.expanduser(path)).absolute())


def continues_run(cfg: DictConfig, directory: Path) -> bool:
    """Return whether the run in ``directory`` has this config, apart from the keys that may differ and fewer epochs."""
    stored, wanted = identity_of_run(directory), identity(cfg)
    if stored is None or wanted is None or without_epochs(stored) != without_epochs(wanted):
        return False
    epochs: bool = stored["trainer"]["epochs"] <= wanted["trainer"]["epochs"]
    return epochs


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
    return {
        name: value for name, value in content.items() if name not in MAY_DIFFER and (name, value) != ("debug", False)
    }


def checkpoint_identity(cfg: DictConfig, resolved: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what a checkpoint stores of its run: its config without what may change, and the version of dlhw.

    ``resolved`` is that of :func:`to_yaml`.
    """
    content = _as_stored(without_hydra(cfg), resolved)
    return {"config": without_epochs(_compared(content)), "dlhw": dlhw.__version__}


def without_epochs(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without ``trainer.epochs``, which may change when a run is resumed."""
    return {**content, "trainer": {name: value for name, value in content["trainer"].items() if name != "epochs"}}


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return which values differ, such as ``seed: 1 instead of 0``; empty if none does. At most three are named."""
    first, second = dict(leaves(one)), dict(leaves(other))
    lines = [
        f"{name}: {shortened(first.get(name, 'missing'), longest=40)} instead of "
        f"{shortened(second.get(name, 'missing'), longest=40)}"
        for name in dict.fromkeys([*second, *first])
        if name not in first or name not in second or first[name] != second[name]
    ]
    more = len(lines) - _MOST_DIFFERENCES
    return ", ".join(lines[:_MOST_DIFFERENCES]) + (f" and {more} more" if more > 0 else "")


def leaves(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys of nested mappings, such as ``optimizer.lr``, with their values."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
