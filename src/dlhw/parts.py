"""From a config to the objects of a run: the parts that are trained, or the question that a study answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch.nn import Module
from torch.optim import Optimizer

from dlhw import UsageError, build, config, fast, runtime
from dlhw.answer import Answer
from dlhw.build import choice, deferred
from dlhw.data.tensors import Dataset
from dlhw.loop import Probe, Trainer
from dlhw.objective import DataLoss, Regularization
from dlhw.optim import Schedule
from dlhw.runtime import Precision

GIVEN: dict[str, set[str]] = {
    "dataset": {"data_dir", "seed"},
    "model": {"shape", "outputs"},
    "init": {"model", "generator"},
    "loss": {"input", "target", "weight", "ignore_index", "reduction", "reduce", "size_average"},
    "regularization": set(),
    "optimizer": {"params"},
    "scheduler": set(),
    "trainer": set(),
    "probe": {"model", "data"},
    "study": {"seed", "device", "data", "model", "network"},
    "comparison": set(),
}
"""What the program itself passes to each group's target; everything else comes from the config. A study is given
what its signature names of these, and what it does not name is not made."""

READ_FOR: dict[str, tuple[str, ...]] = {
    "seed": ("seed",),
    "device": ("trainer.device",),
    "data": ("seed", "dataset", "trainer.device", "trainer.precision"),
    "model": ("seed", "dataset", "model", "init", "trainer.device", "trainer.precision", "trainer.channels_last"),
    "network": ("seed", "model", "trainer.device", "trainer.precision"),
}
"""Which groups and keys are read to make what a study is given; ``trainer.threads`` and the like always are."""
READ_ALWAYS = ("study", "comparison", "trainer.threads", "trainer.deterministic")
OF_NUMBERS = ("mse", "log_cosh", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
"""Losses for numbers to predict; all others are for classes."""


def check_values(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Raises UsageError with one line per mistake in a config's values, or for an override that nothing reads."""
    build.check(cfg, GIVEN)
    wanted = wanted_by_study(cfg)
    if wanted is not None:
        read = {key for name in wanted for key in READ_FOR[name]}
        config.check_all_read(cfg, overrides, of={*GIVEN, "seed"}, read={*read, *READ_ALWAYS})


def wanted_by_study(cfg: DictConfig) -> frozenset[str] | None:
    """What the config's study wants to be given; None when the config is to be trained."""
    return None if cfg.study.get("_target_") is None else build.arguments(cfg, "study") & GIVEN["study"]


@dataclass(frozen=True)
class Parts:
    """The objects that a config describes, on their device, ready to be trained."""

    trainer: Trainer
    precision: Precision
    data: Dataset
    model: Module
    data_loss: DataLoss
    regularization: Regularization
    optimizer: Optimizer
    schedule: Schedule
    probe: Probe | None


def assemble(cfg: DictConfig) -> Parts:
    """Check every value of the config, then build what it describes. Raises UsageError."""
    fast.optimizers_without_dynamo()
    build.check(cfg, GIVEN)
    trainer, precision = settle(cfg)
    data = make_data(cfg, precision)
    model = make_model(cfg, trainer, precision, data)
    check_fit(cfg, data, trainer)
    normalizing = any(isinstance(layer, torch.nn.BatchNorm1d) for layer in model.modules())
    if normalizing and len(data.train) % trainer.batch_size == 1 % trainer.batch_size:
        raise UsageError(
            f"trainer.batch_size={trainer.batch_size}: leaves a batch of one of {len(data.train)} samples, of which "
            "batch norm can take no variance; choose another"
        )
    return Parts(
        trainer=trainer,
        precision=precision,
        data=data,
        model=model,
        data_loss=deferred(cfg, "loss", GIVEN["loss"]),
        regularization=build.build(cfg, "regularization"),
        optimizer=build.build(cfg, "optimizer", params=model.parameters()),
        schedule=build.build(cfg, "scheduler"),
        probe=deferred(cfg, "probe", GIVEN["probe"]) if cfg.probe.get("_target_") else None,
    )


@dataclass(frozen=True)
class Question:
    """A study with its options and what it wants to be given; data and model are None where it wants none."""

    compute: Callable[[], Answer]
    precision: Precision
    data: Dataset | None
    model: Module | None


def question(cfg: DictConfig) -> Question | None:
    """Check every value of the config, then make what its study wants; None when it has none. Raises UsageError."""
    wanted = wanted_by_study(cfg)
    if wanted is None:
        return None
    build.check(cfg, GIVEN)
    trainer, precision = settle(cfg)
    data = make_data(cfg, precision) if wanted & {"data", "model"} else None
    model = make_model(cfg, trainer, precision, data) if data is not None and "model" in wanted else None
    network = make_network(cfg, precision) if "network" in wanted else None
    given = {"seed": cfg.seed, "device": precision.device, "data": data, "model": model, "network": network}
    compute = deferred(cfg, "study", **{name: value for name, value in given.items() if name in wanted})
    return Question(compute, precision, data, model or network)


def settle(cfg: DictConfig) -> tuple[Trainer, Precision]:
    """The trainer's settings, with the process set up for them."""
    trainer = build.build(cfg, "trainer")
    device = runtime.pick_device(trainer.device)
    precision = runtime.Precision(trainer.precision, device)
    runtime.settle(device, precision, threads=trainer.threads, deterministic=trainer.deterministic)
    return trainer, precision


def make_data(cfg: DictConfig, precision: Precision) -> Dataset:
    """The config's data set on the run's device."""
    data: Dataset = build.build(cfg, "dataset", data_dir=cfg.data_dir, seed=cfg.seed)
    return data.to(precision.device, precision.dtype)


def make_model(cfg: DictConfig, trainer: Trainer, precision: Precision, data: Dataset) -> Module:
    """The config's model for these data, initialized, on the run's device."""
    model = build.make_model(cfg, shape=data.shape, outputs=data.outputs).to(precision.device, precision.dtype)
    return model.to(memory_format=torch.channels_last) if trainer.channels_last else model


def make_network(cfg: DictConfig, precision: Precision) -> Module:
    """The config's network for ImageNet with its own last layer, in evaluation mode, on the run's device."""
    if "architecture" not in cfg.model:
        raise UsageError(
            f"model={choice(cfg, 'model')}: {choice(cfg, 'study')} asks a network for ImageNet; use model=resnet18, "
            "alexnet, squeezenet1_0, mobilenet_v2 or torchvision"
        )
    torch.manual_seed(runtime.key(cfg.seed, "model"))
    network: Module = build.build(cfg, "model", shape=(3, cfg.study.crop, cfg.study.crop), outputs=None)
    return network.to(precision.device, precision.dtype).eval()


def check_fit(cfg: DictConfig, data: Dataset, trainer: Trainer) -> None:
    """Raises UsageError where loss, monitor, probe or the length of an epoch do not fit the data."""
    kind, name = "classes" if data.classes else "a number", f"dataset={data.name}"
    if (cfg.loss["_target_"].rpartition(".")[2] in OF_NUMBERS) == bool(data.classes):
        fitting = "cross_entropy" if data.classes else "mse or log_cosh"
        raise UsageError(f"loss={choice(cfg, 'loss')}: {name} has {kind} to predict; use loss={fitting}")
    if trainer.monitor in (("val_mse",) if data.classes else ("val_error_percent",)):
        fitting = "val_error_percent" if data.classes else "val_mse"
        raise UsageError(f"trainer.monitor={trainer.monitor}: {name} has {kind} to predict; use {fitting} or val_loss")
    if not data.classes and cfg.probe.get("_target_"):
        raise UsageError(f"probe={choice(cfg, 'probe')}: looks at the loss of classes, {name} has {kind} to predict")
    batches = -(-len(data.train) // trainer.batch_size)
    if trainer.steps_per_epoch is not None and trainer.steps_per_epoch > batches:
        raise UsageError(
            f"trainer.steps_per_epoch={trainer.steps_per_epoch}: {name} has {batches} batches of "
            f"trainer.batch_size={trainer.batch_size}"
        )
