"""Compare methods of hyperparameter search on the learning curves of a sweep (sheet D, questions 2.1 and 2.2)."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from dlhw.errors import UsageError
from dlhw.runtime.options import Count
from dlhw.runtime.threads import usable_cores
from dlhw.search.methods import Method, Plan, search
from dlhw.search.replay import PointValues, Replay, Table, regret, replay
from dlhw.search.space import Parameter, Space, Values, listed
from dlhw.views.comparison.options import Comparison
from dlhw.views.comparison.ranking import Conclusion

if TYPE_CHECKING:
    from dlhw.storage.record import Record

log = logging.getLogger("dlhw")

Numbers = NDArray[np.float64]

_REPORTED = (0.25, 0.5, 1.0)
"""Shares of the budget at which the table has the regret."""
_POINTS = 200  # of a line
_LINES: dict[Method, tuple[str, str]] = {
    "random": ("#000000", "-"),
    "grid": ("#8C8C8C", "-"),
    "qmc": ("#56B4E9", "-"),
    "tpe": ("#D55E00", "-"),
    "gp": ("#E69F00", "-"),
    "cmaes": ("#009E73", "-"),
    "genetic": ("#66C2A5", "-"),
    "pso": ("#7FB000", "-"),
    "halving": ("#0072B2", "--"),
    "hyperband": ("#CC79A7", "--"),
    "asha": ("#7570B3", "--"),
    "bohb": ("#A6093D", "--"),
}
"""Colour and style; the methods that stop trials early are dashed."""


@dataclass(frozen=True)
class Methods(Comparison):
    """Replays methods of search on a grid, all settings of which are trained to the end.

    Args:
        methods: their names.
        replays: number of replays of each, with the seeds 0, 1, ...
        trials: the budget, in trials of all epochs.
    """

    methods: list[Method]
    replays: Count
    trials: Count

    def draw(self, record: Record, conclusion: Conclusion, *, title: str) -> list[str]:
        """Replay the methods, and write their tables and figures. Return a note if that is not possible."""
        notes = super().draw(record, conclusion, title=title)
        if conclusion.status == "unfinished" or conclusion.monitor is None:
            return [*notes, "methods.png: not drawn (not all settings are trained)"]
        table, epochs = _table(conclusion, conclusion.monitor)
        plans: list[Plan] = []
        for method in self.methods:
            plan = Plan(method=method, epochs=epochs, total_epochs=self.trials * epochs)
            try:
                search(plan, table.space)
            except UsageError as error:  # the method cannot search this space
                notes.append(str(error))
                continue
            plans += [replace(plan, seed=seed) for seed in range(self.replays)]
        results = _Results(_replayed(plans, table), table, epochs, self.trials * epochs)
        record.table("methods", results.rows())
        experiment = title.partition(":")[0]
        _draw_regret(record, results, title=f"{experiment}: {self.replays} searches per method")
        _draw_tried(record, results, title=f"{experiment}: the trials of each method (seed 0)")
        return [*notes, *results.lines()]


def _table(conclusion: Conclusion, monitor: str) -> tuple[Table, int]:
    """Return the learning curves of all settings, averaged over seeds, and the largest number of epochs."""
    keys = list(conclusion.settings[0].values)
    texts = {key: list(dict.fromkeys(setting.values[key] for setting in conclusion.settings)) for key in keys}
    curves: dict[PointValues, Sequence[float]] = {}
    for setting in conclusion.settings:
        columns = zip(*([row[monitor] for row in run.rows] for run in setting.runs), strict=False)
        curves[tuple(setting.values.items())] = [statistics.fmean(column) for column in columns]
    failed = frozenset(tuple(setting.values.items()) for setting in conclusion.settings if not setting.complete)
    space = Space([Parameter(key, listed(texts[key])) for key in keys])
    return Table(space, curves, failed), max(map(len, curves.values()))


def _replayed(plans: Sequence[Plan], table: Table) -> dict[Method, list[Replay]]:
    """Replay all plans, in one process per core."""
    from joblib import Parallel, delayed

    log.info("replaying %d searches", len(plans))
    size = math.ceil(len(plans) / (16 * usable_cores()))
    done: list[Replay] = Parallel(n_jobs=usable_cores(), batch_size=size)(delayed(replay)(p, table) for p in plans)
    by_method: dict[Method, list[Replay]] = {}
    for plan, replayed in zip(plans, done, strict=True):
        by_method.setdefault(plan.method, []).append(replayed)
    return by_method


class _Results:
    """The regret of every replay on a scale of budgets, and the ranks of the methods."""

    def __init__(self, replays: Mapping[Method, Sequence[Replay]], table: Table, epochs: int, budget: int) -> None:
        self.replays, self.table, self.epochs = replays, table, epochs
        self.budgets = np.unique(np.round(np.geomspace(1, budget, _POINTS)))
        self.regret = np.array(
            [[regret(single, table, self.budgets) for single in of_method] for of_method in replays.values()]
        )  # (methods, replays, budgets)
        self.ranks = rankdata(self.regret, axis=0).mean(1)  # (methods, budgets)

    def mean(self, method: int) -> tuple[Numbers, Numbers]:
        """Return the mean regret of a method at each budget, and twice its standard error; nan without a result."""
        values = np.where(np.isfinite(self.regret[method]), self.regret[method], np.nan)
        has_all = np.isfinite(values).all(0)
        mean = np.where(has_all, values.mean(0), np.nan)
        error = values.std(0, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else np.full_like(mean, np.nan)
        return mean, 2 * np.where(has_all, error, np.nan)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per method: number of trials, regret with two standard errors, rank at some budgets."""
        rows = []
        for index, (method, replays) in enumerate(self.replays.items()):
            mean, error = self.mean(index)
            row: dict[str, Any] = {"method": method, "n": len(replays)}
            row["trials"] = statistics.fmean(len(single.points) for single in replays)
            for share in _REPORTED:
                at = int(np.searchsorted(self.budgets, share * self.budgets[-1]))
                name = f"{self.budgets[at]:.0f}_epochs"
                row |= {f"regret_{name}": float(mean[at]), f"two_standard_errors_{name}": float(error[at])}
                row[f"rank_{name}"] = float(self.ranks[index, at])
            rows.append(row)
        return rows

    def lines(self) -> list[str]:
        """Return the table for the console, sorted by the regret at the whole budget."""
        last = f"{self.budgets[-1]:.0f}_epochs"
        rows = sorted(self.rows(), key=lambda row: row[f"regret_{last}"])
        return [f"regret after {last.replace('_', ' ')} and mean rank:"] + [
            f"{row['method']:<10} {row[f'regret_{last}']:.4g} ± {row[f'two_standard_errors_{last}']:.2g}  "
            f"rank {row[f'rank_{last}']:.1f}  {row['trials']:.0f} trials"
            for row in rows
        ]


def _draw_regret(record: Record, results: _Results, *, title: str) -> None:
    """Draw the mean regret with two standard errors, and the mean rank, against the epochs spent."""
    from dlhw.views.plots import add_legend, label, new_figure

    subtitle = (
        f"bands: two standard errors of the mean; dashed: trials stop early; one trial has {results.epochs} epochs"
    )
    figure, panels = new_figure(2, title=title, subtitle=subtitle, columns=1, panel_inches=3.2, foot_inches=0.5)
    ranked = results.budgets >= results.epochs  # before, some methods have no result
    for index, method in enumerate(results.replays):
        color, style = _LINES[method]
        mean, error = results.mean(index)
        panels[0].plot(results.budgets, mean, color=color, linestyle=style, linewidth=1.3, label=method)
        panels[0].fill_between(
            results.budgets, np.maximum(mean - error, 1e-12), mean + error, color=color, alpha=0.12, linewidth=0
        )
        panels[1].plot(
            results.budgets[ranked], results.ranks[index, ranked], color=color, linestyle=style, linewidth=1.3
        )
    means = np.array([results.mean(index)[0] for index in range(len(results.replays))])
    panels[0].set_yscale("log")
    # A first epoch may have a loss of 1e29.
    panels[0].set_ylim(max(np.nanmin(means[:, -1]) / 3, 1e-9), max(2 * np.nanmax(means[:, ranked]), 1e-8))
    for axes in panels:
        axes.set_xscale("log")
        axes.set_xlim(1, results.budgets[-1])
    label(panels[0], x="", y="regret (lowest found - lowest of all)", legend=False)
    label(panels[1], x="epochs of all trials", y="mean rank (1: best)", legend=False)
    handles, names = panels[0].get_legend_handles_labels()
    add_legend(figure, handles, names, loc="outside lower center", columns=6)
    record.figure("methods", figure)


def _draw_tried(record: Record, results: _Results, *, title: str) -> None:
    """Draw the trials of one search per method in the space of the first two keys, on the lowest metric there."""
    from dlhw.views.plots import new_figure

    table, parameters = results.table, results.table.space.parameters
    if len(parameters) < 2:
        return
    first, second = parameters[:2]
    texts = [parameter.domain.texts for parameter in (first, second) if isinstance(parameter.domain, Values)]
    lowest = np.full((len(texts[1]), len(texts[0])), np.inf)
    for values, curve in table.curves.items():
        found = dict(values)
        x, y = texts[0].index(found[first.key]), texts[1].index(found[second.key])
        lowest[y, x] = min(lowest[y, x], min(curve, default=math.inf))
    names = list(results.replays)
    columns = min(3, len(names))
    figure, panels = new_figure(
        len(names),
        title=title,
        subtitle=f"background: the lowest metric at this {first.key} and {second.key} (darker: lower); "
        "circles: trials, the larger, the more epochs",
        columns=columns,
        panel_inches=1.75,
    )
    for index, (axes, method) in enumerate(zip(panels, names, strict=True)):
        single = results.replays[method][0]
        epochs = {step.trial: step.epochs for step in single.steps}
        tried = [table.space.values(point) for point in single.points]
        axes.imshow(np.log(lowest), cmap="Greys_r", origin="lower", aspect="auto", alpha=0.35)
        axes.scatter(
            [texts[0].index(found[first.key]) for found in tried],
            [texts[1].index(found[second.key]) for found in tried],
            s=[6 + 40 * epochs[number] / results.epochs for number in range(len(tried))],
            color=_LINES[method][0],
            alpha=0.8,
            linewidths=0,
        )
        axes.grid(False)
        axes.set_title(f"{method}: {len(tried)} trials", fontsize=9)
        for ticks, names_of_axis, shown in (
            (axes.set_xticks, texts[0], index >= len(names) - columns),
            (axes.set_yticks, texts[1], index % columns == 0),
        ):
            places = range(0, len(names_of_axis), math.ceil(len(names_of_axis) / 4))
            ticks(list(places), [names_of_axis[place] if shown else "" for place in places])
        if index >= len(names) - columns:
            axes.set_xlabel(first.key, fontsize=9, parse_math=False)
        if index % columns == 0:
            axes.set_ylabel(second.key, fontsize=9, parse_math=False)
    record.figure("figures/tried", figure)
