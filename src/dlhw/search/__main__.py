"""The command that searches for hyperparameters: ``dlhw search OVERRIDE...``."""

from __future__ import annotations

import sys

SWEEPER = "hydra/sweeper="


def main() -> None:
    """Run ``dlhw train -m hydra/sweeper=search`` with the arguments in ``sys.argv``."""
    from dlhw import train

    given = sys.argv[1:]
    sweep = [flag for flag in ("-m",) if not {"-m", "--multirun"} & set(given)]
    sweeper = [] if any(word.startswith(SWEEPER) for word in given) else [f"{SWEEPER}search"]
    is_help = any(word in ("-h", "--help", "--version", "-sc", "--shell-completion") for word in given)
    sys.argv[1:] = given if is_help else [*sweep, *given, *sweeper]
    train.main()


if __name__ == "__main__":
    main()
