"""The command that compares finished runs: ``python -m dlhw.compare DIR...``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlhw.cli import failures
from dlhw.errors import UsageError
from dlhw.runs import stored
from dlhw.runs.directories import has_config, is_sweep_of_dlhw
from dlhw.runtime.paths import printable, read_path, shortened

if TYPE_CHECKING:
    from dlhw.views.comparison import Comparison

_WRITTEN = (
    *("status", "jobs", "finished", "failed", "unfinished", "settings", "monitor", "winner", "tied", "no_winner"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the runs that the command line names. An error ends the program with one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m dlhw.compare",
        description="Compare finished runs: sweep.csv, tables, figures and the best setting by validation. The options "
        "below override those under `comparison` in the config of the first run.",
    )
    parser.add_argument("directories", nargs="+", metavar="DIR", help="a run, or a sweep with all its runs")
    parser.add_argument("--curves", nargs="+", metavar="COLUMN", help="columns of metrics.csv to draw, one panel each")
    parser.add_argument(
        "--overlay", metavar="KEY", help="draw one line per value of KEY, with the best values of all other keys"
    )
    parser.add_argument(
        "--against", nargs="+", metavar="KEY", help="numeric keys to draw the validation metric against"
    )
    parser.add_argument("--probes", nargs="+", metavar="COLUMN", help="columns of probes/epoch_*.csv to draw by layer")
    parser.add_argument("-o", "--output", metavar="DIR", help="output directory (default: that of a single sweep)")
    options = parser.parse_args(arguments)
    with failures.end_program(options.output or options.directories[0]):
        directories = [read_path(text, key="DIR") for text in options.directories]
        output = None if options.output is None else read_path(options.output, key="--output")
        print(compare(directories, output=output, figure_options=_figure_options(options)))


def compare(
    directories: Sequence[Path], *, output: Path | None = None, figure_options: dict[str, Any] | None = None
) -> str:
    """Compare the runs of ``directories`` and write the files to ``output``, or to the directory of a single sweep.

    ``figure_options`` are options of :class:`dlhw.views.comparison.Comparison` that override those in the first run's
    config. Return the final table. Raise UsageError.
    """
    from dlhw.views import comparison

    runs: dict[Path, None] = {}
    reasons: dict[Path, str] = {}
    overrides: dict[Path, list[str]] = {}
    for directory in directories:
        is_run = has_config(directory)
        rows = {} if is_run else {directory / row["job"]: row for row in stored.read_sweep(directory) or []}
        paths = comparison.run_directories(directory)
        runs |= dict.fromkeys([*rows, *paths])
        reasons |= {path: row["reason"] for path, row in rows.items() if row["status"] == "failed"}
        overrides |= {path: _overrides(row) for path, row in rows.items()}
    target = _target(directories, output)
    declaration = _declaration(comparison.declared_options(runs) | (figure_options or {}))
    _require_known(figure_options or {}, list(runs))
    if output is None or target.resolve() == directories[0].resolve():
        about = {name: value for name, value in stored.read_summary(target).items() if name not in _WRITTEN}
    else:
        about = {"compared": [str(directory) for directory in directories]}
        target.mkdir(parents=True, exist_ok=True)
    return str(
        comparison.compare_runs(
            target, list(runs), comparison=declaration, failures=reasons, overrides=overrides, about=about
        )
    )


def _target(directories: Sequence[Path], output: Path | None) -> Path:
    """Return the directory for the files of the comparison: ``output``, or the sweep if only one is compared.

    Raise UsageError if it is neither a sweep that is compared by itself, nor new, empty or an earlier comparison.
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


def _declaration(options: dict[str, Any]) -> Comparison:
    """Return the options of the comparison, with the defaults for those that are missing. Raise UsageError."""
    import pydantic
    import yaml

    from dlhw.cli import composition
    from dlhw.views.comparison import Comparison

    defaults = yaml.safe_load((composition.conf_dir() / "comparison" / "default.yaml").read_text())
    del defaults["_target_"]
    try:
        return pydantic.TypeAdapter(Comparison).validate_python(defaults | options)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"comparison.{first['loc'][0]}: {first['msg']}") from error


def _require_known(options: Mapping[str, Any], runs: Sequence[Path]) -> None:
    """Raise UsageError for a column or key on the command line that no run has."""
    from dlhw.cli.hints import expected_one_of
    from dlhw.views.comparison import read

    if not options:
        return
    results = read(runs)
    settings = list(results[0].settings) if results else []
    valid = {
        "curves": list(dict.fromkeys(column for run in results for row in run.rows[:1] for column in row)),
        "overlay": settings,
        "against": settings,
        "probes": list(dict.fromkeys(column for run in results for column in run.probed_columns)),
    }
    reasons = {"curves": "no run has this column", "probes": "no run has a probe with this column"}
    for option, values in options.items():
        for value in [values] if isinstance(values, str) else values:
            if value not in valid[option]:
                reason = reasons.get(option, "this key does not vary among the runs")
                expected = expected_one_of(value, valid[option]) if valid[option] else ""
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
