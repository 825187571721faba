"""Faster ways to compute the same training step: fewer wrappers, compiled graphs, CUDA graphs.

None of them changes the result by more than rounding; each has a test of this.
"""

from __future__ import annotations

import functools
import inspect
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dlhw.errors import UsageError

Step = Callable[[Tensor, Tensor], Tensor]

GRAPHED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
"""Optimizers whose state starts at zero, so that a warm-up can be undone, and whose fused update reads the learning
rate from the device."""


def undecorated_step(optimizer: torch.optim.Optimizer) -> Callable[[], Any]:
    """Return ``optimizer.step`` without the wrappers that torch puts around it.

    The wrappers serve the profiler and torch.compile. They import ``torch._dynamo`` at the first call, which takes as
    long as importing torch, and cost about 60 us per step, 5 % of the step of a small network. The update is the same.
    """
    step = type(optimizer).step
    if inspect.signature(step).parameters["closure"].default is inspect.Parameter.empty:
        raise UsageError(
            f"optimizer={type(optimizer).__name__}: evaluates the loss several times per step, which the training loop "
            "does not support; expected another class of torch.optim"
        )
    return torch.no_grad()(functools.partial(inspect.unwrap(step), optimizer))


def optimizers_without_dynamo() -> None:
    """Make torch.optim's classes constructible without importing ``torch._dynamo`` (see :func:`undecorated_step`).

    torch marks these methods as never to be compiled, and imports the compiler to do so unless the function is
    marked already. This function sets the mark. A version of torch without such marks only starts more slowly.
    """
    for name in ("add_param_group", "state_dict", "load_state_dict"):
        inner = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if inner is not None and not hasattr(inner, "__dynamo_disable"):
            setattr(inner, "__dynamo_disable", inner)


def compiled(forward_backward: Step) -> Step:
    """Compile a function with torch.compile, backward pass included. Dropout masks are those of eager mode."""
    import torch._dynamo
    import torch._inductor.config

    torch._inductor.config.fallback_random = True
    if hasattr(torch._dynamo.config, "trace_autograd_ops"):  # torch 2.9 does not have it and makes two graphs
        torch._dynamo.config.trace_autograd_ops = True
    torch.compiler.reset()  # graphs of an earlier run count towards a limit above which nothing is compiled
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns that a CPU has no CUDA
    warnings.filterwarnings("ignore", module=r"torch\._(dynamo|inductor|functorch).*")
    return torch.compile(forward_backward, dynamic=False)


def cuda_graphed(step: Step, tensors: Sequence[Tensor], optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Step:
    """Record ``step`` on a batch like (x, y) as a CUDA graph and replay it for every batch of this size.

    Batches of another size (the last of an epoch) call ``step`` itself. Recording needs a few real steps to warm up;
    their effect on ``tensors``, which are the weights and buffers that a step changes, and on the optimizer is undone.
    """
    if x.device.type != "cuda" or any(tensor.dtype == torch.float64 for tensor in tensors if tensor.requires_grad):
        raise UsageError("trainer.cuda_graphs=true: needs a CUDA device and a precision other than fp64")
    if not isinstance(optimizer, GRAPHED) or any(
        not group["fused"] or group.get("dampening") for group in optimizer.param_groups
    ):
        raise UsageError(
            "trainer.cuda_graphs=true: needs optimizer=sgd (without dampening), adam or adamw, and optimizer.fused=true"
        )
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True
        group["lr"] = torch.tensor(float(group["lr"]), device=x.device)  # a number would become a constant of the graph
    static_x, static_y = x.clone(), y.clone()
    before = [tensor.detach().clone() for tensor in tensors]
    state_before = {
        (parameter, name): value.clone()
        for parameter, state in optimizer.state.items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }

    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        for _ in range(3):
            step(static_x, static_y)
    torch.cuda.current_stream().wait_stream(warm_up)
    with torch.no_grad():
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)
        for parameter, state in optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    value.copy_(state_before.get((parameter, name), torch.zeros_like(value)))

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        measured = step(static_x, static_y)

    def replay(x: Tensor, y: Tensor) -> Tensor:
        if x.shape != static_x.shape:
            return step(x, y)
        static_x.copy_(x)
        static_y.copy_(y)
        graph.replay()
        return measured

    return replay
