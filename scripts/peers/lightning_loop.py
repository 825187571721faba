"""Train on MNIST with Lightning: batches are gathered from tensors; logger, checkpoints and progress are off.

uv run --no-project --with lightning scripts/peers/lightning_loop.py --data-dir data
"""

from __future__ import annotations

from typing import Any

import lightning
import peer
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch_networks import make_loader, make_network, predict


class Classifier(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self, network: nn.Module, *, lr: float) -> None:
        super().__init__()
        self.network, self.lr = network, lr

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.network(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=peer.MOMENTUM, fused=True)


class Ticks(Callback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.clock = peer.Clock()

    def on_train_epoch_end(self, *_: Any) -> None:
        self.clock.epoch_ended()


def main() -> None:
    options = peer.parse_arguments(__doc__, precisions=("fp32", "bf16"))
    data = peer.load(options.data_dir)
    lightning.seed_everything(0)
    network = make_network(options.model)
    trainer = lightning.Trainer(
        max_epochs=options.epochs + 1,
        accelerator="cpu",
        precision="bf16-mixed" if options.precision == "bf16" else "32-true",
        callbacks=[Ticks()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(network, lr=peer.LR[options.model]), make_loader(data.x, data.y))
    peer.finish(predict(network, data.x_val), data.y_val)


if __name__ == "__main__":
    main()
