"""The comparison of runs that are there already: ``python -m dlhw.compare DIR...``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlhw.errors import UsageError

_WRITTEN = ("status", "jobs", "finished", "failed", "unfinished", "settings", "monitor", "winner", "no_winner")


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the runs that the command line names; a mistake ends the program with one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m dlhw.compare",
        description="Compare finished runs: sweep.csv, tables, figures and the winner by validation. What is drawn is "
        "what the first run's config says under `comparison`, unless an option below says otherwise.",
    )
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="a run, or a sweep for all its runs")
    parser.add_argument("--curves", nargs="+", metavar="COLUMN", help="columns of metrics.csv, a panel each")
    parser.add_argument("--overlay", metavar="KEY", help="a line per value of KEY, each at its best of all other keys")
    parser.add_argument(
        "--against", nargs="+", metavar="KEY", help="numeric keys to draw the validation metric against"
    )
    parser.add_argument("--probes", nargs="+", metavar="COLUMN", help="columns of probes/epoch_*.csv, by layer")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="where to; a single sweep's own otherwise")
    given = parser.parse_args(arguments)
    try:
        print(compare(given.directories, output=given.output, drawn=_drawn(given)))
    except (UsageError, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error, file=sys.stderr)
        sys.exit(1)


def compare(directories: Sequence[Path], *, output: Path | None = None, drawn: dict[str, Any] | None = None) -> str:
    """Compare the runs of ``directories`` and leave the files in ``output``, or in the one sweep there is.

    ``drawn`` holds the options of :class:`dlhw.comparison.Comparison` that the first run's config shall not decide.
    Returns the closing table. Raises UsageError.
    """
    import pydantic
    import yaml

    from dlhw.cli import composition
    from dlhw.views import comparison
    from dlhw.views.comparison import Comparison

    runs: dict[Path, None] = {}
    failures: dict[Path, str] = {}
    overrides: dict[Path, list[str]] = {}
    for directory in directories:
        rows = {directory / row["job"]: row for row in comparison.read_sweep_rows(directory)}
        found = comparison.run_directories(directory)
        runs |= dict.fromkeys([*rows, *found] if found != [directory] else found)
        failures |= {path: row.get("reason", "") for path, row in rows.items() if row.get("status") == "failed"}
        overrides |= {path: _overrides(row) for path, row in rows.items()}
    in_place = len(directories) == 1 and list(runs) != [directories[0]]
    if output is None and not in_place:
        what = "several directories need" if len(directories) > 1 else f"{directories[0]}: a single run needs"
        raise UsageError(f"{what} --output DIR for the comparison's files")
    target = directories[0] if output is None else output
    own = target.resolve() == directories[0].resolve() and in_place
    if not own and any((target / name).exists() for name in ("config.yaml", "multirun.yaml")):
        raise UsageError(f"--output {target}: holds a run or a sweep of its own; choose another directory")
    defaults = yaml.safe_load((composition.conf_dir() / "comparison" / "default.yaml").read_text())
    del defaults["_target_"]
    options = defaults | comparison.declared_options(runs) | (drawn or {})
    try:
        declaration = pydantic.TypeAdapter(Comparison).validate_python(options)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"comparison.{first['loc'][0]}: {first['msg']}") from error
    about = {k: v for k, v in _summary(target).items() if k not in _WRITTEN} if own else {}
    if not own:
        about = {"compared": [str(directory) for directory in directories]}
        target.mkdir(parents=True, exist_ok=True)
    return str(
        comparison.compare_runs(
            target, list(runs), comparison=declaration, failures=failures, overrides=overrides, about=about
        )
    )


def _drawn(given: argparse.Namespace) -> dict[str, Any]:
    chosen = {name: getattr(given, name) for name in ("curves", "overlay", "against", "probes")}
    return {name: value for name, value in chosen.items() if value is not None}


def _summary(directory: Path) -> dict[str, Any]:
    from dlhw.runs.record import read_summary

    return read_summary(directory)


def _overrides(row: Mapping[str, str]) -> list[str]:
    """What a row of ``sweep.csv`` says of the job's overrides, for when its directory does not."""
    columns = list(row)
    if "reason" not in columns or "seed" not in columns:
        return []
    keys = columns[columns.index("reason") + 1 : columns.index("seed") + 1]
    return [f"{key}={row[key]}" for key in keys if row[key]]


if __name__ == "__main__":
    main()
