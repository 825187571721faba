"""What of a model trains: everything, its head, or parameters by name; and what therefore stands still."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from dlhw.errors import UsageError
from dlhw.training.init import LAYERS

Trains = Literal["all", "head"] | list[str]


def freeze(model: nn.Module, trains: Trains) -> None:
    """Let only the chosen parameters be trained (D6.3, D6.4).

    ``trains`` is ``all``, ``head`` (the last layer), or patterns of parameter names such as ``layer4.*``.
    """
    if trains == "all":
        return
    patterns = [f"{head(model)}.*"] if trains == "head" else trains
    chosen = {name for pattern in patterns for name in _matching(model, pattern, "trainer.trains")}
    if not chosen:
        raise UsageError("trainer.trains=[]: nothing would train; give all, head or patterns of parameter names")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)


def head(model: nn.Module) -> str:
    """The name of the last dense or convolution layer."""
    layers: list[str] = [name for name, layer in model.named_modules() if isinstance(layer, LAYERS)]
    return layers[-1]


def parameter_groups(model: nn.Module, *, lr: float | None, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """The trained parameters as an optimizer takes them, in a group for each pattern of ``rates``, factors on ``lr``.

    The first group holds what no pattern matches; where several match, the first does.
    """
    if rates and lr is None:
        raise UsageError("trainer.rates: are factors on optimizer.lr, which is not given")
    left = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    own = []
    for pattern, factor in rates.items():
        names = [name for name in _matching(model, pattern, "trainer.rates") if name in left]
        if not names:
            raise UsageError(f"trainer.rates: {pattern} matches no parameter that trains and has no rate yet")
        own.append({"params": [left.pop(name) for name in names], "lr": (lr or 0.0) * factor})
    return [{"params": list(left.values())}, *own] if left else own


def standing_still(module: nn.Module) -> list[nn.Module]:
    """The outermost modules that have parameters none of which trains.

    In training they stay in evaluation mode: a frozen batch norm keeps its statistics, and nothing in a frozen part is
    random. A dropout layer beside trained and frozen layers is in none of them and drops as ever.
    """
    trained = [parameter.requires_grad for parameter in module.parameters()]
    if trained and not any(trained):
        return [module]
    return [still for child in module.children() for still in standing_still(child)]


def _matching(model: nn.Module, pattern: str, setting: str) -> Sequence[str]:
    names = [name for name, _ in model.named_parameters()]
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        first, last = names[0], names[-1]
        raise UsageError(f"{setting}: {pattern} matches none of the {len(names)} parameters ({first} ... {last})")
    return found
