"""Pictures changed at random for training, each by numbers of its own.

What happens to a picture is keyed by (seed, epoch, its place in the pool): not by the batch that it is in, the process
that does it, or what was drawn before. So a resumed run sees the same pictures, whatever the number of workers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from dlhw.errors import UsageError
from dlhw.runtime.randomness import key

if TYPE_CHECKING:
    from torchvision.transforms import v2

Probability = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class Augmentation:
    """Transforms of torchvision's ``transforms.v2``, in this order; see ``conf/augmentation/none.yaml``.

    Raises UsageError for values that do not go together.
    """

    crop_scale: tuple[Share, Share] | None
    crop_padding: Annotated[int, Field(ge=0)]
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
    workers: Annotated[int, Field(ge=0)] | None

    def __post_init__(self) -> None:
        if self.crop_scale is not None and self.crop_scale[0] > self.crop_scale[1]:
            raise UsageError(f"augmentation.crop_scale={list(self.crop_scale)}: the smaller share comes first")

    @property
    def changes_pictures(self) -> bool:
        """Whether anything happens to a picture by itself."""
        sizes = (self.crop_padding, self.flip, self.vertical_flip, self.rotation_degrees, self.erase)
        colours = (self.brightness, self.contrast, self.saturation, self.hue)
        return self.crop_scale is not None or any((*sizes, *colours))

    @property
    def mixes(self) -> bool:
        """Whether pictures of a batch are mixed, and their labels with them."""
        return bool(self.mixup or self.cutmix)

    def changed(self, x: Tensor, *, seed: int, epoch: int, row: int) -> Tensor:
        """A picture (C, H, W) uint8 as the run with ``seed`` sees it in an epoch."""
        torch.default_generator.manual_seed(key(seed, "augmentation", epoch, row))
        changed: Tensor = _transforms(self, tuple(x.shape[-2:]), x.shape[0])(x)
        return changed

    def mixed(self, x: Tensor, y: Tensor, *, classes: int, seed: int, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """A batch (B, C, H, W) of a float type and labels (B,), mixed: labels become shares of classes (B, classes)."""
        from torchvision.transforms import v2

        kinds = {v2.MixUp: self.mixup, v2.CutMix: self.cutmix}
        mixing = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds.items() if alpha]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key(seed, "mix", epoch, step))
            x, y = v2.RandomChoice(mixing)(x, y)
        return x, y.to(x.dtype)

    def processes(self, device: torch.device) -> int:
        """How many worker processes do it for training on this device."""
        if self.workers is not None:
            return self.workers
        return 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)


@lru_cache(maxsize=4)
def _transforms(augmentation: Augmentation, size: tuple[int, ...], channels: int) -> v2.Compose:
    from torchvision.transforms import v2

    own = augmentation
    jitter = (own.brightness, own.contrast, *((own.saturation, own.hue) if channels == 3 else ()))
    chosen = {
        v2.RandomResizedCrop(list(size), scale=own.crop_scale or (1, 1), antialias=True): own.crop_scale is not None,
        v2.RandomCrop(list(size), padding=own.crop_padding): own.crop_padding,
        v2.RandomHorizontalFlip(own.flip): own.flip,
        v2.RandomVerticalFlip(own.vertical_flip): own.vertical_flip,
        v2.RandomRotation(own.rotation_degrees, v2.InterpolationMode.BILINEAR): own.rotation_degrees,
        v2.ColorJitter(*jitter): any(jitter),
        v2.RandomErasing(own.erase): own.erase,
    }
    return v2.Compose([transform for transform, on in chosen.items() if on])
