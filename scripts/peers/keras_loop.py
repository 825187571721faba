"""Train on MNIST with Keras 3 on JAX: compile and fit on arrays in memory, with jit_compile.

uv run --no-project --with keras --with jax scripts/peers/keras_loop.py --data-dir data
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
import peer
from keras import layers


class Ticks(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.clock = peer.Clock()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.clock.epoch_ended()


def make_network(model: str) -> keras.Model:
    if model == "mlp":
        return keras.Sequential(
            [
                keras.Input((28, 28)),
                layers.Flatten(),
                layers.Dense(peer.HIDDEN, activation="relu"),
                layers.Dense(peer.CLASSES, dtype="float32"),
            ]
        )
    convolutions = []
    for channels in peer.CHANNELS:
        convolutions += [layers.Conv2D(channels, peer.KERNEL, padding="same", activation="relu"), layers.MaxPooling2D()]
    head = [layers.Flatten(), layers.Dense(peer.CLASSES, dtype="float32")]
    return keras.Sequential([keras.Input((28, 28, 1)), *convolutions, *head])


def main() -> None:
    options = peer.parse_arguments(__doc__, precisions=("fp32", "bf16"))
    data = peer.load(options.data_dir)
    keras.utils.set_random_seed(0)
    if options.precision == "bf16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    x, x_val = peer.standardized(data.x), peer.standardized(data.x_val)
    if options.model == "cnn":
        x, x_val = x[..., None], x_val[..., None]
    network = make_network(options.model)
    network.compile(
        optimizer=keras.optimizers.SGD(peer.LR[options.model], momentum=peer.MOMENTUM),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True,
    )
    network.fit(x, data.y, batch_size=peer.BATCH, epochs=options.epochs + 1, verbose=0, callbacks=[Ticks()])
    logits = network.predict(x_val, batch_size=1000, verbose=0)
    peer.finish(np.asarray(logits).argmax(1), data.y_val)


if __name__ == "__main__":
    main()
