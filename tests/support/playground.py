"""Small networks in the plane, with the files of a run that their pictures need."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlhw.data import playground as points
from dlhw.data.tensors import Dataset
from dlhw.models import dense
from dlhw.models.playground import playground
from dlhw.storage import checkpoint
from dlhw.storage.answer import Answer
from dlhw.storage.record import Record
from dlhw.training import probes
from dlhw.views import playground as views

OPTIONS = {"resolution": 20, "frames": 4, "animation_frames": 5, "page_epochs": 150}
BEST = 25


def make_data(kind: points.Kind = "gauss", *, count: int = 60) -> Dataset:
    return points.playground(
        data_dir="", seed=0, kind=kind, points=count, noise=10, train_ratio=50, validation_fraction=0.5
    )


def make_model(hidden: Sequence[int] = (3, 2), **options: Any) -> nn.Sequential:
    """Return a network with random weights that are not small."""
    given = {"features": "all", "activation": "Tanh", "output": "Tanh"} | options
    model = playground((2,), 1, hidden=list(hidden), **given).double()
    vary(model, seed=0)
    return model


def vary(model: nn.Module, *, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random, dtype=torch.float64))


def make_record(path: Path, model: nn.Module, data: Dataset, *, epochs: Sequence[int] = (0, 10, 20, 30)) -> Record:
    """Return a record whose stored networks have other weights than ``model``, those of its epoch as the seed."""
    path.mkdir(exist_ok=True)
    record = Record(path)
    record.rows = [
        {"epoch": epoch, "train_loss": 0.5 / epoch, "val_loss": 0.6 / epoch, "test_loss": 0.7 / epoch}
        for epoch in range(1, 31)
    ]
    checkpoint.save(path / "best.pt", {"epoch": BEST})
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for epoch in epochs:
        vary(model, seed=epoch + 1)
        record.probe(f"epoch_{epoch:04d}", probes.weights(model, data))
    model.load_state_dict(weights)
    return record


def report(path: Path, model: nn.Module, data: Dataset, *, epochs: Sequence[int] = (0, 10, 20, 30)) -> Answer:
    return views.playground(model, data, record=make_record(path, model, data, epochs=epochs), **OPTIONS)


def content_of(answer: Answer) -> Any:
    """Return the JSON of the page."""
    page = answer.files["playground.html"].decode()
    found = re.search(r'<script type="application/json" id="run">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def random_points(count: int = 50) -> Tensor:
    return 12 * torch.rand(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) - 6


def mlp(**options: Any) -> nn.Sequential:
    return dense.mlp((2,), 1, hidden=[3], activation="ReLU", **{"dropout": 0.0, "batch_norm": False} | options)
