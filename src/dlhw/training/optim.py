"""Optimizers written from their formulas, torch.optim by class name, and learning-rate schedules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from dlhw.errors import UsageError
from dlhw.runtime.options import NonNegative, Positive

Schedule = Callable[[float], float]


class FromFormula(torch.optim.Optimizer, ABC):
    """An optimizer that updates each weight by w <- w - lr * :meth:`direction`."""

    @abstractmethod
    def direction(self, gradient: Tensor, state: dict[str, Tensor], group: Mapping[str, float]) -> Tensor:
        """Return the vector that is multiplied by -lr and added to the weight; ``state`` persists between steps."""

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all weights that have a gradient."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        with torch.no_grad():
            for group in self.param_groups:
                for weight in group["params"]:
                    if weight.grad is not None:
                        weight.sub_(group["lr"] * self.direction(weight.grad, self.state[weight], group))
        return loss


class SGD(FromFormula):
    """w <- w - lr g (A2.iii)."""

    def __init__(self, params: Iterable[Tensor], *, lr: NonNegative) -> None:
        super().__init__(params, {"lr": lr})

    def direction(self, gradient: Tensor, state: dict[str, Tensor], group: Mapping[str, float]) -> Tensor:
        """Return the gradient g."""
        return gradient


class Momentum(FromFormula):
    """v <- rho v + g, w <- w - lr v, starting from v = 0 (A2.iii; Polyak 1964)."""

    def __init__(self, params: Iterable[Tensor], *, lr: NonNegative, rho: NonNegative) -> None:
        super().__init__(params, {"lr": lr, "rho": rho})

    def direction(self, gradient: Tensor, state: dict[str, Tensor], group: Mapping[str, float]) -> Tensor:
        """Return the velocity v."""
        return _velocity(gradient, state, group)


class Nesterov(FromFormula):
    """v <- rho v + g, w <- w - lr (g + rho v) (A2.iii).

    Nesterov's method evaluates the gradient at a look-ahead point: v <- rho v + g(u - lr rho v), u <- u - lr v. The
    update above is the same method written for w = u - lr rho v, the point at which the gradient is evaluated
    (Sutskever et al. 2013, eq. 3 and 4; change of variables by Bengio et al. 2013).
    """

    def __init__(self, params: Iterable[Tensor], *, lr: NonNegative, rho: NonNegative) -> None:
        super().__init__(params, {"lr": lr, "rho": rho})

    def direction(self, gradient: Tensor, state: dict[str, Tensor], group: Mapping[str, float]) -> Tensor:
        """Return g + rho v."""
        return gradient + group["rho"] * _velocity(gradient, state, group)


def _velocity(gradient: Tensor, state: dict[str, Tensor], group: Mapping[str, float]) -> Tensor:
    """Update and return the velocity: v <- rho v + g."""
    if "velocity" not in state:
        state["velocity"] = torch.zeros_like(gradient)
    return state["velocity"].mul_(group["rho"]).add_(gradient)


def by_name(params: Iterable[Tensor], *, name: str, lr: NonNegative, **options: Any) -> torch.optim.Optimizer:
    """Create an optimizer of torch.optim: ``optimizer=torch optimizer.name=NAdam +optimizer.momentum_decay=0.01``."""
    if name == "SparseAdam":
        raise UsageError(
            "optimizer.name=SparseAdam: needs sparse gradients, but the gradients of these models are dense"
        )
    try:
        return optimizer_class(name)(params, **options, lr=lr)  # type: ignore[call-arg]  # every class has one
    except TypeError as error:
        raise UsageError(f"optimizer=torch: {str(error).partition(') ')[2] or error}") from error


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """Return the class of torch.optim called ``name``. Raise UsageError, which lists all classes, if there is none."""
    classes = {
        attribute: value
        for attribute, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    if name not in classes:
        raise UsageError(
            f"optimizer.name={name}: not a class of torch.optim; expected one of {', '.join(sorted(classes))}"
        )
    return classes[name]


# A schedule is a pure function from the time in epochs, with fractions, to a factor on the base learning rate. It has
# no state, so a resumed run has nothing to restore.


def _warmed_up(schedule: Schedule, warmup_epochs: float) -> Schedule:
    """Rise linearly from 0 to 1 during the warm-up, then follow ``schedule``, which starts when the warm-up ends."""

    def factor(epoch: float) -> float:
        if epoch < warmup_epochs:
            return epoch / warmup_epochs
        return schedule(epoch - warmup_epochs)

    return factor


def constant(*, warmup_epochs: NonNegative) -> Schedule:
    """Keep the base learning rate, after an optional linear warm-up."""
    return _warmed_up(lambda epoch: 1.0, warmup_epochs)


def step(
    *,
    every_epochs: Positive,
    factor: Positive,
    warmup_epochs: NonNegative,
) -> Schedule:
    """Multiply the rate by ``factor`` after every ``every_epochs`` epochs."""
    return _warmed_up(lambda epoch: factor ** math.floor(epoch / every_epochs), warmup_epochs)


def cosine(
    *,
    epochs: Positive,
    final_factor: NonNegative,
    warmup_epochs: NonNegative,
) -> Schedule:
    """Follow half a cosine from the base rate to ``final_factor`` times it (Loshchilov & Hutter 2017).

    The end is reached after ``epochs`` epochs, warm-up included.
    """
    if warmup_epochs >= epochs:
        raise UsageError(f"scheduler.warmup_epochs={warmup_epochs}: must be below the {epochs:g} epochs of the run")

    def anneal(epoch: float) -> float:
        progress = min(epoch / (epochs - warmup_epochs), 1.0)
        return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * progress)) / 2

    return _warmed_up(anneal, warmup_epochs)
