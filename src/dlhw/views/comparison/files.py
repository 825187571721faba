"""Compare finished runs and write the files of the comparison: tables, figures and summary."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dlhw.storage.record import Record
from dlhw.views.comparison.options import Comparison
from dlhw.views.comparison.ranking import Conclusion, best_value, rank_settings, reported_metrics
from dlhw.views.comparison.results import Result, place, read


def compare_runs(
    directory: Path,
    runs: Sequence[Path],
    *,
    comparison: Comparison,
    failures: Mapping[Path, str] | None = None,
    about: Mapping[str, Any] | None = None,
    overrides: Mapping[Path, Sequence[str]] | None = None,
) -> Conclusion:
    """Read ``runs``, then :func:`compare_results`.

    Args:
        failures: reasons for failed jobs whose directory does not exist or has no reason.
        about: more entries for ``summary.json``.
        overrides: the overrides of jobs whose directory does not have them.
    """
    paths = [*runs, *(path for path in failures or {} if path not in runs)]
    results = read(paths, failures=failures, overrides=overrides)
    return compare_results(directory, results, comparison=comparison, about=about)


def compare_results(
    directory: Path,
    results: Sequence[Result],
    *,
    comparison: Comparison,
    about: Mapping[str, Any] | None = None,
    columns: Mapping[Path, Mapping[str, object]] | None = None,
) -> Conclusion:
    """Compare the results of runs and write tables, figures and the summary to ``directory``. Return the result.

    ``about`` are more entries for ``summary.json``, and ``columns`` more columns of ``sweep.csv``, by run.
    """

    draw = functools.partial(comparison.draw, title=_title(directory, results))
    return write_comparison(directory, results, draw=draw, about=about, columns=columns)


def write_comparison(
    directory: Path,
    results: Sequence[Result],
    *,
    draw: Callable[[Record, Conclusion], Sequence[str]],
    about: Mapping[str, Any] | None = None,
    columns: Mapping[Path, Mapping[str, object]] | None = None,
) -> Conclusion:
    """Rank the results of runs and write tables, figures and the summary to ``directory``. Return the result.

    ``sweep.csv`` lists the runs in the order of ``results``. It is written first, so that it exists even if something
    else fails. Raise only OSError, if reading or writing a file fails.

    Args:
        draw: draws the figures, and returns a note for each that it could not draw.
        about: more entries for ``summary.json``.
        columns: more columns of ``sweep.csv``, by run.
    """
    record = Record(directory)
    jobs = _job_names(results)
    record.csv("sweep", _sweep_rows(results, jobs, columns or {}))
    conclusion = rank_settings(results, jobs)
    record.table("settings", _setting_rows(conclusion))
    notes = draw(record, conclusion)
    record.summary(
        {
            "status": conclusion.status,
            "jobs": len(results),
            **{status: sum(run.status == status for run in results) for status in ("finished", "failed", "unfinished")},
            "settings": len(conclusion.settings),
            "monitor": conclusion.monitor,
            "winner": _winner(conclusion),
            "tied": [setting.label for setting in conclusion.tied],
            "no_winner": conclusion.no_winner or None,
            **(about or {}),
        }
    )
    return Conclusion(**{**vars(conclusion), "notes": (*conclusion.notes, *notes)})


def conclusion_of(runs: Sequence[Path]) -> Conclusion:
    """Rank the results of runs without writing anything."""
    results = read(runs)
    return rank_settings(results, _job_names(results))


def _job_names(results: Sequence[Result]) -> list[str]:
    """Return the paths of the runs below the folder that contains them all: in a sweep, the names of their directories.

    Bytes that UTF-8 cannot encode, which file names may have, are escaped.
    """
    places = [place(run.path) for run in results]
    common = os.path.commonpath([path.parent for path in places]) if places else ""
    return [path.relative_to(common).as_posix().encode(errors="backslashreplace").decode() for path in places]


def _title(directory: Path, results: Sequence[Result]) -> str:
    names = dict.fromkeys(str(run.summary["experiment"]) for run in results if "experiment" in run.summary)
    return f"{', '.join(names) or directory.name}: {len(results)} runs compared"


def _sweep_rows(
    results: Sequence[Result], jobs: Sequence[str], columns: Mapping[Path, Mapping[str, object]]
) -> list[dict[str, object]]:
    """Return one row per job. They hold no times, so that equal sweeps have equal files."""
    keys = list(results[0].settings) if results else []
    best = dict.fromkeys(name for run in results for name in run.best if name not in ("epoch", "step"))
    final = dict.fromkeys(name for run in results for name in run.final if name not in ("epoch", "step"))
    numbers = dict.fromkeys(name for run in results for name in run.numbers if "seconds" not in name)
    rows: list[dict[str, object]] = []
    for run, job in zip(results, jobs, strict=True):
        row: dict[str, object] = {"job": job, "status": run.status, "reason": run.reason}
        row |= {name: run.settings[name] for name in keys}
        row |= {"seed": "" if run.seed is None else run.seed, **columns.get(run.path, {})}
        row |= {"epochs": run.final.get("epoch", ""), "best_epoch": run.best.get("epoch", "")}
        row |= {f"best_{name}": run.best.get(name, "") for name in best}
        row |= {f"final_{name}": run.final.get(name, "") for name in final}
        row |= {name: run.numbers.get(name, "") for name in numbers}
        row["parameters"] = run.summary.get("parameters", "")
        rows.append(row)
    return rows


def _setting_rows(conclusion: Conclusion) -> list[dict[str, object]]:
    """Return one row per setting: counts, means and standard deviations over its finished runs."""
    runs = [run for setting in conclusion.settings for run in setting.runs]
    final = dict.fromkeys(name for run in runs for name in run.final if name not in ("step", "lr"))
    rows: list[dict[str, object]] = []
    for setting in conclusion.settings:
        row: dict[str, object] = dict(setting.values) or {"setting": setting.label}
        row |= {"n": setting.count("finished"), "failed": setting.count("failed")}
        row["unfinished"] = setting.count("unfinished")
        for name, reader in reported_metrics(conclusion.settings, conclusion.monitor):
            spread = setting.spread(reader)
            column = f"best_{name}" if conclusion.monitor else name
            row[f"{column}_mean"] = "" if spread is None else spread.mean
            row[f"{column}_std"] = "" if spread is None or spread.sd is None else spread.sd
        means: dict[str, Callable[[Result], Any]] = {"best_epoch": functools.partial(best_value, column="epoch")}
        means |= {f"final_{name}": functools.partial(_final_value, column=name) for name in final}
        means |= {name: functools.partial(_summary_value, name=name) for name in ("parameters", "seconds_per_epoch")}
        for name, reader in means.items():
            spread = setting.spread(reader)
            row[f"{name}_mean"] = "" if spread is None else spread.mean
        rows.append(row)
    return rows


def _final_value(run: Result, *, column: str) -> float | None:
    return run.final.get(column)


def _summary_value(run: Result, *, name: str) -> float | None:
    value = run.summary.get(name)
    return value if isinstance(value, int | float) else None


def _winner(conclusion: Conclusion) -> dict[str, Any] | None:
    if conclusion.winner is None or conclusion.monitor is None:
        return None
    content: dict[str, Any] = {
        "setting": conclusion.winner.label,
        "settings": dict(conclusion.winner.values),
        "n": len(conclusion.winner.runs),
    }
    for name, reader in reported_metrics(conclusion.settings, conclusion.monitor):
        spread = conclusion.winner.spread(reader)
        content[name] = None if spread is None else {"mean": spread.mean, "sd": spread.sd}
    return content
