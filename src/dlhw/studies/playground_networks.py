"""Networks of the playground for several seeds and penalties, all of one structure trained at once (C1.3).

An ensemble has its networks in the order penalty, variant, seed. What distinguishes variants is up to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dlhw.data.playground import CLASSIFICATION, Kind, playground
from dlhw.errors import UsageError
from dlhw.models import dense
from dlhw.models.playground import FEATURES, FeatureName, Features
from dlhw.runtime.randomness import generator
from dlhw.training.init import uniform
from dlhw.training.objective import Objective, Regularization, half_mse, stacked
from dlhw.training.pruning import set_to_zero
from dlhw.training.variants import Ensemble

INITIAL = 0.5
"""Initial weights are from U(-0.5, 0.5), as on the page."""
Samples = tuple[Tensor, Tensor]
"""Values of the features (S, N, F) and targets (S, N) for S seeds."""


@dataclass(frozen=True)
class Task:
    """The samples of all seeds, and the settings that all networks share."""

    train: Samples
    test: Samples
    seeds: Sequence[int]
    penalties: Mapping[str, Regularization]
    layers: int
    """Hidden layers, which all have the same width."""
    activation: dense.ActivationName
    output: Literal["Tanh", "Identity"]
    lr: float
    batch_size: int

    def networks(self, width: int) -> list[nn.Module]:
        """Return untrained networks, one for each penalty and seed. Their weights depend only on the seed."""
        return [self._network(width, seed) for _ in self.penalties for seed in self.seeds]

    def _network(self, width: int, seed: int) -> nn.Module:
        features, hidden = self.train[0].shape[2], [width] * self.layers
        layers = dense.mlp((features,), 1, hidden=hidden, activation=self.activation, dropout=0.0, batch_norm=False)
        net = nn.Sequential(*layers, getattr(nn, self.output)())
        uniform(net, generator=generator(seed, "init"), d=INITIAL, bias=0.1)
        return net.to(self.train[0].dtype)

    def ensemble(self, networks: Sequence[nn.Module]) -> Ensemble:
        """Return copies of networks that are trained at once, by SGD with a constant learning rate."""
        optimizers = [torch.optim.SGD(net.parameters(), lr=self.lr) for net in networks]
        return Ensemble(networks, optimizers, [_constant] * len(networks))

    def fit(self, nets: Ensemble, *, epochs: int, pruned: Sequence[Tensor] = ()) -> None:
        """Train with mini-batches in fixed order. Hold the weights at 0 where the masks ``pruned`` are True."""
        strengths = self._strengths(nets.count)
        penalized = Objective(nets.vectorized(half_mse), strengths)
        samples, targets = self._for_all(self.train, nets.count)
        for _ in range(epochs):
            for x, y in zip(samples.split(self.batch_size, 1), targets.split(self.batch_size, 1), strict=True):
                nets.zero_grad()
                outputs = nets(x).squeeze(-1)
                objective, _, _ = penalized(outputs, y, nets.weights)
                objective.sum().backward()
                nets.step(l1=strengths.l1_truncated)
                if pruned:
                    set_to_zero(nets.weights(), pruned)

    @torch.no_grad()
    def test_losses(self, nets: Ensemble) -> Tensor:
        """Return the test loss of each network, (penalties, variants, S). Raise UsageError if one diverged."""
        x, y = self._for_all(self.test, nets.count)
        losses = half_mse(nets(x).squeeze(-1), y)
        if diverged := int((~losses.isfinite()).sum()):
            raise UsageError(f"study.lr={self.lr:g}: {diverged} of {nets.count} networks diverged; use a smaller one")
        return losses.view(len(self.penalties), -1, len(self.seeds))

    def _for_all(self, samples: Samples, count: int) -> Samples:
        times = count // len(self.seeds)
        return samples[0].repeat(times, 1, 1), samples[1].repeat(times, 1)

    def _strengths(self, count: int) -> Regularization:
        times = count // len(self.penalties)
        return stacked([strength for strength in self.penalties.values() for _ in range(times)], self.train[0])


def _constant(epoch: float) -> float:
    return 1.0


def draw(
    seeds: Sequence[int],
    *,
    kind: Kind,
    points: int | None,
    noise: float,
    train_ratio: float,
    features: list[FeatureName] | Literal["all"],
    dtype: torch.dtype = torch.float32,
) -> tuple[Samples, Samples]:
    """Return the samples for training and, from all other points, those for testing. The seed decides which are which.

    Nothing is selected, so no points are needed for validation. Raise UsageError for duplicate features.
    """
    names = list(FEATURES) if features == "all" else features
    if len(set(names)) < len(names):
        raise UsageError(f"study.features={features}: must not contain duplicates")
    inputs = Features(names)
    parts: tuple[list[Samples], list[Samples]] = [], []
    for seed in seeds:
        data = playground(
            data_dir="",
            seed=seed,
            kind=kind,
            points=points,
            noise=noise,
            train_ratio=train_ratio,
            validation_fraction=0.5,
        )
        assert data.test is not None
        parts[0].append((inputs(data.train.x), data.train.y))
        parts[1].append((inputs(torch.cat([data.val.x, data.test.x])), torch.cat([data.val.y, data.test.y])))
    train, test = (
        (torch.stack([x for x, _ in part]).to(dtype), torch.stack([y for _, y in part]).to(dtype)) for part in parts
    )
    return train, test


def output_for(kind: Kind) -> Literal["Tanh", "Identity"]:
    """Return the activation of the output: tanh for classes -1 and +1, none for regression."""
    return "Tanh" if kind in CLASSIFICATION else "Identity"
