"""The scalar that training minimizes: data loss, then flooding, then L1 and L2 penalties.

Everything here is a pure function of tensors. What a run reports as its loss is the data loss (what
C5 calls the empirical risk); the penalty is reported apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

DataLoss = Callable[[Tensor, Tensor], Tensor]
NonNegative = Annotated[float, Field(ge=0)]


def flooded(loss: Tensor, b: float | Tensor) -> Tensor:
    """|loss - b| + b: below the flood level b the gradient changes sign (C5.3; Ishida et al. 2020).

    Written as a choice between the two branches, so that b = 0 leaves a non-negative loss and its
    gradient untouched to the last bit, also where the loss is exactly 0 and |.| has no derivative.
    """
    return torch.where(loss < b, 2 * b - loss, loss)


def mse(input: Tensor, target: Tensor) -> Tensor:
    """Mean over N of (input - target)^2."""
    return (input - target).square().mean()


def log_cosh(input: Tensor, target: Tensor) -> Tensor:
    """Mean over N of log cosh(input - target) (B1): half the square of small differences, |.| - log 2 of large ones.

    log cosh u = |u| + log(1 + e^(-2 |u|)) - log 2, in which nothing overflows.
    """
    size = (input - target).abs()
    return (size + torch.log1p(torch.exp(-2 * size)) - math.log(2)).mean()


def l1_norm(weights: Sequence[Tensor]) -> Tensor:
    """sum |w| over all weights, a scalar."""
    return torch.stack([weight.abs().sum() for weight in weights]).sum()


def squared_l2_norm(weights: Sequence[Tensor]) -> Tensor:
    """sum w^2 over all weights, a scalar; no factor 1/2 (E3: plain SGD then shrinks w by 1 - 2 lr l2)."""
    return torch.stack([weight.square().sum() for weight in weights]).sum()


@dataclass(frozen=True)
class Regularization:
    """Strengths of what is added to the data loss; 0 is off. Those of one variant of an ensemble are scalar tensors."""

    flood: NonNegative
    l1: NonNegative
    l2: NonNegative

    def penalty(self, weights: Sequence[Tensor]) -> Tensor | None:
        """l1 sum |w| + l2 sum w^2 over weight matrices and kernels (not biases); None when both are off.

        Both off is a case of its own because summing the weights costs as much as updating them.
        """
        terms = []
        if weights and _is_on(self.l1):
            terms.append(self.l1 * l1_norm(weights))
        if weights and _is_on(self.l2):
            terms.append(self.l2 * squared_l2_norm(weights))
        return torch.stack(terms).sum() if terms else None


def _is_on(strength: float | Tensor) -> bool:
    return isinstance(strength, Tensor) or strength != 0


def penalized_weights(model: torch.nn.Module) -> list[Tensor]:
    """The parameters that L1 and L2 act on: those that train and have two or more dimensions."""
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]  # inside of vmap none says so: all do
    return [parameter for parameter in trained or parameters if parameter.ndim >= 2]


@dataclass(frozen=True)
class Objective:
    """``penalized(flooded(data_loss))`` for one batch.

    Args of the call: logits (N, C), targets (N,), the weights to penalize. Returns scalars: the
    objective to differentiate, the data loss, the penalty (None when off).
    """

    data_loss: DataLoss
    regularization: Regularization

    def __call__(self, logits: Tensor, y: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        loss = self.data_loss(logits, y)
        penalty = self.regularization.penalty(weights)
        objective = flooded(loss, self.regularization.flood)
        return (objective if penalty is None else objective + penalty), loss, penalty
