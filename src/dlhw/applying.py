"""Apply the network of a run to samples: predictions, and their evaluation against labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dlhw.data.arrays import Array, as_array, column_of
from dlhw.data.normalization import Normalization
from dlhw.data.preparation import Preparation, Standardization
from dlhw.data.table_encoding import TableEncoder
from dlhw.errors import UsageError
from dlhw.intervals import wilson
from dlhw.runtime.devices import Precision
from dlhw.runtime.paths import shortened
from dlhw.runtime.wording import PART_NAMES

if TYPE_CHECKING:
    import pandas as pd

    from dlhw.storage.checkpoint import State

BATCH_SIZE = 256
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Network:
    """A trained network in evaluation mode, with what turns raw samples into its inputs and outputs into classes.

    Args:
        model: maps inputs (N, *shape) to logits (N, C), or to numbers (N, 1).
        shape: the shape of an input.
        classes: names of the classes; empty for regression.
        prepare: turns raw samples into pixels or numbers; None: they are the same.
        normalize: turns these into inputs.
    """

    model: nn.Module
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    prepare: Preparation | None
    normalize: Normalization
    precision: Precision

    @classmethod
    def of(cls, model: nn.Module, state: State, precision: Precision) -> Network:
        """Return the network with the weights and entries of a checkpoint."""
        device, dtype = precision.device, precision.dtype
        return cls(
            model.to(device, dtype).eval(),
            tuple(state["shape"]),
            tuple(state["classes"]),
            _preparation(state["prepare"]),
            Normalization.from_state(state["normalize"]).to(device, dtype),
            precision,
        )

    def with_normalization(self, normalize: Normalization) -> Network:
        """Return the same network for samples that are normalized in another way."""
        return replace(self, normalize=normalize)

    def prepared(self, raw: Any) -> Tensor:
        """Return pixels or numbers (N, *shape) for raw samples.

        Raise UsageError for samples of another shape or type, and for values that are not finite.
        """
        if isinstance(self.prepare, TableEncoder):
            pool = self.prepare(raw)
        else:
            pool = self._of_known_shape(raw)
            pool = pool if self.prepare is None else self.prepare(pool)
        if not (finite := pool.isfinite().flatten(1).all(1)).all():
            row = int(finite.long().argmin())
            raise UsageError(f"sample {row}, counted from 0, has a value that is missing or not finite")
        return pool

    def _of_known_shape(self, raw: Any) -> Tensor:
        shape = ", ".join(["N", *map(str, self.shape)])
        try:
            samples = torch.as_tensor(raw)
        except (TypeError, ValueError, RuntimeError) as error:
            kind = type(raw).__name__
            raise UsageError(f"samples are a {kind}; expected an array or tensor of numbers ({shape})") from error
        expected = self.shape if self.normalize.size is None else (self.shape[0], *samples.shape[2:])
        if samples.ndim != len(self.shape) + 1 or tuple(samples.shape[1:]) != expected:
            raise UsageError(f"samples of shape {tuple(samples.shape)}; expected ({shape}), as in training")
        return samples

    def outputs(self, raw: Any) -> Tensor:
        """Return logits (N, C), or numbers (N, 1), for raw samples, float64 on the CPU."""
        pool = self.prepared(raw)
        batches = []
        with torch.inference_mode(), self.precision.autocast():
            for batch in pool.split(BATCH_SIZE):
                batches.append(self.model(self.normalize(batch.to(self.precision.device))).cpu().double())
        return torch.cat(batches) if batches else torch.empty(0, max(1, len(self.classes)), dtype=torch.float64)

    def probabilities(self, raw: Any) -> Array:
        """Return the probability of each class (N, C). Raise UsageError for a network without probabilities."""
        outputs = self.outputs(raw)
        if not self.classes or outputs.shape[1] != len(self.classes):
            raise UsageError("this run predicts numbers, not probabilities of classes; use predict")
        return outputs.softmax(1).numpy()

    def predict(self, raw: Any) -> Array:
        """Return the most probable class of each sample by name, or the predicted numbers (N,)."""
        return self.named(self.outputs(raw))

    def named(self, outputs: Tensor) -> Array:
        """Return the names of the predicted classes, or the predicted numbers, for outputs (N, C)."""
        if not self.classes:
            return np.asarray(outputs[:, 0])
        named: Array = np.array(self.classes, dtype=object)[self._indices(outputs).numpy()]
        return named

    def _indices(self, outputs: Tensor) -> Tensor:
        """Return the index of the predicted class; with one output its sign decides."""
        return (outputs[:, 0] > 0).long() if outputs.shape[1] == 1 else outputs.argmax(1)

    def evaluate(self, raw: Any, labels: Any) -> Evaluation:
        """Compare the predictions for raw samples with their labels: names or indices of classes, or numbers.

        Raise UsageError for labels that the run does not have.
        """
        outputs, labels = self.outputs(raw), column_of(as_array(labels), "y")
        if len(outputs) != len(labels):
            raise UsageError(f"{len(outputs)} samples, but {len(labels)} labels")
        if self.classes:
            return Evaluation(self.classes, self.class_indices(labels), self._indices(outputs).numpy())
        try:
            numbers = labels.astype(float)
        except (TypeError, ValueError) as error:
            raise UsageError(f"labels such as {shortened(labels[0])}; expected numbers, as in training") from error
        if not np.isfinite(numbers).all():
            raise UsageError("y: has a value that is missing or not finite")
        return Evaluation((), numbers, outputs[:, 0].numpy())

    def class_indices(self, labels: Array) -> Array:
        """Return the index of each label (N,), which is the name of a class.

        Whole numbers are indices, unless the names of all classes are whole numbers, such as 3; 03 is a text.
        """
        known = {name: index for index, name in enumerate(self.classes)}
        if labels.dtype.kind in "iu" and not all(map(_is_whole_number, self.classes)):
            known = {str(index): index for index in range(len(self.classes))}
        values, inverse = np.unique(labels.astype(str), return_inverse=True)
        unknown = [value for value in values.tolist() if value not in known]
        if unknown:
            raise UsageError(
                f"label {shortened(unknown[0])}: not a class of this run; expected one of {', '.join(known)}"
            )
        indices: Array = np.array([known[value] for value in values.tolist()], np.int64)[inverse]
        return indices


def _is_whole_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal() and str(int(name)) == name


def _preparation(state: Mapping[str, Any] | None) -> Preparation | None:
    """Return the preparation with this state; None for samples that are not prepared."""
    if state is None:
        return None
    kinds: tuple[type[Preparation], ...] = (Standardization, TableEncoder)
    return next(kind for kind in kinds if kind.kind == state["kind"]).from_state(state)


@dataclass(frozen=True)
class Evaluation:
    """Predictions compared with labels.

    Args:
        classes: names of the C classes; empty for regression.
        labels: indices of the true classes, or true numbers, (n,).
        predicted: of the same kind, (n,).
        part: the part of the run's own data that the samples are; empty for other data.
    """

    classes: tuple[str, ...]
    labels: Array
    predicted: Array
    part: str = ""

    @classmethod
    def joined(cls, results: Sequence[Evaluation]) -> Evaluation:
        """Return the evaluation of the samples of all of these, which are of the same run."""
        labels = np.concatenate([result.labels for result in results])
        return cls(results[0].classes, labels, np.concatenate([result.predicted for result in results]))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def accuracy(self) -> float:
        """The share of correct predictions."""
        return float((self.labels == self.predicted).mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson score interval of the accuracy."""
        return wilson(int((self.labels == self.predicted).sum()), len(self), CONFIDENCE)

    @property
    def mean_squared_error(self) -> float:
        return float(((self.predicted - self.labels) ** 2).mean())

    @cached_property
    def confusion(self) -> pd.DataFrame:
        """Counts: true classes in rows, predicted in columns."""
        import pandas as pd

        count = len(self.classes)
        counts = np.bincount(self.labels * count + self.predicted, minlength=count**2).reshape(count, count)
        return pd.DataFrame(counts, pd.Index(self.classes, name="true"), pd.Index(self.classes, name="predicted"))

    @property
    def numbers(self) -> Mapping[str, float]:
        """The results by name: of a classifier or of a regression."""
        if self.classes:
            low, high = self.interval
            return {"n": len(self), "accuracy": self.accuracy, "interval_low": low, "interval_high": high}
        residuals = self.predicted - self.labels
        variance = float(np.var(self.labels))
        return {
            "n": len(self),
            "mse": self.mean_squared_error,
            "mae": float(np.abs(residuals).mean()),
            "r2": 1 - self.mean_squared_error / variance if variance else float("nan"),
        }

    def __str__(self) -> str:
        numbers = self.numbers
        samples = " ".join(filter(None, [f"{len(self):,}", PART_NAMES.get(self.part), "samples"]))
        if not self.classes:
            return (
                f"{samples}: mean squared error {numbers['mse']:.4g}, mean absolute error "
                f"{numbers['mae']:.4g}, R^2 {numbers['r2']:.4f}"
            )
        low, high = (100 * share for share in self.interval)
        return f"{samples}: accuracy {100 * self.accuracy:.2f} % (95 % interval {low:.2f} to {high:.2f} %)"

    def _repr_html_(self) -> str:
        table = self.confusion.to_html() if self.classes else ""
        return f"<p>{self}</p>{table}"
