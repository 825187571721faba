"""Metrics of an epoch: pure functions from the measurements of training steps and evaluations to columns of a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dlhw.data.tensors import Dataset
from dlhw.storage.record import Row
from dlhw.training.objective import flooded
from dlhw.training.settings import Trainer

NEAR_ZERO = 1e-3
"""Weights with a smaller absolute value count as near zero (D4.2)."""


Errors = Callable[[Tensor, Tensor], Tensor]
"""Counts errors, see :func:`errors_of`."""


def errors_of(data: Dataset) -> Errors:
    """Return the function that counts errors on this dataset: a sum over a batch for each model, (K,).

    Its arguments are the outputs of the models and the targets, whose first dimension is 1 if all models have the same.
    """
    if not data.numeric_targets:
        return wrong_classes
    return wrong_signs if data.classes else squared_errors


def wrong_classes(logits: Tensor, y: Tensor) -> Tensor:
    """Count wrong predictions, from logits (K, B, C) and labels (K, B), or shares (K, B, C) whose largest counts."""
    return (logits.argmax(2) != (y.argmax(2) if y.ndim == 3 else y)).sum(1)


def wrong_signs(outputs: Tensor, y: Tensor) -> Tensor:
    """Count outputs (K, B) with another sign than the targets (K, B); the sign of 0 is +."""
    return ((outputs >= 0) != (y >= 0)).sum(1)


def squared_errors(outputs: Tensor, y: Tensor) -> Tensor:
    """Add the squared differences between outputs (K, B) and targets (K, B)."""
    return (outputs - y).square().sum(1)


def split_metrics(loss: Tensor, errors: Tensor, count: int, *, regression: bool) -> dict[str, list[float]]:
    """Return loss and error of each model from mean losses (K,) and summed errors (K,) of ``count`` samples."""
    mean = errors.cpu().double() / count
    if regression:
        return {"loss": loss.tolist(), "mse": mean.tolist()}
    return {"loss": loss.tolist(), "error_percent": (100 * mean).tolist(), "accuracy": (1 - mean).tolist()}


def running_metrics(history: Tensor, data: Dataset, trainer: Trainer, flood: float | Tensor) -> dict[str, list[float]]:
    """Return the training metrics of each model: means over an epoch, each sample measured just before its update.

    Args:
        history: loss, penalty and errors of every step, (steps, K, 3) on the CPU.
        flood: the flood level of all models, or of each, (K,).
    """
    losses, penalties, wrong = history.unbind(2)
    size = trainer.batch_size
    count = min(len(data.train), len(history) * size)
    shares = losses.new_tensor([min(size, count - start) / count for start in range(0, count, size)])
    objectives = flooded(losses, flood) + penalties
    means = split_metrics(shares @ losses, wrong.sum(0), count, regression=not data.classes)
    columns = {f"train_{name}": values for name, values in means.items()}
    more = {"train_objective": shares @ objectives, "train_penalty": shares @ penalties}
    return columns | {name: values.tolist() for name, values in more.items()}


def weight_metrics(parameters: Sequence[Tensor]) -> dict[str, list[float]]:
    """Return L2 norm and percentage near zero of all weight matrices and kernels (K, *shape) of each model."""
    weights = [tensor.flatten(1) for tensor in parameters if tensor.ndim > 2]
    weights = weights or [parameters[0].new_zeros(len(parameters[0]), 0)]
    squares = torch.stack([weight.square().sum(1) for weight in weights]).sum(0)
    small = torch.stack([(weight.abs() < NEAR_ZERO).sum(1) for weight in weights]).sum(0)
    count = max(1, sum(weight.shape[1] for weight in weights))
    return {"weight_norm": squares.sqrt().tolist(), "near_zero_percent": (100 * small.cpu().double() / count).tolist()}


def divergences(history: Tensor, rows: Sequence[Row]) -> list[str | None]:
    """Describe for each model what is not finite in ``history`` (steps, K, 3) or its row; None if nothing."""
    finite = torch.isfinite(history[:, :, 0] + history[:, :, 1]).all(0).tolist()
    return [
        None if losses_are_finite and all(map(math.isfinite, row.values())) else _divergence(history[:, k], row)
        for k, (losses_are_finite, row) in enumerate(zip(finite, rows, strict=True))
    ]


def _divergence(history: Tensor, row: Row) -> str | None:
    """Describe the first loss in ``history`` (steps, 3), or metric of the row, that is not finite."""
    losses, penalties, _ = history.unbind(1)
    not_finite = (~torch.isfinite(losses + penalties)).nonzero()
    if len(not_finite):
        step = int(not_finite[0])
        return (
            f"loss {losses[step]:g}, penalty {penalties[step]:g} at step {row['step'] - len(losses) + step + 1} "
            f"(epoch {row['epoch']}, step {step + 1} of {len(losses)}): training diverged; "
            "try a smaller optimizer.lr, or set trainer.clip_norm"
        )
    for name, value in row.items():
        if not math.isfinite(value):
            return f"{name} is {value:g} after epoch {row['epoch']} (step {row['step']}): training diverged"
    return None
