"""The rules that dlhw adds to Hydra's composition, as pure functions of configs and overrides.

- An experiment's values for a group are dropped when another option of that group is chosen.
- Every top-level key must be read by some value of the config.
- A key that selects an entry of another key, as ``size`` does in ``${sizes.${size}.epochs}``, must name one.
- A resumed run keeps its config, and a resumed sweep its overrides; only a few keys may change.
- A study rejects overrides of groups and keys that it does not read.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from dlhw.cli.hints import expected_one_of
from dlhw.cli.hydra_internals import Reference, references
from dlhw.errors import UsageError
from dlhw.runs.identity import RESUMED_RUN_MAY_CHANGE, RESUMED_SWEEP_MAY_CHANGE

Selections = Collection[tuple[str, str]]


def readers(cfg: DictConfig) -> dict[str, list[str]]:
    """Return the dotted names of the values that refer to a top-level key, for each such key."""
    result: dict[str, list[str]] = {}
    for path, reference in _references(cfg):
        start = path[: len(path) - reference.dots] if reference.dots else ()
        name = (*start, *reference.keys)[0]
        if isinstance(name, str) and ".".join(path) not in result.setdefault(name, []):
            result[name].append(".".join(path))
    return result


def selections(cfg: DictConfig) -> tuple[tuple[str, str], ...]:
    """Return pairs such as ``("sizes", "size")``, where the second key's value selects an entry of the first."""
    pairs: dict[tuple[str, str], None] = {}
    for _, reference in _references(cfg):
        match reference:
            case Reference((str(entries), Reference((str(name),), 0), *_), 0):
                pairs[entries, name] = None
    return tuple(pairs)


def _references(cfg: DictConfig) -> Iterator[tuple[tuple[str, ...], Reference]]:
    """Yield every reference in the config, with the path of the value that contains it."""
    for path, value in _values(OmegaConf.to_container(cfg, resolve=False)):
        if isinstance(value, str):
            yield from ((path, reference) for reference in references(value))


def _values(content: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield all values in nested dictionaries and lists, with their paths."""
    if isinstance(content, dict | list):
        for name, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _values(value, (*path, str(name)))
    else:
        yield path, content


def without_replaced_groups(
    experiment: DictConfig, experiment_choices: Mapping[str, str | None], choices: Mapping[str, str | None]
) -> DictConfig:
    """Return an experiment's config without the groups for which another option than the experiment's is chosen."""
    replaced = [
        group for group, option in experiment_choices.items() if choices.get(group) != option and group in experiment
    ]
    return _without(experiment, replaced)


def with_open_options(cfg: DictConfig, groups: Collection[str]) -> DictConfig:
    """Return the config, in which options that are mappings accept new keys: ``trainer.rates={fc.*: 0.1}``."""
    result = copy.deepcopy(cfg)
    for options in [result[group] for group in result if group in groups]:
        for name in map(str, options) if isinstance(options, DictConfig) else ():
            plain = not OmegaConf.is_missing(options, name) and not OmegaConf.is_interpolation(options, name)
            if plain and isinstance(options[name], DictConfig):
                OmegaConf.set_struct(options[name], False)
    return result


def without_unread_keys(
    cfg: DictConfig,
    *,
    known: Collection[str],
    overridden: Collection[str],
    experiment_readers: Mapping[str, Sequence[str]],
    hint: Callable[[str], str],
) -> DictConfig:
    """Return the config without the experiment's top-level keys that no value reads any more.

    Args:
        cfg: the composed config.
        known: top-level keys that the program itself reads.
        overridden: top-level keys that the command line overrides.
        experiment_readers: :func:`readers` of the experiment's files.
        hint: the end of the error for a key that the experiment does not have either.

    Raise UsageError for any other key that no value reads.
    """
    read = {*known, *readers(cfg)}
    unread = [str(name) for name in cfg if name not in read]
    for name in unread:
        if name not in experiment_readers:
            raise UsageError(f"{name}: unused key; no value in this config reads it{hint(name)}")
        if name in overridden:
            values = " and ".join(experiment_readers[name])
            raise UsageError(f"{name}: unused key; the experiment reads it only in {values}, which is overridden")
    return _without(cfg, unread) if unread else cfg


def _without(cfg: DictConfig, names: Collection[str]) -> DictConfig:
    result = copy.deepcopy(cfg)
    with open_dict(result):
        for name in names:
            del result[name]
    return result


def require_listed_entries(cfg: DictConfig, pairs: Selections) -> None:
    """Raise UsageError if the value of a pair's second key is not an entry of its first; see :func:`selections`."""
    for entries, name in pairs:
        valid, selected = list(map(str, cfg.get(entries) or ())), str(cfg.get(name))
        if name in cfg and selected not in valid:
            raise UsageError(f"{name}={selected}: unknown {name}{expected_one_of(selected, valid)}")


def changes_of_resumed_run(overrides: Sequence[Override]) -> dict[str, Any]:
    """Return the values that the overrides besides ``resume=RUN`` change. Raise UsageError for a fixed key."""
    changed = [override for override in overrides if not override.key_or_group.startswith("hydra")]
    for override in changed:
        if override.key_or_group not in ("resume", *RESUMED_RUN_MAY_CHANGE):
            raise UsageError(
                f"{override.input_line}: invalid with resume, because a resumed run keeps its config; "
                f"expected only {' and '.join(RESUMED_RUN_MAY_CHANGE)}"
            )
    return {override.key_or_group: override.value() for override in changed}


def resumed_config(composed: DictConfig, stored: DictConfig, changes: Mapping[str, Any], directory: Path) -> DictConfig:
    """Return the config of the run in ``directory``, with Hydra's part of the composed config and the changes.

    Raise UsageError if the number of epochs changes and the learning-rate schedule depends on it.
    """
    result = _without(composed, [str(name) for name in composed if name != "hydra"])
    with open_dict(result):
        for name, node in stored.items():
            result[name] = node
        result.hydra.run.dir = str(directory)
        result.hydra.output_subdir = None
    epochs = result.trainer.epochs
    for name, value in changes.items():
        OmegaConf.update(result, name, value)
    if result.trainer.epochs != epochs and "epochs" in result.scheduler:
        raise UsageError(
            f"trainer.epochs={result.trainer.epochs}: the learning-rate schedule of this run depends on its "
            f"number of epochs; expected {epochs}"
        )
    result.resume = str(directory)
    return result


def overrides_of_resumed_sweep(
    stored: DictConfig, overrides: Sequence[Override], parse: Callable[[str], Override]
) -> list[str]:
    """Return the overrides in a sweep's ``multirun.yaml``, then those of the command line without ``resume=SWEEP``.

    The options of the stored launcher or sweeper are dropped if the command line names another one. Raise UsageError
    for an override of a key that may not change.
    """
    for override in overrides:
        if not override.is_hydra_override() and override.key_or_group not in ("resume", *RESUMED_SWEEP_MAY_CHANGE):
            raise UsageError(
                f"{override.input_line}: invalid with resume, because a resumed sweep keeps its overrides; "
                f"expected only {' and '.join(RESUMED_SWEEP_MAY_CHANGE)}"
            )
    added = [str(override.input_line) for override in overrides if override.key_or_group != "resume"]
    replaced = {"hydra.sweep.dir", "hydra.mode", "data_dir"}
    without_options = []
    for override in overrides:
        if override.key_or_group in ("hydra/launcher", "hydra/sweeper"):
            replaced.add(override.key_or_group)
            stored_choices = OmegaConf.select(stored, "hydra.runtime.choices", default={})
            if stored_choices.get(override.key_or_group) != override.value():
                without_options.append(override.key_or_group.replace("/", "."))

    def is_kept(text: str) -> bool:
        key = parse(text).key_or_group
        return key not in replaced and not any(f"{key}.".startswith(f"{group}.") for group in without_options)

    return [*filter(is_kept, [*stored.hydra.overrides.hydra, *stored.hydra.overrides.task]), *added]


def require_read_by_study(
    study: str, overridden: Sequence[str], *, groups: Collection[str], options: Sequence[str], read: Collection[str]
) -> None:
    """Raise UsageError for overridden keys of these groups that the study does not read.

    Args:
        study: the study's name.
        overridden: the keys and groups that the command line overrides.
        groups: the groups and top-level keys that are read only if the study needs them.
        options: the study's own options.
        read: the other groups and keys that this study reads.
    """
    valid = {"study", "comparison", *read}
    unused = [key for key in overridden if key.partition(".")[0] in groups and not {key, key.partition(".")[0]} & valid]
    if unused:
        expected = ", ".join([*options, *sorted(read)])
        raise UsageError(f"{', '.join(unused)}: not read by the study {study}; expected one of {expected}")
