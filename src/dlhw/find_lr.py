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

The line that begins with "suggested:" has the learning rate, to be added to the overrides of dlhw train. The losses
are in outputs/find_lr/, in tables/learning_rates.csv and figures/learning_rates.png of the run.
"""


def main() -> None:
    """Run the command line, which is in ``sys.argv``."""
    signals.install()  # before the imports, which take a second
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(HELP, end="")
        return
    from dlhw import train
    from dlhw.cli import failures, program

    keys = {word.partition("=")[0] for word in sys.argv[1:]}
    with failures.end_program():
        if "resume" in keys:
            raise UsageError("resume: invalid for find-lr; dlhw resume=DIR continues its runs as all others")
    sys.argv += ["study=find_lr", *([] if "name" in keys else ["name=find_lr"])]
    program.command_line(program.Program(train.task, refuse_sweep))


def refuse_sweep(cfg: DictConfig, overrides: Sequence[str]) -> NoReturn:
    """Raise UsageError: a sweep checks its jobs before it starts."""
    raise UsageError(
        "find-lr: needs one setting, not a sweep; remove -m, or add hydra.mode=RUN and a value of each key"
    )


if __name__ == "__main__":
    main()
