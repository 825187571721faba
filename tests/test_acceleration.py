"""Accelerated training steps equal the plain step: bit for bit, or up to rounding if other kernels compute them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from dlhw.data.tensors import Dataset, Split, assemble
from dlhw.errors import UsageError
from dlhw.models.dense import mlp
from dlhw.models.dropout import Dropout
from dlhw.runtime.devices import Precision
from dlhw.storage.record import Record
from dlhw.training.acceleration import Step, cuda_graphed, undecorated_step
from dlhw.training.loop import Training
from dlhw.training.objective import Regularization
from dlhw.training.run import TrainingRun
from dlhw.training.settings import Trainer
from dlhw.training.variants import Single

DEFAULTS = yaml.safe_load((Path(__file__).parent.parent / "conf" / "trainer" / "default.yaml").read_text())
CPU = Trainer(**{name: value for name, value in DEFAULTS.items() if name != "_target_"} | {"batch_size": 8})
CPU = replace(CPU, device="cpu")
STEPS = 20

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler, g++"
)

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {}),
    "sgd, fused": (torch.optim.SGD, {"fused": True}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 1e-3}),
    "momentum, fused": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 1e-3, "fused": True}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "nesterov, fused": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "fused": True}),
    "adagrad": (torch.optim.Adagrad, {}),
    "adagrad, fused": (torch.optim.Adagrad, {"fused": True}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.5}),
    "adam": (torch.optim.Adam, {}),
    "adam, fused": (torch.optim.Adam, {"fused": True}),
    "adamw": (torch.optim.AdamW, {}),
    "adamw, fused": (torch.optim.AdamW, {"fused": True}),
    "nadam": (torch.optim.NAdam, {}),
}


def images(count: int = 48) -> Dataset:
    """Random images (1, 8, 8) of five classes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    whole = Split(x, torch.randint(5, (count,), generator=generator))
    return assemble(
        "random",
        whole,
        whole,
        seed=0,
        validation_fraction=1 / 6,
        mean=0.5,
        std=0.3,
        largest=255,
        classes=tuple("abcde"),
    )


def net() -> nn.Sequential:
    """A network with dropout and batch norm: a step draws masks and changes buffers too."""
    torch.manual_seed(0)
    return mlp((1, 8, 8), 5, hidden=[20, 10], activation="ReLU", dropout=0.5, batch_norm=True)


def loop_step(
    model: nn.Module, data: Dataset, optimizer: torch.optim.Optimizer, trainer: Trainer, precision: Precision
) -> tuple[Single, Step]:
    """A model trained with L2, whose learning rate at the "epoch" n is ``rate(n)``, and the step of its loop."""
    single = Single(model, optimizer, lambda number: rate(int(number)) / rate(0))
    run = TrainingRun(Record(Path()), seed=0, regularization=Regularization(flood=0.0, l1=0.0, l2=1e-3))
    loss = nn.functional.cross_entropy
    return single, Training(single, [run], data, loss, trainer=trainer, precision=precision).step


def rate(step: int) -> float:
    return 0.0625 / (1 + step % 3)


# Steps without wrappers


def trained(
    name: str, step_of: Callable[[torch.optim.Optimizer], Callable[[], Any]]
) -> tuple[list[Tensor], torch.optim.Optimizer]:
    """The weights and the optimizer after steps on random batches with a changing learning rate."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator).requires_grad_() for shape in ((7, 5), (5,))]
    optimizer_type, options = OPTIMIZERS[name]
    optimizer = optimizer_type(weights, lr=0.1, **options)
    step = step_of(optimizer)
    for number in range(STEPS):
        optimizer.param_groups[0]["lr"] = rate(number)
        optimizer.zero_grad()
        x = torch.randn(6, 7, generator=generator)
        (torch.tanh(x @ weights[0] + weights[1]).square().mean()).backward()
        step()
    return weights, optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_undecorated_step_equals_the_step_of_the_optimizer(name: str) -> None:
    expected, reference = trained(name, lambda optimizer: optimizer.step)
    weights, optimizer = trained(name, undecorated_step)
    for ours, theirs in zip(weights, expected, strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(weights, expected, strict=True):
        state, expected_state = optimizer.state[ours], reference.state[theirs]
        assert state.keys() == expected_state.keys()
        for key, value in expected_state.items():
            same = torch.equal(state[key], value) if isinstance(value, Tensor) else state[key] == value
            assert same, key


def test_undecorated_step_records_no_autograd_graph() -> None:
    (weight, _), _ = trained("sgd", undecorated_step)
    assert weight.is_leaf
    assert torch.is_grad_enabled()


def test_an_optimizer_that_needs_a_closure_is_refused() -> None:
    optimizer = torch.optim.LBFGS([torch.zeros(1, requires_grad=True)])
    with pytest.raises(UsageError, match=r"^optimizer=LBFGS: .*; expected another class of torch\.optim$"):
        undecorated_step(optimizer)


def test_creating_and_stepping_an_optimizer_does_not_import_dynamo() -> None:
    program = """
import sys, torch
from dlhw.training.acceleration import optimizers_without_dynamo, undecorated_step
optimizers_without_dynamo()
for kind in (torch.optim.SGD, torch.optim.Adam):
    weight = torch.ones(3, requires_grad=True)
    optimizer = kind([weight], lr=0.5, fused=True)
    step = undecorated_step(optimizer)
    for _ in range(2):
        weight.grad = torch.ones(3)
        step()
    optimizer.load_state_dict(optimizer.state_dict())
    print(kind.__name__, "torch._dynamo" in sys.modules, weight.abs().max().item() < 1e-6)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr, ended.stdout) == (0, "", "SGD False True\nAdam False True\n")


# The step of the loop, compiled or as a CUDA graph


def loop_steps(
    trainer: Trainer, optimizer_type: type[torch.optim.Optimizer], *, precision: Precision, steps: int, **options: Any
) -> tuple[dict[str, Tensor], Tensor]:
    """The model's state after some steps of the loop, and the measurements of each step, (steps, 1, 3)."""
    device = precision.device
    data = images().to(device, precision.dtype)
    model = net().to(device, precision.dtype).train()
    optimizer = optimizer_type(model.parameters(), lr=rate(0), fused=True, **options)
    single, step = loop_step(model, data, optimizer, trainer, precision)
    single.seed_dropout([1], epoch=1)
    measured = []
    for number in range(steps):
        single.set_learning_rates(number)
        count = 5 if number % 4 == 3 else trainer.batch_size  # every fourth batch is smaller
        first = number * 3 % 20
        batch = slice(first, first + count)
        measured.append(step(data.train.x[None, batch], data.train.y[None, batch]).clone())
    return model.state_dict(), torch.stack(measured)


def assert_same(
    ours: tuple[dict[str, Tensor], Tensor], expected: tuple[dict[str, Tensor], Tensor], tolerance: float
) -> None:
    """Compare two results of ``loop_steps``."""
    assert torch.allclose(ours[1], expected[1], rtol=tolerance, atol=tolerance)
    for name, value in expected[0].items():
        assert torch.allclose(ours[0][name], value, rtol=tolerance, atol=tolerance), name


def test_the_compared_step_has_dropout_and_changes_weights_and_buffers() -> None:
    # otherwise the comparisons below would not cover dropout masks and buffers
    precision = Precision("fp64", torch.device("cpu"))
    state, _ = loop_steps(CPU, torch.optim.SGD, precision=precision, steps=2)
    assert any(isinstance(layer, Dropout) for layer in net())
    assert not torch.equal(state["2.running_mean"], net().double()[2].running_mean)
    assert not torch.equal(state["1.weight"], net().double()[1].weight)


@pytest.mark.slow
@needs_compiler
def test_a_compiled_step_equals_the_eager_step() -> None:
    precision = Precision("fp64", torch.device("cpu"))
    eager = loop_steps(CPU, torch.optim.SGD, precision=precision, steps=8, momentum=0.9)
    compiled = loop_steps(replace(CPU, compile=True), torch.optim.SGD, precision=precision, steps=8, momentum=0.9)
    assert_same(compiled, eager, 1e-10)


CUDA = replace(CPU, device="cuda", cuda_graphs=True)
ON_CUDA = [
    pytest.param(torch.optim.SGD, {"momentum": 0.9}, id="momentum"),
    pytest.param(torch.optim.Adam, {}, id="adam"),
]


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize(("optimizer_type", "options"), ON_CUDA)
def test_a_cuda_graphed_step_equals_the_eager_step(
    optimizer_type: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    precision = Precision("fp32", torch.device("cuda"))
    eager = loop_steps(replace(CUDA, cuda_graphs=False), optimizer_type, precision=precision, steps=STEPS, **options)
    graphed = loop_steps(CUDA, optimizer_type, precision=precision, steps=STEPS, **options)
    assert_same(graphed, eager, 1e-5)  # hundreds of rounding errors of 6e-8


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize(("optimizer_type", "options"), ON_CUDA)
def test_recording_a_cuda_graph_changes_no_weights_buffers_or_optimizer_state(
    optimizer_type: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    precision = Precision("fp32", torch.device("cuda"))
    data, model = images().to("cuda", torch.float32), net().cuda().train()
    optimizer = optimizer_type(model.parameters(), lr=0.1, fused=True, **options)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loop_step(model, data, optimizer, CUDA, precision)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for state in optimizer.state.values():
        for name, value in state.items():
            assert not isinstance(value, Tensor) or not value.any(), name


def test_cuda_graphs_without_a_cuda_device_are_refused() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    x, y = torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long)
    with pytest.raises(UsageError, match=r"^trainer\.cuda_graphs=true: needs a CUDA device"):
        cuda_graphed(lambda x, y: y, list(model.parameters()), optimizer, x, y)
