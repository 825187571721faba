"""The scalar that training minimizes: data loss, then flooding, then L1 and L2 penalties.

Everything here is a pure function of tensors and acts on K models at once; a single run is K = 1. A run reports the
data loss (the empirical risk of C5) and the penalty separately.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from dlhw.runtime.options import NonNegative

DataLoss = Callable[[Tensor, Tensor], Tensor]
"""Mean loss over a batch, from logits (B, C) or predictions (B,) and targets (B,)."""


def flooded(loss: Tensor, b: float | Tensor) -> Tensor:
    """Return |loss - b| + b: below the flood level b the gradient changes sign (C5.3; Ishida et al. 2020).

    Written as a choice between the two branches, so that b = 0, which turns flooding off, leaves every loss and its
    gradient unchanged to the last bit.
    """
    if not is_on(b):
        return loss
    below = loss < b if isinstance(b, float) else (loss < b) & (b > 0)
    return torch.where(below, 2 * b - loss, loss)


def half_mse(input: Tensor, target: Tensor) -> Tensor:
    """Return the mean over N of (input - target)^2 / 2, from tensors (..., N) to (...) (C1)."""
    return mse(input, target) / 2


def mse(input: Tensor, target: Tensor) -> Tensor:
    """Return the mean over N of (input - target)^2, from tensors (..., N) to (...)."""
    return (input - target).square().mean(-1)


def log_cosh(input: Tensor, target: Tensor) -> Tensor:
    """Return the mean over N of log cosh(input - target) (B1).

    This is about u^2 / 2 for a small difference u, and about |u| - log 2 for a large one. It is computed as
    log cosh u = |u| + log(1 + e^(-2 |u|)) - log 2, which does not overflow.
    """
    size = (input - target).abs()
    return (size + torch.log1p(torch.exp(-2 * size)) - math.log(2)).mean()


def l1_norm(weights: Sequence[Tensor]) -> Tensor:
    """Return the sum of |w| over all weights of each model: tensors (K, *shape) to (K,)."""
    return _sum([weight.abs() for weight in weights])


def squared_l2_norm(weights: Sequence[Tensor]) -> Tensor:
    """Return the sum of w^2 over all weights of each model: tensors (K, *shape) to (K,).

    There is no factor 1/2: plain SGD shrinks w by 1 - 2 lr l2 (E3).
    """
    return _sum([weight.square() for weight in weights])


def truncated(before: Tensor, after: Tensor, shrinkage: Tensor) -> Tensor:
    """Return weights after an update that also applies an L1 penalty, as in the Neural Network Playground (C1).

    Each weight moves by ``shrinkage``, which is lr * l1, towards 0 on the side where it was ``before`` the update. If
    it would cross 0 by that, it becomes 0. A weight that was 0 stays 0.
    """
    shrunk = after - shrinkage * before.sign()
    return torch.where((shrinkage > 0) & ((before == 0) | (after * shrunk < 0)), 0.0, shrunk)


def _sum(terms: Sequence[Tensor]) -> Tensor:
    return _total([term.sum(tuple(range(1, term.ndim))) for term in terms])


def _total(terms: Sequence[Tensor]) -> Tensor:
    """Add tensors (K,)."""
    return terms[0] if len(terms) == 1 else torch.stack(terms, 1).sum(1)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Regularization:
    """Strengths of flooding and of the penalties; 0 turns a term off. A strength may be a tensor (K,)."""

    flood: NonNegative
    l1: NonNegative
    l2: NonNegative
    l1_truncated: NonNegative = 0.0
    """Strength of the L1 penalty that is not part of the objective but of the update; see :func:`truncated`."""

    @property
    def penalizes(self) -> bool:
        """Whether there is a penalty. Its sums over all weights cost as much as the optimizer's update."""
        return is_on(self.l1) or is_on(self.l2)

    def penalty(self, weights: Sequence[Tensor]) -> Tensor | None:
        """Return l1 sum |w| + l2 sum w^2, a tensor (K,), for weights (K, *shape); None if there is none."""
        terms = []
        if weights and is_on(self.l1):
            terms.append(self.l1 * l1_norm(weights))
        if weights and is_on(self.l2):
            terms.append(self.l2 * squared_l2_norm(weights))
        return _total(terms) if terms else None


def stacked(regularizations: Sequence[Regularization], like: Tensor) -> Regularization:
    """Return the strengths of K models as tensors (K,) of ``like``'s type; strengths that are equal stay numbers."""
    columns = {
        name: [asdict(regularization)[name] for regularization in regularizations]
        for name in asdict(regularizations[0])
    }
    strengths = {
        name: values[0] if len(set(values)) == 1 else torch.tensor(values, dtype=like.dtype, device=like.device)
        for name, values in columns.items()
    }
    return Regularization(**strengths)  # type: ignore[arg-type]


def is_on(strength: float | Tensor) -> bool:
    """Return whether a strength is other than 0; a tensor (K,) counts as other than 0."""
    return isinstance(strength, Tensor) or strength != 0


@dataclass(frozen=True)
class Objective:
    """``penalty + flooded(data_loss)`` of K models for one batch.

    Args:
        data_loss: maps logits (K, B, C) and targets (K, B) to losses (K,).
        regularization: strengths as numbers or tensors (K,).

    A call takes logits, targets and a function that returns the penalized weights (K, *shape). It returns three tensors
    (K,): the objective to differentiate, the data loss and the penalty.
    """

    data_loss: DataLoss
    regularization: Regularization

    def __call__(
        self, logits: Tensor, y: Tensor, weights: Callable[[], Sequence[Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        loss = self.data_loss(logits, y)
        objective = flooded(loss, self.regularization.flood)
        penalty = self.regularization.penalty(weights()) if self.regularization.penalizes else None
        if penalty is None:
            return objective, loss, torch.zeros_like(loss)
        return objective + penalty, loss, penalty
