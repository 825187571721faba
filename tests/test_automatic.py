"""The automatic launcher: its choice by size, length and cores; the results are those of the launcher it chooses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dlhw.runtime.threads import usable_cores
from dlhw.sweeps import automatic
from dlhw.sweeps.automatic import LONG, SMALL, TINY, Load, choose, load_of
from support.commands import SMALL as SMALL_NETWORK
from support.commands import dlhw, files, start, summary
from support.composing import compose
from support.processes import Process, environment
from support.sweeps import summary_statuses

SHORT = Load(jobs=8, multiply_adds=TINY, total=LONG - 1, on_cpu=True, convolves=False)
C53 = Load(jobs=21, multiply_adds=128 * 397_000, total=21 * 500 * 375 * 128 * 397_000, on_cpu=True, convolves=False)


@pytest.mark.parametrize(
    ("load", "cores", "expected"),
    [
        pytest.param(SHORT, 2, "vectorized", id="tiny networks"),
        pytest.param(replace(SHORT, total=LONG), 2, "vectorized", id="tiny networks, long"),
        pytest.param(replace(SHORT, multiply_adds=SMALL), 2, "vectorized", id="small networks"),
        pytest.param(replace(SHORT, multiply_adds=SMALL, total=LONG), 2, "joblib", id="small networks, long"),
        pytest.param(replace(SHORT, multiply_adds=SMALL + 1), 2, "basic", id="large networks, short"),
        pytest.param(replace(SHORT, convolves=True), 2, "basic", id="convolutions, short"),
        pytest.param(replace(SHORT, convolves=True, total=LONG), 2, "joblib", id="convolutions, long"),
        pytest.param(C53, 2, "joblib", id="C5.3"),
        pytest.param(C53, 1, "basic", id="C5.3 on one core"),
        pytest.param(replace(C53, total=C53.total // 250), 2, "basic", id="C5.3 with 2 epochs"),
        pytest.param(replace(C53, on_cpu=False), 16, "vectorized", id="C5.3 on a GPU"),
    ],
)
def test_choice_depends_on_size_length_and_cores(load: Load, cores: int, expected: str) -> None:
    assert choose(load, cores=cores).launcher == expected


@pytest.mark.parametrize(("cores", "jobs", "processes"), [(2, 21, 2), (8, 21, 8), (8, 3, 3)])
def test_there_are_as_many_processes_as_cores_but_no_more_than_jobs(cores: int, jobs: int, processes: int) -> None:
    assert choose(replace(C53, jobs=jobs), cores=cores).processes == processes


LARGE = "large networks, short jobs"


@pytest.mark.parametrize(
    ("options", "chosen", "reason"),
    [
        pytest.param(["seed=0,1"], "vectorized", "tiny networks", id="tiny networks"),
        pytest.param(["seed=0,1", "model.hidden=[900,900]", "trainer.epochs=1"], "basic", LARGE, id="large networks"),
        pytest.param(["model.hidden=[8],[900,900]", "trainer.epochs=1"], "basic", LARGE, id="one large network"),
        pytest.param(["study=cost", "model.hidden=[3],[4]"], "basic", "studies", id="studies"),
    ],
)
def test_the_choice_is_logged_and_the_files_are_those_of_the_chosen_launcher(
    tmp_path: Path, options: list[str], chosen: str, reason: str
) -> None:
    line = ["-m", *SMALL_NETWORK, *options]
    with_choice = dlhw(*line, "hydra/launcher=automatic", "hydra.sweep.dir=A", at=tmp_path)
    assert with_choice.code == 0, with_choice.err
    assert f"hydra/launcher={chosen} is chosen: {reason}" in with_choice.err
    assert dlhw(*line, f"hydra/launcher={chosen}", "hydra.sweep.dir=B", at=tmp_path).code == 0
    assert files(tmp_path / "A") == files(tmp_path / "B")
    for path in (tmp_path / "A").glob("*/metrics.csv"):
        assert path.read_text() == (tmp_path / "B" / path.relative_to(tmp_path / "A")).read_text()


def test_load_counts_the_steps_of_the_first_and_the_last_job() -> None:
    fixed = ("dataset=digits", "model.hidden=[8]", "trainer.device=cpu", "trainer.batch_size=100")
    step = 100 * (64 * 8 + 8 * 10)
    cfgs = [compose(*fixed, "trainer.steps_per_epoch=1", f"trainer.epochs={epochs}") for epochs in (5, 15)]
    assert load_of(cfgs, jobs=4) == Load(4, step, total=4 * 10 * step, on_cpu=True, convolves=False)


def test_processes_that_do_not_fit_into_memory_are_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic, "LONG", 0)
    monkeypatch.setattr(automatic, "usable_cores", lambda: 2)
    monkeypatch.setattr(automatic, "free_memory", lambda device: 10**6)
    line = ["-m", *SMALL_NETWORK, "trainer.epochs=1", "hydra/launcher=automatic"]
    result = dlhw(*line, "seed=0,1", "hydra.sweep.dir=A", at=tmp_path)
    assert "hydra/launcher=vectorized is chosen: tiny networks\n" in result.err
    monkeypatch.setattr(automatic, "TINY", 0)
    result = dlhw(*line, "seed=0,1", "hydra.sweep.dir=B", at=tmp_path)
    reason = "small networks, and too little free memory for several processes"
    assert f"hydra/launcher=vectorized is chosen: {reason}\n" in result.err


def test_a_model_that_cannot_compute_a_single_sample_is_trained(tmp_path: Path) -> None:
    code = """
from torch import nn
class Squeezing(nn.Sequential):
    def __init__(self, shape, outputs):
        super().__init__(nn.Linear(64, outputs))
    def forward(self, x):
        return super().forward(x.squeeze().flatten(1))
"""
    (tmp_path / "squeezing.py").write_text(code)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "squeezing.yaml").write_text("_target_: squeezing.Squeezing\n")
    line = ["-m", "--config-dir", "conf", "dataset=digits", "model=squeezing", "trainer.device=cpu", "trainer.epochs=1"]
    ended = start(*line, "seed=0,1", "hydra/launcher=automatic", "hydra.sweep.dir=S", at=tmp_path).end()
    assert ended.code == 0, ended.err
    assert "hydra/launcher=basic is chosen: the size of the networks is unknown" in ended.err


def test_a_job_that_cannot_be_trained_fails_alone(tmp_path: Path) -> None:
    line = ["-m", *SMALL_NETWORK, "trainer.epochs=1", "optimizer.lr=1e35,0.1"]
    result = dlhw(*line, "hydra/launcher=automatic", "hydra.sweep.dir=S", at=tmp_path)
    assert result.code == 1
    assert summary_statuses(tmp_path / "S") == {"optimizer.lr=0.1": "finished", "optimizer.lr=1e+35": "failed"}


def test_flooding_search_chooses_and_the_command_line_overrides(tmp_path: Path) -> None:
    line = ["experiment=flooding_search", "dataset=digits", "trainer.epochs=1", "b=0,0.1", "model.hidden=[8]"]
    chosen = dlhw(*line, "hydra.sweep.dir=A", at=tmp_path)
    assert "hydra/launcher=vectorized is chosen: tiny networks" in chosen.err
    assert "is chosen" not in dlhw(*line, "hydra/launcher=basic", "hydra.sweep.dir=B", at=tmp_path).err


@pytest.mark.slow
def test_processes_share_the_cores(tmp_path: Path) -> None:
    program = (
        f"import {automatic.__name__} as module; module.TINY = module.LONG = 0; from dlhw.train import main; main()"
    )
    line = ["-m", *SMALL_NETWORK, "trainer.epochs=1", "seed=0,1", "hydra/launcher=automatic", "hydra.sweep.dir=S"]
    env = {name: value for name, value in environment().items() if name != "OMP_NUM_THREADS"}
    ended = Process("-c", program, *line, at=tmp_path, env=env, cold=True).end()
    assert ended.code == 0, ended.err
    if usable_cores() == 1:
        assert "is chosen: large networks, one core" in ended.err
        return
    assert "hydra/launcher=joblib is chosen: 2 processes, for long jobs" in ended.err
    threads = max(1, usable_cores() // 2)
    assert [summary(tmp_path / "S" / f"seed={seed}")["threads"] for seed in (0, 1)] == [threads, threads]
