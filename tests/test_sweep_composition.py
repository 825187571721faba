"""Composing the jobs of a sweep: a config copied from a similar job equals Hydra's, and paths are quoted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from dlhw.cli import composition
from dlhw.errors import UsageError
from dlhw.sweeps.expansion import expand


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
PLAIN_OVERRIDES = st.builds(
    "{}={}".format,
    st.sampled_from(
        ["seed", "trainer.epochs", "optimizer.lr", "model.hidden", "b", "regularization.flood", "data_dir"]
    ),
    VALUES,
)
OTHER_OVERRIDES = st.sampled_from(
    [
        *("experiment=flooding", "optimizer=adam", "model=cnn", "regularization=l2", "hydra.job.name=j"),
        *("+optimizer.dampening=0.1", "~model.dropout", "++seed=5", "~optimizer.lr", "+b=1", "+model.a={x:1}"),
        "hydra.sweep.subdir='x,y=1'",
    ]
)
FIXED = {"experiment=flooding", "optimizer=adam", "model=cnn", "regularization=l2", "hydra.job.name=j"}
"""Overrides that the similar job keeps unchanged."""


def yaml_or_error(load: Any, *arguments: Any) -> str:
    """The composed config as YAML, which also shows the order of its keys, or the message of a UsageError."""
    try:
        return OmegaConf.to_yaml(load(*arguments))
    except UsageError as error:
        return f"UsageError: {error}"


@settings(max_examples=5, deadline=None, phases=[Phase.explicit, Phase.generate])  # shrinking takes minutes
@given(
    lines=st.lists(PLAIN_OVERRIDES | OTHER_OVERRIDES, min_size=1, max_size=3),
    values=st.lists(SCALARS, min_size=3, max_size=3),
)
@example(lines=["hydra.sweep.subdir='x,y=1'"], values=["[1,2]", "1", "1"])
@example(lines=["trainer.epochs=2", "hydra.sweep.subdir='x'", "model.hidden=[3]"], values=["1", "'y'", "[1,2]"])
@example(lines=["optimizer=adam", "seed='1'", "optimizer.lr=1e-5"], values=["", "[]", "1"])
@example(lines=["experiment=flooding", "b=0.25", "trainer.epochs={x:1}"], values=["", "null", "1"])
def test_config_copied_from_a_similar_job_equals_hydras_composition(
    loader: composition.Loader, master: DictConfig, lines: list[str], values: list[str]
) -> None:
    def with_value(line: str, value: str) -> str:
        return f"{line.partition('=')[0]}={value}" if line[0] not in "+~" and line not in FIXED else line

    similar = [with_value(line, value) for line, value in zip(lines, values, strict=False)]
    loader.composed.clear()
    yaml_or_error(loader.load_sweep_config, master, similar)  # cached, then copied
    expected = yaml_or_error(ConfigLoaderImpl.load_sweep_config, loader, master, lines)
    assert yaml_or_error(loader.load_sweep_config, master, lines) == expected


@pytest.mark.parametrize("lines", [["seed=3", "optimizer.lr=1e-5"], ["experiment=flooding", "b=0.25"]])
@pytest.mark.parametrize("more", [["hydra.sweep.subdir='x,y=1'"], ["hydra.sweep.dir=s", "hydra.sweep.subdir=j"]])
def test_job_that_is_composed_again_with_its_directory_equals_hydras_composition(
    loader: composition.Loader, master: DictConfig, monkeypatch: pytest.MonkeyPatch, lines: list[str], more: list[str]
) -> None:
    expected = yaml_or_error(ConfigLoaderImpl.load_sweep_config, loader, master, [*lines, *more])
    loader.load_sweep_config(master, lines)
    monkeypatch.setattr(loader, "composed", {})
    monkeypatch.setattr(loader, "compose", None)  # what the first call composed is used
    assert yaml_or_error(loader.load_sweep_config, master, [*lines, *more]) == expected


def test_jobs_that_differ_only_in_plain_values_are_composed_once(
    loader: composition.Loader, master: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    compose = ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(
        ConfigLoaderImpl, "load_configuration", lambda *arguments: (calls.append(arguments), compose(*arguments))[1]
    )
    grid = ("experiment=flooding", "b=range(0,0.1,0.01)", "optimizer=momentum,adam", "model.hidden=[4],[4,4]")
    for plan in expand((), grid):
        cfg = loader.load_sweep_config(master, [*plan.overrides, "hydra.sweep.subdir='x'"])
        assert list(cfg.hydra.overrides.task) == list(plan.overrides)
        assert f"b={cfg.regularization.flood}" in (plan.overrides[1], f"{plan.overrides[1]}.0")
    assert len(calls) == 2  # one per optimizer


def test_changing_the_config_of_a_job_leaves_other_configs_unchanged(
    loader: composition.Loader, master: DictConfig
) -> None:
    first = loader.load_sweep_config(master, ["seed=1", "model.hidden=[1]"])
    second = loader.load_sweep_config(master, ["seed=2", "model.hidden=[2]"])
    first.trainer.epochs = 99
    first.model.hidden.append(3)
    assert (second.trainer.epochs, second.model.hidden) == (20, [2])
    assert loader.load_sweep_config(master, ["seed=2", "model.hidden=[2]"]).trainer.epochs == 20


def test_values_that_are_paths_are_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    plans = expand((), [composition.quoted("start=null,S/b=0,seed=1")])
    assert [plan.overrides for plan in plans] == [("start=null",), ("start='S/b=0,seed=1'",)]
