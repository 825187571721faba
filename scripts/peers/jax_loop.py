"""Train on MNIST with JAX: a jitted scan over the batches of an epoch, or a jitted step for the CNN.

uv run --no-project --with jax scripts/peers/jax_loop.py --data-dir data
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peer
from jax import Array, lax

Parameters = dict[str, Array]
State = tuple[Parameters, Parameters]  # weights and velocity


def uniform(key: Array, shape: tuple[int, ...], fan_in: int) -> Array:
    """Draw initial weights as PyTorch does."""
    return jax.random.uniform(key, shape, minval=-1 / math.sqrt(fan_in), maxval=1 / math.sqrt(fan_in))


def make_parameters(model: str, key: Array) -> Parameters:
    keys = iter(jax.random.split(key, 6))
    sizes: dict[str, tuple[int, ...]]
    if model == "mlp":
        sizes = {"1": (peer.HIDDEN, 784), "2": (peer.CLASSES, peer.HIDDEN)}
    else:
        one, two = peer.CHANNELS
        kernel = (peer.KERNEL, peer.KERNEL)
        sizes = {"1": (one, *kernel, 1), "2": (two, *kernel, one), "3": (peer.CLASSES, 49 * two)}
    parameters = {}
    for layer, shape in sizes.items():
        fan_in = math.prod(shape[1:])
        parameters[f"weight{layer}"] = uniform(next(keys), shape, fan_in)
        parameters[f"bias{layer}"] = uniform(next(keys), shape[:1], fan_in)
    return parameters


def mlp(p: Parameters, x: Array) -> Array:
    hidden = jax.nn.relu(x.reshape(len(x), -1) @ p["weight1"].T + p["bias1"])
    return hidden @ p["weight2"].T + p["bias2"]


def cnn(p: Parameters, x: Array) -> Array:
    x = x[..., None]
    for layer in "12":
        x = lax.conv_general_dilated(x, p[f"weight{layer}"], (1, 1), "SAME", dimension_numbers=("NHWC", "OHWI", "NHWC"))
        x = max_pool(jax.nn.relu(x + p[f"bias{layer}"]))
    return x.reshape(len(x), -1) @ p["weight3"].T + p["bias3"]


def max_pool(x: Array) -> Array:
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))


NETWORKS = {"mlp": mlp, "cnn": cnn}


def logits(parameters: Parameters, pixels: Array, *, model: str, dtype: Any) -> Array:
    x = (pixels.astype(jnp.float32) / 255 - peer.MEAN) / peer.STD
    parameters = {name: value.astype(dtype) for name, value in parameters.items()}
    return NETWORKS[model](parameters, x.astype(dtype)).astype(jnp.float32)


def main() -> None:
    options = peer.parse_arguments(__doc__, precisions=("fp32", "bf16"))
    data = peer.load(options.data_dir)
    dtype = jnp.bfloat16 if options.precision == "bf16" else jnp.float32
    network = partial(logits, model=options.model, dtype=dtype)

    def loss(parameters: Parameters, x: Array, y: Array) -> Array:
        log_probabilities = jax.nn.log_softmax(network(parameters, x))
        return -jnp.mean(jnp.take_along_axis(log_probabilities, y[:, None], axis=1))

    def step(state: State, batch: Array, x: Array, y: Array) -> tuple[State, Array]:
        parameters, velocity = state
        value, gradient = jax.value_and_grad(loss)(parameters, x[batch], y[batch])
        velocity = jax.tree.map(lambda v, g: peer.MOMENTUM * v + g, velocity, gradient)
        parameters = jax.tree.map(lambda p, v: p - peer.LR[options.model] * v, parameters, velocity)
        return (parameters, velocity), value

    @partial(jax.jit, donate_argnums=0)
    def scan_epoch(state: State, batches: Array, x: Array, y: Array) -> tuple[State, Array]:
        return lax.scan(lambda state, batch: step(state, batch, x, y), state, batches)  # type: ignore[no-any-return]

    jitted_step = jax.jit(step, donate_argnums=0)

    def loop_epoch(state: State, batches: Array, x: Array, y: Array) -> tuple[State, list[Array]]:
        losses = []
        for batch in batches:
            state, value = jitted_step(state, batch, x, y)
            losses.append(value)
        return state, losses

    epoch = scan_epoch if options.model == "mlp" else loop_epoch  # on CPUs, convolutions in a scan are very slow
    x, y = jnp.asarray(data.x), jnp.asarray(data.y)
    parameters = make_parameters(options.model, jax.random.key(0))
    state = parameters, jax.tree.map(jnp.zeros_like, parameters)
    generator = np.random.default_rng(0)
    clock = peer.Clock()
    for _ in range(options.epochs + 1):
        order = generator.permutation(len(x)).astype(np.int32)  # faster than jax.random.permutation on CPUs
        state, _ = jax.block_until_ready(epoch(state, order.reshape(-1, peer.BATCH), x, y))
        clock.epoch_ended()
    parameters, _ = state
    peer.finish(np.asarray(network(parameters, jnp.asarray(data.x_val)).argmax(1)), data.y_val)


if __name__ == "__main__":
    main()
