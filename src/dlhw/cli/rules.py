"""The rules that dlhw adds to Hydra's composition, as functions of configs and overrides.

- An experiment's values for a group are dropped when another option of that group is chosen.
- Every top-level key must be read by some value of the config.
- A key that selects an entry of another key, as ``size`` does in ``${sizes.${size}.epochs}``, must name one.
- A study rejects overrides of groups and keys that it does not read.
- A study of training rejects an experiment that is a study itself.
- The seed, the name and the directories are valid before anything is created.

Only :func:`check_program_keys` edits the config that it is given: it replaces ``~`` in paths.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from dlhw.cli.hydra_internals import Reference, references
from dlhw.errors import UsageError
from dlhw.runtime.bounds import LARGEST_SEED
from dlhw.runtime.hints import either, expected_one_of, nearest
from dlhw.runtime.paths import is_listed_in, is_reserved, places_of, printable, read_path, shortened
from dlhw.storage.directories import DEBUG_FOLDER
from dlhw.storage.identity import without_hydra

Selections = Collection[tuple[str, str]]
CLAIM = "hydra.callbacks.directory._target_"
HYDRA_KEYS = ("hydra.output_subdir", "hydra.job.chdir", CLAIM)
"""Keys of Hydra, besides its directories, that a run depends on."""
STUDIES_OF_TRAINING = ("find_lr",)
"""Studies that make sense only for a config that trains."""


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


def require_training(experiment: str, own: str | None, chosen: str | None) -> None:
    """Raise UsageError if a study of training is chosen for an experiment that does not train.

    Args:
        experiment: the name of the experiment.
        own: the study of the experiment; ``none`` if it trains.
        chosen: the study with the overrides of the command line.
    """
    if chosen in STUDIES_OF_TRAINING and own not in ("none", chosen):
        raise UsageError(
            f"study={chosen}: experiment={experiment} does not train, because it is study={own}; expected an "
            "experiment that trains"
        )


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
    valid = {"study", "comparison", "logger", *read}
    unused = [key for key in overridden if key.partition(".")[0] in groups and not {key, key.partition(".")[0]} & valid]
    if unused:
        expected = ", ".join([*options, *sorted(read)])
        raise UsageError(f"{', '.join(unused)}: not read by the study {study}; expected one of {expected}")


def check_program_keys(cfg: DictConfig, mode: RunMode) -> None:
    """Validate the seed, the name and the directories of a run or sweep, and replace ``~`` in paths, in place.

    Raise UsageError with one line per mistake.
    """
    mistakes = _debug_mistakes(cfg)
    kind = "run" if mode == RunMode.RUN else "sweep"
    for key in ("name", "seed", "data_dir", "output_dir", *HYDRA_KEYS, f"hydra.{kind}.dir"):
        if mistakes and key.startswith("hydra."):
            break  # these values contain the others
        try:
            value = _required_value(cfg, key)
            if key.endswith("dir") and key not in HYDRA_KEYS:
                setting = _setting(cfg, key)
                path = str(read_path(value, key=setting))
                _require_storable(setting, path)
                if path != value:
                    OmegaConf.update(cfg, key, path)
            elif requirement := _unmet_requirement(key, value):
                mistakes.append(f"{key}={as_written(value)}: {requirement}")
        except UsageError as error:
            mistakes.append(str(error))
    if mistakes:
        raise UsageError("\n".join(dict.fromkeys(mistakes)))
    _require_outside_pictures(cfg, kind)


def _debug_mistakes(cfg: DictConfig) -> list[str]:
    """Return a line for an invalid ``debug``, and for a run with the name of the folder of runs with debug=true."""
    present = [key for key in ("debug", "name") if key in cfg]  # configs of earlier versions have no debug
    literal = {key: cfg[key] for key in present if not OmegaConf.is_interpolation(cfg, key)}
    lines = []
    if not isinstance(literal.get("debug", False), bool):
        lines.append(f"debug={as_written(cfg.debug)}: must be true or false")
    if literal.get("name") == DEBUG_FOLDER:
        lines.append(f"name={DEBUG_FOLDER}: the folder of runs with debug=true; expected another name")
    return lines


def _setting(cfg: DictConfig, key: str) -> str:
    """Return what a message about the value of a key starts with: the environment variable that sets it, or the key."""
    if "." in key or not OmegaConf.is_interpolation(cfg, key):
        return key
    values: Any = OmegaConf.to_container(OmegaConf.masked_copy(cfg, key), resolve=False)
    variable = re.match(r"\$\{oc\.env:(\w+)", values[key])
    return f"environment variable {variable[1]}" if variable and variable[1] in os.environ else key


def _require_storable(setting: str, path: str) -> None:
    """Raise UsageError if a directory, or a path relative to the working directory, would be read as a reference."""
    if "${" in path:
        raise UsageError(f"{setting}={shortened(path)}: must not contain ${{, which begins a reference in a config")
    if "${" in os.getcwd():
        raise UsageError(
            f"{shortened(os.getcwd())}: the path of the working directory must not contain ${{, which begins a "
            "reference in a config; start in another directory"
        )


def _require_outside_pictures(cfg: DictConfig, kind: str) -> None:
    """Raise UsageError if the directory of the ``run`` or ``sweep`` would be among the pictures of its dataset."""
    try:
        target, root = (OmegaConf.select(cfg, f"dataset.{name}") for name in ("_target_", "root"))
        folders = places_of(read_path(root), Path(cfg.data_dir))
    except (OmegaConfBaseException, UsageError):  # validating the dataset reports an invalid root
        return
    folder = next((path for path in folders if os.path.isdir(path)), None)
    if folder is None or not str(target).startswith("dlhw."):
        return
    directory, output_dir = Path(cfg.hydra[kind].dir), Path(cfg.output_dir)
    if is_listed_in(directory, folder):
        all_inside = directory.is_relative_to(output_dir) and is_listed_in(output_dir, folder)
        place = f"output_dir={printable(output_dir)}" if all_inside else printable(directory)
        raise UsageError(
            f"{place}: inside dataset.root={printable(root)}, where the figures of a run become pictures of the next "
            "one; expected a directory outside of it"
        )


def _unmet_requirement(key: str, value: Any) -> str | None:
    """Return the requirement that the value of a key of the program does not meet; None if it is valid."""
    text = value if isinstance(value, str) else ""
    if key == "name" and (is_reserved(text) or not re.fullmatch(r"[\w.+-]{0,99}\w", text)):
        return "must be a directory name of at most 100 letters, digits and . _ + -, but not of a device, as aux is"
    if key == "seed" and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST_SEED):
        return f"must be a whole number from 0 to {LARGEST_SEED}"
    if key == "hydra.job.chdir" and value not in (None, False):
        return "must be null or false, because paths are relative to the working directory"
    if key == CLAIM and value != "dlhw.cli.program.ClaimDirectory":
        return "must be dlhw.cli.program.ClaimDirectory, which creates the directory of the run"
    if key == "hydra.output_subdir" and value not in (None, ".hydra"):
        return "must be .hydra or null"
    return None


def _required_value(cfg: DictConfig, key: str) -> Any:
    """Return the value of a key. Raise UsageError if the key was deleted or its value refers to nothing."""
    parent, _, name = key.rpartition(".")
    try:
        node = OmegaConf.select(cfg, parent) if parent else cfg
        if not isinstance(node, DictConfig) or name not in node:
            if isinstance(node, DictConfig) and OmegaConf.is_missing(node, name):
                raise UsageError(f"{key}: missing; expected {key}=VALUE")
            raise UsageError(f"{key}: must not be deleted")
        return node[name]
    except (OmegaConfBaseException, RecursionError) as error:
        raise UsageError(unresolved(cfg, error, key)) from error


def require_resolvable(cfg: DictConfig) -> dict[str, Any]:
    """Return the config's values, without Hydra's part. Raise UsageError if an interpolation has no value.

    Raise it also if the value contains ``${``, because it would be read as an interpolation again.
    """
    try:
        content: Any = OmegaConf.to_container(without_hydra(cfg), resolve=True, enum_to_str=True)
    except (OmegaConfBaseException, RecursionError) as error:
        raise UsageError(unresolved(cfg, error, "config")) from error
    for path, value in _values(content):
        if isinstance(value, str) and "${" in value:  # from an environment variable, or escaped
            raise UsageError(f"{'.'.join(path)}={shortened(value)}: must not contain ${{, which begins a reference")
    return dict(content)


def unresolved(cfg: DictConfig, error: OmegaConfBaseException | RecursionError, key: str) -> str:
    """Return the line for an interpolation that has no value, with the top-level keys that it refers to.

    ``key`` is named if the error does not name the key of the value.
    """
    if isinstance(error, RecursionError):
        return f"{key}: refers to itself"
    content = None if error.parent_node is None else OmegaConf.to_container(error.parent_node, resolve=False)
    value = content.get(error.key) if isinstance(content, dict) else None  # None if the node itself has no value
    names = [reference.keys[0] for reference in references(value) if len(reference.keys) == 1] if value else []
    values = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(values, dict)
    keys = [
        f"{name}={values[name]}"
        for name in names
        if isinstance(name, str) and name in values and not references(str(values[name]))
    ]
    setting = f"{', '.join(keys)} ({error.full_key})" if keys else error.full_key or key
    if isinstance(error, InterpolationKeyError) and (missing := re.search(r"key '([^']+)' not found", str(error))):
        near = nearest(missing[1], map(str, values)) if "." not in missing[1] else []
        hint = f"; did you mean {either([f'${{{name}}}' for name in near])}?" if near else ""
        return f"{setting}: refers to {missing[1]}, which the config does not have{hint}"
    reason = str(error).splitlines()[0].partition(" raised while resolving interpolation: ")
    return f"{setting}: {(reason[2] or reason[0]).strip(chr(34))}"


def as_written(value: Any) -> str:
    """Format a config value as on the command line: null, true, 0.1, [1, 2]."""
    if isinstance(value, bool | None):
        return {None: "null", True: "true", False: "false"}[value]
    return shortened(value)
