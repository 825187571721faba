"""A classifier of pictures trained as torchvision's users do: what benchmark_pictures.py compares with.

    python scripts/reference_pictures.py FOLDER --model cnn --epochs 2

ImageFolder decodes and transforms every picture in every epoch, a DataLoader collects batches, the loop asks for each
batch's loss. After every epoch of training and validation a line of JSON with its results and the time on the machine's
monotonic clock is printed. It stands alone, without dlhw, so that its start is timed as a user's would be.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, models, transforms
from torchvision.transforms import v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Transform = Callable[[Any], Any]
AUGMENTATIONS: dict[str, list[Transform]] = {
    "flip": [v2.RandomHorizontalFlip()],
    "crop": [v2.RandomResizedCrop(224, scale=(0.25, 1)), v2.RandomHorizontalFlip()],
    "strong": [
        v2.RandomResizedCrop(224, scale=(0.25, 1)),
        v2.RandomHorizontalFlip(),
        v2.RandomRotation(15, v2.InterpolationMode.BILINEAR),
        v2.ColorJitter(0.3, 0.3, 0.3, 0.05),
        v2.RandomErasing(0.25),
    ],
}
"""What dlhw's options of these names do to pictures of 224 pixels."""


class Changed(Dataset[tuple[Tensor, int]]):
    """Decoded pictures (N, 3, H, W) and what a transform makes of them."""

    def __init__(self, pixels: Tensor, targets: list[int], transform: Transform) -> None:
        self.pixels, self.targets, self.transform = pixels, targets, transform

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.pixels[index]), self.targets[index]

    def __len__(self) -> int:
        return len(self.targets)


def loaded(data: Dataset[Any], *, batch_size: int, workers: int, shuffle: bool = True) -> DataLoader[Any]:
    """Batches of ``data``; the workers live on from epoch to epoch."""
    return DataLoader(data, batch_size=batch_size, shuffle=shuffle, num_workers=workers, persistent_workers=workers > 0)


def picture_cnn(classes: int, size: int) -> nn.Sequential:
    """Four convolutions with ReLU and pooling, then two dense layers."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    dense = [nn.Linear(128 * (size // 16) ** 2, 128), nn.ReLU(), nn.Linear(128, classes)]
    return nn.Sequential(*layers, nn.Flatten(), *dense)


def epoch_of(
    model: nn.Module, loader: DataLoader[Any], optimizer: torch.optim.Optimizer | None, device: torch.device
) -> tuple[float, float]:
    """Mean loss and accuracy over the loader's pictures; with an optimizer, the model is trained on each batch."""
    criterion = nn.CrossEntropyLoss()
    running_loss, right, seen = 0.0, 0, 0
    with torch.set_grad_enabled(optimizer is not None):
        for batch in loader:
            x, y = (tensor.to(device) for tensor in batch)
            logits = model(x)
            loss = criterion(logits, y)
            if optimizer is not None:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            running_loss += loss.item() * len(y)
            right += (logits.argmax(1) == y).sum().item()
            seen += len(y)
    return running_loss / seen, right / seen


def train(options: argparse.Namespace) -> None:
    """Train and validate, a line per epoch; without epochs validate alone."""
    device = torch.device(options.device)
    ending = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    cut = [transforms.Resize(options.resize), transforms.CenterCrop(options.crop)]
    flip = [transforms.RandomHorizontalFlip()] if options.flip else []
    pictures = {
        "train": datasets.ImageFolder(options.folder / "train", transforms.Compose([*cut, *flip, *ending])),
        "val": datasets.ImageFolder(options.folder / "val", transforms.Compose([*cut, *ending])),
    }
    counts = {part: len(found) for part, found in pictures.items()}
    loaders = {
        part: loaded(found, batch_size=options.batch_size, workers=options.workers, shuffle=part == "train")
        for part, found in pictures.items()
    }
    classes = len(pictures["train"].classes)
    if options.model == "cnn":
        model: nn.Module = picture_cnn(classes, options.crop)
    else:
        model = models.get_model(options.model, num_classes=classes)
    if options.weights is not None:
        model.load_state_dict(torch.load(options.weights, map_location="cpu", weights_only=True)["model"])
    if options.head_only:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith("fc.")
    model.to(device)
    chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(chosen, lr=options.lr, momentum=options.momentum)
    for epoch in range(1, options.epochs + 1) if options.epochs else [0]:
        row: dict[str, Any] = {"epoch": epoch, "step": epoch * len(loaders["train"]), **counts}
        if epoch:
            model.train(not options.head_only)  # the frozen part's batch norm keeps its statistics, as in dlhw
            row["train_loss"], row["train_accuracy"] = epoch_of(model, loaders["train"], optimizer, device)
        model.eval()
        row["val_loss"], row["val_accuracy"] = epoch_of(model, loaders["val"], None, device)
        print(json.dumps({"at": time.monotonic(), **row}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("folder", type=Path, help="has train and val, with a folder for each class in them")
    add("--model", default="resnet18", help="cnn, or torchvision's name for a network")
    add("--weights", type=Path, help='what it starts from: a file with {"model": state_dict}; unset: random ones')
    add("--head-only", action="store_true", help="train the layer fc alone")
    add("--epochs", type=int, default=2, help="0: only validation")
    add("--batch-size", type=int, default=32)
    add("--resize", type=int, default=256)
    add("--crop", type=int, default=224)
    add("--flip", action="store_true", help="exchange left and right at random in training")
    add("--lr", type=float, default=0.003)
    add("--momentum", type=float, default=0.9)
    add("--workers", type=int, default=0, help="processes that load pictures")
    add("--device", default="cpu")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
