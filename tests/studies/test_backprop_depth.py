"""Gradients of a deep net by hand: they equal autograd, and their factor per layer equals the prediction."""

from __future__ import annotations

import pytest
import torch

from dlhw.errors import UsageError
from dlhw.studies.backprop_depth import draw_weights, factor_per_layer, forward_backward, loss
from support.composing import Ask

SMALL = ("experiment=backprop_depth", "study.draws=4", "study.depth=6")
SETTINGS = {"features": 5, "hidden": [4, 4], "classes": 3, "d": 0.1, "draws": 3, "seed": 0}


def test_all_checks_agree_for_a_small_net(ask: Ask) -> None:
    answer = ask(*SMALL, "study.inits=[xavier,uniform]")
    assert answer.disagreements == []
    assert len(answer.checks) == 5
    assert [(row["init"], row["layer"]) for row in answer.tables["layers"]] == [
        (init, layer) for init in ("xavier", "uniform") for layer in range(1, 8)
    ]
    assert set(answer.figures) == {"gradients"}
    assert len(answer.tables["output"]) == 4
    for row in answer.tables["output"]:
        assert sum(p for name, p in row.items() if name != "draw") == pytest.approx(1.0)


def test_gradients_of_one_net_equal_autograd() -> None:
    weights = [(weight[0], bias[0]) for weight, bias in draw_weights("default", **SETTINGS)]
    leaves = [tensor.requires_grad_() for pair in weights for tensor in pair]
    x, y = torch.arange(1.0, 6.0, dtype=torch.float64), torch.tensor(2)
    expected = torch.autograd.grad(loss(weights, x, y), leaves)
    results = forward_backward([(weight.detach(), bias.detach()) for weight, bias in weights], x, y)
    for layer in range(3):
        torch.testing.assert_close(results.weights[layer], expected[2 * layer], rtol=0, atol=1e-14)
        torch.testing.assert_close(results.biases[layer], expected[2 * layer + 1], rtol=0, atol=1e-14)
    outer = torch.outer(results.signals[1], results.inputs[1])
    torch.testing.assert_close(results.weights[1], outer, rtol=0, atol=1e-15)


def test_factor_per_layer_equals_the_ratio_of_a_geometric_series() -> None:
    output_signal = 77.0
    signal = torch.tensor([[0.5**4, 0.5**3, 0.5**2, 0.5, 1.0, output_signal]], dtype=torch.float64)
    assert factor_per_layer(signal) == pytest.approx(0.5)


def test_weights_depend_only_on_the_seed_and_preserve_the_torch_random_state() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, repeated = (draw_weights("default", **SETTINGS) for _ in range(2))
    other = draw_weights("default", **SETTINGS | {"seed": 1})
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for pairs in zip(first, repeated, strict=True) for a, b in zip(*pairs, strict=True))
    assert not torch.equal(first[0][0], other[0][0])
    assert not torch.equal(first[0][0][0], first[0][0][1])
    (weight, bias), *_ = draw_weights("uniform", **SETTINGS)
    assert weight.abs().max() <= 0.1
    assert (bias == 0).all()


def test_signal_per_layer_is_proportional_to_the_range_of_uniform_weights(ask: Ask) -> None:
    small, large = (ask(*SMALL, "study.inits=[uniform]", f"study.d={d}") for d in (0.05, 0.2))
    ratio = large.numbers["uniform_signal_per_layer"] / small.numbers["uniform_signal_per_layer"]
    assert ratio == pytest.approx(4.0, rel=0.2)  # proportional to d, because ELU has slope 1 near 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study.label_of_x=3", r"study\.label_of_x=3: must be a class, from 0 to 2"),
        ("study.inits=[he,he]", r"study\.inits=\['he', 'he'\]: must not contain duplicates"),
        ("study.inits=[glorot]", r"study\.inits.*'default', 'xavier', 'he', 'orthogonal' or 'uniform'"),
        ("study.depth=2", r"study\.depth=2: must be greater than or equal to 3"),
        ("study.x=[1,nan]", r"study\.x"),
    ],
)
def test_invalid_settings_raise_a_one_line_usage_error(ask: Ask, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        ask(*SMALL, override)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("init", ["he", "xavier"])
def test_signal_per_layer_of_wide_nets_equals_the_prediction(ask: Ask, init: str) -> None:
    answer = ask(*SMALL, f"study.inits=[{init}]", "study.width=300", "study.depth=8", "study.output_depth=1")
    measured, predicted = (answer.numbers[f"{init}_signal_{suffix}"] for suffix in ("per_layer", "predicted"))
    assert measured == pytest.approx(predicted, rel=0.02)


def test_all_checks_agree_for_300_layers(ask: Ask) -> None:
    answer = ask(*SMALL, "study.inits=[default]", "study.depth=300", "study.draws=2")
    assert answer.disagreements == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("study.inits=[default]", "study.depth=600"),
            r"gradient norms of 601 layers range from 0e\+00 to .*smaller study\.depth",
        ),
        (
            ("study.inits=[uniform]", "study.d=1e10", "study.depth=60"),
            r"study\.inits=uniform: gradient norms of 61 layers",
        ),
        (("study.x=[0.0, 0.0]",), r"study\.x=\[0\.0, 0\.0\]: must contain a number that is not 0"),
    ],
)
def test_gradients_out_of_range_raise_usage_error(ask: Ask, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ask(*SMALL, *overrides)
