"""What ``debug=true`` changes: a run of a few batches, and a check of the gradients after it."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import nn

from dlhw.data.tensors import Dataset, Split
from dlhw.errors import TrainingFailed
from dlhw.training.settings import Trainer

log = logging.getLogger("dlhw")

EPOCHS = 2
BATCHES = 2
"""Training batches in each part of the dataset."""


def shortened(trainer: Trainer, data: Dataset) -> tuple[Trainer, Dataset]:
    """Return the trainer and the data of a run of ``EPOCHS`` epochs, with ``BATCHES`` batches in each part."""
    steps = trainer.steps_per_epoch
    samples = BATCHES * trainer.batch_size
    return (
        replace(
            trainer,
            epochs=min(trainer.epochs, EPOCHS),
            steps_per_epoch=None if steps is None else min(steps, BATCHES),
            evaluation_batch_size=min(trainer.evaluation_batch_size, trainer.batch_size),
        ),
        data.with_parts({name: _evenly_spaced(part, samples) for name, part in data.parts.items()}),
    )


def _evenly_spaced(part: Split, count: int) -> Split:
    """Return at most ``count`` samples, of all classes even if the samples are sorted by class."""
    rows = part.all_rows()[0]
    count = min(count, len(rows))
    return Split(part.pool_x, part.pool_y, rows[torch.arange(count, device=rows.device) * len(rows) // count])


def check_gradients(model: nn.Module) -> None:
    """Check the gradients of the last training step, and log a warning for each trained parameter that got none.

    Raise TrainingFailed if a gradient is not finite.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            log.warning("debug: %s has no gradient: the loss does not depend on it", name)
        elif not parameter.grad.isfinite().all():
            raise TrainingFailed(f"the gradient of {name} is not finite")
        elif not parameter.grad.any():
            log.warning("debug: the gradient of %s is zero, so it does not train", name)
