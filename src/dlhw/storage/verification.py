"""Verify that an intact checkpoint is the one that a run needs: its kind, its run, its model and its optimizer.

:mod:`dlhw.storage.checkpoint` verifies the bytes of the file.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

import dlhw
from dlhw.errors import UsageError
from dlhw.runtime.bounds import LARGEST_COUNT
from dlhw.runtime.paths import printable, shortened
from dlhw.storage import checkpoint
from dlhw.storage.checkpoint import State
from dlhw.storage.identity import differences
from dlhw.storage.schemas import Invalid, check_metrics, is_number, is_whole, require
from dlhw.storage.stored import Unreadable, read_summary

log = logging.getLogger(__name__)

Kind = Literal["best", "last"]

PARTS: dict[Kind, tuple[str, ...]] = {
    "best": ("shape", "outputs", "data", "model", "epoch", "run"),
    "last": ("shape", "outputs", "data", "model", "optimizer", "rows", "run"),
}
"""The entries of ``best.pt``, and of ``last.pt`` and ``previous.pt``."""
_DESCRIPTIONS: dict[Kind, str] = {"best": "the best weights of a run", "last": "a checkpoint to resume from"}
_LARGEST_SAMPLE = 2**31
_LARGEST_OUTPUTS = 2**24


class WrongCheckpoint(UsageError):
    """An intact checkpoint is not the one that is needed. The message is ``FILE: what is wrong; what to do``."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{printable(path)}: {reason}; {_remedy(path)}")


def _remedy(path: Path) -> str:
    if _has_finished(path.parent):  # it does not start from the first epoch again
        return "restore it, or start a new run"
    if path.name == "last.pt" and (path.parent / "previous.pt").is_file():
        return "restore it, or delete it to resume from previous.pt"
    if path.name in ("last.pt", "previous.pt"):
        return "restore it, or delete it to start from the first epoch"
    return "restore it, or start a new run"


def _has_finished(directory: Path) -> bool:
    try:
        return "final" in read_summary(directory)
    except Unreadable:
        return True


def require_kind(path: Path, state: State, kind: Kind) -> None:
    """Raise WrongCheckpoint unless the content has the entries and types of a best or last checkpoint."""
    try:
        _check(state, kind)
    except Invalid as error:
        raise WrongCheckpoint(path, f"not {_DESCRIPTIONS[kind]} ({error})") from error


def weights_of(path: Path) -> dict[str, Tensor]:
    """Return the weights in a checkpoint. Raise WrongCheckpoint if it has none, and CorruptCheckpoint."""
    state: Any = checkpoint.load(path)
    weights = state.get("model") if isinstance(state, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise WrongCheckpoint(path, "not a checkpoint of a run (without weights)")
    return weights


def _check(state: Any, kind: Kind) -> None:
    require(isinstance(state, dict), "not a mapping")
    missing = [name for name in PARTS[kind] if name not in state]
    require(not missing, f"without {', '.join(missing)}")
    shape, model, run = state["shape"], state["model"], state["run"]
    valid = isinstance(shape, list) and all(is_whole(size, smallest=1, largest=_LARGEST_SAMPLE) for size in shape)
    require(valid and math.prod(shape) <= _LARGEST_SAMPLE, f"shape is {shortened(shape, longest=40)}")
    valid = is_whole(state["outputs"], smallest=1, largest=_LARGEST_OUTPUTS)
    require(valid, f"outputs is {shortened(state['outputs'], longest=40)}")
    valid = isinstance(model, dict) and all(isinstance(value, Tensor) for value in model.values())
    require(valid, "model must be a mapping of tensors")
    valid = isinstance(run, dict) and isinstance(run.get("config"), dict) and isinstance(run.get("dlhw"), str)
    require(valid, "run must have config and dlhw")
    if kind == "best":
        valid = is_whole(state["epoch"], smallest=1, largest=LARGEST_COUNT)
        require(valid, f"epoch is {shortened(state['epoch'], longest=40)}")
        return
    rows, optimizer = state["rows"], state["optimizer"]
    require(isinstance(rows, list) and all(isinstance(row, dict) for row in rows), "rows must be a list of mappings")
    check_metrics(rows)
    valid = isinstance(optimizer, dict) and isinstance(optimizer.get("state"), dict)
    groups = optimizer.get("param_groups") if valid else None
    valid = isinstance(groups, list) and all(
        isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups
    )
    require(valid, "optimizer must have state and param_groups")


def require_same_run(path: Path, state: State, identity: Mapping[str, Any]) -> None:
    """Raise WrongCheckpoint if the checkpoint belongs to another run than the one with this identity.

    See :func:`dlhw.storage.identity.checkpoint_identity`. A checkpoint of another version of dlhw is only logged.
    """
    different = differences(state["run"]["config"], identity["config"])
    if different:
        raise WrongCheckpoint(path, f"a checkpoint of another run ({different})")
    if state["run"]["dlhw"] != dlhw.__version__:
        log.warning(
            "%s: written by dlhw %s, and this is dlhw %s; results may differ",
            path,
            shortened(state["run"]["dlhw"], longest=40),
            dlhw.__version__,
        )


def require_fits_model(path: Path, state: State, model: Mapping[str, Tensor]) -> None:
    """Raise WrongCheckpoint if names, shapes or types of the weights are not those of a ``state_dict``."""
    stored = state["model"]
    for name in dict.fromkeys([*model, *stored]):
        actual, expected = (_described(weights.get(name)) for weights in (stored, model))
        if actual != expected:
            raise WrongCheckpoint(path, f"weights of another model ({name}: {actual} instead of {expected})")


def _described(tensor: Tensor | None) -> str:
    if tensor is None:
        return "missing"
    return f"{str(tensor.dtype).removeprefix('torch.')} of {'x'.join(map(str, tensor.shape)) or '1'}"


def require_fits_optimizer(path: Path, state: State, optimizer: Optimizer) -> None:
    """Raise WrongCheckpoint if the stored state of the optimizer is not one of this optimizer."""
    groups, stored = optimizer.param_groups, state["optimizer"]["param_groups"]
    if [len(group["params"]) for group in stored] != [len(group["params"]) for group in groups]:
        raise WrongCheckpoint(path, "the state of another optimizer (other groups of parameters)")
    for group, stored_group in zip(groups, stored, strict=True):
        different = group.keys() ^ stored_group.keys()
        different |= {name for name in group.keys() - different if not _same_option(stored_group[name], group[name])}
        if different:
            raise WrongCheckpoint(path, f"the state of another optimizer ({', '.join(sorted(different))})")
    parameters = [parameter for group in groups for parameter in group["params"]]
    indices = [index for group in stored for index in group["params"]]
    entries = state["optimizer"]["state"]
    if indices != list(range(len(parameters))) or not entries.keys() <= set(indices):
        raise WrongCheckpoint(path, "the state of another optimizer (other numbers of parameters)")
    if not type(optimizer).__module__.startswith(("torch.", "dlhw.")):
        return  # a step of an own optimizer may have other effects
    for index, expected in enumerate(_state_after_a_step(optimizer)):
        entry = entries.get(index)
        if entry is not None and not _same_kind(entry, expected, parameters[index]):
            actual = ", ".join(map(str, entry)) if isinstance(entry, dict) else type(entry).__name__
            raise WrongCheckpoint(
                path,
                f"the state of another optimizer or model (parameter {index} has {shortened(actual)}; "
                f"{type(optimizer).__name__} has {', '.join(expected)})",
            )


def _same_option(stored: Any, value: Any) -> bool:
    """Return whether an option of a group of parameters is a number, or a pair of numbers, as it should be."""
    if isinstance(value, list | tuple) and all(map(is_number, value)):
        return isinstance(stored, list | tuple) and len(stored) == len(value) and all(map(is_number, stored))
    return is_number(stored) or not is_number(value)


def _state_after_a_step(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the state that a step of the optimizer creates for each parameter, if each had a single number."""
    trial: Optimizer = object.__new__(type(optimizer))
    trial.__dict__.update(optimizer.__dict__)
    trial.state = defaultdict(dict)
    trial.param_groups = []
    for group in optimizer.param_groups:
        single = [torch.zeros((1,) * value.ndim, dtype=value.dtype, device=value.device) for value in group["params"]]
        for value in single:
            value.grad = torch.zeros_like(value)
        trial.param_groups.append({**group, "params": single})
    trial.step()
    return [trial.state[value] for value in itertools.chain(*(group["params"] for group in trial.param_groups))]


def _same_kind(entry: Any, expected: Mapping[str, Any], parameter: Tensor) -> bool:
    """Return whether the state of a parameter has the expected names and types, and tensors of its shape."""
    if not isinstance(entry, dict) or entry.keys() != expected.keys():
        return False
    for name, value in expected.items():
        stored = entry[name]
        if not isinstance(value, Tensor):
            if isinstance(stored, Tensor) or (is_number(value) and not is_number(stored)):
                return False
        elif not isinstance(stored, Tensor) or not _has_shape(stored, value, parameter):
            return False
    return True


def _has_shape(stored: Tensor, value: Tensor, parameter: Tensor) -> bool:
    """Return whether a stored tensor has as many dimensions as ``value`` and, if so has the parameter, its sizes or 1.

    Adafactor keeps one value per row and per column.
    """
    if stored.ndim != value.ndim:
        return False
    sizes = zip(stored.shape, parameter.shape, strict=False)
    return value.ndim != parameter.ndim or all(size in (1, expected) for size, expected in sizes)
