"""The command that trains: ``python -m dlhw.train experiment=flooding b=0.05``.

``main`` starts Hydra, which composes a config and calls ``task`` for it; ``run`` trains what the config describes, or
runs its study.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dlhw.errors import UsageError
from dlhw.runtime import processes, signals
from dlhw.runtime.paths import shell_line

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from dlhw.cli.build import Components
    from dlhw.storage.record import Record
    from dlhw.training.loop import AfterEpoch

log = logging.getLogger("dlhw")


def main() -> None:
    """Run the command line, which is in ``sys.argv``."""
    signals.install()  # before the imports, which take a second
    from dlhw.cli import program

    program.command_line(program.Program(task, check))


def task(
    cfg: DictConfig,
    directory: Path,
    overrides: Sequence[str],
    in_sweep: bool,
    after_epoch: AfterEpoch | None = None,
) -> None:
    """Execute one run in ``directory``, by itself or as a job of a sweep."""
    from dlhw.cli import build, failures
    from dlhw.storage.record import Record

    record = Record(directory)
    with record.locked(), failures.recorded(cfg, record, in_sweep=in_sweep):
        build.check_settings(cfg)
        from dlhw.cli import lifecycle  # imports torch, which takes seconds

        if in_sweep:
            lifecycle.resume_same_run(cfg, record)
        run(cfg, record, overrides, after_epoch)
        if not in_sweep and not processes.rank():
            log.info("next: dlhw show %s", shell_line([str(record.path)]))


def train_trial(cfg: DictConfig, directory: Path, after_epoch: AfterEpoch) -> None:
    """Execute one run that a study searches with, in any process."""
    from dlhw.cli import composition

    composition.prepare()
    task(cfg, directory, (), True, after_epoch)


def check_trial(cfg: DictConfig, build_parts: bool) -> None:
    """Validate the config of a trial. Raise UsageError, with ``build_parts`` also if its parts do not fit together."""
    from dlhw.cli import assembly, build

    if build_parts:
        assembly.assemble(cfg)
    else:
        build.validate(cfg)


def check(cfg: DictConfig, overrides: Sequence[str]) -> Components:
    """Validate a config and the overrides that it was composed with. Raise UsageError with one line per mistake."""
    from dlhw.cli import build

    build.check_settings(cfg)
    return _validated(cfg, overrides)


def _validated(cfg: DictConfig, overrides: Sequence[str]) -> Components:
    """Validate all groups, which imports torch. Raise UsageError with one line per mistake."""
    from dlhw.cli import assembly, build

    components = build.validate(cfg)
    assembly.require_read(components, overrides)
    return components


def run(cfg: DictConfig, record: Record, overrides: Sequence[str] = (), after_epoch: AfterEpoch | None = None) -> None:
    """Train what the config describes, or run its study, and write the files of the run.

    ``after_epoch`` is called with the row of each epoch.
    """
    from dlhw.cli import assembly, ensembles, lifecycle  # torch is imported here: help and completion do not need it
    from dlhw.runtime import devices
    from dlhw.training import debugging
    from dlhw.training.loop import Training
    from dlhw.training.trainable import Trainable
    from dlhw.training.variants import Single

    components = _validated(cfg, overrides)
    arguments = assembly.study_arguments(components)
    if arguments is not None:
        if processes.world_size() > 1:
            raise UsageError("torchrun: invalid for a study, which runs in a single process; start it without torchrun")
        trainable = Trainable(cfg, train_trial, check_trial)
        trainings = functools.partial(ensembles.trainings, cfg)
        question = assembly.assemble_question(
            components, arguments, record=record, trainable=trainable, trainings=trainings
        )
        lifecycle.answer(cfg, record, question)
        return
    with processes.process_group(devices.pick_device(cfg.trainer.device)):
        parts = assembly.assemble_parts(components)
        training_run = lifecycle.begin(cfg, record, parts)
        for line in lifecycle.header(cfg, parts, record):
            log.info("%s", line)
        training = Training(
            Single(parts.trained, parts.optimizer, parts.schedule),
            [training_run],
            parts.trained_on,
            parts.data_loss,
            trainer=parts.trainer,
            precision=parts.precision,
            probe=parts.probe,
            after_epoch=after_epoch,
        )
        with lifecycle.drawn_if_interrupted(cfg, parts, training_run):
            training.fit()
        if cfg.get("debug"):
            debugging.check_gradients(parts.trained)
    if processes.rank() == 0:
        log.info("%s", lifecycle.finish(cfg, parts, training_run))


if __name__ == "__main__":
    main()
