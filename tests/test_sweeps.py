"""Sweeps: which jobs there are, what each costs and equals, what a second call does, what failures leave."""

from __future__ import annotations

import csv
import errno
import functools
import logging
import os
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from dlhw import train
from dlhw.cli import composition, program
from dlhw.errors import UsageError
from dlhw.runs import identity
from dlhw.runs.record import directory_name
from dlhw.sweeps import grid
from dlhw.sweeps.grid import expand
from support.commands import SMALL, Ended, dlhw, start, summary
from support.marks import slow
from support.processes import wait_for

QUICK = (*SMALL, "trainer.epochs=1", "trainer.batch_size=500", "hydra.sweep.dir=S")


def jobs(*lines: str, params: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    return [plan.overrides for plan in expand(params, lines)]


def labels(*lines: str, params: tuple[str, ...] = ()) -> list[str]:
    return [plan.label for plan in expand(params, lines)]


# --- which jobs there are ---------------------------------------------------------------------------------


def test_all_combinations_the_last_varying_fastest() -> None:
    assert jobs("dataset=digits", "b=0.1,0.2", "seed=range(2)") == [
        ("dataset=digits", "b=0.1", "seed=0"),
        ("dataset=digits", "b=0.1", "seed=1"),
        ("dataset=digits", "b=0.2", "seed=0"),
        ("dataset=digits", "b=0.2", "seed=1"),
    ]
    assert labels("dataset=digits", "b=0.1,0.2", "seed=range(2)")[1] == "b=0.1,seed=1"


@pytest.mark.parametrize(
    ("text", "count", "some"),
    [
        ("range(0,0.21,0.01)", 21, {3: "0.03", 7: "0.07", 20: "0.2"}),
        ("range(0,0.2,0.01)", 20, {3: "0.03", 19: "0.19"}),
        ("range(0.3,0,-0.1)", 3, {0: "0.3", 2: "0.1"}),
        ("range(1e-6,4e-6,1e-6)", 3, {1: "2e-06"}),
        ("range(1,10,3)", 3, {2: "7"}),
        ("range(0,1,0.3)", 4, {3: "0.9"}),
    ],
)
def test_range_has_clean_values_without_its_stop(text: str, count: int, some: dict[int, str]) -> None:
    values = [line.removeprefix("b=") for (line,) in jobs(f"b={text}")]
    assert len(values) == count
    assert {index: values[index] for index in some} == some


@settings(max_examples=200, deadline=None)
@given(start=st.integers(-50, 50), count=st.integers(1, 60), step=st.integers(1, 99), digits=st.integers(1, 6))
def test_range_of_fractions_is_that_of_whole_numbers_scaled(start: int, count: int, step: int, digits: int) -> None:
    scale = 10**digits
    first, last, width = (f"{number / scale:.{digits}f}" for number in (start, start + count * step, step))
    values = [float(line.removeprefix("b=")) for (line,) in jobs(f"b=range({first},{last},{width})")]
    assert values == [(start + index * step) / scale for index in range(count)]


def test_equal_values_are_one_job() -> None:
    assert jobs("b=0.1,0.10,1e-1") == [("b=0.1",)]
    assert jobs("b=1,1.0") == [("b=1",)]
    assert jobs("b=0.0,-0.0,0") == [("b=0.0",)]
    assert jobs("b=[1,x],[1.0,'x']") == [("b=[1,x]",)]
    assert jobs("b=1,true,'1',[1]") == [("b=1",), ("b=true",), ("b='1'",), ("b=[1]",)]


def test_command_line_replaces_the_values_of_params() -> None:
    params = ("b=0,0.05", "seed=range(3)")
    assert len(jobs(params=params)) == 6
    assert jobs("seed=7", params=params) == [("b=0", "seed=7"), ("b=0.05", "seed=7")]
    assert labels("b=0.5", "seed=7", params=params) == ["b=0.5,seed=7"]
    assert jobs("b=1,2,3,4", "seed=0", "name=x", params=params)[3] == ("b=4", "seed=0", "name=x")
    assert labels("b=1,2", "seed=0", "name=x", params=("b=0,0.05", "seed=0")) == ["b=1", "b=2"]


def test_job_is_without_params_that_nothing_reads_in_it() -> None:
    def unread_params(given: Sequence[str]) -> frozenset[str]:
        return frozenset({"d", "seed"} if "init=he" in given else ())

    plans = expand(["d=1,2", "seed=0"], ["init=he,uniform", "seed=7"], unread_params=unread_params)
    assert [plan.overrides for plan in plans] == [
        ("seed=7", "init=he"),  # what the command line gives stays
        ("d=1", "seed=7", "init=uniform"),
        ("d=2", "seed=7", "init=uniform"),
    ]
    assert [plan.label for plan in plans] == ["init=he", "d=1,init=uniform", "d=2,init=uniform"]


def test_paths_need_no_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "S" / "b=0,seed=1").mkdir(parents=True)
    (tmp_path / "S" / "b=0,seed=2").mkdir()
    assert composition.quoted("start=S/b=0,seed=1") == "start='S/b=0,seed=1'"
    several = composition.quoted("init.run=null,S/b=0,seed=1,S/b=0,seed=2")
    assert several == "init.run=null,'S/b=0,seed=1','S/b=0,seed=2'"
    assert composition.quoted("start=gone/a=b,gone/c") == "start='gone/a=b','gone/c'"
    assert composition.quoted("data_dir=a=b,c") == "data_dir='a=b,c'"
    for line in ("start=null", "start='a,b'", "start=${output_dir}/x", "start=glob(*)", "seed=a=b"):
        assert composition.quoted(line) == line
    assert jobs(composition.quoted("start=null,S/b=0,seed=1")) == [("start=null",), ("start='S/b=0,seed=1'",)]


def test_job_is_named_by_everything_where_nothing_varies() -> None:
    assert labels("seed=3", "data_dir=x", "b=1") == ["seed=3,b=1"]
    assert labels() == ["defaults"]


def test_name_of_a_job_is_limited_in_bytes() -> None:
    assert directory_name(["name=" + "é" * 50]) == "name=" + "é" * 50
    assert re.fullmatch("seed=1-[0-9a-f]{8}", directory_name(["seed=1", "name=" + "é" * 60]))
    assert max(len(directory_name(["seed=1", "name=" + "é" * count]).encode()) for count in range(40, 70)) <= 120


def test_values_keep_what_the_grammar_needs() -> None:
    (first,), (second,) = jobs(r"name='a,b','it\'s'")
    assert first == "name='a,b'"
    assert composition.parsed(second).value() == "it's"
    assert jobs("model.hidden=[5,4],[]") == [("model.hidden=[5,4]",), ("model.hidden=[]",)]
    assert jobs("optimizer=choice(sgd,adam)", "seed=1") == [("optimizer=sgd", "seed=1"), ("optimizer=adam", "seed=1")]


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (
            "b=interval(0,1)",
            "b=interval(0,1): invalid in a grid; expected values such as b=0.1,0.2 or b=range(0,1,0.1)",
        ),
        ("b=range(3,1)", "b=range(3,1): must have at least one value"),
        ("b=range(0,1,0)", "b=range(0,1,0): must have finite limits and a step other than 0"),
        ("b=[", "b=[: invalid values of a sweep; expected a list such as 1,2,3 or range(3)"),
    ],
)
def test_what_is_no_grid_is_refused(line: str, answer: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(answer)}$"):
        expand([], [line])
    with pytest.raises(UsageError, match=f"^{re.escape(answer)}$"):
        expand([line], [])


def test_params_do_not_set_hydras_own_settings() -> None:
    with pytest.raises(UsageError, match=r"^hydra\.job\.num=1,2: a setting of Hydra cannot vary in a sweep; expected"):
        expand(["hydra.job.num=1,2"], [])


# --- composing jobs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loader() -> composition.Loader:
    composition.prepare()
    setup_globals()
    return composition.Loader(create_config_search_path(str(composition.conf_dir())))


@pytest.fixture(scope="module")
def master(loader: composition.Loader) -> DictConfig:
    return loader.load_configuration(composition.CONFIG_NAME, ["hydra.mode=MULTIRUN"], RunMode.MULTIRUN)


SCALARS = st.sampled_from(
    ["1", "0.25", "null", "true", "-3", "1e-5", "nan", "abc", "'a, b=c'", '"it\'s"', "''", "é", "a:b"]
)
VALUES = SCALARS | st.sampled_from(["[1,2]", "[]", "[a,[b]]", "${seed}", "'${name}'", "{x:1}", "???"])
PLAIN = st.builds(
    "{}={}".format,
    st.sampled_from(
        ["seed", "trainer.epochs", "optimizer.lr", "model.hidden", "b", "regularization.flood", "data_dir"]
    ),
    VALUES,
)
OTHER = st.sampled_from(
    [
        *("experiment=flooding", "optimizer=adam", "model=cnn", "regularization=l2", "hydra.job.name=j"),
        *("+optimizer.dampening=0.1", "~model.dropout", "++seed=5", "~optimizer.lr", "+b=1", "+model.a={x:1}"),
        "hydra.sweep.subdir='x,y=1'",
    ]
)


FIXED = {"experiment=flooding", "optimizer=adam", "model=cnn", "regularization=l2", "hydra.job.name=j"}


def answer(load: Any, *arguments: Any) -> str:
    """The config as text, which shows also the order of keys, or what is wrong with it."""
    try:
        return OmegaConf.to_yaml(load(*arguments))
    except UsageError as error:
        return f"UsageError: {error}"


@settings(max_examples=5, deadline=None, phases=[Phase.explicit, Phase.generate])  # to shrink takes minutes
@given(lines=st.lists(PLAIN | OTHER, min_size=1, max_size=3), others=st.lists(SCALARS, min_size=3, max_size=3))
@example(lines=["hydra.sweep.subdir='x,y=1'"], others=["[1,2]", "1", "1"])
@example(lines=["trainer.epochs=2", "hydra.sweep.subdir='x'", "model.hidden=[3]"], others=["1", "'y'", "[1,2]"])
@example(lines=["optimizer=adam", "seed='1'", "optimizer.lr=1e-5"], others=["", "[]", "1"])
@example(lines=["experiment=flooding", "b=0.25", "trainer.epochs={x:1}"], others=["", "null", "1"])
def test_job_composed_from_one_like_it_equals_hydras_composition(
    loader: composition.Loader, master: DictConfig, lines: list[str], others: list[str]
) -> None:
    def swapped(line: str, value: str) -> str:
        return f"{line.partition('=')[0]}={value}" if line[0] not in "+~" and line not in FIXED else line

    alike = [swapped(line, value) for line, value in zip(lines, others, strict=False)]
    loader.composed.clear()
    answer(loader.load_sweep_config, master, alike)  # the one that it is copied from
    expected = answer(ConfigLoaderImpl.load_sweep_config, loader, master, lines)
    assert answer(loader.load_sweep_config, master, lines) == expected


def test_jobs_that_differ_in_plain_values_are_composed_once(
    loader: composition.Loader, master: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    compose = ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(
        ConfigLoaderImpl, "load_configuration", lambda *given: (calls.append(given), compose(*given))[1]
    )
    for job in jobs("experiment=flooding", "b=range(0,0.1,0.01)", "optimizer=momentum,adam", "model.hidden=[4],[4,4]"):
        cfg = loader.load_sweep_config(master, [*job, "hydra.sweep.subdir='x'"])
        assert list(cfg.hydra.overrides.task) == list(job)
        assert f"b={cfg.regularization.flood}" in (job[1], f"{job[1]}.0")
    assert len(calls) == 2


def test_configs_of_jobs_are_their_own(loader: composition.Loader, master: DictConfig) -> None:
    first = loader.load_sweep_config(master, ["seed=1", "model.hidden=[1]"])
    second = loader.load_sweep_config(master, ["seed=2", "model.hidden=[2]"])
    first.trainer.epochs = 99
    first.model.hidden.append(3)
    assert (second.trainer.epochs, second.model.hidden) == (20, [2])
    assert loader.load_sweep_config(master, ["seed=2", "model.hidden=[2]"]).trainer.epochs == 20


# --- sweeps -----------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Data folder as for users; the loggers of launchers as they were."""
    monkeypatch.delenv("DLHW_DATA", raising=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    levels = {name: logging.getLogger(name).level for name in ("hydra", "hydra_plugins")}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


class Conclusions:
    """Stands for the comparison: notes what it was asked, each time."""

    def __init__(self) -> None:
        self.asked: list[tuple[Path, list[str], dict[str, str]]] = []

    def __call__(self, sweep: grid.Grid, directory: Path, jobs: Any, failures: Any, *, seconds: float) -> str:
        runs = [path.name for path in jobs if (path / "config.yaml").exists()]
        self.asked.append((directory, runs, {path.name: reason for path, reason in failures.items()}))
        return "\n".join(["the table", *(f"{path.name}: failed: {reason}" for path, reason in failures.items())])


@pytest.fixture
def conclusions(monkeypatch: pytest.MonkeyPatch) -> Conclusions:
    noted = Conclusions()
    monkeypatch.setattr(grid.Grid, "_conclude", functools.partialmethod(noted))
    return noted


def states(directory: Path) -> dict[str, str]:
    return {path.parent.name: summary(path.parent)["status"] for path in directory.glob("*/summary.json")}


def begun(ended: Ended) -> list[str]:
    return [line.partition(": ")[2] for line in ended.lines if line.startswith("job ")]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["optimizer=sgd,adamm"],
            "optimizer=adamm: unknown optimizer (did you mean adam?); expected one of adagrad, adam, adamw, momentum, "
            "momentum_by_hand, nesterov, nesterov_by_hand, rmsprop, sgd, sgd_by_hand, torch",
        ),
        (["trainer.epoch=1,2"], "trainer.epoch: unknown key; did you mean trainer.epochs?"),
        slow((["b=0,0.1"], "b: unknown key; b belongs to experiment=flooding")),
        slow((["+bb=0,0.1"], "bb: unused key; no value in this config reads it; --cfg job shows all keys")),
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
def test_mistake_is_told_before_anything_is_made(tmp_path: Path, overrides: list[str], line: str) -> None:
    assert dlhw("-m", *SMALL, *overrides, at=tmp_path) == Ended(1, "", f"{line}\n")
    assert list(tmp_path.iterdir()) == []


def test_combination_that_cannot_be_fails_alone(
    tmp_path: Path, conclusions: Conclusions, monkeypatch: pytest.MonkeyPatch
) -> None:
    compose = composition.Loader.load_sweep_config

    def broken(loader: composition.Loader, master: DictConfig, overrides: list[str]) -> DictConfig:
        if {"seed=1", "+optimizer.nesterov=false"} <= set(overrides):
            raise UsageError("cannot be composed")
        return compose(loader, master, overrides)

    monkeypatch.setattr(composition.Loader, "load_sweep_config", broken)
    torch_sgd = ("optimizer=torch", "optimizer.name=SGD", "+optimizer.momentum=0,0.9", "+optimizer.nesterov=true,false")
    ended = dlhw("-m", *QUICK, *torch_sgd, "seed=0,1", at=tmp_path)
    assert ended.code == 1
    message = "UsageError: optimizer=sgd: Nesterov momentum requires a momentum and zero dampening"
    assert conclusions.asked[0][2] == {
        "optimizer.momentum=0,optimizer.nesterov=true,seed=0": message,
        "optimizer.momentum=0,optimizer.nesterov=true,seed=1": message,
        "optimizer.momentum=0,optimizer.nesterov=false,seed=1": "UsageError: cannot be composed",
        "optimizer.momentum=0.9,optimizer.nesterov=false,seed=1": "UsageError: cannot be composed",
    }
    assert sorted(states(tmp_path / "S").values()) == ["failed"] * 4 + ["finished"] * 4
    monkeypatch.setattr(composition.Loader, "load_sweep_config", compose)
    again = dlhw("resume=S", at=tmp_path)
    assert len(begun(again)) == 4
    assert list(conclusions.asked[1][2].values()) == [message, message]


def test_second_call_does_what_is_left(tmp_path: Path, conclusions: Conclusions) -> None:
    first = dlhw("-m", *QUICK, "seed=0,1", at=tmp_path)
    assert (first.code, begun(first), states(tmp_path / "S")) == (
        0,
        ["seed=0", "seed=1"],
        {"seed=0": "finished", "seed=1": "finished"},
    )
    before = {path: path.read_bytes() for path in tmp_path.glob("S/*/*") if path.is_file()}
    second = dlhw("-m", *QUICK, "seed=0,1,2", at=tmp_path)
    assert (second.code, begun(second)) == (0, ["seed=2"])
    assert second.lines[0] == "3 jobs, 2 of them already finished, in S"
    third = dlhw("resume=S", at=tmp_path)
    assert (third.code, begun(third)) == (0, [])
    assert third.lines == [f"3 jobs, 3 of them already finished, in {tmp_path / 'S'}", "the table"]
    assert {path: path.read_bytes() for path in before} == before
    assert [(runs, failures) for _, runs, failures in conclusions.asked] == [
        (["seed=0", "seed=1"], {}),
        (["seed=0", "seed=1", "seed=2"], {}),
        (["seed=0", "seed=1", "seed=2"], {}),
    ]


def test_run_of_another_config_is_left_alone(tmp_path: Path, conclusions: Conclusions) -> None:
    assert dlhw("-m", *QUICK, "seed=0,1", at=tmp_path).code == 0
    before = {path: path.read_bytes() for path in tmp_path.glob("S/*/*") if path.is_file()}
    assert dlhw("-m", *QUICK, "model.hidden=[4]", "seed=0,1", at=tmp_path).code == 0
    ended = dlhw("-m", *QUICK, "model.hidden=[4]", "seed=0,1", "data_dir=there", at=tmp_path)
    assert {path: path.read_bytes() for path in before} == before
    assert conclusions.asked[-1][1] == ["seed=0-2", "seed=1-2"]
    assert (ended.code, begun(ended)) == (0, [])


def test_two_processes_do_not_share_a_sweep(tmp_path: Path, conclusions: Conclusions) -> None:
    from dlhw.runs.record import Record

    assert dlhw("-m", *QUICK, "seed=0,1", at=tmp_path).code == 0
    before = (tmp_path / "S" / "multirun.yaml").read_bytes()
    with Record(tmp_path / "S").locked():
        ended = dlhw("-m", *QUICK, "seed=0,1,2", at=tmp_path)
    assert ended == Ended(1, "", "S: another process is running this sweep\n")
    assert (tmp_path / "S" / "multirun.yaml").read_bytes() == before


def test_directory_of_something_else_is_no_sweep(tmp_path: Path) -> None:
    (tmp_path / "S").mkdir()
    (tmp_path / "S" / "notes").write_text("mine")
    ended = dlhw("-m", *QUICK, "seed=0,1", at=tmp_path)
    assert ended.code == 1
    assert ended.err == "S: already exists, and runs are never overwritten; choose another directory, or use resume=S\n"


def test_resumed_sweep_takes_nothing_but_where_data_is(tmp_path: Path) -> None:
    (tmp_path / "S").mkdir()
    (tmp_path / "S" / "multirun.yaml").write_text("hydra: {overrides: {hydra: [], task: []}}\ndata_dir: data\n")
    ended = dlhw("resume=S", "seed=3", at=tmp_path)
    assert ended == Ended(
        1,
        "",
        "seed=3: invalid with resume, because a resumed sweep keeps its overrides; expected only data_dir\n",
    )
    (tmp_path / "S" / "multirun.yaml").write_text("x: [")
    assert dlhw("-m", "resume=S", at=tmp_path).err.startswith(f"{tmp_path / 'S' / 'multirun.yaml'}: cannot be read (")


def test_jobs_of_one_config_keep_their_directories(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"name": "x", "data_dir": str(tmp_path)})
    plans = [grid.Plan((), name) for name in "cba"]
    for name in "ac":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(identity.to_yaml(cfg))
    for order in (plans, plans[::-1]):
        paths = grid._directories([grid.PlannedJob(plan, cfg) for plan in order], tmp_path)
        assert [path.name for path in paths] == [plan.label for plan in order]
    (renamed,) = grid._directories([grid.PlannedJob(grid.Plan((), "d"), cfg)], tmp_path)
    assert renamed.name == "a"


def test_files_that_cannot_be_written_are_told_in_a_line(tmp_path: Path) -> None:
    line = ("-m", *QUICK, "seed=0,1")
    (tmp_path / "S").mkdir()
    (tmp_path / "S" / "multirun.yaml").touch()
    (tmp_path / "S" / "seed=1").touch()
    ended = dlhw(*line, at=tmp_path)
    assert (ended.code, ended.lines) == (1, ["2 jobs, in S", "S/seed=1/summary.json: Not a directory"])
    (tmp_path / "S" / "seed=1").unlink()
    (tmp_path / "S" / "tables").touch()
    ended = dlhw(*line, at=tmp_path)
    assert (ended.code, ended.lines[-1]) == (1, "S/tables: File exists")
    assert set(states(tmp_path / "S").values()) == {"finished"}


def test_full_disk_does_not_hide_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        raise program.Terminated

    def full(*arguments: Any, **about: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(grid.Grid, "_launch", interrupted)
    monkeypatch.setattr(grid.Grid, "_conclude", full)
    ended = dlhw("-m", *QUICK, "seed=0,1", at=tmp_path)
    assert (ended.code, ended.lines[1:]) == (
        143,
        ["S: No space left on device", "stopped early; resume with resume=S"],
    )


def test_fail_fast_stops_at_the_first_failure(tmp_path: Path, conclusions: Conclusions) -> None:
    line = ("-m", *QUICK, "trainer.epochs=2", "optimizer.lr=0.1,1e35,0.2")
    ended = dlhw(*line, "hydra.sweeper.fail_fast=true", at=tmp_path)
    assert ended.code == 1
    assert states(tmp_path / "S") == {"optimizer.lr=0.1": "finished", "optimizer.lr=1e+35": "failed"}
    assert list(conclusions.asked[0][2]) == ["optimizer.lr=1e+35"]
    assert ended.lines[-1] == "stopped early; resume with resume=S"


def test_unexpected_failure_leaves_its_traceback_in_the_jobs_log(
    tmp_path: Path, conclusions: Conclusions, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train.run

    def broken(cfg: DictConfig, record: Any, overrides: Sequence[str]) -> None:
        if cfg.seed == 1:
            raise ZeroDivisionError("by seed 1")
        run(cfg, record, overrides)

    monkeypatch.setattr(train, "run", broken)
    ended = dlhw("-m", *QUICK, "seed=0,1,2", at=tmp_path)
    assert ended.code == 1
    assert states(tmp_path / "S") == {"seed=0": "finished", "seed=1": "failed", "seed=2": "finished"}
    assert "Traceback" not in ended.err
    text = (tmp_path / "S" / "seed=1" / "run.log").read_text()
    assert "Traceback" in text
    assert text.splitlines()[-1].endswith(f"(traceback in {tmp_path / 'S' / 'seed=1' / 'run.log'})")
    assert conclusions.asked[0][2] == {"seed=1": "ZeroDivisionError: by seed 1"}
    monkeypatch.setattr(train, "run", run)
    again = dlhw("resume=S", at=tmp_path)
    assert (again.code, begun(again)) == (0, ["seed=1"])
    assert states(tmp_path / "S")["seed=1"] == "finished"


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_sweep_goes_on_where_it_was(
    tmp_path: Path, conclusions: Conclusions, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals, code: int
) -> None:
    from dlhw.runs.record import Record

    append = Record.append
    line = ("-m", *SMALL, "trainer.epochs=3", "trainer.checkpoint_seconds=0", "seed=0,1,2")

    def stopping(record: Record, row: dict[str, float], *, seconds: float) -> None:
        append(record, row, seconds=seconds)
        if record.path.name == "seed=1" and row["epoch"] == 2:
            signal.raise_signal(sent)

    with monkeypatch.context() as patch:
        patch.setattr(Record, "append", stopping)
        ended = dlhw(*line, "hydra.sweep.dir=S", at=tmp_path)
    assert ended.code == code
    assert ended.lines[-1] == "stopped early; resume with resume=S"
    assert states(tmp_path / "S") == {"seed=0": "finished"}
    assert conclusions.asked == [(Path("S"), ["seed=0", "seed=1"], {})]

    again = dlhw("resume=S", at=tmp_path)
    assert (again.code, begun(again)) == (0, ["seed=1", "seed=2"])
    assert len((tmp_path / "S" / "seed=1" / "timing.csv").read_text().splitlines()) in (4, 5)  # not trained again
    assert dlhw(*line, "hydra.sweep.dir=T", at=tmp_path).code == 0
    for seed in range(3):
        ours, straight = (tmp_path / name / f"seed={seed}" / "metrics.csv" for name in "ST")
        assert ours.read_bytes() == straight.read_bytes()


def test_experiment_declares_its_sweep(tmp_path: Path, conclusions: Conclusions) -> None:
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
    assert conclusions.asked[0][1] == ["optimizer.lr=0.1,seed=1", "optimizer.lr=0.2,seed=1"]
    stored = yaml.safe_load((tmp_path / "S" / "optimizer.lr=0.1,seed=1" / "config.yaml").read_text())
    assert (stored["model"]["hidden"], stored["trainer"]["epochs"]) == ([3, 3], 1)
    for size in ("fulll", "quick,fulll"):
        assert dlhw(*line, f"size={size}", at=tmp_path).err == (
            "size=fulll: unknown size (did you mean full?); expected one of quick, full\n"
        )


def test_params_of_an_experiment_yield_to_another_option_of_their_group(tmp_path: Path) -> None:
    small = ("dataset=digits", "trainer.epochs=1", "model.hidden=[4]", "hydra.sweep.dir=S")
    ended = dlhw("experiment=init_study", "init=he,orthogonal", *small, at=tmp_path)
    assert (ended.code, ended.lines[0]) == (0, "d varies only in jobs that read it")
    assert states(tmp_path / "S") == {"init=he": "finished", "init=orthogonal": "finished"}
    assert "d" not in yaml.safe_load((tmp_path / "S" / "init=he" / "config.yaml").read_text())


def statuses(directory: Path) -> dict[str, str]:
    with (directory / "sweep.csv").open(newline="") as file:
        return {row["job"]: row["status"] for row in csv.DictReader(file)}


def test_table_tells_of_jobs_that_were_not_run_and_of_other_calls(tmp_path: Path) -> None:
    line = ("-m", *QUICK, "trainer.epochs=2")
    ended = dlhw(*line, "optimizer.lr=0.1,1e35,0.2", "hydra.sweeper.fail_fast=true", at=tmp_path)
    assert ended.code == 1
    names = ("optimizer.lr=0.1", "optimizer.lr=1e+35", "optimizer.lr=0.2")
    assert statuses(tmp_path / "S") == dict(zip(names, ("finished", "failed", "unfinished"), strict=True))
    for _ in range(2):
        narrower = dlhw(*line, "optimizer.lr=0.1", at=tmp_path)  # what varied before tells the runs apart still
        assert (narrower.code, begun(narrower)) == (0, [])
    assert statuses(tmp_path / "S") == dict(zip(names[:2], ("finished", "failed"), strict=True))
    assert dlhw(*line, "optimizer.lr=0.1,0.2", at=tmp_path).code == 0
    once = (tmp_path / "S" / "sweep.csv").read_bytes()
    assert dlhw(*line, "optimizer.lr=0.1,0.2", at=tmp_path).code == 0
    assert (tmp_path / "S" / "sweep.csv").read_bytes() == once
    assert list(statuses(tmp_path / "S").values()) == ["finished", "finished", "failed"]


def test_sweep_stopped_before_its_first_job_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(grid.Grid, "_launch", interrupted)
    ended = dlhw("-m", *QUICK, "seed=0,1", at=tmp_path)
    assert (ended.code, ended.lines[-1]) == (130, "stopped early; resume with resume=S")
    assert statuses(tmp_path / "S") == {"seed=0": "unfinished", "seed=1": "unfinished"}


# --- other launchers --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("hydra_plugins.hydra_joblib_launcher", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]),
        ("hydra_plugins.hydra_submitit_launcher", ["hydra/launcher=submitit_local"]),
        ("hydra_plugins.hydra_ray_launcher", ["hydra/launcher=ray"]),
    ],
    ids=["joblib", "submitit", "ray"],
)
def test_other_launchers_run_the_same_jobs(tmp_path: Path, module: str, options: list[str]) -> None:
    pytest.importorskip(module)
    line = ("-m", *QUICK, "trainer.epochs=2", "optimizer.lr=0.1,1e35")
    there, here = tmp_path / "there", tmp_path / "here"
    for path, more in ((there, options), (here, [])):
        path.mkdir()
        ended = start(*line, *more, at=path, cold=True).end()
        assert ended.code == 1, ended.err
        assert states(path / "S") == {"optimizer.lr=0.1": "finished", "optimizer.lr=1e+35": "failed"}
    ours, other = (path / "S" / "optimizer.lr=0.1" / "metrics.csv" for path in (here, there))
    assert ours.read_bytes() == other.read_bytes()
    again = start("resume=S", at=there, cold=True).end()
    assert "2 jobs, 1 of them already finished" in again.err


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "vectorized"])
def test_sweep_killed_halfway_and_called_again_has_the_table_of_one_that_was_not(tmp_path: Path, launcher: str) -> None:
    options = ("model.dropout=0.2", "trainer.epochs=150", "trainer.checkpoint_seconds=0", f"hydra/launcher={launcher}")
    line = ("-m", *SMALL, *options, "optimizer.lr=0.1,0.3", "seed=0,1")
    process = start(*line, "hydra.sweep.dir=S", at=tmp_path)
    halfway = tmp_path / "S" / "optimizer.lr=0.1,seed=1" / "metrics.csv"
    process.until(lambda: halfway.exists() and halfway.read_text().count("\n") > 70)
    process.kill()
    assert process.code == -signal.SIGKILL
    assert len(states(tmp_path / "S")) == (1 if launcher == "basic" else 0)
    for directory in "ST":
        assert start(*line, f"hydra.sweep.dir={directory}", at=tmp_path).end().code == 0
    ours, straight = ((tmp_path / directory / "sweep.csv").read_text() for directory in "ST")
    if launcher == "basic":
        assert ours == straight
    for cell, expected in zip(re.split("[,\n]", ours), re.split("[,\n]", straight), strict=True):
        # Bits depend on how many jobs go on together from the same epoch.
        assert cell == expected or float(cell) == pytest.approx(float(expected), rel=1e-5)


def processes(session: int) -> list[int]:
    """The live processes of a session, which are those that its first one has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = stat.read_text().rpartition(")")
        except OSError:  # gone meanwhile
            continue
        state, _, _, of = rest.split()[:4]
        if int(of) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_sweep(tmp_path: Path, sent: signal.Signals) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    options = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=S", "trainer.epochs=100000"]
    process = start("-m", *SMALL, *options, "seed=0,1", at=tmp_path, cold=True)
    try:
        process.until(lambda: len(list(tmp_path.glob("S/*/metrics.csv"))) == 2)
        assert len(processes(process.pid)) > 2
        process.send_signal(sent)
        assert process.wait() == (143 if sent == signal.SIGTERM else -sent)
        wait_for(lambda: not processes(process.pid))
    finally:
        for pid in processes(process.pid):
            os.kill(pid, signal.SIGKILL)
