"""A small dataset of random pictures, classifiers for it, and the options of a report on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dlhw.data.normalization import Normalization
from dlhw.data.tensors import Dataset, Split
from dlhw.models.convolutional import cnn


def not_needed() -> nn.Module:
    """Fail, because only a report on filters needs the untrained model."""
    raise AssertionError


CLASSES = ("ant", "bee", "true_class")
OPTIONS: dict[str, Any] = {
    "untrained": not_needed,
    "mistakes": 4,
    "confidence_percent": 95.0,
    "saliency": "grad_cam",
    "views": 5,
    "filters": None,
    "evaluation_batch_size": 7,
}


def random_pictures(*, channels: int = 3, size: int | None = None) -> Dataset:
    """Return random 8x8 pictures in three classes: 16 for training, 12 for validation, 12 for test.

    ``size`` is the side of the network's inputs, if it is not 8.
    """
    pixels = torch.randint(0, 256, (40, channels, 8, 8), generator=torch.Generator().manual_seed(1))
    x, y = pixels.to(torch.uint8), torch.arange(40) % 3
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    train, val, test = (Split(x, y, rows) for rows in order.tensor_split([16, 28]))
    shape = (channels, 8, 8)
    normalize = Normalization.of_pixels([0.4] * channels, [0.2] * channels, largest=255, shape=shape, size=size)
    names = tuple(f"folder/{row}.jpg" for row in range(40))
    data = Dataset("random", train, val, test, normalize, CLASSES, "", names=names)
    return data.to("cpu", torch.float64)


def small_cnn(data: Dataset) -> nn.Sequential:
    torch.manual_seed(6)  # a seed that gives saliency maps other than zero for all classes
    options = {"channels": [4, 5], "kernel": 3, "activation": "ReLU", "dropout": 0.5, "batch_norm": True}
    return cnn(data.shape, len(data.classes), **options).double()


class FixedLogits(nn.Module):
    """A model with given logits for each validation picture, which it recognizes by the sum of its inputs."""

    def __init__(self, data: Dataset, logits: Tensor) -> None:
        super().__init__()
        self.logits = {data.normalize(x[None]).sum().item(): row for x, row in zip(data.val.x, logits, strict=True)}

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.logits[picture[None].sum().item()] for picture in x]) + 0 * x.sum()


def model_with_mistakes(data: Dataset, wrong: int) -> FixedLogits:
    """Return a model that misclassifies the first ``wrong`` validation pictures and is more confident of later ones."""
    logits = nn.functional.one_hot((data.val.y + (torch.arange(len(data.val)) < wrong)) % 3, 3).double()
    return FixedLogits(data, logits * (1 + 0.1 * torch.arange(len(data.val)))[:, None])
