"""The figures and tables of a search: what it found, at which cost, and which keys matter."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlhw.search.importance import importances
from dlhw.search.methods import Step
from dlhw.search.space import Interval, Parameter, Point, Space
from dlhw.storage.record import Record
from dlhw.views.comparison.files import write_comparison
from dlhw.views.comparison.results import read, without_budget

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FEWEST_FOR_IMPORTANCE = 8


@dataclass(frozen=True)
class SearchedTrial:
    """A trial of a search. ``curve`` has the validation metric by epoch, and ``rungs`` the epochs of comparisons."""

    number: int
    bracket: int
    point: Point
    runs: Sequence[Path]
    rungs: Sequence[int]
    curve: Mapping[int, float]
    value: float
    state: str


@dataclass(frozen=True)
class Searched:
    """A search, finished or not."""

    method: str
    monitor: str
    space: Space
    trials: Sequence[SearchedTrial]
    steps: Sequence[Step]

    @property
    def best(self) -> SearchedTrial | None:
        """The trial with the lowest validation metric; None if there is none."""
        finite = [trial for trial in self.trials if math.isfinite(trial.value)]
        return min(finite, key=lambda trial: trial.value, default=None)

    def text(self, trial: SearchedTrial) -> str:
        """Return the values of a trial, such as ``b=0.02, optimizer.lr=0.1``."""
        return ", ".join(f"{key}={text}" for key, text in self.space.values(trial.point).items())


def conclude_search(
    directory: Path,
    searched: Searched,
    *,
    failures: Mapping[Path, str],
    overrides: Mapping[Path, Sequence[str]],
    about: Mapping[str, Any],
) -> str:
    """Write tables, figures and the summary of a search. Return the table that ends the log.

    Args:
        failures: reasons for failed runs whose directory does not exist or has no reason.
        overrides: the overrides of each run.
        about: more entries for ``summary.json``.
    """
    owners: dict[Path, SearchedTrial] = {}
    for trial in searched.trials:
        for path in trial.runs:
            owners.setdefault(path, trial)
    results = without_budget(read(list(owners), failures=failures, overrides=overrides))
    spent = searched.steps[-1].total_epochs if searched.steps else 0
    conclusion = write_comparison(
        directory,
        results,
        columns={
            path: {"trial": trial.number, "bracket": trial.bracket, "state": trial.state}
            for path, trial in owners.items()
        },
        draw=lambda record, conclusion: write_search(
            record, searched, title=f"{about['experiment']}: search with method={searched.method}"
        ),
        about={"method": searched.method, "trials": len(searched.trials), "total_epochs": spent, **about},
    )
    return "\n".join([str(conclusion), f"trials: {len(searched.trials)}, epochs: {spent}"])


def _lowest(steps: Sequence[Step]) -> list[float]:
    lowest, values = math.inf, []
    for step in steps:
        lowest = min(lowest, step.value)
        values.append(lowest)
    return values


def write_search(record: Record, searched: Searched, *, title: str) -> list[str]:
    """Write the table of results and draw the figures. Return a note for each figure that was not drawn."""
    record.table(
        "search",
        [
            {
                "total_epochs": step.total_epochs,
                "trial": step.trial,
                "epochs": step.epochs,
                searched.monitor: step.value,
                f"lowest_{searched.monitor}": lowest,
            }
            for step, lowest in zip(searched.steps, _lowest(searched.steps), strict=True)
        ],
    )
    return _draw(record, searched, title=title)


def _draw(record: Record, searched: Searched, *, title: str) -> list[str]:
    """Draw the figures. Return a note for each figure that was not drawn."""
    figures: dict[str, Callable[..., str]] = {
        "search": _draw_progress,
        "figures/trials": _draw_trials,
        "figures/slices": _draw_slices,
        "figures/parallel": _draw_parallel,
        "figures/importances": _draw_importances,
    }
    (record.path / "tables" / "importances.csv").unlink(missing_ok=True)
    for name in figures:
        (record.path / f"{name}.png").unlink(missing_ok=True)
    if searched.best is None:
        return []
    from dlhw.views.comparison.figures import not_drawn  # imports matplotlib, which takes a second

    return not_drawn((name, functools.partial(draw, record, name, searched, title)) for name, draw in figures.items())


def _draw_progress(record: Record, name: str, searched: Searched, title: str) -> str:
    """Draw every result against the epochs spent, and the lowest so far."""
    from matplotlib.ticker import MaxNLocator

    from dlhw.views.plots import COLORS, add_legend, column_label, label, new_figure, scale_values

    figure, (axes,) = new_figure(1, title=title, subtitle=_best_text(searched), panel_inches=3.6)
    finite = [step for step in searched.steps if math.isfinite(step.value)]
    longest = max(step.epochs for step in finite)
    for epochs in sorted({step.epochs for step in finite}):
        points = [step for step in finite if step.epochs == epochs]
        axes.scatter(
            [step.total_epochs for step in points],
            [step.value for step in points],
            s=14,
            color=_color(epochs, longest),
            label=f"after {epochs} epoch{'' if epochs == 1 else 's'}",
            zorder=2,
        )
    lowest = [(step.total_epochs, low) for step, low in zip(searched.steps, _lowest(searched.steps), strict=True)]
    drawn = [(spent, low) for spent, low in lowest if math.isfinite(low)]
    axes.step(*zip(*drawn, strict=True), where="post", color=COLORS["reference"], linewidth=1.4, label="lowest so far")
    scale_values(axes, [step.value for step in finite])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    label(axes, x="epochs of all trials", y=column_label(searched.monitor), legend=False)
    handles, names = axes.get_legend_handles_labels()
    add_legend(figure, handles, names, loc="outside lower center", columns=min(5, len(names)))
    record.figure(name, figure)
    return ""


def _draw_trials(record: Record, name: str, searched: Searched, title: str) -> str:
    """Draw the learning curve of every trial, and the rungs as vertical lines."""
    from dlhw.views.plots import COLORS, PALETTE, column_label, label, new_figure, scale_epochs, scale_values

    figure, (axes,) = new_figure(1, title=title, subtitle=_best_text(searched), panel_inches=3.4)
    best = searched.best
    longest = max(len(trial.curve) for trial in searched.trials)
    for trial in searched.trials:
        is_best = trial is best
        axes.plot(
            list(trial.curve),
            list(trial.curve.values()),
            color=PALETTE[1] if is_best else _color(len(trial.curve), longest),
            linewidth=1.8 if is_best else 0.8,
            alpha=1.0 if is_best else 0.7,
            marker="o" if len(trial.curve) < 3 else "",
            markersize=3,
            label=f"trial {trial.number}, the lowest" if is_best else None,
            zorder=3 if is_best else 2,
        )
    rungs = sorted({rung for trial in searched.trials for rung in trial.rungs})[:-1]
    for rung in rungs:
        name_once = "the best trials go on" if rung == rungs[0] else None
        axes.axvline(rung, color=COLORS["reference"], linewidth=0.8, linestyle=":", zorder=1, label=name_once)
    scale_epochs(axes, [{"epoch": epoch} for trial in searched.trials for epoch in trial.curve], None)
    scale_values(axes, [value for trial in searched.trials for value in trial.curve.values()])
    label(axes, x="epoch", y=column_label(searched.monitor), place="upper right")
    record.figure(name, figure)
    return ""


def _draw_slices(record: Record, name: str, searched: Searched, title: str) -> str:
    """Draw the lowest validation metric of every trial against each key."""
    from dlhw.views.plots import PALETTE, column_label, label, new_figure, scale_values

    parameters = searched.space.parameters
    columns = min(3, len(parameters))
    figure, panels = new_figure(
        len(parameters),
        title=title,
        subtitle=f"{_best_text(searched)}; darker: more epochs; orange: the lowest",
        panel_inches=2.6,
        columns=columns,
    )
    finite = [trial for trial in searched.trials if math.isfinite(trial.value)]
    longest = max(len(trial.curve) for trial in finite)
    for axes, parameter in zip(panels, parameters, strict=True):
        reading = [trial for trial in finite if parameter in searched.space.read_by(trial.point)]
        scale = _Scale(parameter)
        for trial in sorted(reading, key=lambda trial: len(trial.curve)):
            is_best = trial is searched.best
            axes.scatter(
                scale.place(trial.point),
                trial.value,
                s=28 if is_best else 12,
                color=PALETTE[1] if is_best else _color(len(trial.curve), longest),
                zorder=3 if is_best else 2,
            )
        scale.apply(axes)
        scale_values(axes, [trial.value for trial in finite])
        label(axes, x=parameter.name, y=column_label(searched.monitor) if axes is panels[0] else "")
    record.figure(name, figure)
    return ""


def _draw_parallel(record: Record, name: str, searched: Searched, title: str) -> str:
    """Draw every trial as a line through its values, one vertical axis per key, coloured by rank."""
    from matplotlib import colormaps

    from dlhw.views.plots import COLORS, PALETTE, column_label, new_figure
    from dlhw.views.rendering import TICK_POINTS

    parameters = searched.space.parameters
    if len(parameters) < 2:
        return ""
    figure, (axes,) = new_figure(1, title=title, subtitle=_best_text(searched), panel_inches=3.4)
    ranked = sorted((t for t in searched.trials if math.isfinite(t.value)), key=lambda trial: -trial.value)
    scales = [_Scale(parameter) for parameter in parameters]
    for rank, trial in enumerate(ranked):
        is_best = trial is searched.best
        read = searched.space.read_by(trial.point)
        heights = [scale.share(trial.point) if scale.parameter in read else math.nan for scale in scales]
        color = PALETTE[1] if is_best else colormaps["viridis_r"](0.12 + 0.88 * rank / max(1, len(ranked) - 1))
        axes.plot(
            range(len(scales)),
            heights,
            color=color,
            linewidth=2.0 if is_best else 0.8,
            alpha=1.0 if is_best else 0.6,
            marker="o",
            markersize=3,
            zorder=3 if is_best else 2,
        )
    for x, scale in enumerate(scales):
        axes.axvline(x, color=COLORS["reference"], linewidth=0.8, zorder=1)
        for share, text in scale.marks:
            axes.annotate(
                text,
                (x, share),
                xytext=(5, 0),
                textcoords="offset points",
                fontsize=TICK_POINTS,
                va="center",
                zorder=4,
                parse_math=False,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.0},
            )
    axes.grid(False)
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xticks(range(len(scales)), [parameter.name for parameter in parameters], fontsize=TICK_POINTS)
    axes.set_xlim(-0.15, len(scales) - 0.6)
    axes.set_xlabel(f"darker: lower {column_label(searched.monitor)}", fontsize=TICK_POINTS)
    record.figure(name, figure)
    return ""


def _draw_importances(record: Record, name: str, searched: Searched, title: str) -> str:
    """Draw the importances of the keys after the number of epochs that most trials have."""
    from dlhw.views.plots import PALETTE, label, new_figure

    by_epochs: dict[int, dict[int, float]] = {}
    for step in searched.steps:
        if math.isfinite(step.value):
            by_epochs.setdefault(step.epochs, {})[step.trial] = step.value
    epochs = max(by_epochs, key=lambda epochs: (len(by_epochs[epochs]), epochs))
    values = by_epochs[epochs]
    if len(searched.space.parameters) < 2 or len(values) < _FEWEST_FOR_IMPORTANCE:
        return ""
    points = {trial.number: trial.point for trial in searched.trials}
    shares = importances(searched.space, [points[number] for number in values], list(values.values()))
    figure, (axes,) = new_figure(
        1,
        title=title,
        subtitle=f"Share of the variance that each key explains, from {len(values)} trials after {epochs} "
        f"epoch{'' if epochs == 1 else 's'}",
        panel_inches=0.9 + 0.35 * len(shares),
    )
    names = list(reversed(shares))
    axes.barh(names, [shares[name] for name in names], color=PALETTE[0], height=0.6)
    axes.set_xlim(0, 1)
    axes.grid(False, axis="y")
    label(axes, x="importance (functional analysis of variance)", y="")
    record.table("importances", [{"key": name, "importance": share} for name, share in shares.items()])
    record.figure(name, figure)
    return ""


class _Scale:
    """Where the values of a parameter are on an axis."""

    def __init__(self, parameter: Parameter) -> None:
        self.parameter = parameter
        domain = parameter.domain
        self.log = isinstance(domain, Interval) and domain.log
        self.texts = () if isinstance(domain, Interval) else domain.texts

    def place(self, point: Point) -> float:
        """Return the value of a number from an interval, and the position of another value in its list."""
        value = point[self.parameter.name]
        return float(value) if not isinstance(value, str) else self.texts.index(value)

    def share(self, point: Point) -> float:
        """Return the place as a share of the axis, 0 at its lower end."""
        low, high, value = (math.log(x) if self.log else x for x in (*self._limits, self.place(point)))
        return (value - low) / (high - low) if high > low else 0.5

    @property
    def marks(self) -> list[tuple[float, str]]:
        """Labels for an axis from 0 to 1: the limits of an interval, or the values of a list."""
        domain = self.parameter.domain
        if isinstance(domain, Interval):
            return [(0.0, f"{domain.low:g}"), (1.0, f"{domain.high:g}")]
        shown = range(0, len(self.texts), max(1, len(self.texts) // 8))
        return [(index / max(1, len(self.texts) - 1), self.texts[index]) for index in shown]

    @property
    def _limits(self) -> tuple[float, float]:
        domain = self.parameter.domain
        return (domain.low, domain.high) if isinstance(domain, Interval) else (0, len(self.texts) - 1)

    def apply(self, axes: Axes) -> None:
        """Set the scale and the ticks of a horizontal axis."""
        if self.log:
            axes.set_xscale("log")
        if self.texts:
            shown = range(0, len(self.texts), max(1, math.ceil(len(self.texts) / 6)))
            axes.set_xticks(list(shown), [self.texts[index] for index in shown])


def _best_text(searched: Searched) -> str:
    from dlhw.views.plots import column_label

    best = searched.best
    assert best is not None
    spent = searched.steps[-1].total_epochs
    return (
        f"lowest {column_label(searched.monitor)}: {best.value:.4g} (trial {best.number}: {searched.text(best)})\n"
        f"trials: {len(searched.trials)}, epochs: {spent}"
    )


def _color(epochs: int, longest: int) -> Any:
    """Return a colour for a number of epochs: the darker, the more."""
    from matplotlib import colormaps

    share = math.log(epochs) / math.log(longest) if longest > 1 else 1.0
    return colormaps["Blues"](0.35 + 0.6 * share)
