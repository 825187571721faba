"""Describe the mistake in a command line: one line with the key, what is wrong, and the nearest valid key."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dlhw.cli import config_files
from dlhw.cli.hydra_internals import ComposingLoader, flags, references
from dlhw.cli.origins import FAST_LOADER, content, includes
from dlhw.cli.verbs import VERBS
from dlhw.runtime.hints import Key, distance, either, expected_one_of, nearest, nearest_keys
from dlhw.runtime.paths import printable

Compose = Callable[[list[str]], DictConfig]
MOST_KEYS = 3
"""The largest number of keys that the hint for an unknown flag shows."""
HIDDEN = ("env", "help", "hydra_help", "hydra_logging", "job_logging", "output", "overrides", "runtime")
"""The parts of Hydra's config that hints do not show."""


def explain(overrides: Sequence[str], loader: ComposingLoader, compose: Compose, error: Exception) -> str:
    """Return one line that says what is wrong with the overrides, or else the first line of Hydra's error."""
    parsed_overrides: list[Override] = []
    for number, text in enumerate(overrides):
        override = _parsed(text)
        if override is None:
            return _invalid_override(overrides, number, loader, compose)
        parsed_overrides.append(override)
    choices = [override for override in parsed_overrides if _is_choice(override, loader)]
    for override in choices:
        if message := _wrong_choice(override, loader):
            return message
    for override in parsed_overrides:
        if override.is_sweep_override() and isinstance(error, ConfigCompositionException) and "multirun" in str(error):
            name = override.key_or_group
            return f"{override.input_line}: a sweep over several values needs -m; expected {name}=[...] for a list"
    cfg = compose([str(override.input_line) for override in choices if not override.is_sweep_override()])
    for override in parsed_overrides:
        if override not in choices and (message := _wrong_value(override, loader, cfg)):
            return message
    return described(error, loader)


def _parsed(text: str) -> Override | None:
    """Parse an override with Hydra's grammar; None if it is invalid."""
    try:
        override: Override = OverridesParser.create().parse_override(text)
    except (HydraException, AssertionError):
        return None
    return override if override.key_or_group else None


def _is_choice(override: Override, loader: ComposingLoader) -> bool:
    return loader.has_group(override.key_or_group) and (
        override.is_sweep_override() or override.is_delete() or not isinstance(override.value(), dict)
    )


def _wrong_choice(override: Override, loader: ComposingLoader) -> str | None:
    """Return the line for an override that chooses an unknown option of a group; None if it is valid."""
    group = override.key_or_group
    if override.is_add() and loader.repository.is_chosen_by_default(group):
        return f"{override.input_line}: {group} already exists; remove the +"
    if override.is_sweep_override() or override.is_delete():
        return None
    options = loader.repository.get_group_options(group)
    chosen: Any = override.value()
    for value in chosen if isinstance(chosen, list) else [chosen]:
        option = "" if value is None else str(value)
        if option.removesuffix(".yaml") not in options:
            hint = _misplaced(option, group, loader) or _expected_option(option, group, options, loader)
            return f"{override.input_line}: unknown {group}{hint}"
    return None


def _misplaced(option: str, group: str, loader: ComposingLoader) -> str:
    """Return the end of the error for an option that is the path of a file, or whose file is in the wrong place."""
    name = option.rpartition("/")[2].removesuffix(".yaml")
    if name != option and name in loader.repository.get_group_options(group):
        return f"; did you mean {group}={name}?"
    return config_files.misplaced(group, name, loader.config_dir()) if re.fullmatch(r"[\w.+-]{1,99}", name) else ""


def _expected_option(option: str, group: str, options: Sequence[str], loader: ComposingLoader) -> str:
    near = nearest(option, options)
    others = [f"{name}={option}" for name in _groups(loader) if option in loader.repository.get_group_options(name)]
    if others and (not near or option.casefold() not in map(str.casefold, near)):
        return f"; did you mean {either(others)}?"
    return expected_one_of(option, options, shown_by="--help")


def _wrong_value(override: Override, loader: ComposingLoader, cfg: DictConfig) -> str | None:
    """Return the line for an override that Hydra cannot apply to the config, or else apply it and return None."""
    key, line = override.key_or_group, override.input_line
    if override.package is not None:
        near = [group.name for group in nearest_keys(key, [Key(name) for name in _groups(loader)])]
        return f"{line}: unknown group {key}{f'; did you mean {either(near)}?' if near else ''}"
    if not override.is_add() and not override.is_force_add() and not _has_key(cfg, key):
        value = None if override.is_sweep_override() or override.is_delete() else override.value()
        return f"{key}: unknown key{hint(key, loader, cfg, value=value)}"
    reason = None if override.is_sweep_override() else _mistake(override, loader, cfg)
    return reason and f"{line}: {reason}"


def _mistake(override: Override, loader: ComposingLoader, cfg: DictConfig) -> str | None:
    """Apply an override to the config. Return what is wrong if Hydra cannot."""
    key = override.key_or_group
    if override.is_add() and _has_key(cfg, key) and not isinstance(override.value(), dict | list):
        return f"{key} already exists; remove the +"
    try:
        for text in _texts(override.value()):
            references(text)
    except OmegaConfBaseException:
        return "invalid interpolation; expected ${key}, or \\${...} for text"
    try:
        loader.apply([override], cfg)
    except (HydraException, OmegaConfBaseException, ValueError, AssertionError) as error:
        reason = first_line(error)
        return "must be a mapping, such as {name: value}" if reason.startswith("Cannot merge DictConfig") else reason
    return None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield str(value)


def _has_key(cfg: DictConfig, key: str) -> bool:
    """Return whether the config has this key; its value may be missing or refer to nothing."""
    node: Any = cfg
    for name in re.split(r"[.\[\]]+", key.rstrip("]")):
        if isinstance(node, ListConfig) and name.lstrip("-").isdigit():
            known = int(name) < len(node)
        else:
            known = isinstance(node, DictConfig) and name in map(str, node)
        if not known:
            return False
        index: Any = int(name) if isinstance(node, ListConfig) else name
        plain = not OmegaConf.is_missing(node, index) and not OmegaConf.is_interpolation(node, index)
        node = node[index] if plain else None
    return True


def _invalid_override(overrides: Sequence[str], number: int, loader: ComposingLoader, compose: Compose) -> str:
    """Return the line for an override that does not have the form ``key=value``."""
    text = overrides[number]
    if message := _spaces_around_equals(overrides, number):
        return message
    if match := re.fullmatch(r"([\w./@]+)\s*(?::=|==|=>|->|:|\s)\s*([\w.+-]+)", text):
        return f"{text}: expected key=value; did you mean {match[1]}={match[2]}?"
    key, equals, value = text.partition("=")
    following = "".join(overrides[number + 1 : number + 2])
    if (
        not equals
        and following
        and "=" not in following
        and any(key.name == text for key in known_keys(loader, compose([])))
    ):
        return f"{text} {following}: expected key=value; did you mean {text}={following}?"
    if not equals:
        return f"{text}: expected key=value{_hint_for_word(text, loader, compose)}"
    if not re.fullmatch(r"(\+\+?|~)?[\w./@:\[\]-]+", key, re.ASCII):
        hint_for_key = hint(key, loader, compose([]), value=value) if key else ""
        return f"{key}: unknown key{hint_for_key}" if key else f"{text}: expected key=value"
    return f"{text}: invalid value; {_syntax_error(key, value)}"


def _spaces_around_equals(overrides: Sequence[str], number: int) -> str | None:
    """Return the line for ``key = value``, which the shell splits into several overrides; None for other mistakes."""
    text = overrides[number]
    before = overrides[number - 1] if number else ""
    after = [*overrides[number + 1 :], "", ""]
    candidates = [text]
    if after[0].startswith("="):
        candidates.append(" ".join([text, after[0], *(after[1:2] if after[0] == "=" else ())]))
    if before.endswith("=") and "=" not in text:
        candidates.append(f"{before} {text}")
    for candidate in candidates:
        if match := re.fullmatch(r"([^\s=]+)(?:\s+=\s*|=\s+)(\S.*)", candidate):
            return f"{candidate}: must not have spaces around =; expected {match[1]}={match[2]}"
    return None


def _syntax_error(key: str, value: str) -> str:
    """Return what Hydra's grammar does not accept in a value."""
    for quote in ("'", '"'):
        if value.count(quote) % 2:
            return f"a quote ({quote}) is not closed"
    for opening, closing in ("[]", "{}", "()"):
        if value.count(opening) != value.count(closing):
            return f"{opening} and {closing} do not match"
    return f"quote text once for the shell and once for Hydra: {key}=\"'...'\""


def flag_hint(flag: str, following: Sequence[str], loader: ComposingLoader, compose: Compose) -> str:
    """Return the end of the error for an unknown flag: a flag or verb with a similar name, or the key to write."""
    word, _, value = flag.partition("=")
    name = word.lstrip("-")
    if near := nearest(word, [known for known in flags() if known.startswith("--")]) if word.startswith("--") else ():
        return f"; did you mean {either(near)}?"
    value = value or next((text for text in following[:1] if not re.search(r"^-\D|=", text)), "VALUE")
    keys = known_keys(loader, compose([]))
    exact = [key for key in keys if key.name == name]
    lines = [f"{key.name}={value}" for key in (exact or nearest_keys(name, keys))[:MOST_KEYS]]
    hint = f"did you mean {either(lines)}?" if lines else "options are written KEY=VALUE; --hydra-help lists the flags"
    return f"; {hint}"


def _hint_for_word(word: str, loader: ComposingLoader, compose: Compose) -> str:
    """Return the end of the error for a word without ``=``: the options and keys with this name."""
    options = {
        f"{group}={name}": name for group in _groups(loader) for name in loader.repository.get_group_options(group)
    }
    exact = [line for line, name in options.items() if name.casefold() == word.casefold()]
    if word == "help":
        return "; did you mean --help?"
    if word in VERBS:
        return f"; {word} must be the first word after dlhw"
    if not exact and (verbs := [verb for verb in nearest(word, VERBS) if distance(word, verb) <= 2]):
        return f"; did you mean {either([f'dlhw {verb}' for verb in verbs])}?"
    similar = set(nearest(word, options.values()))
    lines = exact or [line for line, name in options.items() if name in similar]
    if not exact:
        keys = nearest_keys(word, known_keys(loader, compose([])))
        if keys and (not lines or keys[0].name.casefold() == word.casefold()):
            lines = [f"{key.name}=..." for key in keys]
    return f"; did you mean {either(lines)}?" if lines else ""


def hint(name: str, loader: ComposingLoader, cfg: DictConfig, *, value: object = None) -> str:
    """Return the end of the error for an unknown key: similar keys and groups, or what the key belongs to."""
    name = name.lstrip("+~")
    keys = known_keys(loader, cfg, without=name)
    used = [key.name for key in keys if not key.owners]
    parent = next(
        (key for key in used if "." in key and name.startswith(f"{key}.") and not _is_mapping(cfg, key)), None
    )
    if parent:
        is_null = OmegaConf.select(cfg, parent, throw_on_missing=False) is None
        return f"; {parent} is {f'null; did you mean +{name}?' if is_null else 'a single value'}"
    near = nearest_keys(name, keys)
    if near and near[0].name == name:
        return f"; {name} belongs to {either(near[0].owners)}"
    if near:
        return f"; did you mean {either([_with_value(key, value, loader) for key in near])}?"
    group = name.rpartition(".")[0]
    siblings = [key for key in used if group and key.rpartition(".")[0] == group]
    if siblings:
        return expected_one_of(name, siblings, shown_by=f"--cfg job --package {group}")
    return "; --cfg job shows all keys"


def _with_value(key: Key, value: object, loader: ComposingLoader) -> str:
    """Return a key as a hint shows it: a group with its option, and a key that is not used with what it belongs to."""
    if key.owners:
        return f"{key.name} (with {either(key.owners, most=2)})"
    if loader.has_group(key.name) and isinstance(value, str):
        options = loader.repository.get_group_options(key.name)
        near = [value] if value in options else nearest(value, options)
        return f"{key.name}={near[0]}" if near else key.name
    return key.name


def _groups(loader: ComposingLoader) -> list[str]:
    """Return all groups, that of the experiments first and Hydra's last."""
    groups = loader.repository.groups()
    return sorted(groups, key=lambda name: (name != "experiment", name.startswith("hydra/")))


def known_keys(loader: ComposingLoader, cfg: DictConfig, *, without: str = "") -> list[Key]:
    """Return all groups, the keys of the config, and those of options and experiments that it does not use.

    ``without`` is a key that the config may have although it is a mistake.
    """
    used = [Key(name) for name in dict.fromkeys((*_groups(loader), *_names(cfg))) if name != without]
    names = {key.name for key in used} | {str(name) for name in cfg if name != without}
    chosen = cfg.hydra.runtime.choices if "hydra" in cfg else {}
    owners: dict[str, list[str]] = {}
    for group in _groups(loader):
        options = loader.repository.get_group_options(group) if group.removeprefix("hydra/") not in HIDDEN else []
        in_use = _with_included(f"{group}/{chosen.get(group)}", loader)
        prefix = "" if group == "experiment" else f"{group.replace('/', '.')}."
        for option in options:
            for name in _keys_of(group, option, loader) if f"{group}/{option}" not in in_use else ():
                if prefix + name not in names:
                    owners.setdefault(prefix + name, []).append(f"{group}={option}")
    return [*used, *(Key(name, tuple(options)) for name, options in owners.items())]


def _with_included(name: str, loader: ComposingLoader) -> set[str]:
    """Return the name of a config file and those of the files that it includes as a whole."""
    result: set[str] = set()
    remaining = [name]
    while remaining:
        name = remaining.pop()
        path = loader.repository.path(name)
        if name not in result and path is not None:
            remaining += includes(name, content(path))
        result.add(name)
    return result


def _keys_of(group: str, option: str, loader: ComposingLoader) -> Iterator[str]:
    """Yield the keys that a file sets; none if it cannot be read."""
    path = loader.repository.path(f"{group}/{option}")
    if path is not None:
        values = content(path, loader=FAST_LOADER) if loader.repository.is_shipped(path) else content(path)
    else:
        config = loader.file(f"{group}/{option}")  # one of Hydra's own
        values = {} if config is None else {str(name): None for name in config}
    for name, value in values.items():
        if name not in ("_target_", "defaults", "hydra"):
            yield str(name)
        if isinstance(value, dict) and "_target_" in value:  # a logger with its options
            yield from (f"{name}.{option}" for option in value if option != "_target_")


def _names(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all keys, except ``_target_`` and Hydra's mappings."""
    for name in map(str, cfg):
        if name == "_target_" or (prefix == "hydra." and name in HIDDEN):
            continue
        plain = not OmegaConf.is_missing(cfg, name) and not OmegaConf.is_interpolation(cfg, name)
        node = cfg[name] if plain else None
        if not isinstance(node, DictConfig) or not prefix.startswith("hydra."):
            yield f"{prefix}{name}"
        if isinstance(node, DictConfig):
            yield from _names(node, f"{prefix}{name}.")


def _is_mapping(cfg: DictConfig, key: str) -> bool:
    return isinstance(OmegaConf.select(cfg, key, throw_on_missing=False), DictConfig)


def described(error: BaseException, loader: ComposingLoader) -> str:
    """Return the first line of an error of Hydra, with the path of the config file that it names."""
    message = first_line(error)
    match = re.match(r"In '?([\w/.-]+?)'?: (.*)", message)
    path = loader.repository.path(match[1]) if match else None
    if match is None or path is None:
        return message
    lines = [match[2], *innermost(error).splitlines()[1:]]
    reason = lines[1] if lines[0].endswith("raised while composing config:") and len(lines) > 1 else lines[0]
    return f"{printable(path)}: {reason}"


def first_line(error: BaseException) -> str:
    """Return the first line of the innermost cause of an error."""
    return innermost(error).partition("\n")[0]


def innermost(error: BaseException) -> str:
    """Return the message of the innermost cause of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__
