"""torchvision's classifiers by name, with its published weights, those of a file, or random ones.

Hides where weights come from (torch's cache, a download, a state_dict, a run of ours) and what can be wrong with each.
"""

from __future__ import annotations

import difflib
import http.client
import logging
import re
import socket
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
from dlhw.runs import checkpoint

log = logging.getLogger(__name__)

AUXILIARY = re.compile(r"^(aux1|aux2|AuxLogits)\.")
"""Second classifiers of GoogLeNet and Inception, of use in their own training alone."""
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)")
"""A layer's name in torchvision's files for DenseNet, which it writes without the last dot itself."""
COUNTER = ".num_batches_tracked"
"""Ending of a buffer of batch norm that old files lack."""


class Network(nn.Module):
    """What :func:`classifier` returns: a network of torchvision that was given these attributes. Never instantiated."""

    architecture: str
    categories: tuple[str, ...]
    """Names of ImageNet's classes, in the order of the outputs that the network has with ``outputs=None``."""
    head_name: str
    """The last layer, by its name as a module. (``head`` is the last layer itself in some networks.)"""
    fresh: list[str]
    """Modules that no weights filled: none, the last layer, or ``[""]``, the whole network. Only these may be
    initialized by others."""


class StochasticDepth(Dropout):
    """torchvision's layer of the same name: drops samples (rows) whole, with masks that are keyed."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = super().forward(x.new_ones(len(x)))
        return x * kept.view(-1, *[1] * (x.ndim - 1))


def classifier(shape: tuple[int, ...], outputs: int | None, *, architecture: str, weights: str | None) -> Network:
    """A network for pictures (N, 3, H, W), normalized as ImageNet's, to logits (N, outputs).

    Args:
        shape: of a picture (3, H, W).
        outputs: how many classes; None: the 1,000 of ImageNet, which weights must be of.
        architecture: torchvision's name for it, such as resnet18.
        weights: torchvision's name for published ones (IMAGENET1K_V1, DEFAULT), a file with a state_dict, a run's
            best.pt or last.pt; None: random ones. The last layer is taken over where it has ``outputs`` classes.

    Raises UsageError where these do not fit each other or weights cannot be had.
    """
    from torchvision import models  # takes seconds, and is needed only here

    legal = models.list_models(module=models)
    if architecture not in legal:
        near = " or ".join(difflib.get_close_matches(architecture, legal, 3, cutoff=0))
        raise UsageError(
            f"model.architecture={architecture}: no classifier of torchvision; did you mean {near}? "
            f"(torchvision.models lists all {len(legal)})"
        )
    if len(shape) != 3 or shape[0] != 3:
        raise UsageError(
            f"model.architecture={architecture}: takes pictures of 3 channels (3, H, W), samples of the dataset are "
            f"{tuple(shape)}; use a dataset of colour pictures, or model=cnn"
        )
    published = models.get_model_weights(architecture)
    named = published.__members__.get(weights)
    stored = None if weights is None else _stored(architecture, weights, published)
    options: dict[str, Any] = {}
    if architecture in ("googlenet", "inception_v3"):
        # In training these give tuples if they have auxiliary classifiers; their weights want pictures in -1..1.
        options = {"aux_logits": False, "transform_input": True, "init_weights": stored is None}
    if architecture.startswith("vit_") and named is not None:
        options = {"image_size": named.meta["min_size"][0]}  # as many positions as the weights have
    categories = tuple(published.DEFAULT.meta["categories"])
    made = models.get_model(architecture, weights=None, num_classes=outputs or len(categories), **options)
    network = typing.cast(Network, made)
    reason = misfit(network, shape)
    if reason is not None:
        usual = published.DEFAULT.transforms().crop_size[0]
        needed = f"larger, such as {usual}" if min(shape[1:]) < usual else usual
        raise UsageError(
            f"model.architecture={architecture}: cannot take pictures of {shape[1]}x{shape[2]} ({reason}); "
            f"dataset.size or dataset.crop must be {needed}"
        )
    network.architecture = architecture
    network.categories = categories
    network.head_name = [name for name, layer in made.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1]
    network.fresh = [""] if stored is None else _fill(network, stored, weights, wanted=outputs)
    _key_masks(network)
    return network


def _stored(architecture: str, weights: str, published: Any) -> dict[str, Tensor]:
    """The tensors by name of published weights or of a file. Raises UsageError where there are none."""
    path = Path(weights).expanduser()
    if weights in published.__members__:
        path = _cached(published[weights], weights)
        otherwise = "delete it so that it is downloaded again, or use model.weights=null or a file"
    elif path.is_file():
        otherwise = "give another file, or use model.weights=null"
    else:
        where = "is a folder" if path.is_dir() else "no such file"
        raise UsageError(
            f"model.weights={weights}: {where}, nor weights of {architecture}; legal are null, "
            f"{', '.join(published.__members__)}, and files: a state_dict, or best.pt or last.pt of a run"
        )
    try:
        return read(path)
    except ValueError as error:
        raise UsageError(f"model.weights={weights}: {error}; {otherwise}") from error


def read(path: Path) -> dict[str, Tensor]:
    """The state_dict in a file, plain or that of a run's model, on the CPU. Raises ValueError, naming the file."""
    try:
        # torch.load compares no checksums; files from before torch 1.6 have none
        whole = zipfile.is_zipfile(path)
        stored = checkpoint.load(path) if whole else torch.load(path, map_location="cpu", weights_only=True)
    except UsageError:
        raise
    except Exception as error:  # unpickling any bytes raises anything
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        raise ValueError(f"{path}: truncated, or no file of weights alone ({reason})") from error
    stored = stored.get("model", stored) if isinstance(stored, dict) else stored
    if not isinstance(stored, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in stored.items()
    ):
        raise ValueError(f"{path}: holds no state_dict, that is, tensors by name")
    return stored


def _cached(member: Any, weights: str) -> Path:
    """The file of published weights in torch's cache, downloaded if it is not there."""
    name = Path(urlparse(member.url).path).name
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    if path.exists():
        return path
    expected = torch.hub.HASH_REGEX.search(name)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # seconds; torch sets none, and a firewall may never answer
    log.info("downloading %s to %s", member.url, path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            member.url, str(path), expected and expected.group(1), progress=sys.stderr.isatty()
        )
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"model.weights={weights}: {name} is not in {path.parent}, and the download failed: {reason}; place the "
            f"file of {member.url} there, or use model.weights=null (random) or another file"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return path


def misfit(network: nn.Module, shape: tuple[int, ...]) -> str | None:
    """Why a picture (3, H, W) does not pass through the network, found without computing; None if it does."""
    was_training = network.training
    state = {name: torch.empty_like(value, device="meta") for name, value in network.state_dict().items()}
    dtype = next(network.parameters()).dtype
    try:
        torch.func.functional_call(network.eval(), state, torch.empty(1, *shape, device="meta", dtype=dtype))
    except (RuntimeError, AssertionError, ValueError) as error:
        return str(error).splitlines()[0]
    finally:
        network.train(was_training)
    return None


def _fill(network: Network, stored: Mapping[str, Tensor], weights: str | None, *, wanted: int | None) -> list[str]:
    """Load ``stored`` and give the names of the modules that it has nothing for. Raises UsageError at a misfit."""
    own = network.state_dict()
    found = {OLD_DENSENET.sub(r"\1\2", name): value for name, value in stored.items()}
    found = {name: value for name, value in found.items() if name in own or not AUXILIARY.match(name)}
    head = [name for name in own if name.startswith(f"{network.head_name}.")]
    classes = next((len(found[name]) for name in head if name in found and found[name].ndim), None)
    fresh = []
    if classes is not None and classes != len(own[head[0]]):
        if wanted is None:
            raise UsageError(
                f"model.weights={weights}: its last layer, {network.head_name}, is for {classes} classes; the "
                f"{len(network.categories)} of ImageNet are asked for"
            )
        log.info("%s of %s is for %d classes: left out, a new one for %d", network.head_name, weights, classes, wanted)
        fresh = [network.head_name]
        found = {name: value for name, value in found.items() if name not in head}
    needed = [name for name in own if not (fresh and name in head)]
    for name in [*needed, *(name for name in found if name not in own)]:
        has, needs = (
            "x".join(map(str, part[name].shape)) or "a number" if name in part else "nothing" for part in (found, own)
        )
        if has != needs and not (has == "nothing" and name.endswith(COUNTER)):
            raise UsageError(
                f"model.weights={weights}: of another network than {network.architecture}; {name} is {has} there, "
                f"must be {needs}"
            )
    own.update(found)
    network.load_state_dict(own)
    return fresh


def _key_masks(network: nn.Module) -> None:
    """Put layers with keyed masks in the place of torch's, whose masks depend on what was drawn before."""
    from torchvision.ops import StochasticDepth as Drawn

    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Dropout and layer.p > 0:
                setattr(parent, name, Dropout(layer.p))
            elif isinstance(layer, Drawn) and layer.p > 0:
                assert layer.mode == "row", layer.mode
                setattr(parent, name, StochasticDepth(layer.p))
