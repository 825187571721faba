"""Running a sweep: its overrides are validated first, and later calls in its directory run only what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from dlhw.storage import identity
from dlhw.storage.record import Record
from dlhw.sweeps import expansion, jobs
from support.commands import SMALL, Ended, dlhw
from support.marks import slow
from support.run_directories import CONFIG
from support.sweeps import QUICK, Comparison, replace_comparison, started_jobs, summary_statuses, table_statuses


@pytest.fixture
def comparisons(monkeypatch: pytest.MonkeyPatch) -> list[Comparison]:
    """The calls of ``compare_runs``, which writes no files in this test."""
    return replace_comparison(monkeypatch)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["optimizer=sgd,adamm"],
            "optimizer=adamm: unknown optimizer (did you mean adam or adamw?); expected one of adagrad, adam, adamw, "
            "momentum, momentum_by_hand, nesterov, nesterov_by_hand, rmsprop, sgd, sgd_by_hand, torch",
        ),
        (["trainer.epoch=1,2"], "trainer.epoch: unknown key; did you mean trainer.epochs?"),
        slow((["b=0,0.1"], "b: unknown key; b belongs to experiment=flooding")),
        slow(
            (
                ["+bb=0,0.1"],
                "bb: unused key; no value in this config reads it; did you mean b (with experiment=flooding)?",
            )
        ),
        slow((["optimizer.lr=0.1,-1"], "optimizer.lr=-1: must be greater than or equal to 0")),
        (["optimizer.lr=-1,0.1", "seed=0,1"], "optimizer.lr=-1: must be greater than or equal to 0"),
        (
            ["seed=interval(0,1)"],
            "seed=interval(0,1): invalid in a grid; expected values such as seed=0.1,0.2 or seed=range(0,1,0.1)",
        ),
        slow((["hydra.sweeper.params={optimizer.lr:'0.1,abc'}"], "optimizer.lr=abc: must be a number")),
        (
            ["seed=0,1", "hydra/launcher=vectorized", "hydra.launcher.largest=0"],
            "hydra.launcher.largest=0: must be a whole number, 1 or greater, or null",
        ),
        (
            ["seed=0,1", "hydra/launcher=vectorized", "~hydra.launcher._target_"],
            "hydra/launcher=vectorized: cannot be used (Input config does not have a `_target_` field)",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_override_is_reported_before_any_file_is_written(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    assert dlhw("-m", *SMALL, *overrides, at=tmp_path) == Ended(1, "", f"{message}\n")
    assert list(tmp_path.iterdir()) == []


def test_later_calls_run_only_unfinished_jobs(tmp_path: Path, comparisons: list[Comparison]) -> None:
    first = dlhw("-m", *QUICK, "seed=0,1", at=tmp_path)
    assert (first.code, started_jobs(first), summary_statuses(tmp_path / "S")) == (
        0,
        ["seed=0", "seed=1"],
        {"seed=0": "finished", "seed=1": "finished"},
    )
    before = {path: path.read_bytes() for path in tmp_path.glob("S/*/*") if path.is_file()}
    second = dlhw("-m", *QUICK, "seed=0,1,2", at=tmp_path)
    assert (second.code, started_jobs(second)) == (0, ["seed=2"])
    assert second.lines[0] == "3 jobs, 2 of them already finished, in S"
    third = dlhw("resume=S", at=tmp_path)
    assert (third.code, started_jobs(third)) == (0, [])
    sweep = tmp_path / "S"
    assert third.lines == [f"3 jobs, 3 of them already finished, in {sweep}", "the table", f"next: dlhw show {sweep}"]
    assert {path: path.read_bytes() for path in before} == before
    assert [(jobs, failures) for _, jobs, failures in comparisons] == [
        (["seed=0", "seed=1"], {}),
        (["seed=0", "seed=1", "seed=2"], {}),
        (["seed=0", "seed=1", "seed=2"], {}),
    ]


def test_runs_of_another_config_are_not_overwritten(tmp_path: Path, comparisons: list[Comparison]) -> None:
    assert dlhw("-m", *QUICK, "seed=0,1", at=tmp_path).code == 0
    before = {path: path.read_bytes() for path in tmp_path.glob("S/*/*") if path.is_file()}
    assert dlhw("-m", *QUICK, "model.hidden=[4]", "seed=0,1", at=tmp_path).code == 0
    result = dlhw("-m", *QUICK, "model.hidden=[4]", "seed=0,1", "data_dir=elsewhere", at=tmp_path)
    assert {path: path.read_bytes() for path in before} == before
    assert comparisons[-1].jobs == ["seed=0-2", "seed=1-2"]
    assert (result.code, started_jobs(result)) == (0, [])


def test_sweep_locked_by_another_process_is_refused(tmp_path: Path, comparisons: list[Comparison]) -> None:
    assert dlhw("-m", *QUICK, "seed=0,1", at=tmp_path).code == 0
    before = (tmp_path / "S" / "multirun.yaml").read_bytes()
    with Record(tmp_path / "S").locked():
        result = dlhw("-m", *QUICK, "seed=0,1,2", at=tmp_path)
    assert result == Ended(1, "", "S: another process is running this sweep\n")
    assert (tmp_path / "S" / "multirun.yaml").read_bytes() == before


def test_directory_that_is_not_a_sweep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "S").mkdir()
    (tmp_path / "S" / "notes").write_text("mine")
    result = dlhw("-m", *QUICK, "seed=0,1", at=tmp_path)
    assert result.code == 1
    assert result.err == "S: is not empty, and runs are never written into other files; choose another directory\n"


def test_resuming_with_an_override_or_an_unreadable_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "S").mkdir()
    (tmp_path / "S" / "multirun.yaml").write_text("hydra: {overrides: {hydra: [], task: []}}\ndata_dir: data\n")
    result = dlhw("resume=S", "seed=3", at=tmp_path)
    assert result == Ended(
        1,
        "",
        "seed=3: invalid with resume, because a resumed sweep keeps its overrides; expected only data_dir or logger\n",
    )
    (tmp_path / "S" / "multirun.yaml").write_text("x: [")
    assert dlhw("-m", "resume=S", at=tmp_path).err.startswith(f"{tmp_path / 'S' / 'multirun.yaml'}: not valid YAML (")


def test_jobs_with_equal_configs_keep_their_directories(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"seed": 0, **CONFIG})
    plans = [expansion.Plan((), name) for name in "cba"]
    for name in "ac":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(identity.to_yaml(cfg))
    for order in (plans, plans[::-1]):
        paths = jobs.JobDirectories(tmp_path).of([jobs.PlannedJob(plan, cfg) for plan in order])
        assert [path.name for path in paths] == [plan.label for plan in order]
    (renamed,) = jobs.JobDirectories(tmp_path).of([jobs.PlannedJob(expansion.Plan((), "d"), cfg)])
    assert renamed.name == "a"


def test_new_directories_of_jobs_never_differ_only_in_case(tmp_path: Path) -> None:
    plans = [expansion.Plan((), name) for name in ("model=A", "model=a", "model=\u00df", "model=SS")]
    (tmp_path / "MODEL=a-2").mkdir()
    (tmp_path / "MODEL=a-2" / "config.yaml").write_text(identity.to_yaml(OmegaConf.create({"seed": 9, **CONFIG})))
    planned = [jobs.PlannedJob(plan, OmegaConf.create({"seed": seed, **CONFIG})) for seed, plan in enumerate(plans)]
    names = [path.name for path in jobs.JobDirectories(tmp_path).of(planned)]
    assert names == ["model=A", "model=a-3", "model=\u00df", "model=SS-2"]


def test_experiment_file_defines_its_sweep(tmp_path: Path, comparisons: list[Comparison]) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "search.yaml").write_text(
        "# @package _global_\n# Which?\nname: search\nsize: quick\n"
        "sizes: {quick: {epochs: 1, width: 3}, full: {epochs: 2, width: 4}}\n"
        "trainer: {epochs: '${sizes.${size}.epochs}'}\n"
        "model: {hidden: '${dlhw.repeat:${sizes.${size}.width},2}'}\n"
        "hydra: {mode: MULTIRUN, sweeper: {params: {optimizer.lr: '0.1,0.2', seed: range(2)}}}\n"
    )
    line = ("--config-dir", "conf", "experiment=search", "dataset=digits", "hydra.sweep.dir=S")
    assert dlhw(*line, "seed=1", at=tmp_path).code == 0
    assert comparisons[0].jobs == ["optimizer.lr=0.1,seed=1", "optimizer.lr=0.2,seed=1"]
    stored = yaml.safe_load((tmp_path / "S" / "optimizer.lr=0.1,seed=1" / "config.yaml").read_text())
    assert (stored["model"]["hidden"], stored["trainer"]["epochs"]) == ([3, 3], 1)
    for size in ("fulll", "quick,fulll"):
        assert dlhw(*line, f"size={size}", at=tmp_path).err == (
            "size=fulll: unknown size (did you mean full?); expected one of quick, full\n"
        )


def test_params_of_an_experiment_vary_only_in_jobs_that_read_them(tmp_path: Path) -> None:
    small = ("dataset=digits", "trainer.epochs=1", "model.hidden=[4]", "hydra.sweep.dir=S")
    result = dlhw("experiment=init_study", "init=he,orthogonal", *small, at=tmp_path)
    assert (result.code, result.lines[0]) == (0, "d varies only in jobs that read it")
    assert summary_statuses(tmp_path / "S") == {"init=he": "finished", "init=orthogonal": "finished"}
    assert "d" not in yaml.safe_load((tmp_path / "S" / "init=he" / "config.yaml").read_text())


def test_sweep_table_includes_unstarted_jobs_and_jobs_of_earlier_calls(tmp_path: Path) -> None:
    line = ("-m", *QUICK, "trainer.epochs=2")
    result = dlhw(*line, "optimizer.lr=0.1,1e35,0.2", "hydra.sweeper.fail_fast=true", at=tmp_path)
    assert result.code == 1
    names = ("optimizer.lr=0.1", "optimizer.lr=1e+35", "optimizer.lr=0.2")
    assert table_statuses(tmp_path / "S") == dict(zip(names, ("finished", "failed", "unfinished"), strict=True))
    for _ in range(2):
        narrower = dlhw(*line, "optimizer.lr=0.1", at=tmp_path)
        assert (narrower.code, started_jobs(narrower)) == (0, [])
    assert table_statuses(tmp_path / "S") == dict(zip(names[:2], ("finished", "failed"), strict=True))
    assert dlhw(*line, "optimizer.lr=0.1,0.2", at=tmp_path).code == 0
    once = (tmp_path / "S" / "sweep.csv").read_bytes()
    assert dlhw(*line, "optimizer.lr=0.1,0.2", at=tmp_path).code == 0
    assert (tmp_path / "S" / "sweep.csv").read_bytes() == once
    assert list(table_statuses(tmp_path / "S").values()) == ["finished", "finished", "failed"]
