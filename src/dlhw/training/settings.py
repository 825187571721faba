"""The trainer's settings, the keys of ``conf/trainer/default.yaml``: duration, evaluation, fine-tuning, execution."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dlhw.runtime.options import Count, DeviceName, NonNegative, Positive, PrecisionName, SampleOrder

Trains = Literal["all", "head"] | list[str]


@dataclass(frozen=True, kw_only=True)
class Duration:
    """How long to train."""

    epochs: Count = 20
    """Number of epochs."""
    batch_size: Count = 128
    """Samples per training batch."""
    order: SampleOrder = "shuffled"
    """``shuffled``: a new random order of the samples each epoch; ``fixed``: the order of the dataset."""
    steps_per_epoch: Count | None = None
    """Batches per epoch, from a new random order of the samples each epoch; None: an epoch uses every sample once. Not
    for ``order="fixed"``."""
    patience: Count | None = None
    """Stop after this many epochs without a better ``monitor``; None: never stop early."""
    clip_norm: Positive | None = None
    """Scale gradients with a larger L2 norm down to this norm; None: do not clip."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Which metrics are measured, and when."""

    train_metrics: Literal["running", "evaluated"] = "running"
    """``running``: means over the batches of the epoch; ``evaluated``: the whole training set after each epoch."""
    evaluation_batch_size: Count = 1000
    """Samples per evaluation batch. Affects speed, memory and the rounding of sums only."""
    monitor: Literal["val_loss", "val_error_percent", "val_mse"] = "val_error_percent"
    """The metric that selects the best epoch; the smallest value is the best."""
    probe_every_epochs: Count | None = None
    """Epochs between probes; None: probe before and after training only."""
    checkpoint_seconds: NonNegative = 2.0
    """Minimum time between two writes of ``last.pt``."""


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Which parameters train, and at which learning rates."""

    trains: Trains = "all"
    """``all``, ``head`` (the last layer), or patterns of parameter names such as ``layer4.*``."""
    rates: dict[str, NonNegative] = field(default_factory=dict)
    """Factors on the learning rate by pattern of parameter names."""
    frozen_once: bool = True
    """Compute the features of the frozen part once instead of in every epoch."""
    frozen_views: Count | None = None
    """With augmentation: compute the features of this many views of each picture and use them in turn."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where and how the same computation runs."""

    device: DeviceName = "auto"
    """``auto`` selects CUDA, else MPS, else the CPU."""
    precision: PrecisionName = "fp32"
    """Number format of matrix products and convolutions."""
    threads: Count | None = None
    """CPU threads; None: the number in OMP_NUM_THREADS or MKL_NUM_THREADS, or else torch's default, but at most the
    cores that the process may use."""
    compile: bool = False
    """Compile the forward and backward pass with torch.compile."""
    cuda_graphs: bool = False
    """Record the training step as one CUDA graph and replay it."""
    channels_last: bool = False
    """Use the channels-last memory layout for convolutions."""
    deterministic: bool = True
    """Use repeatable CUDA kernels where torch has them."""


@dataclass(frozen=True, kw_only=True)
class Trainer(Execution, FineTuning, Evaluation, Duration):
    """All settings of the trainer as one set of keyword arguments, in the order of the config file."""
