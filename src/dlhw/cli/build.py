"""Validate a config and build the objects that it describes.

A group of the config names a callable by ``_target_``; its other keys are keyword arguments of that callable. They are
validated against the annotations of the callable and nothing else. This module does not import torch.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import pydantic
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from dlhw.cli import own_code
from dlhw.cli.composition import conf_dir
from dlhw.cli.hydra_internals import references
from dlhw.cli.origins import located, location, option
from dlhw.cli.rules import as_written, require_resolvable
from dlhw.errors import NotEnoughMemory, UsageError
from dlhw.loggers.content import Logger
from dlhw.runtime.hints import expected_one_of, nearest
from dlhw.runtime.memory import allocating
from dlhw.runtime.paths import shortened
from dlhw.storage.schemas import GROUPS

PROGRAM_ARGUMENTS: dict[str, set[str]] = {group: set() for group in GROUPS} | {
    "dataset": {"data_dir", "seed"},
    "model": {"shape", "outputs"},
    "init": {"model", "generator"},
    "loss": {"input", "target", "weight", "ignore_index", "reduction", "reduce", "size_average"},
    "optimizer": {"params"},
    "probe": {"model", "data"},
    "study": {"seed", "device", "data", "model", "network", "trainable", "trainings", "record"},
    "report": {"model", "data", "untrained", "record"},
}
"""The arguments that the program passes to the target of each group; all others come from the config."""
NEEDED: dict[str, set[str]] = {"init": {"model"}, "optimizer": {"params"}}
"""The arguments that a target of the user's own must take; it gets those of the others that it takes."""
SETTINGS = {"trainer": "dlhw.training.settings.Trainer", "comparison": "dlhw.views.comparison.Comparison"}
"""The targets of groups that only hold settings, or base classes of them. Their modules do not import torch."""
OPTIONAL = ("probe", "report", "study")
"""Groups that may name no target."""

# The valid values of parameters that torch.optim and torch.nn.functional annotate as plain numbers.
NON_NEGATIVE = Annotated[float, Field(ge=0)]
FRACTION = Annotated[float, Field(ge=0, lt=1)]
TORCH_NUMBERS: dict[str, Any] = {
    "lr": NON_NEGATIVE,
    "momentum": NON_NEGATIVE,
    "weight_decay": NON_NEGATIVE,
    "lr_decay": NON_NEGATIVE,
    "eps": NON_NEGATIVE,
    "alpha": FRACTION,
    "label_smoothing": Annotated[float, Field(ge=0, le=1)],
    "margin": NON_NEGATIVE,
    "betas": tuple[FRACTION, FRACTION],
}


@dataclass(frozen=True)
class Component:
    """A group of a config: its target, None if it names none, and its valid options."""

    name: str
    """As on the command line, such as ``optimizer=adam``."""
    target: Callable[..., Any] | None
    options: Mapping[str, Any]

    def build(self, **arguments: Any) -> Any:
        """Call the target and return its result; None without a target.

        A target in own code gets only the arguments that it takes. Raise UsageError if the target fails.
        """
        if self.target is None:
            return None
        try:
            given = own_code.taken(self.target, arguments) if self.own is not None else arguments.keys()
            with allocating(self.name, building=True):
                return self.target(**{name: arguments[name] for name in given}, **self.options)
        except UsageError as error:
            if self.own is None:
                raise
            raise own_code.mistake(self.name, self.target, error) from error
        except NotEnoughMemory as error:
            raise UsageError(str(error)) from error
        except (ValueError, TypeError, RuntimeError) as error:  # torch checks some values itself
            raise own_code.mistake(self.name, self.target, error) from error
        except (Exception, SystemExit) as error:
            if self.own is None:
                raise
            raise own_code.mistake(self.name, self.target, error) from error

    def partial(self, **arguments: Any) -> Callable[..., Any]:
        """Return the target with its options bound, to be called later."""
        assert self.target is not None, f"{self.name} names no target"
        return functools.partial(self.target, **arguments, **self.options)

    @property
    def own(self) -> Callable[..., Any] | None:
        """The target if it belongs to the user's own code, else None."""
        return self.target if self.target is not None and own_code.is_own(self.target) else None

    @property
    def arguments(self) -> frozenset[str]:
        """Names of the arguments that the target takes."""
        return frozenset() if self.target is None else frozenset(inspect.signature(self.target).parameters)


@dataclass(frozen=True)
class Components:
    """A valid config, its resolved values, and the component of each of its groups."""

    cfg: DictConfig
    resolved: Mapping[str, Any]
    groups: Mapping[str, Component]

    def __getitem__(self, group: str) -> Component:
        return self.groups[group]


def validate(cfg: DictConfig) -> Components:
    """Validate every value of a config. Raise UsageError with one line per mistake."""
    resolved = require_resolvable(cfg)
    mistakes = [f"{group}: missing" for group in PROGRAM_ARGUMENTS if not isinstance(cfg.get(group), DictConfig)]
    mistakes += _missing_values(resolved)
    groups = {}
    for group, arguments in PROGRAM_ARGUMENTS.items() if not mistakes else ():
        groups[group], lines = _component(cfg, group, arguments, copy.deepcopy(resolved[group]))
        mistakes += lines
    with located(cfg):
        if mistakes:
            raise UsageError("\n".join(mistakes))
    return Components(cfg, resolved, groups)


def check_settings(cfg: DictConfig) -> None:
    """Validate the groups whose options are known without torch. Raise UsageError with one line per mistake."""
    groups = [group for group in SETTINGS if isinstance(cfg.get(group), DictConfig)]
    with located(cfg):
        resolved = require_resolvable(cfg)
        mistakes = _missing_values(resolved)
        for group in PROGRAM_ARGUMENTS:
            if isinstance(cfg.get(group), DictConfig) and cfg[group].get("_target_") is None:
                mistakes += _missing_target(cfg, group)
        mistakes += [
            line for group in groups if not mistakes for line in _component(cfg, group, set(), resolved[group])[1]
        ]
        if mistakes:
            raise UsageError("\n".join(mistakes))
        loggers(cfg)


def _missing_values(content: dict[str, Any]) -> list[str]:
    if "'???'" not in repr(content):  # nothing is missing; missing_keys needs a config, which takes a millisecond
        return []
    return [f"{name}: missing; expected {name}=VALUE" for name in OmegaConf.missing_keys(OmegaConf.create(content))]


def loggers(cfg: DictConfig) -> dict[str, Logger]:
    """Build the config's loggers by name; configs of earlier versions have none. Raise UsageError.

    It is an error if the package that a logger needs is not installed. The packages are not imported here.
    """
    content: Any = OmegaConf.to_container(cfg.get("logger") or OmegaConf.create(), resolve=True)
    result: dict[str, Logger] = {}
    for name, options in content.items():
        if not isinstance(options, dict):
            raise UsageError(f"logger.{name}={as_written(options)}: must be a mapping of options; expected logger=NAME")
        component, mistakes = _component(cfg, f"logger.{name}", set(), options)
        if mistakes:
            raise UsageError("\n".join(mistakes))
        package = getattr(component.target, "package", None)
        if package is not None and importlib.util.find_spec(package) is None:
            raise UsageError(f'logger={name}: needs the package {package}; install it (pip install "dlhw[{package}]")')
        result[name] = component.build()
    return result


def build(cfg: DictConfig, group: str, **arguments: Any) -> Any:
    """Build the object that one group of a config describes; None without a target. Raise UsageError."""
    return validated(cfg, group, set(arguments)).build(**arguments)


def validated(cfg: DictConfig, group: str, arguments: set[str]) -> Component:
    """Return the component of one group, whose target gets these arguments from the program. Raise UsageError."""
    options = typing.cast("dict[str, Any]", OmegaConf.to_container(cfg[group], resolve=True))
    component, mistakes = _component(cfg, group, arguments, options)
    if mistakes and component.target is not None:
        raise UsageError("\n".join(mistakes))
    return component


def checked_arguments(target: Callable[..., Any], values: dict[str, Any], *, prefix: str) -> dict[str, Any]:
    """Return the values, converted to the types of the target's annotations. Raise UsageError for the first mistake.

    ``prefix`` is the key of the config that has the values.
    """
    try:
        return _validated(target, values, set())
    except pydantic.ValidationError as error:
        detail = error.errors()[0]
    name = str(detail["loc"][0])
    if detail["type"] == "extra_forbidden":
        reason = f"unknown option{expected_one_of(name, list(inspect.signature(target).parameters))}"
        raise UsageError(f"{prefix}.{name}: {reason}")
    if name not in values:
        raise UsageError(f"{prefix}.{name}: missing")
    raise UsageError(f"{prefix}.{name}={as_written(values[name])}: {_requirement(detail)}")


def _component(
    cfg: DictConfig, group: str, arguments: set[str], options: dict[str, Any]
) -> tuple[Component, list[str]]:
    """Return the component of a group and a line for each mistake in its options.

    ``options`` are the resolved values of the group; they are changed.
    """
    path = options.pop("_target_", None)
    if path is None:
        return Component(group, None, options), _missing_target(cfg, group)
    setting = f"{group}._target_={shortened(path)}"
    try:
        target = _located(path)
    except (Exception, SystemExit) as error:
        line = f"{setting}: cannot be used ({own_code.import_failure(path, error)})"
        raise UsageError(f"{location(cfg, line)}{line}") from error
    if group in SETTINGS and not _is_subclass(target, _located(SETTINGS[group])):
        raise UsageError(f"{location(cfg, setting)}{setting}: must be {SETTINGS[group]} or a subclass of it")
    name = _chosen(cfg, group)
    if own_code.is_own(target):
        own_code.require_arguments(name, target, NEEDED.get(group, set()))
    try:
        return Component(name, target, _validated(target, options, arguments)), []
    except pydantic.ValidationError as error:
        valid = [name for name in inspect.signature(target).parameters if name not in arguments]
        by_option: dict[str, list[Any]] = {}
        for detail in error.errors():
            by_option.setdefault(str(detail["loc"][0]), []).append(detail)
        misspelt = [name for name, details in by_option.items() if details[0]["type"] == "extra_forbidden"]
        for name in [near for word in misspelt for near in nearest(word, valid)[:1] if near not in options]:
            by_option.pop(name, None)  # the line for the misspelt option names it
        lines = [_line(cfg, group, details, valid) for details in by_option.values()]
        return Component(name, target, options), lines


@functools.cache
def _located(path: str) -> Callable[..., Any]:
    located: functools.partial[Any] = instantiate({"_target_": path, "_partial_": True})  # under Hydra's policy
    target = functools.partial(located.func, *located.args) if located.args else located.func
    inspect.signature(target)  # fails for some classes of Python itself, such as dict
    return target


def _missing_target(cfg: DictConfig, group: str) -> list[str]:
    """Return a line for a group without target, unless it may have none."""
    if group in OPTIONAL and not any(name for name in cfg[group] if name != "_target_"):
        return []
    others = [str(name) for name in cfg[group] if name != "_target_"]
    similar = nearest("_target_", others) or nearest("target", others)
    hint = f" instead of {similar[0]}" if similar else ""
    return [f"{group}._target_: missing; expected the path of a class or function, _target_: MODULE.NAME{hint}"]


def _is_subclass(target: object, settings: object) -> bool:
    return inspect.isclass(target) and inspect.isclass(settings) and issubclass(target, settings)


def _validated(target: Callable[..., Any], options: dict[str, Any], arguments: set[str]) -> dict[str, Any]:
    """Return the options, converted to the types of the target's annotations. Raise pydantic.ValidationError."""
    booleans = frozenset(name for name, value in options.items() if isinstance(value, bool))
    valid = _options_model(target, frozenset(options), booleans, frozenset(arguments)).model_validate(options)
    return {name: getattr(valid, name) for name in options}


@functools.lru_cache(maxsize=256)  # jobs of a sweep have the same options, with other values
def _options_model(
    target: Callable[..., Any], options: frozenset[str], booleans: frozenset[str], arguments: frozenset[str]
) -> type[pydantic.BaseModel]:
    """Return the pydantic model of these options of a target. ``booleans`` are not accepted as numbers."""
    function: Any = target.func if isinstance(target, functools.partial) else target
    annotated = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    try:
        hints = typing.get_type_hints(annotated, include_extras=True)
    except NameError:  # in own code, names may be imported for type checking only
        hints = {}
    in_torch = function.__module__.startswith("torch.")
    needs_all = dataclasses.is_dataclass(function)  # the defaults of settings are those of the config file
    fields: dict[str, Any] = {}
    accepts_any = False
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            accepts_any = True
            continue
        required = parameter.default is parameter.empty or needs_all
        if name not in arguments and (name in options or (required and not in_torch)):
            hint = TORCH_NUMBERS.get(name, hints.get(name, Any)) if in_torch else hints.get(name, Any)
            if name in booleans:
                hint = Annotated[hint, BeforeValidator(_require_boolean(hint))]
            fields[name] = (hint, ... if required else parameter.default)
    model: type[pydantic.BaseModel] = pydantic.create_model(
        "Options",
        __config__=pydantic.ConfigDict(
            extra="allow" if accepts_any else "forbid", arbitrary_types_allowed=True, allow_inf_nan=False
        ),
        **fields,
    )
    return model


def _require_boolean(hint: Any) -> Callable[[bool], bool]:
    """Return a validator that rejects true and false for numbers, where pydantic reads them as 1 and 0."""

    def validate_boolean(value: bool) -> bool:
        takes_bool = bool in (hint, *typing.get_args(hint)) or hint is Any
        if not takes_bool:
            raise PydanticCustomError("bool", "must be a number, not true or false")
        return value

    return validate_boolean


def _line(cfg: DictConfig, group: str, details: Sequence[Any], valid: list[str]) -> str:
    """Return the line for one option, from pydantic's errors about it."""
    detail = details[0]
    name = str(detail["loc"][0])
    full = f"{group}.{name}"
    if detail["type"] == "missing" and len(detail["loc"]) == 1:
        return f"{full}: missing; {_chosen(cfg, group)} needs it"
    if detail["type"] == "extra_forbidden":
        hint = expected_one_of(name, valid, shown_by=f"--cfg job --package {group}")
        return f"{full}: unknown option of {_chosen(cfg, group)}{hint}"
    node = OmegaConf.select(cfg, group)
    options = typing.cast("dict[str, Any]", OmegaConf.to_container(node, resolve=False))
    setting = f"{full}={as_written(node[name])}"
    if alias := _alias(options[name]):
        setting = f"{alias}={as_written(node[name])} ({full})"
    alternatives = [other for other in details if len(other["loc"]) == 2 and isinstance(other["loc"][1], str)]
    first, *others = dict.fromkeys(map(_requirement, alternatives or [detail]))  # a union has an error for each type
    return f"{setting}: {' or '.join([first, *(text.removeprefix('must be ') for text in others)])}"


def _alias(value: Any) -> str | None:
    """Return the top-level key that a value such as ``${b}`` consists of; None for other values."""
    keys = references(value)[0].keys if isinstance(value, str) and references(value) else ()
    return str(keys[0]) if len(keys) == 1 and value == f"${{{keys[0]}}}" else None


def _requirement(detail: Any) -> str:
    """Return the requirement that a value does not meet, from pydantic's error."""
    message = "too few values" if detail["type"] == "missing" else str(detail["msg"])
    message = re.sub(r"^(Input|List|Tuple|Value) should", "must", message).replace(
        "a finite number", "finite (not nan or inf)"
    )
    message = re.sub(r"^must be a valid (number|integer|boolean|string|list|tuple).*", r"must be a \1", message)
    return message.replace("a integer", "a whole number").replace("must be a boolean", "must be true or false")


def _chosen(cfg: DictConfig, group: str) -> str:
    """Return a group with its option, such as ``optimizer=adam``; ``logger=mlflow`` for ``logger.mlflow``."""
    parent, _, name = group.partition(".")
    return f"{parent}={name or choice(cfg, group)}"


def choice(cfg: DictConfig, group: str) -> str:
    """Return the option of a group, as on the command line; the last part of its target if no file has this target."""
    return option(cfg, group, conf_dir()) or str(cfg[group]["_target_"]).rpartition(".")[2]
