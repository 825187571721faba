"""Training and evaluation: when to step, evaluate, write, keep the best weights, stop.

One epoch is the plain PyTorch loop. The data set lives on the device, so a batch is an index; losses
stay there too until the epoch ends, so nothing waits for the device in between. One run is trained, or
several at once: what concerns one model is written for one model, and ``variants.map`` makes it of all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dlhw.data.batches import Batches
from dlhw.data.tensors import Dataset, Split
from dlhw.runs.checkpoint import CheckpointWriter, State
from dlhw.runs.record import Record, Row
from dlhw.runtime import processes
from dlhw.runtime.devices import DeviceName, Precision, PrecisionName
from dlhw.runtime.progress import Progress
from dlhw.runtime.randomness import key
from dlhw.training.acceleration import Step, compiled, cuda_graphed, undecorated_step
from dlhw.training.finetuning import Trains
from dlhw.training.objective import DataLoss, Objective, Regularization, flooded, penalized_weights
from dlhw.training.variants import Variants

Count = Annotated[int, Field(gt=0)]
Probe = Callable[[nn.Module, Dataset], list[dict[str, Any]]]

NEAR_ZERO = 1e-3
"""Weights of a smaller absolute value count as near zero (D4.2)."""


class TrainingFailed(RuntimeError):
    """Training cannot go on; the message says where and why."""


@dataclass(frozen=True)
class Trainer:
    """How long, how fast and on what; see ``conf/trainer/default.yaml`` for what each setting means."""

    epochs: Count
    batch_size: Count
    evaluation_batch_size: Count
    train_metrics: Literal["running", "evaluated"]
    steps_per_epoch: Count | None
    trains: Trains
    rates: dict[str, Annotated[float, Field(ge=0)]]
    frozen_once: bool
    frozen_views: Count | None
    monitor: Literal["val_loss", "val_error_percent", "val_mse"]
    patience: Count | None
    clip_norm: Annotated[float, Field(gt=0)] | None
    probe_every_epochs: Count | None
    checkpoint_seconds: Annotated[float, Field(ge=0)]
    device: DeviceName
    precision: PrecisionName
    threads: Count | None
    compile: bool
    cuda_graphs: bool
    channels_last: bool
    deterministic: bool


@dataclass(frozen=True)
class Fitted:
    """What came out of a run; the weights themselves are in ``best.pt`` and ``last.pt``."""

    best: Row
    final: Row
    stopped: Literal["epochs", "patience"]

    def __str__(self) -> str:
        why = "no longer improving" if self.stopped == "patience" else "all epochs done"
        column, words = ("mse", "mean squared error") if "val_mse" in self.best else ("error_percent", "error")
        form = "{:.4g}" if column == "mse" else "{:.2f} %"
        val, test = (form.format(self.best.get(f"{part}_{column}", math.nan)) for part in ("val", "test"))
        told = f"{why}; best validation {words} {val} at epoch {self.best['epoch']}"
        return f"{told}, test {words} there {test}" if f"test_{column}" in self.best else told


class Run:
    """What a run has of its own while it is trained, alone or with others.

    ``resume`` is the checkpoint that it goes on from, None for the start; ``record`` has its rows already. ``whole`` is
    what its checkpoints say of a model of which only a part is trained on the data given: shape, frozen weights.
    """

    def __init__(
        self,
        record: Record,
        *,
        seed: int,
        regularization: Regularization,
        resume: State | None = None,
        whole: State | None = None,
    ) -> None:
        self.record = record
        self.seed = seed
        self.regularization = regularization
        self.resume = resume
        self.whole = whole or {"model": {}}
        self.failure: TrainingFailed | None = None
        self._best: Row | None = None

    def best(self, trainer: Trainer) -> Row:
        """The first epoch with the smallest monitored metric."""
        if self._best is None:
            self._best = best_row(self.record.rows, trainer.monitor)
        return self._best

    def add(self, row: Row, trainer: Trainer, *, seconds: float) -> bool:
        """Record an epoch; whether it is the best so far."""
        improved = not self.record.rows or row[trainer.monitor] < self.best(trainer)[trainer.monitor]
        self.record.append(row, seconds=seconds)
        if improved:
            self._best = row
        return improved

    def goes_on(self, trainer: Trainer) -> bool:
        """Whether there is another epoch for it."""
        rows = self.record.rows
        if self.failure is not None or len(rows) >= trainer.epochs:
            return False
        waited = rows[-1]["epoch"] - self.best(trainer)["epoch"] if rows else 0
        return trainer.patience is None or waited < trainer.patience

    def result(self, trainer: Trainer) -> Fitted:
        """What came out. Raises TrainingFailed if it failed."""
        if self.failure is not None:
            raise self.failure
        rows = self.record.rows
        return Fitted(self.best(trainer), rows[-1], "epochs" if len(rows) >= trainer.epochs else "patience")


def fit(
    variants: Variants,
    runs: Sequence[Run],
    data: Dataset,
    data_loss: DataLoss,
    *,
    trainer: Trainer,
    precision: Precision,
    probe: Probe | None = None,
) -> None:
    """Train in place, a row in each run's record per epoch; ``run.result`` then tells what came out.

    ``variants`` are the models of ``runs``, in the same order; ``data`` has rows for each of them where their
    parts differ. The order of the samples and every random number of an epoch are keyed by (seed, epoch): a
    resumed run goes on with the bits of an uninterrupted one. A run whose loss is not finite fails; the others
    do not notice.
    """
    steps = steps_of_epoch(data, trainer)
    batches = Batches(data, [run.seed for run in runs], size=trainer.batch_size, steps=steps)
    first = len(runs[0].record.rows)
    if first:
        variants.load([run.resume for run in runs if run.resume is not None])
    data_loss = processes.whole_batch_loss(data_loss)
    step = training_step(variants, runs, data, data_loss, trainer=trainer, precision=precision)
    measure = metrics(variants, runs, data, data_loss, trainer=trainer, precision=precision)

    with ExitStack() as opened:
        label = f"best of {len(runs)} runs" if len(runs) > 1 else ""
        progress = opened.enter_context(Progress(trainer.epochs, steps, start_epoch=first, label=label))
        keep = _keeping(variants, runs, data, trainer=trainer, probe=probe, opened=opened)
        for epoch in range(first + 1, trainer.epochs + 1):
            going = [k for k, run in enumerate(runs) if run.goes_on(trainer)]
            if not going:
                break
            started = time.perf_counter()
            torch.manual_seed(key(runs[0].seed, "forward", epoch))
            variants.rekey([run.seed for run in runs], epoch)
            history = torch.empty(steps, len(runs), 3, device=data.device, dtype=precision.dtype)
            variants.train()
            for index, (x, y) in enumerate(batches(epoch)):
                variants.set_rates(epoch - 1 + index / steps)
                history[index] = step(x, y)
                progress.step()

            history[:, :, 2] = processes.sum_over_processes(history[:, :, 2])
            history = history.cpu().double()  # waits for the device
            rows = measure(epoch, history)
            seconds = (time.perf_counter() - started) / len(going)
            improved = []
            for k in going:
                runs[k].failure = failure(history[:, k], rows[k])
                if runs[k].failure is None and runs[k].add(rows[k], trainer, seconds=seconds):
                    improved.append(k)
            keep(epoch, going, improved)
            progress.epoch(best_row([rows[k] for k in going], trainer.monitor))


def _keeping(
    variants: Variants,
    runs: Sequence[Run],
    data: Dataset,
    *,
    trainer: Trainer,
    probe: Probe | None,
    opened: ExitStack,
) -> Callable[[int, Sequence[int], Sequence[int]], None]:
    """The function of (epoch, runs that were trained, those that improved) that probes and keeps weights.

    What it holds back is written when ``opened`` closes.
    """
    if processes.rank():
        return lambda epoch, trained, improved: None
    sizes = {"shape": list(data.shape), "outputs": data.outputs}

    def whole(k: int, weights: State) -> State:
        return {**sizes, **runs[k].whole, "model": {**runs[k].whole["model"], **weights}}

    def look(k: int, epoch: int) -> None:
        if probe is not None:
            runs[k].record.probe(f"epoch_{epoch:04d}", probe(variants.model(k), data.of(k)))

    def keeper(k: int) -> CheckpointWriter:
        def state() -> State:
            (weights,) = variants.weights([k])
            return whole(k, weights) | {"optimizer": variants.optimizer_state(k), "rows": runs[k].record.rows}

        return opened.enter_context(
            CheckpointWriter(runs[k].record.path, state, every_seconds=trainer.checkpoint_seconds)
        )

    def keep(epoch: int, trained: Sequence[int], improved: Sequence[int]) -> None:
        """Probe and keep the weights of the runs that were trained in this epoch."""
        best = dict(zip(improved, variants.weights(improved), strict=True))
        for k in trained:
            if runs[k].failure is not None:
                keepers[k].abandon()
                continue
            over, every = not runs[k].goes_on(trainer), trainer.probe_every_epochs
            if over or (every is not None and epoch % every == 0):
                look(k, epoch)
            keepers[k].epoch_finished(whole(k, best[k]) | {"epoch": epoch} if k in best else None)
            if over:  # its model is computed along while others go on
                keepers[k].flush()

    keepers = [keeper(k) for k in range(len(runs))]
    for k, run in enumerate(runs):
        opened.enter_context(run.record.buffered())
        if not run.record.rows:
            look(k, epoch=0)
    return keep


def training_step(
    variants: Variants,
    runs: Sequence[Run],
    data: Dataset,
    data_loss: DataLoss,
    *,
    trainer: Trainer,
    precision: Precision,
) -> Step:
    """The function of one batch that changes the weights.

    It maps raw samples (K, B, *shape) and targets (K, B), or (1, ...) where all runs have the same, to a tensor
    (K, 3): data loss, penalty, the batch's :func:`score`, all before the update.
    """

    def of_one(model: nn.Module, regularization: Regularization, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = predict(model, data, x, trainer=trainer, precision=precision)
        value, loss, penalty = Objective(data_loss, regularization)(logits, y, penalized_weights(model))
        penalty = torch.zeros_like(loss) if penalty is None else penalty
        return value, torch.stack([loss.detach(), penalty.detach(), score(logits.detach(), y).to(loss.dtype)])

    of_all = variants.map(of_one, [run.regularization for run in runs])

    def forward_backward(x: Tensor, y: Tensor) -> Tensor:
        value, measured = of_all(x, y)
        value.sum().backward()
        return measured

    gradients: Step = compiled(forward_backward) if trainer.compile else forward_backward
    update = undecorated_step(variants.optimizer)

    def step(x: Tensor, y: Tensor) -> Tensor:
        variants.clear_gradients()
        measured = gradients(x, y)
        if trainer.clip_norm is not None:
            variants.clip(trainer.clip_norm)
        variants.gather_gradients()
        update()
        return measured

    if trainer.cuda_graphs:
        first = next(Batches(data, [run.seed for run in runs], size=trainer.batch_size, steps=1)(1))
        return cuda_graphed(step, variants.tensors(), variants.optimizer, *first)
    return step


def steps_of_epoch(data: Dataset, trainer: Trainer) -> int:
    """How many batches an epoch has."""
    return trainer.steps_per_epoch or -(-len(data.train) // trainer.batch_size)


def predict(model: nn.Module, data: Dataset, x: Tensor, *, trainer: Trainer, precision: Precision) -> Tensor:
    """Logits (N, C), or the predictions (N,) where there are no classes, of raw samples (N, *shape)."""
    x = data.normalize(x)
    if trainer.channels_last and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    with precision.autocast():
        logits: Tensor = model(x)
    logits = logits.to(precision.dtype)
    return logits if data.classes else logits.squeeze(1)


def score(logits: Tensor, y: Tensor) -> Tensor:
    """What is summed over samples besides the loss: how many are wrong, or of predictions (N,) the squared errors.

    Where labels are shares of classes (N, C), the largest share is the right answer.
    """
    if logits.ndim == 1:
        return (logits - y).square().sum()
    return (logits.argmax(1) != (y.argmax(1) if y.ndim == 2 else y)).sum()


def metrics(
    variants: Variants,
    runs: Sequence[Run],
    data: Dataset,
    data_loss: DataLoss,
    *,
    trainer: Trainer,
    precision: Precision,
) -> Callable[[int, Tensor], list[Row]]:
    """The function of an epoch and what its steps measured, (steps, K, 3) on the CPU, that gives the row of each run.

    Evaluation takes ``trainer.evaluation_batch_size`` samples at a time, in an ensemble for all models together, of
    large pictures fewer, but no fewer for each model than in training.
    """

    def of_one(model: nn.Module, regularization: Regularization, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = predict(model, data, x, trainer=trainer, precision=precision)
        return data_loss(logits, y), score(logits, y)

    of_all = variants.map(of_one, [run.regularization for run in runs])
    whole = trainer.evaluation_batch_size
    size = min(whole, max(min(whole // len(runs), data.evaluated_at_once), trainer.batch_size))
    parts = data.parts
    if trainer.train_metrics != "evaluated":
        del parts["train"]

    def evaluated(part: Split) -> dict[str, list[float]]:
        losses, scores = [], []
        for batch in part.all_rows().split(size, dim=1):
            loss, wrong = of_all(*part.gather(processes.local_part(batch)))
            losses.append(loss * batch.shape[1])
            scores.append(wrong)
        loss = torch.stack(losses).cpu().double().sum(0) / len(part)
        return _metrics(
            loss, processes.sum_over_processes(torch.stack(scores).sum(0)), len(part), of_classes=bool(data.classes)
        )

    @torch.inference_mode()
    def measure(epoch: int, history: Tensor) -> list[Row]:
        """The row of each run, from what the steps measured (steps, K, 3) and an evaluation of all parts."""
        variants.train(False)
        tables = {f"{name}_": evaluated(part) for name, part in parts.items()} | {"": weight_metrics(variants)}
        variants.train()
        rows = []
        for k, run in enumerate(runs):
            row: Row = {"epoch": epoch, "step": epoch * len(history), "lr": variants.rate(k)}
            row |= running_metrics(history[:, k], data, trainer, run.regularization)
            row |= {prefix + name: values[k] for prefix, table in tables.items() for name, values in table.items()}
            rows.append(row)
        return rows

    return measure


def _metrics(loss: Tensor, score: Tensor, count: int, *, of_classes: bool) -> dict[str, list[float]]:
    """From mean losses (K,) and sums of :func:`score` (K,) over so many samples."""
    mean = score.cpu().double() / count
    if not of_classes:
        return {"loss": loss.tolist(), "mse": mean.tolist()}
    return {"loss": loss.tolist(), "error_percent": (100 * mean).tolist(), "accuracy": (1 - mean).tolist()}


def running_metrics(history: Tensor, data: Dataset, trainer: Trainer, regularization: Regularization) -> Row:
    """Means over an epoch's samples, each measured on its batch just before its update, from (steps, 3)."""
    losses, penalties, scores = history.unbind(1)
    size = trainer.batch_size
    count = min(len(data.train), len(history) * size)
    shares = losses.new_tensor([min(size, count - start) / count for start in range(0, count, size)])
    objectives = flooded(losses, regularization.flood) + penalties
    means = _metrics((losses @ shares).unsqueeze(0), scores.sum().unsqueeze(0), count, of_classes=bool(data.classes))
    row = {f"train_{name}": value for name, (value,) in means.items()}
    return row | {"train_objective": float(objectives @ shares), "train_penalty": float(penalties @ shares)}


def weight_metrics(variants: Variants) -> dict[str, list[float]]:
    """Of all trained weight matrices and kernels of each model: their norm, and the percentage that is near zero."""
    trained = variants.stacked()
    weights = [tensor.flatten(1) for tensor in trained if tensor.ndim > 2] or [trained[0].new_zeros(variants.count, 0)]
    squares = torch.stack([weight.square().sum(1) for weight in weights]).sum(0)
    small = torch.stack([(weight.abs() < NEAR_ZERO).sum(1) for weight in weights]).sum(0)
    count = max(1, sum(weight.shape[1] for weight in weights))
    return {"weight_norm": squares.sqrt().tolist(), "near_zero_percent": (100 * small.double() / count).tolist()}


def failure(history: Tensor, row: Row) -> TrainingFailed | None:
    """Why a run cannot go on after an epoch: the first step (of (steps, 3)) or metric that is not finite."""
    losses, penalties, _ = history.unbind(1)
    not_finite = (~torch.isfinite(losses + penalties)).nonzero()
    if len(not_finite):
        step = int(not_finite[0])
        return TrainingFailed(
            f"loss {losses[step]:g}, penalty {penalties[step]:g} at step {row['step'] - len(losses) + step + 1} "
            f"(epoch {row['epoch']}, step {step + 1} of {len(losses)}): training diverged; "
            "try a smaller optimizer.lr, or set trainer.clip_norm"
        )
    for name, value in row.items():
        if not math.isfinite(value):
            return TrainingFailed(
                f"{name} is {value:g} after epoch {row['epoch']} (step {row['step']}): training diverged"
            )
    return None


def best_row(rows: Sequence[Row], monitor: str) -> Row:
    """The first epoch with the smallest ``monitor``."""
    return min(rows, key=lambda row: row[monitor])
