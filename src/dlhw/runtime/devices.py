"""The device and precision of a run, and the settings of torch for them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from dlhw.errors import UsageError
from dlhw.runtime import cgroups
from dlhw.runtime.options import DeviceName, PrecisionName
from dlhw.runtime.threads import default_threads

_DEFAULT_THREADS = default_threads(torch.get_num_threads())


def pick_device(name: DeviceName) -> torch.device:
    """Return the named device; ``auto`` means CUDA, else MPS, else CPU. Raise UsageError if it is not available."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, is_available in available.items() if is_available))
    if not available[name]:
        names = ", ".join(kind for kind, is_available in available.items() if is_available)
        raise UsageError(f"trainer.device={name}: not available; expected one of auto, {names}")
    return torch.device(name)


@dataclass(frozen=True)
class Precision:
    """The precision of a run: ``fp32``, ``tf32`` (matrix products on CUDA), ``bf16`` (autocast) or ``fp64``."""

    name: PrecisionName
    device: torch.device

    def __post_init__(self) -> None:
        if self.name == "tf32" and self.device.type != "cuda":
            raise UsageError(
                f"trainer.precision=tf32: needs CUDA, but the device is {self.device.type}; use fp32, or bf16 for speed"
            )
        if self.name == "fp64" and self.device.type == "mps":
            raise UsageError("trainer.precision=fp64: MPS has no float64; use trainer.device=cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of parameters and inputs; autocast only affects operations."""
        return torch.float64 if self.name == "fp64" else torch.float32

    def autocast(self) -> AbstractContextManager[Any]:
        if self.name == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()


def configure_torch(
    device: torch.device, precision: Precision, *, threads: int | None = None, deterministic: bool
) -> None:
    """Set all process-wide settings of torch that a run depends on."""
    use_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = precision.name == "tf32"
    torch.backends.cudnn.allow_tf32 = precision.name == "tf32"
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not deterministic
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        if deterministic:
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Restore at the end torch's random numbers and what :func:`configure_torch` sets."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    try:
        tf32 = matmul.allow_tf32, cudnn.allow_tf32
    except RuntimeError:  # the caller has set fp32_precision, which is newer
        tf32 = None
    benchmark = cudnn.benchmark
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            cudnn.benchmark = benchmark
            if tf32 is not None:
                matmul.allow_tf32, cudnn.allow_tf32 = tf32


def use_threads(threads: int | None = None) -> None:
    """Let torch use this number of CPU threads; None means its default, limited to the cores that it may use."""
    if torch.get_num_threads() != (threads or _DEFAULT_THREADS):
        torch.set_num_threads(threads or _DEFAULT_THREADS)


def free_memory(device: torch.device) -> int:
    """Return the free memory in bytes: of the GPU, or of the machine or container that the process runs in."""
    if device.type == "cuda":
        return (
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
    free = psutil.virtual_memory().available
    within_limit = cgroups.free_memory()
    return free if within_limit is None else min(free, within_limit)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
