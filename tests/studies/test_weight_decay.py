"""L2 penalty and weight decay: steps by hand, checks, and the limits of stability."""

from __future__ import annotations

import pytest
import torch

from dlhw.errors import UsageError
from dlhw.studies import weight_decay
from dlhw.studies.weight_decay import adam, behaviour, decay, momentum, penalized, plain, shrunk
from support.composing import Ask

FEW = ("experiment=weight_decay", "study.steps=20")


@pytest.mark.parametrize("seed", range(3))
def test_all_checks_agree_for_every_seed(ask: Ask, seed: int) -> None:
    answer = ask(*FEW, f"seed={seed}", "study.hidden=4")
    assert answer.disagreements == []
    assert len(answer.checks) == 9
    assert (len(answer.tables["optimizers"]), len(answer.tables["decay"])) == (6, 16)
    assert set(answer.figures) == {"forms", "range"}


@pytest.mark.parametrize(
    "options",
    [
        ["study.strength=0.0001"],
        ["study.strength=1", "study.learning_rate=0.4"],
        ["study.decay_steps=3000"],
        ["study.products=[0.4999999,0.49,0.5,0.51,900]", "study.decay_steps=400"],
    ],
)
def test_all_checks_agree_for_other_settings(ask: Ask, options: list[str]) -> None:
    assert ask(*FEW, *options).disagreements == []


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_first_adam_steps_differ_by_the_shrinking_and_a_changed_sign() -> None:
    """alpha = 0.1, lambda = 0.05: the penalty changes the sign of the second gradient only."""
    w, gradient = double(2, -3), double(1, 0.2)
    after = [step(w, gradient, adam(), 0.1, 0.05) for step in (penalized, shrunk)]
    torch.testing.assert_close(after[0] - after[1], double(0.01 * 2, 0.01 * -3 + 0.1 * 2), rtol=1e-5, atol=0)


def test_wrong_adam_disagrees(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """An Adam that shrinks only by alpha lambda, half of the right amount, differs from the formula."""
    right = weight_decay.shrunk
    monkeypatch.setattr(weight_decay, "shrunk", lambda w, g, d, alpha, strength: right(w, g, d, alpha, strength / 2))
    assert any("Adam: error of the predicted difference" in check.what for check in ask(*FEW).disagreements)


def test_one_sgd_step_equals_the_value_by_hand() -> None:
    for step in (penalized, shrunk):  # 1 - 2 x 0.1 x 0.25 = 0.95
        torch.testing.assert_close(step(double(2), double(3), plain, 0.1, 0.25), double(0.95 * 2 - 0.3))


def test_two_momentum_steps_equal_the_values_by_hand() -> None:
    """Without another gradient, the penalty acts again through v, while shrinking has no later effect."""
    ends = []
    for step in (penalized, shrunk):
        direction, w = momentum(0.5), double(1)
        for _ in range(2):
            w = step(w, double(0), direction, 0.1, 0.5)
        ends.append(w.item())
    assert ends == pytest.approx([0.9 - 0.1 * (0.5 + 0.9), 0.81])
    assert ends[0] - ends[1] == pytest.approx(-2 * 0.1 * 0.5 * 0.5)


def test_first_adam_step_does_not_depend_on_the_gradient_norm() -> None:
    torch.testing.assert_close(adam()(double(1e-3, -5.0, 200.0)), double(1, -1, 1), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (0.9, "shrinks"),
        (0.0, "shrinks"),
        (-0.5, "shrinks, alternating"),
        (-1.0, "constant, alternating"),
        (-1.01, "grows, alternating"),
    ],
)
def test_decay_equals_powers_of_its_factor(factor: float, expected: str) -> None:
    strength = 0.3
    directions, logarithms = decay(double(2, -1), double((1 - factor) / (2 * strength)), strength, 3)
    size = 5**0.5 * logarithms[3, 0].exp()
    torch.testing.assert_close(size * directions[3, 0], factor**3 * double(2, -1))
    assert behaviour(factor) == expected


@pytest.mark.parametrize(
    "override",
    [
        "study.strength=0",
        "study.strength=3",
        "study.rho=1",
        "study.products=[]",
        "study.products=[1e9]",
        "study.strength=1e-320",
        "study.batch=257",
    ],
)
def test_invalid_settings_raise_usage_error(ask: Ask, override: str) -> None:
    with pytest.raises(UsageError, match=override.partition("=")[0]):
        ask("experiment=weight_decay", override)
