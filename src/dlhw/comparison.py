"""What finished runs say together: settings, their means over seeds, the winner by validation, tables and figures.

Runs that differ in nothing but the seed are one setting. A winner is chosen by validation alone, among settings whose
runs all finished; its test result is then reported, never used. Reading takes no torch and no pandas, so that a
thousand runs are listed in about a second.
"""

from __future__ import annotations

import csv
import functools
import logging
import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dlhw import UsageError

if TYPE_CHECKING:
    from dlhw.plots import Panel, Series
    from dlhw.record import Record

log = logging.getLogger("dlhw")

NO_SETTINGS = ("seed", "resume", "data_dir", "output_dir", "name", "comparison", "hydra")
PRINTED_SETTINGS = DRAWN_SETTINGS = 30
_NOT_RESULTS = ("seed", "threads", "parameters")  # numbers at the top level of summary.json that no study measured
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as quick


@dataclass(frozen=True)
class Comparison:
    """What is drawn of finished runs; see ``conf/comparison/default.yaml`` for what each setting means."""

    curves: list[str]
    overlay: str | None
    against: list[str]
    probes: list[str]


@dataclass(frozen=True)
class Result:
    """What one run directory holds for a comparison; files other than the summary are read when asked for."""

    path: Path
    settings: Mapping[str, str]  # the keys that vary among the runs, with their values as written
    seed: int | None
    status: str  # finished, failed, unfinished
    reason: str  # what a failed run failed by
    summary: Mapping[str, Any]

    @property
    def best(self) -> Mapping[str, float]:
        """Metrics at the best epoch; empty for a study."""
        return self.summary.get("best") or {}

    @property
    def final(self) -> Mapping[str, float]:
        return self.summary.get("final") or {}

    @property
    def numbers(self) -> dict[str, float]:
        """What a study found: the numbers at the top level of its summary. Empty for a trained run."""
        if self.best:
            return {}
        return {
            name: value
            for name, value in self.summary.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and name not in _NOT_RESULTS
        }

    @cached_property
    def rows(self) -> list[dict[str, float]]:
        """``metrics.csv``, a row per epoch; nothing when there is none."""
        return _read_csv(self.path / "metrics.csv")

    def probes(self, column: str) -> list[tuple[int, list[float], list[str]]]:
        """The first and the last ``probes/epoch_*.csv`` with the column: epoch, value of each layer, layers' names."""
        found = []
        files = sorted((self.path / "probes").glob("epoch_*.csv"))
        for file in files[:1] + files[1:][-1:]:
            with file.open(newline="") as text:
                rows = list(csv.DictReader(text))
            if rows and column in rows[0]:
                values = [_number(row[column]) for row in rows]
                names = [row.get("name", "") for row in rows]
                found.append((int(file.stem.rpartition("_")[2]), values, names))
        return found


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1 in the denominator; None for a single value) over ``n`` seeds."""

    mean: float
    sd: float | None
    n: int

    def __str__(self) -> str:
        if self.sd is None:
            return _short(self.mean)
        digits = max(0, min(6, 2 - math.floor(math.log10(abs(self.mean))))) if self.mean else 2
        return f"{self.mean:.{digits}f} ± {self.sd:.{digits}f}"


@dataclass(frozen=True)
class Setting:
    """The runs that are equal in everything but the seed."""

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
        """Mean and standard deviation of a number over the finished runs that have it."""
        values = [float(value) for run in self.finished if (value := number(run)) is not None]
        if not values:
            return None
        return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Conclusion:
    """What :func:`conclude` found; as a string, the closing table for the console."""

    status: str
    settings: tuple[Setting, ...]  # the best first, those with a run that did not finish last
    monitor: str | None  # None for studies, and for runs that went by different ones
    winner: Setting | None
    no_winner: str  # why there is none
    failed: Mapping[str, str]  # job: reason
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(
            [*self._table(), self._verdict(), *self.notes, *(f"{job}: {why}" for job, why in self.failed.items())]
        )

    def _table(self) -> list[str]:
        columns = _results(self.settings, self.monitor)
        lines = [["setting", *(_words(name) for name, _ in columns), "n"]]
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

    def _verdict(self) -> str:
        if self.winner is None or self.monitor is None:
            return f"no winner: {self.no_winner}"
        return f"lowest mean {_words(self.monitor, unit=False)}: {_verdict(self.winner, self.monitor)}"


def read(
    directories: Sequence[Path],
    *,
    failures: Mapping[Path, str] | None = None,
    overrides: Mapping[Path, Sequence[str]] | None = None,
) -> list[Result]:
    """The runs in ``directories``, in this order, with those settings that vary among them.

    Args:
        failures: reasons of jobs whose directory does not tell, or does not exist.
        overrides: the overrides of jobs whose directory does not tell.
    """
    from dlhw.record import read_summary

    given = [_overrides(path, (overrides or {}).get(path, ())) for path in directories]
    configs = [functools.cache(functools.partial(_load, path / "config.yaml")) for path in directories]
    names = [name for name in dict.fromkeys(key for line in given for key in line) if _is_setting(name)]
    settings: list[dict[str, str]] = [{} for _ in directories]
    for name in names:
        column = [
            line[name] if name in line else _from_config(path, config(), name)
            for path, line, config in zip(directories, given, configs, strict=True)
        ]
        if len({canonical(value) for value in column if value}) > 1:
            for own, value in zip(settings, column, strict=True):
                own[name] = value
    results = []
    for path, line, config, own in zip(directories, given, configs, settings, strict=True):
        try:
            summary = read_summary(path)
        except ValueError:  # not JSON
            summary = {}
        status = summary.get("status", "unfinished")
        reason = str(summary.get("reason", ""))
        if status != "finished" and path in (failures or {}):
            status, reason = "failed", reason or (failures or {})[path]
        seed = summary.get("seed", line.get("seed") or config().get("seed"))
        results.append(
            Result(
                path, own, int(str(seed)) if str(seed).isdecimal() else None, status, " ".join(reason.split()), summary
            )
        )
    return results


def run_directories(directory: Path) -> list[Path]:
    """``directory`` if it is a run's, else the runs right below it: in the order of its ``sweep.csv``, then by name.

    Raises UsageError when there is none.
    """
    if _is_run(directory):
        return [directory]
    below = sorted(path for path in directory.iterdir() if _is_run(path)) if directory.is_dir() else []
    jobs = [row["job"] for row in past_jobs(directory)]
    place = {name: i for i, name in enumerate(jobs)}
    found = sorted(below, key=lambda path: place.get(path.name, len(place)))
    if not found:
        raise UsageError(f"{directory}: neither a run nor a sweep (no config.yaml in it or right below it)")
    return found


def past_jobs(directory: Path) -> list[dict[str, str]]:
    """The rows of a sweep's ``sweep.csv``; none when there is no such file."""
    try:
        with (directory / "sweep.csv").open(newline="") as file:
            reader = csv.DictReader(file)
            return [row for row in reader if row.get("job") and None not in row]
    except FileNotFoundError:
        return []


def declared(runs: Iterable[Path]) -> dict[str, Any]:
    """The ``comparison`` of the first run's config; empty where it has none."""
    first = next(iter(runs), None)
    node = {} if first is None else _load(first / "config.yaml").get("comparison")
    return {name: value for name, value in (node or {}).items() if name != "_target_"}


def grouped(results: Sequence[Result]) -> list[Setting]:
    """The settings, in the order of their first run."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        known = any(result.settings.values()) or not result.settings
        values = tuple(canonical(value) for value in result.settings.values())
        groups.setdefault(values if known else (result.path,), []).append(result)
    return [Setting(runs[0].settings, _label(runs[0]), tuple(runs)) for runs in groups.values()]


def conclude(
    directory: Path,
    runs: Sequence[Path],
    *,
    comparison: Comparison,
    failures: Mapping[Path, str] | None = None,
    about: Mapping[str, Any] | None = None,
    overrides: Mapping[Path, Sequence[str]] | None = None,
) -> Conclusion:
    """Compare ``runs``, in this order, and leave the tables, the figures and the summary in ``directory``.

    ``sweep.csv`` comes first, and is written whatever the runs are like; what cannot be drawn is noted.

    Args:
        failures: reasons of jobs whose directory does not tell, or does not exist.
        about: what ``summary.json`` is to say beside the result.
        overrides: the overrides of jobs whose directory does not tell.
    """
    from dlhw.record import Record

    record = Record(directory)
    paths = [*runs, *(path for path in failures or {} if path not in runs)]
    results = read(paths, failures=failures, overrides=overrides)
    jobs = _job_names(directory, results)
    record.csv("sweep", _sweep_rows(results, jobs))
    conclusion = _judged(results, jobs)
    record.table("settings", _setting_rows(conclusion))
    notes = _draw(record, conclusion, comparison, title=_title(directory, results))
    record.summary(
        {
            "status": conclusion.status,
            "jobs": len(results),
            **{status: sum(run.status == status for run in results) for status in ("finished", "failed", "unfinished")},
            "settings": len(conclusion.settings),
            "monitor": conclusion.monitor,
            "winner": _winner(conclusion),
            "no_winner": conclusion.no_winner or None,
            **(about or {}),
        }
    )
    return Conclusion(**{**vars(conclusion), "notes": (*conclusion.notes, *notes)})


def canonical(text: str) -> Any:
    """What a value as written stands for, to compare by: ``0.10`` is ``1e-1``, and ``[8]`` is ``[8.0]``."""
    try:
        return _hashable(yaml.load(text, _Loader))
    except yaml.YAMLError:
        return text.strip()


def number(text: str) -> float | None:
    """The number that a value is, also as the only one of a list (``model.hidden=[100]``); None for anything else."""
    value = canonical(text)
    if isinstance(value, tuple) and len(value) == 1:
        (value,) = value
    return value if isinstance(value, float) else None


def _hashable(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return tuple(
            (str(name), _hashable(item)) for name, item in sorted(value.items(), key=lambda pair: str(pair[0]))
        )
    if isinstance(value, bool):
        return str(value)  # True is not 1
    try:
        return float(value) if math.isfinite(float(value)) else str(value)
    except (TypeError, ValueError, OverflowError):
        return value if value is None else str(value)


def _is_setting(name: str) -> bool:
    return name.partition(".")[0].partition("/")[0] not in NO_SETTINGS


def _is_run(path: Path) -> bool:
    # A job whose config was refused has Hydra's files, but none of its own.
    return (path / "config.yaml").is_file() or (path / ".hydra" / "overrides.yaml").is_file()


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_bytes(), _Loader)
    except (OSError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _overrides(path: Path, otherwise: Sequence[str]) -> dict[str, str]:
    """Override key: value as written."""
    try:
        lines = yaml.load((path / ".hydra" / "overrides.yaml").read_bytes(), _Loader)
    except (OSError, yaml.YAMLError):
        lines = otherwise
    split = [str(line).lstrip("+").partition("=") for line in lines or ()]
    return {name.removeprefix("~"): "null" if name.startswith("~") else value for name, _, value in split}


def _from_config(path: Path, config: Mapping[str, Any], name: str) -> str:
    """What a run without an override of ``name`` had there; empty when that cannot be said."""
    node: Any = config
    for part in name.split("."):
        node = node.get(part, "") if isinstance(node, Mapping) else ""
    if isinstance(node, Mapping) or (node == "" and "." not in name):
        choices = _load(path / ".hydra" / "hydra.yaml").get("hydra", {}).get("runtime", {}).get("choices", {})
        return str(choices.get(name) or "")
    if isinstance(node, str):
        return node
    return yaml.dump(node, default_flow_style=True, width=math.inf).removesuffix("\n...\n").strip()


def _read_csv(path: Path) -> list[dict[str, float]]:
    try:
        with path.open(newline="") as file:
            return [{name: _number(text) for name, text in row.items()} for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _short(value: float) -> str:
    return f"{value:.4g}" if not float(value).is_integer() or abs(value) >= 1e15 else f"{value:.0f}"


def _words(column: str, *, unit: bool = True) -> str:
    """``val_error_percent``: validation error (%)."""
    words = column.replace("val_", "validation ").replace("_percent", " (%)" if unit else "")
    return words.replace("_", " ")


def _label(result: Result) -> str:
    """``optimizer = adam, lr = 0.001``: keys by their last part where that is enough to tell them apart."""
    lasts = [name.rpartition(".")[2] for name in result.settings]
    told = [
        f"{last if lasts.count(last) == 1 else name} = {value}"
        for (name, value), last in zip(result.settings.items(), lasts, strict=True)
        if value
    ]
    return ", ".join(told) or (str(result.summary.get("experiment", "")) if not result.settings else result.path.name)


def _job_names(directory: Path, results: Sequence[Result]) -> list[str]:
    """Directory names; for runs of several sweeps with as much of the path as tells them apart."""
    parents = {run.path.parent for run in results}
    if len(parents) < 2:
        return [run.path.name for run in results]
    common = os.path.commonpath([parent.absolute() for parent in parents])
    return [Path(os.path.relpath(run.path.absolute(), common)).as_posix() for run in results]


def _title(directory: Path, results: Sequence[Result]) -> str:
    names = dict.fromkeys(str(run.summary["experiment"]) for run in results if "experiment" in run.summary)
    return f"{', '.join(names) or directory.name}: {len(results)} runs compared"


def _sweep_rows(results: Sequence[Result], jobs: Sequence[str]) -> list[dict[str, object]]:
    """One row per job; nothing of the clock, so that equal sweeps have equal files."""
    keys = list(results[0].settings) if results else []
    best = dict.fromkeys(name for run in results for name in run.best if name not in ("epoch", "step"))
    final = dict.fromkeys(name for run in results for name in run.final if name not in ("epoch", "step"))
    found = dict.fromkeys(name for run in results for name in run.numbers if "seconds" not in name)
    rows: list[dict[str, object]] = []
    for run, job in zip(results, jobs, strict=True):
        row: dict[str, object] = {"job": job, "status": run.status, "reason": run.reason}
        row |= {name: run.settings[name] for name in keys}
        row |= {"seed": "" if run.seed is None else run.seed}
        row |= {"epochs": run.final.get("epoch", ""), "best_epoch": run.best.get("epoch", "")}
        row |= {f"best_{name}": run.best.get(name, "") for name in best}
        row |= {f"final_{name}": run.final.get(name, "") for name in final}
        row |= {name: run.numbers.get(name, "") for name in found}
        row["parameters"] = run.summary.get("parameters", "")
        rows.append(row)
    return rows


def _results(settings: Sequence[Setting], monitor: str | None) -> list[tuple[str, Callable[[Result], Any]]]:
    """Name and reader of what is reported of each setting first: validation and test metric, or a study's numbers."""
    if monitor is not None:
        return [(name, functools.partial(_at_best, column=name)) for name in (monitor, _test_of(monitor))]
    runs = [run for setting in settings for run in setting.runs]
    names = dict.fromkeys(name for run in runs for name in run.numbers)
    return [(name, functools.partial(_found, name=name)) for name in names]


def _at_best(run: Result, *, column: str) -> float | None:
    return run.best.get(column)


def _found(run: Result, *, name: str) -> float | None:
    return run.numbers.get(name)


def _test_of(monitor: str) -> str:
    return monitor.replace("val_", "test_", 1)


def _judged(results: Sequence[Result], jobs: Sequence[str]) -> Conclusion:
    """The settings, ranked by validation, and the winner. Test metrics are not looked at."""
    settings = grouped(results)
    finished = [run for run in results if run.status == "finished"]
    monitors = sorted({str(run.summary["monitor"]) for run in finished if "monitor" in run.summary})
    monitor = monitors[0] if len(monitors) == 1 else None

    def mean(setting: Setting) -> float:
        spread = None if monitor is None else setting.spread(functools.partial(_at_best, column=monitor))
        return math.inf if spread is None else spread.mean

    ranked = sorted(settings, key=lambda setting: (not setting.complete, mean(setting)))
    winner = ranked[0] if ranked and ranked[0].complete and math.isfinite(mean(ranked[0])) else None
    no_winner = ""
    if len(monitors) > 1:
        no_winner = f"runs that go by different trainer.monitor ({', '.join(monitors)}) cannot be ranked"
    elif winner is None and not finished:
        no_winner = "no run finished"
    elif winner is None:
        no_winner = "no setting has all its runs finished" if monitor else "nothing was trained and validated"
    status = next((state for state in ("unfinished", "failed") if any(run.status == state for run in results)), None)
    failed = {job: f"failed: {run.reason}" for run, job in zip(results, jobs, strict=True) if run.status == "failed"}
    return Conclusion(status or "finished", tuple(ranked), monitor, winner, no_winner, failed, ())


def _setting_rows(conclusion: Conclusion) -> list[dict[str, object]]:
    """One row per setting: counts, means and standard deviations over its finished runs."""
    runs = [run for setting in conclusion.settings for run in setting.runs]
    final = dict.fromkeys(name for run in runs for name in run.final if name not in ("step", "lr"))
    rows: list[dict[str, object]] = []
    for setting in conclusion.settings:
        row: dict[str, object] = dict(setting.values) or {"setting": setting.label}
        row |= {"n": setting.count("finished"), "failed": setting.count("failed")}
        row["unfinished"] = setting.count("unfinished")
        for name, reader in _results(conclusion.settings, conclusion.monitor):
            spread = setting.spread(reader)
            told = f"best_{name}" if conclusion.monitor else name
            row[f"{told}_mean"] = "" if spread is None else spread.mean
            row[f"{told}_std"] = "" if spread is None or spread.sd is None else spread.sd
        means: dict[str, Callable[[Result], Any]] = {"best_epoch": functools.partial(_at_best, column="epoch")}
        means |= {f"final_{name}": functools.partial(_at_end, column=name) for name in final}
        means |= {name: functools.partial(_summed, name=name) for name in ("parameters", "seconds_per_epoch")}
        for name, reader in means.items():
            spread = setting.spread(reader)
            row[f"{name}_mean"] = "" if spread is None else spread.mean
        rows.append(row)
    return rows


def _at_end(run: Result, *, column: str) -> float | None:
    return run.final.get(column)


def _summed(run: Result, *, name: str) -> float | None:
    return run.summary.get(name)


def _winner(conclusion: Conclusion) -> dict[str, Any] | None:
    if conclusion.winner is None or conclusion.monitor is None:
        return None
    content: dict[str, Any] = {
        "setting": conclusion.winner.label,
        "settings": dict(conclusion.winner.values),
        "n": len(conclusion.winner.runs),
    }
    for name, reader in _results(conclusion.settings, conclusion.monitor):
        spread = conclusion.winner.spread(reader)
        content[name] = None if spread is None else {"mean": spread.mean, "sd": spread.sd}
    return content


def _verdict(winner: Setting, monitor: str) -> str:
    """``b = 0.05 (2.39 ± 0.05 %, n = 3), test error there 2.85 ± 0.04 %``."""
    validation, test = (winner.spread(reader) for _, reader in _results([winner], monitor))
    unit = " %" if monitor.endswith("_percent") else ""
    told = f"{winner.label} ({validation}{unit}, n = {len(winner.runs)})" if winner.label else f"{validation}{unit}"
    return told if test is None else f"{told}, {_words(_test_of(monitor), unit=False)} there {test}{unit}"


# --- figures: from results to arrays ------------------------------------------------------------------------


def _draw(record: Record, conclusion: Conclusion, comparison: Comparison, *, title: str) -> list[str]:
    """Draw what the comparison asks for; a note for each thing that could not be."""
    drawn = [setting for setting in conclusion.settings if setting.finished]
    keys = list(drawn[0].values) if drawn else []
    notes = []
    for key in [comparison.overlay] if comparison.overlay else []:
        if key not in keys and drawn:
            notes.append(f"comparison.overlay={key}: does not vary ({', '.join(keys) or 'nothing'} does)")
    overlay = comparison.overlay if comparison.overlay in keys else None
    lines = _best_of_each(drawn, overlay)
    lines = lines[:DRAWN_SETTINGS]
    lines = _in_order(lines, overlay or _main_key(drawn))
    look = _Look(lines, overlay or _main_key(drawn), conclusion.winner, overlay)
    against = comparison.against or [
        key for key in [_only_numeric_key(drawn)] if key is not None and conclusion.monitor is not None
    ]
    figures: list[tuple[str, Callable[[], str]]] = []
    subtitle = _said(conclusion, lines)
    if comparison.curves and any(run.best for setting in lines for run in setting.finished):
        figures.append(("comparison", lambda: _draw_curves(record, look, comparison.curves, title, subtitle)))
    for key in against:
        figures.append(
            (
                f"figures/against_{key}",
                functools.partial(_draw_against, record, drawn, key, conclusion, look=look, title=title),
            )
        )
    for column in comparison.probes:
        figures.append((f"figures/probe_{column}", functools.partial(_draw_probe, record, look, column, title)))
    for name, draw in figures:
        try:
            note = draw()
        except Exception as error:  # whatever a figure fails by, the tables stand
            log.debug("%s.png", name, exc_info=True)
            note = f"{type(error).__name__}: {error}"
        if note:
            notes.append(f"{name}.png: not drawn ({' '.join(note.split())})")
    return notes


class _Look:
    """Which lines the figures of a comparison have, each setting with the same colour and label in all of them."""

    def __init__(
        self, settings: Sequence[Setting], key: str | None, winner: Setting | None, overlay: str | None
    ) -> None:
        from dlhw.plots import setting_colors

        values = [None if key is None else number(setting.values[key]) for setting in settings]
        best = next((i for i, setting in enumerate(settings) if setting is winner), None)
        colors = setting_colors(values, best=best)
        self.settings = list(settings)
        self.winner = winner
        self.overlay = overlay
        self.colors = {id(setting): color for setting, color in zip(settings, colors, strict=True)}

    def series(
        self, setting: Setting, x: Sequence[float], columns: Sequence[Sequence[float]], *, label: str | None = None
    ) -> Series:
        """A line through the means of ``columns``, the values of the seeds at each x."""
        from dlhw.plots import Series

        spreads = [statistics.stdev(values) if len(values) > 1 else math.nan for values in columns]
        return Series(
            setting.label if label is None else label,
            self.colors[id(setting)],
            list(x),
            [statistics.fmean(values) for values in columns],
            spreads if any(math.isfinite(value) for value in spreads) else (),
            setting is self.winner and len(self.settings) > 1,
        )


def _draw_curves(record: Record, look: _Look, columns: Sequence[str], title: str, subtitle: str) -> str:
    from dlhw import plots

    panels = []
    for column in columns:
        lines = []
        for setting in look.settings:
            tables = [dict(_points(run.rows, column)) for run in setting.finished]
            shared = sorted(set.intersection(*(set(table) for table in tables)))  # epochs that all seeds reached
            if shared:
                lines.append(look.series(setting, shared, [[table[x] for table in tables] for x in shared]))
        if lines:
            panels.append(_panel(column, lines))
    if not panels:
        return f"no run has a column {', '.join(columns)}"
    record.figure("comparison", plots.compared_curves(panels, title=title, subtitle=subtitle))
    return ""


def _draw_against(
    record: Record, drawn: Sequence[Setting], key: str, conclusion: Conclusion, *, look: _Look, title: str
) -> str:
    from dlhw import plots

    monitor = conclusion.monitor
    numeric = [setting for setting in drawn if number(setting.values.get(key, "")) is not None]
    if len({number(setting.values[key]) for setting in numeric}) < 2 or monitor is None:
        return f"{key} has not two numeric values among the finished settings"
    panels = []
    lines = [setting for setting in look.settings if look.overlay not in (None, key)] or look.settings[:1]
    for metric in (monitor, _test_of(monitor)):
        series = []
        for line in lines:
            same = [
                setting
                for setting in numeric
                if look.overlay in (None, key)
                or canonical(setting.values[look.overlay]) == canonical(line.values[look.overlay])
            ]
            points = sorted(_best_of_each(same, key), key=lambda setting: number(setting.values[key]) or 0.0)
            points = [setting for setting in points if any(metric in run.best for run in setting.finished)]
            if points:
                values = [[run.best[metric] for run in setting.finished if metric in run.best] for setting in points]
                x = [number(setting.values[key]) or 0.0 for setting in points]
                told = f"{_last(look.overlay)} = {line.values[look.overlay]}" if len(lines) > 1 and look.overlay else ""
                found = look.series(line, x, values, label=told)
                color = found.color if len(lines) > 1 else plots.PALETTE[0]
                series.append(plots.Series(told, color, found.x, found.y, found.spread))
        if series:
            panels.append(_panel(metric, series))
    if not panels:
        return f"no run has {monitor}"
    optimum = None if conclusion.winner is None else number(conclusion.winner.values[key])
    notes = [f"at each run's best epoch; {_counts(numeric)}"]
    if len(numeric[0].values) > (2 if len(lines) > 1 else 1):
        notes.append("each point: the best setting by validation among those with this value")
    if conclusion.winner is not None and optimum is not None:
        notes.append(f"dotted: the lowest validation mean, {_verdict(conclusion.winner, monitor)}")
    figure = plots.compared_against(panels, key=key, optimum=optimum, title=title, subtitle="\n".join(notes))
    record.figure(f"figures/against_{key}", figure)
    return ""


def _draw_probe(record: Record, look: _Look, column: str, title: str) -> str:
    from dlhw import plots

    moments: list[list[Series]] = [[], []]
    epochs: list[set[int]] = [set(), set()]
    layers: list[str] = []
    for setting in look.settings:
        probed = [found for run in setting.finished if len(found := run.probes(column)) == 2]
        for moment, lines in enumerate(moments):
            values = [found[moment][1] for found in probed]
            depth = min(map(len, values), default=0)
            if depth:
                x = range(1, depth + 1)
                lines.append(look.series(setting, x, [[row[i - 1] for row in values] for i in x]))
                epochs[moment] |= {found[moment][0] for found in probed}
                layers = layers if len(layers) > depth else probed[0][moment][2][:depth]
    if not moments[0]:
        return f"no run has two probes with a column {column}"
    panels = [
        _panel(column, lines, title="before training" if at == {0} else f"after {_epochs(at)}")
        for lines, at in zip(moments, epochs, strict=True)
    ]
    figure = plots.compared_layers(
        panels, layers=layers if all(layers) else (), title=title, subtitle=_counts(look.settings)
    )
    record.figure(f"figures/probe_{column}", figure)
    return ""


def _epochs(at: set[int]) -> str:
    low, high = min(at), max(at)
    return f"{low} epochs" if low == high else f"{low} to {high} epochs"


def _panel(column: str, lines: Sequence[Series], *, title: str = "") -> Panel:
    from dlhw.plots import Panel, column_label

    # One sample is a few thousandths of a percent: without a floor, such values would take most of a log axis.
    return Panel(column_label(column), lines, title, floor=0.1 if column.endswith("error_percent") else 0.0)


def _points(rows: Sequence[Mapping[str, float]], column: str) -> list[tuple[float, float]]:
    return [(row["epoch"], row[column]) for row in rows if math.isfinite(row.get(column, math.nan))]


def _best_of_each(ranked: Sequence[Setting], key: str | None) -> list[Setting]:
    """The first, which is the best, of the ranked settings for each value of ``key``; all of them without a key."""
    if key is None:
        return list(ranked)
    best: dict[Any, Setting] = {}
    for setting in ranked:
        best.setdefault(canonical(setting.values[key]), setting)
    return list(best.values())


def _in_order(settings: Sequence[Setting], key: str | None) -> list[Setting]:
    """By the number or name that ``key`` has in each, so that legends and colours go up with it."""
    if key is None:
        return list(settings)

    def place(setting: Setting) -> tuple[bool, float, str]:
        value = number(setting.values[key])
        return (value is None, value or 0.0, setting.label)

    return sorted(settings, key=place)


def _numeric_keys(settings: Sequence[Setting], *, values: int) -> list[str]:
    """Keys that are numbers everywhere, with so many different ones at least."""
    keys = list(settings[0].values) if settings else []
    columns = {key: [number(setting.values[key]) for setting in settings] for key in keys}
    return [key for key, column in columns.items() if None not in column and len(set(column)) >= values]


def _only_numeric_key(settings: Sequence[Setting]) -> str | None:
    keys = _numeric_keys(settings, values=3)
    return keys[0] if len(keys) == 1 else None


def _main_key(settings: Sequence[Setting]) -> str | None:
    """The key to order settings by: the first whose values are numbers, or else the first."""
    keys = list(settings[0].values) if settings else []
    return next(iter([*_numeric_keys(settings, values=2), *keys]), None)


def _last(key: str | None) -> str:
    return (key or "").rpartition(".")[2]


def _counts(settings: Sequence[Setting]) -> str:
    counts = sorted({len(setting.finished) for setting in settings if setting.finished})
    if not counts or counts == [1]:
        return "one run each (n = 1)"
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"mean over seeds, ± one standard deviation (n = {n})"


def _said(conclusion: Conclusion, lines: Sequence[Setting]) -> str:
    shown = f"; the best {DRAWN_SETTINGS} settings" if len(lines) == DRAWN_SETTINGS < len(conclusion.settings) else ""
    first = _counts(lines) + shown
    if conclusion.winner is None or conclusion.monitor is None:
        return f"{first}\nno winner: {conclusion.no_winner}"
    metric = _words(conclusion.monitor, unit=False)
    return f"{first}\nlowest mean {metric}: {_verdict(conclusion.winner, conclusion.monitor)}"
