"""Data-parallel training of one model by several processes, started with ``torchrun``.

``torchrun --nproc-per-node=2 -m dlhw.train ...`` gives the same results as one process: each process takes its part of
every batch, losses are those of whole batches, and DistributedDataParallel sums the gradients. Only the process with
rank 0 writes files. In a single process these functions have no effect. torch is imported only where it is needed,
because the command line reads the rank before it imports torch.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from dlhw.errors import TrainingFailed, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

TIMEOUT = timedelta(minutes=30)
"""How long processes wait for each other. One of them may spend minutes decoding a large folder of pictures."""
_LOST = re.compile(
    r"(gloo/transport|NCCL).*(connection (closed|reset) by peer|remote process exited|broken pipe)",
    re.IGNORECASE | re.DOTALL,
)
"""Errors of gloo and NCCL after another process has ended."""


def world_size() -> int:
    """Return the number of processes that train together; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def rank() -> int:
    """Return the rank of this process, from 0."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def process_key() -> tuple[int, ...]:
    """Return the part of a random key that differs between processes; empty for rank 0, as in a single process."""
    return (rank(),) if rank() else ()


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the process group while in this context. On CUDA each process uses its own GPU.

    Raise TrainingFailed if another process of the group ends early.
    """
    if world_size() == 1:
        yield
        return
    import torch
    from torch import distributed

    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"torchrun: local rank {local} has no GPU (this machine has {torch.cuda.device_count()}); start fewer "
                "processes (--nproc-per-node) or set trainer.device=cpu"
            )
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        raise TrainingFailed("torchrun: another process has ended") from error
    finally:
        distributed.destroy_process_group()


def local_part(rows: Tensor) -> Tensor:
    """Return this process's part of a batch (K, B): every ``world_size()``-th sample, starting at its rank."""
    return rows if world_size() == 1 else rows[:, rank() :: world_size()]


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the sum of ``values`` over all processes."""
    if world_size() > 1:
        from torch import distributed

        values = values.clone()
        distributed.all_reduce(values)
    return values


def whole_batch_loss(data_loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function of this process's logits (N, C) and targets that computes the mean loss over the whole batch.

    With n_r samples in process r and n in all, its value is sum_r n_r loss_r / n, the same in every process, so that
    flooding applies to the loss of the whole batch. Its gradient is this process's term times the number of
    processes, because DistributedDataParallel averages gradients.
    """
    if world_size() == 1:
        return data_loss
    import torch

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        samples = torch.tensor(float(len(y)), dtype=logits.dtype, device=logits.device)
        local_sum = data_loss(logits, y) * samples if len(y) else logits.sum()
        totals = sum_over_processes(torch.stack([local_sum.detach(), samples]))
        local_term = world_size() * local_sum / totals[1]
        return totals[0] / totals[1] + local_term - local_term.detach()  # value of the mean, gradient of the term

    return loss


def data_parallel(model: nn.Module, *, unsynchronized: list[str]) -> nn.Module:
    """Return the model for training steps, with gradients summed over the processes.

    ``unsynchronized`` names parameters and buffers that each process keeps for itself. On CUDA, batch norm uses the
    statistics of whole batches (SyncBatchNorm). torch supports this only on CUDA. Elsewhere each process would use the
    statistics of its own samples, which changes the results, so UsageError is raised.
    """
    if world_size() == 1:
        return model
    from torch import nn

    device = next(model.parameters()).device
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if any(parameter.requires_grad for layer in norms for parameter in layer.parameters()):
        if device.type != "cuda":
            raise UsageError(
                "torchrun: batch norm needs the statistics of whole batches, which torch computes across processes "
                "only on CUDA; freeze it (trainer.trains), use a model without batch norm, or train in one process"
            )
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, unsynchronized)
    return nn.parallel.DistributedDataParallel(model)
