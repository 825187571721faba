"""torchvision's classifiers by name, with published weights, weights from a file, or random weights.

This module hides the sources of weights (torch's cache, a download, a state_dict, a run) and their possible errors.
"""

from __future__ import annotations

import difflib
import logging
import re
import sys
import typing
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from dlhw.errors import UsageError
from dlhw.models.dropout import Dropout
from dlhw.models.modes import evaluating
from dlhw.runtime.downloads import DownloadFailed, downloading
from dlhw.runtime.paths import read_path
from dlhw.storage import checkpoint

log = logging.getLogger(__name__)

AUXILIARY = re.compile(r"^(aux1|aux2|AuxLogits)\.")
"""Auxiliary classifiers of GoogLeNet and Inception, which only their own training uses."""
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)")
"""Names of layers in torchvision's weight files for DenseNet; its model has no dot before the last digit."""
COUNTER = ".num_batches_tracked"
"""Ending of the name of a batch norm buffer, which old files lack."""


class TorchvisionNetwork(nn.Module):
    """The type that :func:`classifier` returns: a network of torchvision with these attributes. Never instantiated."""

    architecture: str
    categories: tuple[str, ...]
    """Names of ImageNet's classes, in the order of the network's outputs for ``outputs=None``."""
    head_name: str
    """Module name of the last layer. (``head`` is the last layer itself in some networks.)"""
    fresh: list[str]
    """Modules without loaded weights, to be initialized: none, the last layer, or ``[""]`` for the whole network."""


class StochasticDepth(Dropout):
    """torchvision's layer of the same name, with keyed masks: drops whole samples (rows)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = super().forward(x.new_ones(len(x)))
        return x * kept.view(-1, *[1] * (x.ndim - 1))


def classifier(
    shape: tuple[int, ...], outputs: int | None, *, architecture: str, weights: str | None
) -> TorchvisionNetwork:
    """Build a network from pictures (N, 3, H, W), normalized like ImageNet's, to logits (N, outputs).

    Args:
        shape: shape of a picture (3, H, W).
        outputs: the number of classes; None: the 1,000 of ImageNet, which the weights must have.
        architecture: torchvision's name, such as resnet18.
        weights: torchvision's name of published weights (IMAGENET1K_V1, DEFAULT), a file with a state_dict, or best.pt
            or last.pt of a run; None: random weights. The last layer is loaded only if it has ``outputs`` classes.

    Raise UsageError if the arguments do not fit each other or the weights are not available.
    """
    from torchvision import models  # takes seconds to import

    published = _published(architecture)
    if len(shape) != 3 or shape[0] != 3:
        raise UsageError(
            f"model.architecture={architecture}: needs pictures with 3 channels (3, H, W), but the samples of the "
            f"dataset are {tuple(shape)}; use a dataset of colour pictures, or model=cnn"
        )
    member = published.__members__.get(weights)
    stored = None if weights is None else _stored_weights(architecture, weights, published)
    options: dict[str, Any] = {}
    if architecture in ("googlenet", "inception_v3"):
        # With auxiliary classifiers, these return tuples in training. Their weights expect inputs in -1..1.
        options = {"aux_logits": False, "transform_input": True, "init_weights": stored is None}
    if architecture.startswith("vit_") and member is not None:
        options = {"image_size": member.meta["min_size"][0]}  # determines the number of positions
    categories = tuple(published.DEFAULT.meta["categories"])
    model = models.get_model(architecture, weights=None, num_classes=outputs or len(categories), **options)
    network = typing.cast(TorchvisionNetwork, model)
    reason = misfit(network, shape)
    if reason is not None:
        usual = published.DEFAULT.transforms().crop_size[0]
        needed = f"larger, such as {usual}" if min(shape[1:]) < usual else usual
        raise UsageError(
            f"model.architecture={architecture}: invalid for pictures of {shape[1]}x{shape[2]} ({reason}); "
            f"dataset.size or dataset.crop must be {needed}"
        )
    network.architecture = architecture
    network.categories = categories
    network.head_name = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1]
    network.fresh = [""] if stored is None else _fill(network, stored, weights, outputs=outputs)
    _key_masks(network)
    return network


def require_weights(*, architecture: str, weights: str | None) -> None:
    """Download published weights if they are missing. Raise UsageError if there are no such weights.

    This is done before a dataset is read, which takes minutes for large ones.
    """
    if weights is not None:
        _weights_file(architecture, weights, _published(architecture))


def _published(architecture: str) -> Any:
    """Return torchvision's enumeration of published weights. Raise UsageError for an unknown architecture."""
    from torchvision import models

    architectures = models.list_models(module=models)
    if architecture not in architectures:
        near = " or ".join(difflib.get_close_matches(architecture, architectures, 3, cutoff=0))
        raise UsageError(
            f"model.architecture={architecture}: not a classifier of torchvision; did you mean {near}? "
            f"(torchvision.models lists all {len(architectures)})"
        )
    return models.get_model_weights(architecture)


def _stored_weights(architecture: str, weights: str, published: Any) -> dict[str, Tensor]:
    """Return the state_dict of published weights or of a file. Raise UsageError if there is none."""
    path = _weights_file(architecture, weights, published)
    try:
        return read(path)
    except ValueError as error:
        again = "delete it to download it again, or use model.weights=null or another file"
        remedy = again if weights in published.__members__ else "use another file, or model.weights=null"
        raise UsageError(f"model.weights={weights}: {error}; {remedy}") from error


def _weights_file(architecture: str, weights: str, published: Any) -> Path:
    """Return the file with these weights. Raise UsageError if there is none."""
    if weights in published.__members__:
        return _cached_file(published[weights], weights)
    path = read_path(weights, key="model.weights")
    if not path.is_file():
        reason = "is a folder" if path.is_dir() else f"neither a file nor published weights of {architecture}"
        raise UsageError(
            f"model.weights={weights}: {reason}; expected one of null, {', '.join(published.__members__)}, or a "
            "file: a state_dict, or best.pt or last.pt of a run"
        )
    return path


def read(path: Path) -> dict[str, Tensor]:
    """Read a state_dict, or the model in a checkpoint of a run, to the CPU. Raise ValueError with the path."""
    try:
        # checkpoint.load verifies checksums, which torch.load does not; files older than torch 1.6 have none
        stored = (
            checkpoint.load(path)
            if zipfile.is_zipfile(path)
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except UsageError:
        raise
    except Exception as error:  # unpickling invalid bytes raises any exception
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        raise ValueError(f"{path}: truncated, or not a file of weights only ({reason})") from error
    stored = stored.get("model", stored) if isinstance(stored, dict) else stored
    if not isinstance(stored, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in stored.items()
    ):
        raise ValueError(f"{path}: contains no state_dict (tensors by name)")
    return stored


def _cached_file(member: Any, weights: str) -> Path:
    """Return the file of published weights in torch's cache; download it if it is missing."""
    name = Path(urlparse(member.url).path).name
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    if path.exists():
        return path
    expected = torch.hub.HASH_REGEX.search(name)
    log.info("downloading %s to %s", member.url, path.parent)
    try:
        with downloading():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(
                member.url, str(path), expected and expected.group(1), progress=sys.stderr.isatty()
            )
    except DownloadFailed as error:
        raise UsageError(
            f"model.weights={weights}: {name} is not in {path.parent}, and the download failed: {error}; put the file "
            f"{member.url} there, or use model.weights=null (random weights) or another file"
        ) from error
    return path


def misfit(network: nn.Module, shape: tuple[int, ...]) -> str | None:
    """Return why the network rejects a picture (3, H, W), or None if it accepts it; nothing is computed."""
    state = {name: torch.empty_like(value, device="meta") for name, value in network.state_dict().items()}
    dtype = next(network.parameters()).dtype
    try:
        with evaluating(network):
            torch.func.functional_call(network, state, torch.empty(1, *shape, device="meta", dtype=dtype))
    except (RuntimeError, AssertionError, ValueError) as error:
        return str(error).splitlines()[0]
    return None


def _fill(
    network: TorchvisionNetwork, stored: Mapping[str, Tensor], weights: str | None, *, outputs: int | None
) -> list[str]:
    """Load ``stored``, and return the modules without weights in it. Raise UsageError if it does not fit."""
    state = network.state_dict()
    new = {OLD_DENSENET.sub(r"\1\2", name): value for name, value in stored.items()}
    new = {name: value for name, value in new.items() if name in state or not AUXILIARY.match(name)}
    head = [name for name in state if name.startswith(f"{network.head_name}.")]
    classes = next((len(new[name]) for name in head if name in new and new[name].ndim), None)
    fresh = []
    if classes is not None and classes != len(state[head[0]]):
        if outputs is None:
            raise UsageError(
                f"model.weights={weights}: its last layer, {network.head_name}, has {classes} classes; expected the "
                f"{len(network.categories)} of ImageNet"
            )
        log.info(
            "%s of %s has %d classes; it is replaced by a new layer with %d",
            network.head_name, weights, classes, outputs,
        )  # fmt: skip
        fresh = [network.head_name]
        new = {name: value for name, value in new.items() if name not in head}
    required = [name for name in state if not (fresh and name in head)]
    for name in [*required, *(name for name in new if name not in state)]:
        stored_shape, shape = _shape(new.get(name)), _shape(state.get(name))
        if stored_shape != shape and not (stored_shape == "missing" and name.endswith(COUNTER)):
            raise UsageError(
                f"model.weights={weights}: not the weights of {network.architecture}; {name} is {stored_shape} in the "
                f"file; expected {shape}"
            )
    state.update(new)
    network.load_state_dict(state)
    return fresh


def _shape(value: Tensor | None) -> str:
    if value is None:
        return "missing"
    return "x".join(map(str, value.shape)) or "a number"


def _key_masks(network: nn.Module) -> None:
    """Replace torch's dropout layers, whose masks depend on earlier draws, by layers with keyed masks."""
    from torchvision.ops import StochasticDepth as Unkeyed

    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Dropout and layer.p > 0:
                setattr(parent, name, Dropout(layer.p))
            elif isinstance(layer, Unkeyed) and layer.p > 0:
                assert layer.mode == "row", layer.mode
                setattr(parent, name, StochasticDepth(layer.p))
