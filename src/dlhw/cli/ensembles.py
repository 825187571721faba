"""Several configs trained at once as one ensemble, and the training of one config with several seeds in memory."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig, open_dict
from torch import nn

from dlhw.cli.assembly import Parts, assemble
from dlhw.cli.build import choice
from dlhw.data.tensors import Dataset, combine
from dlhw.errors import UsageError
from dlhw.runtime import devices
from dlhw.storage.identity import copied
from dlhw.storage.record import Record
from dlhw.training.loop import Training
from dlhw.training.optim import Schedule
from dlhw.training.run import TrainingRun
from dlhw.training.variants import Ensemble, NotVectorizable, Single

log = logging.getLogger("dlhw")

SHARE_OF_MEMORY = 0.5
"""Fraction of the free memory for weights and activations of an ensemble; evaluation and kernels need the rest."""


def convolves(model: nn.Module) -> bool:
    """Return whether a layer of the model is a convolution."""
    return any(isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) for layer in model.modules())


def must_be_equal(data: Dataset) -> Hashable:
    """Return what must be equal in the datasets of runs that are trained at once: sizes, classes, normalization."""
    sizes = tuple((name, len(part)) for name, part in data.parts.items())
    shift, scale = (tuple(values.flatten().tolist()) for values in (data.normalize.shift, data.normalize.scale))
    return data.shape, data.classes, sizes, shift, scale, data.normalize.size


def training_at_once(parts: Sequence[Parts], runs: Sequence[TrainingRun], schedules: Sequence[Schedule]) -> Training:
    """Return the training of several runs as one ensemble. Raise NotVectorizable if that is not possible.

    Runs with equal optimizers and the same schedule object share a parameter group if they are neighbours.
    """
    first = parts[0]
    assert len({must_be_equal(other.trained_on) for other in parts}) == 1
    splits = [other.trained_on.parts for other in parts]
    data = first.trained_on.with_parts({name: combine([parts[name] for parts in splits]) for name in splits[0]})
    with quiet():
        return Training(
            Ensemble([other.trained for other in parts], [other.optimizer for other in parts], schedules),
            runs,
            data,
            first.data_loss,
            trainer=replace(first.trainer, channels_last=False),
            precision=first.precision,
            probe=first.probe,
        )


def largest_that_fits(pair: Sequence[Parts]) -> int:
    """Estimate from a step of two models how many of them fit into memory. Raise NotVectorizable."""
    first = pair[0]
    free_bytes = devices.free_memory(first.precision.device)
    ensemble = Ensemble(*zip(*((parts.trained, parts.optimizer, parts.schedule) for parts in pair), strict=True))
    runs = [
        TrainingRun(Record(Path()), seed=seed, regularization=parts.regularization) for seed, parts in enumerate(pair)
    ]
    trainer = replace(first.trainer, compile=False, cuda_graphs=False, channels_last=False)
    saved_bytes = 0

    def count_bytes(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal saved_bytes
        saved_bytes += tensor.nbytes
        return tensor

    try:
        with quiet(), torch.autograd.graph.saved_tensors_hooks(count_bytes, lambda tensor: tensor):
            training = Training(
                ensemble, runs, first.trained_on, first.data_loss, trainer=trainer, precision=first.precision
            )
            training.step(*next(training.batches(1)))
    except RuntimeError as error:
        raise NotVectorizable(f"torch.func.vmap cannot map this model ({str(error).partition(chr(10))[0]})") from error
    weight_bytes = sum(tensor.nbytes for tensor in ensemble.tensors())
    copies = 5  # weights, gradients, two of the optimizer, the best weights
    return max(1, int(SHARE_OF_MEMORY * free_bytes / ((saved_bytes + copies * weight_bytes) / len(pair))))


def trainings(cfg: DictConfig, seeds: int) -> Iterator[Training]:
    """Yield the training of a config with ``seeds`` seeds, from the config's on, for a study that takes the steps.

    It is one training of all seeds at once where that is supported, else one for each. Nothing is written. The base
    learning rate is 1, or the factor in ``trainer.rates``. Raise UsageError.
    """
    if cfg.optimizer.get("lr") is None:
        raise UsageError(f"optimizer={choice(cfg, 'optimizer')}: has no option lr; expected an optimizer with one")
    if (schedule := choice(cfg, "scheduler")) != "none":
        log.info("scheduler=%s is not used here: the study sets the learning rate of each step", schedule)
    configs = [_with_unit_rate(cfg, cfg.seed + number) for number in range(seeds)]
    try:
        training = _of_all(configs)
    except NotVectorizable:
        training = None
    if training is not None:
        with quiet():
            yield training
        return
    for config in configs:
        parts = _uncompiled(assemble(config))
        yield Training(
            Single(parts.trained, parts.optimizer, parts.schedule),
            [_unrecorded(parts)],
            parts.trained_on,
            parts.data_loss,
            trainer=parts.trainer,
            precision=parts.precision,
        )


def _of_all(configs: Sequence[DictConfig]) -> Training | None:
    """Return the training of these configs at once; None for a single one. Raise NotVectorizable if that is no gain."""
    if len(configs) == 1:
        return None
    parts = [_uncompiled(assemble(config)) for config in configs[:2]]
    first = parts[0]
    if first.precision.device.type == "cpu" and convolves(first.trained):
        raise NotVectorizable("on a CPU, training convolutional networks at once is slower")
    if first.trainer.frozen_views is not None:
        raise NotVectorizable("augmented features depend on the seed (trainer.frozen_views)")
    _require_equal_inputs(parts)
    if largest_that_fits(parts) < len(configs):
        raise NotVectorizable("the models do not fit into memory at once")
    parts += [_uncompiled(assemble(config)) for config in configs[2:]]
    _require_equal_inputs(parts)
    return training_at_once(parts, list(map(_unrecorded, parts)), [first.schedule] * len(parts))


def _require_equal_inputs(parts: Sequence[Parts]) -> None:
    if len({must_be_equal(other.trained_on) for other in parts}) > 1:
        raise NotVectorizable("the inputs depend on the seed")


def _with_unit_rate(cfg: DictConfig, seed: int) -> DictConfig:
    result = copied(cfg)
    with open_dict(result):
        result.seed = seed
        result.optimizer.lr = 1.0
    return result


def _uncompiled(parts: Parts) -> Parts:
    """Return the parts without compilation, which takes longer than a few hundred steps."""
    return replace(parts, trainer=replace(parts.trainer, compile=False, cuda_graphs=False))


def _unrecorded(parts: Parts) -> TrainingRun:
    """Return a run that writes nothing."""
    return TrainingRun(Record(Path()), seed=parts.components.cfg.seed, regularization=parts.regularization)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress torch's warning that vmap computes an operation for one variant after the other."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented")
        yield
