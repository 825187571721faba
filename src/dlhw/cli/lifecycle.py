"""The beginning and the end of a run: its directory, the checkpoint that it resumes from, its results."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch.nn import Module

from dlhw.cli import build, own_code
from dlhw.cli.assembly import Parts, Question, initialized_model
from dlhw.cli.build import choice
from dlhw.cli.resuming import require_unfinished
from dlhw.data.tensors import Dataset
from dlhw.errors import ChecksFailed, UsageError
from dlhw.loggers.run_loggers import RunLoggers
from dlhw.runtime import processes, provenance, signals
from dlhw.runtime.devices import Precision
from dlhw.runtime.wording import metric_name
from dlhw.storage import checkpoint, verification
from dlhw.storage.answer import Answer
from dlhw.storage.checkpoint import State
from dlhw.storage.identity import continues_run, to_yaml
from dlhw.storage.record import Record
from dlhw.storage.verification import Kind, WrongCheckpoint
from dlhw.training.run import Result, TrainingRun, best_row

log = logging.getLogger("dlhw")


def resume_same_run(cfg: DictConfig, record: Record) -> None:
    """Make a job of a sweep resume, as ``resume=`` does, if its directory has this run, perhaps with fewer epochs."""
    if continues_run(cfg, record.path):
        cfg.resume = str(record.path)


def begin(cfg: DictConfig, record: Record, parts: Parts) -> TrainingRun:
    """Open the run that the config describes: a new one or, with ``cfg.resume``, one at its last checkpoint."""
    state, constants = None, parts.constants
    if cfg.resume is not None:
        state = state_to_resume(cfg, parts, constants)
        record.reopen()
        record.restore(state["rows"] if state else [])
    record.write_config(to_yaml(cfg, parts.components.resolved), new=cfg.resume is None)
    attach_loggers(cfg, record)
    return TrainingRun(record, seed=cfg.seed, regularization=parts.regularization, resume=state, constants=constants)


def attach_loggers(cfg: DictConfig, record: Record) -> None:
    """Let the config's loggers follow what the record writes, in the first process only."""
    loggers = build.loggers(cfg)
    if loggers and processes.rank() == 0:
        record.follow(RunLoggers(record.path, loggers))


def state_to_resume(cfg: DictConfig, parts: Parts, constants: State) -> State | None:
    """Return the last checkpoint of the run ``cfg.resume``; None if it was interrupted before the first.

    Raise UsageError if the run is finished, if a checkpoint does not belong to it, or if its dataset or the frozen
    weights in ``constants`` have changed.
    """
    directory = Path(cfg.resume)
    trained = require_unfinished(directory, cfg)
    last = checkpoint.load_last(directory)
    if last is None:
        if trained:
            raise UsageError(f"{directory / 'last.pt'}: missing; restore it, or start a new run")
        return None
    path, state = last
    require_checkpoint(path, state, "last", parts, constants)
    rows = state["rows"]
    if len(rows) < trained or len(rows) > cfg.trainer.epochs:
        raise UsageError(
            f"resume={cfg.resume}: the checkpoint is of epoch {len(rows)}; expected an epoch from {trained} to "
            f"{cfg.trainer.epochs}"
        )
    if rows:
        if cfg.trainer.monitor not in rows[0]:
            raise WrongCheckpoint(path, f"its rows do not have {cfg.trainer.monitor}")
        best = best_row(rows, cfg.trainer.monitor)["epoch"]
        weights = directory / "best.pt"
        stored = checkpoint.load(weights) if os.path.lexists(weights) else None
        if stored is not None:
            require_checkpoint(weights, stored, "best", parts, constants)
        if stored is None or not best <= stored["epoch"] <= cfg.trainer.epochs:
            raise UsageError(
                f"resume={cfg.resume}: best.pt does not contain the weights of the best epoch, {best}; start a new run"
            )
    return state


def require_checkpoint(path: Path, state: State, kind: Kind, parts: Parts, constants: State) -> None:
    """Raise UsageError unless a checkpoint is of this kind and belongs to the run that is resumed."""
    verification.require_kind(path, state, kind)
    verification.require_same_run(path, state, constants["run"])
    if state["data"] != constants["data"]:
        raise UsageError(f"resume={path.parent}: the dataset has changed since this run started; start a new run")
    if any(state[name] != constants[name] for name in ("shape", "outputs")):
        raise WrongCheckpoint(path, "weights of another model (for other inputs or outputs)")
    verification.require_fits_model(path, state, parts.model.state_dict())
    frozen = {name: value.cpu() for name, value in constants["model"].items()}
    if not all(torch.equal(state["model"][name], value) for name, value in frozen.items()):
        raise UsageError(f"resume={path.parent}: model.weights have changed since this run started; start a new run")
    if kind == "last" and state["rows"]:
        verification.require_fits_optimizer(path, state, parts.optimizer)


def finish(cfg: DictConfig, parts: Parts, run: TrainingRun) -> Result:
    """Draw the curves of a trained run and write its summary. Raise TrainingFailed if it failed."""
    result, record = run.result(parts.trainer), run.record
    draw_curves(cfg, parts, run)
    seconds = record.seconds()
    content = {
        **asdict(result),
        **report(parts, record),
        "seconds": sum(seconds),
        "seconds_per_epoch": statistics.median(seconds) if seconds else None,
        "matrix_products": run.matrix_products,
        **about(cfg, parts.precision, parts.data, parts.model),
    }
    record.summary({"status": "finished", **content})
    return result


def draw_curves(cfg: DictConfig, parts: Parts, run: TrainingRun) -> None:
    """Write ``curves.png`` with the epochs so far, of which there is at least one."""
    from dlhw.views import plots  # imports matplotlib, which takes half a second

    best = int(run.best(parts.trainer)["epoch"])
    picture = plots.curves_png(run.record.rows, best_epoch=best, **curve_labels(cfg, parts.data.name))
    run.record.png("curves", picture)


@contextlib.contextmanager
def drawn_if_interrupted(cfg: DictConfig, parts: Parts, run: TrainingRun) -> Iterator[None]:
    """Draw the curves of a run that is interrupted in this context, by the first process."""
    try:
        yield
    except KeyboardInterrupt:
        if run.record.rows and not processes.rank():
            with signals.stoppable(False), contextlib.suppress(OSError):
                draw_curves(cfg, parts, run)
        raise


def header(cfg: DictConfig, parts: Parts, record: Record) -> list[str]:
    """Return what a run trains, on what, and by which metric its best epoch is chosen."""
    parameters = sum(parameter.numel() for parameter in parts.model.parameters())
    names = {"train": "training", "val": "validation", "test": "test"}
    sizes = ", ".join(f"{len(part):,} {names[name]}" for name, part in parts.data.parts.items())
    return [
        f"{title(cfg, parts.data.name)}, in {record.path}",
        f"{parameters:,} parameters, {sizes} samples, {parts.precision.device.type}, "
        f"best by {metric_name(parts.trainer.monitor)}",
    ]


def report(parts: Parts, record: Record) -> dict[str, Any]:
    """Write the config's report on the best weights, and return its numbers for the summary."""
    component = parts.components["report"]
    if component.target is None:
        return {}
    parts.model.load_state_dict(checkpoint.load(record.path / "best.pt")["model"])
    untrained = functools.partial(initialized_model, parts.components, parts.trainer, parts.precision, parts.data)
    with parts.precision.autocast():
        values = {"model": parts.model.eval(), "data": parts.data, "untrained": untrained, "record": record}
        result: Answer = component.build(**{name: values[name] for name in component.arguments & values.keys()})
    result.write(record)
    for line in result.messages:
        log.info("%s", line)
    return result.summary()


def answer(cfg: DictConfig, record: Record, question: Question) -> None:
    """Run the study, then log and write its results. Raise ChecksFailed after everything is written."""
    if cfg.resume is not None:
        require_unfinished(Path(cfg.resume), cfg)
        record.reopen()
    record.write_config(to_yaml(cfg), new=cfg.resume is None)
    attach_loggers(cfg, record)
    log.info("%s, in %s", cfg.name, record.path)
    started = time.perf_counter()
    result = question.compute()
    seconds = time.perf_counter() - started
    result.write(record)
    for line in result.lines():
        log.info("%s", line)
    content = {
        **result.summary(),
        "seconds": seconds,
        **about(cfg, question.precision, question.data, question.model),
    }
    if not result.disagreements:
        record.summary({"status": "finished", **content})
        return
    failed = "; ".join(check.what for check in result.disagreements)
    error = ChecksFailed(f"{len(result.disagreements)} of {len(result.checks)} checks disagree: {failed}")
    record.summary({"status": "failed", "reason": str(error), **content})
    raise error


def title(cfg: DictConfig, data_name: str) -> str:
    """Return the title of a run: its name, model and dataset."""
    return f"{cfg.name}: {cfg.model.get('architecture') or choice(cfg, 'model')} on {data_name}"


def curve_labels(cfg: DictConfig, data_name: str) -> dict[str, Any]:
    """Return the title, the labels and the flood level of a run's curves."""
    return {
        "title": title(cfg, data_name),
        "flood": cfg.regularization.flood,
        "train_label": f"train ({cfg.trainer.train_metrics})",
        "loss_label": f"loss ({choice(cfg, 'loss').replace('_', ' ')})",
    }


def about(cfg: DictConfig, precision: Precision, data: Dataset | None, model: Module | None) -> dict[str, Any]:
    """Return the part of a summary that describes the run rather than its results."""
    content: dict[str, Any] = {"experiment": cfg.name, "seed": cfg.seed}
    if cfg.get("debug"):
        content["debug"] = True
    if model is not None:
        content["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    if data is not None:
        content["data"] = data.description
    return content | provenance.provenance(precision.device, own_code=own_code.sources(cfg))
