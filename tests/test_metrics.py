"""Metrics of an epoch equal values computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dlhw.data.tensors import Dataset, Split, assemble
from dlhw.training.metrics import (
    divergences,
    errors_of,
    running_metrics,
    split_metrics,
    squared_errors,
    weight_metrics,
    wrong_classes,
    wrong_signs,
)
from dlhw.training.settings import Trainer

LOGITS = torch.tensor([[[2.0, 1.0], [0.0, 1.0], [3.0, 4.0]], [[1.0, 2.0], [0.0, 1.0], [4.0, 3.0]]])
"""Logits of two models for three samples and two classes. The models predict 0, 1, 1 and 1, 1, 0."""


def dataset(*, classes: tuple[str, ...] = ("a", "b")) -> Dataset:
    """Return a dataset with ten samples for training."""
    split = Split(torch.zeros(12, 1), torch.zeros(12, dtype=torch.long))
    data = assemble(
        "zeros", split, split, seed=0, validation_fraction=1 / 6, mean=0.0, std=1.0, largest=1, classes=classes
    )
    assert len(data.train) == 10
    return data


def test_errors_are_counted_for_separate_and_shared_targets() -> None:
    assert wrong_classes(LOGITS, torch.tensor([[0, 1, 0], [0, 0, 0]])).tolist() == [1, 2]
    assert wrong_classes(LOGITS, torch.tensor([[1, 1, 0]])).tolist() == [2, 0]


def test_label_of_soft_targets_is_the_class_with_the_largest_share() -> None:
    shares = torch.tensor([[[0.1, 0.9], [0.4, 0.6], [0.7, 0.3]]])
    assert wrong_classes(LOGITS, shares).tolist() == [2, 0]


def test_regression_errors_are_sums_of_squares() -> None:
    predictions = torch.tensor([[1.0, 2.0], [0.0, 4.0]])
    assert squared_errors(predictions, torch.tensor([[1.0, 0.0]])).tolist() == [4.0, 17.0]


def test_errors_of_signed_targets_are_wrong_signs() -> None:
    outputs = torch.tensor([[0.5, -0.5, 0.0, 2.0], [-0.5, -0.5, -0.1, -2.0]])
    assert wrong_signs(outputs, torch.tensor([[1.0, 1.0, 1.0, -1.0]])).tolist() == [2, 3]


def test_the_kind_of_error_follows_from_targets_and_classes() -> None:
    data = dataset()
    assert errors_of(data) is wrong_classes
    signed = data.with_parts({"train": Split(data.train.pool_x, torch.ones(12))})
    assert errors_of(signed) is wrong_signs
    assert errors_of(replace(signed, classes=())) is squared_errors
    assert (signed.outputs, data.outputs) == (1, 2)


def test_split_metrics_are_means_over_samples() -> None:
    loss, wrong = torch.tensor([0.5, 0.25], dtype=torch.float64), torch.tensor([1, 3])
    assert split_metrics(loss, wrong, 4, regression=False) == {
        "loss": [0.5, 0.25],
        "error_percent": [25.0, 75.0],
        "accuracy": [0.75, 0.25],
    }
    assert split_metrics(loss, wrong, 4, regression=True) == {"loss": [0.5, 0.25], "mse": [0.25, 0.75]}


def test_running_metrics_weight_batches_by_their_size() -> None:
    """The batches have 4, 4 and 2 samples; the second of the two models has twice the loss."""
    one = torch.tensor([[1.0, 0.5, 4.0], [1.0, 0.5, 0.0], [6.0, 0.5, 1.0]], dtype=torch.float64)
    history = torch.stack([one, one * torch.tensor([2.0, 1.0, 1.0])], 1)
    trainer = Trainer(batch_size=4)
    assert running_metrics(history, dataset(), trainer, 0.0) == {
        "train_loss": pytest.approx([2.0, 4.0]),
        "train_error_percent": pytest.approx([50.0, 50.0]),
        "train_accuracy": pytest.approx([0.5, 0.5]),
        "train_objective": pytest.approx([2.5, 4.5]),
        "train_penalty": pytest.approx([0.5, 0.5]),
    }
    flooded = running_metrics(history, dataset(), trainer, torch.tensor([2.0, 0.0], dtype=torch.float64))
    assert flooded["train_loss"] == pytest.approx([2.0, 4.0])
    assert flooded["train_objective"] == pytest.approx([0.8 * 3.0 + 0.2 * 6.0 + 0.5, 4.5])


def test_weight_metrics_exclude_biases() -> None:
    weight = torch.tensor([[[3.0, 4.0]], [[0.0, 1e-4]]])
    metrics = weight_metrics([weight, torch.full((2, 3), 7.0)])
    assert metrics["weight_norm"] == pytest.approx([5.0, 1e-4])
    assert metrics["near_zero_percent"] == [0.0, 100.0]


def test_divergence_message_names_the_first_step_or_metric_that_is_not_finite() -> None:
    diverged = torch.tensor([[1.0, 0.0, 0.0], [math.inf, 0.0, 0.0], [math.nan, 0.0, 0.0]])
    history = torch.stack([diverged, torch.ones(3, 3), torch.ones(3, 3)], 1)
    row = {"epoch": 3, "step": 9, "val_loss": 1.0}
    assert divergences(history, [row, row, {**row, "val_loss": math.nan}]) == [
        "loss inf, penalty 0 at step 8 (epoch 3, step 2 of 3): training diverged; "
        "try a smaller optimizer.lr, or set trainer.clip_norm",
        None,
        "val_loss is nan after epoch 3 (step 9): training diverged",
    ]
