"""Gradients of a net with log-cosh loss by three methods, and the errors of finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dlhw.errors import UsageError
from dlhw.runtime.randomness import generator
from dlhw.studies import logcosh_gradients as study
from dlhw.studies.logcosh_gradients import NAMES, Values, by_autograd, by_differences, cost, draw, gradients, log_cosh
from support.composing import Ask

SMALL = ["experiment=logcosh_gradients", "study.hidden=4", "study.inputs=3", "study.draws=10", "study.steps=12"]


def small(distribution: str = "normal", draws: int = 7) -> Values:
    source = generator(3, "test")
    return draw(distribution, draws=draws, samples=5, inputs=3, hidden=4, source=source)


def test_log_cosh_is_accurate_near_zero_and_where_cosh_overflows() -> None:
    z = torch.tensor([0.0, 1e-9, -0.3, 2.0, -30.0], dtype=torch.float64)
    torch.testing.assert_close(log_cosh(z), z.cosh().log(), rtol=1e-15, atol=1e-16)
    huge = torch.tensor([1e3, -1e6, 1e300], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(log_cosh(huge), huge.abs() - math.log(2), rtol=0, atol=1e-9)
    (slope,) = torch.autograd.grad(log_cosh(huge).sum(), huge)
    assert slope.tolist() == [1.0, -1.0, 1.0]


def test_cost_equals_that_of_a_torch_module() -> None:
    values = {name: value[2] for name, value in small().items()}
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    state = {"0.weight": values["W1"], "0.bias": values["b1"]}
    net.load_state_dict(state | {"2.weight": values["w2"][None], "2.bias": values["b2"][None]})
    expected = (net(values["x"]).squeeze(1) - values["y"]).cosh().log().mean()
    torch.testing.assert_close(cost(values), expected.detach(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("distribution", list(study.DISTRIBUTIONS))
@pytest.mark.parametrize("name", list(NAMES))
def test_derived_gradient_equals_autograd_and_differences(name: str, distribution: str) -> None:
    values = small(distribution)
    expected = gradients(values)[name]
    assert expected.shape == values[name].shape
    torch.testing.assert_close(by_autograd(values)[name], expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(by_differences(values, name, 1e-5), expected, rtol=0, atol=1e-9)


def test_differences_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    values = small()
    in_one_block = by_differences(values, "W1", 1e-4)
    monkeypatch.setattr(study, "MOST_NUMBERS", 1)
    torch.testing.assert_close(by_differences(values, "W1", 1e-4), in_one_block, rtol=0, atol=1e-11)


def test_third_derivative_by_the_last_bias_equals_that_by_hand() -> None:
    values = small()
    e = torch.tanh(
        (torch.tanh(values["x"] @ values["W1"].mT + values["b1"][:, None]) @ values["w2"][:, :, None]).squeeze(2)
        + values["b2"][:, None]
        - values["y"]
    )
    by_hand = (-2 * e * (1 - e**2)).mean(1)  # tanh''
    torch.testing.assert_close(study.third_derivatives(values, "b2"), by_hand, rtol=1e-12, atol=1e-14)


def test_draws_follow_their_distribution() -> None:
    uniform, normal = (small(name, draws=3000)["x"] for name in ("uniform", "normal"))
    assert float(uniform.abs().max()) <= 1
    assert float(normal.abs().max()) > 3
    assert float(uniform.var()) == pytest.approx(1 / 3, rel=0.05)
    assert float(normal.var()) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("setting", [[], ["seed=7", "study.samples=1"], ["study.step=1e-3"], ["study.step=1e-8"]])
def test_all_checks_agree(ask: Ask, setting: list[str]) -> None:
    answer = ask(*SMALL, *setting)
    assert answer.disagreements == []
    assert len(answer.tables["differences"]) == 2 * 5
    assert len(answer.tables["steps"]) == 2 * 12
    assert set(answer.figures) == {"steps"}
    assert 1e-7 < float(answer.numbers["normal_best_step"]) < 1e-3


def test_wrong_derivation_disagrees(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "gradients", lambda values: gradients(values) | {"b1": 1.001 * gradients(values)["b1"]})
    assert len(ask(*SMALL).disagreements) >= 4


def test_too_many_operations_raise_a_one_line_usage_error(ask: Ask) -> None:
    with pytest.raises(UsageError, match=r"study\.samples=200: .*reduce study.samples, study.draws") as caught:
        ask("experiment=logcosh_gradients", "study.samples=200")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["study.step=0", "study.step=0.1", "study.hidden=0", "study.draws=1"])
def test_invalid_settings_raise_usage_error(ask: Ask, override: str) -> None:
    with pytest.raises(UsageError, match=override.partition("=")[0]):
        ask(*SMALL, override)
