"""The entrypoint: from a command line to a run, ``python -m dlhw.train experiment=flooding b=0.05``.

``main`` composes the config, ``assemble`` builds what it describes, ``run`` trains it or answers it by a study.
"""

from __future__ import annotations

import logging
import shlex
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlhw import UsageError, config

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch.nn import Module
    from torch.optim import Optimizer

    from dlhw.data.tensors import Dataset
    from dlhw.loop import Fitted, Trainer
    from dlhw.objective import Objective
    from dlhw.optim import Schedule
    from dlhw.record import Record
    from dlhw.runtime import Precision

log = logging.getLogger("dlhw")

GIVEN: dict[str, set[str]] = {
    "dataset": {"data_dir", "seed"},
    "model": {"shape", "classes"},
    "init": {"model", "generator"},
    "loss": {"input", "target", "weight", "ignore_index", "reduction", "reduce", "size_average"},
    "regularization": set(),
    "optimizer": {"params"},
    "scheduler": set(),
    "trainer": set(),
    "probe": {"model", "data"},
    "study": {"record", "data", "model"},
    "comparison": set(),
}
"""What the program itself passes to each group's target; everything else comes from the config."""


def main() -> None:
    """What ``dlhw`` and ``python -m dlhw.train`` run."""
    config.command_line(task)


def task(cfg: DictConfig, directory: Path, in_sweep: bool) -> None:
    """One run in ``directory``. Whatever ends it early, the directory tells; a run that never began leaves none."""
    from dlhw.loop import TrainingFailed
    from dlhw.record import Record

    record = Record(directory)
    with record.locked():
        try:
            run(cfg, record)
        except KeyboardInterrupt:
            log.warning("interrupted; go on with %s", shlex.quote(f"resume={directory}"))
            raise
        except UsageError as error:
            if in_sweep and not record.finished:
                record.fail(error)
                log.error("%s", error)
            elif cfg.resume is None and not in_sweep:
                record.discard()
            raise
        except (TrainingFailed, OSError) as error:
            record.fail(error)
            log.error("%s (what was trained until then is in %s)", error, directory)
            if in_sweep:
                raise
            raise SystemExit(1) from error
        except Exception as error:
            record.fail(error)
            raise


def run(cfg: DictConfig, record: Record) -> None:
    """Train what the config describes, or hand it to a study, and leave the run's files."""
    from dlhw import runtime
    from dlhw.build import choice, deferred
    from dlhw.loop import fit

    parts = assemble(cfg)
    state = _state_to_resume(cfg, record)
    record.keep_config(config.to_yaml(cfg), new=cfg.resume is None)
    title = f"{cfg.name}: {choice(cfg, 'model')} on {parts.data.name}"
    loss_label = f"loss ({choice(cfg, 'loss').replace('_', ' ')})"
    log.info("%s, in %s", title, record.path)
    about = {
        "experiment": cfg.name,
        "seed": cfg.seed,
        "parameters": sum(parameter.numel() for parameter in parts.model.parameters()),
        "data": parts.data.description,
        **runtime.provenance(parts.precision.device),
    }
    study = deferred(cfg, "study", record=record, data=parts.data, model=parts.model)
    if study is not None:
        record.summary({"status": "finished", **study(), **about})
        return

    fitted = fit(
        parts.model,
        parts.data,
        parts.objective,
        parts.optimizer,
        schedule=parts.schedule,
        trainer=parts.trainer,
        precision=parts.precision,
        seed=cfg.seed,
        record=record,
        resume=state,
        probe=deferred(cfg, "probe"),
    )
    _draw_curves(record, fitted, parts, title=title, loss_label=loss_label)
    seconds = record.seconds()
    times = {"seconds": sum(seconds), "seconds_per_epoch": statistics.median(seconds) if seconds else None}
    record.summary({"status": "finished", "monitor": parts.trainer.monitor, **asdict(fitted), **times, **about})
    log.info("%s", fitted)


@dataclass(frozen=True)
class Parts:
    """The objects that a config describes, on their device, ready to be trained."""

    trainer: Trainer
    precision: Precision
    data: Dataset
    model: Module
    objective: Objective
    optimizer: Optimizer
    schedule: Schedule


def assemble(cfg: DictConfig) -> Parts:
    """Check every value of the config, then build what it describes. Raises UsageError."""
    import torch

    from dlhw import fast, runtime
    from dlhw.build import build, check, deferred, make_model
    from dlhw.objective import Objective

    fast.optimizers_without_dynamo()
    check(cfg, GIVEN)
    trainer = build(cfg, "trainer")
    device = runtime.pick_device(trainer.device)
    precision = runtime.Precision(trainer.precision, device)
    runtime.settle(device, precision, deterministic=trainer.deterministic)
    data = build(cfg, "dataset", data_dir=cfg.data_dir, seed=cfg.seed).to(device, precision.dtype)
    model = make_model(cfg, shape=data.shape, classes=len(data.classes)).to(device, precision.dtype)
    if trainer.channels_last:
        model = model.to(memory_format=torch.channels_last)
    normalizing = any(isinstance(layer, torch.nn.BatchNorm1d) for layer in model.modules())
    if normalizing and len(data.train) % trainer.batch_size == 1 % trainer.batch_size:
        raise UsageError(
            f"trainer.batch_size={trainer.batch_size}: leaves a batch of one of {len(data.train)} samples, of which "
            "batch norm can take no variance; choose another"
        )
    data_loss = deferred(cfg, "loss")
    assert data_loss is not None
    return Parts(
        trainer=trainer,
        precision=precision,
        data=data,
        model=model,
        objective=Objective(data_loss, build(cfg, "regularization")),
        optimizer=build(cfg, "optimizer", params=model.parameters()),
        schedule=build(cfg, "scheduler"),
    )


def _draw_curves(record: Record, fitted: Fitted, parts: Parts, *, title: str, loss_label: str) -> None:
    from dlhw import plots  # matplotlib, which takes a second to import, is wanted only now

    figure = plots.curves(
        record.rows,
        title=title,
        best_epoch=int(fitted.best["epoch"]),
        flood=parts.objective.regularization.flood,
        train_label=f"train ({parts.trainer.train_metrics})",
        loss_label=loss_label,
    )
    record.figure("curves", figure)


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
