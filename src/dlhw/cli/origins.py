"""Find the config file and the option of a group that a value of a config comes from."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dlhw.errors import UsageError
from dlhw.runtime.paths import printable
from dlhw.storage.identity import RESUMED_RUN_MAY_CHANGE, is_among
from dlhw.storage.stored import INVALID_VALUES

FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def content(path: Path, *, loader: Any = yaml.SafeLoader) -> dict[Any, Any]:
    """Return the content of a config file by itself; empty if it cannot be read."""
    try:
        result = yaml.load(path.read_text(encoding="utf-8"), loader)
    except (yaml.YAMLError, OSError, RecursionError, *INVALID_VALUES):
        return {}
    return result if isinstance(result, dict) else {}


def includes(name: str, values: Mapping[Any, Any]) -> list[str]:
    """Return the names of the files that the file with this name and these values includes as a whole."""
    folder = name.rpartition("/")[0]
    defaults = values.get("defaults")
    paths = [line for line in defaults if isinstance(line, str)] if isinstance(defaults, list) else []
    return [path[1:] if path.startswith("/") else f"{folder}/{path}" for path in paths if path != "_self_"]


def option(cfg: DictConfig, group: str, shipped: Path) -> str | None:
    """Return the option of a group that a config uses, as on the command line; None if no file has its target.

    A resumed or finished run does not say which option was chosen. Of several options with the same target, it is then
    the one whose values differ least from the config's.
    """
    hydra = _hydra(cfg)
    target = cfg[group].get("_target_")
    options = {
        name: values
        for name, values in _options(group, (shipped, *_own_folders(hydra))).items()
        if values.get("_target_") == target
    }
    if hydra is not None and ("hydra" in cfg or hydra.mode == RunMode.RUN):  # else the choices are those of a sweep
        chosen = hydra.runtime.choices.get(group)
        if chosen in options:
            return str(chosen)
    values = OmegaConf.to_container(cfg[group], resolve=False)
    assert isinstance(values, dict)
    return min(options, key=lambda name: _difference(options[name], values), default=None)


def override_lines(hydra: Any, kind: Literal["hydra", "task"]) -> list[str]:
    """Return the overrides in Hydra's part of a config, as written: they may contain invalid interpolations."""
    lines: Any = OmegaConf.to_container(hydra.overrides[kind], resolve=False)
    return list(map(str, lines))


@contextlib.contextmanager
def located(cfg: DictConfig) -> Iterator[None]:
    """Begin each line of a UsageError with the :func:`location` of the key that it is about."""
    try:
        yield
    except UsageError as error:
        raise UsageError("\n".join(f"{location(cfg, line)}{line}" for line in str(error).splitlines())) from error


def location(cfg: DictConfig, message: str) -> str:
    """Return ``FILE:LINE: `` of the person's file that sets the key at the beginning of a message.

    For a resumed run this is its ``config.yaml``. For a missing option it is the file without a line. It is empty if
    the command line or a shipped file sets the key.
    """
    match = re.match(r"\w+(\.\w+)*", message)
    key = match[0] if match else ""
    if cfg.get("resume") is not None:
        in_file = key and not is_among(key, ("resume", *RESUMED_RUN_MAY_CHANGE))
        return f"{printable(Path(cfg.resume, 'config.yaml'))}: " if in_file else ""
    hydra = _hydra(cfg)
    folders = _own_folders(hydra)
    if not folders or not key:
        return ""
    choices = {str(group): str(name) for group, name in hydra.runtime.choices.items()}
    if key in (hydra.sweeper.get("params") or ()):
        return ""
    for line in override_lines(hydra, "task"):
        name, _, value = line.lstrip("+~").partition("=")
        chooses = name in choices and not value.startswith("{")
        if not chooses and f"{key}.".startswith(f"{name}."):
            return ""
    ordered = sorted(choices.items(), key=lambda item: item[0] != "experiment")  # its values replace those of options
    for group, name in ordered:
        prefix = "" if group == "experiment" else f"{group.replace('/', '.')}."
        for path in _files(f"{group}/{name}", folders) if key.startswith(prefix) else ():
            number = _line_of(key.removeprefix(prefix).split("."), path)
            if number is not None:
                return f"{printable(path)}:{number}: "
    own = next(_files(f"{key.partition('.')[0]}/{choices.get(key.partition('.')[0])}", folders), None)
    return f"{printable(own)}: " if own is not None and "." in key else ""


def _hydra(cfg: DictConfig) -> Any:
    """Return the ``hydra`` section of a config, or of the command line being executed; None for a resumed run."""
    if cfg.get("resume") is not None:
        return None
    return cfg.hydra if "hydra" in cfg else HydraConfig.get() if HydraConfig.initialized() else None


def _own_folders(hydra: Any) -> tuple[Path, ...]:
    """Return the folders with config files of the person, in the order in which Hydra reads them."""
    sources = hydra.runtime.config_sources if hydra is not None else ()
    return tuple(
        Path(source.path) for source in sources if source.schema == "file" and source.provider not in ("main", "hydra")
    )


def _difference(option: Mapping[str, Any], values: Mapping[Any, Any]) -> float:
    """Return how many values of an option differ; one that an option leaves open counts half."""
    return sum(0.5 if value == "???" else 1 for key, value in option.items() if values.get(key) != value)


@functools.lru_cache(maxsize=256)
def _options(group: str, folders: tuple[Path, ...]) -> dict[str, dict[str, Any]]:
    """Return the values of each option of a group, with those of the options that it includes."""
    files = {path.stem: path for folder in reversed(folders) for path in sorted((folder / group).glob("*.yaml"))}

    def values(name: str, chain: tuple[str, ...] = ()) -> dict[str, Any]:
        own = content(files[name], loader=FAST_LOADER if files[name].is_relative_to(folders[0]) else yaml.SafeLoader)
        included = [path.rpartition("/")[2] for path in includes(f"{group}/{name}", own)]
        result: dict[str, Any] = {}
        for other in included:
            result |= values(other, (*chain, name)) if other in files and other not in chain else {}
        return result | {key: value for key, value in own.items() if key != "defaults"}

    return {name: values(name) for name in sorted(files)}


def _files(name: str, folders: Sequence[Path], seen: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield the person's file with this name, then those that it includes."""
    path = next((path for folder in folders if (path := folder / f"{name}.yaml").is_file()), None)
    if path is not None:
        yield path
        for included in includes(name, content(path)):
            if included not in seen:
                yield from _files(included, folders, (*seen, name))


def _line_of(keys: Sequence[str], path: Path) -> int | None:
    """Return the line of a nested key in a YAML file; None if it is not there."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    except (yaml.YAMLError, OSError, RecursionError, *INVALID_VALUES):
        return None
    line = None
    for key in keys:
        entries = node.value if isinstance(node, yaml.MappingNode) else ()
        match = next((entry for entry in entries if entry[0].value == key), None)
        if match is None:
            return None
        line, node = match[0].start_mark.line + 1, match[1]
    return line
