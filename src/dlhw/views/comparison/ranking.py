"""Group runs into settings, average them over seeds, and rank the settings by validation.

Runs that differ only in the seed belong to one setting. The winner is the setting with the lowest mean validation
metric among those whose runs all finished. Its test result is reported but never used for selection.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from dlhw.views.comparison.results import Result
from dlhw.views.comparison.settings import canonical

PRINTED_SETTINGS = 30
NAMED_TIES = 5


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over ``n`` seeds; ``sd`` has the denominator n - 1 and is None for a single value."""

    mean: float
    sd: float | None
    n: int

    def __str__(self) -> str:
        if self.sd is None:
            return _number_text(self.mean)
        digits = max(0, min(6, 2 - math.floor(math.log10(abs(self.mean))))) if self.mean else 2
        return f"{self.mean:.{digits}f} ± {self.sd:.{digits}f}"


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of at least one value. If one is not finite, there is no standard deviation."""
    has_deviation = len(values) > 1 and all(map(math.isfinite, values))
    mean = statistics.fmean(values) if all(map(math.isfinite, values)) else sum(values) / len(values)
    return Spread(mean, statistics.stdev(values) if has_deviation else None, len(values))


@dataclass(frozen=True)
class Setting:
    """The runs that differ only in the seed."""

    values: Mapping[str, str]
    label: str
    runs: tuple[Result, ...]

    def count(self, status: str) -> int:
        return sum(run.status == status for run in self.runs)

    @property
    def complete(self) -> bool:
        return all(run.status == "finished" for run in self.runs)

    @property
    def finished(self) -> list[Result]:
        return [run for run in self.runs if run.status == "finished"]

    def spread(self, number: Callable[[Result], Any]) -> Spread | None:
        """Return the spread of a number over the finished runs that have it."""
        values = [float(value) for run in self.finished if (value := number(run)) is not None]
        return spread(values) if values else None


@dataclass(frozen=True)
class Conclusion:
    """The result of :func:`compare_runs`. As a string it is the table for the console."""

    status: str
    settings: tuple[Setting, ...]  # best first; settings with unfinished or failed runs come last
    monitor: str | None  # None for studies, and for runs with different monitors
    winner: Setting | None
    tied: tuple[Setting, ...]  # the other settings with exactly the winner's mean
    no_winner: str  # why there is no winner
    failed: Mapping[str, str]  # job: reason
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return self.text()

    def text(self, *, with_verdict: bool = True) -> str:
        """Return the table, the verdict, and a line for each note and failed job."""
        verdict = [self.verdict] if with_verdict else []
        failed = (f"{job}: {why}" for job, why in self.failed.items())
        return "\n".join([*self._table(), *verdict, *self.notes, *failed])

    def best(self, key: str | None) -> list[Setting]:
        """Return the best setting for each value of ``key``, if it varies; else the winner, if there is one.

        All runs of these settings have finished. A value whose settings have different datasets has no best one.
        """
        varying = [setting for setting in self.settings if setting.complete and key in setting.values]
        if not varying or self.monitor is None:
            return [] if self.winner is None else [self.winner]
        datasets: dict[Any, set[str]] = {}
        for setting in varying:
            datasets.setdefault(canonical(setting.values[str(key)]), set()).update(_datasets(setting.runs))
        best = best_per_value(varying, key)
        return [setting for setting in best if len(datasets[canonical(setting.values[str(key)])]) == 1]

    def _table(self) -> list[str]:
        columns = reported_metrics(self.settings, self.monitor)
        lines = [["setting", *(_column_text(name) for name, _ in columns), "n"]]
        for setting in self.settings[:PRINTED_SETTINGS]:
            spreads = [setting.spread(number) for _, number in columns]
            missing = len(setting.runs) - len(setting.finished)
            n = f"{len(setting.finished)}" + (f" of {len(setting.runs)}" if missing else "")
            lines.append([setting.label, *("" if spread is None else str(spread) for spread in spreads), n])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        more = len(self.settings) - PRINTED_SETTINGS
        return table + ([f"and {more} more in tables/settings.csv"] if more > 0 else [])

    @property
    def verdict(self) -> str:
        """The winner and its results, or why there is no winner."""
        if self.winner is None or self.monitor is None:
            return f"no winner: {self.no_winner}"
        text = f"lowest mean {_column_text(self.monitor, unit=False)}: {winner_text(self.winner, self.monitor)}"
        labels = [setting.label for setting in self.tied[:NAMED_TIES]]
        more = len(self.tied) - len(labels)
        return text + (f"; tied with {', '.join(labels)}{f' and {more} more' if more else ''}" if labels else "")


def group_by_setting(results: Sequence[Result]) -> list[Setting]:
    """Group runs into settings, in the order of their first run.

    A run that repeats another one is left out, because it is not another seed. A run without a config belongs to the
    first setting that agrees with its overrides.
    """
    groups: dict[tuple[Any, ...], list[Result]] = {}
    full = {_values(result): None for result in results if result.known}
    for result in results:
        values = _values(result)
        if result.repeats is not None:
            continue
        if values and not result.known and not any(result.settings.values()):
            values = (result.path,)
        elif values not in full:
            values = next((other for other in full if _agrees(values, other)), values)
        groups.setdefault(values, []).append(result)
    first_runs = [(next((run for run in runs if run.known), runs[0]), tuple(runs)) for runs in groups.values()]
    return [Setting(first.settings, _label(first), runs) for first, runs in first_runs]


def _values(result: Result) -> tuple[Any, ...]:
    return tuple(map(canonical, result.settings.values()))


def _agrees(partial: Sequence[Any], values: Sequence[Any]) -> bool:
    return all(part in (None, value) for part, value in zip(partial, values, strict=True))


def rank_settings(results: Sequence[Result], jobs: Sequence[str]) -> Conclusion:
    """Rank the settings by validation and choose the winner. Test metrics are not used."""
    settings = group_by_setting(results)
    finished = [run for run in results if run.status == "finished"]
    monitors = sorted({str(run.summary["monitor"]) for run in finished if "monitor" in run.summary})
    monitor = monitors[0] if len(monitors) == 1 else None

    def mean(setting: Setting) -> float:
        spread = None if monitor is None else setting.spread(functools.partial(best_value, column=monitor))
        return math.inf if spread is None else spread.mean

    ranked = sorted(settings, key=lambda setting: (not setting.complete, mean(setting)))
    datasets = _datasets(finished)
    comparable = len(datasets) < 2
    winner = ranked[0] if comparable and ranked and ranked[0].complete and math.isfinite(mean(ranked[0])) else None
    tied = tuple(other for other in ranked[1:] if winner and other.complete and mean(other) == mean(winner))
    no_winner = ""
    if not comparable:
        no_winner = f"the runs have different datasets ({', '.join(datasets)})"
    elif len(monitors) > 1:
        no_winner = f"the runs have different values of trainer.monitor ({', '.join(monitors)})"
    elif winner is None and not finished:
        no_winner = "no run finished"
    elif winner is None:
        no_winner = "no setting has only finished runs" if monitor else "no run trained a model"
    status = next((state for state in ("unfinished", "failed") if any(run.status == state for run in results)), None)
    failed = {job: f"failed: {run.reason}" for run, job in zip(results, jobs, strict=True) if run.status == "failed"}
    repeated = [job for run, job in zip(results, jobs, strict=True) if run.repeats is not None]
    names = ", ".join(repeated[:3]) + (f" and {len(repeated) - 3} more" if len(repeated) > 3 else "")
    notes = (f"not counted, because another run has the same config and seed: {names}",) if repeated else ()
    return Conclusion(status or "finished", tuple(ranked), monitor, winner, tied, no_winner, failed, notes)


def _datasets(finished: Sequence[Result]) -> list[str]:
    """Return the names of the datasets that the models were trained on; of picture folders with their path."""
    names: dict[str, None] = {}
    for run in finished:
        if run.best and "name" in run.summary.get("data", {}):
            root = run.settings.get("dataset.root")
            names[f"{run.summary['data']['name']}{f' {root}' if root else ''}"] = None
    return list(names)


def reported_metrics(settings: Sequence[Setting], monitor: str | None) -> list[tuple[str, Callable[[Result], Any]]]:
    """Return names and getters of the main results: validation and test metric, or a study's numbers.

    There is no test metric if no run has a test part.
    """
    runs = [run for setting in settings for run in setting.runs]
    if monitor is not None:
        tested = test_metric(monitor) if any(test_metric(monitor) in run.best for run in runs) else None
        return [(name, functools.partial(best_value, column=name)) for name in (monitor, tested) if name is not None]
    names = dict.fromkeys(name for run in runs for name in run.numbers)
    return [(name, functools.partial(_number_of, name=name)) for name in names]


def best_per_value(ranked: Sequence[Setting], key: str | None) -> list[Setting]:
    """Return the first, best setting for each value of ``key``; all settings without a key."""
    if key is None:
        return list(ranked)
    best: dict[Any, Setting] = {}
    for setting in ranked:
        best.setdefault(canonical(setting.values[key]), setting)
    return list(best.values())


def best_value(run: Result, *, column: str) -> float | None:
    return run.best.get(column)


def _number_of(run: Result, *, name: str) -> float | None:
    return run.numbers.get(name)


def test_metric(monitor: str) -> str:
    return monitor.replace("val_", "test_", 1)


def winner_text(winner: Setting, monitor: str) -> str:
    """Return, for example, ``b = 0.05 (2.39 ± 0.05 %, n = 3), test error 2.85 ± 0.04 %``."""
    validation, test = (
        winner.spread(functools.partial(best_value, column=column)) for column in (monitor, test_metric(monitor))
    )
    unit = " %" if monitor.endswith("_percent") else ""
    text = f"{winner.label} ({validation}{unit}, n = {len(winner.runs)})" if winner.label else f"{validation}{unit}"
    return text if test is None else f"{text}, {_column_text(test_metric(monitor), unit=False)} {test}{unit}"


def _column_text(column: str, *, unit: bool = True) -> str:
    """Return a column's name as text: ``validation error (%)`` for ``val_error_percent``."""
    words = column.replace("val_", "validation ").replace("_percent", " (%)" if unit else "")
    return words.replace("_", " ")


def _shortened(value: str) -> str:
    """Return the last two parts of an absolute path, to fit into a legend; other values are unchanged."""
    return "/".join(PurePath(value).parts[-2:]) if value.startswith("/") else value


def _label(result: Result) -> str:
    """Return a label such as ``optimizer = adam, lr = 0.001``, with only the last part of keys where it is unique."""
    lasts = [name.rpartition(".")[2] for name in result.settings]
    parts = [
        f"{last if lasts.count(last) == 1 else name} = {_shortened(value)}"
        for (name, value), last in zip(result.settings.items(), lasts, strict=True)
        if value
    ]
    if parts or not result.settings:
        return ", ".join(parts) or str(result.summary.get("experiment", ""))
    return f"without {', '.join(lasts)}" if result.known else result.path.name


def _number_text(value: float) -> str:
    return f"{value:#.4g}" if not float(value).is_integer() or abs(value) >= 1e15 else f"{value:.0f}"
