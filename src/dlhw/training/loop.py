"""The training loop: epochs, steps, evaluation, checkpoints and stopping, for one run or for K runs at once.

An epoch is the plain PyTorch loop. The dataset is stored on the device, so a batch is an index; losses stay there
until the epoch ends, so no step waits for the device. Tensors have a leading dimension K, the number of runs, which
is 1 for a single run; :mod:`dlhw.training.variants` computes K models at once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlhw.data.batches import Batches
from dlhw.data.tensors import Dataset, Split
from dlhw.errors import TrainingFailed
from dlhw.runtime import processes, products, signals
from dlhw.runtime.devices import Precision
from dlhw.runtime.progress import Progress
from dlhw.runtime.randomness import key
from dlhw.storage.checkpoint import CheckpointTimes, CheckpointWriter, State
from dlhw.storage.record import Row
from dlhw.training.acceleration import compiled, cuda_graphed
from dlhw.training.metrics import divergences, errors_of, running_metrics, split_metrics, weight_metrics
from dlhw.training.objective import DataLoss, Objective, stacked
from dlhw.training.run import TrainingRun, best_row
from dlhw.training.settings import Trainer
from dlhw.training.variants import Variants

Probe = Callable[[nn.Module, Dataset], list[dict[str, Any]]]
AfterEpoch = Callable[[Row], None]


class Training:
    """Train the models of ``runs`` in place; :meth:`fit` records one row of metrics per run and epoch.

    The order of the samples and every random number of an epoch are keyed by (seed, epoch), so a resumed run computes
    the bits of an uninterrupted one. A run whose loss is not finite fails; the others continue.

    Args:
        variants: the models of ``runs``, in the same order.
        runs: all at the same epoch.
        data: its splits have one row of indices per run if they differ between runs.
        data_loss: of one model, from logits (B, C) and targets (B,).
        probe: watches a model before training, after it, and every ``trainer.probe_every_epochs``.
        after_epoch: called with the row of the best run at the end of each epoch, when the files have all rows.
    """

    def __init__(
        self,
        variants: Variants,
        runs: Sequence[TrainingRun],
        data: Dataset,
        data_loss: DataLoss,
        *,
        trainer: Trainer,
        precision: Precision,
        probe: Probe | None = None,
        after_epoch: AfterEpoch | None = None,
    ) -> None:
        self.variants, self.runs, self.data = variants, runs, data
        self.trainer, self.precision, self.probe, self.after_epoch = trainer, precision, probe, after_epoch
        self.seeds = [run.seed for run in runs]
        self.data_loss = variants.vectorized(processes.whole_batch_loss(data_loss))
        regularizations = [run.regularization for run in runs]
        strengths = stacked(regularizations, like=data.normalize.scale)
        self.flood = stacked(regularizations, like=torch.zeros((), dtype=torch.float64)).flood
        self.objective = Objective(self.data_loss, strengths)
        self.errors = errors_of(data)
        self.steps = trainer.steps_per_epoch or -(-len(data.train) // trainer.batch_size)
        self.batches = Batches(data, self.seeds, size=trainer.batch_size, steps=self.steps, order=trainer.order)
        local_size = trainer.batch_size // processes.world_size()
        self.checkpoint_times = CheckpointTimes(trainer.checkpoint_seconds)
        self.matrix_products = products.fastest_library(variants.parameters(), local_size, precision)
        for run in runs:
            run.matrix_products = self.matrix_products
        if runs[0].epochs:
            variants.load_state_dicts([run.resume for run in runs if run.resume is not None])
        if trainer.compile:
            self.forward_backward = compiled(self.forward_backward)  # type: ignore[method-assign,assignment]
        if trainer.cuda_graphs:
            variants.train()
            x, y = next(Batches(data, self.seeds, size=trainer.batch_size, steps=1)(1))
            self.step = cuda_graphed(self.step, variants.tensors(), variants.optimizer, x, y)  # type: ignore[method-assign,assignment]

    def fit(self) -> None:
        """Train until every run has finished its epochs, stopped early or failed."""
        first = self.runs[0].epochs
        label = f"best of {len(self.runs)} runs" if len(self.runs) > 1 else ""
        progress = Progress(self.trainer.epochs, self.steps, start_epoch=first, label=label)
        computation = products.computed_by(self.matrix_products)
        with self._without_cycles(), progress, computation, self._checkpoint_writers() as writers:
            for epoch in range(first + 1, self.trainer.epochs + 1):
                signals.raise_received()
                active = [k for k, run in enumerate(self.runs) if run.continues(self.trainer)]
                if not active:
                    break
                started = time.perf_counter()
                history = torch.empty(
                    self.steps, len(self.runs), 3, device=self.data.device, dtype=self.precision.dtype
                )
                for index, measured in enumerate(self.train_epoch(epoch)):
                    history[index] = measured
                    progress.step()

                history[:, :, 2] = processes.sum_over_processes(history[:, :, 2])
                history = history.cpu().double()  # waits for the device
                rows = self.measure(epoch, history)
                improved = self.record(active, rows, history, seconds=time.perf_counter() - started)
                self.save(epoch, active, improved, writers)
                best = best_row([rows[k] for k in active], self.trainer.monitor)
                progress.epoch(best)
                if self.after_epoch is not None:
                    for run in self.runs:
                        run.record.flush()
                    self.after_epoch(best)

    def train_epoch(self, epoch: int) -> Iterator[Tensor]:
        """Take the steps of an epoch, and yield what each :meth:`step` returns."""
        torch.manual_seed(key(self.seeds[0], "forward", epoch))
        self.variants.seed_dropout(self.seeds, epoch)
        self.variants.train()
        for index, (x, y) in enumerate(self.batches(epoch)):
            self.variants.set_learning_rates(epoch - 1 + index / self.steps)
            yield self.step(x, y)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Update the weights of all runs on one batch.

        Args:
            x: raw samples (K, B, *shape), or (1, B, *shape) where all runs have the same batch.
            y: targets (K, B) or (1, B).

        Returns:
            The data loss, the penalty and the :func:`errors_of` of each run before the update, (K, 3).
        """
        self.variants.zero_grad()
        measured = self.forward_backward(x, y)
        self.variants.step(clip_norm=self.trainer.clip_norm, l1=self.objective.regularization.l1_truncated)
        return measured

    def forward_backward(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute the gradients of a :meth:`step`; ``trainer.compile`` makes this one graph."""
        logits = self.predict(x)
        objective, loss, penalty = self.objective(logits, y, self.variants.weights)
        objective.sum().backward()
        return torch.stack([loss.detach(), penalty.detach(), self.errors(logits.detach(), y).to(loss.dtype)], 1)

    def predict(self, x: Tensor) -> Tensor:
        """Return logits (K, B, C), or predictions (K, B) for numeric targets, of raw ``x`` as in :meth:`step`."""
        inputs = self.data.normalize(x)
        if self.trainer.channels_last and inputs.ndim == 5:  # K is 1: ensembles have no channels_last
            inputs = inputs.squeeze(0).contiguous(memory_format=torch.channels_last).unsqueeze(0)
        with self.precision.autocast():
            logits = self.variants(inputs)
        logits = logits.to(self.precision.dtype)
        return logits.squeeze(2) if self.data.numeric_targets else logits

    @torch.inference_mode()
    def evaluate(self, split: Split) -> dict[str, list[float]]:
        """Return the mean loss and error of each run on a part of the dataset.

        A batch has ``trainer.evaluation_batch_size`` samples of all models together, fewer of large pictures, but no
        fewer for each model than in training.
        """
        largest = self.trainer.evaluation_batch_size
        size = min(largest // len(self.runs), self.data.evaluated_at_once)
        losses, wrong = [], []
        for rows in split.all_rows().split(min(largest, max(size, self.trainer.batch_size)), dim=1):
            x, y = split.gather(processes.local_part(rows))
            logits = self.predict(x)
            losses.append(self.data_loss(logits, y) * rows.shape[1])
            wrong.append(self.errors(logits, y))
        loss = torch.stack(losses).cpu().double().sum(0) / len(split)
        total = processes.sum_over_processes(torch.stack(wrong).sum(0))
        return split_metrics(loss, total, len(split), regression=not self.data.classes)

    def measure(self, epoch: int, history: Tensor) -> list[Row]:
        """Return the row of each run, from the measurements of an epoch's steps (steps, K, 3) and an evaluation."""
        self.variants.train(False)
        columns = running_metrics(history, self.data, self.trainer, self.flood)
        columns |= {
            f"{name}_{metric}": values
            for name, split in self.data.parts.items()
            if name != "train" or self.trainer.train_metrics == "evaluated"
            for metric, values in self.evaluate(split).items()
        } | weight_metrics([parameter.detach() for parameter in self.variants.parameters()])
        rows = []
        for k in range(len(self.runs)):
            row: Row = {"epoch": epoch, "step": epoch * self.steps, "lr": self.variants.learning_rate(k)}
            row |= {name: values[k] for name, values in columns.items()}
            rows.append(row)
        return rows

    def record(self, active: Sequence[int], rows: Sequence[Row], history: Tensor, *, seconds: float) -> list[int]:
        """Add the rows of an epoch to the runs that were trained. Return those that improved."""
        improved = []
        reasons = divergences(history, rows)
        for k in active:
            if (reason := reasons[k]) is not None:
                self.runs[k].failure = TrainingFailed(reason)
            elif self.runs[k].add(rows[k], self.trainer, seconds=seconds / len(active)):
                improved.append(k)
        return improved

    @contextlib.contextmanager
    def _without_cycles(self) -> Iterator[None]:
        """Drop the compiled and recorded methods at the end: they refer to this object and would keep its memory."""
        try:
            yield
        finally:
            for name in ("forward_backward", "step"):
                self.__dict__.pop(name, None)

    @contextlib.contextmanager
    def _checkpoint_writers(self) -> Iterator[list[CheckpointWriter]]:
        """Open the files of all runs and probe the new ones, in the first process only; write the rest at the end."""
        writers: list[CheckpointWriter] = []
        with contextlib.ExitStack() as stack:
            if processes.rank() == 0:
                writers = [
                    stack.enter_context(
                        CheckpointWriter(
                            run.record.path,
                            lambda k=k: self.state(k),  # type: ignore[misc]
                        )
                    )
                    for k, run in enumerate(self.runs)
                ]
                for k, run in enumerate(self.runs):
                    stack.enter_context(run.record.buffered(every_seconds=max(0.2, 0.01 * len(self.runs))))
                    if not run.epochs:
                        self._probe(k, epoch=0)
            yield writers

    def save(
        self, epoch: int, trained: Sequence[int], improved: Sequence[int], writers: Sequence[CheckpointWriter]
    ) -> None:
        """Probe the runs that were trained in this epoch and keep their weights, in the first process only."""
        if not writers:
            return
        best = dict(zip(improved, self.variants.state_dicts(improved), strict=True))
        with self.checkpoint_times.writing() as due:
            for k in trained:
                run, writer = self.runs[k], writers[k]
                if run.failure is not None:
                    writer.abandon()
                    continue
                finished, every = not run.continues(self.trainer), self.trainer.probe_every_epochs
                if finished or (every is not None and epoch % every == 0):
                    self._probe(k, epoch)
                weights = self._complete_state(k, best[k]) | {"epoch": epoch} if k in best else None
                writer.epoch_finished(weights, due=due or finished)  # a finished model may be computed further

    def state(self, k: int) -> State:
        """Return everything that is needed to resume a run."""
        (weights,) = self.variants.state_dicts([k])
        state = {"optimizer": self.variants.optimizer_state_dict(k), "rows": self.runs[k].record.rows}
        return self._complete_state(k, weights) | state

    def _complete_state(self, k: int, weights: State) -> State:
        """Return the weights of the whole model, frozen part included, with the sizes that are needed to build it."""
        run = self.runs[k]
        sizes = {"shape": list(self.data.shape), "outputs": self.data.outputs}
        return {**sizes, **run.constants, "model": {**run.constants["model"], **weights}}

    def _probe(self, k: int, epoch: int) -> None:
        if self.probe is not None:
            self.runs[k].record.probe(
                f"epoch_{epoch:04d}", self.probe(self.variants.model(k), self.data.for_variant(k))
            )
