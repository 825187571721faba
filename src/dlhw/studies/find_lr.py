"""A learning rate for a config, from a range test: the rate rises from step to step until the loss diverges.

L. N. Smith, Cyclical Learning Rates for Training Neural Networks, WACV 2017, section 3.3. The steps are those of
training itself with another schedule.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from dlhw.errors import UsageError
from dlhw.runtime import products
from dlhw.runtime.options import Positive
from dlhw.runtime.progress import tracked
from dlhw.storage.answer import Answer
from dlhw.training.loop import Training
from dlhw.views.plots import COLORS, PALETTE, label, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DECAY = 0.9
"""The weight of a loss in the smoothed one, relative to that of the next step."""
LEAST_DECREASE = 0.05
"""A decrease by less than this fraction of the first loss counts as none."""
LOST = 0.9
"""The loss has diverged when it has lost this fraction of its decrease and does not get it back."""
LARGEST_INCREASE = 10.0
"""The test ends when the loss has increased by more than this multiple of its first value."""


@dataclass(frozen=True)
class RangeTest:
    """What the losses of one seed say about its learning rate; None: the losses do not show it."""

    steepest: float | None
    """The rate at which the smoothed loss decreases fastest against the logarithm of the rate."""
    minimum: float | None
    """The rate at which the smoothed loss is lowest; None if it still decreases at the largest rate."""
    divergence: float | None
    """The rate from which the loss diverges."""

    @property
    def suggestion(self) -> float | None:
        """The larger one of two rates: that of the steepest descent, and a tenth of that of the minimum."""
        if self.steepest is None or self.minimum is None:
            return None
        return max(self.steepest, self.minimum / 10)


def find_lr(
    *,
    lowest: Positive,
    highest: Positive,
    steps: Annotated[int, Field(ge=20, le=100_000)],
    seeds: Annotated[int, Field(ge=1, le=100)],
    trainings: Callable[[int], Iterator[Training]],
) -> Answer:
    """Train for ``steps`` steps whose rates rise geometrically from ``lowest`` to ``highest``; suggest a rate.

    ``trainings`` yields trainings with the base learning rate 1. Raise UsageError.
    """
    if not lowest < highest:
        raise UsageError(f"study.highest={highest:g}: must be greater than study.lowest={lowest:g}")
    rates = [lowest * (highest / lowest) ** (step / (steps - 1)) for step in range(steps)]
    curves: dict[int, list[float]] = {}
    for training in trainings(seeds):
        curves |= zip(training.seeds, losses_at(training, rates), strict=True)
    tests = {seed: range_test(rates, losses) for seed, losses in curves.items()}
    rows = [
        {"seed": seed, "learning_rate": rate, "loss": loss, "smoothed_loss": mean}
        for seed, losses in curves.items()
        for rate, loss, mean in zip(rates, losses, smoothed(losses), strict=False)
    ]
    return Answer(
        numbers=numbers_of(list(tests.values())),
        messages=[conclusion(list(tests.values()), lowest=lowest, highest=highest)],
        tables={"learning_rates": rows},
        figures={"learning_rates": _plot(rates, curves, list(tests.values()))},
    )


def losses_at(training: Training, rates: Sequence[float]) -> list[list[float]]:
    """Take one step at each rate, or fewer if the loss of every seed diverges. Return the losses of each seed.

    A loss is that of the batch before the update. The losses of a seed end where they are not finite any more.
    """

    def rate(epoch: float) -> float:
        return rates[round(epoch * training.steps)]

    training.variants.schedules = [rate] * len(training.variants.schedules)
    measured = itertools.chain.from_iterable(map(training.train_epoch, itertools.count(1)))
    seeds = ", ".join(map(str, training.seeds))
    rows: list[list[float]] = []
    with products.computed_by(training.matrix_products):
        steps = itertools.islice(measured, len(rates))
        for row in tracked(steps, total=len(rates), what=f"steps (seed {seeds})"):
            rows.append(row[:, 0].tolist())
            if all(_has_exploded(loss, first) for loss, first in zip(rows[-1], rows[0], strict=True)):
                break
    return [list(itertools.takewhile(math.isfinite, losses)) for losses in zip(*rows, strict=True)]


def _has_exploded(loss: float, first: float) -> bool:
    return not loss <= first + LARGEST_INCREASE * abs(first)  # also if it is not a number


def smoothed(losses: Iterable[float]) -> list[float]:
    """Return the means of all losses up to each step, with weights that decrease by ``DECAY`` per step."""
    means, total, weight = [], 0.0, 0.0
    for loss in losses:
        total, weight = DECAY * total + loss, DECAY * weight + 1
        means.append(total / weight)
    return means


def range_test(rates: Sequence[float], losses: Sequence[float]) -> RangeTest:
    """Return what the losses at these rates show. There are fewer losses than rates if the test ended early."""
    means = smoothed(losses)
    tenth = max(2, len(rates) // 10)
    if len(means) <= tenth:
        return RangeTest(None, None, None)
    first = statistics.fmean(losses[:tenth])
    lowest = min(range(len(means)), key=means.__getitem__)
    decrease = first - means[lowest]
    if lowest < 2 or decrease <= LEAST_DECREASE * abs(first):
        return RangeTest(None, None, rates[len(means)] if len(means) < len(rates) else None)
    slopes = [after - before for before, after in zip(means[: lowest - 1], means[2:], strict=False)]
    steepest = 1 + min(range(len(slopes)), key=slopes.__getitem__)
    kept = max(step for step, mean in enumerate(means) if mean < means[lowest] + LOST * decrease)
    return RangeTest(
        steepest=rates[steepest],
        minimum=rates[lowest] if lowest < len(rates) - tenth // 2 else None,
        divergence=rates[kept + 1] if kept < len(rates) - 1 else None,
    )


def conclusion(tests: Sequence[RangeTest], *, lowest: float, highest: float) -> str:
    """Return the line with the suggestion, or why there is none."""
    seeds = f"{len(tests)} seed{'' if len(tests) == 1 else 's'}"
    suggestions = [test.suggestion for test in tests if test.suggestion is not None]
    divergence = _diverges_above(tests)
    if len(suggestions) == len(tests):
        spread = f": {min(suggestions):.2g} to {max(suggestions):.2g}" if len(tests) > 1 else ""
        end = f"does not diverge up to {highest:.2g}" if divergence is None else f"diverges above {divergence:.2g}"
        return f"suggested: optimizer.lr={_mean(suggestions):.2g} ({seeds}{spread}; the loss {end})"
    if any(test.steepest is None for test in tests):
        wider = "" if divergence is None else f", and diverges above {divergence:.2g}; expected a smaller study.lowest"
        return f"no suggestion: the loss does not decrease at the rates from {lowest:.2g} to {highest:.2g}{wider}"
    return f"no suggestion: the loss still decreases at {highest:.2g}; expected a larger study.highest"


def numbers_of(tests: Sequence[RangeTest]) -> dict[str, float]:
    """Return the suggestion and the rates that it is based on: geometric means over the seeds that have them."""
    values = {
        "learning_rate": [test.suggestion for test in tests],
        "steepest_descent": [test.steepest for test in tests],
        "minimum_divided_by_10": [None if test.minimum is None else test.minimum / 10 for test in tests],
    }
    means = {name: _mean([rate for rate in rates if rate is not None]) for name, rates in values.items() if all(rates)}
    divergence = _diverges_above(tests)
    return means if divergence is None else means | {"diverges_above": divergence}


def _diverges_above(tests: Sequence[RangeTest]) -> float | None:
    return min((test.divergence for test in tests if test.divergence is not None), default=None)


def _mean(rates: Sequence[float]) -> float:
    return statistics.geometric_mean(rates)


def _plot(rates: Sequence[float], curves: Mapping[int, Sequence[float]], tests: Sequence[RangeTest]) -> Figure:
    numbers = numbers_of(tests)
    figure, (axes,) = new_figure(
        1,
        title="find_lr: the loss of each step against its learning rate",
        subtitle="lines: smoothed losses, points: losses of single batches",
    )
    for color, (seed, losses) in zip(itertools.cycle(PALETTE), curves.items(), strict=False):
        axes.plot(rates[: len(losses)], losses, ".", color=color, markersize=2, alpha=0.5)
        axes.plot(rates[: len(losses)], smoothed(losses), color=color, linewidth=1.4, label=f"seed {seed}")
    for name, style, text in (("learning_rate", "-", "suggested"), ("diverges_above", "--", "diverges above")):
        if name in numbers:
            legend = f"{text} {numbers[name]:.2g}"
            axes.axvline(numbers[name], color=COLORS["reference"], linestyle=style, linewidth=1, label=legend)
    starts = [losses[0] for losses in curves.values() if losses]
    lowest = min((min(losses) for losses in curves.values() if losses), default=0.0)
    axes.set_xscale("log")
    axes.set_xlim(rates[0], rates[-1])
    if starts:
        margin = 0.5 * (max(starts) - lowest) or 1.0
        axes.set_ylim(lowest - 0.1 * margin, max(starts) + margin)
    label(axes, x="learning rate", y="loss")
    return figure
