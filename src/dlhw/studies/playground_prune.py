"""Pruning of trained playground networks: do many small weights mean that a smaller network would do as well (C1.3)?

:mod:`.playground_networks` trains the networks, all of one structure at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from dlhw.data.playground import Kind
from dlhw.errors import UsageError
from dlhw.models.dense import ActivationName
from dlhw.models.playground import FeatureName
from dlhw.runtime.options import Count, Positive
from dlhw.runtime.randomness import generator, key
from dlhw.storage.answer import Answer, Check, equal
from dlhw.studies.playground_networks import INITIAL, Task, draw, output_for
from dlhw.training.objective import Regularization
from dlhw.training.pruning import by_layer, flat, set_to_zero, smallest, units_left
from dlhw.training.variants import Ensemble
from dlhw.views.plots import PALETTE
from dlhw.views.pruning import Curve, plot_histograms, plot_losses

Method = Literal["magnitude", "random", "scratch"]
"""Prune the smallest weights or random ones, or train a dense network of another width from scratch."""
Width = Annotated[int, Field(ge=1, le=256)]
PRUNING: tuple[Method, Method] = ("magnitude", "random")
NAMES = {"none": "no penalty", "l1": "L1", "l2": "L2"}
"""The penalties."""


@dataclass(frozen=True)
class Measured:
    """The networks of all seeds with one width, penalty and way of pruning."""

    width: int
    penalty: str
    method: Method
    retrained: bool
    percent: float
    """Of the weights, that are pruned."""
    weights_left: int
    units_left: Tensor
    """Hidden units that are connected to inputs and output, (S,)."""
    losses: Tensor
    """On the test points, (S,)."""

    @property
    def median(self) -> float:
        return float(self.losses.quantile(0.5))

    def solved(self, below: float) -> int:
        """Return the number of networks with a smaller test loss."""
        return int((self.losses < below).sum())

    def row(self, solved_below: float) -> dict[str, object]:
        """Return the row of the table ``pruning``."""
        return {
            "width": self.width,
            "penalty": self.penalty,
            "method": self.method,
            "retrained": self.retrained,
            "pruned_percent": self.percent,
            "weights_left": self.weights_left,
            "units_left_median": float(self.units_left.double().quantile(0.5)),
            "n": len(self.losses),
            "test_loss_median": self.median,
            "test_loss_mean": float(self.losses.mean()),
            "test_loss_lower": float(self.losses.quantile(0.25)),
            "test_loss_upper": float(self.losses.quantile(0.75)),
            "solved_fraction": self.solved(solved_below) / len(self.losses),
        }


def measure(
    task: Task, nets: Ensemble, width: int, *, variants: Sequence[tuple[Method, float, int]], retrained: bool
) -> list[Measured]:
    """Evaluate networks whose ``variants`` are (method, percentage of pruned weights, weights left)."""
    losses = task.test_losses(nets)
    units = units_left(nets.weights()).view(losses.shape)
    return [
        Measured(width, name, method, retrained, percent, left, units[p, v], losses[p, v])
        for p, name in enumerate(task.penalties)
        for v, (method, percent, left) in enumerate(variants)
    ]


def from_scratch(task: Task, width: int, *, epochs: int) -> list[Measured]:
    """Train dense networks of one width."""
    nets = task.ensemble(task.networks(width))
    task.fit(nets, epochs=epochs)
    return measure(task, nets, width, variants=[("scratch", 0.0, flat(nets.weights()).shape[1])], retrained=False)


def copies(task: Task, dense: Ensemble, masks: Tensor) -> Ensemble:
    """Return copies of the dense networks with the weights at 0 where masks (penalties, variants, S, W) are True."""
    numbers = torch.arange(dense.count).view(masks.shape[0], 1, -1).expand(masks.shape[:3])
    nets = task.ensemble([dense.model(k) for k in numbers.flatten().tolist()])
    set_to_zero(nets.weights(), by_layer(masks.flatten(0, 2), nets.weights()))
    return nets


def prune(
    task: Task, dense: Ensemble, width: int, *, percentages: Sequence[float], retrain_epochs: int
) -> tuple[list[Measured], list[Check]]:
    """Prune trained networks by magnitude and at random; evaluate; retrain with the pruned weights held at 0; evaluate.

    The networks of which nothing is pruned are trained further as well: they are the control.
    """
    trained = _rows(task, dense)
    total = trained.shape[-1]
    drawn = torch.stack([torch.rand(total, generator=generator(seed, "pruning")) for seed in task.seeds])
    scores: dict[Method, Tensor] = {"magnitude": trained.abs(), "random": drawn.expand_as(trained)}
    variants = [(method, value, total - round(value / 100 * total)) for method in scores for value in percentages]
    masks = torch.cat([smallest(scores[method], total - left) for method, _, left in variants], 1)

    nets = copies(task, dense, masks)
    at_once = measure(task, nets, width, variants=variants, retrained=False)
    checks = _after_pruning(task, dense, nets, masks, what=f"width {width}")
    task.fit(nets, epochs=retrain_epochs, pruned=by_layer(masks.flatten(0, 2), nets.weights()))
    retrained = measure(task, nets, width, variants=variants, retrained=True)
    return [*at_once, *retrained], [*checks, *_after_retraining(task, nets, masks, what=f"width {width}")]


def _rows(task: Task, nets: Ensemble) -> Tensor:
    """Return all weights, (penalties, variants, S, W)."""
    rows = flat(nets.weights())
    return rows.view(len(task.penalties), -1, len(task.seeds), rows.shape[1])


def _after_pruning(task: Task, dense: Ensemble, nets: Ensemble, masks: Tensor, *, what: str) -> list[Check]:
    """Check the numbers of weights, and that networks lose nothing if only weights that were 0 are pruned."""
    by_magnitude = slice(masks.shape[1] // 2)
    pruned, zeros = masks.sum(-1)[:, by_magnitude], (_rows(task, dense) == 0).sum(-1)
    left = (_rows(task, nets) != 0).sum(-1)[:, by_magnitude]
    wrong = left != masks.shape[-1] - torch.maximum(pruned, zeros)
    changes = (task.test_losses(nets)[:, by_magnitude] - task.test_losses(dense)).abs()
    return [
        equal(f"{what}: networks pruned by magnitude with a wrong number of weights other than 0", int(wrong.sum()), 0),
        equal(
            f"{what}: largest change of the test loss where all weights pruned by magnitude, if any, were 0",
            float(changes[pruned <= zeros].max()),
            0.0,
        ),
    ]


def _after_retraining(task: Task, nets: Ensemble, masks: Tensor, *, what: str) -> list[Check]:
    """Check that pruned weights are 0, and that the two copies of the control are equal."""
    rows = _rows(task, nets)
    half = masks.shape[1] // 2
    return [
        equal(f"{what}: pruned weights that are not 0 after retraining", int((rows[masks] != 0).sum()), 0),
        equal(
            f"{what}: largest difference of a weight between the two copies of the control",
            float((rows[:, 0] - rows[:, half]).abs().max()),
            0.0,
        ),
    ]


def select(
    results: Iterable[Measured], penalty: str, method: Method, *, retrained: bool = False, width: int | None = None
) -> list[Measured]:
    """Return some results, those with the most weights first; ``width`` None: of all widths."""
    chosen = [
        result
        for result in results
        if (result.penalty, result.method, result.retrained) == (penalty, method, retrained)
        and width in (None, result.width)
    ]
    return sorted(chosen, key=lambda result: -result.weights_left)


def smallest_as_good(results: Sequence[Measured], largest_loss: float) -> Measured:
    """Return the smallest network such that it and all larger ones, which come first, have at most this median loss.

    The first one, with which the others are compared, counts in any case.
    """
    return [results[0], *itertools.takewhile(lambda result: result.median <= largest_loss, results[1:])][-1]


@dataclass(frozen=True)
class Summary:
    """What the results say about the networks of one width and penalty."""

    weights: Tensor
    """After training, without biases, (S, W)."""
    medians_without: dict[float, float]
    """The median test loss by threshold, after the weights below this size have been set to 0."""
    dense: Measured
    control: Measured
    """The dense networks after further training."""
    as_good: dict[str, Measured]
    """The smallest networks that are as good as ``dense`` (``pruned``) or ``control`` (all others).

    Empty if the median of ``dense`` does not solve the problem.
    """

    def below(self, threshold: float) -> float:
        """Return the fraction of weights with |w| < threshold, over all seeds."""
        return float((self.weights.abs() < threshold).double().mean())

    @property
    def zeros(self) -> float:
        """The fraction of weights that are exactly 0."""
        return float((self.weights == 0).double().mean())

    def row(self, solved_below: float) -> dict[str, object]:
        """Return the row of the table ``weights``."""
        return {
            "width": self.dense.width,
            "penalty": self.dense.penalty,
            "n": len(self.weights),
            "weights": self.weights.shape[1],
            "median_size": float(self.weights.abs().flatten().quantile(0.5)),
            "zero_fraction": self.zeros,
            **{f"below_{threshold:g}_fraction": self.below(threshold) for threshold in self.medians_without},
            "units_left_median": float(self.dense.units_left.double().quantile(0.5)),
            "solved_fraction": self.dense.solved(solved_below) / len(self.weights),
            "test_loss_median": self.dense.median,
            **{f"test_loss_median_without_{size:g}": loss for size, loss in self.medians_without.items()},
        }

    @property
    def numbers(self) -> dict[str, float]:
        """Return the numbers for the summary of the run."""
        largest = max(self.medians_without)
        values = {
            "zero_fraction": self.zeros,
            f"below_{largest:g}_fraction": self.below(largest),
            "test_loss": self.dense.median,
            f"test_loss_without_{largest:g}": self.medians_without[largest],
            **{f"weights_{name}": result.weights_left for name, result in self.as_good.items()},
        }
        return {f"{self.dense.penalty}_{self.dense.width}_{name}": value for name, value in values.items()}

    def sentences(self, factor: float, solved_below: float) -> list[str]:
        """Describe the networks in two lines."""
        total, largest = self.weights.shape[1], max(self.medians_without)
        first = (
            f"width {self.dense.width}, {NAMES[self.dense.penalty]}: {self.dense.solved(solved_below)} of "
            f"{len(self.weights)} networks have a test loss below {solved_below:g} (median {self.dense.median:.3g}). "
            f"{100 * self.zeros:.0f} % of {total} weights are 0, {100 * self.below(largest):.0f} % are below "
            f"{largest:g}; without these, the median is {self.medians_without[largest]:.3g}."
        )
        if not self.as_good:
            return [first, "  The dense networks do not solve the problem, so pruning is not compared with them."]
        left = {name: result.weights_left for name, result in self.as_good.items()}
        second = (
            f"  Weights for at most {factor:g} times the median of the dense networks: {left['pruned']} after pruning "
            f"the smallest, {left['retrained']} with retraining ({left['random']} if random weights are pruned), "
            f"{left['scratch']} in networks trained from scratch."
        )
        return [first, second]


def summarize(
    task: Task,
    dense: Ensemble,
    results: Sequence[Measured],
    width: int,
    *,
    thresholds: Sequence[float],
    factor: float,
    solved_below: float,
) -> list[Summary]:
    """Compare the dense networks of one width with their pruned versions and with smaller networks, by penalty."""
    rows = _rows(task, dense)
    losses = task.test_losses(copies(task, dense, torch.cat([rows.abs() < threshold for threshold in thresholds], 1)))
    summaries = []
    for p, penalty in enumerate(task.penalties):
        pruned = select(results, penalty, "magnitude", retrained=False, width=width)
        retrained = select(results, penalty, "magnitude", retrained=True, width=width)
        random = select(results, penalty, "random", retrained=True, width=width)
        others = [other for other in scratch(results, penalty) if other.weights_left <= pruned[0].weights_left]
        largest = factor * retrained[0].median
        as_good = {
            "pruned": smallest_as_good(pruned, factor * pruned[0].median),
            "retrained": smallest_as_good(retrained, largest),
            "random": smallest_as_good(random, largest),
            "scratch": smallest_as_good(others, largest),
        }
        without = dict(zip(thresholds, losses[p].quantile(0.5, dim=1).tolist(), strict=True))
        solved = pruned[0].median < solved_below
        summaries.append(Summary(rows[p, 0], without, pruned[0], retrained[0], as_good if solved else {}))
    return summaries


def scratch(results: Sequence[Measured], penalty: str) -> list[Measured]:
    """Return the networks of all widths that are trained from scratch; the controls are such networks, too."""
    controls = [result for result in select(results, penalty, "magnitude", retrained=True) if result.percent == 0]
    return sorted([*select(results, penalty, "scratch"), *controls], key=lambda result: -result.weights_left)


def curves(results: Sequence[Measured], width: int, penalty: str) -> list[Curve]:
    """Return the curves of one panel: networks of this width pruned in four ways, and dense networks from scratch."""
    magnitude, random = (
        [select(results, penalty, method, retrained=retrained, width=width) for retrained in (False, True)]
        for method in PRUNING
    )
    return [
        _curve("smallest weights pruned, not retrained", magnitude[0], PALETTE[0], "o", dashed=True),
        _curve("smallest weights pruned, retrained", magnitude[1], PALETTE[0], "o"),
        _curve("random weights pruned, not retrained", random[0], PALETTE[1], "s", dashed=True),
        _curve("random weights pruned, retrained", random[1], PALETTE[1], "s"),
        _curve("dense networks from scratch", scratch(results, penalty), PALETTE[2], "^"),
    ]


def _curve(name: str, results: Sequence[Measured], color: str, marker: str, *, dashed: bool = False) -> Curve:
    losses = torch.stack([result.losses for result in results])
    return Curve(name, [result.weights_left for result in results], losses, color, marker, dashed)


def sizes_by_panel(summaries: Sequence[Summary], *, layers: int) -> dict[str, dict[str, Tensor]]:
    """Return the weights of each width and penalty by the titles of the histogram's panels and their labels."""
    panels: dict[str, dict[str, Tensor]] = {}
    for summary in summaries:
        title = f"{layers} hidden layers of {summary.dense.width}"
        panels.setdefault(title, {})[NAMES[summary.dense.penalty]] = summary.weights
    return panels


def require_valid(
    widths: Sequence[int], smaller: Sequence[int], thresholds: Sequence[float], pruned_percent: Sequence[float]
) -> None:
    """Raise UsageError for lists that do not increase, a width in both lists, or percentages without the control."""
    increasing: dict[str, Sequence[float]] = {"widths": widths, "smaller": smaller, "thresholds": thresholds}
    for name, values in increasing.items():
        if values != sorted(set(values)):
            raise UsageError(f"study.{name}={values}: must be in increasing order without duplicates")
    if pruned_percent != sorted(set(pruned_percent)) or pruned_percent[:1] != [0]:
        raise UsageError(f"study.pruned_percent={pruned_percent}: must start with 0, the control, and increase")
    if both := sorted({*widths} & {*smaller}):
        raise UsageError(f"study.smaller={smaller}: must not contain {both[0]}, which is in study.widths")


def playground_prune(
    *,
    seed: int,
    kind: Kind,
    points: Annotated[int, Field(ge=10, le=1_000_000)] | None,
    noise: Annotated[float, Field(ge=0, le=100)],
    train_ratio: Annotated[float, Field(gt=0, lt=100)],
    features: Annotated[list[FeatureName], Field(min_length=1)] | Literal["all"],
    layers: Annotated[int, Field(ge=1, le=10)],
    widths: Annotated[list[Width], Field(min_length=1)],
    smaller: list[Width],
    activation: ActivationName,
    l1: Positive,
    l2: Positive,
    lr: Positive,
    batch_size: Count,
    epochs: Count,
    retrain_epochs: Count,
    pruned_percent: list[Annotated[float, Field(ge=0, lt=100)]],
    seeds: Annotated[int, Field(ge=2, le=1000)],
    thresholds: Annotated[list[Positive], Field(min_length=1)],
    factor: Annotated[float, Field(ge=1)],
    solved_below: Positive,
) -> Answer:
    """Train, prune and retrain playground networks of several widths with each penalty, and train smaller ones."""
    require_valid(widths, smaller, thresholds, pruned_percent)
    keys = [key(seed, "playground_prune", i) for i in range(seeds)]
    task = Task(
        *draw(keys, kind=kind, points=points, noise=noise, train_ratio=train_ratio, features=features),
        keys,
        {
            "none": Regularization(0.0, 0.0, 0.0),
            "l1": Regularization(0.0, 0.0, 0.0, l1_truncated=l1),
            "l2": Regularization(0.0, 0.0, l2),
        },
        layers=layers,
        activation=activation,
        output=output_for(kind),
        lr=lr,
        batch_size=batch_size,
    )
    results = [part for width in smaller for part in from_scratch(task, width, epochs=epochs + retrain_epochs)]
    checks: list[Check] = []
    trained = {width: task.ensemble(task.networks(width)) for width in widths}
    for width, nets in trained.items():
        task.fit(nets, epochs=epochs)
        measured, checked = prune(task, nets, width, percentages=pruned_percent, retrain_epochs=retrain_epochs)
        results += measured
        checks += checked
    summaries = [
        summary
        for width, nets in trained.items()
        for summary in summarize(
            task, nets, results, width, thresholds=thresholds, factor=factor, solved_below=solved_below
        )
    ]
    return Answer(
        numbers={name: value for summary in summaries for name, value in summary.numbers.items()},
        checks=checks,
        tables={
            "weights": [summary.row(solved_below) for summary in summaries],
            "pruning": [result.row(solved_below) for result in results],
        },
        figures={
            "histogram": plot_histograms(
                sizes_by_panel(summaries, layers=layers),
                initial=INITIAL,
                title=f"playground_prune: sizes of trained weights ({kind})",
                subtitle=f"{seeds} networks for each width and penalty, {epochs} epochs; without biases",
            ),
            "pruning": plot_losses(
                {f"width {width}, {NAMES[name]}": curves(results, width, name) for width in widths for name in NAMES},
                level=solved_below,
                title=f"playground_prune: test loss against the number of weights ({kind})",
                subtitle=f"median over {seeds} seeds; solid lines: {epochs + retrain_epochs} epochs in total, with "
                f"bands between the quartiles; dashed lines: {epochs} epochs",
            ),
        },
        messages=[line for summary in summaries for line in summary.sentences(factor, solved_below)],
    )
