"""From a config to the objects it describes, with every value checked first.

A group of the config names a callable by ``_target_``; its other keys are that callable's keyword
arguments. The callable's own annotations say what is legal: they are all the validation there is.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any

import pydantic
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError
from torch import nn

from dlhw.errors import UsageError
from dlhw.runtime.randomness import generator, key

OPTIONAL = ("probe", "report", "study")

# Names that torch.optim and torch.nn.functional annotate as plain numbers, and what they may be.
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


def check(cfg: DictConfig, given: Mapping[str, set[str]]) -> None:
    """Check every group's options against its target. Raises UsageError with one line per mistake.

    Args:
        cfg: the composed config.
        given: per group, the arguments that the program itself will pass.
    """
    own = OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "hydra"])
    try:
        OmegaConf.to_container(own, resolve=True)
    except OmegaConfBaseException as error:
        node = None if error.parent_node is None else error.parent_node._get_node(error.key)
        names = [name for name in re.findall(r"\$\{(\w+)\}", str(getattr(node, "_value", str)())) if name in cfg]
        spoken = f"{', '.join(f'{name}={cfg[name]}' for name in names)} ({error.full_key})" if names else error.full_key
        reason = str(error).splitlines()[0].partition(" raised while resolving interpolation: ")
        raise UsageError(f"{spoken}: {reason[2] or reason[0]}") from error
    mistakes = [f"{group}: missing" for group in given if not isinstance(cfg.get(group), DictConfig)]
    mistakes += [f"{name}: missing, give it a value" for name in OmegaConf.missing_keys(own)]
    if not mistakes:
        mistakes = [line for group, names in given.items() for line in _mistakes(cfg, group, names)]
    if not isinstance(cfg.seed, int) or isinstance(cfg.seed, bool) or cfg.seed < 0:
        mistakes.append(f"seed={cfg.seed}: must be a whole number, 0 or greater")
    if not re.fullmatch(r"[\w.+-]*\w", str(cfg.name)) or not isinstance(cfg.name, str):
        mistakes.append(f"name={cfg.name}: must be letters, digits and . _ + - alone, it names a folder")
    for folder in ("data_dir", "output_dir"):
        if not isinstance(cfg[folder], str) or not cfg[folder]:
            mistakes.append(f"{folder}={cfg[folder]}: must be the path of a folder")
    if mistakes:
        raise UsageError("\n".join(mistakes))


def build(cfg: DictConfig, group: str, **given: Any) -> Any:
    """The object that ``cfg[group]`` describes, None when the group names no target.

    Raises UsageError for options that are unknown, missing or not legal.
    """
    target, options = _target(cfg, group)
    if target is None:
        return None
    mistakes = _mistakes(cfg, group, set(given))
    if mistakes:
        raise UsageError("\n".join(mistakes))
    try:
        return target(**given, **_validated(target, options, set(given)))
    except UsageError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:  # torch's own words for a value that it does not take
        raise UsageError(f"{group}={choice(cfg, group)}: {str(error).splitlines()[0]}") from error


def deferred(cfg: DictConfig, group: str, later: Collection[str] = (), **given: Any) -> Callable[..., Any]:
    """Like :func:`build` for a target that is called later, then with the arguments ``later``: options bound to it."""
    target, options = _target(cfg, group)
    assert target is not None, f"{group} names no target"
    return functools.partial(target, **given, **_validated(target, options, {*given, *later}))


def arguments(cfg: DictConfig, group: str) -> frozenset[str]:
    """Names of the arguments that the group's target takes."""
    target, _ = _target(cfg, group)
    return frozenset() if target is None else frozenset(inspect.signature(target).parameters)


def make_model(cfg: DictConfig, *, shape: tuple[int, ...], outputs: int | None) -> nn.Module:
    """The config's model, initialized. Its randomness depends on the seed alone, not on the device.

    Of a model that comes with weights only the layers that they leave ``fresh`` are initialized.
    """
    torch.manual_seed(key(cfg.seed, "model"))
    model: nn.Module = build(cfg, "model", shape=shape, outputs=outputs)
    draws = generator(cfg.seed, "init")
    with torch.no_grad():
        for name in getattr(model, "fresh", [""]):
            build(cfg, "init", model=model.get_submodule(name), generator=draws)
    return model


def _target(cfg: DictConfig, group: str) -> tuple[Callable[..., Any] | None, dict[str, Any]]:
    options = typing.cast("dict[str, Any]", OmegaConf.to_container(cfg[group], resolve=True))
    path = options.pop("_target_", None)
    if path is None:
        return None, options
    try:
        return _located(path), options
    except Exception as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise UsageError(f"{group}._target_={path}: cannot be used ({reason})") from error


@functools.cache
def _located(path: str) -> Callable[..., Any]:
    target: Callable[..., Any] = instantiate({"_target_": path, "_partial_": True}).func  # under Hydra's policy
    return target


def _validated(target: Callable[..., Any], options: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """``options`` as the target's annotations want them. Raises pydantic.ValidationError."""
    true_or_false = frozenset(name for name, value in options.items() if isinstance(value, bool))
    checked = _model(target, frozenset(options), true_or_false, frozenset(given)).model_validate(options)
    return {name: getattr(checked, name) for name in options}


@functools.lru_cache(maxsize=256)  # jobs of a sweep have the same options, with other values
def _model(
    target: Callable[..., Any], options: frozenset[str], true_or_false: frozenset[str], given: frozenset[str]
) -> type[pydantic.BaseModel]:
    """What checks the named options of a target; those that are true or false must not pass for numbers."""
    annotated: Any = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    hints = typing.get_type_hints(annotated, include_extras=True)
    of_torch = target.__module__.startswith("torch.")
    fields: dict[str, Any] = {}
    takes_more = False
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            takes_more = True
        elif name not in given and (name in options or (parameter.default is parameter.empty and not of_torch)):
            hint = TORCH_NUMBERS.get(name, hints.get(name, Any)) if of_torch else hints.get(name, Any)
            if name in true_or_false:
                hint = Annotated[hint, BeforeValidator(_true_or_false_for(hint))]
            fields[name] = (hint, ... if parameter.default is parameter.empty else parameter.default)
    model: type[pydantic.BaseModel] = pydantic.create_model(
        "Options",
        __config__=pydantic.ConfigDict(
            extra="allow" if takes_more else "forbid", arbitrary_types_allowed=True, allow_inf_nan=False
        ),
        **fields,
    )
    return model


def _true_or_false_for(hint: Any) -> Callable[[bool], bool]:
    """A check that ``hint`` means true and false themselves, which pydantic also takes for the numbers 1 and 0."""

    def check(value: bool) -> bool:
        takes_bool = bool in (hint, *typing.get_args(hint)) or hint is Any
        if not takes_bool:
            raise PydanticCustomError("bool", "must be a number, not true or false")
        return value

    return check


def _mistakes(cfg: DictConfig, group: str, given: set[str]) -> list[str]:
    target, options = _target(cfg, group)
    if target is None:
        return [] if group in OPTIONAL else [f"{group}._target_: missing"]
    try:
        _validated(target, options, given)
    except pydantic.ValidationError as error:
        legal = [name for name in inspect.signature(target).parameters if name not in given]
        by_name: dict[str, list[Any]] = {}
        for detail in error.errors():
            by_name.setdefault(str(detail["loc"][0]), []).append(detail)
        return [_line(cfg, group, details, legal) for details in by_name.values()]
    return []


def _line(cfg: DictConfig, group: str, details: Sequence[Any], legal: list[str]) -> str:
    """The line for one option, from pydantic's errors about it."""
    detail = details[0]
    name = str(detail["loc"][0])
    full = f"{group}.{name}"
    if detail["type"] == "missing" and len(detail["loc"]) == 1:
        return f"{full}: missing; {group}={choice(cfg, group)} needs it"
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, legal, 1)
        hint = f"; did you mean {group}.{near[0]}?" if near else ""
        return f"{full}: no such option of {group}={choice(cfg, group)}{hint} (there are: {', '.join(legal)})"
    value = _as_written(cfg[group][name])
    alias = re.fullmatch(r"\$\{(\w+)\}", str(OmegaConf.to_container(cfg[group])[name]))  # type: ignore[index,call-overload]
    spoken = f"{alias[1]}={value} ({full})" if alias else f"{full}={value}"
    alternatives = [other for other in details if len(other["loc"]) == 2 and isinstance(other["loc"][1], str)]
    told = list(dict.fromkeys(map(_legal, alternatives or [detail])))  # a union has an error for each of its types
    return f"{spoken}: {' or '.join([told[0], *(text.removeprefix('must be ') for text in told[1:])])}"


def _legal(detail: Any) -> str:
    message = "too few values" if detail["type"] == "missing" else str(detail["msg"])
    message = re.sub(r"^(Input|List|Tuple|Value) should", "must", message).replace(
        "a finite number", "finite (not nan or inf)"
    )
    message = re.sub(r"^must be a valid (number|integer|boolean|string|list|tuple).*", r"must be a \1", message)
    return message.replace("a integer", "a whole number").replace("must be a boolean", "must be true or false")


def _as_written(value: Any) -> str:
    """A config value as its user writes it: null, true, 0.1, [1, 2]."""
    return str(value) if not isinstance(value, bool | None) else {None: "null", True: "true", False: "false"}[value]


def choice(cfg: DictConfig, group: str) -> str:
    """What a user would call the option of a group: its name or architecture, or the last part of its target's."""
    own = cfg[group].get("name") or cfg[group].get("architecture")
    return str(own or cfg[group]["_target_"].rpartition(".")[2]).lower()
