"""The vectorized launcher: every job has the directory, files and numbers that it has alone, whatever others do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dlhw.sweeps import vectorized
from support.commands import dlhw, files, summary
from support.comparing import assert_equal
from support.marks import slow

BASE = ("dataset=digits", "model.hidden=[8]", "trainer.device=cpu", "trainer.precision=fp64", "trainer.epochs=4")
TOGETHER = ("-m", *BASE, "hydra/launcher=vectorized")


def metrics(path: Path) -> list[list[float]]:
    _, *lines = (path / "metrics.csv").read_text().splitlines()
    return [[float(value) for value in line.split(",")] for line in lines]


def assert_same_metrics(one: Path, two: Path) -> None:
    """To nine of the ten digits that are written."""
    torch.testing.assert_close(torch.tensor(metrics(one)), torch.tensor(metrics(two)), rtol=2e-9, atol=1e-9)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """A sweep of six jobs trained at once, and the same jobs one at a time; the log of the first."""
    at = tmp_path_factory.mktemp("both")
    grid = ("optimizer.lr=0.1,0.3,1e300", "seed=0,1", "model.dropout=0.2", "trainer.checkpoint_seconds=1000")
    result = dlhw(*TOGETHER, *grid, "hydra.sweep.dir=together", at=at)
    separate = dlhw("-m", *BASE, *grid, "hydra.sweep.dir=alone", at=at)
    assert result.code == separate.code == 1  # the rate 1e300 diverges
    return at / "together", at / "alone", result.lines


def test_each_job_has_the_files_that_it_has_alone(both: tuple[Path, Path, list[str]]) -> None:
    together, alone, _ = both
    jobs = sorted(path.name for path in alone.iterdir() if (path / "config.yaml").exists())
    assert len(jobs) == 6
    for job in jobs:
        assert files(together / job) == files(alone / job), job
        assert (together / job / "config.yaml").read_text() == (alone / job / "config.yaml").read_text()


def test_each_job_has_the_numbers_that_it_has_alone(both: tuple[Path, Path, list[str]]) -> None:
    together, alone, _ = both
    for job in ("optimizer.lr=0.1,seed=0", "optimizer.lr=0.3,seed=1"):
        assert_same_metrics(together / job, alone / job)
        ours, expected = summary(together / job), summary(alone / job)
        assert ours.keys() == expected.keys()
        assert ours["best"] == pytest.approx(expected["best"], rel=1e-9, abs=1e-9)


def test_a_job_that_diverges_fails_alone(both: tuple[Path, Path, list[str]]) -> None:
    together, alone, _ = both
    for seed in (0, 1):
        ours, expected = (summary(path / f"optimizer.lr=1e+300,seed={seed}") for path in (together, alone))
        assert ours["status"] == expected["status"] == "failed"
        assert "training diverged" in ours["reason"]
        assert "step" in ours["reason"]


def test_it_says_how_many_are_trained_at_once(both: tuple[Path, Path, list[str]]) -> None:
    assert "training 6 jobs at once" in both[2]


def test_every_run_stops_by_its_own_patience(tmp_path: Path) -> None:
    grid = ("trainer.patience=2", "trainer.epochs=30", "optimizer.lr=0.01,1", "seed=0,1")
    assert dlhw(*TOGETHER, *grid, "hydra.sweep.dir=together", at=tmp_path).code == 0
    assert dlhw("-m", *BASE, *grid, "hydra.sweep.dir=alone", at=tmp_path).code == 0
    lengths = []
    for job in sorted(path for path in (tmp_path / "alone").iterdir() if (path / "config.yaml").exists()):
        together = tmp_path / "together" / job.name
        assert_same_metrics(together, job)
        assert summary(together)["stopped"] == summary(job)["stopped"]
        for name in ("last.pt", "best.pt"):
            ours, expected = (torch.load(path / name, weights_only=True) for path in (together, job))
            assert_equal(ours, expected, name)
        lengths.append(len(metrics(job)))
    assert len(set(lengths)) > 1


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("study=cost", "seed=0,1"), "2 jobs are trained one at a time: a study does not train"),
        (
            ("optimizer=torch", "optimizer.name=Adafactor", "optimizer.lr=0.1,0.2"),
            "2 jobs are trained one at a time: optimizer Adafactor does not update each weight by itself",
        ),
    ],
)
def test_what_cannot_be_grouped_is_trained_separate(tmp_path: Path, overrides: tuple[str, ...], line: str) -> None:
    unread = [word for word in TOGETHER if "study=cost" in overrides and word.startswith("trainer.")]
    base = [word for word in TOGETHER if word not in unread]
    result = dlhw(*base, *overrides, "hydra.sweep.dir=s", at=tmp_path)
    assert result.code == 0, result.err
    assert line in result.lines
    assert len(list(tmp_path.glob("s/*/summary.json"))) == 2


def test_convolutions_on_a_cpu_are_trained_separate_unless_one_insists(tmp_path: Path) -> None:
    base = [word for word in TOGETHER if not word.startswith("model")]
    grid = ("model=cnn", "model.channels=[2]", "model.kernel=3", "seed=0,1")
    result = dlhw(*base, *grid, "hydra.sweep.dir=alone", at=tmp_path)
    assert result.code == 0, result.err
    assert (
        "2 jobs are trained one at a time: on a CPU, training convolutional networks at once is slower "
        "(hydra.launcher.even_if_slower)" in result.lines
    )
    result = dlhw(*base, *grid, "hydra.launcher.even_if_slower=true", "hydra.sweep.dir=together", at=tmp_path)
    assert "training 2 jobs at once" in result.lines
    for seed in range(2):
        assert_same_metrics(tmp_path / "together" / f"seed={seed}", tmp_path / "alone" / f"seed={seed}")


def test_a_job_that_cannot_be_built_does_not_keep_the_others_apart(tmp_path: Path) -> None:
    grid = ("optimizer=nesterov", "optimizer.momentum=0,0.5,0.9")
    result = dlhw(*TOGETHER, *grid, "hydra.sweep.dir=s", at=tmp_path)
    assert result.code == 1
    assert "training 2 jobs at once" in result.lines
    states = {
        momentum: summary(tmp_path / "s" / f"optimizer.momentum={momentum}")["status"] for momentum in (0, 0.5, 0.9)
    }
    assert states == {0: "failed", 0.5: "finished", 0.9: "finished"}


def test_jobs_of_different_structure_are_grouped_apart(tmp_path: Path) -> None:
    result = dlhw(*TOGETHER, "model.hidden=[4],[5]", "seed=range(3)", "hydra.sweep.dir=s", at=tmp_path)
    assert result.code == 0, result.err
    assert result.lines.count("training 3 jobs at once") == 2


def test_a_group_is_no_larger_than_asked_for(tmp_path: Path) -> None:
    result = dlhw(*TOGETHER, "seed=range(5)", "hydra.launcher.largest=2", "hydra.sweep.dir=s", at=tmp_path)
    assert result.code == 0, result.err
    assert result.lines.count("training 2 jobs at once") == 2
    assert len(list(tmp_path.glob("s/*/summary.json"))) == 5


def test_a_group_that_does_not_fit_into_memory_is_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = vectorized.train_at_once

    def short_of_memory(jobs: list[vectorized.GroupedJob]) -> None:
        if len(jobs) > 2:
            raise torch.OutOfMemoryError("no memory")
        train(jobs)

    monkeypatch.setattr(vectorized, "train_at_once", short_of_memory)
    result = dlhw(*TOGETHER, "seed=range(5)", "hydra.sweep.dir=s", at=tmp_path)
    assert result.code == 0, result.err
    assert "5 jobs at once do not fit into memory; continuing with 2" in result.lines
    assert len(list(tmp_path.glob("s/*/summary.json"))) == 5


def test_memory_decides_how_many_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    from dlhw.cli.assembly import assemble
    from support.composing import compose

    def fits(free: int, *overrides: str) -> int:
        monkeypatch.setattr("dlhw.runtime.devices.free_memory", lambda device: free)
        return vectorized.largest_that_fits([assemble(compose(*BASE, *overrides)) for _ in range(2)])

    assert fits(0) == 1
    few, many = fits(10**8), fits(2 * 10**8)
    assert 2 * few - 1 <= many <= 2 * few + 1
    # 64 x 800 weights in float64, five copies, and activations: at least 2 MB each, at most four times as much
    assert 6 <= fits(10**8, "model.hidden=[800]") <= 25


def interrupted(after: int) -> Callable[..., None]:
    """``Record.append`` that is interrupted when some epochs of all runs have been recorded."""
    from dlhw.runs.record import Record

    append, count = Record.append, 0

    def counted(record: Record, row: dict[str, float], *, seconds: float) -> None:
        nonlocal count
        append(record, row, seconds=seconds)
        count += 1
        if count == after:
            raise KeyboardInterrupt

    return counted


@pytest.mark.parametrize("after", [slow(1), 5, 6, slow(7)])
def test_a_stopped_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Three jobs of four epochs, stopped in the middle of an epoch's rows, after it, and in the first one."""
    grid = ("seed=range(3)", "trainer.checkpoint_seconds=0", "model.dropout=0.3")
    with monkeypatch.context() as patch:
        patch.setattr("dlhw.runs.record.Record.append", interrupted(after))
        assert dlhw(*TOGETHER, *grid, "hydra.sweep.dir=s", at=tmp_path).code == 130
    assert dlhw("resume=s", at=tmp_path).code == 0
    assert dlhw(*TOGETHER, *grid, "hydra.sweep.dir=whole", at=tmp_path).code == 0
    for seed in range(3):
        assert_same_metrics(tmp_path / "s" / f"seed={seed}", tmp_path / "whole" / f"seed={seed}")
        assert json.loads((tmp_path / "s" / f"seed={seed}" / "summary.json").read_text())["status"] == "finished"


def test_an_error_in_the_ensemble_leaves_the_jobs_to_be_trained_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(jobs: list[vectorized.GroupedJob]) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(vectorized, "train_at_once", broken)
    result = dlhw(*TOGETHER, "seed=0,1", "hydra.sweep.dir=s", at=tmp_path)
    assert result.code == 0, result.err
    assert "training at once failed (RuntimeError: no such kernel); the jobs are trained one at a time" in result.lines
    shutil.rmtree(tmp_path / "s")
