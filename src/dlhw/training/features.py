"""Features of the frozen part of a model, computed once instead of in every epoch.

The graph of the model is cut before the first node that trains or is random during training. The part before the cut
gives the same features in every epoch, so they are computed once for every picture, and the rest of the model trains on
them. The results equal those of the whole model up to the rounding of sums over batches of another size.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from dlhw.data.batches import AugmentedPictures
from dlhw.data.normalization import Normalization
from dlhw.data.tensors import Dataset, Split
from dlhw.models.dropout import Dropout
from dlhw.models.modes import evaluating
from dlhw.runtime import devices, processes
from dlhw.runtime.devices import Precision
from dlhw.runtime.progress import tracked
from dlhw.training.finetuning import frozen_modules

log = logging.getLogger("dlhw")

SHARE_OF_MEMORY = 0.5
"""Fraction of the free memory that features may use."""

RANDOM = (nn.modules.dropout._DropoutNd, nn.RReLU, Dropout)
RANDOM_FUNCTIONS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}
"""Functions that are random in training. Like batch norm, they differ between training and evaluation."""


@dataclass(frozen=True)
class Cut:
    """A model in two parts: ``rest(frozen(x))`` equals ``model(x)``, in training and in evaluation mode.

    Both parts share the layers of the model, under the same names.
    """

    frozen: nn.Module
    rest: nn.Module


def cut(model: nn.Module) -> Cut | None:
    """Cut a model before its first trained or random node.

    Return None if that is the first node, if more than one tensor crosses the cut, or if torch.fx does not support the
    model.
    """
    try:
        with evaluating(model):
            in_evaluation = _Tracer().trace(model)
            model.train()
            for module in frozen_modules(model):
                module.eval()
            graph = _Tracer().trace(model)
            if str(graph) != str(in_evaluation):  # a traced graph would fix the mode
                raise ValueError("its graph in training differs from its graph in evaluation")
            changing = _changing(graph, model)
    except Exception as error:  # the model's own code may raise anything while it is traced
        reason = " ".join(str(error).split())
        log.info(
            "cannot separate the frozen part of %s (%s); it is computed in every epoch", type(model).__name__, reason
        )
        return None
    crossing = {
        source: None for node in graph.nodes if node in changing for source in node.all_input_nodes
        if source not in changing and source.op != "get_attr"
    }  # fmt: skip
    if len(crossing) != 1 or next(iter(crossing)).op == "placeholder":
        return None
    (border,) = crossing
    return Cut(_graph_until(border, graph, model).eval(), _graph_after(border, changing, graph, model))


class _Tracer(fx.Tracer):
    """Traces through containers. The layers of torch and dlhw's dropout are leaves."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, RANDOM) or super().is_leaf_module(module, name)


def _changing(graph: fx.Graph, model: nn.Module) -> set[fx.Node]:
    """Return the nodes whose results for one sample change from epoch to epoch."""
    changing: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "call_module":
            layer = model.get_submodule(node.target)
            is_source = any(parameter.requires_grad for parameter in layer.parameters()) or (
                layer.training and isinstance(layer, (*RANDOM, nn.modules.batchnorm._BatchNorm))
            )
        elif node.op == "get_attr":
            value: object = functools.reduce(getattr, node.target.split("."), model)
            is_source = isinstance(value, Tensor) and value.requires_grad
        else:
            name = getattr(node.target, "__name__", node.target)
            is_source = node.op == "call_function" and name in RANDOM_FUNCTIONS and _in_training(node)
        if is_source or node.op == "output" or any(source in changing for source in node.all_input_nodes):
            changing.add(node)
    return changing


def _in_training(node: fx.Node) -> bool:
    """Return whether dropout(input, p, training=True) is called in training mode."""
    return bool(node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True))


def _graph_until(border: fx.Node, graph: fx.Graph, model: nn.Module) -> fx.GraphModule:
    first = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copies[node] = first.node_copy(node, copies.__getitem__)
        if node is border:
            break
    first.output(copies[border])
    return _module(first, model)


def _graph_after(border: fx.Node, changing: set[fx.Node], graph: fx.Graph, model: nn.Module) -> fx.GraphModule:
    second = fx.Graph()
    copies = {border: second.placeholder("features")}
    for node in graph.nodes:
        if node in changing or node.op == "get_attr":
            copies[node] = second.node_copy(node, copies.__getitem__)
    return _module(second, model)


def _module(graph: fx.Graph, model: nn.Module) -> fx.GraphModule:
    """Return a module with the part of the model that a graph needs."""
    module = fx.GraphModule(model, graph)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def frozen_features(
    frozen: nn.Module, data: Dataset, *, seed: int, precision: Precision, views: int | None
) -> Dataset | None:
    """Return the dataset with features (P, *shape) instead of pictures; None if they do not fit into memory.

    Args:
        frozen: the first part of a :class:`Cut`.
        views: number of augmented views of the training pictures that epochs use in turn; None: no augmentation.
    """
    compute = functools.partial(_features, frozen, data, precision=precision)
    example = compute([data.train[:1][0]], count=1)
    pools = list({id(part.pool_x): Split(part.pool_x, part.pool_y) for part in data.parts.values()}.values())
    key_prefix = (_hash(frozen, data, precision), data.sha256)
    for key in [key for key in _cache if key[:2] != key_prefix]:
        del _cache[key]
    new = [pool for number, pool in enumerate(pools) if (*key_prefix, number) not in _cache]
    size = (sum(map(len, new)) + (views or 0) * len(data.train)) * example.nbytes
    too_large = size > SHARE_OF_MEMORY * devices.free_memory(precision.device)
    if processes.sum_over_processes(example.new_tensor(float(too_large))):  # all processes must make the same decision
        log.info("the frozen part is computed in every epoch, because its features take %.1f GB", size / 2**30)
        return None

    def pool_features(number: int, pool: Split) -> Tensor:
        key = (*key_prefix, number)
        if key not in _cache:
            rows = pool.all_rows().split(data.evaluated_at_once, dim=1)
            _cache[key] = compute((pool.gather(batch)[0][0] for batch in rows), count=len(pool))
        return _cache[key]

    def view_split(epoch: int) -> Split:
        assert data.augmentation is not None
        rows = data.train.all_rows().split(data.evaluated_at_once, dim=1)
        changed = source.epoch(epoch, rows)
        return Split(compute((x[0].to(precision.device) for x in changed), count=len(data.train)), data.train.y)

    features = {id(pool.pool_x): pool_features(number, pool) for number, pool in enumerate(pools)}
    parts = {name: replace(part, pool_x=features[id(part.pool_x)]) for name, part in data.parts.items()}
    if views is not None:
        source = AugmentedPictures(data, [seed])
    return data.with_parts(
        parts,
        views=tuple(view_split(epoch) for epoch in range(1, (views or 0) + 1)),
        augmentation=None,
        normalize=Normalization.identity(example.device, example.dtype),
    )


_cache: dict[tuple[str, str, int], Tensor] = {}
"""The most recent features by frozen part, dataset and pool; the jobs of a sweep share them."""


def clear_cache() -> None:
    """Discard all computed features, as in a new process."""
    _cache.clear()


def _features(
    frozen: nn.Module, data: Dataset, batches: Iterable[Tensor], *, count: int, precision: Precision
) -> Tensor:
    """Compute the features (count, *shape) of ``count`` pictures, which come in batches."""
    features = torch.empty(0)
    done = 0
    steps = -(-count // data.evaluated_at_once)
    with torch.inference_mode(False), torch.no_grad(), precision.autocast():
        for x in tracked(batches, total=steps, what="features") if steps > 1 else batches:
            batch = frozen(data.normalize(x)).to(precision.dtype)
            if not done:
                features = batch.new_empty(count, *batch.shape[1:])
            features[done : done + len(batch)] = batch
            done += len(batch)
    return features


def _hash(frozen: nn.Module, data: Dataset, precision: Precision) -> str:
    """Return a digest of everything but the pictures that the features depend on."""
    assert isinstance(frozen, fx.GraphModule)
    digest = hashlib.sha256(f"{nn.Module.__repr__(frozen)} {frozen.code} {precision} {data.normalize.size}".encode())
    for tensor in (*frozen.state_dict().values(), data.normalize.shift, data.normalize.scale):
        digest.update(tensor.detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
