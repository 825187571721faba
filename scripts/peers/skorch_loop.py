"""Train on MNIST with skorch: batches are gathered from arrays; no validation, metrics or printing.

uv run --no-project --with skorch scripts/peers/skorch_loop.py --data-dir data
"""

from __future__ import annotations

from typing import Any

import peer
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from torch import nn
from torch_networks import make_network, predict, random_batches


class Ticks(Callback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.clock = peer.Clock()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.clock.epoch_ended()


def main() -> None:
    options = peer.parse_arguments(__doc__)
    data = peer.load(options.data_dir)
    torch.manual_seed(0)
    classifier = NeuralNetClassifier(
        make_network(options.model),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        optimizer__momentum=peer.MOMENTUM,
        optimizer__fused=True,
        lr=peer.LR[options.model],
        max_epochs=options.epochs + 1,
        iterator_train__sampler=random_batches(len(data.y)),
        iterator_train__batch_size=None,
        train_split=None,
        callbacks=[Ticks()],
        callbacks__epoch_timer=None,
        callbacks__train_loss=None,
        callbacks__print_log=None,
    )
    classifier.fit(peer.standardized(data.x)[:, None], data.y)
    peer.finish(predict(classifier.module_, data.x_val), data.y_val)


if __name__ == "__main__":
    main()
