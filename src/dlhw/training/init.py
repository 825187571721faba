"""Weight initializations. Each function sets the weights and biases of a model's layers in place.

They act on every dense and convolutional layer and draw from the generator that is passed in; normalization layers keep
PyTorch's initialization. ``bias`` is the constant for all biases; None keeps PyTorch's. ``from_run`` copies all weights
from another run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from dlhw.errors import UsageError
from dlhw.runtime.options import PathText, Positive
from dlhw.storage import verification

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _fill_layers(model: nn.Module, fill: Callable[[Tensor], object], bias: float | None) -> None:
    for layer in model.modules():
        if isinstance(layer, LAYERS):
            fill(layer.weight)
            if bias is not None and layer.bias is not None:
                nn.init.constant_(layer.bias, bias)


def default(model: nn.Module, *, generator: torch.Generator, bias: float | None = None) -> None:
    """Keep PyTorch's initialization, U(-1/sqrt(n_in), 1/sqrt(n_in)) for weights."""
    _fill_layers(model, lambda weight: None, bias)


def uniform(
    model: nn.Module, *, generator: torch.Generator, d: Positive | Literal["xavier"], bias: float | None = None
) -> None:
    """Draw from U(-d, d) (B4). ``d="xavier"`` selects :func:`xavier`, so that one key covers all four cases of B4."""
    if d == "xavier":
        xavier(model, generator=generator, bias=bias)
    else:
        _fill_layers(model, lambda weight: nn.init.uniform_(weight, -d, d, generator=generator), bias)


def xavier(model: nn.Module, *, generator: torch.Generator, gain: Positive = 1.0, bias: float | None = None) -> None:
    """Draw from U(-d, d) with d = gain sqrt(6 / (n_in + n_out)) (Glorot & Bengio 2010, eq. 16)."""
    _fill_layers(model, lambda weight: nn.init.xavier_uniform_(weight, gain, generator=generator), bias)


def he(model: nn.Module, *, generator: torch.Generator, bias: float | None = None) -> None:
    """Draw from N(0, 2 / n_in), for ReLU (He et al. 2015, eq. 10)."""
    _fill_layers(model, lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator), bias)


def orthogonal(
    model: nn.Module, *, generator: torch.Generator, gain: Positive = 1.0, bias: float | None = None
) -> None:
    """Draw orthonormal rows or columns times ``gain`` (Saxe et al. 2014). Kernels are flattened to (n_out, rest)."""
    _fill_layers(model, lambda weight: nn.init.orthogonal_(weight, gain, generator=generator), bias)


def constant(model: nn.Module, *, generator: torch.Generator, value: float, bias: float | None = None) -> None:
    """Give every weight the same value. This shows why symmetry must be broken."""
    _fill_layers(model, lambda weight: nn.init.constant_(weight, value), bias)


def from_run(
    model: nn.Module,
    *,
    generator: torch.Generator,
    run: PathText | None,
    weights: Literal["best", "last"] = "best",
    made_by: str | None = None,
) -> None:
    """Copy the weights of the run in the directory ``run`` (D4.2); None keeps PyTorch's initialization.

    Weights are matched by their order, because layer numbers differ if only one of the models has dropout. The error
    message for a missing run names ``made_by``, the command that creates it. Raise UsageError if the weights are
    missing or belong to another model.
    """
    if run is None:
        return
    directory = Path(run)
    if (directory / "multirun.yaml").is_file():
        raise UsageError(f"init.run={run}: a sweep; expected the directory of one of its runs")
    try:
        stored = verification.weights_of(directory / f"{weights}.pt")
    except FileNotFoundError as error:
        how = f"create it with: {made_by}" if made_by else "expected the directory of a trained run"
        raise UsageError(f"init.run={run}: {weights}.pt is missing; {how}") from error
    state = model.state_dict()
    pairs = itertools.zip_longest(stored.items(), state.items(), fillvalue=("", None))
    for (stored_name, stored_value), (name, value) in pairs:
        actual, expected = _described(stored_name, stored_value), _described(name, value)
        if actual != expected:
            raise UsageError(
                f"init.run={run}: belongs to another model; {name or stored_name} is {expected} here and {actual} in "
                "the run"
            )
    model.load_state_dict(dict(zip(state, stored.values(), strict=True)))


def _described(name: str, tensor: Tensor | None) -> str:
    """Describe a parameter or buffer without the name of its layer."""
    if tensor is None:
        return "missing"
    return f"a {name.rpartition('.')[2]} of {'x'.join(map(str, tensor.shape)) or '1'}"
