"""Several processes that train one model, each on its part of every batch, as ``torchrun`` starts them.

``torchrun --nproc-per-node=2 -m dlhw.train ...`` computes what one process would: losses are those of whole batches,
gradients are summed by DistributedDataParallel. The first process alone writes. Started alone, everything here is the
identity. torch is imported where it is needed, because the command line asks for the rank before.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from dlhw.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

TIMEOUT = timedelta(minutes=30)
"""How long processes wait for each other; decoding a large folder of pictures takes one of them some time."""


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def process_key() -> tuple[int, ...]:
    """What keys randomness that is to differ between processes; nothing in the first."""
    return (rank(),) if rank() else ()


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """In here the processes can compute together; on CUDA each on a GPU of its own."""
    if world_size() == 1:
        yield
        return
    import torch
    from torch import distributed

    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"torchrun: process {local + 1} of this machine has no GPU, there are {torch.cuda.device_count()}; "
                "start fewer (--nproc-per-node), or set trainer.device=cpu"
            )
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def local_part(rows: Tensor) -> Tensor:
    """This process' part of a batch (K, B): every one of ``world_size()`` neighbouring samples in turn."""
    return rows if world_size() == 1 else rows[:, rank() :: world_size()]


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum over all processes."""
    if world_size() > 1:
        from torch import distributed

        values = values.clone()
        distributed.all_reduce(values)
    return values


def whole_batch_loss(data_loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean loss over the batch of all processes, of this one's logits (N, C) and targets.

    Its value is sum_r n_r loss_r / n, the same in all processes, so that flooding sees the loss of the batch. Its
    gradient is the part of this process times their count, because DistributedDataParallel takes the mean.
    """
    if world_size() == 1:
        return data_loss
    import torch

    def of_whole_batch(logits: Tensor, y: Tensor) -> Tensor:
        samples = torch.tensor(float(len(y)), dtype=logits.dtype, device=logits.device)
        share = data_loss(logits, y) * samples if len(y) else logits.sum()
        together = sum_over_processes(torch.stack([share.detach(), samples]))
        own = world_size() * share / together[1]
        return together[0] / together[1] + own - own.detach()

    return of_whole_batch


def data_parallel(model: nn.Module, *, own: list[str]) -> nn.Module:
    """The model for training steps, whose gradients are summed over the processes; the buffers ``own`` stay apart.

    On CUDA batch norm takes the statistics of whole batches. torch has that for no other device, so elsewhere each
    process normalizes by its own samples, which is refused because it is another computation.
    """
    if world_size() == 1:
        return model
    from torch import nn

    device = next(model.parameters()).device
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if any(parameter.requires_grad for layer in norms for parameter in layer.parameters()):
        if device.type != "cuda":
            raise UsageError(
                "torchrun: batch norm that trains takes the statistics of whole batches, which torch computes across "
                "processes on CUDA alone; freeze it (trainer.trains), use a model without it, or one process"
            )
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, own)
    return nn.parallel.DistributedDataParallel(model)
