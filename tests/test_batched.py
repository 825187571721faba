"""Dense networks of an ensemble are computed without ``vmap`` and have the same bits."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from dlhw.models.dense import mlp
from dlhw.training import batched


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
    forward, loss = batched.forward(models[0]), batched.loss(nn.functional.cross_entropy)
    assert forward is not None
    assert loss is not None
    one = vmap(lambda s, x: functional_call(models[0], s, (x,)), in_dims=(0, None if shared else 0))

    leaves = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
    expected = loss(one(leaves, x[0] if shared else x), y)
    expected_gradients = torch.autograd.grad(expected.sum(), list(leaves.values()))
    result = loss(forward(leaves, x), y)
    assert torch.equal(result, expected)
    gradients = torch.autograd.grad(result.sum(), list(leaves.values()))
    assert all(map(torch.equal, gradients, expected_gradients))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("largest", [1.0, 30.0, 1000.0])
def test_cross_entropy_equals_torchs(largest: float, smoothing: float, shared: bool) -> None:
    """Compared in float32, also if the loss is a small difference of large logits."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 50, 10, generator=generator)
    y = torch.randint(10, (1 if shared else 3, 50), generator=generator)
    logits.scatter_(2, y.expand(3, -1).unsqueeze(2), largest)
    loss = functools.partial(nn.functional.cross_entropy, label_smoothing=smoothing)
    ours = batched.loss(loss)
    assert ours is not None
    one_by_one = vmap(loss, in_dims=(0, None if shared else 0))
    (values, gradient), (expected, expected_gradient) = (
        (values, *torch.autograd.grad(values.sum(), x))
        for x, function in ((logits.clone().requires_grad_(), function) for function in (ours, None))
        for values in [one_by_one(x, y[0] if shared else y) if function is None else function(x, y)]
    )
    torch.testing.assert_close(values, expected, rtol=2e-6, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-9)


LINEAR = functools.partial(nn.Linear, 16, 16)


@pytest.mark.parametrize(
    "make_layers",
    [
        pytest.param(lambda: [nn.Flatten(), nn.BatchNorm1d(16)], id="batch norm"),
        pytest.param(lambda: [nn.Flatten(0), LINEAR()], id="flattens the batch"),
        pytest.param(lambda: [nn.Flatten(), LINEAR(), nn.Flatten()], id="flattens twice"),
        pytest.param(lambda: [LINEAR(), nn.Flatten()], id="flattens late"),
        pytest.param(lambda: [nn.Flatten(), LINEAR(), act := nn.Tanh(), LINEAR(), act], id="one activation twice"),
        pytest.param(lambda: [nn.Flatten(), one := LINEAR(), nn.Tanh(), one], id="shared weights"),
        pytest.param(list, id="no layers"),
    ],
)
def test_other_models_are_left_to_vmap(make_layers: Callable[[], list[nn.Module]]) -> None:
    assert batched.forward(nn.Sequential(*make_layers())) is None


def test_layers_with_hooks_are_left_to_vmap() -> None:
    model = dense([7])
    model[1].register_forward_hook(lambda layer, inputs, output: 2 * output)
    assert batched.forward(model) is None


@pytest.mark.parametrize("options", [{"ignore_index": 0}, {"weight": torch.ones(10)}, {"reduction": "sum"}])
def test_losses_with_other_options_are_left_to_vmap(options: dict[str, object]) -> None:
    assert batched.loss(functools.partial(nn.functional.cross_entropy, **options)) is None
    assert batched.loss(nn.functional.mse_loss) is None
