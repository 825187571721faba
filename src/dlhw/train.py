"""The entrypoint: from a command line to a run, ``python -m dlhw.train experiment=flooding b=0.05``.

``main`` composes the config, ``parts`` builds what it describes, ``run`` trains it or lets a study answer it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import shlex
import statistics
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlhw.cli import program
from dlhw.errors import UsageError

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch.nn import Module

    from dlhw.cli.assembly import Parts, Question
    from dlhw.data.tensors import Dataset
    from dlhw.runs.answer import Answer
    from dlhw.runs.record import Record
    from dlhw.runtime.devices import Precision
    from dlhw.training.run import Result, TrainingRun

log = logging.getLogger("dlhw")


class Disagreement(RuntimeError):
    """A study found something else than what is known; the message names it."""


def main() -> None:
    """What ``dlhw`` and ``python -m dlhw.train`` run."""
    program.command_line(program.Program(task, check_values))


def check_values(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Raises UsageError with one line per mistake in a config's values, or for an override that nothing reads."""
    from dlhw.cli import assembly  # imports torch, which composing does without

    assembly.check_values(cfg, overrides)


def task(cfg: DictConfig, directory: Path, overrides: Sequence[str], in_sweep: bool) -> None:
    """One run in ``directory``, alone or as a job of a sweep."""
    from dlhw.runs.record import Record

    record = Record(directory)
    with record.locked(), accounted(cfg, record, in_sweep=in_sweep):
        if in_sweep:
            go_on_with(cfg, record)
        check_values(cfg, overrides)
        run(cfg, record)


def go_on_with(cfg: DictConfig, record: Record) -> None:
    """Resume, as ``resume=`` does, when the directory of a sweep's job holds a run with this config already."""
    if program.same_run(cfg, record.path):
        cfg.resume = str(record.path)


@contextlib.contextmanager
def accounted(cfg: DictConfig, record: Record, *, in_sweep: bool) -> Iterator[None]:
    """Whatever ends a run early in here, its directory tells; a run that never began leaves none."""
    from dlhw.training.run import TrainingFailed

    try:
        yield
    except KeyboardInterrupt:
        if not (record.path / "config.yaml").exists():
            record.discard()
        elif not in_sweep:
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
    from dlhw.cli.assembly import assemble, question
    from dlhw.runtime import devices, processes
    from dlhw.training.loop import Training
    from dlhw.training.variants import Single

    asked = question(cfg)
    if asked is not None:
        if processes.world_size() > 1:
            raise UsageError("torchrun: a study computes in one process")
        answer(cfg, record, asked)
        return
    with processes.process_group(devices.pick_device(cfg.trainer.device)):
        parts = assemble(cfg)
        job = begin(cfg, record, parts)
        log.info("%s, in %s", title(cfg, parts), record.path)
        Training(
            Single(parts.trained, parts.optimizer, parts.schedule),
            [job],
            parts.trained_on,
            parts.data_loss,
            trainer=parts.trainer,
            precision=parts.precision,
            probe=parts.probe,
        ).fit()
    if processes.rank() == 0:
        log.info("%s", finish(cfg, parts, job))


def answer(cfg: DictConfig, record: Record, asked: Question) -> None:
    """Let the study compute, tell what it found and write it. Raises Disagreement, with everything written."""
    if cfg.resume is not None:
        if record.finished:
            raise UsageError(f"resume={cfg.resume}: finished already")
        record.reopen()
    record.write_config(program.to_yaml(cfg), new=cfg.resume is None)
    log.info("%s, in %s", cfg.name, record.path)
    started = time.perf_counter()
    found = asked.compute()
    seconds = time.perf_counter() - started
    found.write(record)
    for line in found.lines():
        log.info("%s", line)
    content = {**found.summary(), "seconds": seconds, **about(cfg, asked.precision, asked.data, asked.model)}
    if not found.disagreements:
        record.summary({"status": "finished", **content})
        return
    error = Disagreement(
        f"{len(found.disagreements)} of {len(found.checks)} checks disagree: "
        + "; ".join(check.what for check in found.disagreements)
    )
    record.summary({"status": "failed", "reason": str(error), **content})
    raise error


def begin(cfg: DictConfig, record: Record, parts: Parts) -> TrainingRun:
    """The run that the config describes, at its start or, with ``cfg.resume``, at its last checkpoint."""
    from dlhw.training.run import TrainingRun

    state = _state_to_resume(cfg, record, parts.whole)
    record.write_config(program.to_yaml(cfg), new=cfg.resume is None)
    return TrainingRun(record, seed=cfg.seed, regularization=parts.regularization, resume=state, whole=parts.whole)


def finish(cfg: DictConfig, parts: Parts, job: TrainingRun) -> Result:
    """Draw the curves of a run that was trained and write its summary. Raises TrainingFailed if it failed."""
    from dlhw.cli.build import choice
    from dlhw.views import plots  # matplotlib, which takes a second to import, is wanted only now

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
        **report(cfg, parts, record),
        **times,
        **about(cfg, parts.precision, parts.data, parts.model),
    }
    record.summary({"status": "finished", **content})
    return fitted


def report(cfg: DictConfig, parts: Parts, record: Record) -> dict[str, Any]:
    """Write what the config's report says of the best weights; its numbers, for the summary."""
    from dlhw.cli.assembly import make_model
    from dlhw.cli.build import build
    from dlhw.runs import checkpoint

    if cfg.report.get("_target_") is None:
        return {}
    parts.model.load_state_dict(checkpoint.load(record.path / "best.pt")["model"])
    untrained = functools.partial(make_model, cfg, parts.trainer, parts.precision, parts.data)
    with parts.precision.autocast():
        found: Answer = build(cfg, "report", model=parts.model.eval(), data=parts.data, untrained=untrained)
    found.write(record)
    for line in found.messages:
        log.info("%s", line)
    return found.summary()


def title(cfg: DictConfig, parts: Parts) -> str:
    """What a run is, in a few words."""
    from dlhw.cli.build import choice

    return f"{cfg.name}: {choice(cfg, 'model')} on {parts.data.name}"


def about(cfg: DictConfig, precision: Precision, data: Dataset | None, model: Module | None) -> dict[str, Any]:
    """What a summary says of a run besides its results."""
    from dlhw.runtime import provenance

    content: dict[str, Any] = {"experiment": cfg.name, "seed": cfg.seed}
    if model is not None:
        content["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    if data is not None:
        content["data"] = data.description
    return content | provenance.provenance(precision.device)


def _state_to_resume(cfg: DictConfig, record: Record, whole: dict[str, Any]) -> dict[str, Any] | None:
    """The checkpoint of an interrupted run; None for a new run and for one stopped before its first checkpoint.

    Raises UsageError where it cannot go on as it was: what does not train is taken from ``whole``, as it is now.
    """
    import torch

    from dlhw.runs import checkpoint
    from dlhw.runs.record import read_summary
    from dlhw.training.run import best_row

    if cfg.resume is None:
        return None
    held = Path(cfg.resume)
    summary = read_summary(held)
    trained = summary.get("final", {}).get("epoch", 0)
    finished = summary.get("status") == "finished"
    if finished and (trained >= cfg.trainer.epochs or summary.get("stopped") != "epochs"):
        raise UsageError(
            f"resume={cfg.resume}: finished already after {trained} epochs"
            + ("; a larger trainer.epochs trains on" if summary.get("stopped") == "epochs" else "")
        )
    state = checkpoint.load_last(held)
    rows = state["rows"] if state else []
    if len(rows) < trained or len(rows) > cfg.trainer.epochs:
        raise UsageError(f"resume={cfg.resume}: the checkpoint is of epoch {len(rows)}, the run is not")
    if rows:
        best = best_row(rows, cfg.trainer.monitor)["epoch"]
        if not (held / "best.pt").exists() or checkpoint.load(held / "best.pt")["epoch"] < best:
            raise UsageError(f"resume={cfg.resume}: best.pt no longer holds the weights of epoch {best}; train anew")
    if state is not None and state.get("data", whole["data"]) != whole["data"]:
        raise UsageError(f"resume={cfg.resume}: the data are others than those that it was trained on; train anew")
    frozen = {name: value.cpu() for name, value in whole["model"].items()}
    if state is not None and not all(torch.equal(state["model"][name], value) for name, value in frozen.items()):
        raise UsageError(f"resume={cfg.resume}: model.weights are others than those that it began with; train anew")
    record.reopen()
    record.restore(rows)
    return state


if __name__ == "__main__":
    main()
