"""Train a picture classifier in the usual way of torchvision, as the reference for benchmark_pictures.py.

    python scripts/reference_pictures.py FOLDER --model cnn --epochs 2

ImageFolder decodes and transforms every picture in every epoch, a DataLoader collects batches, and the loop reads the
loss of every batch. After every epoch of training and validation the script prints a line of JSON with the results and
the time on the monotonic clock. It does not import dlhw, so that its start-up time is realistic.
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
"""The same augmentations as dlhw's options of these names, for pictures of 224 pixels."""


class Transformed(Dataset[tuple[Tensor, int]]):
    """Decoded pictures (N, 3, H, W), transformed on access."""

    def __init__(self, pixels: Tensor, targets: list[int], transform: Transform) -> None:
        self.pixels, self.targets, self.transform = pixels, targets, transform

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.pixels[index]), self.targets[index]

    def __len__(self) -> int:
        return len(self.targets)


def make_loader(data: Dataset[Any], *, batch_size: int, workers: int, shuffle: bool = True) -> DataLoader[Any]:
    """Return a DataLoader with persistent workers."""
    return DataLoader(data, batch_size=batch_size, shuffle=shuffle, num_workers=workers, persistent_workers=workers > 0)


def picture_cnn(classes: int, size: int) -> nn.Sequential:
    """Four convolutions with ReLU and pooling, then two dense layers."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    dense = [nn.Linear(128 * (size // 16) ** 2, 128), nn.ReLU(), nn.Linear(128, classes)]
    return nn.Sequential(*layers, nn.Flatten(), *dense)


def run_epoch(
    model: nn.Module, loader: DataLoader[Any], optimizer: torch.optim.Optimizer | None, device: torch.device
) -> tuple[float, float]:
    """Return mean loss and accuracy over the loader's pictures. With an optimizer, train the model on each batch."""
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
    """Train and validate, printing a line per epoch. With 0 epochs, only validate."""
    device = torch.device(options.device)
    to_tensor = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    resize = [transforms.Resize(options.resize), transforms.CenterCrop(options.crop)]
    flip = [transforms.RandomHorizontalFlip()] if options.flip else []
    pictures = {
        "train": datasets.ImageFolder(options.folder / "train", transforms.Compose([*resize, *flip, *to_tensor])),
        "val": datasets.ImageFolder(options.folder / "val", transforms.Compose([*resize, *to_tensor])),
    }
    counts = {part: len(dataset) for part, dataset in pictures.items()}
    loaders = {
        part: make_loader(dataset, batch_size=options.batch_size, workers=options.workers, shuffle=part == "train")
        for part, dataset in pictures.items()
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
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=options.lr, momentum=options.momentum)
    for epoch in range(1, options.epochs + 1) if options.epochs else [0]:
        row: dict[str, Any] = {"epoch": epoch, "step": epoch * len(loaders["train"]), **counts}
        if epoch:
            model.train(not options.head_only)  # the batch norm of a frozen part keeps its statistics, as in dlhw
            row["train_loss"], row["train_accuracy"] = run_epoch(model, loaders["train"], optimizer, device)
        model.eval()
        row["val_loss"], row["val_accuracy"] = run_epoch(model, loaders["val"], None, device)
        print(json.dumps({"at": time.monotonic(), **row}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("folder", type=Path, help="folder with train/CLASS/ and val/CLASS/")
    add("--model", default="resnet18", help="cnn, or the name of a torchvision model")
    add("--weights", type=Path, help='initial weights, a file with {"model": state_dict}; default: random')
    add("--head-only", action="store_true", help="train only the layer fc")
    add("--epochs", type=int, default=2, help="0: only validate")
    add("--batch-size", type=int, default=32)
    add("--resize", type=int, default=256)
    add("--crop", type=int, default=224)
    add("--flip", action="store_true", help="random horizontal flips in training")
    add("--lr", type=float, default=0.003)
    add("--momentum", type=float, default=0.9)
    add("--workers", type=int, default=0, help="processes of the DataLoader")
    add("--device", default="cpu")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
