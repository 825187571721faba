"""Optimizers from formulas and schedules equal torch's; each class of torch.optim trains by name or is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim import lr_scheduler

from dlhw.cli.build import build
from dlhw.errors import UsageError
from dlhw.training.acceleration import undecorated_step
from dlhw.training.optim import SGD, Momentum, Nesterov, Schedule, by_name, constant, cosine, optimizer_class, step

LR = 0.4
DENSE = ["ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop"]
DENSE += ["Rprop", "SGD"]
REFUSED = {
    "LBFGS": "evaluates the loss several times",
    "Muon": "2D",
    "SparseAdam": "gradients of these models are dense",
}


def torch_rates(scheduler: type[lr_scheduler.LRScheduler], epochs: int, **options: float) -> list[float]:
    """torch's learning rates at the start of each epoch and at the end of the last epoch."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    schedule = scheduler(optimizer, **options)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(epochs):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def schedule_rates(schedule: Schedule, epochs: int, *, start: int = 0) -> list[float]:
    """The same rates from a schedule of dlhw."""
    return [LR * schedule(float(epoch)) for epoch in range(start, start + epochs + 1)]


# Optimizers from formulas

FORMULAS = {
    "sgd": (lambda p: SGD(p, lr=0.05), lambda p: torch.optim.SGD(p, lr=0.05)),
    "momentum": (lambda p: Momentum(p, lr=0.05, rho=0.9), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
    "nesterov": (
        lambda p: Nesterov(p, lr=0.05, rho=0.9),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    ),
    "momentum 0": (lambda p: Momentum(p, lr=0.05, rho=0.0), lambda p: torch.optim.SGD(p, lr=0.05)),
}


def descend(optimizer: torch.optim.Optimizer, weight: Tensor, steps: int) -> None:
    """Minimize a nonlinear function of (4, 3) weights, some with large and some with small gradients."""
    scales = torch.logspace(-1, 1, 12, dtype=torch.float64).view(4, 3)
    for _ in range(steps):
        optimizer.zero_grad()
        (torch.cosh(scales * weight).log().sum() + 0.1 * weight.square().sum()).backward()
        optimizer.step()


@pytest.mark.parametrize("name", FORMULAS)
def test_optimizer_from_a_formula_equals_torchs(name: str) -> None:
    weights = []
    for make in FORMULAS[name]:
        weight = torch.linspace(-2, 2, 12, dtype=torch.float64).view(4, 3).requires_grad_()
        descend(make([weight]), weight, 100)
        weights.append(weight.detach())
    torch.testing.assert_close(*weights, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [make for make, _ in FORMULAS.values()], ids=list(FORMULAS))
def test_optimizer_restored_from_its_state_takes_the_same_steps(
    make: Callable[[list[Tensor]], torch.optim.Optimizer],
) -> None:
    uninterrupted = torch.linspace(-2, 2, 12, dtype=torch.float64).view(4, 3).requires_grad_()
    descend(make([uninterrupted]), uninterrupted, 20)
    interrupted = torch.linspace(-2, 2, 12, dtype=torch.float64).view(4, 3).requires_grad_()
    before = make([interrupted])
    descend(before, interrupted, 8)
    resumed = interrupted.detach().clone().requires_grad_()
    after = make([resumed])
    after.load_state_dict(before.state_dict())
    descend(after, resumed, 12)
    assert torch.equal(resumed, uninterrupted)


def test_step_calls_its_closure_and_skips_weights_without_a_gradient() -> None:
    trained, unused = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = SGD([trained, unused], lr=0.5)

    def closure() -> float:
        loss = trained.sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 2.0
    assert trained.tolist() == [0.5, 0.5]
    assert unused.tolist() == [1.0, 1.0]


# Schedules


@pytest.mark.parametrize("warmup", [0, 4])
def test_step_equals_torchs_step_lr(warmup: int) -> None:
    schedule = step(every_epochs=3, factor=0.3, warmup_epochs=warmup)
    expected = torch_rates(lr_scheduler.StepLR, 12, step_size=3, gamma=0.3)
    assert schedule_rates(schedule, 12, start=warmup) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("final", [0.0, 0.05])
def test_cosine_equals_torchs_cosine_annealing_lr(warmup: int, final: float) -> None:
    schedule = cosine(epochs=10 + warmup, final_factor=final, warmup_epochs=warmup)
    expected = torch_rates(lr_scheduler.CosineAnnealingLR, 10, T_max=10, eta_min=final * LR)
    assert schedule_rates(schedule, 10, start=warmup) == pytest.approx(expected, abs=1e-12)


def test_cosine_stays_at_its_final_factor() -> None:
    schedule = cosine(epochs=10, final_factor=0.05, warmup_epochs=0)
    assert schedule(10.0) == pytest.approx(0.05, abs=1e-15)
    assert schedule(13.0) == schedule(10.0)


def test_warmup_equals_torchs_linear_lr() -> None:
    # torch's LinearLR cannot start at 0, so the comparison starts after the first of the five epochs
    schedule = constant(warmup_epochs=5)
    expected = torch_rates(lr_scheduler.LinearLR, 8, start_factor=1 / 5, total_iters=4)
    assert schedule_rates(schedule, 8, start=1) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "schedule",
    [
        constant(warmup_epochs=5),
        step(every_epochs=2, factor=0.1, warmup_epochs=5),
        cosine(epochs=20, final_factor=0.0, warmup_epochs=5),
    ],
    ids=["constant", "step", "cosine"],
)
def test_warmup_rises_linearly_from_zero(schedule: Schedule) -> None:
    factors = [schedule(epoch) for epoch in (0.0, 0.5, 1.25, 2.5, 4.0, 5.0)]
    assert factors == pytest.approx([0.0, 0.1, 0.25, 0.5, 0.8, 1.0], abs=1e-15)


@given(st.floats(0, 1000))
def test_constant_is_constant(epoch: float) -> None:
    assert constant(warmup_epochs=0)(epoch) == 1


@given(st.floats(0, 5.999))
def test_step_is_constant_between_its_changes(epoch: float) -> None:
    expected = 1.0 if epoch < 2 else 0.5 if epoch < 4 else 0.25
    assert step(every_epochs=2, factor=0.5, warmup_epochs=0)(epoch) == expected


@given(st.floats(0, 10), st.floats(0, 10))
def test_cosine_decreases_between_one_and_its_final_factor(one: float, other: float) -> None:
    schedule = cosine(epochs=10, final_factor=0.1, warmup_epochs=0)
    assert 0.1 <= schedule(max(one, other)) <= schedule(min(one, other)) <= 1


@pytest.mark.parametrize("warmup", [10, 12.5])
def test_cosine_with_a_warmup_as_long_as_the_run_is_refused(warmup: float) -> None:
    with pytest.raises(
        UsageError, match=rf"^scheduler\.warmup_epochs={warmup}: must be below the 10 epochs of the run$"
    ):
        cosine(epochs=10, final_factor=0.0, warmup_epochs=warmup)


# Optimizers by name


def two_steps(name: str) -> tuple[list[Tensor], list[Tensor]]:
    """The weights of a small network before and after two steps, taken as in the training loop."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(8, 3), torch.randint(2, (8,))
    before = [parameter.detach().clone() for parameter in net.parameters()]
    config = OmegaConf.create({"optimizer": {"_target_": "dlhw.training.optim.by_name", "name": name, "lr": 0.01}})
    optimizer = build(config, "optimizer", params=net.parameters())
    update = undecorated_step(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        update()
    return before, [parameter.detach() for parameter in net.parameters()]


def test_every_class_of_torch_optim_has_a_test() -> None:
    with pytest.raises(UsageError) as caught:
        optimizer_class("Adem")
    listed = str(caught.value).partition("expected one of ")[2].split(", ")
    assert set(DENSE) <= set(listed)  # Muon came with torch 2.9
    assert set(listed) <= {*DENSE, *REFUSED}


@pytest.mark.parametrize("name", DENSE)
def test_by_name_changes_all_weights(name: str) -> None:
    before, after = two_steps(name)
    for old, new in zip(before, after, strict=True):
        assert torch.isfinite(new).all()
        assert not torch.equal(old, new)


@pytest.mark.parametrize("name", REFUSED)
def test_by_name_refuses_classes_that_cannot_train_these_models(name: str) -> None:
    with pytest.raises(UsageError, match=REFUSED[name]) as caught:
        two_steps(name)
    assert "\n" not in str(caught.value)
    assert name.lower() in str(caught.value).lower()


def test_by_name_passes_options_to_the_class() -> None:
    optimizer = by_name([torch.zeros(1, requires_grad=True)], name="NAdam", lr=0.5, momentum_decay=0.25)
    assert type(optimizer) is torch.optim.NAdam
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum_decay"]) == (0.5, 0.25)


@pytest.mark.parametrize("name", ["adam", "Optimizer", "lr_scheduler", "Tensor", ""])
def test_by_name_refuses_names_that_are_not_classes_of_torch_optim(name: str) -> None:
    with pytest.raises(UsageError, match=rf"^optimizer\.name={name}: not a class of torch\.optim; expected one of "):
        by_name([torch.zeros(1, requires_grad=True)], name=name, lr=0.1)
