"""The command that searches for hyperparameters: ``dlhw search OVERRIDE...``."""

from __future__ import annotations

import sys

SWEEPER = "hydra/sweeper="
HELP = """\
usage: dlhw search OVERRIDE...

Search for the hyperparameters with the lowest validation metric: dlhw train -m with hydra/sweeper=search. The values
of a key are a list (16,32,64), a range (interval(0, 0.1)) or a logarithmic range (tag(log, interval(1e-4, 1))):

  dlhw search experiment=flooding dataset=digits trainer.epochs=9 'b=interval(0, 0.1)'
  dlhw search experiment=cnn_l2_search hydra.sweeper.method=tpe hydra.sweeper.trials=20

dlhw train --help lists experiments and options. Options of the search, hydra.sweeper.KEY=VALUE, with their defaults:

"""


def main() -> None:
    """Run ``dlhw train -m hydra/sweeper=search`` with the arguments in ``sys.argv``."""
    given = sys.argv[1:]
    if {"-h", "--help"} & set(given):
        print(HELP + _options(), end="")
        return
    from dlhw import train

    if not {"--version", "-sc", "--shell-completion"} & set(given):
        sweep = [flag for flag in ("-m",) if not {"-m", "--multirun"} & set(given)]
        sweeper = [] if any(word.startswith(SWEEPER) for word in given) else [f"{SWEEPER}search"]
        sys.argv[1:] = [*sweep, *given, *sweeper]
    train.main()


def _options() -> str:
    """Return the lines of the sweeper's config file, without its target."""
    from dlhw.cli.composition import conf_dir

    lines = (conf_dir() / "hydra" / "sweeper" / "search.yaml").read_text(encoding="utf-8").splitlines()
    return "".join(f"  {line}\n" for line in lines if not line.startswith(("#", "_target_")))


if __name__ == "__main__":
    main()
