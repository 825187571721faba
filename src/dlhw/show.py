"""The command that shows what a run or sweep did: ``dlhw show RUN``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dlhw.cli import failures
from dlhw.runtime.paths import read_path
from dlhw.storage.listing import entry_of, locate


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="dlhw show", description="Show what a run or sweep did: its config, data, results, files, next commands."
    )
    parser.add_argument(
        "runs", nargs="*", default=["last"], metavar="RUN", help="a run or sweep, a folder of runs, or 'last' (default)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the cards of some runs and sweeps. An error ends the program with one line and exit code 1."""
    options = argument_parser().parse_args(arguments)
    with failures.end_program(options.runs[0]):
        from dlhw.views.card import as_text, card

        for number, text in enumerate(options.runs):
            entry = entry_of(locate(read_path(text, key="RUN"), "run or sweep"))
            print("\n" * bool(number) + as_text(card(entry)))


if __name__ == "__main__":
    main()
