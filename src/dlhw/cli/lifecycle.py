"""The beginning and the end of a run: its directory, the checkpoint that it resumes from, its results."""

from __future__ import annotations

import functools
import logging
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch.nn import Module

from dlhw.cli.assembly import Parts, Question, initialized_model
from dlhw.cli.build import choice
from dlhw.data.tensors import Dataset
from dlhw.errors import ChecksFailed, UsageError
from dlhw.runs import checkpoint
from dlhw.runs.answer import Answer
from dlhw.runs.checkpoint import State
from dlhw.runs.identity import same_run, to_yaml
from dlhw.runs.record import Record, read_summary
from dlhw.runtime import provenance
from dlhw.runtime.devices import Precision
from dlhw.training.run import Result, TrainingRun, best_row

log = logging.getLogger("dlhw")


def resume_same_run(cfg: DictConfig, record: Record) -> None:
    """Make a job of a sweep resume, as ``resume=`` does, if its directory holds a run with this config."""
    if same_run(cfg, record.path):
        cfg.resume = str(record.path)


def begin(cfg: DictConfig, record: Record, parts: Parts) -> TrainingRun:
    """Open the run that the config describes: a new one or, with ``cfg.resume``, one at its last checkpoint."""
    state = None
    if cfg.resume is not None:
        state = state_to_resume(cfg, parts.constants)
        record.reopen()
        record.restore(state["rows"] if state else [])
    record.write_config(to_yaml(cfg), new=cfg.resume is None)
    return TrainingRun(
        record, seed=cfg.seed, regularization=parts.regularization, resume=state, constants=parts.constants
    )


def state_to_resume(cfg: DictConfig, constants: State) -> State | None:
    """Return the last checkpoint of the run ``cfg.resume``; None if it was interrupted before the first.

    Raise UsageError if the run is finished, if the checkpoint does not belong to it, or if its dataset or the frozen
    weights in ``constants`` have changed.
    """
    directory = Path(cfg.resume)
    summary = read_summary(directory)
    trained = summary.get("final", {}).get("epoch", 0)
    finished = summary.get("status") == "finished"
    if finished and (trained >= cfg.trainer.epochs or summary.get("stopped") != "epochs"):
        raise UsageError(
            f"resume={cfg.resume}: already finished after {trained} epoch{'' if trained == 1 else 's'}"
            + ("; a larger trainer.epochs continues training" if summary.get("stopped") == "epochs" else "")
        )
    state = checkpoint.load_last(directory)
    rows = state["rows"] if state else []
    if len(rows) < trained or len(rows) > cfg.trainer.epochs:
        raise UsageError(
            f"resume={cfg.resume}: the checkpoint is of epoch {len(rows)}; expected an epoch from {trained} to "
            f"{cfg.trainer.epochs}"
        )
    if rows:
        best = best_row(rows, cfg.trainer.monitor)["epoch"]
        if not (directory / "best.pt").exists() or checkpoint.load(directory / "best.pt")["epoch"] < best:
            raise UsageError(
                f"resume={cfg.resume}: best.pt does not contain the weights of the best epoch, {best}; start a new run"
            )
    if state is not None and state.get("data", constants["data"]) != constants["data"]:
        raise UsageError(f"resume={cfg.resume}: the dataset has changed since this run started; start a new run")
    frozen = {name: value.cpu() for name, value in constants["model"].items()}
    if state is not None and not all(torch.equal(state["model"][name], value) for name, value in frozen.items()):
        raise UsageError(f"resume={cfg.resume}: model.weights have changed since this run started; start a new run")
    return state


def finish(cfg: DictConfig, parts: Parts, run: TrainingRun) -> Result:
    """Draw the curves of a trained run and write its summary. Raise TrainingFailed if it failed."""
    from dlhw.views import plots  # imports matplotlib, which takes a second

    result, record = run.result(parts.trainer), run.record
    figure = plots.curves(
        record.rows,
        title=title(cfg, parts),
        best_epoch=int(result.best["epoch"]),
        flood=parts.regularization.flood,
        train_label=f"train ({parts.trainer.train_metrics})",
        loss_label=f"loss ({choice(cfg, 'loss').replace('_', ' ')})",
    )
    record.figure("curves", figure)
    seconds = record.seconds()
    content = {
        "monitor": parts.trainer.monitor,
        **asdict(result),
        **report(parts, record),
        "seconds": sum(seconds),
        "seconds_per_epoch": statistics.median(seconds) if seconds else None,
        **about(cfg, parts.precision, parts.data, parts.model),
    }
    record.summary({"status": "finished", **content})
    return result


def report(parts: Parts, record: Record) -> dict[str, Any]:
    """Write the config's report on the best weights, and return its numbers for the summary."""
    component = parts.components["report"]
    if component.target is None:
        return {}
    parts.model.load_state_dict(checkpoint.load(record.path / "best.pt")["model"])
    untrained = functools.partial(initialized_model, parts.components, parts.trainer, parts.precision, parts.data)
    with parts.precision.autocast():
        result: Answer = component.build(model=parts.model.eval(), data=parts.data, untrained=untrained)
    result.write(record)
    for line in result.messages:
        log.info("%s", line)
    return result.summary()


def answer(cfg: DictConfig, record: Record, question: Question) -> None:
    """Run the study, then log and write its results. Raise ChecksFailed after everything is written."""
    if cfg.resume is not None:
        if record.finished:
            raise UsageError(f"resume={cfg.resume}: already finished")
        record.reopen()
    record.write_config(to_yaml(cfg), new=cfg.resume is None)
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


def title(cfg: DictConfig, parts: Parts) -> str:
    """Return the title of a run: its name, model and dataset."""
    return f"{cfg.name}: {cfg.model.get('architecture') or choice(cfg, 'model')} on {parts.data.name}"


def about(cfg: DictConfig, precision: Precision, data: Dataset | None, model: Module | None) -> dict[str, Any]:
    """Return the part of a summary that describes the run rather than its results."""
    content: dict[str, Any] = {"experiment": cfg.name, "seed": cfg.seed}
    if model is not None:
        content["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    if data is not None:
        content["data"] = data.description
    return content | provenance.provenance(precision.device)
