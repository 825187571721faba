"""Networks with weights chosen by hand: they equal their functions exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dlhw.errors import UsageError
from dlhw.studies import hand_built_networks as study
from dlhw.studies.hand_built_networks import HandBuiltNetwork, shrink, shrink_network, tent, tent_network, xnor_network
from support.composing import Ask


def column(*x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)[:, None]


def test_xnor_network_is_exact_for_all_pairs_of_bits() -> None:
    pairs = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64)
    assert xnor_network()(pairs).tolist() == [1.0, 0.0, 0.0, 1.0]


def test_tent_network_is_exact_at_between_and_outside_its_kinks() -> None:
    x = column(-7, 0, 0.25, 0.5, 0.75, 1, 7)
    assert tent_network()(x).tolist() == [0.0, 0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    assert tent(x[:, 0]).tolist() == [0.0, 0.0, 0.5, 1.0, 0.5, 0.0, 0.0]


def test_shrink_network_equals_torch_softshrink() -> None:
    x = torch.linspace(-3, 3, 1001, dtype=torch.float64)
    expected = nn.functional.softshrink(x, 0.7)
    assert torch.equal(shrink_network(0.7)(x[:, None]), expected)
    assert torch.equal(shrink(x, 0.7), expected)


@pytest.mark.parametrize(
    "network", [xnor_network(), tent_network(), shrink_network(0.3)], ids=["xnor", "tent", "shrink"]
)
def test_networks_equal_torch_layers(network: HandBuiltNetwork) -> None:
    hidden, inputs = network.weights.shape
    layers = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 1, bias=False)).double()
    state = {"0.weight": network.weights, "0.bias": network.biases, "2.weight": network.out[None]}
    layers.load_state_dict(state)
    x = torch.randn(50, inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layers(x).squeeze(1), network(x), rtol=0, atol=1e-14)


def test_formula_describes_the_network_in_relus() -> None:
    assert study.formula(tent_network()) == "2 relu(x) - 4 relu(x - 0.5) + 2 relu(x - 1)"
    assert study.formula(xnor_network()) == "relu(x1 + x2 - 1) + relu(-x1 - x2 + 1)"
    assert study.formula(shrink_network(0.25)) == "relu(x - 0.25) - relu(-x - 0.25)"


def test_neighbours_are_the_adjacent_floats() -> None:
    x = study.with_neighbours(torch.tensor([2.0], dtype=torch.float64), [1.0])
    assert x.tolist() == [1 - 2**-53, 1.0, 1 + 2**-52, 2.0]


@pytest.mark.parametrize(
    "setting", [[], ["study.s=0"], ["study.s=1.23", "study.limit=1e6"], ["study.limit=7.7"], ["study.limit=1e12"]]
)
def test_all_checks_agree(ask: Ask, setting: list[str]) -> None:
    answer = ask("experiment=hand_built_networks", "study.points=501", *setting)
    assert answer.disagreements == []
    assert answer.numbers["largest_difference_shrink"] == 0.0
    assert len(answer.tables["weights"]) == 2 + 3 + 2
    assert {row["function"] for row in answer.tables["values"]} == {"tent", "shrink"}
    assert set(answer.figures) == {"functions"}


def test_wrong_weights_disagree(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "tent_network", lambda: study.network([[1], [1], [1]], [0, -0.5, -1], [2, -4, 2.001]))
    assert [check.what[:4] for check in ask("experiment=hand_built_networks").disagreements] == ["tent"]


@pytest.mark.parametrize(
    "override", ["study.s=-0.1", "study.s=2", "study.points=3", "study.limit=0", "study.limit=1e308"]
)
def test_invalid_settings_raise_usage_error(ask: Ask, override: str) -> None:
    with pytest.raises(UsageError, match=override.partition("=")[0]):
        ask("experiment=hand_built_networks", override)
