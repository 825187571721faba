"""Report the mistakes in config files that a person writes: one line with the file, what is wrong and what to write."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import yaml
from hydra.conf import HydraConf
from hydra.core.default_element import ConfigDefault, GroupDefault, InputDefault
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from omegaconf.errors import OmegaConfBaseException

from dlhw.cli.hydra_internals import Repository, raised_in_library, references
from dlhw.cli.origins import content, includes
from dlhw.errors import UsageError
from dlhw.runtime.hints import expected_one_of, nearest
from dlhw.runtime.paths import printable, shortened
from dlhw.storage.schemas import GROUPS
from dlhw.storage.stored import INVALID_VALUES

GLOBAL = "# @package _global_"
LARGEST = 100_000
"""The largest number of values in a config file, with each alias counted as the values that it stands for."""

_NO_SPACE = re.compile(r"\s*\w+:[^\s:/]")
"""The beginning of a line such as ``epochs:3``, which YAML reads as text."""
_SYNTAX = (
    (r"'\\t'", False, "contains a tab; indent with spaces"),
    ("quoted scalar", True, "the quote that begins in this place is not closed"),
    ("flow sequence", True, "[ has no ], or a comma between two values is missing"),
    ("flow mapping", True, "{ has no }, or a comma between two values is missing"),
    ("could not find expected ':'", True, "expected KEY: VALUE, with a colon and a space"),
    (
        "mapping values are not allowed here",
        False,
        "unexpected colon; put a value with a colon in quotes, and indent keys of the same level equally",
    ),
    (
        "expected <block end>(?!.*<scalar>)",
        False,
        "the indentation differs from that of the lines above; indent keys of the same level equally",
    ),
    ("cannot start any token", False, "a value with this first character must be in quotes"),
)
"""For patterns of the messages of YAML: whether the place is where the construct begins, and what to change."""

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
    node = _parsed(lambda: yaml.compose(text, yaml.SafeLoader), where, text)
    if node is None:
        raise UsageError(f"{where}: is empty; expected keys and values, such as name: {Path(name).name}")
    if not isinstance(node, yaml.MappingNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise UsageError(f"{where}: contains {kind}; expected keys and values, such as name: {Path(name).name}")
    if _size(node, {}) > LARGEST:
        raise UsageError(f"{where}: has more than {LARGEST:,} values, with the values of its aliases")
    _require_header(name, text, node, where)
    _require_forms(node, where)
    _require_references(node, where)
    if name.startswith("experiment/"):
        _require_mappings(repository, node, where)
    result = _parsed(load, where, text)
    assert result is not None
    _check_defaults(repository, name, result, where)
    _require_no_cycle(repository, name, (name,), where)
    return result


def read_text(path: Path) -> str:
    """Return the text of a config file. Raise UsageError if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UsageError(f"{printable(path)}:{line}: is not UTF-8 text; save the file with this encoding") from error
    except OSError as error:
        raise UsageError(f"{printable(path)}: cannot be read ({error.strerror})") from error
    if text.startswith("\ufeff"):
        raise UsageError(f"{printable(path)}: begins with a byte order mark; save the file as UTF-8 without it")
    return text


def _parsed(load: Callable[[], Result], where: str, text: str) -> Result:
    """Return the result of ``load``. Raise UsageError if the file contains an error of YAML or of Hydra's rules."""
    try:
        return load()
    except yaml.MarkedYAMLError as error:
        mark, reason = _yaml_mistake(error, text.splitlines())
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        raise UsageError(f"{place}: {reason}") from error
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


def _yaml_mistake(error: yaml.MarkedYAMLError, lines: Sequence[str]) -> tuple[yaml.Mark | None, str]:
    """Return where a syntax error is, and what to change."""
    mark, problem = error.problem_mark or error.context_mark, str(error.problem or error.context or "invalid YAML")
    if problem.startswith("found duplicate key"):
        return mark, f"{problem.removeprefix('found ')}; remove one of the two"
    if mark is not None and problem == "mapping values are not allowed here":
        for number in (mark.line, mark.line - 1):
            if _NO_SPACE.match(lines[number]):
                return mark, f"unexpected colon; line {number + 1} has no space after its first colon"
    for pattern, at_start, remedy in _SYNTAX:
        if re.search(pattern, f"{error.context}: {problem}"):
            return error.context_mark if at_start else mark, remedy
    return mark, f"invalid YAML ({problem}); check the indentation and the quotes"


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the number of values in a YAML node, with each alias counted as the values that it stands for."""
    if id(node) not in known:
        known[id(node)] = LARGEST + 1  # of a node that contains itself
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        known[id(node)] = 1 + sum(
            _size(child, known) for item in children for child in (item if isinstance(item, tuple) else (item,))
        )
    return known[id(node)]


def _require_header(name: str, text: str, node: yaml.MappingNode, where: str) -> None:
    """Raise UsageError if the package in the first lines is missing in an experiment, or wrong."""
    header: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if not line.startswith("#") or not line.lstrip("#").strip().startswith("@"):
            break
        header.append(line.lstrip("#").strip())
    is_global = GLOBAL.lstrip("# ") in header
    if name.startswith("experiment/") and not is_global:
        raise UsageError(f"{where}: the first line must be {GLOBAL}")
    if is_global and any(key.value == "_target_" for key, _ in node.value):
        raise UsageError(f"{where}: the first line must not be {GLOBAL}, which is only for experiments; remove it")
    for line in header:
        if len(line.split()) != 2:
            raise UsageError(f"{where}: # {line}: expected # @package NAME")


def _require_forms(node: yaml.MappingNode, where: str) -> None:
    """Raise UsageError for an invalid top-level key, or a defaults list with entries of another form."""
    for key, value in node.value:
        place = f"{where}:{key.start_mark.line + 1}"
        if not _is_text(key):
            raise UsageError(f"{place}: {key.value}: a key must be text")
        if "." in key.value:
            outer, _, inner = key.value.partition(".")
            content = value.value if isinstance(value, yaml.ScalarNode) else "..."
            raise UsageError(f"{place}: {key.value}: a key must not have a dot; write {outer}: {{{inner}: {content}}}")
        if isinstance(value, yaml.SequenceNode) and key.value != "defaults" and nearest(key.value, ["defaults"]):
            raise UsageError(f"{place}: {key.value}: unknown key; did you mean defaults?")
        if key.value == "defaults":
            entries = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for entry in entries if entries else [value]:
                if not isinstance(value, yaml.SequenceNode) or not _is_default(entry):
                    place = f"{where}:{entry.start_mark.line + 1}"
                    raise UsageError(f"{place}: defaults: must be a list of - NAME and - override /GROUP: OPTION")


def _require_references(node: yaml.Node, where: str) -> None:
    """Raise UsageError for a value with an invalid interpolation."""
    for scalar in _scalars(node):
        try:
            references(scalar.value)
        except OmegaConfBaseException as error:
            place = f"{where}:{scalar.start_mark.line + 1}"
            raise UsageError(
                f"{place}: {shortened(scalar.value)}: invalid interpolation; expected ${{KEY}}, or \\${{...}} for text"
            ) from error


def _scalars(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif isinstance(node, yaml.CollectionNode):
        for item in node.value:
            for child in item if isinstance(item, tuple) else (item,):
                yield from _scalars(child)


def _require_mappings(repository: Repository, node: yaml.MappingNode, where: str) -> None:
    """Raise UsageError if an experiment gives a group anything but options, or Hydra an unknown key."""
    for key, value in node.value:
        group, place = key.value, f"{where}:{key.start_mark.line + 1}"
        if group == "hydra" and isinstance(value, yaml.MappingNode):
            known = [field.name for field in dataclasses.fields(HydraConf)]
            for name, _ in value.value:
                if name.value not in known:
                    place = f"{where}:{name.start_mark.line + 1}"
                    raise UsageError(f"{place}: hydra.{name.value}: unknown key{expected_one_of(name.value, known)}")
        elif repository.group_exists(group) and not isinstance(value, yaml.MappingNode):
            raise UsageError(f"{place}: {group}: must be a mapping of options{_form_of(group, value, repository)}")


def _form_of(group: str, value: yaml.Node, repository: Repository) -> str:
    """Return the end of the error for a group whose value is not a mapping: what to write instead."""
    if not isinstance(value, yaml.ScalarNode) or not value.value:
        return "; indent them below it"
    if match := re.fullmatch(r"(\w+)(?:\s+|:)([^\s:]+)", value.value):
        return f"; write {match[1]}: {match[2]} with a colon and a space"
    options = repository.get_group_options(group)
    if value.value in options or nearest(value.value, options):
        return f"; write - override /{group}: {value.value} in its defaults"
    return ""


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
            hint = misplaced(group, value, repository.config_dir())
            hint = hint or expected_one_of(value, options, shown_by="--help")
            raise UsageError(f"{where}: {line}: unknown {group}{hint}")
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


def misplaced(group: str, option: str, folder: str | None) -> str:
    """Return the end of the error for an unknown option of a group: a file with this name that Hydra does not find.

    It may have another suffix than ``.yaml``, or be in another folder of the ``folder`` of ``--config-dir``. Without
    such a folder, it may be in the working directory. Empty if there is no such file.
    """
    if folder is None:
        places = [path.parents[group.count("/") + 1] for path in _files_below(Path(), f"{group}/{option}.yaml")]
        return f"; add --config-dir {printable(places[0])}, which has {group}/{option}.yaml" if places else ""
    expected = Path(folder, group, f"{option}.yaml")
    if Path(folder).name == group and Path(folder, f"{option}.yaml").is_file():
        return f"; write --config-dir {printable(Path(folder).parent)}, the folder that contains {group}/"
    suffixes = (".yaml", ".yml", ".YAML", ".YML", "", ".yaml.txt", ".yml.txt", ".txt", ".json")
    files = [path for suffix in suffixes for path in _files_below(Path(folder), option + suffix)]
    if renamed := [path for path in files if path.parent == expected.parent]:
        return f"; rename {printable(renamed[0])} to {printable(expected)}"
    groups = [Path(folder, name) for name in (*GROUPS, "experiment")]
    moved = [path for path in files if path.parent not in groups]  # there it is an option
    return f"; move {printable(moved[0])} to {printable(expected)}" if moved else ""


def _files_below(folder: Path, name: str) -> Iterator[Path]:
    """Yield the files with this path in a folder and, two levels deep, in its subfolders."""
    paths = itertools.chain.from_iterable(folder.glob(f"{levels}{name}") for levels in ("", "*/", "*/*/"))
    return (path for path in paths if path.is_file())
