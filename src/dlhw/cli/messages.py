"""Describe the mistake in a command line: one line with the key, what is wrong, and the nearest valid key."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf

from dlhw.cli.hydra_internals import ComposingLoader
from dlhw.cli.rules import expected_one_of

Compose = Callable[[list[str]], DictConfig]


def explain(overrides: Sequence[str], loader: ComposingLoader, compose: Compose, error: Exception) -> str:
    """Return one line that says what is wrong with the overrides, or else the first line of Hydra's error."""
    parsed_overrides = []
    for text in overrides:
        try:
            parsed_overrides += OverridesParser.create().parse_overrides([text])
            assert parsed_overrides[-1].key_or_group
        except (HydraException, AssertionError):
            return f"{text}: invalid override; expected key=value, in quotes if it has spaces or commas"
    choices = [override for override in parsed_overrides if loader.has_group(override.key_or_group)]
    for override in choices:
        if override.is_add() and override.key_or_group in loader.list_groups(""):
            return f"{override.input_line}: {override.key_or_group} already exists; remove the +"
        group, option = override.key_or_group, str(override.value())
        options = loader.get_group_options(group)
        if not override.is_sweep_override() and option not in options and not override.is_delete():
            return f"{override.input_line}: unknown {group}{expected_one_of(option, options)}"
    for override in parsed_overrides:
        if override.is_sweep_override() and isinstance(error, ConfigCompositionException) and "multirun" in str(error):
            name = override.key_or_group
            return f"{override.input_line}: a sweep over several values needs -m; expected {name}=[...] for a list"
    cfg = compose([str(override.input_line) for override in choices if not override.is_sweep_override()])
    for override in parsed_overrides:
        if (
            override not in choices
            and not override.is_add()
            and OmegaConf.select(cfg, override.key_or_group, default=cfg) is cfg
        ):
            return f"{override.key_or_group}: unknown key{hint(override.key_or_group, loader, cfg)}"
    return first_line(error)


def hint(name: str, loader: ComposingLoader, cfg: DictConfig) -> str:
    """Return the end of the error for an unknown key: similar keys and groups, or the experiments that have it."""
    experiments = [option for option in loader.get_group_options("experiment") if name in _keys_of(option, loader)]
    if experiments:
        return f"; {name} belongs to experiment={' and experiment='.join(experiments)}"
    groups = [group for group in (*map(str, cfg), "experiment") if loader.has_group(group)]
    keys = [key for key in (*groups, *_leaves(cfg)) if key != name]
    group, _, leaf = name.rpartition(".")
    siblings = [key for key in keys if group and key.startswith(f"{group}.")]
    closest = difflib.get_close_matches(leaf, _last_parts(siblings or keys), 1, cutoff=0.65)
    near = [key for key in siblings or keys if key.rpartition(".")[2] in closest]
    near = near or [key for key in keys if key.rpartition(".")[2] == leaf]
    if near:
        return f"; did you mean {' or '.join(near[:3])}?"
    return f"; expected one of {', '.join(siblings)}" if siblings else "; --cfg job shows all keys"


def _keys_of(experiment: str, loader: ComposingLoader) -> Iterable[str]:
    return map(str, loader.file(f"experiment/{experiment}") or [])


def _leaves(cfg: DictConfig, prefix: str = "") -> Iterable[str]:
    """Yield the dotted names of all keys that hold a value, except ``hydra`` and ``_target_``."""
    for name in map(str, cfg):
        if (not prefix and name == "hydra") or name == "_target_":
            continue
        plain = not OmegaConf.is_missing(cfg, name) and not OmegaConf.is_interpolation(cfg, name)
        node = cfg[name] if plain else None
        if isinstance(node, DictConfig):
            yield from _leaves(node, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _last_parts(keys: Sequence[str]) -> list[str]:
    return [key.rpartition(".")[2] for key in keys]


def first_line(error: BaseException) -> str:
    """Return the first line of the innermost cause of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0]
