"""Pruned playground networks: masks hold, and networks that are trained at once equal those trained alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dlhw.errors import UsageError
from dlhw.studies.playground_networks import Task, draw
from dlhw.studies.playground_prune import Measured, smallest_as_good
from dlhw.training.objective import Regularization
from dlhw.training.pruning import by_layer, flat, smallest, units_left
from dlhw.views.pruning import Curve, plot_losses
from support.composing import Ask

SMALL = (
    "experiment=playground_prune",
    "study.epochs=3",
    "study.retrain_epochs=2",
    "study.seeds=2",
    "study.widths=[3,4]",
    "study.smaller=[1,2]",
    "study.pruned_percent=[0,50]",
)
PENALTIES = {
    "none": Regularization(0.0, 0.0, 0.0),
    "l1": Regularization(0.0, 0.0, 0.0, l1_truncated=0.03),
    "l2": Regularization(0.0, 0.0, 0.02),
}
LR, BATCH = 0.1, 15


def small_task() -> Task:
    """Return a task of 40 training samples, which are not a multiple of the batch size, in float64."""
    seeds = [5, 6]
    samples = draw(
        seeds, kind="spiral", points=80, noise=5.0, train_ratio=50.0, features=["x", "y", "sin_x"], dtype=torch.float64
    )
    return Task(*samples, seeds, PENALTIES, layers=2, activation="Tanh", output="Tanh", lr=LR, batch_size=BATCH)


def train_alone(net: nn.Module, x: Tensor, y: Tensor, penalty: Regularization, *, epochs: int) -> None:
    """Train one network by a textbook loop. L1 is applied as on the page, weight by weight."""
    weights = [layer.weight for layer in net.modules() if isinstance(layer, nn.Linear)]
    for _ in range(epochs):
        for start in range(0, len(x), BATCH):
            net.zero_grad()
            loss = ((net(x[start : start + BATCH]).squeeze(1) - y[start : start + BATCH]) ** 2 / 2).mean()
            (loss + penalty.l2 * sum((weight**2).sum() for weight in weights)).backward()
            before = [weight.detach().clone() for weight in weights]
            with torch.no_grad():
                for parameter in net.parameters():
                    assert parameter.grad is not None
                    parameter.sub_(LR * parameter.grad)
                if penalty.l1_truncated:
                    for weight, old in zip(weights, before, strict=True):
                        new = weight - LR * penalty.l1_truncated * old.sign()
                        weight.copy_(torch.where((old == 0) | (weight * new < 0), 0.0, new))


@pytest.mark.parametrize("p", range(3))
@pytest.mark.parametrize("s", range(2))
def test_each_network_of_an_ensemble_equals_the_same_network_trained_alone(p: int, s: int) -> None:
    task = small_task()
    networks = task.networks(4)
    nets = task.ensemble(networks)
    task.fit(nets, epochs=20)
    alone = networks[2 * p + s]
    train_alone(alone, task.train[0][s], task.train[1][s], list(PENALTIES.values())[p], epochs=20)
    together = nets.model(2 * p + s)
    for a, b in zip(together.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    if p == 1:
        assert any((layer.weight == 0).any() for layer in alone.modules() if isinstance(layer, nn.Linear))
    expected = ((alone(task.test[0][s]).squeeze(1) - task.test[1][s]) ** 2 / 2).mean()
    assert float(task.test_losses(nets)[p, 0, s]) == pytest.approx(expected.item(), abs=1e-12)


def test_pruned_weights_stay_exactly_0_and_the_others_are_trained() -> None:
    task = small_task()
    nets = task.ensemble(task.networks(4))
    masks = smallest(flat(nets.weights()).abs(), 10)
    before = flat(nets.weights()).clone()
    task.fit(nets, epochs=3, pruned=by_layer(masks, nets.weights()))
    after = flat(nets.weights())
    assert masks.sum(1).tolist() == [10] * 6
    assert bool((after[masks] == 0).all())
    assert bool((after[~masks] != before[~masks]).all())


def test_networks_differ_by_seed_and_start_equal_for_each_penalty() -> None:
    rows = flat(small_task().ensemble(small_task().networks(4)).weights())
    assert torch.equal(rows[:2], rows[2:4])
    assert not torch.equal(rows[0], rows[1])
    assert float(rows.abs().max()) <= 0.5


def test_points_are_either_for_training_or_for_testing() -> None:
    train, test = draw([1], kind="spiral", points=81, noise=0.0, train_ratio=40.0, features=["x", "y"])
    assert (train[0].shape, test[0].shape) == ((1, 32, 2), (1, 49, 2))
    assert len({tuple(point) for point in torch.cat([train[0], test[0]], 1)[0].tolist()}) >= 80  # two arms meet at 0


def test_smallest_selects_the_number_of_smallest_scores_of_each_model() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 0.0, 0.0, 5.0]])
    assert smallest(scores, 2).tolist() == [[False, True, False, True], [True, True, False, False]]
    assert not smallest(scores, 0).any()
    assert smallest(scores, 4).all()


def test_by_layer_is_the_inverse_of_flat() -> None:
    weights = [torch.randn(3, 4, 2), torch.randn(3, 1, 4)]
    for part, weight in zip(by_layer(flat(weights), weights), weights, strict=True):
        assert torch.equal(part, weight)


def test_units_left_counts_units_between_inputs_and_output() -> None:
    first = torch.ones(4, 3, 2)
    second, third = torch.ones(4, 3, 3), torch.ones(4, 1, 3)
    first[1, 0] = 0  # no input
    second[2, :, 1] = 0  # no output
    second[3, 2] = 0  # no input
    third[3, 0, :2] = 0  # the units that have inputs have no output, so no unit of the first layer has one either
    assert units_left([first, second, third]).tolist() == [6, 5, 5, 0]


def test_units_that_are_not_left_can_be_removed() -> None:
    task = small_task()
    net = task.networks(4)[0]
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    x = task.train[0][0]
    with torch.no_grad():
        layers[0].weight[1] = 0  # constant
        layers[1].weight[:, 2] = 0  # without effect
        expected = net(x)
        layers[1].bias += layers[1].weight[:, 1] * torch.tanh(layers[0].bias[1])
        layers[1].weight[:, 1] = 0
        smaller = [nn.Linear(3, 2), nn.Linear(2, 4), layers[2]]
        for new, weight, bias in (
            (smaller[0], layers[0].weight[[0, 3]], layers[0].bias[[0, 3]]),
            (smaller[1], layers[1].weight[:, [0, 3]], layers[1].bias),
        ):
            new.weight, new.bias = nn.Parameter(weight), nn.Parameter(bias)
        output = torch.tanh(smaller[2](torch.tanh(smaller[1](torch.tanh(smaller[0](x))))))
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-14)
    assert units_left([layer.weight.unsqueeze(0) for layer in layers]).tolist() == [6]


def measured(weights_left: int, *losses: float) -> Measured:
    """Return a result with these losses."""
    left = torch.ones(len(losses))
    return Measured(4, "none", "magnitude", False, 0.0, weights_left, left, torch.tensor(losses, dtype=torch.float64))


def test_smallest_as_good_stops_at_the_first_worse_network() -> None:
    results = [measured(40, 1, 1, 9), measured(30, 2, 2, 2), measured(20, 1, 3, 3), measured(10, 1, 1, 1)]
    assert smallest_as_good(results, 2.0).weights_left == 30
    assert smallest_as_good(results, 0.5).weights_left == 40


def test_row_has_quartiles_and_the_fraction_of_solved_networks() -> None:
    row = measured(40, 1, 2, 3, 4, 10).row(2.5)
    assert [row[f"test_loss_{name}"] for name in ("lower", "median", "upper", "mean")] == [2, 3, 4, 4]
    assert (row["n"], row["solved_fraction"]) == (5, 0.4)


def test_all_checks_agree_for_small_networks(ask: Ask) -> None:
    answer = ask(*SMALL)
    assert answer.disagreements == []
    assert len(answer.checks) == 8
    assert set(answer.figures) == {"histogram", "pruning"}
    assert [(row["width"], row["penalty"]) for row in answer.tables["weights"]] == [
        (width, penalty) for width in (3, 4) for penalty in PENALTIES
    ]
    rows = answer.tables["pruning"]
    assert len(rows) == 2 * 3 + 2 * 3 * 2 * 2 * 2
    assert {row["weights_left"] for row in rows if row["method"] == "scratch"} == {9, 20}
    assert {row["weights_left"] for row in rows if row["width"] == 4 and row["method"] == "magnitude"} == {48, 24}


def test_nothing_pruned_reproduces_the_trained_loss(ask: Ask) -> None:
    answer = ask(*SMALL, "study.smaller=[]", "study.thresholds=[1e-9,0.1]")
    dense = {(row["width"], row["penalty"]): row["test_loss_median"] for row in answer.tables["weights"]}
    unpruned = [row for row in answer.tables["pruning"] if not row["retrained"] and row["pruned_percent"] == 0]
    assert len(unpruned) == 12
    assert all(row["test_loss_median"] == dense[row["width"], row["penalty"]] for row in unpruned)
    assert all(row["test_loss_median_without_1e-09"] == row["test_loss_median"] for row in answer.tables["weights"])


def test_unsolved_networks_are_reported_but_not_compared(ask: Ask) -> None:
    answer = ask(*SMALL, "study.solved_below=1e-9")
    assert len(answer.messages) == 12
    assert all("0 of 2 networks have a test loss below 1e-09" in line for line in answer.messages[::2])
    assert all("do not solve the problem" in line for line in answer.messages[1::2])
    assert not any("weights_" in name for name in answer.numbers)


def test_regression_data_has_a_linear_output(ask: Ask) -> None:
    answer = ask(*SMALL, "study.kind=reg_plane", "study.points=60", "study.noise=10", "study.lr=0.001")
    assert answer.disagreements == []


def test_panels_share_their_limits() -> None:
    losses = torch.rand(2, 3, dtype=torch.float64)
    panels = {
        name: [Curve(name, [20, 10], scale * losses, "black", "o", False)] for name, scale in (("a", 1), ("b", 9))
    }
    axes = plot_losses(panels, level=0.05, title="t", subtitle="s").axes
    assert axes[0].get_ylim() == axes[1].get_ylim()
    assert axes[0].get_xlim() == axes[1].get_xlim()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study.pruned_percent=[0,50,50]", r"study\.pruned_percent=\[0\.0, 50\.0, 50\.0\]: must start with 0"),
        ("study.pruned_percent=[10,50]", r"study\.pruned_percent=\[10\.0, 50\.0\]: must start with 0"),
        ("study.pruned_percent=[0,100]", r"study\.pruned_percent.*100.*must be less than 100"),
        ("study.widths=[4,3]", r"study\.widths=\[4, 3\]: must be in increasing order without duplicates"),
        ("study.smaller=[2,2]", r"study\.smaller=\[2, 2\]: must be in increasing order"),
        ("study.smaller=[2,3]", r"study\.smaller=\[2, 3\]: must not contain 3, which is in study\.widths"),
        ("study.thresholds=[0.1,0.01]", r"study\.thresholds=\[0\.1, 0\.01\]: must be in increasing order"),
        ("study.features=[x,x]", r"study\.features=\['x', 'x'\]: must not contain duplicates"),
        ("study.kind=circles", r"study\.kind.*'circle', 'xor', 'gauss', 'spiral', 'reg_plane' or 'reg_gauss'"),
        ("study.seeds=1", r"study\.seeds=1: must be greater than or equal to 2"),
    ],
)
def test_invalid_settings_raise_a_one_line_usage_error(ask: Ask, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        ask(*SMALL, override)
    assert "\n" not in str(raised.value)


def test_divergence_raises_usage_error(ask: Ask) -> None:
    with pytest.raises(UsageError, match=r"study\.lr=100000: \d+ of 6 networks diverged; use a smaller one"):
        ask(*SMALL, "study.kind=reg_plane", "study.activation=Identity", "study.lr=1e5", "study.epochs=20")
