"""Datasets, models and losses of the user's own modules: errors that they raise, and results that do not fit.

An error becomes one line with the key, the target, and the file and line in the user's code. With HYDRA_FULL_ERROR=1
the traceback is shown instead.
"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor, nn

import dlhw
from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError
from dlhw.models.modes import evaluating
from dlhw.runtime.devices import Precision

LIBRARIES = ("dlhw", "torch", "torchvision")
"""Packages whose targets are not the user's own."""


def is_own(target: Callable[..., Any]) -> bool:
    """Return whether a target belongs to the user's own code."""
    return str(_function(target).__module__).partition(".")[0] not in LIBRARIES


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


def mistake(name: str, target: Callable[..., Any], error: Exception, *, doing: str = "") -> UsageError:
    """Return the error to raise for an exception that a target raised.

    ``name`` is the group and option, such as model=mlp; ``doing`` precedes the reason.
    """
    reason = " ".join(str(error).split())
    if not is_own(target):
        return UsageError(f"{name}: {reason}")
    text = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return UsageError(f"{_described(name, target)}: {doing}{text} ({_place(target, error)})")


def import_failure(error: Exception) -> str:
    """Return why a target cannot be imported, from Hydra's error, with the file and line that raised it in own code."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, SyntaxError):
        return f"{cause.msg}, {cause.filename}:{cause.lineno}"
    place = _innermost(cause, file=None)
    if place is None:
        return " ".join(str(error.__cause__ or error).split())
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}, {place}"


def require_arguments(name: str, target: Callable[..., Any], arguments: set[str]) -> None:
    """Raise UsageError if the target does not take these keyword arguments."""
    parameters = inspect.signature(target).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    missing = sorted(arguments - set(parameters))
    if missing:
        names = f"argument{'s' * (len(missing) > 1)} {' and '.join(missing)}"
        raise UsageError(f"{_described(name, target)}: must take the {names} ({_place(target)})")


def require_model(name: str, target: Callable[..., Any], model: object) -> nn.Module:
    """Return the model. Raise UsageError if it is not a module, or has no parameters."""
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"{_described(name, target)}: returns {_a(type(model).__name__)}; expected a torch.nn.Module "
            f"({_place(target)})"
        )
    if next(model.parameters(), None) is None:
        raise UsageError(f"{_described(name, target)}: has no parameters to train ({_place(target)})")
    return model


def require_dataset(name: str, target: Callable[..., Any], data: object) -> Dataset:
    """Return the dataset. Raise UsageError if it is not a Dataset, or if its labels do not fit its classes."""
    described = _described(name, target)
    if not isinstance(data, Dataset):
        raise UsageError(
            f"{described}: returns {_a(type(data).__name__)}; expected a dlhw.data.tensors.Dataset ({_place(target)})"
        )
    for part, split in data.parts.items():
        if not len(split):
            raise UsageError(f"{described}: the part {part} has no samples ({_place(target)})")
        y = split.y
        if not data.classes:
            if not y.is_floating_point():
                raise UsageError(
                    f"{described}: {part} has targets of {y.dtype}; expected floating-point numbers, or names in "
                    f"classes for classification ({_place(target)})"
                )
        elif y.dtype != torch.int64 or not 0 <= int(y.min()) <= int(y.max()) < len(data.classes):
            raise UsageError(
                f"{described}: {part} has labels of {y.dtype} from {y.min().item()} to {y.max().item()}; expected "
                f"torch.int64 from 0 to {len(data.classes) - 1} ({_place(target)})"
            )
    return data


def require_outputs(
    name: str, target: Callable[..., Any], model: nn.Module, data: Dataset, precision: Precision
) -> None:
    """Compute the outputs of two samples with a copy of the model; raise UsageError if this fails or does not fit.

    Nothing that training uses changes: not the model's buffers, and not torch's random numbers.
    """
    x = data.normalize(data.train[:2][0])
    devices = [x.device] if x.device.type == "cuda" else []
    try:
        trial = copy.deepcopy(model)
        with torch.random.fork_rng(devices), torch.no_grad(), precision.autocast(), evaluating(trial):
            outputs = trial(x)
    except Exception as error:
        raise mistake(name, target, error, doing=f"fails for samples of shape {tuple(x.shape[1:])}: ") from error
    expected = (len(x), data.outputs)
    if not isinstance(outputs, Tensor):
        result = _a(type(outputs).__name__)
    elif tuple(outputs.shape) != expected:
        result = f"shape {tuple(outputs.shape)}"
    elif not outputs.is_floating_point():
        result = f"numbers of {outputs.dtype}"
    else:
        return
    raise UsageError(
        f"{_described(name, target)}: returns {result} for {len(x)} samples of shape {tuple(x.shape[1:])}; expected "
        f"a tensor of logits of shape {expected} ({_place(type(model).forward)})"
    )


def require_scalar_loss(
    name: str, target: Callable[..., Any], loss: Callable[[Tensor, Tensor], Tensor], data: Dataset, precision: Precision
) -> None:
    """Raise UsageError if the loss fails for two samples, or returns anything but a single number."""
    y = data.train[:2][1]
    logits = torch.zeros((len(y), data.outputs) if data.classes else (len(y),), dtype=precision.dtype, device=y.device)
    try:
        value = loss(logits, y)
    except Exception as error:
        raise mistake(name, target, error) from error
    if not isinstance(value, Tensor) or value.shape:
        result = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else _a(type(value).__name__)
        raise UsageError(
            f"{_described(name, target)}: returns {result} for {len(y)} samples; expected a tensor with one number, "
            f"the mean loss ({_place(target)})"
        )


def _described(name: str, target: Callable[..., Any]) -> str:
    function = _function(target)
    return f"{name} ({function.__module__}.{getattr(function, '__qualname__', type(function).__name__)})"


def _function(target: Callable[..., Any]) -> Any:
    return target.func if isinstance(target, functools.partial) else target


def _a(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def _place(target: Callable[..., Any], error: Exception | None = None) -> str:
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
