"""``TrainingRun``: the best epoch, early stopping and the result follow from the rows of metrics.csv."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlhw.errors import TrainingFailed
from dlhw.storage.record import Record
from dlhw.training.objective import Regularization
from dlhw.training.run import TrainingRun
from dlhw.training.settings import Trainer


def make_run(directory: Path, *errors: float, trainer: Trainer) -> tuple[TrainingRun, list[bool]]:
    """Return a run with one epoch per validation error, and for each epoch whether it was the best so far."""
    run = TrainingRun(Record(directory), seed=0, regularization=Regularization(flood=0.0, l1=0.0, l2=0.0))
    rows = [{"epoch": epoch, "val_error_percent": error} for epoch, error in enumerate(errors, 1)]
    return run, [run.add(row, trainer, seconds=0.0) for row in rows]


def test_first_of_equally_good_epochs_is_the_best(tmp_path: Path) -> None:
    trainer = Trainer(epochs=4)
    run, improved = make_run(tmp_path, 3.0, 2.0, 2.0, 2.5, trainer=trainer)
    assert improved == [True, True, False, False]
    result = run.result(trainer)
    assert (result.best["epoch"], result.final["epoch"], result.stopped) == (2, 4, "epochs")


@pytest.mark.parametrize(("patience", "continues"), [(None, True), (1, False), (2, False), (3, True)])
def test_patience_counts_epochs_since_the_best(tmp_path: Path, patience: int | None, continues: bool) -> None:
    trainer = Trainer(epochs=9, patience=patience)
    run, _ = make_run(tmp_path, 3.0, 2.0, 2.5, 2.5, trainer=trainer)
    assert run.continues(trainer) is continues
    if not continues:
        assert run.result(trainer).stopped == "patience"


def test_run_without_epochs_continues(tmp_path: Path) -> None:
    trainer = Trainer(epochs=1, patience=1)
    run, _ = make_run(tmp_path, trainer=trainer)
    assert run.continues(trainer)


def test_failed_run_does_not_continue_and_raises_its_error(tmp_path: Path) -> None:
    trainer = Trainer(epochs=9)
    run, _ = make_run(tmp_path, 3.0, trainer=trainer)
    run.failure = TrainingFailed("training diverged")
    assert not run.continues(trainer)
    with pytest.raises(TrainingFailed, match="training diverged"):
        run.result(trainer)
