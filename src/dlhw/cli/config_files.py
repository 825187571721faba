"""Report the mistakes in config files that a person writes: one line with the file, what is wrong and what to write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import yaml
from hydra.core.default_element import ConfigDefault, GroupDefault, InputDefault
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from dlhw.cli.hydra_internals import Repository, raised_in_library
from dlhw.cli.origins import content, includes
from dlhw.errors import UsageError
from dlhw.runtime.hints import expected_one_of, nearest
from dlhw.runtime.paths import printable
from dlhw.storage.stored import INVALID_VALUES

GLOBAL = "# @package _global_"
LARGEST = 100_000
"""The largest number of values in a config file, with each alias counted as the values that it stands for."""

Result = TypeVar("Result")


def read(repository: Repository, name: str, path: Path, load: Callable[[], ConfigResult | None]) -> ConfigResult | None:
    """Return what ``load`` reads from the config file at ``path``, whose name is such as ``experiment/flooding``.

    Raise UsageError if a person's file has a mistake. A mistake in a shipped file raises Hydra's error.
    """
    where = printable(path)
    if repository.is_shipped(path):
        for other in repository.paths(name)[1:]:
            raise UsageError(
                f"{printable(other)}: has the name of the shipped file {name}, which is used instead; rename it"
            )
        return load()
    text = read_text(path)
    node = _parsed(lambda: yaml.compose(text, yaml.SafeLoader), where)
    if node is None:
        raise UsageError(f"{where}: is empty; expected keys and values, such as name: {Path(name).name}")
    if not isinstance(node, yaml.MappingNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise UsageError(f"{where}: contains {kind}; expected keys and values, such as name: {Path(name).name}")
    if _size(node, {}) > LARGEST:
        raise UsageError(f"{where}: has more than {LARGEST:,} values, with the values of its aliases")
    _require_header(name, text, where)
    _require_forms(node, where)
    result = _parsed(load, where)
    assert result is not None
    _check_defaults(repository, name, result, where)
    _require_no_cycle(repository, name, (name,), where)
    folder = name.rpartition("/")[0]
    for key, value in result.config.items_ex(resolve=False) if isinstance(result.config, DictConfig) else ():
        group = str(key)
        if folder == "experiment" and repository.group_exists(group) and not isinstance(value, DictConfig):
            hint = f"; write - override /{group}: {value} in its defaults" if isinstance(value, str) else ""
            raise UsageError(f"{where}: {group}: must be a mapping of options{hint}")
    return result


def read_text(path: Path) -> str:
    """Return the text of a config file. Raise UsageError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UsageError(f"{printable(path)}:{line}: is not UTF-8 text; save the file with this encoding") from error
    except OSError as error:
        raise UsageError(f"{printable(path)}: cannot be read ({error.strerror})") from error


def _parsed(load: Callable[[], Result], where: str) -> Result:
    """Return the result of ``load``. Raise UsageError if the file contains an error of YAML or of Hydra's rules."""
    try:
        return load()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        raise UsageError(f"{place}: {_yaml_mistake(error)}") from error
    except yaml.reader.ReaderError as error:
        code = error.character if isinstance(error.character, int) else ord(error.character)
        raise UsageError(f"{where}: contains the character {chr(code)!r}, which YAML does not allow") from error
    except RecursionError as error:
        raise UsageError(f"{where}: is nested too deeply or contains itself") from error
    except UsageError:
        raise
    except (yaml.YAMLError, HydraException, OmegaConfBaseException, ValueError, AssertionError, OSError) as error:
        raise UsageError(f"{where}: {(str(error).splitlines() or ['is not a config file'])[0]}") from error
    except INVALID_VALUES as error:
        if not raised_in_library(error):
            raise
        raise UsageError(f"{where}: a value is invalid for its YAML tag, such as !!timestamp or !!bool") from error


def _yaml_mistake(error: yaml.MarkedYAMLError) -> str:
    problem = str(error.problem or error.context or "invalid YAML")
    if "'\\t'" in problem:
        return "contains a tab; indent with spaces"
    if problem.startswith("found duplicate key"):
        return f"{problem.removeprefix('found ')}; remove one of the two"
    if problem == "mapping values are not allowed here":
        return "unexpected colon; put a value with a colon in quotes, and indent keys of the same level equally"
    return f"invalid YAML ({problem}); check the indentation and the quotes"


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the number of values in a YAML node, with each alias counted as the values that it stands for."""
    if id(node) not in known:
        known[id(node)] = LARGEST + 1  # of a node that contains itself
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        known[id(node)] = 1 + sum(
            _size(child, known) for item in children for child in (item if isinstance(item, tuple) else (item,))
        )
    return known[id(node)]


def _require_header(name: str, text: str, where: str) -> None:
    """Raise UsageError if the file of an experiment does not start with its package."""
    header: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if not line.startswith("#") or not line.lstrip("#").strip().startswith("@"):
            break
        header.append(line.lstrip("#").strip())
    if name.startswith("experiment/") and GLOBAL.lstrip("# ") not in header:
        raise UsageError(f"{where}: the first line must be {GLOBAL}")
    for line in header:
        if len(line.split()) != 2:
            raise UsageError(f"{where}: # {line}: expected # @package NAME")


def _require_forms(node: yaml.MappingNode, where: str) -> None:
    """Raise UsageError for a top-level key that is not text, or a defaults list with entries of another form."""
    for key, value in node.value:
        place = f"{where}:{key.start_mark.line + 1}"
        if not _is_text(key):
            raise UsageError(f"{place}: {key.value}: a key must be text")
        if key.value == "defaults":
            entries = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for entry in entries if entries else [value]:
                if not isinstance(value, yaml.SequenceNode) or not _is_default(entry):
                    place = f"{where}:{entry.start_mark.line + 1}"
                    raise UsageError(f"{place}: defaults: must be a list of - NAME and - override /GROUP: OPTION")


def _is_default(entry: yaml.Node) -> bool:
    """Return whether an entry of a defaults list is a name, or one group with its option."""
    if not isinstance(entry, yaml.MappingNode):
        return _is_text(entry)
    if len(entry.value) != 1:
        return False
    group, option = entry.value[0]
    options = option.value if isinstance(option, yaml.SequenceNode) else [option]
    return _is_text(group) and all(_is_text(name) or name.tag == "tag:yaml.org,2002:null" for name in options)


def _is_text(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")


def _check_defaults(repository: Repository, name: str, result: ConfigResult, where: str) -> None:
    """Raise UsageError for an unknown group or option in the defaults list of a file."""
    folder = name.rpartition("/")[0]

    def absolute(path: str) -> str:
        return path[1:] if path.startswith("/") else f"{folder}/{path}".strip("/")

    defaults = result.defaults_list or []
    if sum(default.is_self() for default in defaults) > 1:
        raise UsageError(f"{where}: - _self_: appears twice in defaults; remove one of the two")
    seen_override = False
    for default in defaults:
        if seen_override and not default.is_override() and not default.is_self():
            raise UsageError(f"{where}: - {_entry(default)}: must be above the overrides in defaults")
        seen_override = seen_override or default.is_override()
        if isinstance(default, ConfigDefault) and not default.is_self() and "${" not in str(default.path):
            path = absolute(str(default.path))
            if not repository.config_exists(path):
                group, _, option = path.rpartition("/")
                hint = expected_one_of(option, repository.get_group_options(group), shown_by="--help")
                raise UsageError(f"{where}: - {default.path}: unknown {group or 'config file'}{hint}")
        elif isinstance(default, GroupDefault) and "${" not in f"{default.group}{default.value}":
            _check_group(repository, default, absolute(str(default.group)), where)


def _entry(default: InputDefault) -> str:
    """Return an entry of a defaults list as it is written."""
    if isinstance(default, GroupDefault):
        return f"{'override ' if default.override else ''}{default.group}: {default.value}"
    return str(default.path) if isinstance(default, ConfigDefault) else str(default)


def _check_group(repository: Repository, default: GroupDefault, group: str, where: str) -> None:
    line = f"- {_entry(default)}"
    if not repository.group_exists(group):
        named = str(default.group).lstrip("/")
        groups = [named] if repository.group_exists(named) else nearest(named, repository.groups())
        hint = f"; did you mean - override /{groups[0]}: {default.value}?" if groups else ""
        raise UsageError(f"{where}: {line}: unknown group {group}{hint}")
    options = repository.get_group_options(group)
    for value in default.value if isinstance(default.value, list) else [default.value]:
        if value not in (None, "???") and value.removesuffix(".yaml") not in options and not default.optional:
            raise UsageError(f"{where}: {line}: unknown {group}{expected_one_of(value, options, shown_by='--help')}")
    if not default.override and repository.is_chosen_by_default(group):
        raise UsageError(
            f"{where}: {line}: this group has a default option; write - override /{group}: {default.value}"
        )


def _require_no_cycle(repository: Repository, name: str, chain: Sequence[str], where: str) -> None:
    """Raise UsageError if the file includes itself, directly or by the files that it includes."""
    path = repository.path(chain[-1])
    for included in includes(chain[-1], content(path)) if path else ():
        if included == name:
            raise UsageError(f"{where}: includes itself ({' -> '.join([*chain, name])})")
        if included not in chain:
            _require_no_cycle(repository, name, (*chain, included), where)
