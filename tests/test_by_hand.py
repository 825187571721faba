"""Layers with hand-written derivatives: outputs equal those of torch's layers, and gradients equal autograd's."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from dlhw.models import by_hand
from dlhw.models.by_hand import ByHand, Layer
from dlhw.storage.record import Record
from dlhw.train import run
from support.composing import compose

EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
F = nn.functional
LAYERS: dict[str, tuple[Layer, Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "dense": (by_hand.DENSE, F.linear, [(6, 4), (3, 4), (3,)]),
    "elu": (by_hand.ELU, F.elu, [(6, 50)]),
    "relu": (by_hand.RELU, F.relu, [(6, 50)]),
    "tanh": (by_hand.TANH, torch.tanh, [(6, 50)]),
    "sigmoid": (by_hand.SIGMOID, torch.sigmoid, [(6, 50)]),
    "flatten": (by_hand.FLATTEN, lambda x: x.flatten(1), [(2, 3, 4, 5)]),
    "pooling 2": (by_hand.max_pooling(2), lambda x: F.max_pool2d(x, 2), [(2, 3, 4, 6)]),
    "pooling 2, rows left over": (by_hand.max_pooling(2), lambda x: F.max_pool2d(x, 2), [(2, 3, 5, 7)]),
    "pooling 3": (by_hand.max_pooling(3), lambda x: F.max_pool2d(x, 3), [(2, 1, 7, 9)]),
} | {
    f"convolution {kernel}, padding {padding}": (
        by_hand.convolution(padding),
        lambda *args, padding=padding: F.conv2d(*args, padding=padding),
        [(2, 3, 6, 7), (4, 3, kernel, kernel), (4,)],
    )
    for kernel, padding in ((1, 0), (3, 0), (3, 1), (3, 2), (5, 2), (4, 1))
}


def random_tensors(shapes: list[tuple[int, ...]], seed: int = 0) -> list[Tensor]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=source, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("name", LAYERS)
def test_layers_and_their_derivatives_equal_torchs(name: str) -> None:
    layer, torch_layer, shapes = LAYERS[name]
    x, *weights = random_tensors(shapes)
    y = torch_layer(x, *weights)
    torch.testing.assert_close(layer.forward(x, *weights), y, **EXACT)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.autograd.grad(y, [x, *weights], dy)
    gradients = layer.backward(dy, x.detach(), y.detach(), *(weight.detach() for weight in weights))
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_gradient_of_max_pooling_goes_to_the_first_of_equal_values() -> None:
    x = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    pooling = by_hand.max_pooling(2)
    (dx,) = pooling.backward(torch.ones(1, 1, 1, 1).double(), x, pooling.forward(x))
    assert dx.flatten().tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("activation", [by_hand.RELU, by_hand.ELU], ids=["relu", "elu"])
def test_derivatives_at_zero_equal_torchs(activation: Layer) -> None:
    zero = torch.zeros(1, requires_grad=True)
    torch_activation = F.relu if activation is by_hand.RELU else F.elu
    (expected,) = torch.autograd.grad(torch_activation(zero), zero)
    (slope,) = activation.backward(torch.ones(1), zero.detach(), activation.forward(zero.detach()))
    assert slope.item() == expected.item()


def test_large_inputs_do_not_overflow_or_lose_digits() -> None:
    x = torch.tensor([-1e4, -800.0, 800.0, 1e4], dtype=torch.float64)
    (slope,) = by_hand.ELU.backward(torch.ones(1).double(), x[:1] / 500, by_hand.ELU.forward(x[:1] / 500))
    assert slope.item() == pytest.approx(math.exp(-20), rel=1e-15)
    for layer in (by_hand.SIGMOID, by_hand.ELU, by_hand.TANH):
        y = layer.forward(x)
        (slope,) = layer.backward(torch.ones_like(x), x, y)
        assert torch.isfinite(y).all()
        assert torch.isfinite(slope).all()
    logits = torch.tensor([[1e4, 0.0, -1e4]], dtype=torch.float64)
    assert by_hand.cross_entropy_forward(logits, torch.tensor([1])).item() == 1e4
    assert by_hand.cross_entropy_backward(logits, torch.tensor([1])).tolist() == [[1.0, -1.0, 0.0]]


def test_cross_entropy_and_softmax_equal_torchs() -> None:
    (logits,) = random_tensors([(7, 4)])
    y = torch.arange(7) % 4
    expected = F.cross_entropy(logits, y)
    loss = by_hand.cross_entropy_by_hand(logits, y)
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, logits), torch.autograd.grad(3 * expected, logits))
    torch.testing.assert_close(by_hand.softmax(logits), logits.softmax(1), **EXACT)


def networks() -> dict[str, tuple[ByHand, tuple[int, ...]]]:
    torch.manual_seed(0)
    shape = (2, 9, 11)
    nets = {}
    for activation in ("ELU", "ReLU", "Tanh", "Sigmoid"):
        nets[f"mlp {activation}"] = by_hand.mlp_by_hand(shape, 5, hidden=[7, 6], activation=activation), shape  # type: ignore[arg-type]
        cnn = by_hand.cnn_by_hand(shape, 5, channels=[3, 4], kernel=3, activation=activation)  # type: ignore[arg-type]
        nets[f"cnn {activation}"] = cnn, shape
    return nets


@pytest.mark.parametrize("name", networks())
def test_gradients_of_networks_equal_autograds(name: str) -> None:
    net, shape = networks()[name]
    net = net.double()
    (x,) = random_tensors([(4, *shape)])
    y = torch.tensor([0, 1, 4, 4])
    leaves = [x, *net.parameters()]
    gradients = torch.autograd.grad(by_hand.cross_entropy_by_hand(net(x), y), leaves)
    expected = torch.autograd.grad(F.cross_entropy(net.net(x), y), leaves)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_a_network_is_one_function_in_the_autograd_graph() -> None:
    net, shape = networks()["cnn ReLU"]
    logits = net(torch.zeros(1, *shape))
    assert type(logits.grad_fn).__name__ == "_NetworkBackward"
    functions = [function for function, _ in logits.grad_fn.next_functions if function is not None]
    assert {type(function).__name__ for function in functions} == {"AccumulateGrad"}
    (first,) = torch.autograd.grad(logits.square().sum(), net.net[0].weight, create_graph=True)
    with pytest.raises(RuntimeError, match=r"does not require grad|once_differentiable"):  # not a wrong number
        first.sum().backward()


def test_gradients_under_vmap_equal_those_of_single_networks() -> None:
    nets = [by_hand.cnn_by_hand((1, 8, 8), 3, channels=[2], kernel=3, activation="ReLU").double() for _ in range(3)]
    stacked, _ = stack_module_state(list(nets))
    (x,) = random_tensors([(3, 5, 1, 8, 8)])
    y = torch.arange(15).view(3, 5) % 3
    losses = vmap(lambda state, x, y: by_hand.cross_entropy_by_hand(functional_call(nets[0], state, (x,)), y))(
        stacked, x, y
    )
    losses.sum().backward()
    for k, net in enumerate(nets):
        loss = F.cross_entropy(net.net(x[k]), y[k])
        loss.backward()
        assert losses[k].item() == pytest.approx(loss.item(), abs=1e-12)
        for name, parameter in net.named_parameters():
            assert stacked[name].grad is not None
            torch.testing.assert_close(stacked[name].grad[k], parameter.grad, **EXACT)


@pytest.mark.parametrize(
    ("model", "torch_model"),
    [
        ("model=mlp_by_hand model.hidden=[20,10]", "model=mlp model.hidden=[20,10] model.activation=ELU"),
        ("model=cnn_by_hand model.channels=[4]", "model=cnn model.channels=[4]"),
    ],
    ids=["mlp", "cnn"],
)
@pytest.mark.parametrize(
    ("optimizer", "torch_optimizer"),
    [
        ("sgd_by_hand", "optimizer=sgd"),
        ("momentum_by_hand", "optimizer=momentum"),
        ("nesterov_by_hand", "optimizer=nesterov"),
    ],
)
def test_a_run_with_hand_written_gradients_equals_a_run_with_autograd(
    model: str, torch_model: str, optimizer: str, torch_optimizer: str, tmp_path: Path
) -> None:
    shared = ["trainer.precision=fp64", "trainer.epochs=2", "trainer.device=cpu", "optimizer.lr=0.05"]
    rows = []
    for name, lines in (
        ("by_hand", [*model.split(), f"optimizer={optimizer}", "loss=cross_entropy_by_hand"]),
        ("torch", [*torch_model.split(), torch_optimizer]),
    ):
        record = Record(tmp_path / name)
        record.path.mkdir()
        run(compose(*lines, *shared), record)
        rows.append(record.rows)
    assert len(rows[0]) == 2
    for ours, theirs in zip(*rows, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)
