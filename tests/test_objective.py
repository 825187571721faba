"""What training minimizes is what the sheets write: flooding, L1, L2 and their gradients, and nothing when off."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dlhw.training.objective import (
    Objective,
    Regularization,
    flooded,
    l1_norm,
    log_cosh,
    mse,
    squared_l2_norm,
    stacked,
)
from dlhw.training.variants import Single

LOSSES = st.floats(0, 100)
LEVELS = st.floats(0, 10)
OFF = Regularization(flood=0.0, l1=0.0, l2=0.0)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def random_weights() -> list[Tensor]:
    """A matrix and a kernel, the matrix with a zero in it, where |w| has no derivative."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 3), (4, 2, 3, 3))
    weights = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    weights[0][1, 2] = 0
    return [weight.requires_grad_() for weight in weights]


def of_one(weights: Sequence[Tensor]) -> list[Tensor]:
    """Weights of one model as those of K = 1 models."""
    return [weight.unsqueeze(0) for weight in weights]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """The loss of each of K models."""
    losses = [nn.functional.cross_entropy(*batch) for batch in zip(logits, y, strict=True)]
    return torch.stack(losses)


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5))
    return net.double()


def small_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(7, 1, 4, 4, dtype=torch.float64, generator=generator)
    return x, torch.randint(5, (7,), generator=generator)


def gradients(regularization: Regularization) -> tuple[Tensor, dict[str, Tensor]]:
    """Objective and its gradients for one batch of a small net."""
    net, (x, y) = small_net(), small_batch()
    weights = of_one([net[0].weight, net[4].weight])
    value, _, _ = Objective(cross_entropy, regularization)(net(x)[None], y[None], lambda: weights)
    value.sum().backward()
    return value.detach(), {name: parameter.grad for name, parameter in net.named_parameters()}


# Flooding


@settings(deadline=None)
@given(loss=LOSSES, b=LEVELS)
def test_flooded_is_its_formula(loss: float, b: float) -> None:
    # three roundings of numbers not larger than the result: a few units in the last place, 2.2e-16 each
    assert flooded(scalar(loss), b).item() == pytest.approx(abs(loss - b) + b, rel=1e-15, abs=0)


@settings(deadline=None)
@given(loss=LOSSES, b=LEVELS)
def test_flooded_never_lies_below_b(loss: float, b: float) -> None:
    assert flooded(scalar(loss), b).item() >= b


@pytest.mark.parametrize(("loss", "slope"), [(0.0, -1.0), (0.2999, -1.0), (0.3001, 1.0), (5.0, 1.0)])
def test_flooded_gradient_changes_sign_at_b(loss: float, slope: float) -> None:
    risk = scalar(loss)
    flooded(risk, 0.3).backward()
    assert risk.grad == slope


@settings(deadline=None)
@given(loss=st.floats(0, allow_infinity=False), width=st.sampled_from([torch.float32, torch.float64]))
def test_b_zero_is_the_identity(loss: float, width: torch.dtype) -> None:
    risk = torch.tensor(loss, dtype=width, requires_grad=True)
    value = flooded(risk, 0.0)
    value.backward()
    assert value.item() == risk.item()
    assert risk.grad == 1


def test_b_zero_leaves_the_gradient_at_loss_zero() -> None:
    risk = scalar(0.0)
    flooded(risk, 0.0).backward()
    assert risk.grad == 1  # |.| would give 0 here


def test_b_zero_leaves_a_net_s_gradients_bit_identical() -> None:
    net, (x, y) = small_net(), small_batch()
    nn.functional.cross_entropy(net(x), y).backward()
    _, ours = gradients(OFF)
    for name, parameter in net.named_parameters():
        assert torch.equal(ours[name], parameter.grad), name


def test_below_b_a_net_s_gradients_change_sign() -> None:
    _, plain = gradients(OFF)
    _, below = gradients(Regularization(flood=50.0, l1=0.0, l2=0.0))
    for name, gradient in plain.items():
        assert torch.equal(below[name], -gradient), name


# The loss of numbers


def test_log_cosh_is_its_formula_where_that_does_not_overflow() -> None:
    y = torch.linspace(-20, 20, 401, dtype=torch.float64)
    expected = torch.cosh(y + 0.5).log().mean()
    assert log_cosh(y + 0.5, torch.zeros_like(y)).item() == pytest.approx(expected.item(), rel=1e-14)


def test_mse_equals_torchs() -> None:
    one, two = torch.linspace(-3, 5, 11, dtype=torch.float64), torch.ones(11, dtype=torch.float64)
    assert mse(one, two).item() == pytest.approx(nn.functional.mse_loss(one, two).item(), rel=1e-15)


def test_log_cosh_of_huge_and_tiny_differences() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    assert log_cosh(torch.tensor([1e6]).double(), zero).item() == pytest.approx(1e6 - math.log(2), rel=1e-15)
    assert log_cosh(torch.tensor([1e-6]).double(), zero).item() == pytest.approx(5e-13, abs=1e-15)
    difference = torch.tensor([-1e6, 0.0, 1e6], dtype=torch.float64, requires_grad=True)
    log_cosh(difference, torch.zeros(3).double()).backward()
    assert difference.grad.tolist() == pytest.approx([-1 / 3, 0.0, 1 / 3])  # tanh, over three samples


# Penalties


def test_l1_norm_is_its_formula() -> None:
    by_hand = sum(abs(value) for weight in random_weights() for value in weight.flatten().tolist())
    assert l1_norm(of_one(random_weights())).item() == pytest.approx(by_hand, rel=1e-14)


def test_squared_l2_norm_is_its_formula() -> None:
    by_hand = sum(value**2 for weight in random_weights() for value in weight.flatten().tolist())
    assert squared_l2_norm(of_one(random_weights())).item() == pytest.approx(by_hand, rel=1e-14)


def test_penalty_is_the_weighted_sum_of_both() -> None:
    weights = random_weights()
    penalty = Regularization(flood=0.0, l1=0.3, l2=0.7).penalty(of_one(weights))
    expected = 0.3 * l1_norm(of_one(weights)) + 0.7 * squared_l2_norm(of_one(weights))
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-15)


def test_l1_gradient_is_l1_times_the_sign() -> None:
    weights = random_weights()
    Regularization(flood=0.0, l1=0.3, l2=0.0).penalty(of_one(weights)).backward()
    for weight in weights:
        assert torch.equal(weight.grad, 0.3 * weight.detach().sign())


def test_l2_gradient_is_twice_l2_times_the_weights() -> None:
    weights = random_weights()
    Regularization(flood=0.0, l1=0.0, l2=0.7).penalty(of_one(weights)).backward()
    for weight in weights:
        assert torch.allclose(weight.grad, 2 * 0.7 * weight.detach(), rtol=1e-15, atol=0)


def test_l2_shrinks_weights_by_one_minus_twice_lr_l2() -> None:
    weights = random_weights()
    before = [weight.detach().clone() for weight in weights]
    Regularization(flood=0.0, l1=0.0, l2=0.01).penalty(of_one(weights)).backward()
    for weight, old in zip(weights, before, strict=True):
        stepped = weight.detach() - 0.5 * weight.grad
        assert torch.allclose(stepped, (1 - 2 * 0.5 * 0.01) * old, rtol=1e-15, atol=0)


def test_no_penalty_when_both_are_off() -> None:
    assert OFF.penalty(of_one(random_weights())) is None


@pytest.mark.parametrize("on", [{"l1": 1e-3, "l2": 0.0}, {"l1": 0.0, "l2": 1e-3}], ids=["l1", "l2"])
def test_a_penalty_when_one_is_on(on: dict[str, float]) -> None:
    assert Regularization(flood=0.0, **on).penalty(of_one(random_weights())) is not None


def test_penalties_leave_biases_and_normalization_out() -> None:
    net = small_net()
    single = Single(net, torch.optim.SGD(net.parameters(), lr=0.1), lambda epoch: 1.0)
    net[0].weight.data.fill_(2.0)
    assert [tuple(weight.shape[1:]) for weight in single.weights()] == [(3, 1, 3, 3), (5, 48)]
    Regularization(flood=0.0, l1=0.1, l2=0.1).penalty(single.weights()).sum().backward()
    assert {name for name, parameter in net.named_parameters() if parameter.grad is not None} == {
        "0.weight",
        "4.weight",
    }


def test_strengths_of_several_models_are_tensors_only_where_they_differ() -> None:
    one, other = Regularization(flood=0.1, l1=0.0, l2=0.5), Regularization(flood=0.1, l1=0.2, l2=0.5)
    both = stacked([one, other], like=torch.zeros(1, dtype=torch.float64))
    assert (both.flood, both.l2) == (0.1, 0.5)
    assert both.l1.tolist() == [0.0, 0.2]


def test_each_model_has_the_objective_that_it_has_alone() -> None:
    strengths = [Regularization(flood=b, l1=0.0, l2=l2) for b, l2 in ((0.0, 0.0), (2.0, 0.1), (0.5, 0.3))]
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(3, 7, 5, dtype=torch.float64, generator=generator)
    weights = [torch.randn(3, 4, 2, dtype=torch.float64, generator=generator)]
    y = torch.randint(5, (3, 7), generator=generator)
    together = Objective(cross_entropy, stacked(strengths, like=logits))(logits, y, lambda: weights)
    for k, own in enumerate(strengths):
        own_weights = [weights[0][k : k + 1]]
        alone = Objective(cross_entropy, own)(logits[k : k + 1], y[k : k + 1], lambda own=own_weights: own)
        for ours, expected in zip(together, alone, strict=True):
            assert torch.equal(ours[k : k + 1], expected)


# Objective


def test_objective_floods_the_data_loss_and_not_the_penalty() -> None:
    weights = [torch.full((1, 2, 2), 3.0, dtype=torch.float64)]
    objective = Objective(lambda logits, y: logits.mean((1, 2)), Regularization(flood=1.0, l1=0.0, l2=0.5))
    value, loss, penalty = objective(
        torch.full((1, 4, 2), 0.25, dtype=torch.float64), torch.zeros(1, 4), lambda: weights
    )
    assert (loss.item(), penalty.item()) == (0.25, 18.0)
    assert value.item() == 1.75 + 18.0  # |0.25 - 1| + 1, and 0.5 * 4 * 3^2


def test_objective_with_everything_off_is_the_data_loss() -> None:
    net, (x, y) = small_net(), small_batch()
    value, loss, penalty = Objective(cross_entropy, OFF)(net(x)[None], y[None], lambda: of_one([net[0].weight]))
    assert torch.equal(value, loss)
    assert loss.item() == nn.functional.cross_entropy(small_net()(x), y).item()
    assert penalty.tolist() == [0.0]
