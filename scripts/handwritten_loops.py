"""The training loops that ``benchmark_loop.py`` compares with: by hand, with a DataLoader, scikit-learn's.

A function returns the epoch of such a loop, which is called without arguments.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from dlhw.data.tensors import Split
from dlhw.runtime import devices

MEAN, STD = 0.1307, 0.3081  # of pixel / 255
BATCH, LR, MOMENTUM = 128, 0.1, 0.9

Epoch = Callable[[], object]


def by_hand(model: nn.Module, train: Split, *, precision: devices.Precision) -> Epoch:
    """Return a hand-written fast loop: data on the device, no synchronization within an epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, fused=True)

    def epoch() -> float:
        total = torch.zeros((), device=train.x.device)
        for batch in torch.randperm(len(train), device=train.x.device).split(BATCH):
            x = train.x[batch].float().sub_(255 * MEAN).div_(255 * STD)
            with precision.autocast():
                loss = F.cross_entropy(model(x), train.y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        return total.item()  # synchronizes with the device

    return epoch


def with_data_loader(model: nn.Module, data_dir: Path, *, workers: int, device: torch.device) -> Epoch:
    """Return the loop of tutorials: a DataLoader that transforms single images, and ``loss.item()`` in every step."""
    from torchvision import datasets, transforms

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])
    images = datasets.MNIST(data_dir, train=True, transform=transform)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(images, range(48_000)), batch_size=BATCH, shuffle=True, num_workers=workers
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)

    def epoch() -> float:
        running = 0.0
        for batch in loader:
            x, y = (tensor.to(device) for tensor in batch)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            running += loss.item()
        return running

    return epoch


def matrix_products(steps: int, *, dtype: torch.dtype, device: torch.device) -> Epoch:
    """Return only the five matrix products of a step of the 784-500-10 network.

    This is a lower bound for loops that use the same library.
    """
    sizes = {"x": (BATCH, 784), "w1": (500, 784), "h": (BATCH, 500), "w2": (10, 500), "logits": (BATCH, 10)}
    x, w1, h, w2, logits = (torch.randn(size, device=device, dtype=dtype) for size in sizes.values())
    dw1, dh, dw2 = torch.empty_like(w1), torch.empty_like(h), torch.empty_like(w2)

    def epoch() -> None:
        for _ in range(steps):
            torch.mm(x, w1.T, out=h)
            torch.mm(h, w2.T, out=logits)
            torch.mm(logits.T, h, out=dw2)
            torch.mm(logits, w2, out=dh)
            torch.mm(dh.T, x, out=dw1)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return epoch


def with_sklearn(train: Split) -> Epoch:
    """Return scikit-learn's MLPClassifier with the same network, one epoch per call."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    x = train.x.cpu().flatten(1).float().sub_(255 * MEAN).div_(255 * STD).numpy()
    y = train.y.cpu().numpy()
    options = {"learning_rate_init": LR, "momentum": MOMENTUM, "nesterovs_momentum": False, "alpha": 0}
    options |= {"batch_size": BATCH, "max_iter": 1, "warm_start": True}
    classifier = MLPClassifier((500,), solver="sgd", **options)

    def epoch() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(x, y)

    return epoch
