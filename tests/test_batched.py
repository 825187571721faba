"""Dense networks of an ensemble are computed without ``vmap`` and have the same bits."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from dlhw.models.dense import mlp
from dlhw.training import batched
from dlhw.training.acceleration import vectorizable


def dense(hidden: list[int], activation: str = "ReLU") -> nn.Sequential:
    return mlp((1, 4, 4), 10, hidden=hidden, activation=activation, dropout=0.0, batch_norm=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("activation", ["ReLU", "Tanh", "GELU"])
def test_forward_loss_and_gradients_equal_those_of_vmap(activation: str, shared: bool) -> None:
    torch.manual_seed(0)
    models = [dense([7, 5], activation) for _ in range(3)]
    state = {name: torch.stack([dict(m.named_parameters())[name].detach() for m in models]) for name in
             dict(models[0].named_parameters())}  # fmt: skip
    x, y = torch.rand(1 if shared else 3, 8, 1, 4, 4), torch.randint(10, (1 if shared else 3, 8))
    forward, loss = batched.forward(models[0]), batched.cross_entropy(nn.functional.cross_entropy)
    assert forward is not None
    assert loss is not None
    one = vmap(lambda s, x: functional_call(models[0], s, (x,)), in_dims=(0, None if shared else 0))
    one_loss = vmap(vectorizable(nn.functional.cross_entropy), in_dims=(0, None if shared else 0))

    leaves = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
    expected = one_loss(one(leaves, x[0] if shared else x), y[0] if shared else y)
    expected_gradients = torch.autograd.grad(expected.sum(), list(leaves.values()))
    result = loss(forward(leaves, x), y)
    assert torch.equal(result, expected)
    gradients = torch.autograd.grad(result.sum(), list(leaves.values()))
    assert all(map(torch.equal, gradients, expected_gradients))


def test_other_models_and_losses_are_left_to_vmap() -> None:
    for layer in (nn.BatchNorm1d(16), nn.Conv2d(1, 1, 3), nn.Flatten(0)):
        assert batched.forward(nn.Sequential(layer)) is None
    assert batched.cross_entropy(nn.functional.mse_loss) is None
    assert batched.cross_entropy(functools.partial(nn.functional.cross_entropy, label_smoothing=0.1)) is None


def test_layers_with_hooks_are_left_to_vmap() -> None:
    model = dense([7])
    model[1].register_forward_hook(lambda layer, inputs, output: 2 * output)
    assert batched.forward(model) is None
