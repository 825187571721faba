"""Methods of search: which trials they train, for how many epochs, within which budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest

from dlhw.errors import UsageError
from dlhw.search.methods import METHODS, Plan, Request, drive, search
from dlhw.search.space import Interval, Parameter, Point, Space, Values

SPACE = Space(
    [
        Parameter("x", Interval(0.0, 1.0)),
        Parameter("y", Interval(1e-4, 1.0, log=True)),
        Parameter("kind", Values(("a", "b"), ordered=False)),
    ]
)
SMALL = Space([Parameter("p", Values(("1", "2", "3"), ordered=True)), Parameter("q", Values(("1", "2"), ordered=True))])
LEARNING = ["tpe", "gp", "cmaes", "genetic", "pso"]


def loss(point: Point, epochs: int) -> float:
    """Return a validation metric that falls with the epochs and is lowest at x = 0.3, y = 0.01 and kind a."""
    x, y = float(point.get("x", 0)), math.log10(float(point.get("y", 1)))
    return (x - 0.3) ** 2 + ((y + 2) / 4) ** 2 + (point.get("kind") == "b") / 4 + 1 / epochs


def searched(plan: Plan, space: Space = SPACE, *, failing: Sequence[int] = ()) -> list[list[Request]]:
    """Return the batches of a search in which the trials with some numbers fail."""
    batches = []

    def evaluate(requests: list[Request]) -> list[float]:
        batches.append(requests)
        return [
            math.inf if request.trial.number in failing else loss(request.trial.point, request.epochs)
            for request in requests
        ]

    drive(search(plan, space), evaluate)
    return batches


def epochs_of(batches: Sequence[Sequence[Request]]) -> int:
    """Return the epochs that are trained if every request continues its trial."""
    longest: dict[int, int] = {}
    for request in (request for batch in batches for request in batch):
        assert request.epochs > longest.get(request.trial.number, 0), "a trial is trained further"
        longest[request.trial.number] = request.epochs
    return sum(longest.values())


def sizes(batches: Sequence[Sequence[Request]]) -> list[tuple[int, int]]:
    """Return the number of requests of each batch, and their epochs."""
    return [(len(batch), batch[0].epochs) for batch in batches]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("total", [9, 30, 100])
def test_budget_of_epochs_is_used_but_not_exceeded(method: str, total: int) -> None:
    batches = searched(Plan(method=method, epochs=9, total_epochs=total))  # type: ignore[arg-type]
    fewest = total / 2 if method == "grid" else total - 9  # a grid has a multiple of the two kinds
    assert fewest < epochs_of(batches) <= total
    numbers = [request.trial.number for batch in batches for request in batch]
    assert sorted(set(numbers)) == list(range(len(set(numbers))))


@pytest.mark.parametrize("method", METHODS)
def test_number_of_trials_is_limited(method: str) -> None:
    batches = searched(Plan(method=method, epochs=9, trials=5))  # type: ignore[arg-type]
    trials = {request.trial.number for batch in batches for request in batch}
    assert len(trials) == (4 if method == "grid" else 5)  # two values of each key


@pytest.mark.parametrize("method", METHODS)
def test_default_budget_is_that_of_twenty_full_trials(method: str) -> None:
    assert 0.75 * 180 < epochs_of(searched(Plan(method=method, epochs=9))) <= 180  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_points_of_a_finite_space_are_exhausted(method: str) -> None:
    batches = searched(Plan(method=method, epochs=2, trials=50), SMALL)  # type: ignore[arg-type]
    points = [tuple(request.trial.point.values()) for batch in batches for request in batch if request.epochs <= 2]
    assert len({request.trial.number for batch in batches for request in batch}) == 6
    if method in ("random", "grid", "halving", "hyperband", "asha"):
        assert len(set(points)) == 6


@pytest.mark.parametrize("method", METHODS)
def test_equal_seeds_propose_equal_trials(method: str) -> None:
    one, same, other = (
        searched(Plan(method=method, epochs=9, total_epochs=270, seed=seed))  # type: ignore[arg-type]
        for seed in (0, 0, 1)
    )
    assert one == same
    assert one != other


@pytest.mark.parametrize("method", LEARNING)
def test_methods_that_learn_find_better_points_than_their_first_ones(method: str) -> None:
    batches = searched(Plan(method=method, epochs=1, trials=60))  # type: ignore[arg-type]
    values = [loss(request.trial.point, 1) for batch in batches for request in batch]
    assert min(values) < 1.04 < min(values[:8])


@pytest.mark.parametrize("method", ["tpe", "gp", "genetic", "pso"])
def test_first_points_are_those_of_random_search(method: str) -> None:
    first = [
        [request.trial.point for batch in searched(Plan(method=name, epochs=1, trials=8)) for request in batch]  # type: ignore[arg-type]
        for name in ("random", method)
    ]
    assert first[0] == first[1]


def test_successive_halving_keeps_the_best_third() -> None:
    batches = searched(Plan(method="halving", epochs=27, trials=27))
    assert sizes(batches) == [(27, 1), (9, 3), (3, 9), (1, 27)]
    for before, after in itertools.pairwise(batches):
        ranked = sorted(before, key=lambda request: loss(request.trial.point, request.epochs))
        assert [request.trial for request in after] == [request.trial for request in ranked[: len(after)]]


def test_smallest_number_of_epochs_and_eta_give_the_rungs() -> None:
    assert Plan(method="halving", epochs=81).rungs == [1, 3, 9, 27, 81]
    assert Plan(method="halving", epochs=81, min_epochs=9).rungs == [9, 27, 81]
    assert Plan(method="halving", epochs=10, eta=2).rungs == [1, 2, 5, 10]
    assert Plan(method="halving", epochs=2).rungs == [2]
    assert Plan(method="halving", epochs=500, min_epochs=20).rungs == [56, 167, 500]


def test_hyperband_has_the_brackets_of_the_paper() -> None:
    """Table 1 of Li et al. (2018), for R = 81 and eta = 3."""
    batches = searched(Plan(method="hyperband", epochs=81, trials=143))
    assert sizes(batches) == [
        *[(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)],
        *[(34, 3), (11, 9), (3, 27), (1, 81)],
        *[(15, 9), (5, 27), (1, 81)],
        *[(8, 27), (2, 81)],
        (5, 81),
    ]
    assert [batch[0].trial.bracket for batch in batches] == [0] * 5 + [1] * 4 + [2] * 3 + [3] * 2 + [4]


def test_asynchronous_halving_promotes_as_soon_as_a_third_is_better() -> None:
    batches = searched(Plan(method="asha", epochs=9, trials=9))
    order = [(request.trial.number, request.epochs) for batch in batches for request in batch]
    assert [epochs for _, epochs in order[:4]] == [1, 1, 1, 3]  # three trials, then the best of them
    best = min(range(3), key=lambda number: loss(batches[number][0].trial.point, 1))
    assert order[3] == (best, 3)
    assert sum(epochs == 9 for _, epochs in order) == 1
    assert all(len(batch) == 1 for batch in batches)
    assert max(map(len, searched(Plan(method="asha", epochs=9, trials=9, parallel=4)))) == 4


def test_grid_divides_intervals_evenly() -> None:
    space = Space([Parameter("x", Interval(1e-4, 1.0, log=True)), Parameter("n", Interval(1, 10, integer=True))])
    (batch,) = searched(Plan(method="grid", epochs=1, trials=9), space)
    assert sorted({request.trial.point["n"] for request in batch}) == [1, 6, 10]
    assert sorted({request.trial.point["x"] for request in batch}) == pytest.approx([1e-4, 1e-2, 1])
    assert len(batch) == 9


def test_whole_grid_is_trained_without_a_budget() -> None:
    assert len(searched(Plan(method="grid", epochs=100), SMALL)[0]) == 6


@pytest.mark.parametrize("method", ["halving", "hyperband", "asha", "bohb"])
def test_failed_trials_are_not_trained_further(method: str) -> None:
    batches = searched(Plan(method=method, epochs=9, total_epochs=90), failing=range(0, 100, 2))  # type: ignore[arg-type]
    requests = [request for batch in batches for request in batch]
    longest = max(request.epochs for request in requests if request.trial.number % 2)
    assert longest == 9
    for number in {request.trial.number for request in requests if request.trial.number % 2 == 0}:
        assert sum(request.trial.number == number for request in requests) == 1


@pytest.mark.parametrize("method", METHODS)
def test_search_ends_if_all_trials_fail(method: str) -> None:
    batches = searched(Plan(method=method, epochs=9, total_epochs=90), failing=range(1000))  # type: ignore[arg-type]
    numbers = [request.trial.number for batch in batches for request in batch]
    assert numbers == list(range(len(numbers))), "every trial is requested once"
    assert 40 <= epochs_of(batches) <= 90  # halving has 40 trials, none of which goes on


@pytest.mark.parametrize(("method", "at_once"), [("random", 20), ("qmc", 20), ("tpe", 1), ("gp", 1), ("genetic", 8)])
def test_points_that_do_not_depend_on_each_other_are_trained_at_once(method: str, at_once: int) -> None:
    assert len(searched(Plan(method=method, epochs=1, trials=20))[0]) == at_once  # type: ignore[arg-type]
    assert len(searched(Plan(method=method, epochs=1, trials=20, parallel=3))[0]) == 3  # type: ignore[arg-type]


def test_conditional_values_belong_to_the_points_that_read_them() -> None:
    space = Space(
        [
            Parameter("optimizer", Values(("sgd", "adam"), ordered=False)),
            Parameter("lr", Interval(1e-2, 1.0, log=True), when=("optimizer", "sgd")),
            Parameter("lr", Interval(1e-5, 1e-3, log=True), when=("optimizer", "adam")),
            Parameter("beta", Values(("0.8", "0.9"), ordered=True), when=("optimizer", "adam")),
        ]
    )
    (batch,) = searched(Plan(method="random", epochs=1, trials=30), space)
    for values in (space.values(request.trial.point) for request in batch):
        assert set(values) == {"optimizer", "lr"} | ({"beta"} if values["optimizer"] == "adam" else set())
        assert (float(values["lr"]) < 2e-3) == (values["optimizer"] == "adam")
    assert math.isinf(space.size)


def test_size_of_a_conditional_space() -> None:
    lists = {"sgd": ("1", "2", "3"), "adam": ("1", "2")}
    dependent = [
        Parameter("lr", Values(texts, ordered=True), when=("optimizer", name)) for name, texts in lists.items()
    ]
    space = Space([Parameter("optimizer", Values(("sgd", "adam", "rmsprop"), ordered=False)), *dependent])
    assert space.size == 3 + 2 + 1
    seeds = Parameter("width", Values(("1", "2"), ordered=True))
    assert Space([*space.parameters, seeds]).size == 12


def test_covariance_matrix_adaptation_needs_two_numbers() -> None:
    with pytest.raises(UsageError, match="method=cmaes needs at least two keys with several numbers"):
        search(Plan(method="cmaes", epochs=1), Space(SPACE.parameters[1:]))
