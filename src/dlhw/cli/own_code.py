"""Targets in the user's own modules: where they are, and the errors that they raise.

An error becomes one line with the key, the target, and the file and line in the user's code. With HYDRA_FULL_ERROR=1
the traceback is shown instead.
"""

from __future__ import annotations

import functools
import inspect
import os
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

import dlhw
from dlhw.errors import UsageError
from dlhw.runtime.hints import expected_one_of

LIBRARIES = ("dlhw", "torch", "torchvision")
"""Packages whose targets are not the user's own."""


def is_own(target: Callable[..., Any]) -> bool:
    """Return whether a target belongs to the user's own code."""
    return str(_function(target).__module__).partition(".")[0] not in LIBRARIES


def make_importable(*folders: str | Path | None) -> None:
    """Let modules in these folders be imported, if nothing else has their name."""
    for path in (os.path.abspath(folder) for folder in folders if folder):
        if path not in sys.path:
            sys.path.append(path)


def sources(cfg: DictConfig) -> list[Path]:
    """Return the files of the config's targets in own code, and the folders given by --config-dir."""
    nodes = [node for node in cfg.values() if isinstance(node, DictConfig)]
    names = [str(node["_target_"]).rpartition(".")[0] for node in nodes if node.get("_target_")]
    files = [
        getattr(sys.modules.get(name), "__file__", None) for name in names if name.partition(".")[0] not in LIBRARIES
    ]
    folders = (
        [source.path for source in HydraConfig.get().runtime.config_sources if source.provider == "command-line"]
        if HydraConfig.initialized()
        else []
    )
    return [Path(path) for path in (*files, *folders) if path]


def mistake(name: str, target: Callable[..., Any], error: BaseException, *, doing: str = "") -> UsageError:
    """Return the error to raise for an exception that a target raised.

    ``name`` is the group and option, such as model=mlp; ``doing`` precedes the reason.
    """
    reason = " ".join(str(error).split())
    if not is_own(target):
        return UsageError(f"{name}: {reason}")
    kind = type(error).__name__
    text = reason if isinstance(error, UsageError) else f"{kind}: {reason}" if reason else kind
    return UsageError(f"{described(name, target)}: {doing}{text} ({place(target, error)})")


def import_failure(path: object, error: BaseException) -> str:
    """Return why the target at a dotted path cannot be imported, from Hydra's error.

    It contains the file and line that raised the error in own code, or names that are similar.
    """
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, SyntaxError):
        return f"{cause.msg}, {cause.filename}:{cause.lineno}"
    if isinstance(cause, ModuleNotFoundError) and f"{path}.".startswith(f"{cause.name}."):
        return _missing_part(str(cause.name))
    origin = _innermost(cause, file=None)
    if origin is None:
        return " ".join(str(error.__cause__ or error).split())
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}, {origin}"


def _missing_part(path: str) -> str:
    """Return why a dotted path does not exist: an unknown module, or an unknown name in a module."""
    module, _, name = path.rpartition(".")
    if not module:
        return (
            f"no module {name}; expected MODULE.NAME, with {name}.py in the working directory or in the folder of "
            "--config-dir, or an installed package"
        )
    parent = sys.modules[module]
    modules = [info.name for info in pkgutil.iter_modules(getattr(parent, "__path__", ()))]
    names = [other for other, value in vars(parent).items() if getattr(value, "__module__", None) == module]
    return f"{module} has no {name}{expected_one_of(name, [*modules, *names])}"


def taken(target: Callable[..., Any], arguments: Collection[str]) -> set[str]:
    """Return those of the keyword arguments that the target takes."""
    parameters = inspect.signature(target).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name for name in arguments if takes_any or name in parameters}


def require_arguments(name: str, target: Callable[..., Any], arguments: set[str]) -> None:
    """Raise UsageError if the target does not take these keyword arguments."""
    missing = sorted(arguments - taken(target, arguments))
    if missing:
        names = f"argument{'s' * (len(missing) > 1)} {' and '.join(missing)}"
        raise UsageError(f"{described(name, target)}: must take the {names} ({place(target)})")


def described(name: str, target: Callable[..., Any]) -> str:
    """Return the setting and the full name of its target, such as ``model=net (my_code.Net)``."""
    function = _function(target)
    return f"{name} ({function.__module__}.{getattr(function, '__qualname__', type(function).__name__)})"


def _function(target: Callable[..., Any]) -> Any:
    return target.func if isinstance(target, functools.partial) else target


def place(target: Callable[..., Any], error: BaseException | None = None) -> str:
    """Return file and line: of the innermost call in own code that raised the error, or of the target's definition."""
    function = _function(target)
    try:
        file, line = inspect.getsourcefile(function), inspect.getsourcelines(function)[1]
    except (TypeError, OSError):
        file, line = None, 0
    defined = f"{file}:{line}" if file else "no source file"
    return defined if error is None else _innermost(error, file=file) or defined


def _innermost(error: BaseException, *, file: str | None) -> str | None:
    """Return file and line of the innermost call in ``file``, or in any file that belongs to no library."""
    libraries = [str(Path(dlhw.__file__).parent), *(sysconfig.get_path(kind) for kind in ("stdlib", "purelib"))]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == file or not frame.filename.startswith(("<", *libraries)):
            return f"{frame.filename}:{frame.lineno}"
    return None
