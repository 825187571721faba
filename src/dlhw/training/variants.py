"""K variants of one model as one: their weights stacked, computed by ``torch.func.vmap``, updated by one torch.optim.

``Single`` is the same for one run, without a copy or a wrapper around its model. The loop knows only what both have
in common: it hands them a function of one variant's model and gets one of all of them.
"""

from __future__ import annotations

import copy
import inspect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim import Optimizer

from dlhw.errors import UsageError
from dlhw.models.dropout import Dropout
from dlhw.runs.checkpoint import State
from dlhw.runtime import processes
from dlhw.runtime.randomness import key
from dlhw.training.finetuning import standing_still
from dlhw.training.objective import Regularization
from dlhw.training.optim import Schedule

OfOne = Callable[[nn.Module, Regularization, Tensor, Tensor], tuple[Tensor, ...]]
OfAll = Callable[[Tensor, Tensor], tuple[Tensor, ...]]

ELEMENTWISE = ("ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
"""Classes of torch.optim that treat each number by itself, so that stacking changes nothing."""


class Cannot(UsageError):
    """Why some runs cannot be trained as one ensemble."""


class Variants(ABC):
    """K runs that are trained together; everything they share and nothing of their files."""

    count: int
    optimizer: Optimizer
    schedules: Sequence[Schedule]
    """One for each parameter group of the optimizer."""

    def __init__(self) -> None:
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]

    @abstractmethod
    def map(self, function: OfOne, regularizations: Sequence[Regularization]) -> OfAll:
        """``function(model, regularization, x, y)`` of samples (B, *shape) and labels (B,), for all K at once.

        The mapped function takes x (K, B, *shape) and y (K, B), or (1, ...) where all have the same samples, and its
        results have a first dimension K.
        """

    @abstractmethod
    def train(self, mode: bool = True) -> None:
        """Into training mode, or evaluation mode."""

    @abstractmethod
    def stacked(self) -> list[Tensor]:
        """The parameters that train, each (K, *shape), without their history."""

    @abstractmethod
    def gather_gradients(self) -> None:
        """After the backward pass: give the optimizer what it is to update by."""

    @abstractmethod
    def clear_gradients(self) -> None:
        """Before the forward pass."""

    @abstractmethod
    def gradients(self) -> list[Tensor]:
        """Of each parameter, (K, *shape)."""

    @abstractmethod
    def rekey(self, seeds: Sequence[int], epoch: int) -> None:
        """Start the epoch's dropout masks of each variant."""

    @abstractmethod
    def weights(self, variants: Sequence[int]) -> list[State]:
        """Copies of the model's state of some variants, as ``state_dict`` of a model of its own would have it."""

    @abstractmethod
    def optimizer_state(self, variant: int) -> State:
        """The optimizer's state of one variant, as ``state_dict`` of an optimizer of its own would have it."""

    @abstractmethod
    def load(self, states: Sequence[State]) -> None:
        """Go on from the checkpoints of all K variants, which must be of the same epoch."""

    @abstractmethod
    def model(self, variant: int) -> nn.Module:
        """One variant as a model of its own, to be looked at."""

    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """All that a step may change but the optimizer's state."""

    def rate(self, variant: int) -> float:
        """The learning rate of one variant as it is now; of its first parameter group, should there be several."""
        return float(self.optimizer.param_groups[self._group(variant)]["lr"])

    @abstractmethod
    def _group(self, variant: int) -> int: ...

    def set_rates(self, epoch: float) -> None:
        """The learning rates at a time in epochs; in place where a rate is a tensor (a CUDA graph reads it there)."""
        for group, rate, schedule in zip(self.optimizer.param_groups, self.rates, self.schedules, strict=True):
            now = rate * schedule(epoch)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(now)
            else:
                group["lr"] = now

    def clip(self, largest: float) -> None:
        """Scale each variant's gradients down to the norm ``largest`` where theirs is larger."""
        gradients = self.gradients()
        norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])
        factors = (largest / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))


class Single(Variants):
    """One run: its model and optimizer as they are."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, schedule: Schedule) -> None:
        self.count = 1
        self.optimizer = optimizer
        self.schedules = [schedule] * len(optimizer.param_groups)
        self._dropouts = _dropouts(model)
        own = [f"{name}.{buffer}" for name, layer in self._dropouts.items() for buffer, _ in layer.named_buffers()]
        self._parallel = processes.data_parallel(model, unsynchronized=own)
        self._model = model
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._still = standing_still(model)
        super().__init__()

    def map(self, function: OfOne, regularizations: Sequence[Regularization]) -> OfAll:
        (regularization,) = regularizations

        def mapped(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            model = self._parallel if torch.is_grad_enabled() else self._model
            results = function(model, regularization, x.squeeze(0), y.squeeze(0))
            return tuple(result.unsqueeze(0) for result in results)

        return mapped

    def train(self, mode: bool = True) -> None:
        self._model.train(mode)
        for module in self._still:
            module.eval()

    def tensors(self) -> list[Tensor]:
        return [*self._model.parameters(), *self._model.buffers()]

    def _group(self, variant: int) -> int:
        return 0

    def stacked(self) -> list[Tensor]:
        return [parameter.detach().unsqueeze(0) for parameter in self._trained]

    def clear_gradients(self) -> None:
        for parameter in self._trained:
            parameter.grad = None

    def gather_gradients(self) -> None:
        pass  # the backward pass has put them where the optimizer looks

    def gradients(self) -> list[Tensor]:
        return [parameter.grad.unsqueeze(0) for parameter in self._trained if parameter.grad is not None]

    def rekey(self, seeds: Sequence[int], epoch: int) -> None:
        (seed,) = seeds
        for name, layer in self._dropouts.items():
            layer.key.fill_(key(seed, "dropout", name, epoch, *processes.process_key()))

    def weights(self, variants: Sequence[int]) -> list[State]:
        return [copy.deepcopy(self._model.state_dict()) for _ in variants]

    def optimizer_state(self, variant: int) -> State:
        return self.optimizer.state_dict()

    def load(self, states: Sequence[State]) -> None:
        (state,) = states
        self._model.load_state_dict({name: state["model"][name] for name in self._model.state_dict()})
        self.optimizer.load_state_dict(state["optimizer"])

    def model(self, variant: int) -> nn.Module:
        return self._model


class Ensemble(Variants):
    """K models of one structure and their optimizers of one class, taken over as they are.

    Neighbours with equal optimizer settings and the same schedule object share a parameter group, so sort them.
    Raises Cannot when they do not fit together.
    """

    def __init__(
        self, models: Sequence[nn.Module], optimizers: Sequence[Optimizer], schedules: Sequence[Schedule]
    ) -> None:
        kind = type(optimizers[0])
        if kind.__name__ not in ELEMENTWISE or not kind.__module__.startswith("torch.optim"):
            raise Cannot(f"optimizer {kind.__name__} does not treat each weight by itself")
        if any(len(optimizer.param_groups) > 1 for optimizer in optimizers):
            raise Cannot("the optimizer has several parameter groups")
        if not all(parameter.requires_grad for parameter in models[0].parameters()):
            raise Cannot("part of the model is frozen")
        if any(parameter.ndim == 0 for parameter in models[0].parameters()):
            raise Cannot("a parameter is a single number, which looks like a counter of the optimizer")
        for layer in models[0].modules():
            if isinstance(layer, nn.modules.dropout._DropoutNd | nn.RReLU):
                raise Cannot(f"{type(layer).__name__} draws from the stream of random numbers that a run has alone")
        self.count = len(models)
        self._template = models[0]
        self._parameters = _stacked([dict(model.named_parameters()) for model in models])
        self._buffers = _stacked([dict(model.named_buffers()) for model in models])
        for parameter in self._parameters.values():
            parameter.requires_grad_()
        self._saved = list(models[0].state_dict())
        self._dropouts = list(_dropouts(models[0]))

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

    def map(self, function: OfOne, regularizations: Sequence[Regularization]) -> OfAll:
        """As :meth:`Variants.map` says, by ``torch.func.vmap``; what is off in all variants stays a plain 0."""
        strengths = {
            name: torch.tensor(values, dtype=next(iter(self._parameters.values())).dtype, device=self._device)
            for name in asdict(regularizations[0])
            if any(values := [getattr(regularization, name) for regularization in regularizations])
        }

        class OfTheTemplate(nn.Module):  # functional_call replaces the weights during the call of a module
            def __init__(self, model: nn.Module) -> None:
                super().__init__()
                self.model = model

            def forward(self, own: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
                off: dict[str, Any] = dict.fromkeys(asdict(regularizations[0]), 0.0)
                return function(self.model, Regularization(**off | own), x, y)

        template = OfTheTemplate(self._template)
        state = {f"model.{name}": tensor for name, tensor in {**self._parameters, **self._buffers}.items()}

        def of_one(state: dict[str, Tensor], own: dict[str, Tensor], x: Tensor, y: Tensor) -> Any:
            return functional_call(template, state, (own, x, y))

        own_samples, same_samples = (
            vmap(of_one, in_dims=(0, 0, samples, samples), randomness="error") for samples in (0, None)
        )

        def mapped(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            results: tuple[Tensor, ...] = (
                own_samples(state, strengths, x, y)
                if len(x) == self.count
                else same_samples(state, strengths, x.squeeze(0), y.squeeze(0))
            )
            return results

        return mapped

    def train(self, mode: bool = True) -> None:
        self._template.train(mode)

    def tensors(self) -> list[Tensor]:
        return [*self._parameters.values(), *self._buffers.values()]

    def _group(self, variant: int) -> int:
        return next(i for i, part in enumerate(self._ranges) if part.start <= variant < part.stop)

    def stacked(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self._parameters.values()]

    def clear_gradients(self) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None

    def gather_gradients(self) -> None:
        for part, group in zip(self._ranges, self.optimizer.param_groups, strict=True):
            for slices, whole in zip(group["params"], self._parameters.values(), strict=True):
                assert whole.grad is not None
                slices.grad = whole.grad[part]

    def gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]

    def rekey(self, seeds: Sequence[int], epoch: int) -> None:
        for name in self._dropouts:
            keys = [key(seed, "dropout", name, epoch) for seed in seeds]
            self._buffers[f"{name}.key"].copy_(torch.tensor(keys))

    def weights(self, variants: Sequence[int]) -> list[State]:
        state = {**self._parameters, **self._buffers}
        chosen = torch.tensor(variants, dtype=torch.long, device=self._device)
        copies = {name: state[name].detach().index_select(0, chosen) for name in self._saved}
        return [{name: tensor[i] for name, tensor in copies.items()} for i in range(len(variants))]

    def optimizer_state(self, variant: int) -> State:
        """As :meth:`Variants.optimizer_state` says, cut out of the stacked state."""
        index = self._group(variant)
        part, group = self._ranges[index], self.optimizer.param_groups[index]

        def own(value: Any, like: Tensor) -> Any:
            stacked = isinstance(value, Tensor) and value.shape == like.shape
            return value[variant - part.start] if stacked else value

        state = {
            i: {name: own(value, parameter) for name, value in self.optimizer.state[parameter].items()}
            for i, parameter in enumerate(group["params"])
            if self.optimizer.state.get(parameter)
        }
        settings = {name: value for name, value in group.items() if name != "params"}
        return {"state": state, "param_groups": [{**settings, "params": list(range(len(group["params"])))}]}

    def load(self, states: Sequence[State]) -> None:
        tensors = {**self._parameters, **self._buffers}
        with torch.no_grad():
            for name in self._saved:
                tensors[name].copy_(torch.stack([state["model"][name] for state in states]))
        self._load_optimizer([state["optimizer"] for state in states])

    def _load_optimizer(self, states: Sequence[State]) -> None:
        for part, group in zip(self._ranges, self.optimizer.param_groups, strict=True):
            for i, parameter in enumerate(group["params"]):
                of_each = [state["state"].get(i, {}) for state in states[part]]
                on_device = group.get("fused") or group.get("capturable")
                self.optimizer.state[parameter] = {
                    name: _stack([state[name] for state in of_each], parameter, counters_on_device=bool(on_device))
                    for name in of_each[0]
                }

    def model(self, variant: int) -> nn.Module:
        model = copy.deepcopy(self._template)
        with torch.no_grad():
            for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
                tensor.copy_({**self._parameters, **self._buffers}[name][variant])
        return model

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(iter(self._parameters.values())).device
        return device


def _dropouts(model: nn.Module) -> dict[str, Dropout]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Dropout)}


def _stacked(of_each: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of equal names as one; torch's stack_module_state wants models of one class, which fx graphs are not."""
    return {name: torch.stack([own[name].detach() for own in of_each]) for name in of_each[0]}


def _options(optimizer: Optimizer) -> dict[str, Any]:
    (group,) = optimizer.param_groups
    return {name: value for name, value in group.items() if name != "params"}


def _stack(values: Sequence[Any], parameter: Tensor, *, counters_on_device: bool) -> Any:
    """One state for all variants of a group: tensors like its weights are stacked, counters are the same for all."""
    first = values[0]
    if isinstance(first, Tensor) and first.shape == parameter.shape[1:] and first.ndim:
        return torch.stack([value.to(parameter.device) for value in values])
    if isinstance(first, Tensor) and counters_on_device:
        return first.to(parameter.device, copy=True)
    return copy.deepcopy(first)
