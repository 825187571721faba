"""Networks and batches in PyTorch, for the frameworks that are built on it."""

from __future__ import annotations

import numpy as np
import peer
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset


def make_network(model: str) -> nn.Module:
    if model == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, peer.HIDDEN), nn.ReLU(), nn.Linear(peer.HIDDEN, peer.CLASSES))
    layers: list[nn.Module] = []
    for depth, channels in zip((1, *peer.CHANNELS), peer.CHANNELS, strict=False):
        layers += [nn.Conv2d(depth, channels, peer.KERNEL, padding="same"), nn.ReLU(), nn.MaxPool2d(2)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(49 * channels, peer.CLASSES))
    return network.to(memory_format=torch.channels_last)  # faster on CPUs


def random_batches(count: int) -> BatchSampler:
    """Return a sampler of whole batches of indices, so that a batch is one indexing operation."""
    return BatchSampler(RandomSampler(range(count)), peer.BATCH, drop_last=False)


def make_loader(x: NDArray[np.uint8], y: NDArray[np.int64]) -> DataLoader[tuple[Tensor, ...]]:
    """Return random batches of standardized pixels (N, 1, 28, 28) and labels, gathered from tensors in memory."""
    dataset = TensorDataset(torch.from_numpy(peer.standardized(x)).unsqueeze(1), torch.from_numpy(y))
    return DataLoader(dataset, sampler=random_batches(len(y)), batch_size=None)


def predict(network: nn.Module, x: NDArray[np.uint8]) -> NDArray[np.integer]:
    """Return the class of each image."""
    with torch.no_grad():
        logits = network(torch.from_numpy(peer.standardized(x)).unsqueeze(1))
    return np.asarray(logits.argmax(1))
