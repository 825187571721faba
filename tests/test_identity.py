"""The text of config.yaml: equal to OmegaConf's, with absolute paths and without ``resume``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from dlhw.cli.composition import conf_dir
from dlhw.storage.identity import to_yaml, yaml_text
from support.composing import compose

EXPERIMENTS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))


@pytest.mark.parametrize(
    "content",
    [
        {"a": {}, "b": [], "c": None, "d": {"e": {"f": {"g": 1}}}},
        {"1": "1", "true": "true", "null": "null", "~": "", "a: b": "c: d", "é": "ü\n two", "- x": "# no"},
        {"numbers": [1, 1.0, True, 1e-5, 1e300, float("inf"), float("nan"), -0.0], "one": 1, "yes": True},
        {"long": {"nested": {"words": "many words " * 20, "path": "/x" * 80, "lines": "a\n\n  b\n"}}},
        {"list": [{"a": 1, "b": [2, {"c": "3"}]}, [], [[1], {}]], "k" * 200: {"x" * 200: "y" * 200}},
        {"quotes": "it's", "double": '"', "octal": "0o7", "date": "2020-01-01", "exponent": "1e3", "blank": " "},
    ],
)
def test_text_equals_omegaconfs(content: dict[str, Any]) -> None:
    assert yaml_text(content) == OmegaConf.to_yaml(OmegaConf.create(content))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_config_of_an_experiment_is_written_as_omegaconf_writes_it(experiment: str, tmp_path: Path) -> None:
    cfg = compose(f"experiment={experiment}", f"data_dir={tmp_path}")
    assert to_yaml(cfg) == OmegaConf.to_yaml(cfg, resolve=True)


def test_relative_data_dir_becomes_absolute_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = OmegaConf.create({"data_dir": "d", "resume": "r", "other": "${data_dir}/x"})
    absolute = {"data_dir": str(tmp_path / "d"), "resume": None, "other": f"{tmp_path}/d/x"}
    assert to_yaml(cfg) == OmegaConf.to_yaml(OmegaConf.create(absolute))
    assert cfg.data_dir == "d"


def test_relative_paths_in_groups_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"data_dir": "/d", "resume": None, "init": {"run": "r", "x": 1}, "dataset": {"cache_dir": "c"}}
    absolute = {**content, "init": {"run": f"{tmp_path}/r", "x": 1}, "dataset": {"cache_dir": f"{tmp_path}/c"}}
    assert to_yaml(OmegaConf.create(content)) == OmegaConf.to_yaml(OmegaConf.create(absolute))
    same = {**content, "init": "${base}", "base": {"run": "r"}}
    same_absolute = {**absolute, "init": {"run": f"{tmp_path}/r"}, "base": {"run": "r"}}
    assert to_yaml(OmegaConf.create(same)) == OmegaConf.to_yaml(OmegaConf.create(same_absolute))


def test_keys_that_python_counts_as_equal_are_distinguished() -> None:
    for key in (1, True, 1.0):
        content: dict[Any, Any] = {"r": {key: 0.1}}
        assert yaml_text(content) == OmegaConf.to_yaml(OmegaConf.create(content))
