"""Choose the figures of a comparison, and compute their lines from the ranked settings."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from dlhw.errors import UsageError
from dlhw.views.comparison.panels import (
    Panel,
    Series,
    compared_against,
    compared_curves,
    compared_layers,
    setting_colors,
)
from dlhw.views.comparison.ranking import Conclusion, Setting, best_per_value, reported_metrics, spread, winner_text
from dlhw.views.comparison.settings import canonical, number
from dlhw.views.plots import PALETTE, column_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlhw.storage.record import Record
    from dlhw.views.comparison.options import Comparison

log = logging.getLogger("dlhw")

DRAWN_SETTINGS = 30


def draw(record: Record, conclusion: Conclusion, comparison: Comparison, *, title: str) -> list[str]:
    """Draw the figures of a comparison and remove earlier ones. Return a note for each figure that was not drawn."""
    drawn = [setting for setting in conclusion.settings if setting.finished]
    keys = list(drawn[0].values) if drawn else []
    notes = []
    if comparison.overlay and comparison.overlay not in keys and drawn:
        expected = f"expected one of {', '.join(keys)}" if keys else "no key varies"
        notes.append(f"comparison.overlay={comparison.overlay}: this key does not vary; {expected}")
    overlay = comparison.overlay if comparison.overlay in keys else None
    lines = best_per_value(drawn, overlay)
    lines = lines[:DRAWN_SETTINGS]
    lines = _sorted_by(lines, overlay or _main_key(drawn))
    style = _Style(lines, overlay or _main_key(drawn), conclusion, overlay)
    numeric_key = _only_numeric_key(drawn) if reported_metrics(drawn, conclusion.monitor) else None
    against = comparison.against or ([numeric_key] if numeric_key else [])
    figures: list[tuple[str, Callable[[], Figure | str]]] = []
    subtitle = _subtitle(conclusion, lines)
    if comparison.curves and any(run.best for setting in lines for run in setting.finished):
        figures.append(("comparison", lambda: _curves(style, comparison, title, subtitle)))
    for key in against:
        figures.append(
            (
                f"figures/against_{key}",
                functools.partial(_against, drawn, key, conclusion, style=style, title=title),
            )
        )
    for column in comparison.probes:
        figures.append((f"figures/probe_{column}", functools.partial(_probe, style, column, title)))
    for pattern in ("comparison.png", "figures/against_*.png", "figures/probe_*.png"):
        for path in record.path.glob(pattern):
            path.unlink()
    return notes + not_drawn((name, functools.partial(_write, record, name, figure)) for name, figure in figures)


def curves_of(conclusion: Conclusion, comparison: Comparison, *, title: str) -> Figure:
    """Return the curves of the settings, without writing them. Raise UsageError if no run has them."""
    drawn = [setting for setting in conclusion.settings if setting.finished]
    lines = _sorted_by(best_per_value(drawn, None)[:DRAWN_SETTINGS], _main_key(drawn))
    style = _Style(lines, _main_key(drawn), conclusion, None)
    return _require_figure(_curves(style, comparison, title, _subtitle(conclusion, lines)))


def against_of(conclusion: Conclusion, key: str, *, title: str) -> Figure:
    """Return the results against the values of a key, without writing them. Raise UsageError if it does not vary."""
    drawn = [setting for setting in conclusion.settings if setting.finished]
    keys = list(drawn[0].values) if drawn else []
    if key not in keys:
        expected = f"expected one of {', '.join(keys)}" if keys else "no key varies"
        raise UsageError(f"{key}: does not vary in this sweep; {expected}")
    style = _Style(_sorted_by(drawn[:DRAWN_SETTINGS], key), key, conclusion, None)
    return _require_figure(_against(drawn, key, conclusion, style=style, title=title))


def _require_figure(figure: Figure | str) -> Figure:
    if isinstance(figure, str):
        raise UsageError(figure)
    return figure


def _write(record: Record, name: str, draw_figure: Callable[[], Figure | str]) -> str:
    """Draw a figure and write it. Return the reason if it cannot be drawn, else an empty text."""
    figure = draw_figure()
    if isinstance(figure, str):
        return figure
    record.figure(name, figure)
    return ""


def not_drawn(figures: Iterable[tuple[str, Callable[[], str]]]) -> list[str]:
    """Draw figures by name. Return a note for each that fails, or whose function returns why it was not drawn."""
    notes = []
    for name, figure in figures:
        try:
            note = figure()
        except Exception as error:  # an error in a figure must not prevent the summary
            log.debug("%s.png", name, exc_info=True)
            note = f"{type(error).__name__}: {error}"
        if note:
            notes.append(f"{name}.png: not drawn ({' '.join(note.split())})")
    return notes


class _Style:
    """The lines that all figures of a comparison have, with one colour and label per setting."""

    def __init__(
        self, settings: Sequence[Setting], key: str | None, conclusion: Conclusion, overlay: str | None
    ) -> None:
        values = [None if key is None else number(setting.values[key]) for setting in settings]
        best = next((i for i, setting in enumerate(settings) if setting is conclusion.winner), None)
        colors = setting_colors(values, best=best)
        self.settings = list(settings)
        self.best = [setting for setting in (conclusion.winner, *conclusion.tied) if setting is not None]
        self.overlay = overlay
        self.colors = {id(setting): color for setting, color in zip(settings, colors, strict=True)}

    def series(
        self, setting: Setting, x: Sequence[float], columns: Sequence[Sequence[float]], *, label: str | None = None
    ) -> Series:
        """Return a line through the means of ``columns``, which hold the values of all seeds at each x."""
        spreads = [spread(values) for values in columns]
        deviations = [math.nan if point.sd is None else point.sd for point in spreads]
        return Series(
            setting.label if label is None else label,
            self.colors[id(setting)],
            list(x),
            [point.mean for point in spreads],
            deviations if any(map(math.isfinite, deviations)) else (),
            any(setting is best for best in self.best) and len(self.settings) > 1,
        )


def _curves(style: _Style, comparison: Comparison, title: str, subtitle: str) -> Figure | str:
    """Return the figure, or the reason why it cannot be drawn."""
    panels = []
    for column in comparison.curves:
        lines = []
        for setting in style.settings:
            tables = [dict(_points(run.rows, comparison.x, column)) for run in setting.finished]
            shared = sorted(set.intersection(*(set(table) for table in tables)))  # epochs of all seeds
            if shared:
                lines.append(style.series(setting, shared, [[table[x] for table in tables] for x in shared]))
        if lines:
            panels.append(_panel(column, lines))
    if not panels:
        return f"no run has any of the columns {', '.join(comparison.curves)}"
    return compared_curves(panels, x=comparison.x, log_x=comparison.log_x, title=title, subtitle=subtitle)


def _against(drawn: Sequence[Setting], key: str, conclusion: Conclusion, *, style: _Style, title: str) -> Figure | str:
    """Return the figure, or the reason why it cannot be drawn."""
    monitor = conclusion.monitor
    numeric = [setting for setting in drawn if number(setting.values.get(key, "")) is not None]
    if len({number(setting.values[key]) for setting in numeric}) < 2:
        return f"{key} has fewer than two numeric values among the finished settings"
    panels = []
    lines = [setting for setting in style.settings if style.overlay not in (None, key)] or style.settings[:1]
    for metric, reader in reported_metrics(drawn, monitor):
        series = []
        for line in lines:
            settings = [
                setting
                for setting in numeric
                if style.overlay in (None, key)
                or canonical(setting.values[style.overlay]) == canonical(line.values[style.overlay])
            ]
            points = sorted(best_per_value(settings, key), key=lambda setting: number(setting.values[key]) or 0.0)
            points = [setting for setting in points if setting.spread(reader) is not None]
            if points:
                values = [[v for run in setting.finished if (v := reader(run)) is not None] for setting in points]
                x = [number(setting.values[key]) or 0.0 for setting in points]
                several = len(lines) > 1
                label = (
                    f"{_last_part(style.overlay)} = {line.values[style.overlay]}" if several and style.overlay else ""
                )
                means = style.series(line, x, values, label=label)
                color = means.color if several else PALETTE[0]
                series.append(Series(label, color, means.x, means.y, means.spread))
        if series:
            panels.append(_panel(metric, series))
    if not panels:
        return f"no run has {monitor or 'a numeric result'}"
    optimum = None if conclusion.winner is None else number(conclusion.winner.values[key])
    notes = [("at each run's best epoch; " if monitor else "") + _counts(numeric)]
    if len(numeric[0].values) > (2 if len(lines) > 1 else 1):
        notes.append("each point: the best setting by validation with this value")
    if conclusion.winner is not None and monitor is not None and optimum is not None:
        notes.append(f"dotted: lowest validation mean, {winner_text(conclusion.winner, monitor)}")
    return compared_against(
        panels, key=key, optimum=optimum, share_y=monitor is not None, title=title, subtitle="\n".join(notes)
    )


def _probe(style: _Style, column: str, title: str) -> Figure | str:
    """Return the figure, or the reason why it cannot be drawn."""
    moments: list[list[Series]] = [[], []]
    epochs: list[set[int]] = [set(), set()]
    layers: list[str] = []
    for setting in style.settings:
        probed = [probes for run in setting.finished if len(probes := run.probes(column)) == 2]
        for moment, lines in enumerate(moments):
            values = [probes[moment][1] for probes in probed]
            depth = min(map(len, values), default=0)
            if depth:
                x = range(1, depth + 1)
                lines.append(style.series(setting, x, [[row[i - 1] for row in values] for i in x]))
                epochs[moment] |= {probes[moment][0] for probes in probed}
                layers = layers if len(layers) > depth else probed[0][moment][2][:depth]
    if not moments[0]:
        return f"no run has two probes with the column {column}"
    panels = [
        _panel(column, lines, title="before training" if probed_epochs == {0} else f"after {_epochs(probed_epochs)}")
        for lines, probed_epochs in zip(moments, epochs, strict=True)
    ]
    return compared_layers(panels, layers=layers if all(layers) else (), title=title, subtitle=_counts(style.settings))


def _epochs(epochs: set[int]) -> str:
    low, high = min(epochs), max(epochs)
    return f"{low} epoch{'s' if low > 1 else ''}" if low == high else f"{low} to {high} epochs"


def _panel(column: str, lines: Sequence[Series], *, title: str = "") -> Panel:
    # One sample or unit is a few thousandths of a percent. Without a floor, such values would fill most of a log axis.
    return Panel(column_label(column), lines, title, floor=0.1 if column.endswith("_percent") else 0.0)


def _points(rows: Sequence[Mapping[str, float]], x: str, column: str) -> list[tuple[float, float]]:
    return [(row[x], row[column]) for row in rows if math.isfinite(row.get(column, math.nan))]


def _sorted_by(settings: Sequence[Setting], key: str | None) -> list[Setting]:
    """Sort settings by the number, or else the name, that ``key`` has, for legends and colours."""
    if key is None:
        return list(settings)

    def place(setting: Setting) -> tuple[bool, float, str]:
        value = number(setting.values[key])
        return (value is None, value or 0.0, setting.label)

    return sorted(settings, key=place)


def _numeric_keys(settings: Sequence[Setting], *, values: int) -> list[str]:
    """Return the keys that have only numbers, and at least ``values`` different ones."""
    keys = list(settings[0].values) if settings else []
    columns = {key: [number(setting.values[key]) for setting in settings] for key in keys}
    return [key for key, column in columns.items() if None not in column and len(set(column)) >= values]


def _only_numeric_key(settings: Sequence[Setting]) -> str | None:
    keys = _numeric_keys(settings, values=3)
    return keys[0] if len(keys) == 1 else None


def _main_key(settings: Sequence[Setting]) -> str | None:
    """Return the key to sort settings by: the first with only numbers, or else the first."""
    keys = list(settings[0].values) if settings else []
    return next(iter([*_numeric_keys(settings, values=2), *keys]), None)


def _last_part(key: str | None) -> str:
    return (key or "").rpartition(".")[2]


def _counts(settings: Sequence[Setting]) -> str:
    counts = sorted({len(setting.finished) for setting in settings if setting.finished})
    if not counts or counts == [1]:
        return "one run each (n = 1)"
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"mean over seeds, ± one standard deviation (n = {n})"


def _subtitle(conclusion: Conclusion, lines: Sequence[Setting]) -> str:
    limit = f"; the best {DRAWN_SETTINGS} settings" if len(lines) == DRAWN_SETTINGS < len(conclusion.settings) else ""
    return f"{_counts(lines)}{limit}\n{conclusion.verdict}"
