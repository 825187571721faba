"""Fine-tuning: which parameters train, at which learning rates, and which modules are frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from dlhw.errors import UsageError
from dlhw.training.init import LAYERS
from dlhw.training.settings import Trains


def freeze(model: nn.Module, trains: Trains) -> None:
    """Set ``requires_grad`` so that only the chosen parameters train (D6.3, D6.4).

    ``trains`` is ``all``, which changes nothing, ``head`` (the last layer), or patterns of parameter names such as
    ``layer4.*``.
    """
    if trains == "all":
        return
    patterns = [f"{head(model)}.*"] if trains == "head" else trains
    chosen = {name for pattern in patterns for name in _matching(model, pattern, "trainer.trains")}
    if not chosen:
        raise UsageError(
            "trainer.trains=[]: no parameter would be trained; expected all, head or patterns of parameter names"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)


def head(model: nn.Module) -> str:
    """Return the name of the last dense or convolutional layer."""
    layers: list[str] = [name for name, layer in model.named_modules() if isinstance(layer, LAYERS)]
    return layers[-1]


def parameter_groups(model: nn.Module, *, lr: float | None, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return parameter groups for an optimizer: one for each pattern of ``rates``, whose values are factors on ``lr``.

    The first group holds the trained parameters that match no pattern. A parameter belongs to the first pattern that
    matches it.
    """
    if rates and lr is None:
        raise UsageError("trainer.rates: the values are factors on optimizer.lr, which is missing")
    remaining = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups = []
    for pattern, factor in rates.items():
        names = [name for name in _matching(model, pattern, "trainer.rates") if name in remaining]
        if not names:
            raise UsageError(f"trainer.rates: {pattern} matches only parameters that are frozen or have a rate already")
        groups.append({"params": [remaining.pop(name) for name in names], "lr": (lr or 0.0) * factor})
    return [{"params": list(remaining.values())}, *groups] if remaining else groups


def frozen_modules(module: nn.Module) -> list[nn.Module]:
    """Return the outermost modules all of whose parameters are frozen.

    They stay in evaluation mode during training: a frozen batch norm keeps its statistics, and nothing in a frozen part
    is random. A dropout layer next to trained and frozen layers belongs to no frozen module and stays active.
    """
    trained = [parameter.requires_grad for parameter in module.parameters()]
    if trained and not any(trained):
        return [module]
    return [frozen for child in module.children() for frozen in frozen_modules(child)]


def _matching(model: nn.Module, pattern: str, setting: str) -> Sequence[str]:
    names = [name for name, _ in model.named_parameters()]
    matches = [name for name in names if fnmatchcase(name, pattern)]
    if not matches:
        first, last = names[0], names[-1]
        raise UsageError(f"{setting}: {pattern} matches none of the {len(names)} parameters ({first} ... {last})")
    return matches
