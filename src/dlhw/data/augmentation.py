"""Random augmentation of training pictures.

The randomness of a picture is keyed by (seed, epoch, its row in the pool), not by its batch, the process that computes
it, or earlier draws. So a resumed run sees the same pictures, with any number of workers.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from dlhw.errors import UsageError
from dlhw.runtime.randomness import key
from dlhw.runtime.threads import usable_cores

if TYPE_CHECKING:
    from torchvision.transforms import v2

Probability = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]

LONGEST_TEMPORARY_DIRECTORY = (103 if sys.platform == "darwin" else 107) - len("/pymp-12345678/listener-12345678")
"""Bytes of the path of the directory for sockets, whose own paths have at most 107 bytes on Linux, 103 on macOS."""


@dataclass(frozen=True)
class Augmentation:
    """Transforms of ``torchvision.transforms.v2``, in this order; ``conf/augmentation/none.yaml`` explains each one.

    Raises UsageError for values that contradict each other.
    """

    crop_scale: tuple[Share, Share] | None
    crop_padding: Annotated[int, Field(ge=0, le=10_000)]
    flip: Probability
    vertical_flip: Probability
    rotation_degrees: Annotated[float, Field(ge=0, le=180)]
    brightness: NonNegative
    contrast: NonNegative
    saturation: NonNegative
    hue: Annotated[float, Field(ge=0, le=0.5)]
    erase: Probability
    mixup: NonNegative
    cutmix: NonNegative
    workers: Annotated[int, Field(ge=0, le=256)] | None

    def __post_init__(self) -> None:
        if self.crop_scale is not None and self.crop_scale[0] > self.crop_scale[1]:
            raise UsageError(f"augmentation.crop_scale={list(self.crop_scale)}: must be [smallest, largest]")

    @property
    def changes_pictures(self) -> bool:
        """Whether single pictures are changed at random."""
        sizes = (self.crop_padding, self.flip, self.vertical_flip, self.rotation_degrees, self.erase)
        colours = (self.brightness, self.contrast, self.saturation, self.hue)
        return self.crop_scale is not None or any((*sizes, *colours))

    @property
    def mixes(self) -> bool:
        """Whether the pictures of a batch are mixed, and so are their labels."""
        return bool(self.mixup or self.cutmix)

    def augment(self, x: Tensor, *, seed: int, epoch: int, row: int) -> Tensor:
        """Augment the picture (C, H, W), uint8, at ``row`` of the pool. This seeds torch's default generator."""
        torch.default_generator.manual_seed(key(seed, "augmentation", epoch, row))
        augmented: Tensor = _transforms(self, tuple(x.shape[-2:]), x.shape[0])(x)
        return augmented

    def mix(self, x: Tensor, y: Tensor, *, classes: int, seed: int, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Mix a batch (B, C, H, W) of floats and its labels (B,), which become probabilities (B, classes)."""
        from torchvision.transforms import v2

        kinds = {v2.MixUp: self.mixup, v2.CutMix: self.cutmix}
        mixing = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds.items() if alpha]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key(seed, "mix", epoch, step))
            x, y = v2.RandomChoice(mixing)(x, y)
        return x, y.to(x.dtype)

    def processes(self, device: torch.device) -> int:
        """Return the number of worker processes for training on this device.

        Raise UsageError if the temporary directory's path is too long for their sockets: training would never begin.
        """
        automatic = 0 if device.type == "cpu" else min(8, usable_cores())
        workers = automatic if self.workers is None else self.workers
        length = len(os.fsencode(tempfile.gettempdir()))
        if workers and length > LONGEST_TEMPORARY_DIRECTORY and os.name != "nt":  # pipes of Windows are not files
            raise UsageError(
                f"augmentation.workers={workers}: the path of the temporary directory (TMPDIR) has {length} bytes, too "
                f"many for sockets between processes; use one with at most {LONGEST_TEMPORARY_DIRECTORY} bytes, or set "
                "augmentation.workers to 0"
            )
        return workers


@lru_cache(maxsize=4)
def _transforms(augmentation: Augmentation, size: tuple[int, ...], channels: int) -> v2.Compose:
    from torchvision.transforms import v2

    a = augmentation
    jitter = (a.brightness, a.contrast, *((a.saturation, a.hue) if channels == 3 else ()))
    enabled = {
        v2.RandomResizedCrop(list(size), scale=a.crop_scale or (1, 1), antialias=True): a.crop_scale is not None,
        v2.RandomCrop(list(size), padding=a.crop_padding): a.crop_padding,
        v2.RandomHorizontalFlip(a.flip): a.flip,
        v2.RandomVerticalFlip(a.vertical_flip): a.vertical_flip,
        v2.RandomRotation(a.rotation_degrees, v2.InterpolationMode.BILINEAR): a.rotation_degrees,
        v2.ColorJitter(*jitter): any(jitter),
        v2.RandomErasing(a.erase): a.erase,
    }
    return v2.Compose([transform for transform, is_enabled in enabled.items() if is_enabled])
