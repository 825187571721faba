"""The command that compares finished runs: ``python -m dlhw.compare DIR...``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlhw.cli import failures
from dlhw.errors import UsageError
from dlhw.runtime.paths import printable, read_path, shortened
from dlhw.storage import stored
from dlhw.storage.directories import has_config, is_run_of_dlhw, is_sweep_of_dlhw, runs_in
from dlhw.storage.listing import chosen

if TYPE_CHECKING:
    from dlhw.views.comparison import Comparison, Result

_WRITTEN = (
    *("status", "jobs", "finished", "failed", "unfinished", "settings", "monitor", "winner", "tied", "no_winner"),
)

_OF_A_SEARCH = ("trial", "bracket", "state")
"""Columns of ``sweep.csv`` that only a search has."""


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="dlhw compare",
        description="Compare finished runs: sweep.csv, tables, figures and the best setting by validation. The options "
        "below override those under `comparison` in the config of the first run.",
    )
    parser.add_argument("directories", nargs="+", metavar="DIR", help="a run, a sweep, a folder of them, or 'last'")
    parser.add_argument("--curves", nargs="+", metavar="COLUMN", help="columns of metrics.csv to draw, one panel each")
    parser.add_argument(
        "--overlay", metavar="KEY", help="draw one line per value of KEY, with the best values of all other keys"
    )
    parser.add_argument(
        "--against", nargs="+", metavar="KEY", help="numeric keys to draw the validation metric against"
    )
    parser.add_argument("--probes", nargs="+", metavar="COLUMN", help="columns of probes/epoch_*.csv to draw by layer")
    parser.add_argument("-o", "--output", metavar="DIR", help="output directory (default: that of a single sweep)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the runs that the command line names. An error ends the program with one line and exit code 1."""
    options = argument_parser().parse_args(arguments)
    with failures.end_program(options.output or options.directories[0]):
        print(compare(options.directories, output=options.output, figure_options=_figure_options(options)))


def compare(
    directories: str | Path | Iterable[str | Path],
    *,
    output: str | Path | None = None,
    figure_options: Mapping[str, Any] | None = None,
) -> str:
    """Compare the runs of one or several ``directories``: runs, sweeps and folders of runs.

    Without ``output``, a folder of runs and sweeps means its newest sweep; so does one without runs of its own.
    ``last`` is the newest sweep in ``outputs``. The files are written to ``output``, or to the directory of a single
    sweep. ``figure_options`` are options of :class:`dlhw.views.comparison.Comparison` that override those in the first
    run's config. Return the final table. Raise UsageError.
    """
    from dlhw.cli.comparisons import declared_comparison
    from dlhw.views import comparison

    if isinstance(directories, str | bytes) or not isinstance(directories, Iterable):
        directories = [directories]
    paths = [_meant(read_path(path, key="DIR"), output) for path in directories]
    if not paths:
        raise UsageError("DIR: missing; expected the directory of a run or sweep")
    runs: dict[Path, Path] = {}
    reasons: dict[Path, str] = {}
    overrides: dict[Path, list[str]] = {}
    columns: dict[Path, dict[str, str]] = {}
    for path in paths:
        rows = {} if has_config(path) else {path / row["job"]: row for row in stored.read_sweep(path) or []}
        for run in (*rows, *comparison.run_directories(path)):
            runs.setdefault(comparison.place(run), run)
        reasons |= {run: row["reason"] for run, row in rows.items() if row["status"] == "failed"}
        overrides |= {run: _overrides(row) for run, row in rows.items()}
        columns |= {run: {name: row[name] for name in _OF_A_SEARCH} for run, row in rows.items() if "trial" in row}
    target = _target(paths, None if output is None else read_path(output, key="--output"), runs)
    drawn = declared_comparison(next(iter(runs.values())), figure_options or {})
    results = comparison.read(list(runs.values()), failures=reasons, overrides=overrides)
    if columns:
        results = comparison.without_budget(results)
    _require_known(figure_options or {}, drawn, results)
    if target.resolve() == paths[0].resolve():
        about = {name: value for name, value in stored.read_summary(target).items() if name not in _WRITTEN}
    else:
        about = {"compared": [str(path) for path in paths]}
        target.mkdir(parents=True, exist_ok=True)
    return str(comparison.compare_results(target, results, comparison=drawn, about=about, columns=columns))


def _meant(path: Path, output: str | Path | None) -> Path:
    """Return the directory with the runs that a person means by ``path``."""
    return path if output is not None and runs_in(path) else chosen(path, "sweep")


def _target(directories: Sequence[Path], output: Path | None, runs: Container[Path]) -> Path:
    """Return the directory for the files of the comparison: ``output``, or the sweep if only one is compared.

    Raise UsageError if it is neither a sweep that is compared by itself, nor new, empty or an earlier comparison, or if
    it is in a run. ``runs`` holds the places of the compared runs.
    """
    first = directories[0]
    is_sweep = len(directories) == 1 and not has_config(first) and is_sweep_of_dlhw(first)
    if output is None:
        if is_sweep:
            return first
        kind = "a single run" if has_config(first) else "a folder of runs"
        compared = "several directories" if len(directories) > 1 else f"{kind}, {printable(first)}"
        raise UsageError(f"--output: missing; expected a directory for the comparison of {compared}")
    if is_sweep and output.resolve() == first.resolve():
        return output
    inside = output.resolve()
    run = next((path for path in (inside, *inside.parents) if path in runs or is_run_of_dlhw(path)), None)
    if run is not None:
        where = "the directory of a run" if run == inside else f"in the directory of a run, {printable(run)}"
        raise UsageError(f"--output {printable(output)}: {where}; expected a directory that is not in a run")
    if (os.path.lexists(output) and not output.is_dir()) or (output.is_dir() and not _is_replaceable(output)):
        raise UsageError(
            f"--output {printable(output)}: contains something else; expected a new or empty directory, or that of an "
            "earlier comparison"
        )
    return output


def _is_replaceable(output: Path) -> bool:
    """Return whether a directory is empty or holds an earlier comparison of several directories."""
    if not any(output.iterdir()):
        return True
    try:
        return stored.read_sweep(output) is not None and "compared" in stored.read_summary(output)
    except stored.Unreadable:
        return False


def _require_known(options: Collection[str], declaration: Comparison, results: Sequence[Result]) -> None:
    """Raise UsageError if one of these options names a column or key that no run has."""
    from dlhw.runtime.hints import expected_one_of

    if not options:
        return
    settings = list(results[0].settings) if results else []
    valid = {
        "curves": list(dict.fromkeys(column for run in results for row in run.rows[:1] for column in row)),
        "overlay": settings,
        "against": settings,
        "probes": list(dict.fromkeys(column for run in results for column in run.probed_columns)),
    }
    reasons = {"curves": "no run has this column", "probes": "no run has a probe with this column"}
    for option, names in valid.items():
        values = getattr(declaration, option) if option in options else None
        for value in [values] if isinstance(values, str) else values or ():
            if value not in names:
                reason = reasons.get(option, "this key does not vary among the runs")
                expected = expected_one_of(value, names) if names else ""
                raise UsageError(f"--{option} {shortened(value)}: {reason}{expected}")


def _figure_options(options: argparse.Namespace) -> dict[str, Any]:
    values = {name: getattr(options, name) for name in ("curves", "overlay", "against", "probes")}
    return {name: value for name, value in values.items() if value is not None}


def _overrides(row: Mapping[str, str]) -> list[str]:
    """Return the overrides of a job from its row of ``sweep.csv``, for a job without a directory."""
    columns = list(row)
    if "reason" not in columns or "seed" not in columns:
        return []
    keys = columns[columns.index("reason") + 1 : columns.index("seed") + 1]
    return [f"{key}={row[key]}" for key in keys if row[key]]


if __name__ == "__main__":
    main()
