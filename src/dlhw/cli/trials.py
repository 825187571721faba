"""Check what datasets, models and losses of the user's own modules return, before training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dlhw.cli.own_code import described, is_own, mistake, place
from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError
from dlhw.models.modes import evaluating
from dlhw.runtime.devices import Precision


def require_model(name: str, target: Callable[..., Any], model: object) -> nn.Module:
    """Return the model. Raise UsageError if it is not a module, or has no parameters."""
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"{described(name, target)}: returns {_a(type(model).__name__)}; expected a torch.nn.Module "
            f"({place(target)})"
        )
    if next(model.parameters(), None) is None:
        raise UsageError(f"{described(name, target)}: has no parameters to train ({place(target)})")
    return model


def require_dataset(name: str, target: Callable[..., Any], data: object) -> Dataset:
    """Return the dataset. Raise UsageError if it is not a Dataset, or if its labels do not fit its classes."""
    setting = described(name, target)
    if not isinstance(data, Dataset):
        raise UsageError(
            f"{setting}: returns {_a(type(data).__name__)}; expected a Dataset, as dlhw.from_arrays(x, y, seed=seed) "
            f"returns it ({place(target)})"
        )
    for part, split in data.parts.items():
        if not len(split):
            raise UsageError(f"{setting}: the part {part} has no samples ({place(target)})")
        y = split.y
        if len(data.classes) == 2 and y.is_floating_point():
            if not (y.abs() == 1).all():
                raise UsageError(
                    f"{setting}: {part} has other targets than -1 and +1; expected these, or labels of torch.int64 "
                    f"({place(target)})"
                )
        elif not data.classes:
            if not y.is_floating_point():
                raise UsageError(
                    f"{setting}: {part} has targets of {y.dtype}; expected floating-point numbers, or names in "
                    f"classes for classification ({place(target)})"
                )
        elif y.dtype != torch.int64 or not 0 <= int(y.min()) <= int(y.max()) < len(data.classes):
            raise UsageError(
                f"{setting}: {part} has labels of {y.dtype} from {y.min().item()} to {y.max().item()}; expected "
                f"torch.int64 from 0 to {len(data.classes) - 1} ({place(target)})"
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
        try:
            trial = copy.deepcopy(model)
        except RuntimeError:  # parametrizations of torch.nn.utils
            return
        with torch.random.fork_rng(devices), precision.autocast(), evaluating(trial):
            outputs = trial(x)
    except (Exception, SystemExit) as error:
        raise mistake(name, target, error, doing=f"fails for samples of shape {tuple(x.shape[1:])}: ") from error
    expected = (len(x), data.outputs)
    if not isinstance(outputs, Tensor):
        result = _a(type(outputs).__name__)
    elif tuple(outputs.shape) != expected:
        result = f"shape {tuple(outputs.shape)}"
    elif not outputs.is_floating_point():
        result = f"numbers of {outputs.dtype}"
    elif not outputs.requires_grad:
        result = "a tensor without gradients (detach, .data, no_grad or NumPy in forward)"
    else:
        return
    forward = type(model).forward
    raise UsageError(
        f"{described(name, target)}: returns {result} for {len(x)} samples of shape {tuple(x.shape[1:])}; expected "
        f"a tensor of logits of shape {expected} ({place(forward if is_own(forward) else target)})"
    )


def require_scalar_loss(
    name: str, target: Callable[..., Any], loss: Callable[[Tensor, Tensor], Tensor], data: Dataset, precision: Precision
) -> None:
    """Raise UsageError if the loss fails for two samples, or returns anything but a single number."""
    y = data.train[:2][1]
    logits = torch.zeros(
        (len(y),) if data.numeric_targets else (len(y), data.outputs), dtype=precision.dtype, device=y.device
    )
    try:
        value = loss(logits, y)
    except Exception as error:
        raise mistake(name, target, error) from error
    if not isinstance(value, Tensor) or value.shape:
        result = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else _a(type(value).__name__)
        raise UsageError(
            f"{described(name, target)}: returns {result} for {len(y)} samples; expected a tensor with one number, "
            f"the mean loss ({place(target)})"
        )


def _a(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"
