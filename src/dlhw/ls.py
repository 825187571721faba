"""The command that lists runs and sweeps: ``dlhw ls [DIR]``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from dlhw.cli import failures
from dlhw.runtime.paths import printable, read_path
from dlhw.runtime.progress import clock_time
from dlhw.runtime.wording import metric_value, text_table
from dlhw.storage.listing import Entry, entries

HEADER = ("experiment", "started", "status", "validation", "test", "epochs", "time", "directory")
SHOWN = 30
"""Rows of the table, unless all are asked for."""


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="dlhw ls",
        description="List runs and sweeps, the newest first. 'validation' is the monitored metric at the best epoch, "
        "'test' the same metric on the test part; of a sweep, the means of its best setting.",
    )
    parser.add_argument("folder", nargs="?", default="outputs", metavar="DIR", help="(default: outputs)")
    parser.add_argument("--experiment", metavar="NAME", help="only runs of this experiment")
    parser.add_argument("--status", choices=("finished", "failed", "running", "unfinished"), help="only with this")
    parser.add_argument("--jobs", action="store_true", help="the runs of sweeps, too")
    parser.add_argument("--all", action="store_true", help=f"all rows, not only the newest {SHOWN}")
    parser.add_argument("--json", action="store_true", help="print JSON: a list with one entry per run")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of runs, the newest first. An error ends the program with one line and exit code 1."""
    options = argument_parser().parse_args(arguments)
    with failures.end_program(options.folder):
        found = [
            entry
            for entry in entries(read_path(options.folder, key="DIR"), jobs=options.jobs)
            if options.experiment in (None, entry.experiment) and options.status in (None, entry.status)
        ]
        if options.json:
            print(json.dumps([entry.content for entry in found], indent=2, ensure_ascii=False))
            return
        if not found:
            print(f"no runs in {printable(options.folder)}")
            return
        shown = found if options.all else found[:SHOWN]
        print(text_table(HEADER, [row(entry) for entry in shown], right=HEADER[3:7]))
        if len(shown) < len(found):
            print(f"{len(found) - len(shown)} older ones are not shown (--all)")


def row(entry: Entry) -> tuple[str, ...]:
    """Return the cells of a run or sweep in the table."""
    metric, seconds = entry.monitor or "", entry.summary.get("seconds")
    values = ["" if value is None else metric_value(metric, value) for value in (entry.metric, entry.test_metric)]
    jobs = entry.summary.get("jobs")
    epochs = f"{jobs} runs" if entry.kind == "sweep" and jobs else str(entry.epochs or "")
    started, time = f"{entry.started:%Y-%m-%d %H:%M}", "" if seconds is None else clock_time(seconds)
    return (entry.experiment, started, entry.status, *values, epochs, time, printable(entry.path))


if __name__ == "__main__":
    main()
