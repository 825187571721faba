"""From a config to the objects of a run: the parts that are trained, or the question that a study answers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from omegaconf import DictConfig
from torch.nn import Module
from torch.optim import Optimizer

from dlhw.cli import build, program
from dlhw.cli.build import choice, deferred
from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError
from dlhw.runs.answer import Answer
from dlhw.runs.checkpoint import State
from dlhw.runtime import devices, processes
from dlhw.runtime.devices import Precision
from dlhw.training import acceleration, features, finetuning
from dlhw.training.loop import Probe
from dlhw.training.objective import DataLoss, Regularization
from dlhw.training.optim import Schedule
from dlhw.training.settings import Trainer
from dlhw.views import report
from dlhw.views.report.filters import convolution

GIVEN: dict[str, set[str]] = {
    "dataset": {"data_dir", "seed"},
    "augmentation": set(),
    "model": {"shape", "outputs"},
    "init": {"model", "generator"},
    "loss": {"input", "target", "weight", "ignore_index", "reduction", "reduce", "size_average"},
    "regularization": set(),
    "optimizer": {"params"},
    "scheduler": set(),
    "trainer": set(),
    "probe": {"model", "data"},
    "study": {"seed", "device", "data", "model", "network"},
    "report": {"model", "data", "untrained"},
    "comparison": set(),
}
"""What the program itself passes to each group's target; everything else comes from the config. A study is given
what its signature names of these, and what it does not name is not made."""

READ_FOR: dict[str, tuple[str, ...]] = {
    "seed": ("seed",),
    "device": ("trainer.device",),
    "data": ("seed", "dataset", "augmentation", "trainer.device", "trainer.precision"),
    "model": ("seed", "dataset", "model", "init", "trainer.device", "trainer.precision", "trainer.channels_last"),
    "network": ("seed", "model", "trainer.device", "trainer.precision", "trainer.channels_last"),
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
        program.check_all_read(cfg, overrides, of={*GIVEN, "seed"}, read={*read, *READ_ALWAYS})


def wanted_by_study(cfg: DictConfig) -> frozenset[str] | None:
    """What the config's study wants to be given; None when the config is to be trained."""
    return None if cfg.study.get("_target_") is None else build.arguments(cfg, "study") & GIVEN["study"]


@dataclass(frozen=True)
class Parts:
    """The objects that a config describes, on their device, ready to be trained.

    What trains is ``model`` on ``data`` or, where the frozen part of the model is computed once, the rest of it on what
    that gives.
    """

    trainer: Trainer
    precision: Precision
    data: Dataset
    model: Module
    trained: Module
    trained_on: Dataset
    data_loss: DataLoss
    regularization: Regularization
    optimizer: Optimizer
    schedule: Schedule
    probe: Probe | None

    @property
    def whole(self) -> State:
        """What checkpoints say of the model besides what trains."""
        trained = self.trained.state_dict()
        frozen = {name: value for name, value in self.model.state_dict().items() if name not in trained}
        sizes = {"shape": list(self.data.shape), "outputs": self.data.outputs}
        return {**sizes, "data": self.data.sha256, "model": frozen}


def assemble(cfg: DictConfig) -> Parts:
    """Check every value of the config, then build what it describes. Raises UsageError."""
    acceleration.optimizers_without_dynamo()
    build.check(cfg, GIVEN)
    trainer, precision = settle(cfg)
    data = make_data(cfg, precision)
    check_fit(cfg, data, trainer)
    model = make_model(cfg, trainer, precision, data)
    if cfg.report.get("filters") is not None:
        convolution(model, cfg.report.filters)
    finetuning.freeze(model, trainer.trains)
    check_batches(model, data, trainer)
    trained, trained_on = frozen_once(cfg, trainer, precision, data, model)
    groups = finetuning.parameter_groups(trained, lr=cfg.optimizer.get("lr"), rates=trainer.rates)
    return Parts(
        trainer=trainer,
        precision=precision,
        data=data,
        model=model,
        trained=trained,
        trained_on=trained_on,
        data_loss=deferred(cfg, "loss", GIVEN["loss"]),
        regularization=build.build(cfg, "regularization"),
        optimizer=build.build(cfg, "optimizer", params=groups),
        schedule=build.build(cfg, "scheduler"),
        probe=deferred(cfg, "probe", GIVEN["probe"]) if cfg.probe.get("_target_") else None,
    )


@dataclass(frozen=True)
class Question:
    """A study with its options and what it wants to be given; data and model are None where it wants none.

    A study that wants a ``network`` has the config's model as it was published, with the classes it was trained for.
    """

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
    model = make_model(cfg, trainer, precision, data) if wanted & {"model", "network"} else None
    named = "network" if "network" in wanted else "model"
    given = {"seed": cfg.seed, "device": precision.device, "data": data, named: model}
    compute = deferred(cfg, "study", **{name: value for name, value in given.items() if name in wanted})
    return Question(compute, precision, data, model)


def settle(cfg: DictConfig) -> tuple[Trainer, Precision]:
    """The trainer's settings, with the process set up for them."""
    trainer = build.build(cfg, "trainer")
    device = devices.pick_device(trainer.device)
    precision = devices.Precision(trainer.precision, device)
    devices.settle(device, precision, threads=trainer.threads, deterministic=trainer.deterministic)
    return trainer, precision


def make_data(cfg: DictConfig, precision: Precision) -> Dataset:
    """The config's data set on the run's device."""
    data: Dataset = build.build(cfg, "dataset", data_dir=cfg.data_dir, seed=cfg.seed)
    augmentation = build.build(cfg, "augmentation")
    if augmentation.changes_pictures or augmentation.mixes:
        if len(data.shape) != 3 or not data.classes:
            raise UsageError(f"augmentation: is for pictures in classes, dataset={data.name} has none")
        if augmentation.mixes and choice(cfg, "loss") != "cross_entropy":
            raise UsageError(f"loss={choice(cfg, 'loss')}: takes no mixed pictures (augmentation.mixup, cutmix)")
        if data.shape[0] != 3:
            augmentation = replace(augmentation, saturation=0.0, hue=0.0)
        if not augmentation.changes_pictures and not augmentation.mixes:
            raise UsageError(f"augmentation.saturation, augmentation.hue: dataset={data.name} has no colours")
        data = replace(data, augmentation=augmentation)
    return data.to(precision.device, precision.dtype)


def make_model(cfg: DictConfig, trainer: Trainer, precision: Precision, data: Dataset | None) -> Module:
    """The config's model, initialized, on the run's device: for these data or, without, as it was published."""
    if data is not None:
        model = build.make_model(cfg, shape=data.shape, outputs=data.outputs)
    elif "weights" in build.arguments(cfg, "model"):
        model = build.make_model(cfg, shape=(3, 224, 224), outputs=None).eval()
    else:
        raise UsageError(f"model={choice(cfg, 'model')}: the study needs a published network; use model=resnet18")
    model = model.to(precision.device, precision.dtype)
    return model.to(memory_format=torch.channels_last) if trainer.channels_last else model


def frozen_once(
    cfg: DictConfig, trainer: Trainer, precision: Precision, data: Dataset, model: Module
) -> tuple[Module, Dataset]:
    """What trains and on what: the rest of the model on features where its frozen part can be computed once."""
    augmented = data.augmentation is not None
    views = min(trainer.frozen_views, trainer.epochs) if augmented and trainer.frozen_views is not None else None
    if not trainer.frozen_once or (augmented and views is None):
        return model, data
    if data.augmentation is not None and data.augmentation.mixes:
        raise UsageError("trainer.frozen_views: pictures are mixed anew in every epoch; set it to null")
    halves = features.cut(model) if trainer.trains != "all" else None
    if halves is not None:
        seen = features.of_data(halves.frozen, data, seed=cfg.seed, precision=precision, views=views)
        if seen is not None:
            return halves.rest, seen
    if views is not None:  # without them every epoch has versions of its own: other numbers
        why = "all of the model trains" if halves is None else "memory does not hold them"
        raise UsageError(f"trainer.frozen_views={trainer.frozen_views}: {why}; set it to null")
    return model, data


def takes_one(model: Module, data: Dataset) -> bool:
    """Whether the model can be trained on a batch of one sample; batch norm of single numbers cannot."""
    tried = copy.deepcopy(model).train()
    for module in finetuning.frozen_modules(tried):
        module.eval()
    try:
        with torch.no_grad():
            tried(data.normalize(data.train[:1][0]))
    except ValueError:
        return False
    return True


def check_batches(model: Module, data: Dataset, trainer: Trainer) -> None:
    """Raises UsageError where a batch of an epoch is too small for batch norm, or for the processes that share it."""
    left = len(data.train) % trainer.batch_size or trainer.batch_size
    if left == 1 and not takes_one(model, data):
        raise UsageError(
            f"trainer.batch_size={trainer.batch_size}: leaves a batch of one of {len(data.train)} samples, of which "
            "batch norm can take no variance; choose another"
        )
    if left < processes.world_size():
        raise UsageError(
            f"trainer.batch_size={trainer.batch_size}: leaves a batch of {left} of {len(data.train)} samples for "
            f"{processes.world_size()} processes; choose another"
        )
    if processes.world_size() > 1 and data.augmentation is not None and data.augmentation.mixes:
        raise UsageError(
            "torchrun: pictures are mixed with others of the batch, which lie in other processes; set "
            "augmentation.mixup and augmentation.cutmix to 0"
        )
    if processes.world_size() > 1 and (trainer.compile or trainer.cuda_graphs):
        raise UsageError("torchrun: trains without trainer.compile and trainer.cuda_graphs")


def check_fit(cfg: DictConfig, data: Dataset, trainer: Trainer) -> None:
    """Raises UsageError where loss, monitor, probe or the length of an epoch do not fit the data."""
    kind, name = "classes" if data.classes else "a number", f"dataset={data.name}"
    if (cfg.loss["_target_"].rpartition(".")[2] in OF_NUMBERS) == bool(data.classes):
        fitting = "cross_entropy" if data.classes else "mse or log_cosh"
        raise UsageError(f"loss={choice(cfg, 'loss')}: {name} has {kind} to predict; use loss={fitting}")
    if trainer.monitor in (("val_mse",) if data.classes else ("val_error_percent",)):
        fitting = "val_error_percent" if data.classes else "val_mse"
        raise UsageError(f"trainer.monitor={trainer.monitor}: {name} has {kind} to predict; use {fitting} or val_loss")
    if cfg.report.get("_target_"):
        report.check(data)
    if not data.classes and cfg.probe.get("_target_"):
        raise UsageError(f"probe={choice(cfg, 'probe')}: looks at the loss of classes, {name} has {kind} to predict")
    batches = -(-len(data.train) // trainer.batch_size)
    if trainer.steps_per_epoch is not None and trainer.steps_per_epoch > batches:
        raise UsageError(
            f"trainer.steps_per_epoch={trainer.steps_per_epoch}: {name} has {batches} batches of "
            f"trainer.batch_size={trainer.batch_size}"
        )
