"""K models that are trained at once: stacked weights, one forward pass by ``torch.func.vmap``, one optimizer.

``Single`` is the case K = 1, without a copy of the model or a wrapper around it. The training loop sees only the
common interface ``Variants``: tensors always have a leading dimension K.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim import Optimizer

from dlhw.errors import UsageError
from dlhw.models.dropout import Dropout
from dlhw.runtime import processes
from dlhw.runtime.randomness import key
from dlhw.storage.checkpoint import State
from dlhw.training import batched
from dlhw.training.acceleration import undecorated_step
from dlhw.training.finetuning import frozen_modules
from dlhw.training.objective import DataLoss, is_on, truncated
from dlhw.training.optim import Schedule

ELEMENTWISE = ("ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
"""Classes of torch.optim that update each number by itself, so that stacking weights changes nothing."""


class NotVectorizable(UsageError):
    """Some runs cannot be trained as one ensemble. The message says why."""


class Variants(ABC):
    """K models with one optimizer.

    A call maps inputs (K, B, *shape), or (1, B, *shape) where all models have the same inputs, to logits (K, B, C).
    """

    count: int
    optimizer: Optimizer
    schedules: Sequence[Schedule]
    """One for each parameter group of the optimizer."""

    def __init__(self) -> None:
        self._base_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self._optimize = undecorated_step(self.optimizer)

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def vectorized(self, loss: DataLoss) -> DataLoss:
        """Apply the loss of one model to all: from logits (K, B, C) and targets (K, B) or (1, B) to losses (K,)."""

    @abstractmethod
    def parameters(self) -> list[Tensor]:
        """Return the trained parameters, each (K, *shape), for use in the objective."""

    def weights(self) -> list[Tensor]:
        """Return the parameters that L1 and L2 act on: matrices and kernels, not biases; each (K, *shape)."""
        return [parameter for parameter in self.parameters() if parameter.ndim > 2]

    @abstractmethod
    def train(self, mode: bool = True) -> None:
        """Set training mode, or evaluation mode."""

    @abstractmethod
    def zero_grad(self) -> None:
        """Discard the gradients of the last step."""

    def step(self, *, clip_norm: float | None = None, l1: float | Tensor = 0.0) -> None:
        """Update the weights. Gradients with a larger norm than ``clip_norm`` are scaled down to it first.

        ``l1``, a number or a tensor (K,), is the strength of :func:`dlhw.training.objective.truncated`.
        """
        if clip_norm is not None:
            self._clip(clip_norm)
        if is_on(l1):
            with torch.no_grad():
                self._update_truncated(l1)
        else:
            self._update()

    def _update_truncated(self, l1: float | Tensor) -> None:
        weights = [weight.detach() for weight in self.weights()]
        before = [weight.clone() for weight in weights]
        self._update()
        shrinkage = l1 * self._learning_rates()
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(truncated(old, weight, shrinkage.view(-1, *[1] * (weight.ndim - 1))))

    @abstractmethod
    def _update(self) -> None:
        """Apply the optimizer to the gradients."""

    def _learning_rates(self) -> Tensor:
        """Return the learning rate of each model, (K,)."""
        weight = self.parameters()[0]
        rates = [
            torch.as_tensor(group["lr"], dtype=weight.dtype, device=weight.device)
            for group in self.optimizer.param_groups
        ]
        return torch.stack(rates).index_select(0, self._groups)

    @functools.cached_property
    def _groups(self) -> Tensor:
        """The number of the parameter group of each model, (K,)."""
        return torch.tensor([self._group(k) for k in range(self.count)], device=self.parameters()[0].device)

    @abstractmethod
    def _gradients(self) -> list[Tensor]:
        """Return the gradient of each parameter, (K, *shape)."""

    def _clip(self, largest: float) -> None:
        gradients = self._gradients()
        norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])
        factors = (largest / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))

    def set_learning_rates(self, epoch: float) -> None:
        """Set the learning rates for a time in epochs; in place where a rate is a tensor, which a CUDA graph reads."""
        for group, base_rate, schedule in zip(
            self.optimizer.param_groups, self._base_rates, self.schedules, strict=True
        ):
            rate = base_rate * schedule(epoch)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def learning_rate(self, variant: int) -> float:
        """Return the current learning rate of one model, that of its first parameter group."""
        return float(self.optimizer.param_groups[self._group(variant)]["lr"])

    @abstractmethod
    def _group(self, variant: int) -> int: ...

    @abstractmethod
    def seed_dropout(self, seeds: Sequence[int], epoch: int) -> None:
        """Set the keys of each model's dropout masks for an epoch."""

    @abstractmethod
    def state_dicts(self, variants: Sequence[int]) -> list[State]:
        """Return copies of the ``state_dict`` of some models, as these models would have by themselves."""

    @abstractmethod
    def optimizer_state_dict(self, variant: int) -> State:
        """Return the optimizer's ``state_dict`` for one model, as a separate optimizer would have."""

    @abstractmethod
    def load_state_dicts(self, states: Sequence[State]) -> None:
        """Continue from the checkpoints of all K models, which must be of the same epoch."""

    @abstractmethod
    def model(self, variant: int) -> nn.Module:
        """Return one model by itself, which must not be changed."""

    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """Return everything that a step may change, except the optimizer's state."""


class Single(Variants):
    """One model with its optimizer."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, schedule: Schedule) -> None:
        self.count = 1
        self.optimizer = optimizer
        self.schedules = [schedule] * len(optimizer.param_groups)
        self._dropouts = _dropouts(model)
        buffers = [f"{name}.{buffer}" for name, layer in self._dropouts.items() for buffer, _ in layer.named_buffers()]
        self._parallel = processes.data_parallel(model, unsynchronized=buffers)
        self._model = model
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._frozen_modules = frozen_modules(model)
        super().__init__()

    def __call__(self, x: Tensor) -> Tensor:
        model = self._parallel if torch.is_grad_enabled() else self._model
        logits: Tensor = model(x.squeeze(0)).unsqueeze(0)
        return logits

    def vectorized(self, loss: DataLoss) -> DataLoss:
        return lambda logits, y: loss(logits.squeeze(0), y.squeeze(0)).unsqueeze(0)

    def parameters(self) -> list[Tensor]:
        return [parameter.unsqueeze(0) for parameter in self._trained]

    def train(self, mode: bool = True) -> None:
        self._model.train(mode)
        for module in self._frozen_modules:
            module.eval()

    def zero_grad(self) -> None:
        for parameter in self._trained:
            parameter.grad = None

    def _update(self) -> None:
        self._optimize()

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad.unsqueeze(0) for parameter in self._trained if parameter.grad is not None]

    def _group(self, variant: int) -> int:
        return 0

    def seed_dropout(self, seeds: Sequence[int], epoch: int) -> None:
        (seed,) = seeds
        for name, layer in self._dropouts.items():
            layer.key.fill_(key(seed, "dropout", name, epoch, *processes.process_key()))

    def state_dicts(self, variants: Sequence[int]) -> list[State]:
        return [copy.deepcopy(self._model.state_dict()) for _ in variants]

    def optimizer_state_dict(self, variant: int) -> State:
        return self.optimizer.state_dict()

    def load_state_dicts(self, states: Sequence[State]) -> None:
        (state,) = states
        self._model.load_state_dict({name: state["model"][name] for name in self._model.state_dict()})
        self.optimizer.load_state_dict(state["optimizer"])

    def model(self, variant: int) -> nn.Module:
        return self._model

    def tensors(self) -> list[Tensor]:
        return [*self._model.parameters(), *self._model.buffers()]


class Ensemble(Variants):
    """K models of one structure, with optimizers of one class, whose weights and states are copied into stacks.

    Neighbours with equal optimizer settings and the same schedule object share a parameter group, so sort them.
    Raises NotVectorizable if the models do not fit together.
    """

    def __init__(
        self, models: Sequence[nn.Module], optimizers: Sequence[Optimizer], schedules: Sequence[Schedule]
    ) -> None:
        kind = type(optimizers[0])
        _check_vectorizable(models[0], kind, optimizers)
        self.count = len(models)
        self._template = models[0]
        self._parameters = _stacked([dict(model.named_parameters()) for model in models])
        self._buffers = _stacked([dict(model.named_buffers()) for model in models])
        for parameter in self._parameters.values():
            parameter.requires_grad_()
        self._state = {**self._parameters, **self._buffers}
        self._saved = list(models[0].state_dict())
        self._dropouts = list(_dropouts(models[0]))

        def forward(state: dict[str, Tensor], x: Tensor) -> Any:
            return functional_call(self._template, state, (x,))

        self._forward_separate, self._forward_shared = (
            vmap(forward, in_dims=(0, dimension), randomness="error") for dimension in (0, None)
        )

        self._forward_batched = batched.forward(self._template)
        settings = [(_options(optimizer), schedule) for optimizer, schedule in zip(optimizers, schedules, strict=True)]
        starts = [k for k in range(self.count) if k == 0 or settings[k] != settings[k - 1]]
        self._ranges = [slice(*pair) for pair in itertools.pairwise([*starts, self.count])]
        self.schedules = [schedules[start] for start in starts]
        groups = [
            {"params": [tensor.detach()[part] for tensor in self._parameters.values()], **settings[part.start][0]}
            for part in self._ranges
        ]
        known = inspect.signature(kind).parameters
        self.optimizer = kind(
            groups, **{name: value for name, value in optimizers[0].defaults.items() if name in known}
        )
        self._load_optimizer([optimizer.state_dict() for optimizer in optimizers])
        super().__init__()

    def __call__(self, x: Tensor) -> Tensor:
        if self._forward_batched is not None:
            return self._forward_batched(self._state, x)
        logits: Tensor = (
            self._forward_separate(self._state, x)
            if len(x) == self.count
            else self._forward_shared(self._state, x.squeeze(0))
        )
        return logits

    def vectorized(self, loss: DataLoss) -> DataLoss:
        if (batched_loss := batched.loss(loss)) is not None:
            return batched_loss
        separate, shared = (vmap(loss, in_dims=(0, dimension)) for dimension in (0, None))
        return lambda logits, y: separate(logits, y) if len(y) == self.count else shared(logits, y.squeeze(0))

    def parameters(self) -> list[Tensor]:
        return list(self._parameters.values())

    def train(self, mode: bool = True) -> None:
        self._template.train(mode)

    def zero_grad(self) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None

    def _update(self) -> None:
        """Update the weights of all models, each parameter group from its part of the stacked gradients."""
        sizes = [part.stop - part.start for part in self._ranges]
        for i, stack in enumerate(self._parameters.values()):
            assert stack.grad is not None
            for group, gradient in zip(self.optimizer.param_groups, stack.grad.split(sizes), strict=True):
                group["params"][i].grad = gradient
        self._optimize()

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]

    def _group(self, variant: int) -> int:
        return next(i for i, part in enumerate(self._ranges) if part.start <= variant < part.stop)

    def seed_dropout(self, seeds: Sequence[int], epoch: int) -> None:
        for name in self._dropouts:
            keys = [key(seed, "dropout", name, epoch) for seed in seeds]
            self._buffers[f"{name}.key"].copy_(torch.tensor(keys))

    def state_dicts(self, variants: Sequence[int]) -> list[State]:
        chosen = torch.tensor(variants, dtype=torch.long, device=next(iter(self._parameters.values())).device)
        copies = {name: self._state[name].detach().index_select(0, chosen) for name in self._saved}
        return [{name: tensor[i] for name, tensor in copies.items()} for i in range(len(variants))]

    def optimizer_state_dict(self, variant: int) -> State:
        """Cut the state of one model's optimizer out of the stacks."""
        index = self._group(variant)
        part, group = self._ranges[index], self.optimizer.param_groups[index]

        def cut(value: Any, stack: Tensor) -> Any:
            is_stacked = isinstance(value, Tensor) and value.shape == stack.shape
            return value[variant - part.start] if is_stacked else value

        state = {
            i: {name: cut(value, parameter) for name, value in self.optimizer.state[parameter].items()}
            for i, parameter in enumerate(group["params"])
            if self.optimizer.state.get(parameter)
        }
        settings = {name: value for name, value in group.items() if name != "params"}
        return {"state": state, "param_groups": [{**settings, "params": list(range(len(group["params"])))}]}

    def load_state_dicts(self, states: Sequence[State]) -> None:
        with torch.no_grad():
            for name in self._saved:
                self._state[name].copy_(torch.stack([state["model"][name] for state in states]))
        self._load_optimizer([state["optimizer"] for state in states])

    def _load_optimizer(self, states: Sequence[State]) -> None:
        for part, group in zip(self._ranges, self.optimizer.param_groups, strict=True):
            for i, parameter in enumerate(group["params"]):
                variant_states = [state["state"].get(i, {}) for state in states[part]]
                on_device = group.get("fused") or group.get("capturable")
                self.optimizer.state[parameter] = {
                    name: _stack(
                        [state[name] for state in variant_states], parameter, counters_on_device=bool(on_device)
                    )
                    for name in variant_states[0]
                }

    def model(self, variant: int) -> nn.Module:
        model = copy.deepcopy(self._template)
        with torch.no_grad():
            for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
                tensor.copy_(self._state[name][variant])
        return model

    def tensors(self) -> list[Tensor]:
        return list(self._state.values())


def _check_vectorizable(model: nn.Module, kind: type[Optimizer], optimizers: Sequence[Optimizer]) -> None:
    if kind.__name__ not in ELEMENTWISE or not kind.__module__.startswith("torch.optim"):
        raise NotVectorizable(f"optimizer {kind.__name__} does not update each weight by itself")
    if any(len(optimizer.param_groups) > 1 for optimizer in optimizers):
        raise NotVectorizable("the optimizer has several parameter groups")
    if not all(parameter.requires_grad for parameter in model.parameters()):
        raise NotVectorizable("part of the model is frozen")
    if any(parameter.ndim == 0 for parameter in model.parameters()):
        raise NotVectorizable("a parameter is a scalar, which cannot be distinguished from a counter of the optimizer")
    for layer in model.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd | nn.RReLU):
            raise NotVectorizable(f"{type(layer).__name__} draws from the global random number generator")


def _dropouts(model: nn.Module) -> dict[str, Dropout]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Dropout)}


def _stacked(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack tensors of equal names. torch's stack_module_state requires one class, which fx graphs do not have."""
    return {name: torch.stack([state[name].detach() for state in states]) for name in states[0]}


def _options(optimizer: Optimizer) -> dict[str, Any]:
    (group,) = optimizer.param_groups
    return {name: value for name, value in group.items() if name != "params"}


def _stack(values: Sequence[Any], parameter: Tensor, *, counters_on_device: bool) -> Any:
    """Return one optimizer state for a group of models: states shaped like weights are stacked, counters are shared."""
    first = values[0]
    if isinstance(first, Tensor) and first.shape == parameter.shape[1:] and first.ndim:
        return torch.stack([value.to(parameter.device) for value in values])
    if isinstance(first, Tensor) and counters_on_device:
        return first.to(parameter.device, copy=True)
    return copy.deepcopy(first)
