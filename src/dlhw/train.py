"""The entrypoint: from a command line to a run, ``python -m dlhw.train experiment=flooding b=0.05``.

``main`` composes the config, ``assemble`` builds what it describes, ``run`` trains it or answers it by a study.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import statistics
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlhw import UsageError, config

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch.nn import Module
    from torch.optim import Optimizer

    from dlhw.answer import Answer
    from dlhw.data.tensors import Dataset
    from dlhw.loop import Fitted, Probe, Run, Trainer
    from dlhw.objective import DataLoss, Regularization
    from dlhw.optim import Schedule
    from dlhw.record import Record
    from dlhw.runtime import Precision

log = logging.getLogger("dlhw")

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
    "study": {"seed", "device", "data", "model"},
    "comparison": set(),
}
"""What the program itself passes to each group's target; everything else comes from the config. A study is given
what its signature names of these, and what it does not name is not made."""

READ_FOR: dict[str, tuple[str, ...]] = {
    "seed": ("seed",),
    "device": ("trainer.device",),
    "data": ("seed", "dataset", "trainer.device", "trainer.precision"),
    "model": ("seed", "dataset", "model", "init", "trainer.device", "trainer.precision", "trainer.channels_last"),
}
"""Which groups and keys are read to make what a study is given; ``trainer.threads`` and the like always are."""
READ_ALWAYS = ("study", "comparison", "trainer.threads", "trainer.deterministic")
OF_NUMBERS = ("mse", "log_cosh", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
"""Losses for numbers to predict; all others are for classes."""


class Disagreement(RuntimeError):
    """A study found something else than what is known; the message names it."""


def main() -> None:
    """What ``dlhw`` and ``python -m dlhw.train`` run."""
    config.command_line(config.Program(task, check_values))


def check_values(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Raises UsageError with one line per mistake in a config's values, or for an override that nothing reads."""
    from dlhw.build import check

    check(cfg, GIVEN)
    wanted = study(cfg)
    if wanted is not None:
        read = {key for name in wanted for key in READ_FOR[name]}
        config.check_all_read(cfg, overrides, of={*GIVEN, "seed"}, read={*read, *READ_ALWAYS})


def study(cfg: DictConfig) -> frozenset[str] | None:
    """What the config's study wants to be given; None when the config is to be trained."""
    from dlhw.build import arguments

    return None if cfg.study.get("_target_") is None else arguments(cfg, "study") & GIVEN["study"]


def task(cfg: DictConfig, directory: Path, overrides: Sequence[str], in_sweep: bool) -> None:
    """One run in ``directory``, alone or as a job of a sweep."""
    from dlhw.record import Record

    record = Record(directory)
    with record.locked(), accounted(cfg, record, in_sweep=in_sweep):
        if in_sweep:
            go_on_with(cfg, record)
        check_values(cfg, overrides)
        run(cfg, record)


def go_on_with(cfg: DictConfig, record: Record) -> None:
    """Resume, as ``resume=`` does, when the directory of a sweep's job holds a run with this config already."""
    if config.same_run(cfg, record.path):
        cfg.resume = str(record.path)


@contextlib.contextmanager
def accounted(cfg: DictConfig, record: Record, *, in_sweep: bool) -> Iterator[None]:
    """Whatever ends a run early in here, its directory tells; a run that never began leaves none."""
    from dlhw.loop import TrainingFailed

    try:
        yield
    except KeyboardInterrupt:
        if not in_sweep:
            log.warning("interrupted; go on with %s", shlex.quote(f"resume={record.path}"))
        raise
    except UsageError as error:
        if in_sweep and not record.finished:
            record.fail(error)
            log.error("%s", error)
        elif cfg.resume is None and not in_sweep:
            record.discard()
        raise
    except Disagreement as error:
        log.error("%s (see %s)", error, record.path / "tables" / "checks.csv")
        if in_sweep:
            raise
        raise SystemExit(1) from error
    except (TrainingFailed, OSError) as error:
        record.fail(error)
        log.error("%s (what was trained until then is in %s)", error, record.path)
        if in_sweep:
            raise
        raise SystemExit(1) from error
    except Exception as error:
        record.fail(error)
        with (record.path / "run.log").open("a") as file:
            traceback.print_exc(file=file)
        if in_sweep:
            log.error("%s: %s (traceback in %s)", type(error).__name__, error, record.path / "run.log")
        raise


def run(cfg: DictConfig, record: Record) -> None:
    """Train what the config describes, or answer its question by a study, and leave the run's files."""
    from dlhw.ensemble import Single
    from dlhw.loop import fit

    if study(cfg) is not None:
        answer(cfg, record)
        return
    parts = assemble(cfg)
    job = begin(cfg, record, parts)
    log.info("%s, in %s", title(cfg, parts), record.path)
    fit(
        Single(parts.model, parts.optimizer, parts.schedule),
        [job],
        parts.data,
        parts.data_loss,
        trainer=parts.trainer,
        precision=parts.precision,
        probe=parts.probe,
    )
    log.info("%s", finish(cfg, parts, job))


def answer(cfg: DictConfig, record: Record) -> None:
    """Let the config's study compute, tell what it found and write it. Raises Disagreement, with everything written."""
    from dlhw.build import check, deferred

    check(cfg, GIVEN)
    trainer, precision = settle(cfg)
    wanted = study(cfg) or frozenset()
    data = make_data(cfg, precision) if wanted & {"data", "model"} else None
    model = make_model(cfg, trainer, precision, data) if data is not None and "model" in wanted else None
    given = {"seed": cfg.seed, "device": precision.device, "data": data, "model": model}
    compute = deferred(cfg, "study", **{name: value for name, value in given.items() if name in wanted})
    if cfg.resume is not None:
        if record.finished:
            raise UsageError(f"resume={cfg.resume}: finished already")
        record.reopen()
    record.keep_config(config.to_yaml(cfg), new=cfg.resume is None)
    log.info("%s, in %s", cfg.name, record.path)
    started = time.perf_counter()
    found: Answer = compute()
    seconds = time.perf_counter() - started
    found.write(record)
    for line in found.lines():
        log.info("%s", line)
    content = {**found.summary(), "seconds": seconds, **about(cfg, precision, data, model)}
    if not found.disagreements:
        record.summary({"status": "finished", **content})
        return
    error = Disagreement(
        f"{len(found.disagreements)} of {len(found.checks)} checks disagree: "
        + "; ".join(check.what for check in found.disagreements)
    )
    record.summary({"status": "failed", "reason": str(error), **content})
    raise error


def begin(cfg: DictConfig, record: Record, parts: Parts) -> Run:
    """The run that the config describes, at its start or, with ``cfg.resume``, at its last checkpoint."""
    from dlhw.loop import Run

    state = _state_to_resume(cfg, record)
    record.keep_config(config.to_yaml(cfg), new=cfg.resume is None)
    return Run(record, seed=cfg.seed, regularization=parts.regularization, resume=state)


def finish(cfg: DictConfig, parts: Parts, job: Run) -> Fitted:
    """Draw the curves of a run that was trained and write its summary. Raises TrainingFailed if it failed."""
    from dlhw import plots  # matplotlib, which takes a second to import, is wanted only now
    from dlhw.build import choice

    fitted, record = job.result(parts.trainer), job.record
    figure = plots.curves(
        record.rows,
        title=title(cfg, parts),
        best_epoch=int(fitted.best["epoch"]),
        flood=parts.regularization.flood,
        train_label=f"train ({parts.trainer.train_metrics})",
        loss_label=f"loss ({choice(cfg, 'loss').replace('_', ' ')})",
    )
    record.figure("curves", figure)
    seconds = record.seconds()
    times = {"seconds": sum(seconds), "seconds_per_epoch": statistics.median(seconds) if seconds else None}
    content = {
        "monitor": parts.trainer.monitor,
        **asdict(fitted),
        **times,
        **about(cfg, parts.precision, parts.data, parts.model),
    }
    record.summary({"status": "finished", **content})
    return fitted


def title(cfg: DictConfig, parts: Parts) -> str:
    """What a run is, in a few words."""
    from dlhw.build import choice

    return f"{cfg.name}: {choice(cfg, 'model')} on {parts.data.name}"


def about(cfg: DictConfig, precision: Precision, data: Dataset | None, model: Module | None) -> dict[str, Any]:
    """What a summary says of a run besides its results."""
    from dlhw import runtime

    content: dict[str, Any] = {"experiment": cfg.name, "seed": cfg.seed}
    if model is not None:
        content["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    if data is not None:
        content["data"] = data.description
    return content | runtime.provenance(precision.device)


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


def settle(cfg: DictConfig) -> tuple[Trainer, Precision]:
    """The trainer's settings, with the process set up for them."""
    from dlhw import runtime
    from dlhw.build import build

    trainer = build(cfg, "trainer")
    device = runtime.pick_device(trainer.device)
    precision = runtime.Precision(trainer.precision, device)
    runtime.settle(device, precision, threads=trainer.threads, deterministic=trainer.deterministic)
    return trainer, precision


def make_data(cfg: DictConfig, precision: Precision) -> Dataset:
    """The config's data set on the run's device."""
    from dlhw.build import build

    data: Dataset = build(cfg, "dataset", data_dir=cfg.data_dir, seed=cfg.seed)
    return data.to(precision.device, precision.dtype)


def make_model(cfg: DictConfig, trainer: Trainer, precision: Precision, data: Dataset) -> Module:
    """The config's model for these data, initialized, on the run's device."""
    import torch

    from dlhw import build

    model = build.make_model(cfg, shape=data.shape, outputs=data.outputs).to(precision.device, precision.dtype)
    return model.to(memory_format=torch.channels_last) if trainer.channels_last else model


def check_fit(cfg: DictConfig, data: Dataset, trainer: Trainer) -> None:
    """Raises UsageError where loss, monitor, probe or the length of an epoch do not fit the data."""
    from dlhw.build import choice

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


def assemble(cfg: DictConfig) -> Parts:
    """Check every value of the config, then build what it describes. Raises UsageError."""
    import torch

    from dlhw import fast
    from dlhw.build import build, check, deferred

    fast.optimizers_without_dynamo()
    check(cfg, GIVEN)
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
        regularization=build(cfg, "regularization"),
        optimizer=build(cfg, "optimizer", params=model.parameters()),
        schedule=build(cfg, "scheduler"),
        probe=deferred(cfg, "probe", GIVEN["probe"]) if cfg.probe.get("_target_") else None,
    )


def _state_to_resume(cfg: DictConfig, record: Record) -> dict[str, Any] | None:
    """The checkpoint of an interrupted run; None for a new run and for one stopped before its first checkpoint."""
    from dlhw import checkpoint
    from dlhw.loop import best_row
    from dlhw.record import read_summary

    if cfg.resume is None:
        return None
    summary = read_summary(record.path)
    trained = summary.get("final", {}).get("epoch", 0)
    if record.finished and (trained >= cfg.trainer.epochs or summary.get("stopped") != "epochs"):
        raise UsageError(
            f"resume={cfg.resume}: finished already after {trained} epochs"
            + ("; a larger trainer.epochs trains on" if summary.get("stopped") == "epochs" else "")
        )
    state = checkpoint.load_last(record.path)
    rows = state["rows"] if state else []
    if len(rows) < trained or len(rows) > cfg.trainer.epochs:
        raise UsageError(f"resume={cfg.resume}: the checkpoint is of epoch {len(rows)}, the run is not")
    if rows:
        best = best_row(rows, cfg.trainer.monitor)["epoch"]
        if not (record.path / "best.pt").exists() or checkpoint.load(record.path / "best.pt")["epoch"] < best:
            raise UsageError(f"resume={cfg.resume}: best.pt no longer holds the weights of epoch {best}; train anew")
    record.reopen()
    record.restore(rows)
    return state


if __name__ == "__main__":
    main()
