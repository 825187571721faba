"""Read what the pictures show: the points, the losses, and the networks at the epochs that probe=weights has stored."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dlhw.data.tensors import Dataset
from dlhw.storage import checkpoint
from dlhw.storage.record import Record
from dlhw.storage.stored import RESTORE, Unreadable, read_table
from dlhw.views.playground.networks import Network

LOSSES = {"train": "train_loss", "validation": "val_loss", "test": "test_loss"}
LARGEST_DRAWN = 1e290
"""The limits of an axis must be finite."""
MOST_POINTS = 1000
"""Points of a part that are drawn."""
MOST_WEIGHTS = 300_000
"""Weights that are read, in all snapshots together: 3 MB of the page."""
_FILE = re.compile(r"epoch_(\d+)\.csv")
_COLUMNS = {"layer", "unit", "source", "weight"}


@dataclass(frozen=True, eq=False)
class Points:
    """Samples of a part: the inputs of the network (n, 2) and their targets (n,), float64 on the CPU."""

    part: str
    inputs: Tensor
    targets: Tensor
    total: int
    """How many samples the part has; only the first ones are drawn."""

    @property
    def label(self) -> str:
        """The entry of a legend."""
        shown = len(self.targets)
        return f"{self.part} ({shown:,} of {self.total:,})" if shown < self.total else f"{self.part} points"


@dataclass(frozen=True, eq=False)
class Training:
    """What is known about a run, apart from its networks."""

    name: str
    """Of the data set."""
    points: tuple[Points, ...]
    """Those of the training part, and of the test part if there is one."""
    rows: Sequence[Mapping[str, float]]
    """The metrics of each epoch."""
    best_epoch: int | None

    @classmethod
    def of(cls, data: Dataset, record: Record) -> Training:
        """Return the points of a dataset and the metrics of a run."""
        points = []
        for part, split in (("training", data.train), ("test", data.test)):
            if split is not None:
                x, y = split[:MOST_POINTS]
                points.append(Points(part, data.normalize(x).double().cpu(), y.double().cpu(), len(split)))
        path = record.path / "best.pt"
        best = int(checkpoint.load(path)["epoch"]) if path.exists() else None
        return cls(data.name, tuple(points), record.rows, best)

    def losses(self, epoch: int | None) -> dict[str, float]:
        """Return the losses of an epoch by part, those that can be drawn."""
        row: Mapping[str, float] = next((row for row in self.rows if row["epoch"] == epoch), {})
        values = {part: float(row.get(column, math.nan)) for part, column in LOSSES.items()}
        return {part: value for part, value in values.items() if abs(value) < LARGEST_DRAWN}

    def curve(self, part: str) -> tuple[list[float], list[float]]:
        """Return epochs and losses of a part, those that can be drawn."""
        pairs = [(row["epoch"], row.get(LOSSES[part], math.nan)) for row in self.rows]
        finite = [(epoch, loss) for epoch, loss in pairs if abs(loss) < LARGEST_DRAWN]
        return [epoch for epoch, _ in finite], [loss for _, loss in finite]


def evenly(count: int, most: int) -> list[int]:
    """Return at most ``most`` of the numbers 0 ... count - 1, evenly spaced, with the first and the last."""
    most = max(2, most)
    return list(range(count)) if count <= most else [round(i * (count - 1) / (most - 1)) for i in range(most)]


def dense_at_first(count: int, most: int) -> list[int]:
    """Return at most ``most`` of the numbers 0 ... count - 1, the first and the last, with growing distances."""
    most = max(2, most)
    if count <= most:
        return list(range(count))
    chosen = [0]
    for i in range(most - 1):
        geometric = round((count - 1) ** (i / max(1, most - 2)))
        chosen.append(min(max(chosen[-1] + 1, geometric), count - most + 1 + i))
    return chosen if most > 2 else [0, count - 1]


def stored_epochs(directory: Path) -> list[int]:
    """Return the epochs of the tables that a probe has written into the folder ``probes``, in ascending order."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := _FILE.fullmatch(name)))


def read_networks(directory: Path, network: Network, *, most: int) -> tuple[dict[int, Network], list[str]]:
    """Read the networks of the stored epochs, thinned to ``most``. Return them, and messages about damaged files.

    ``network`` is the trained one. Fewer epochs are read if it is large.
    """
    epochs = stored_epochs(directory)
    networks, messages = {}, []
    for i in evenly(len(epochs), min(most, MOST_WEIGHTS // network.size)):
        path = directory / f"epoch_{epochs[i]:04d}.csv"
        try:
            networks[epochs[i]] = read_network(path, network)
        except Unreadable as error:
            messages.append(f"not drawn: {error}")
    return networks, messages


def read_network(path: Path, network: Network) -> Network:
    """Return ``network`` with the weights of a table of probe=weights. Raise Unreadable if it is another network's."""
    rows = read_table(path)
    if not rows or not rows[0].keys() >= _COLUMNS:
        raise Unreadable(path, f"no table of weights, with the columns {', '.join(sorted(_COLUMNS))}", RESTORE)
    weights = [torch.full_like(weight, math.nan) for weight in network.weights]
    biases = [torch.zeros_like(bias) for bias in network.biases]
    missing = {
        (layer, unit, source)
        for layer, weight in enumerate(weights)
        for unit in range(len(weight))
        for source in ("bias", *map(str, range(weight.shape[1])))
    }
    for number, row in enumerate(rows, 2):
        try:
            layer, unit, source = int(row["layer"]) - 1, int(row["unit"]), row["source"]
            missing.remove((layer, unit, source))
            value = float(row["weight"] or "nan")  # a value that is not a number is an empty cell
        except (ValueError, LookupError) as error:
            reason = f"row {number} is not a weight of this network, or is repeated"
            raise Unreadable(path, reason, RESTORE) from error
        if source == "bias":
            biases[layer][unit] = value
        else:
            weights[layer][unit, int(source)] = value
    if any(source != "bias" for _, _, source in missing):  # a layer may have no biases
        raise Unreadable(path, "weights of this network are missing", RESTORE)
    return replace(network, weights=tuple(weights), biases=tuple(biases))
