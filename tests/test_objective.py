"""The objective and its gradients equal their formulas: flooding, losses, L1 and L2; a strength of 0 turns one off."""

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
    """A matrix and a kernel. The matrix contains a zero, at which |w| has no derivative."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 3), (4, 2, 3, 3))
    weights = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    weights[0][1, 2] = 0
    return [weight.requires_grad_() for weight in weights]


def stacked_once(weights: Sequence[Tensor]) -> list[Tensor]:
    """The weights of one model with a leading dimension K = 1."""
    return [weight.unsqueeze(0) for weight in weights]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """The loss of each of K models, a tensor (K,)."""
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
    """The objective and its gradients for one batch of a small network."""
    net, (x, y) = small_net(), small_batch()
    weights = stacked_once([net[0].weight, net[4].weight])
    value, _, _ = Objective(cross_entropy, regularization)(net(x)[None], y[None], lambda: weights)
    value.sum().backward()
    return value.detach(), {name: parameter.grad for name, parameter in net.named_parameters()}


# Flooding


@settings(deadline=None)
@given(loss=LOSSES, b=LEVELS)
def test_flooded_equals_its_formula(loss: float, b: float) -> None:
    # three rounding errors of numbers not larger than the result: a few units in the last place, 2.2e-16 each
    assert flooded(scalar(loss), b).item() == pytest.approx(abs(loss - b) + b, rel=1e-15, abs=0)


@settings(deadline=None)
@given(loss=LOSSES, b=LEVELS)
def test_flooded_is_at_least_b(loss: float, b: float) -> None:
    assert flooded(scalar(loss), b).item() >= b


@pytest.mark.parametrize(("loss", "slope"), [(0.0, -1.0), (0.2999, -1.0), (0.3001, 1.0), (5.0, 1.0)])
def test_gradient_of_flooded_changes_sign_at_b(loss: float, slope: float) -> None:
    loss_tensor = scalar(loss)
    flooded(loss_tensor, 0.3).backward()
    assert loss_tensor.grad == slope


@settings(deadline=None)
@given(loss=st.floats(allow_infinity=False, allow_nan=False), dtype=st.sampled_from([torch.float32, torch.float64]))
@pytest.mark.parametrize("others", [[], [0.5]])
def test_flooding_with_b_zero_is_the_identity(loss: float, dtype: torch.dtype, others: list[float]) -> None:
    """Also for negative losses and for 0, and for one model of an ensemble whose others are flooded."""
    losses = torch.tensor([loss, *others], dtype=dtype, requires_grad=True)
    value = flooded(losses, torch.tensor([0.0, *others], dtype=dtype) if others else 0.0)
    value[0].backward()
    assert value[0].item() == losses[0].item()
    assert losses.grad is not None
    assert losses.grad[0] == 1


def test_flooding_with_b_zero_keeps_the_gradients_of_a_network_bit_for_bit() -> None:
    net, (x, y) = small_net(), small_batch()
    nn.functional.cross_entropy(net(x), y).backward()
    _, ours = gradients(OFF)
    for name, parameter in net.named_parameters():
        assert torch.equal(ours[name], parameter.grad), name


def test_gradients_of_a_network_change_sign_below_b() -> None:
    _, plain = gradients(OFF)
    _, below = gradients(Regularization(flood=50.0, l1=0.0, l2=0.0))
    for name, gradient in plain.items():
        assert torch.equal(below[name], -gradient), name


# Losses of regression


def test_log_cosh_equals_its_formula_where_cosh_does_not_overflow() -> None:
    y = torch.linspace(-20, 20, 401, dtype=torch.float64)
    expected = torch.cosh(y + 0.5).log().mean()
    assert log_cosh(y + 0.5, torch.zeros_like(y)).item() == pytest.approx(expected.item(), rel=1e-14)


def test_mse_equals_torchs() -> None:
    one, two = torch.linspace(-3, 5, 11, dtype=torch.float64), torch.ones(11, dtype=torch.float64)
    assert mse(one, two).item() == pytest.approx(nn.functional.mse_loss(one, two).item(), rel=1e-15)


def test_log_cosh_of_large_and_small_differences_is_accurate() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    assert log_cosh(torch.tensor([1e6]).double(), zero).item() == pytest.approx(1e6 - math.log(2), rel=1e-15)
    assert log_cosh(torch.tensor([1e-6]).double(), zero).item() == pytest.approx(5e-13, abs=1e-15)
    difference = torch.tensor([-1e6, 0.0, 1e6], dtype=torch.float64, requires_grad=True)
    log_cosh(difference, torch.zeros(3).double()).backward()
    assert difference.grad.tolist() == pytest.approx([-1 / 3, 0.0, 1 / 3])  # the mean over three samples of tanh


# Penalties


def test_l1_norm_equals_its_formula() -> None:
    by_hand = sum(abs(value) for weight in random_weights() for value in weight.flatten().tolist())
    assert l1_norm(stacked_once(random_weights())).item() == pytest.approx(by_hand, rel=1e-14)


def test_squared_l2_norm_equals_its_formula() -> None:
    by_hand = sum(value**2 for weight in random_weights() for value in weight.flatten().tolist())
    assert squared_l2_norm(stacked_once(random_weights())).item() == pytest.approx(by_hand, rel=1e-14)


def test_penalty_is_the_weighted_sum_of_both_norms() -> None:
    weights = random_weights()
    penalty = Regularization(flood=0.0, l1=0.3, l2=0.7).penalty(stacked_once(weights))
    expected = 0.3 * l1_norm(stacked_once(weights)) + 0.7 * squared_l2_norm(stacked_once(weights))
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-15)


def test_gradient_of_l1_is_l1_times_the_sign() -> None:
    weights = random_weights()
    Regularization(flood=0.0, l1=0.3, l2=0.0).penalty(stacked_once(weights)).backward()
    for weight in weights:
        assert torch.equal(weight.grad, 0.3 * weight.detach().sign())


def test_gradient_of_l2_is_twice_l2_times_the_weights() -> None:
    weights = random_weights()
    Regularization(flood=0.0, l1=0.0, l2=0.7).penalty(stacked_once(weights)).backward()
    for weight in weights:
        assert torch.allclose(weight.grad, 2 * 0.7 * weight.detach(), rtol=1e-15, atol=0)


def test_l2_multiplies_weights_by_one_minus_twice_lr_times_l2() -> None:
    weights = random_weights()
    before = [weight.detach().clone() for weight in weights]
    Regularization(flood=0.0, l1=0.0, l2=0.01).penalty(stacked_once(weights)).backward()
    for weight, old in zip(weights, before, strict=True):
        stepped = weight.detach() - 0.5 * weight.grad
        assert torch.allclose(stepped, (1 - 2 * 0.5 * 0.01) * old, rtol=1e-15, atol=0)


def test_penalty_is_none_if_both_strengths_are_zero() -> None:
    assert OFF.penalty(stacked_once(random_weights())) is None


@pytest.mark.parametrize("strengths", [{"l1": 1e-3, "l2": 0.0}, {"l1": 0.0, "l2": 1e-3}], ids=["l1", "l2"])
def test_penalty_is_not_none_if_one_strength_is_positive(strengths: dict[str, float]) -> None:
    assert Regularization(flood=0.0, **strengths).penalty(stacked_once(random_weights())) is not None


def test_penalties_exclude_biases_and_batch_norm() -> None:
    net = small_net()
    single = Single(net, torch.optim.SGD(net.parameters(), lr=0.1), lambda epoch: 1.0)
    net[0].weight.data.fill_(2.0)
    assert [tuple(weight.shape[1:]) for weight in single.weights()] == [(3, 1, 3, 3), (5, 48)]
    Regularization(flood=0.0, l1=0.1, l2=0.1).penalty(single.weights()).sum().backward()
    assert {name for name, parameter in net.named_parameters() if parameter.grad is not None} == {
        "0.weight",
        "4.weight",
    }


def test_stacked_strengths_are_tensors_only_if_they_differ() -> None:
    one, other = Regularization(flood=0.1, l1=0.0, l2=0.5), Regularization(flood=0.1, l1=0.2, l2=0.5)
    combined = stacked([one, other], like=torch.zeros(1, dtype=torch.float64))
    assert (combined.flood, combined.l2) == (0.1, 0.5)
    assert combined.l1.tolist() == [0.0, 0.2]


def test_objective_of_stacked_models_equals_that_of_each_model() -> None:
    strengths = [Regularization(flood=b, l1=0.0, l2=l2) for b, l2 in ((0.0, 0.0), (2.0, 0.1), (0.5, 0.3))]
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(3, 7, 5, dtype=torch.float64, generator=generator)
    weights = [torch.randn(3, 4, 2, dtype=torch.float64, generator=generator)]
    y = torch.randint(5, (3, 7), generator=generator)

    def single(k: int) -> tuple[Tensor, Tensor, Tensor]:
        model = slice(k, k + 1)
        return Objective(cross_entropy, strengths[k])(logits[model], y[model], lambda: [weights[0][model]])

    values = Objective(cross_entropy, stacked(strengths, like=logits))(logits, y, lambda: weights)
    for k in range(3):
        for value, expected in zip(values, single(k), strict=True):
            assert torch.equal(value[k : k + 1], expected)


# Objective


def test_flooding_acts_on_the_data_loss_and_not_on_the_penalty() -> None:
    weights = [torch.full((1, 2, 2), 3.0, dtype=torch.float64)]
    objective = Objective(lambda logits, y: logits.mean((1, 2)), Regularization(flood=1.0, l1=0.0, l2=0.5))
    value, loss, penalty = objective(
        torch.full((1, 4, 2), 0.25, dtype=torch.float64), torch.zeros(1, 4), lambda: weights
    )
    assert (loss.item(), penalty.item()) == (0.25, 18.0)
    assert value.item() == 1.75 + 18.0  # |0.25 - 1| + 1, and 0.5 * 4 * 3^2


def test_objective_equals_the_data_loss_if_all_strengths_are_zero() -> None:
    net, (x, y) = small_net(), small_batch()
    value, loss, penalty = Objective(cross_entropy, OFF)(net(x)[None], y[None], lambda: stacked_once([net[0].weight]))
    assert torch.equal(value, loss)
    assert loss.item() == nn.functional.cross_entropy(small_net()(x), y).item()
    assert penalty.tolist() == [0.0]
