"""Tests of the network and the dataset: pytest test_mine.py."""

from __future__ import annotations

import torch
from mine_data import spirals
from mine_model import Network
from torch import nn


def test_one_step_of_training_lowers_the_loss() -> None:
    """The network maps samples (N, 2) to logits (N, 2), and a step of SGD with a small rate decreases their loss."""
    data = spirals(seed=0, count=100, noise=0.1)
    torch.manual_seed(0)
    model = Network(data.shape, data.outputs, width=8).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = data.normalize(data.train.x), data.train.y
    logits = model(x)
    assert logits.shape == (len(x), len(data.classes))
    loss = nn.functional.cross_entropy(logits, y)
    loss.backward()
    optimizer.step()
    assert nn.functional.cross_entropy(model(x), y) < loss
