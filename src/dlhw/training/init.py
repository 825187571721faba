"""Weight initializations: each sets the weights and biases of a model's layers in place.

They act on every convolution and dense layer, with the randomness of the generator that is passed in;
normalization layers keep their own start. ``bias`` is the constant for all biases, or null to leave
PyTorch's. ``from_run`` alone sets everything, to what another run has learned.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dlhw.errors import UsageError
from dlhw.runs import checkpoint

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
Positive = Annotated[float, Field(gt=0)]


def _each_layer(model: nn.Module, fill: Callable[[Tensor], object], bias: float | None) -> None:
    for layer in model.modules():
        if isinstance(layer, LAYERS):
            fill(layer.weight)
            if bias is not None and layer.bias is not None:
                nn.init.constant_(layer.bias, bias)


def default(model: nn.Module, *, generator: torch.Generator, bias: float | None = None) -> None:
    """PyTorch's own: U(-1/sqrt(n_in), 1/sqrt(n_in)) for weights, as the layers were built."""
    _each_layer(model, lambda weight: None, bias)


def uniform(
    model: nn.Module, *, generator: torch.Generator, d: Positive | Literal["xavier"], bias: float | None = None
) -> None:
    """U(-d, d) (B4); ``d="xavier"`` is that of :func:`xavier`, so that one setting names all four cases of B4."""
    if d == "xavier":
        xavier(model, generator=generator, bias=bias)
    else:
        _each_layer(model, lambda weight: nn.init.uniform_(weight, -d, d, generator=generator), bias)


def xavier(model: nn.Module, *, generator: torch.Generator, gain: Positive = 1.0, bias: float | None = None) -> None:
    """U(-d, d) with d = gain sqrt(6 / (n_in + n_out)) (Glorot & Bengio 2010, eq. 16)."""
    _each_layer(model, lambda weight: nn.init.xavier_uniform_(weight, gain, generator=generator), bias)


def he(model: nn.Module, *, generator: torch.Generator, bias: float | None = None) -> None:
    """N(0, 2 / n_in), for ReLU (He et al. 2015, eq. 10)."""
    _each_layer(model, lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator), bias)


def orthogonal(
    model: nn.Module, *, generator: torch.Generator, gain: Positive = 1.0, bias: float | None = None
) -> None:
    """Orthonormal rows or columns, times ``gain`` (Saxe et al. 2014); kernels are flattened to (n_out, rest)."""
    _each_layer(model, lambda weight: nn.init.orthogonal_(weight, gain, generator=generator), bias)


def constant(model: nn.Module, *, generator: torch.Generator, value: float, bias: float | None = None) -> None:
    """Every weight the same: shows why symmetry must be broken."""
    _each_layer(model, lambda weight: nn.init.constant_(weight, value), bias)


def from_run(
    model: nn.Module,
    *,
    generator: torch.Generator,
    run: str | None,
    weights: Literal["best", "last"] = "best",
    made_by: str | None = None,
) -> None:
    """The weights that the run in the directory ``run`` learned (D4.2); None: PyTorch's own random ones.

    They are matched in the order of the layers, whose numbers differ where only one of the models has dropout.
    ``made_by`` is the command that makes the run, for the message when it is not there. Raises UsageError when there
    are no such weights, or weights of another model.
    """
    if run is None:
        return
    directory = Path(run).expanduser()
    if (directory / "multirun.yaml").is_file():
        raise UsageError(f"init.run={run}: is a sweep; name one of the runs below it")
    try:
        stored = checkpoint.load(directory / f"{weights}.pt")["model"]
    except FileNotFoundError as error:
        how = f"make it with: {made_by}" if made_by else "name the directory of a run that has trained"
        raise UsageError(f"init.run={run}: there is no {weights}.pt; {how}") from error
    own = model.state_dict()
    for (theirs, value), (mine, needed) in itertools.zip_longest(stored.items(), own.items(), fillvalue=("", None)):
        has, needs = _described(theirs, value), _described(mine, needed)
        if has != needs:
            raise UsageError(f"init.run={run}: of another model; {mine or theirs} is {needs} here and {has} there")
    model.load_state_dict(dict(zip(own, stored.values(), strict=True)))


def _described(name: str, tensor: Tensor | None) -> str:
    """A parameter or buffer without its layer's name."""
    if tensor is None:
        return "missing"
    return f"a {name.rpartition('.')[2]} of {'x'.join(map(str, tensor.shape)) or '1'}"
