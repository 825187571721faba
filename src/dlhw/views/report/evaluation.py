"""Evaluate a classifier on one part of the data: predictions, confusion matrix, accuracies and their intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from dlhw.data.tensors import Dataset, Split
from dlhw.intervals import wilson

PARTS = {"val": "validation", "test": "test"}
WIDE = 0.05  # a wider interval, such as 86 to 95 %, hardly distinguishes models


@dataclass(frozen=True)
class Accuracy:
    """The share of correct predictions, with a confidence interval."""

    right: int
    count: int
    confidence: float

    @property
    def value(self) -> float:
        """From 0 to 1; nan without samples."""
        return self.right / self.count if self.count else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The Wilson score interval."""
        return wilson(self.right, self.count, self.confidence)

    def __str__(self) -> str:
        low, high = self.interval
        value, low_text, high_text = (
            f"{100 * share:.{1 if self.count < 1000 else 2}f}" for share in (self.value, low, high)
        )
        note = " (wide: few pictures)" if high - low > WIDE else ""
        return f"accuracy {value} %, {100 * self.confidence:g} % interval {low_text} to {high_text} %{note}"


@dataclass(frozen=True)
class EvaluatedPart:
    """The predictions for the n samples of a part of the data, on the CPU.

    Args:
        part: its name in metrics: val or test.
        classes: names of the C classes.
        rows: indices of the samples in the dataset's pool, (n,).
        labels: true classes, (n,).
        predicted: classes with the largest logit, (n,).
        probability: predicted probability of the predicted class, (n,) float64.
        probability_of_true: predicted probability of the true class, (n,) float64.
    """

    part: str
    classes: tuple[str, ...]
    rows: Tensor
    labels: Tensor
    predicted: Tensor
    probability: Tensor
    probability_of_true: Tensor

    @cached_property
    def confusion(self) -> Tensor:
        """Counts (C, C): true classes in rows, predicted in columns."""
        count = len(self.classes)
        return torch.bincount(self.labels * count + self.predicted, minlength=count**2).view(count, count)

    def accuracy(self, confidence: float) -> Accuracy:
        """Return the accuracy over the whole part."""
        return Accuracy(int(self.confusion.trace()), len(self.labels), confidence)

    def summary(self, confidence: float) -> str:
        """Return one line with the accuracy and its interval."""
        return f"{PARTS[self.part]}, {len(self.labels):,} pictures: {self.accuracy(confidence)}"

    def by_class(self, confidence: float) -> list[Accuracy]:
        """Return the accuracy over the samples of each class."""
        counts = zip(self.confusion.diagonal().tolist(), self.confusion.sum(1).tolist(), strict=True)
        return [Accuracy(right, count, confidence) for right, count in counts]

    @cached_property
    def mistakes(self) -> list[int]:
        """Positions of the wrong predictions, the most confident first."""
        order = self.probability.sort(descending=True, stable=True).indices
        return order[(self.predicted != self.labels)[order]].tolist()

    def most_confident_correct(self, limit: int) -> list[int]:
        """Return positions of up to ``limit`` correct predictions.

        The most confident one of each class comes first, then the second of each class, and so on.
        """
        order = self.probability.sort(descending=True, stable=True).indices
        ranked: list[tuple[int, int, int]] = []
        seen = [0] * len(self.classes)
        for position in order[(self.predicted == self.labels)[order]].tolist():
            label = int(self.labels[position])
            ranked.append((seen[label], label, position))
            seen[label] += 1
        return [position for *_, position in sorted(ranked)[:limit]]


def evaluate_part(model: nn.Module, data: Dataset, part: str, split: Split, *, batch_size: int) -> EvaluatedPart:
    """Return the predictions of ``model``, which is in evaluation mode, for every sample of ``split``."""
    labels, predicted, probability, true_probability = [], [], [], []
    with torch.inference_mode():
        for start in range(0, len(split), batch_size):
            x, y = split[start : start + batch_size]
            probabilities = model(data.normalize(x)).cpu().double().softmax(1)  # not every device has float64
            largest = probabilities.max(1)
            labels.append(y.cpu())
            predicted.append(largest.indices)
            probability.append(largest.values)
            true_probability.append(probabilities.gather(1, labels[-1][:, None])[:, 0])
    columns = [torch.cat(batches) for batches in (labels, predicted, probability, true_probability)]
    return EvaluatedPart(part, data.classes, split.all_rows()[0].cpu(), *columns)
