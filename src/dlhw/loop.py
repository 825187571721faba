"""Training and evaluation: when to step, evaluate, write, keep the best weights, stop.

One epoch is the plain PyTorch loop. The data set lives on the device, so a batch is an index; losses
stay there too until the epoch ends, so nothing waits for the device in between.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dlhw import checkpoint
from dlhw.data.tensors import Dataset, Split
from dlhw.fast import Step, compiled, cuda_graphed, undecorated_step
from dlhw.objective import DataLoss, Objective, flooded, penalized_weights
from dlhw.optim import Schedule
from dlhw.progress import Progress
from dlhw.record import Record, Row
from dlhw.runtime import DeviceName, Precision, PrecisionName, generator, key

Count = Annotated[int, Field(gt=0)]
Probe = Callable[[nn.Module, Dataset], list[dict[str, Any]]]


class TrainingFailed(RuntimeError):
    """Training cannot go on; the message says where and why."""


@dataclass(frozen=True)
class Trainer:
    """How long, how fast and on what; see ``conf/trainer/default.yaml`` for what each setting means."""

    epochs: Count
    batch_size: Count
    evaluation_batch_size: Count
    train_metrics: Literal["running", "evaluated"]
    monitor: Literal["val_loss", "val_error_percent"]
    patience: Count | None
    clip_norm: Annotated[float, Field(gt=0)] | None
    checkpoint_seconds: Annotated[float, Field(ge=0)]
    device: DeviceName
    precision: PrecisionName
    compile: bool
    cuda_graphs: bool
    channels_last: bool
    deterministic: bool


@dataclass(frozen=True)
class Fitted:
    """What :func:`fit` found; the weights themselves are in ``best.pt`` and ``last.pt``."""

    best: Row
    final: Row
    stopped: Literal["epochs", "patience"]

    def __str__(self) -> str:
        why = "no longer improving" if self.stopped == "patience" else "all epochs done"
        return (
            f"{why}; best validation error {self.best['val_error_percent']:.2f} % at epoch {self.best['epoch']}, "
            f"test error there {self.best['test_error_percent']:.2f} %"
        )


def fit(
    model: nn.Module,
    data: Dataset,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    *,
    schedule: Schedule,
    trainer: Trainer,
    precision: Precision,
    seed: int,
    record: Record,
    resume: checkpoint.State | None = None,
    probe: Probe | None = None,
) -> Fitted:
    """Train ``model`` in place, one row of ``record`` per epoch, from the start or from a checkpoint.

    The order of the samples and every random number of an epoch are keyed by (seed, epoch): a resumed
    run goes on with the bits of an uninterrupted one. Raises TrainingFailed when a loss is not finite.
    """
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    if resume is not None:
        model.load_state_dict(resume["model"])
        optimizer.load_state_dict(resume["optimizer"])
    train, steps = data.train, -(-len(data.train) // trainer.batch_size)
    step = training_step(model, data, objective, optimizer, trainer=trainer, precision=precision)
    measured_on = {"val": data.val, "test": data.test}
    if trainer.train_metrics == "evaluated":
        measured_on = {"train": train, **measured_on}

    def weights() -> checkpoint.State:
        return {"model": model.state_dict(), "shape": list(data.shape), "classes": len(data.classes)}

    def state() -> checkpoint.State:
        return {**weights(), "optimizer": optimizer.state_dict(), "rows": record.rows}

    with (
        Progress(trainer.epochs, steps, start_epoch=len(record.rows)) as progress,
        checkpoint.Keeper(record.path, state, every_seconds=trainer.checkpoint_seconds) as keeper,
    ):
        for epoch in range(len(record.rows) + 1, trainer.epochs + 1):
            if out_of_patience(record.rows, trainer):
                break
            started = time.perf_counter()
            torch.manual_seed(key(seed, "forward", epoch))
            order = torch.randperm(len(train), generator=generator(seed, "order", epoch)).to(train.x.device)
            history = torch.empty(steps, 3, device=train.x.device, dtype=precision.dtype)
            model.train()
            for index, batch in enumerate(order.split(trainer.batch_size)):
                factor = schedule(epoch - 1 + index / steps)
                set_learning_rates(optimizer, [rate * factor for rate in rates])
                history[index] = step(train.x.index_select(0, batch), train.y.index_select(0, batch))
                progress.step()

            row: Row = {"epoch": epoch, "step": epoch * steps, "lr": rates[0] * factor}
            row |= running_metrics(history, order, trainer.batch_size, objective, epoch=epoch)
            for name, split in measured_on.items():
                metrics = evaluate(model, data, split, objective.data_loss, trainer=trainer, precision=precision)
                row |= {f"{name}_{metric}": value for metric, value in metrics.items()}
            require_finite(row)
            record.append(row, seconds=time.perf_counter() - started)
            if probe is not None:
                record.probe(f"epoch_{epoch:04d}", probe(model, data))
            improved = best_row(record.rows, trainer.monitor) is row
            keeper.keep(copy.deepcopy(weights()) | {"epoch": epoch} if improved else None)
            progress.epoch(row)

    return Fitted(
        best=best_row(record.rows, trainer.monitor),
        final=record.rows[-1],
        stopped="epochs" if len(record.rows) >= trainer.epochs else "patience",
    )


def training_step(
    model: nn.Module,
    data: Dataset,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    *,
    trainer: Trainer,
    precision: Precision,
) -> Step:
    """The function of one batch that changes the weights.

    It maps raw samples (N, *shape) and targets (N,) to a tensor (3,): data loss, penalty, number of
    wrongly classified samples, all before the update.
    """
    weights = penalized_weights(model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    update = undecorated_step(optimizer)

    def forward_backward(x: Tensor, y: Tensor) -> Tensor:
        logits = predict(model, data, x, trainer=trainer, precision=precision)
        value, loss, penalty = objective(logits, y, weights)
        value.backward()
        wrong = (logits.detach().argmax(1) != y).sum()
        return torch.stack([loss.detach(), torch.zeros_like(loss) if penalty is None else penalty.detach(), wrong])

    gradients: Step = compiled(forward_backward) if trainer.compile else forward_backward

    def step(x: Tensor, y: Tensor) -> Tensor:
        for parameter in parameters:
            parameter.grad = None
        measured = gradients(x, y)
        if trainer.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, trainer.clip_norm)
        update()
        return measured

    if trainer.cuda_graphs:
        first = slice(trainer.batch_size)
        return cuda_graphed(step, model, optimizer, data.train.x[first], data.train.y[first])
    return step


def predict(model: nn.Module, data: Dataset, x: Tensor, *, trainer: Trainer, precision: Precision) -> Tensor:
    """Logits (N, C) of raw samples (N, *shape), in the run's precision."""
    x = data.normalize(x)
    if trainer.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    with precision.autocast():
        logits: Tensor = model(x)
    return logits.to(precision.dtype)


@torch.inference_mode()
def evaluate(
    model: nn.Module, data: Dataset, split: Split, loss: DataLoss, *, trainer: Trainer, precision: Precision
) -> Row:
    """Mean loss, percent wrongly classified and accuracy (0 to 1) of the model in evaluation mode."""
    model.eval()
    losses, wrongs = [], []
    size = trainer.evaluation_batch_size
    for x, y in zip(split.x.split(size), split.y.split(size), strict=True):
        logits = predict(model, data, x, trainer=trainer, precision=precision)
        losses.append(loss(logits, y) * len(y))
        wrongs.append((logits.argmax(1) != y).sum())
    model.train()
    return _metrics(torch.stack(losses).cpu().double().sum() / len(split), torch.stack(wrongs).sum(), len(split))


def _metrics(loss: Tensor, wrong: Tensor, count: int) -> Row:
    error = float(wrong) / count
    return {"loss": float(loss), "error_percent": 100 * error, "accuracy": 1 - error}


def running_metrics(history: Tensor, order: Tensor, batch_size: int, objective: Objective, *, epoch: int) -> Row:
    """Means over an epoch's steps, each measured on its batch just before its update, from (steps, 3).

    Raises TrainingFailed naming the first step whose loss or penalty is not finite.
    """
    losses, penalties, wrong = history.cpu().double().unbind(1)
    not_finite = (~torch.isfinite(losses + penalties)).nonzero()
    if len(not_finite):
        step = int(not_finite[0])
        raise TrainingFailed(
            f"loss {losses[step]:g}, penalty {penalties[step]:g} at step {(epoch - 1) * len(losses) + step + 1} "
            f"(epoch {epoch}, step {step + 1} of {len(losses)}): training diverged; "
            "try a smaller optimizer.lr, or set trainer.clip_norm"
        )
    shares = torch.tensor([len(batch) / len(order) for batch in order.split(batch_size)], dtype=torch.float64)
    objectives = flooded(losses, objective.regularization.flood) + penalties
    metrics = _metrics(losses @ shares, wrong.sum(), len(order))
    row = {f"train_{metric}": value for metric, value in metrics.items()}
    return row | {"train_objective": float(objectives @ shares), "train_penalty": float(penalties @ shares)}


def require_finite(row: Row) -> None:
    """Raise TrainingFailed when a metric of an epoch is not finite."""
    for name, value in row.items():
        if not math.isfinite(value):
            raise TrainingFailed(
                f"{name} is {value:g} after epoch {row['epoch']} (step {row['step']}): training diverged"
            )


def set_learning_rates(optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> None:
    """One rate per parameter group, in place where the rate is a tensor (a CUDA graph reads it there)."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def best_row(rows: Sequence[Row], monitor: str) -> Row:
    """The first epoch with the smallest ``monitor``."""
    return min(rows, key=lambda row: row[monitor])


def out_of_patience(rows: Sequence[Row], trainer: Trainer) -> bool:
    """Whether the monitored metric has not improved for ``patience`` epochs."""
    if trainer.patience is None or not rows:
        return False
    return rows[-1]["epoch"] - best_row(rows, trainer.monitor)["epoch"] >= trainer.patience
