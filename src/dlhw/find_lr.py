"""The command that finds a learning rate: ``dlhw find-lr experiment=flooding``, short for ``study=find_lr``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from dlhw.errors import UsageError
from dlhw.runtime import signals

if TYPE_CHECKING:
    from omegaconf import DictConfig

HELP = """usage: dlhw find-lr [key=value ...]

Find a learning rate for a training: a short one, whose rate rises from step to step until the loss diverges. The
overrides are those of dlhw train, such as experiment=flooding model=cnn optimizer=adam, and these:

  study.lowest=1e-6   learning rate of the first step
  study.highest=10    learning rate of the last step
  study.steps=200     number of steps
  study.seeds=3       number of seeds

The last line of the output is the suggestion, to be added to the overrides of dlhw train. The directory of the run
has the losses in tables/learning_rates.csv and figures/learning_rates.png.
"""


def main() -> None:
    """Run the command line, which is in ``sys.argv``."""
    signals.install()  # before the imports, which take a second
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(HELP, end="")
        return
    from dlhw import train
    from dlhw.cli import program

    sys.argv.append("study=find_lr")
    program.command_line(program.Program(train.task, refuse_sweep))


def refuse_sweep(cfg: DictConfig, overrides: Sequence[str]) -> NoReturn:
    """Raise UsageError: a sweep checks its jobs before it starts."""
    raise UsageError(f"find-lr: needs a single setting, not the sweep of {cfg.name}; add hydra.mode=RUN and its values")


if __name__ == "__main__":
    main()
