"""Forward and reverse mode give the same Jacobian, and their operations equal counts by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dlhw.errors import UsageError
from dlhw.runtime.randomness import generator
from dlhw.studies import jacobian as study
from dlhw.studies.jacobian import BY_ROWS, FORWARD, REVERSE, draw, forward_mode, operations, tanh_net
from support.composing import Ask

SMALL = ["experiment=jacobian", "study.repeats=4", "study.warmup=1", "study.draws=5"]
SIZES: dict[str, Any] = {"width": 4, "inputs": 3, "outputs": 5}


def test_tanh_net_equals_torch_modules() -> None:
    x, weights = draw(generator(0, "test"), draws=6, depth=2, **SIZES)
    for sample in range(6):
        layers = [nn.Linear(weight.shape[2], weight.shape[1], bias=False) for weight in weights.values()]
        net = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2]).double()
        for layer, weight in zip(layers, weights.values(), strict=True):
            layer.weight.data = weight[sample]
        one = {name: weight[sample] for name, weight in weights.items()}
        torch.testing.assert_close(tanh_net(x, weights)[sample], net(x[sample]), rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(tanh_net(x[sample], one), net(x[sample]), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", [REVERSE, BY_ROWS])
def test_methods_agree_with_forward_mode_on_one_input_and_on_a_batch(name: str) -> None:
    x, weights = draw(generator(1, "test"), draws=3, depth=3, **SIZES)
    batch = study.METHODS[name](x, weights)
    assert batch.shape == (3, 5, 3)
    one = {key: weight[2] for key, weight in weights.items()}
    torch.testing.assert_close(study.METHODS[name](x[2], one), batch[2], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(forward_mode(x[2], one), batch[2], rtol=1e-12, atol=1e-14)


def test_jacobian_at_zero_is_the_product_of_the_weight_matrices() -> None:
    _, weights = draw(generator(2, "test"), draws=1, depth=2, **SIZES)
    at_zero = forward_mode(torch.zeros(1, 3, dtype=torch.float64), weights)  # tanh'(0) = 1
    torch.testing.assert_close(at_zero, weights["WF"] @ weights["W2"] @ weights["W1"])


def test_operations_equal_counts_by_hand() -> None:
    counts = operations(3, width=30, inputs=2, outputs=10)
    values = 30 * 2 + 2 * 30 * 30 + 10 * 30
    assert counts == {FORWARD: 3 * values - 300, REVERSE: 11 * values, BY_ROWS: 11 * values}
    deep = operations(10**6, width=30, inputs=2, outputs=10)
    assert deep[REVERSE] / deep[FORWARD] == pytest.approx(11 / 3, rel=1e-5)


def test_calls_are_timed_in_turn_without_the_warm_up() -> None:
    order: list[str] = []
    calls = [lambda: order.append("a"), lambda: order.append("b")]
    seconds = study.time_calls(calls, torch.device("cpu"), warmup=1, repeats=2)
    assert order == ["a", "b"] * 3
    assert seconds.shape == (2, 2)
    assert bool((seconds > 0).all())


@pytest.mark.parametrize("setting", [["study.depths=[4,1]", "study.width=7"], ["seed=5", "study.inputs=6"]])
def test_all_checks_agree(ask: Ask, setting: list[str]) -> None:
    answer = ask(*SMALL, *setting)
    assert answer.disagreements == []
    depths = 2 if "study.width=7" in setting else 3
    assert len(answer.checks) == 7 * depths
    assert {name: len(rows) for name, rows in answer.tables.items()} == {
        "equality": 4 * depths,
        "times": 5 * depths,
        "ratios": 2 * depths,
    }
    assert set(answer.figures) == {"jacobian"}


def test_wrong_jacobian_disagrees(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "forward_mode", lambda x, weights: forward_mode(x, weights) * (1 + 1e-9))
    assert len(ask(*SMALL, "study.depths=[1]").disagreements) == 4


@pytest.mark.parametrize("override", ["study.depths=[]", "study.depths=[0]", "study.repeats=1", "study.width=0.5"])
def test_invalid_settings_raise_usage_error(ask: Ask, override: str) -> None:
    with pytest.raises(UsageError, match=override.partition("=")[0]):
        ask(*SMALL, override)
