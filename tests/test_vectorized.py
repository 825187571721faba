"""The vectorized launcher: jobs that are trained at once have the files and metrics of jobs trained one at a time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dlhw.cli import ensembles, lifecycle
from dlhw.cli.assembly import Parts, assemble
from dlhw.storage.record import Record
from dlhw.sweeps import vectorized
from dlhw.training.run import TrainingRun
from dlhw.views import plots
from support.commands import dlhw, files, summary
from support.comparing import assert_equal
from support.composing import compose
from support.marks import slow

BASE = ("dataset=digits", "model.hidden=[8]", "trainer.device=cpu", "trainer.precision=fp64", "trainer.epochs=4")
AT_ONCE = ("-m", *BASE, "hydra/launcher=vectorized")


class Sweeps(NamedTuple):
    """The directories of two sweeps of the same jobs, and the log of the first."""

    at_once: Path
    single: Path
    log: list[str]


def metrics(path: Path) -> list[list[float]]:
    _, *lines = (path / "metrics.csv").read_text().splitlines()
    return [[float(value) for value in line.split(",")] for line in lines]


def assert_same_metrics(run: Path, expected: Path) -> None:
    """Compare two metrics.csv to nine of their ten digits."""
    ours, theirs = torch.tensor(metrics(run)), torch.tensor(metrics(expected))
    torch.testing.assert_close(ours, theirs, rtol=2e-9, atol=1e-9)


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Sweeps:
    """Six jobs trained at once, and the same jobs trained one at a time."""
    at = tmp_path_factory.mktemp("sweeps")
    grid = ("optimizer.lr=0.1,0.3,1e300", "seed=0,1", "model.dropout=0.2", "trainer.checkpoint_seconds=1000")
    at_once = dlhw(*AT_ONCE, *grid, "hydra.sweep.dir=at_once", at=at)
    single = dlhw("-m", *BASE, *grid, "hydra.sweep.dir=single", at=at)
    assert at_once.code == single.code == 1  # the rate 1e300 diverges
    return Sweeps(at / "at_once", at / "single", at_once.lines)


def test_jobs_have_the_files_of_single_runs(sweeps: Sweeps) -> None:
    at_once, single, _ = sweeps
    jobs = sorted(path.name for path in single.iterdir() if (path / "config.yaml").exists())
    assert len(jobs) == 6
    for job in jobs:
        assert files(at_once / job) == files(single / job), job
        assert (at_once / job / "config.yaml").read_text() == (single / job / "config.yaml").read_text()


def test_hydras_files_of_jobs_are_those_that_hydra_writes(sweeps: Sweeps) -> None:
    for job in ("optimizer.lr=0.1,seed=0", "optimizer.lr=0.3,seed=1"):
        for name in ("config.yaml", "overrides.yaml"):
            ours, expected = ((path / job / ".hydra" / name).read_text() for path in sweeps[:2])
            assert ours == expected
        contents = []
        for path in sweeps[:2]:
            text = (path / job / ".hydra" / "hydra.yaml").read_text()
            content = yaml.safe_load(text)
            assert OmegaConf.to_yaml(OmegaConf.create(content)) == text
            assert content["hydra"].pop("launcher")["_target_"]
            assert content["hydra"]["runtime"].pop("output_dir") == str(path / job)
            assert content["hydra"]["runtime"]["choices"].pop("hydra/launcher")
            assert f"hydra.sweep.dir='{path.name}'" in content["hydra"]["overrides"].pop("hydra")
            assert content["hydra"]["sweep"].pop("dir") == path.name
            contents.append(content)
        assert contents[0] == contents[1]
        assert list(contents[0]["hydra"]) == list(contents[1]["hydra"])


class Noting(Callback):
    """Notes what Hydra's callbacks get at the end of a job."""

    returned: ClassVar[list[JobReturn]] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **details: Any) -> None:
        self.returned.append(job_return)


def test_callbacks_get_the_same_as_from_hydra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Noting, "returned", [])
    callback = f"+hydra.callbacks.noting._target_={__name__}.Noting"
    for launcher in ("vectorized", "basic"):
        line = ["-m", *BASE, "seed=0,1", f"hydra/launcher={launcher}", callback, f"hydra.sweep.dir={launcher}"]
        assert dlhw(*line, at=tmp_path).code == 0
    ours, expected = Noting.returned[:2], Noting.returned[2:]
    assert [job.task_name for job in ours] == [job.task_name for job in expected]
    assert [job.cfg for job in ours] == [job.cfg for job in expected]
    assert [job.overrides for job in ours] == [job.overrides for job in expected]
    for job, other in zip(ours, expected, strict=True):
        assert job.hydra_cfg is not None
        assert other.hydra_cfg is not None
        assert list(job.hydra_cfg) == list(other.hydra_cfg) == ["hydra"]
        assert job.hydra_cfg.hydra.job == other.hydra_cfg.hydra.job


def test_a_directory_may_refer_to_the_number_of_the_job(tmp_path: Path) -> None:
    by_hydra = ("hydra/sweeper=basic", 'hydra.sweep.subdir="job ${hydra:job.num}"')
    result = dlhw(*AT_ONCE, *by_hydra, "seed=0,1", "hydra.sweep.dir=s", at=tmp_path)
    assert result.code == 0, result.err
    assert "training 2 jobs at once" in result.lines
    assert {path.parent.name for path in tmp_path.glob("s/*/summary.json")} == {"job 0", "job 1"}


@pytest.mark.parametrize(
    "grid", [["seed=range(4)", "hydra.launcher.largest=2"], ["trainer.batch_size=8,9,10,11"]], ids=["chunks", "single"]
)
def test_models_of_finished_jobs_are_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grid: list[str]) -> None:
    models: list[weakref.ref[nn.Module]] = []
    alive = []
    finish = lifecycle.finish

    def noting(cfg: DictConfig, parts: Parts, run: TrainingRun) -> Any:
        alive.append(sum(model() is not None for model in models))
        models.append(weakref.ref(parts.model))
        return finish(cfg, parts, run)

    monkeypatch.setattr(lifecycle, "finish", noting)
    assert dlhw(*AT_ONCE, *grid, "hydra.sweep.dir=s", at=tmp_path).code == 0
    assert len(alive) == 4
    assert max(alive) <= 1  # of the same chunk


@pytest.mark.parametrize("error", [ValueError("no picture"), OSError(28, "disk full")])
def test_failure_to_draw_is_recorded_in_its_job_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    finish = lifecycle.finish

    def failing(cfg: DictConfig, *arguments: Any) -> Any:
        if cfg.seed == 1:
            monkeypatch.setattr(plots, "curves_png", fail)
        try:
            return finish(cfg, *arguments)
        finally:
            monkeypatch.setattr(plots, "curves_png", curves_png)

    def fail(*arguments: Any, **options: Any) -> bytes:
        raise error

    curves_png = plots.curves_png
    monkeypatch.setattr(lifecycle, "finish", failing)
    assert dlhw(*AT_ONCE, "seed=range(3)", "hydra.sweep.dir=s", at=tmp_path).code == 1
    results = [summary(tmp_path / "s" / f"seed={seed}") for seed in range(3)]
    assert [result["status"] for result in results] == ["finished", "failed", "finished"]
    assert type(error).__name__ in results[1]["reason"]


def test_jobs_have_the_metrics_of_single_runs(sweeps: Sweeps) -> None:
    at_once, single, _ = sweeps
    for job in ("optimizer.lr=0.1,seed=0", "optimizer.lr=0.3,seed=1"):
        assert_same_metrics(at_once / job, single / job)
        ours, expected = summary(at_once / job), summary(single / job)
        assert ours.keys() == expected.keys()
        assert ours["best"] == pytest.approx(expected["best"], rel=1e-9, abs=1e-9)


def test_diverging_jobs_fail_as_single_runs_do(sweeps: Sweeps) -> None:
    at_once, single, _ = sweeps
    for seed in (0, 1):
        ours, expected = (summary(path / f"optimizer.lr=1e+300,seed={seed}") for path in (at_once, single))
        assert ours["status"] == expected["status"] == "failed"
        assert "training diverged" in ours["reason"]
        assert "step" in ours["reason"]


def test_number_of_jobs_trained_at_once_is_logged(sweeps: Sweeps) -> None:
    assert "training 6 jobs at once" in sweeps.log


def test_jobs_stop_early_at_the_epochs_of_single_runs(tmp_path: Path) -> None:
    grid = ("trainer.patience=2", "trainer.epochs=30", "optimizer.lr=0.01,1", "seed=0,1")
    assert dlhw(*AT_ONCE, *grid, "hydra.sweep.dir=at_once", at=tmp_path).code == 0
    assert dlhw("-m", *BASE, *grid, "hydra.sweep.dir=single", at=tmp_path).code == 0
    lengths = []
    for job in sorted(path for path in (tmp_path / "single").iterdir() if (path / "config.yaml").exists()):
        at_once = tmp_path / "at_once" / job.name
        assert_same_metrics(at_once, job)
        assert summary(at_once)["stopped"] == summary(job)["stopped"]
        for name in ("last.pt", "best.pt"):
            ours, expected = (torch.load(path / name, weights_only=True) for path in (at_once, job))
            assert_equal(ours, expected, name)
        lengths.append(len(metrics(job)))
    assert len(set(lengths)) > 1  # they do not all stop at the same epoch


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("study=cost", "seed=0,1"), "2 jobs are trained one at a time: a study does not train"),
        (
            ("optimizer=torch", "optimizer.name=Adafactor", "optimizer.lr=0.1,0.2"),
            "2 jobs are trained one at a time: optimizer Adafactor does not update each weight by itself",
        ),
    ],
)
def test_jobs_that_cannot_be_grouped_are_trained_one_at_a_time(
    tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    unread = [word for word in AT_ONCE if "study=cost" in overrides and word.startswith("trainer.")]
    base = [word for word in AT_ONCE if word not in unread]
    result = dlhw(*base, *overrides, "hydra.sweep.dir=s", at=tmp_path)
    assert result.code == 0, result.err
    assert message in result.lines
    assert len(list(tmp_path.glob("s/*/summary.json"))) == 2


def test_convolutions_are_trained_at_once_on_a_cpu_only_with_even_if_slower(tmp_path: Path) -> None:
    base = [word for word in AT_ONCE if not word.startswith("model")]
    grid = ("model=cnn", "model.channels=[2]", "model.kernel=3", "seed=0,1")
    result = dlhw(*base, *grid, "hydra.sweep.dir=single", at=tmp_path)
    assert result.code == 0, result.err
    assert (
        "2 jobs are trained one at a time: on a CPU, training convolutional networks at once is slower "
        "(hydra.launcher.even_if_slower)" in result.lines
    )
    result = dlhw(*base, *grid, "hydra.launcher.even_if_slower=true", "hydra.sweep.dir=at_once", at=tmp_path)
    assert "training 2 jobs at once" in result.lines
    for seed in range(2):
        assert_same_metrics(tmp_path / "at_once" / f"seed={seed}", tmp_path / "single" / f"seed={seed}")


def test_an_invalid_job_fails_and_the_others_are_trained_at_once(tmp_path: Path) -> None:
    grid = ("optimizer=nesterov", "optimizer.momentum=0,0.5,0.9")
    result = dlhw(*AT_ONCE, *grid, "hydra.sweep.dir=s", at=tmp_path)
    assert result.code == 1
    assert "training 2 jobs at once" in result.lines
    statuses = {
        momentum: summary(tmp_path / "s" / f"optimizer.momentum={momentum}")["status"] for momentum in (0, 0.5, 0.9)
    }
    assert statuses == {0: "failed", 0.5: "finished", 0.9: "finished"}


def test_jobs_with_different_models_form_different_groups(tmp_path: Path) -> None:
    result = dlhw(*AT_ONCE, "model.hidden=[4],[5]", "seed=range(3)", "hydra.sweep.dir=s", at=tmp_path)
    assert result.code == 0, result.err
    assert result.lines.count("training 3 jobs at once") == 2


def test_largest_limits_the_size_of_a_group(tmp_path: Path) -> None:
    result = dlhw(*AT_ONCE, "seed=range(5)", "hydra.launcher.largest=2", "hydra.sweep.dir=s", at=tmp_path)
    assert result.code == 0, result.err
    assert result.lines.count("training 2 jobs at once") == 2
    assert result.lines.count("training 1 job at once") == 1
    assert len(list(tmp_path.glob("s/*/summary.json"))) == 5


def test_a_group_that_runs_out_of_memory_is_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_at_once = vectorized.train_at_once

    def train_at_most_two(jobs: list[vectorized.GroupedJob]) -> None:
        if len(jobs) > 2:
            raise torch.OutOfMemoryError("no memory")
        train_at_once(jobs)

    monkeypatch.setattr(vectorized, "train_at_once", train_at_most_two)
    result = dlhw(*AT_ONCE, "seed=range(5)", "hydra.sweep.dir=s", at=tmp_path)
    assert result.code == 0, result.err
    assert "5 jobs at once do not fit into memory; continuing with 2" in result.lines
    assert len(list(tmp_path.glob("s/*/summary.json"))) == 5


def test_largest_group_is_proportional_to_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def largest(free: int, *overrides: str) -> int:
        monkeypatch.setattr("dlhw.runtime.devices.free_memory", lambda device: free)
        return ensembles.largest_that_fits([assemble(compose(*BASE, *overrides)) for _ in range(2)])

    assert largest(0) == 1
    smaller, larger = largest(10**8), largest(2 * 10**8)
    assert 2 * smaller - 1 <= larger <= 2 * smaller + 1
    # 64 x 800 weights in float64, five copies, and activations: at least 2 MB each, at most four times as much
    assert 6 <= largest(10**8, "model.hidden=[800]") <= 25


def append_and_interrupt(after: int) -> Callable[..., None]:
    """``Record.append`` that raises KeyboardInterrupt after this number of rows, counted over all runs."""
    append, count = Record.append, 0

    def append_or_interrupt(record: Record, row: dict[str, float], *, seconds: float) -> None:
        nonlocal count
        append(record, row, seconds=seconds)
        count += 1
        if count == after:
            raise KeyboardInterrupt

    return append_or_interrupt


@pytest.mark.parametrize("after", [slow(1), 5, 6, slow(7)])
def test_an_interrupted_sweep_resumes_to_the_same_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Three jobs of four epochs are interrupted between the rows of an epoch, or after the last row of one."""
    grid = ("seed=range(3)", "trainer.checkpoint_seconds=0", "model.dropout=0.3")
    with monkeypatch.context() as patch:
        patch.setattr("dlhw.storage.record.Record.append", append_and_interrupt(after))
        assert dlhw(*AT_ONCE, *grid, "hydra.sweep.dir=s", at=tmp_path).code == 130
    assert dlhw("resume=s", at=tmp_path).code == 0
    assert dlhw(*AT_ONCE, *grid, "hydra.sweep.dir=whole", at=tmp_path).code == 0
    for seed in range(3):
        assert_same_metrics(tmp_path / "s" / f"seed={seed}", tmp_path / "whole" / f"seed={seed}")
        assert summary(tmp_path / "s" / f"seed={seed}")["status"] == "finished"


def test_after_an_error_of_the_ensemble_the_jobs_are_trained_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_error(jobs: list[vectorized.GroupedJob]) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(vectorized, "train_at_once", raise_error)
    result = dlhw(*AT_ONCE, "seed=0,1", "hydra.sweep.dir=s", at=tmp_path)
    assert result.code == 0, result.err
    assert "training at once failed (RuntimeError: no such kernel); the jobs are trained one at a time" in result.lines
    assert {summary(tmp_path / "s" / f"seed={seed}")["status"] for seed in (0, 1)} == {"finished"}


def test_data_sets_of_the_playground_are_trained_at_once(tmp_path: Path) -> None:
    """Also with other noise; those for regression, which have other sizes, are a group of their own."""
    base = (
        *("-m", "experiment=playground", "report=none", "probe=none", "trainer.epochs=2", "trainer.precision=fp64"),
        *("model.hidden=[3]", "dataset.kind=circle,spiral,reg_plane", "dataset.noise=0,20"),
    )
    at_once = dlhw(*base, "hydra/launcher=vectorized", "hydra.sweep.dir=at_once", at=tmp_path)
    assert at_once.code == 0, at_once.err
    assert [line for line in at_once.lines if "at once" in line] == [
        "training 4 jobs at once",
        "training 2 jobs at once",
    ]
    assert dlhw(*base, "hydra.sweep.dir=single", at=tmp_path).code == 0
    names = sorted(path.name for path in (tmp_path / "single").glob("dataset*"))
    assert len(names) == 6
    for name in names:
        assert_same_metrics(tmp_path / "at_once" / name, tmp_path / "single" / name)
        pair = [summary(tmp_path / sweep / name)["data"] for sweep in ("at_once", "single")]
        assert pair[0] == pair[1]


def test_seeds_with_other_normalizations_are_trained_apart(tmp_path: Path) -> None:
    """Bytes in a file are standardized by the training part, which depends on the seed."""
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", x=generator.integers(0, 256, (60, 4, 4), np.uint8), y=np.arange(60) % 2)
    base = ("-m", "dataset=npz", "dataset.path=a.npz", *BASE[1:], "seed=0,1", "optimizer.lr=0.1,0.2")
    at_once = dlhw(*base, "hydra/launcher=vectorized", "hydra.sweep.dir=at_once", at=tmp_path)
    assert at_once.code == 0, at_once.err
    assert at_once.lines.count("training 2 jobs at once") == 2
    assert dlhw(*base, "hydra.sweep.dir=single", at=tmp_path).code == 0
    for path in (tmp_path / "single").glob("seed=*"):
        assert_same_metrics(tmp_path / "at_once" / path.name, path)
