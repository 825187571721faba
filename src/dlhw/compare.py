"""The command that compares finished runs: ``python -m dlhw.compare DIR...``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlhw.cli import failures
from dlhw.errors import UsageError
from dlhw.runs.record import read_summary

_WRITTEN = ("status", "jobs", "finished", "failed", "unfinished", "settings", "monitor", "winner", "no_winner")


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the runs that the command line names. An error ends the program with one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m dlhw.compare",
        description="Compare finished runs: sweep.csv, tables, figures and the best setting by validation. The options "
        "below override those under `comparison` in the config of the first run.",
    )
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="a run, or a sweep with all its runs")
    parser.add_argument("--curves", nargs="+", metavar="COLUMN", help="columns of metrics.csv to draw, one panel each")
    parser.add_argument(
        "--overlay", metavar="KEY", help="draw one line per value of KEY, with the best values of all other keys"
    )
    parser.add_argument(
        "--against", nargs="+", metavar="KEY", help="numeric keys to draw the validation metric against"
    )
    parser.add_argument("--probes", nargs="+", metavar="COLUMN", help="columns of probes/epoch_*.csv to draw by layer")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="output directory (default: that of a single sweep)"
    )
    options = parser.parse_args(arguments)
    with failures.end_program(options.output or options.directories[0]):
        print(compare(options.directories, output=options.output, figure_options=_figure_options(options)))


def compare(
    directories: Sequence[Path], *, output: Path | None = None, figure_options: dict[str, Any] | None = None
) -> str:
    """Compare the runs of ``directories`` and write the files to ``output``, or to the directory of a single sweep.

    ``figure_options`` are options of :class:`dlhw.views.comparison.Comparison` that override those in the first run's
    config. Return the final table. Raise UsageError.
    """
    import pydantic
    import yaml

    from dlhw.cli import composition
    from dlhw.views import comparison
    from dlhw.views.comparison import Comparison

    runs: dict[Path, None] = {}
    reasons: dict[Path, str] = {}
    overrides: dict[Path, list[str]] = {}
    for directory in directories:
        rows = {directory / row["job"]: row for row in comparison.read_sweep_rows(directory)}
        paths = comparison.run_directories(directory)
        runs |= dict.fromkeys([*rows, *paths] if paths != [directory] else paths)
        reasons |= {path: row.get("reason", "") for path, row in rows.items() if row.get("status") == "failed"}
        overrides |= {path: _overrides(row) for path, row in rows.items()}
    in_place = len(directories) == 1 and list(runs) != [directories[0]]
    if output is None and not in_place:
        compared = "several directories" if len(directories) > 1 else f"a single run, {directories[0]}"
        raise UsageError(f"--output: missing; expected a directory for the comparison of {compared}")
    target = directories[0] if output is None else output
    updates_sweep = target.resolve() == directories[0].resolve() and in_place
    if not updates_sweep and any((target / name).exists() for name in ("config.yaml", "multirun.yaml")):
        raise UsageError(f"--output {target}: contains another run or sweep; expected another directory")
    defaults = yaml.safe_load((composition.conf_dir() / "comparison" / "default.yaml").read_text())
    del defaults["_target_"]
    options = defaults | comparison.declared_options(runs) | (figure_options or {})
    try:
        declaration = pydantic.TypeAdapter(Comparison).validate_python(options)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"comparison.{first['loc'][0]}: {first['msg']}") from error
    about = (
        {name: value for name, value in read_summary(target).items() if name not in _WRITTEN} if updates_sweep else {}
    )
    if not updates_sweep:
        about = {"compared": [str(directory) for directory in directories]}
        target.mkdir(parents=True, exist_ok=True)
    return str(
        comparison.compare_runs(
            target, list(runs), comparison=declaration, failures=reasons, overrides=overrides, about=about
        )
    )


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
