"""A run that is interrupted anywhere and resumed has the files of an uninterrupted run, bit for bit."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dlhw.errors import UsageError
from dlhw.runtime.progress import Progress
from dlhw.storage import checkpoint
from dlhw.storage.record import Record
from dlhw.train import run
from dlhw.training import loop
from support.comparing import assert_same_run
from support.composing import compose
from support.marks import slow

RUN = ["trainer.epochs=6", "trainer.batch_size=256", "model.hidden=[12]", "model.dropout=0.2", "model.batch_norm=true",
       "optimizer=adam", "scheduler=cosine", "regularization=flooding", "trainer.device=cpu"]  # fmt: skip
STEPS = 5  # per epoch: 1132 samples in batches of 256


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the same run without an interruption."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    run(compose(*RUN), Record(directory))
    return directory


def start_or_resume(directory: Path, *extra: str) -> None:
    """Resume the run in ``directory``, or start it if it has no config."""
    resumed = (directory / "config.yaml").exists()
    lines = [f"resume={directory}"] if resumed else RUN
    run(compose(*lines, *extra), Record(directory))


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Make the next run raise KeyboardInterrupt in its ``steps``-th step, counted from where it starts."""
    count = 0

    def stop(self: Progress) -> None:
        nonlocal count
        count += 1
        if count == steps:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "step", stop)


@pytest.mark.parametrize("every_seconds", [0, slow(1000)])
@pytest.mark.parametrize("steps", [slow(1), STEPS - 1, STEPS, STEPS + 1, slow(3 * STEPS + 2), slow(6 * STEPS)])
def test_run_interrupted_at_any_step_resumes_exactly(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, steps: int, every_seconds: int
) -> None:
    """A checkpoint is written after every epoch, or never."""
    with monkeypatch.context() as patch:
        interrupt_after(patch, steps)
        with pytest.raises(KeyboardInterrupt):
            run(compose(*RUN, f"trainer.checkpoint_seconds={every_seconds}"), Record(tmp_path))
    rows = (tmp_path / "metrics.csv").read_bytes() if (tmp_path / "metrics.csv").exists() else b""
    assert rows.count(b"\n") == ((steps - 1) // STEPS + 1 if steps > STEPS else 0)
    with monkeypatch.context() as patch:  # a second, early interruption keeps the rows of finished epochs
        interrupt_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            start_or_resume(tmp_path)
    if rows:
        assert (tmp_path / "metrics.csv").read_bytes() == rows
    start_or_resume(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_run_interrupted_in_every_epoch_resumes_exactly(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        with monkeypatch.context() as patch:
            interrupt_after(patch, STEPS + 1)
            lines = RUN if not (tmp_path / "config.yaml").exists() else [f"resume={tmp_path}"]
            cfg = compose(*lines)
            cfg.trainer.checkpoint_seconds = 0
            with pytest.raises(KeyboardInterrupt):
                run(cfg, Record(tmp_path))
    start_or_resume(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_run_interrupted_between_row_and_checkpoint_resumes_exactly(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            checkpoint.CheckpointWriter,
            "epoch_finished",
            lambda *args, **options: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        with pytest.raises(KeyboardInterrupt):
            start_or_resume(tmp_path)
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 2
    start_or_resume(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_resume_after_the_last_epoch_writes_summary_and_figure(tmp_path: Path, uninterrupted: Path) -> None:
    """All epochs are trained, but the summary and the figure are missing. Resuming writes them without training."""
    shutil.copytree(uninterrupted, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "curves.png").unlink()
    start_or_resume(tmp_path / "run")
    assert_same_run(tmp_path / "run", uninterrupted)
    assert (tmp_path / "run" / "summary.json").exists()
    assert (tmp_path / "run" / "curves.png").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: (run / "metrics.csv").write_bytes((run / "metrics.csv").read_bytes()[:-7]),
        lambda run: (run / "metrics.csv").unlink(),
        lambda run: (run / "timing.csv").unlink(),
        lambda run: (run / "timing.csv").write_text("epoch,seconds\n1,0.5\nx,y\n2\n3,nan\n"),
        lambda run: (run / "timing.csv").write_bytes(b"\xff\0"),
        lambda run: (run / "last.pt").write_bytes((run / "last.pt").read_bytes()[:1000]),
        lambda run: (run / "last.pt").unlink(),
        lambda run: (run / ".last.pt.partial").write_bytes(b"truncated"),
    ],
    ids=[
        "truncated row",
        "no rows",
        "no times",
        "invalid times",
        "binary times",
        "truncated checkpoint",
        "between two renames",
        "partial file",
    ],
)
def test_run_with_damaged_files_resumes_exactly(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, damage: object
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4 * STEPS + 2)
        with pytest.raises(KeyboardInterrupt):
            run(compose(*RUN, "trainer.checkpoint_seconds=0"), Record(tmp_path))
    damage(tmp_path)  # type: ignore[operator]
    start_or_resume(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_resume_with_only_corrupt_checkpoints_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4 * STEPS + 2)
        with pytest.raises(KeyboardInterrupt):
            run(compose(*RUN, "trainer.checkpoint_seconds=0"), Record(tmp_path))
    rows = (tmp_path / "metrics.csv").read_bytes()
    for name in ("last.pt", "previous.pt"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
    with pytest.raises(UsageError, match=r"last\.pt.*previous\.pt"):
        start_or_resume(tmp_path)
    assert (tmp_path / "metrics.csv").read_bytes() == rows


def test_corrupt_checkpoint_does_not_replace_the_previous_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that resumes from previous.pt and is interrupted before its next checkpoint can resume from it again."""
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4 * STEPS + 2)
        with pytest.raises(KeyboardInterrupt):
            run(compose(*RUN, "trainer.checkpoint_seconds=0"), Record(tmp_path))
    (tmp_path / "last.pt").write_bytes(b"not a checkpoint")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "sync_directory", lambda directory: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(checkpoint, "write_atomically", lambda path, content: path.write_bytes(content))
        with pytest.raises(KeyboardInterrupt):
            start_or_resume(tmp_path)
    assert len(checkpoint.load(tmp_path / "previous.pt")["rows"]) == 3
    assert (tmp_path / "corrupt.pt").read_bytes() == b"not a checkpoint"


def test_second_process_cannot_lock_a_run(tmp_path: Path) -> None:
    with (
        Record(tmp_path).locked(),
        pytest.raises(UsageError, match="another process is training this run"),
        Record(tmp_path).locked(),
    ):
        raise AssertionError
    with Record(tmp_path).locked():
        pass
    assert list(tmp_path.iterdir()) == []


def test_resume_without_the_best_weights_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4 * STEPS + 2)
        with pytest.raises(KeyboardInterrupt):
            run(compose(*RUN, "trainer.checkpoint_seconds=0"), Record(tmp_path))
    (tmp_path / "best.pt").unlink()
    with pytest.raises(UsageError, match=r"best\.pt does not contain the weights of the best epoch,"):
        start_or_resume(tmp_path)


def test_resume_with_fewer_epochs_than_trained_is_an_error(tmp_path: Path, uninterrupted: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    cfg = compose(f"resume={tmp_path / 'run'}")
    cfg.trainer.epochs = 4
    with pytest.raises(UsageError, match="the checkpoint is of epoch 6"):
        run(cfg, Record(tmp_path / "run"))


def test_trained_run_without_times_is_finished_by_resuming(tmp_path: Path, uninterrupted: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "timing.csv").unlink()
    start_or_resume(tmp_path / "run")
    assert Record(tmp_path / "run").finished


def test_resume_with_more_epochs_equals_one_longer_run(tmp_path: Path) -> None:
    constant = [*RUN, "scheduler=none"]
    run(compose(*constant, "trainer.epochs=4"), Record(tmp_path))
    run(compose(f"resume={tmp_path}", "trainer.epochs=6"), Record(tmp_path))
    (tmp_path / "long").mkdir()
    run(compose(*constant), Record(tmp_path / "long"))
    assert_same_run(tmp_path, tmp_path / "long")


def test_diverged_run_keeps_its_best_weights(tmp_path: Path) -> None:
    """Between checkpoints the best weights are only in memory. They are written when training fails."""
    rate_explodes_after_epoch_3 = ["scheduler=step", "scheduler.every_epochs=3", "scheduler.factor=1e20"]
    with pytest.raises(loop.TrainingFailed, match=r"at step 29 \(epoch 4, step 2 of 9\)"):
        run(compose(*rate_explodes_after_epoch_3, "model.hidden=[12]", "trainer.device=cpu"), Record(tmp_path))
    rows = (tmp_path / "metrics.csv").read_text().splitlines()[1:]
    assert len(rows) == 3
    best = min(range(len(rows)), key=lambda row: float(rows[row].split(",")[9]))
    assert checkpoint.load(tmp_path / "best.pt")["epoch"] == best + 1


@pytest.mark.thorough
def test_run_killed_at_random_times_resumes_exactly(tmp_path: Path) -> None:
    """Separate processes are killed four times by SIGKILL, SIGTERM or SIGINT while they start, train or write.

    Then the run is resumed for ten more epochs and compared with an uninterrupted run of as many epochs.
    """
    lines = ["model.hidden=[64]", "model.dropout=0.2", "optimizer=momentum", "trainer.checkpoint_seconds=0.02",
             "trainer.device=cpu"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    draw = random.Random(2)
    directory = tmp_path / "killed"

    def command(*overrides: str) -> list[str]:
        return [sys.executable, "-m", "dlhw.train", *overrides]

    metrics, log, rows = directory / "metrics.csv", directory / "timing.csv", ""
    for _ in range(4):
        overrides = [f"resume={directory}"]
        if not (directory / "config.yaml").exists():
            shutil.rmtree(directory, ignore_errors=True)
            overrides = [*lines, "trainer.epochs=1000000", f"hydra.run.dir={directory}"]
        size = metrics.stat().st_size if metrics.exists() else 0
        process = subprocess.Popen(command(*overrides), env=environment, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + draw.choice([3, 60, 60, 60])  # 3 seconds: while it is still starting
        started = log.stat().st_size if log.exists() else 0
        while time.monotonic() < deadline and (log.stat().st_size if log.exists() else 0) <= started:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.2))
        assert process.poll() is None, process.communicate()
        process.send_signal(draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        process.communicate(timeout=60)
        after = metrics.read_text() if metrics.exists() else ""
        assert after.startswith(rows[: rows.rfind("\n") + 1]), "the row of a finished epoch was lost"
        assert len(after) >= size - 200
        rows = after
    epochs = f"trainer.epochs={rows.count(chr(10)) + 10}"
    for overrides in ([f"resume={directory}"], [*lines, f"hydra.run.dir={tmp_path / 'uninterrupted'}"]):
        subprocess.run(command(*overrides, epochs), env=environment, check=True, capture_output=True)
    assert_same_run(directory, tmp_path / "uninterrupted")
