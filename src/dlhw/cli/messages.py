"""What is wrong with a command line that cannot be composed: one line with the key, the reason, the nearest key."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf

Compose = Callable[[list[str]], DictConfig]


def explain(overrides: Sequence[str], loader: ConfigLoaderImpl, compose: Compose, error: Exception) -> str:
    """One line for what is wrong with the overrides, or Hydra's own first line."""
    parsed = []
    for text in overrides:
        try:
            parsed += OverridesParser.create().parse_overrides([text])
            assert parsed[-1].key_or_group
        except (HydraException, AssertionError):
            return f"{text}: cannot be read as an override; write key=value, quoted if it holds spaces or commas"
    choices = [line for line in parsed if loader.repository.group_exists(line.key_or_group)]
    for line in choices:
        if line.is_add() and line.key_or_group in loader.list_groups(""):
            return f"{line.input_line}: {line.key_or_group} is there already; leave out the +"
        options = loader.get_group_options(line.key_or_group)
        if not line.is_sweep_override() and str(line.value()) not in options and not line.is_delete():
            return f"{line.input_line}: no such {line.key_or_group}{among(str(line.value()), options)}"
    for line in parsed:
        if line.is_sweep_override() and isinstance(error, ConfigCompositionException) and "multirun" in str(error):
            name = line.key_or_group
            return f"{line.input_line}: several values are a sweep, which needs -m; a list is written {name}=[...]"
    cfg = compose([str(line.input_line) for line in choices if not line.is_sweep_override()])
    for line in parsed:
        if line not in choices and not line.is_add() and OmegaConf.select(cfg, line.key_or_group, default=cfg) is cfg:
            return f"{line.key_or_group}: no such key{hint(line.key_or_group, loader, cfg)}"
    return first_line(error)


def among(word: str, legal: Sequence[str]) -> str:
    """`; did you mean ...? (there are: ...)` for a word that is not legal."""
    near = difflib.get_close_matches(word, legal, 1)
    return f"{f'; did you mean {near[0]}?' if near else ''} (there are: {', '.join(legal)})"


def hint(name: str, loader: ConfigLoaderImpl, cfg: DictConfig) -> str:
    """`; did you mean ...?` for a key that is not there, or the experiments that have it."""
    knobs = [option for option in loader.get_group_options("experiment") if name in _own_keys(option, loader)]
    if knobs:
        return f"; {name} is a knob of experiment={' and experiment='.join(knobs)}"
    keys = [key for key in _leaves(cfg) if key != name]
    group, _, leaf = name.rpartition(".")
    siblings = [key for key in keys if group and key.startswith(f"{group}.")]
    closest = difflib.get_close_matches(leaf, _last_parts(siblings or keys), 1, cutoff=0.65)
    near = [key for key in siblings or keys if key.rpartition(".")[2] in closest]
    near = near or [key for key in keys if key.rpartition(".")[2] == leaf]
    if near:
        return f"; did you mean {' or '.join(near[:3])}?"
    return f"; {group} has {', '.join(_last_parts(siblings))}" if siblings else "; --cfg job shows all keys"


def _own_keys(experiment: str, loader: ConfigLoaderImpl) -> Iterable[str]:
    loaded = loader.repository.load_config(f"experiment/{experiment}")
    return [] if loaded is None else [str(key) for key in loaded.config]


def _leaves(cfg: DictConfig, prefix: str = "") -> Iterable[str]:
    """Dotted names of all keys that hold a value, Hydra's own and ``_target_`` left out."""
    for name in map(str, cfg):
        if (not prefix and name == "hydra") or name == "_target_":
            continue
        node = None if OmegaConf.is_missing(cfg, name) else cfg._get_node(name)
        if isinstance(node, DictConfig) and not node._is_none():
            yield from _leaves(node, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _last_parts(keys: Sequence[str]) -> list[str]:
    return [key.rpartition(".")[2] for key in keys]


def first_line(error: BaseException) -> str:
    """What the innermost cause of an error says."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0]
