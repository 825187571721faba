"""Build all objects of a run: the parts for training, or a study with its arguments."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from omegaconf import DictConfig, OmegaConf
from torch.nn import Module
from torch.optim import Optimizer

from dlhw.cli import rules, trials
from dlhw.cli.build import PROGRAM_ARGUMENTS, Components, choice, validate
from dlhw.cli.composition import parsed
from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError
from dlhw.models import pretrained
from dlhw.runtime import devices, processes
from dlhw.runtime.devices import Precision
from dlhw.runtime.memory import allocating
from dlhw.runtime.paths import read_path
from dlhw.runtime.randomness import generator, key
from dlhw.storage.answer import Answer
from dlhw.storage.checkpoint import State
from dlhw.storage.identity import checkpoint_identity
from dlhw.storage.record import Record
from dlhw.storage.schemas import GROUPS
from dlhw.training import acceleration, debugging, features, finetuning, probes
from dlhw.training.loop import Probe, Training
from dlhw.training.objective import DataLoss, Regularization
from dlhw.training.optim import Schedule
from dlhw.training.settings import Trainer
from dlhw.training.trainable import Trainable
from dlhw.views import playground, report
from dlhw.views.report.filters import convolution

READ_FOR: dict[str, tuple[str, ...]] = {
    "seed": ("seed",),
    "device": ("trainer.device",),
    "data": ("seed", "dataset", "augmentation", "trainer.device", "trainer.precision"),
    "model": ("seed", "dataset", "model", "init", "trainer.device", "trainer.precision", "trainer.channels_last"),
    "network": ("seed", "model", "trainer.device", "trainer.precision", "trainer.channels_last"),
    "trainable": ("seed", *(group for group in GROUPS if group != "study")),
    "trainings": ("seed", *(group for group in GROUPS if group != "study")),
    "record": (),
}
"""The groups and keys that are read to make each argument of a study."""
READ_ALWAYS = ("trainer.threads", "trainer.deterministic")
"""The keys that every study reads."""
NUMERIC_LOSSES = ("half_mse", "mse", "log_cosh", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
CLASS_LOSSES = ("cross_entropy", "cross_entropy_by_hand", "multi_margin_loss", "nll_loss")
"""The losses of torch and dlhw for numeric targets, and for class labels; own losses may be for both."""


def study_arguments(components: Components) -> frozenset[str] | None:
    """Return the arguments that the config's study takes from the program; None to train instead."""
    study = components["study"]
    return None if study.target is None else study.arguments & PROGRAM_ARGUMENTS["study"]


def require_read(components: Components, overrides: Sequence[str]) -> None:
    """Raise UsageError for overrides without effect: empty mappings, and what the config's study does not read."""
    _require_no_empty_mappings(components.cfg, overrides)
    arguments = study_arguments(components)
    if arguments is not None and components.cfg.get("debug"):
        raise UsageError("debug=true: invalid for a study, whose own options set its size; expected debug=false")
    if arguments is not None:
        rules.require_read_by_study(
            components.cfg.study["_target_"].rpartition(".")[2],
            [str(parsed(line).key_or_group) for line in overrides],
            groups={*PROGRAM_ARGUMENTS, "seed"},
            options=[f"study.{name}" for name in components.cfg.study if name != "_target_"],
            read={*READ_ALWAYS, *(key for name in arguments for key in READ_FOR[name])},
        )


def _require_no_empty_mappings(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Raise UsageError for overrides such as ``study.nodes={}``, which Hydra merges into the mapping in the config."""
    for override in map(parsed, overrides):
        key = str(override.key_or_group)
        current = OmegaConf.select(cfg, key)
        if override.value() == {} and isinstance(current, DictConfig) and current:
            raise UsageError(
                f"{key}={{}}: changes nothing, because values are added to those in the config; remove one with "
                f"~{key}.{next(map(str, current))}"
            )


@dataclass(frozen=True)
class Parts:
    """The objects that a config describes, on their device, ready for training.

    ``trained`` and ``trained_on`` are ``model`` and ``data``. If the output of the frozen part is computed only once,
    they are the rest of the model and these features.
    """

    components: Components
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
    def constants(self) -> State:
        """The part of a checkpoint that does not change in training.

        It has the run's config, the shapes, the dataset's hash, how samples become inputs, and the frozen weights.
        """
        trained = self.trained.state_dict()
        frozen = {name: value for name, value in self.model.state_dict().items() if name not in trained}
        sizes = {"shape": list(self.data.shape), "outputs": self.data.outputs}
        return {
            **sizes,
            "run": checkpoint_identity(self.components.cfg, self.components.resolved),
            "data": self.data.sha256,
            "normalize": self.data.normalize.state,
            "prepare": None if self.data.prepare is None else self.data.prepare.state,
            "classes": list(self.data.classes),
            "model": frozen,
        }


def assemble(cfg: DictConfig) -> Parts:
    """Validate a config, then build the parts that it describes. Raise UsageError."""
    return assemble_parts(validate(cfg))


def assemble_parts(components: Components) -> Parts:
    """Build the parts that a valid config describes. Raise UsageError if they do not fit together."""
    acceleration.optimizers_without_dynamo()
    cfg = components.cfg
    trainer, precision = set_up_process(components)
    if components["model"].target is pretrained.classifier:
        pretrained.require_weights(**components["model"].options)
    data = load_data(components, precision)
    require_matching_task(cfg, data, trainer)
    if components["probe"].target is not None:
        probes.check(components["probe"].target, data)
    for target, check in ((report.classifier, report.check), (playground.playground, playground.check)):
        if components["report"].target is target:
            check(data)
    data_loss = loss_for(components, data, precision)
    model = initialized_model(components, trainer, precision, data)
    if cfg.report.get("filters") is not None:
        convolution(model, cfg.report.filters)
    finetuning.freeze(model, trainer.trains)
    regularization: Regularization = components["regularization"].build()
    if regularization.l1_truncated and trainer.rates:
        raise UsageError("trainer.rates: does not support regularization.l1_truncated, which needs one learning rate")
    require_valid_batches(model, data, trainer)
    if cfg.get("debug"):
        trainer, data = debugging.shortened(trainer, data)
    trained, trained_on = with_computed_features(cfg, trainer, precision, data, model)
    groups = finetuning.parameter_groups(trained, lr=cfg.optimizer.get("lr"), rates=trainer.rates)
    return Parts(
        components=components,
        trainer=trainer,
        precision=precision,
        data=data,
        model=model,
        trained=trained,
        trained_on=trained_on,
        data_loss=data_loss,
        regularization=regularization,
        optimizer=components["optimizer"].build(params=groups),
        schedule=components["scheduler"].build(),
        probe=components["probe"].partial() if components["probe"].target else None,
    )


@dataclass(frozen=True)
class Question:
    """A study with its options and arguments; ``data`` and ``model`` are None if it does not take them.

    A study that takes a ``network`` gets the config's model with its pretrained weights and classes.
    """

    compute: Callable[[], Answer]
    precision: Precision
    data: Dataset | None
    model: Module | None


def assemble_question(
    components: Components,
    arguments: frozenset[str],
    *,
    record: Record,
    trainable: Trainable,
    trainings: Callable[[int], Iterator[Training]],
) -> Question:
    """Build the config's study, which takes these arguments. Raise UsageError."""
    trainer, precision = set_up_process(components)
    data = load_data(components, precision) if arguments & {"data", "model"} else None
    model = initialized_model(components, trainer, precision, data) if arguments & {"model", "network"} else None
    model_argument = "network" if "network" in arguments else "model"
    values = {
        "seed": components.cfg.seed,
        "device": precision.device,
        "data": data,
        model_argument: model,
        "trainable": trainable,
        "trainings": trainings,
        "record": record,
    }
    compute = components["study"].partial(**{name: value for name, value in values.items() if name in arguments})
    return Question(compute, precision, data, model)


def set_up_process(components: Components) -> tuple[Trainer, Precision]:
    """Apply the trainer's settings to this process; return them and the precision on its device."""
    trainer = components["trainer"].build()
    device = devices.pick_device(trainer.device)
    precision = devices.Precision(trainer.precision, device)
    devices.configure_torch(device, precision, threads=trainer.threads, deterministic=trainer.deterministic)
    return trainer, precision


def load_data(components: Components, precision: Precision) -> Dataset:
    """Load the config's dataset, with its augmentation, onto the run's device."""
    cfg = components.cfg
    dataset = components["dataset"]
    data_dir = read_path(components.resolved["data_dir"], key="data_dir")
    data: Dataset = dataset.build(data_dir=str(data_dir), seed=cfg.seed)
    if dataset.own is not None:
        trials.require_dataset(dataset.name, dataset.own, data)
    if len(data.classes) == 1:
        raise UsageError(f"{dataset.name}: all labels are {data.classes[0]}; expected at least two classes")
    augmentation = components["augmentation"].build()
    if augmentation.changes_pictures or augmentation.mixes:
        if len(data.shape) != 3 or not data.classes:
            raise UsageError(f"augmentation: needs pictures with classes; dataset={data.name} has none")
        if augmentation.mixes and choice(cfg, "loss") != "cross_entropy":
            raise UsageError(f"loss={choice(cfg, 'loss')}: does not support augmentation.mixup and cutmix")
        if data.shape[0] != 3:
            augmentation = replace(augmentation, saturation=0.0, hue=0.0)
        if not augmentation.changes_pictures and not augmentation.mixes:
            raise UsageError(
                f"augmentation.saturation, augmentation.hue: need colour pictures; dataset={data.name} has none"
            )
        data = replace(data, augmentation=augmentation)
    with allocating(dataset.name, building=True):
        return data.to(precision.device, precision.dtype)


def loss_for(components: Components, data: Dataset, precision: Precision) -> DataLoss:
    """Return the config's loss. Raise UsageError if it does not compute one number from the outputs of a batch."""
    component = components["loss"]
    assert component.target is not None
    loss: DataLoss = component.partial()
    trials.require_scalar_loss(component.name, component.target, loss, data, precision)
    return loss


def make_model(cfg: DictConfig, *, shape: tuple[int, ...], outputs: int | None) -> Module:
    """Build the model of a config, for scripts and tests; see :func:`build_model`. Raise UsageError."""
    return build_model(validate(cfg), shape=shape, outputs=outputs)


def build_model(components: Components, *, shape: tuple[int, ...], outputs: int | None) -> Module:
    """Build and initialize the model. Its random numbers depend only on the seed, not on the device.

    Only the layers in the attribute ``fresh`` of a pretrained model are initialized.
    """
    seed, component = components.cfg.seed, components["model"]
    torch.manual_seed(key(seed, "model"))
    model: Module = component.build(shape=shape, outputs=outputs)
    if component.own is not None:
        trials.require_model(component.name, component.own, model)
    random = generator(seed, "init")
    with torch.no_grad():
        for name in getattr(model, "fresh", [""]):
            components["init"].build(model=model.get_submodule(name), generator=random)
    return model


def initialized_model(components: Components, trainer: Trainer, precision: Precision, data: Dataset | None) -> Module:
    """Build the config's model on the run's device: initialized for ``data``; pretrained if that is None."""
    if data is not None:
        model = build_model(components, shape=data.shape, outputs=data.outputs)
    elif "weights" in components["model"].arguments:
        model = build_model(components, shape=(3, 224, 224), outputs=None).eval()
    else:
        raise UsageError(
            f"model={choice(components.cfg, 'model')}: the study needs a pretrained model; expected model=resnet18 or "
            "another one with weights"
        )
    with allocating(components["model"].name, building=True):
        model = model.to(precision.device, precision.dtype)
        if trainer.channels_last:
            model = model.to(memory_format=torch.channels_last)
    if data is not None and (own := components["model"].own) is not None:
        trials.require_outputs(components["model"].name, own, model, data, precision)
    return model


def with_computed_features(
    cfg: DictConfig, trainer: Trainer, precision: Precision, data: Dataset, model: Module
) -> tuple[Module, Dataset]:
    """Return the model to train and its data.

    If the output of the frozen part can be computed once, these are the rest of the model and this output.
    """
    augmented = data.augmentation is not None
    views = min(trainer.frozen_views, trainer.epochs) if augmented and trainer.frozen_views is not None else None
    if not trainer.frozen_once or (augmented and views is None):
        return model, data
    if data.augmentation is not None and data.augmentation.mixes:
        raise UsageError("trainer.frozen_views: mixup and cutmix mix other pictures in every epoch; expected null")
    halves = features.cut(model) if trainer.trains != "all" else None
    if halves is not None:
        computed = features.frozen_features(halves.frozen, data, seed=cfg.seed, precision=precision, views=views)
        if computed is not None:
            return halves.rest, computed
    if views is not None:  # without features every epoch draws other versions of the pictures, with other results
        reason = "no part of the model is frozen" if halves is None else "the features do not fit into memory"
        raise UsageError(f"trainer.frozen_views={trainer.frozen_views}: {reason}; expected null")
    return model, data


def supports_batch_of_one(model: Module, data: Dataset) -> bool:
    """Return whether the model can be trained on one sample; batch norm cannot, unless a sample has several pixels."""
    trial = copy.deepcopy(model).train()
    for module in finetuning.frozen_modules(trial):
        module.eval()
    try:
        with torch.no_grad():
            trial(data.normalize(data.train[:1][0]))
    except ValueError:
        return False
    return True


def require_valid_batches(model: Module, data: Dataset, trainer: Trainer) -> None:
    """Raise UsageError if the last batch of an epoch is too small for batch norm or for the number of processes."""
    last = len(data.train) % trainer.batch_size or trainer.batch_size
    if last == 1 and not supports_batch_of_one(model, data):
        raise UsageError(
            f"trainer.batch_size={trainer.batch_size}: with {len(data.train)} samples, the last batch has one, and "
            "batch norm cannot compute a variance of one sample; choose another size"
        )
    if last < processes.world_size():
        raise UsageError(
            f"trainer.batch_size={trainer.batch_size}: with {len(data.train)} samples, the last batch has {last} for "
            f"{processes.world_size()} processes; choose another size"
        )
    if processes.world_size() > 1 and data.augmentation is not None and data.augmentation.mixes:
        raise UsageError(
            "torchrun: mixup and cutmix need the whole batch in one process; set augmentation.mixup and "
            "augmentation.cutmix to 0"
        )
    if processes.world_size() > 1 and (trainer.compile or trainer.cuda_graphs):
        raise UsageError("torchrun: does not support trainer.compile or trainer.cuda_graphs")


def _monitor_mistake(trainer: Trainer, data: Dataset) -> str | None:
    """Return which monitor is expected if the trainer's does not exist for the dataset; None if it does."""
    valid, other = ("val_error_percent", "val_mse") if data.classes else ("val_mse", "val_error_percent")
    return f"expected trainer.monitor={valid} or val_loss" if trainer.monitor == other else None


def require_matching_task(cfg: DictConfig, data: Dataset, trainer: Trainer) -> None:
    """Raise UsageError if the loss, monitor or length of an epoch does not fit the dataset."""
    kind, name = "classification" if data.classes else "regression", f"dataset={data.name}"
    if cfg.loss["_target_"].rpartition(".")[2] in (CLASS_LOSSES if data.numeric_targets else NUMERIC_LOSSES):
        valid = "half_mse, mse or log_cosh" if data.numeric_targets else "cross_entropy"
        targets = f"{kind} with the targets -1 and +1" if data.classes and data.numeric_targets else kind
        lines = [f"loss={choice(cfg, 'loss')}: {name} is for {targets}; expected loss={valid}"]
        raise UsageError("; ".join([*lines, *filter(None, [_monitor_mistake(trainer, data)])]))
    if monitor := _monitor_mistake(trainer, data):
        raise UsageError(f"trainer.monitor={trainer.monitor}: {name} is for {kind}; {monitor}")
    batches = -(-len(data.train) // trainer.batch_size)
    if trainer.steps_per_epoch is not None and trainer.order == "fixed":
        raise UsageError(
            "trainer.steps_per_epoch: invalid with trainer.order=fixed, because only the first samples would be used; "
            "expected null or trainer.order=shuffled"
        )
    if trainer.steps_per_epoch is not None and trainer.steps_per_epoch > batches:
        raise UsageError(
            f"trainer.steps_per_epoch={trainer.steps_per_epoch}: must be at most {batches}, the number of "
            f"batches of {name} with trainer.batch_size={trainer.batch_size}"
        )
