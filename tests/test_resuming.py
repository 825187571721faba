"""A resumed run keeps its config, and a resumed sweep its overrides; files that dlhw did not write are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from dlhw.cli import build, resuming
from dlhw.cli.composition import parsed, quoted
from dlhw.errors import UsageError
from support.composing import compose_with_hydra, error_message
from support.run_directories import MULTIRUN, make_run, make_study_run


def config(**content: Any) -> DictConfig:
    cfg = OmegaConf.create(content)
    OmegaConf.set_struct(cfg, True)  # as in a config that Hydra composed
    return cfg


def overrides(*lines: str) -> list[Override]:
    return [parsed(line) for line in lines]


def test_resumed_run_may_change_only_epochs_and_data_dir() -> None:
    lines = overrides("resume=x", "trainer.epochs=9", "hydra.verbose=true", "data_dir=y")
    assert resuming.changes_of_run(lines) == {"resume": "x", "trainer.epochs": 9, "data_dir": "y"}
    with pytest.raises(
        UsageError, match=r"^seed=3: invalid with resume, .* only data_dir or trainer.epochs or logger$"
    ):
        resuming.changes_of_run(overrides("resume=x", "seed=3"))


COMPOSED = {"hydra": {"run": {"dir": "now"}, "output_subdir": ".hydra"}, "trainer": {"epochs": 20}, "resume": None}


def test_resumed_config_is_the_stored_one_with_the_changes() -> None:
    composed = config(**COMPOSED, model={"hidden": [1]})
    stored = config(trainer={"epochs": 5}, scheduler={}, resume=None, old=True)
    result = resuming.resumed_config(composed, stored, {"resume": "r", "trainer.epochs": 9}, Path("/run"))
    assert result == {
        "hydra": {"run": {"dir": "/run"}, "output_subdir": None},
        "trainer": {"epochs": 9},
        "scheduler": {},
        "resume": "/run",
        "old": True,
    }
    assert stored.trainer.epochs == 5
    assert composed == {**COMPOSED, "model": {"hidden": [1]}}


def test_resumed_run_keeps_the_epochs_that_its_schedule_depends_on() -> None:
    stored = config(trainer={"epochs": 5}, scheduler={"epochs": 5}, resume=None)
    assert resuming.resumed_config(config(**COMPOSED), stored, {"trainer.epochs": 5}, Path("/run")).trainer.epochs == 5
    with pytest.raises(UsageError, match=r"^trainer.epochs=9: the learning-rate schedule .*; expected 5$"):
        resuming.resumed_config(config(**COMPOSED), stored, {"trainer.epochs": 9}, Path("/run"))


def resumed_sweep(directory: Path, *lines: str) -> list[str]:
    """Return the overrides that resume a sweep with a launcher and two seeds, without those of every sweep."""
    launcher = ["hydra/launcher=vectorized", "hydra.launcher.largest=2", "+hydra.launcher.more=1"]
    write_multirun(directory, hydra=[*launcher, "hydra.sweep.dir=old"], task=["seed=0,1", "data_dir=old"])
    result = resuming.overrides_of_sweep(directory, overrides("resume=S", *lines), parse=parsed, quote=quoted)
    assert result[-2:] == ["hydra.mode=MULTIRUN", f"hydra.sweep.dir='{directory}'"]
    return result[:-2]


def write_multirun(directory: Path, **lines: Any) -> None:
    content = {
        **MULTIRUN,
        "hydra": {
            "overrides": {"hydra": [], "task": [], **lines},
            "runtime": {"choices": {"hydra/launcher": "vectorized"}},
        },
    }
    (directory / "multirun.yaml").write_text(json.dumps(content))


def test_resumed_sweep_keeps_its_overrides_except_launcher_and_data_dir(tmp_path: Path) -> None:
    options = ["hydra.launcher.largest=2", "+hydra.launcher.more=1"]
    same = "data_dir='/data'"
    assert resumed_sweep(tmp_path) == ["hydra/launcher=vectorized", *options, "seed=0,1", same]
    changed = ["hydra/launcher=vectorized", *options, "seed=0,1", "data_dir=new"]
    assert resumed_sweep(tmp_path, "data_dir=new") == changed
    launcher = "hydra/launcher=vectorized"
    assert resumed_sweep(tmp_path, launcher) == [*options, "seed=0,1", launcher, same]
    assert resumed_sweep(tmp_path, "hydra/launcher=basic") == ["seed=0,1", "hydra/launcher=basic", same]
    with pytest.raises(UsageError, match=r"^seed=3: invalid with resume, .*; expected only data_dir or logger$"):
        resumed_sweep(tmp_path, "seed=3")


@pytest.mark.parametrize(
    "line",
    ["resume=other", "hydra/launcher=basic,vectorized", "hydra.run.dir=a,b", "a b", "=", "x=["],
)
def test_odd_override_of_a_stored_sweep_is_an_error_that_names_the_file(tmp_path: Path, line: str) -> None:
    write_multirun(tmp_path, task=[line])
    assert error_message(f"resume={tmp_path}").startswith(f"{tmp_path / 'multirun.yaml'}: invalid override {line};")


def test_mistake_in_an_edited_config_names_its_file(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "summary.json").unlink()
    with pytest.raises(UsageError) as raised:
        build.check_settings(compose_with_hydra(f"resume={run}"))
    lines = str(raised.value).splitlines()
    for name in ("trainer", "comparison"):
        expected = "expected the path of a class or function, _target_: MODULE.NAME"
        assert f"{run / 'config.yaml'}: {name}._target_: missing; {expected}" in lines


def test_finished_run_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    command = f"resume={tmp_path / 'run'}"
    with pytest.raises(UsageError) as raised:
        compose_with_hydra(command)
    assert (
        str(raised.value) == f"{command}: already finished after 3 epochs; a larger trainer.epochs continues training"
    )
    with pytest.raises(UsageError, match="already finished after 3 epochs"):
        compose_with_hydra(command, "trainer.epochs=3")
    make_study_run(tmp_path / "study", answer=1.0)
    with pytest.raises(UsageError, match=r"study: already finished$"):
        compose_with_hydra(f"resume={tmp_path / 'study'}")


def test_invalid_summary_is_not_taken_for_an_unfinished_run(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "run" / "summary.json").write_text('{"status": "finished", "final": null}')
    assert error_message(f"resume={tmp_path / 'run'}") == (
        f"{tmp_path / 'run' / 'summary.json'}: best must be a row of metrics with its epoch; delete it, then resume "
        "the run, which writes it again"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hydra: {run: {dir: x}}\n", "not the config of a run (it has the key hydra)"),
        ("seed: 0\n", "not the config of a run (without name, data_dir, output_dir, dataset and 12 more)"),
        ("a: &x {b: 1}\nc: [*x, *x]\n", "YAML anchors and aliases are not supported"),
        ("- 1\n", "not the config of a run"),
        ("", "not the config of a run"),
    ],
)
def test_invalid_config_of_a_run_is_an_error_that_names_the_file(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert error_message(f"resume={tmp_path}") == (
        f"{tmp_path / 'config.yaml'}: {reason}; restore it, or start again in a new directory"
    )


@pytest.mark.parametrize("value", ["''", "' '", "[3]", f"{'a' * 300}", "~nobody-here/x"])
def test_value_of_resume_that_is_not_a_path_is_an_error(value: str) -> None:
    assert error_message(f"resume={value}").startswith("resume=")
