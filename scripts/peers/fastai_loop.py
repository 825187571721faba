"""Train on MNIST with fastai: batches are gathered from tensors; no validation, progress bar or recorded metrics.

uv run --no-project --with fastai scripts/peers/fastai_loop.py --data-dir data
"""

from __future__ import annotations

from functools import partial

import peer
import torch.nn.functional as F
from fastai.callback.core import Callback, CancelValidException
from fastai.data.core import DataLoaders
from fastai.learner import Learner, Recorder
from fastai.optimizer import SGD
from fastai.torch_core import set_seed
from torch_networks import make_loader, make_network, predict


class Ticks(Callback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.clock = peer.Clock()

    def before_validate(self) -> None:
        raise CancelValidException

    def after_epoch(self) -> None:
        self.clock.epoch_ended()


def main() -> None:
    options = peer.parse_arguments(__doc__)
    data = peer.load(options.data_dir)
    set_seed(0)
    network = make_network(options.model)
    loader = make_loader(data.x, data.y)
    optimizer = partial(SGD, mom=peer.MOMENTUM)
    learner = Learner(DataLoaders(loader, loader), network, loss_func=F.cross_entropy, opt_func=optimizer)
    learner.remove_cb(Recorder)
    learner.fit(options.epochs + 1, lr=peer.LR[options.model], wd=0.0, cbs=[Ticks()])
    peer.finish(predict(network, data.x_val), data.y_val)


if __name__ == "__main__":
    main()
