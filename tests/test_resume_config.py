"""The config of a resumed run is the stored one; only ``data_dir`` and ``trainer.epochs`` may change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from dlhw.storage import identity
from support.composing import compose_with_hydra, error_message


@pytest.fixture
def stored_run(tmp_path: Path) -> Callable[..., Path]:
    """``stored_run("model=cnn")``: a directory with the ``config.yaml`` of a run with these overrides."""

    def write_config(*overrides: str) -> Path:
        cfg = identity.without_hydra(compose_with_hydra(*overrides))
        (tmp_path / "config.yaml").write_text(identity.to_yaml(cfg))
        return tmp_path

    return write_config


def values(cfg: DictConfig) -> dict[str, Any]:
    """Return the unresolved values of a config, without those of Hydra."""
    content = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(content, dict)
    return {str(name): value for name, value in content.items() if name != "hydra"}


def test_path_of_initial_weights_is_stored_as_absolute(
    stored_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = tmp_path / "S" / "b=0,seed=1"
    start.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    directory = stored_run("init=from_run", "init.run=S/b=0,seed=1")
    cfg = compose_with_hydra("init=from_run", "init.run=S/b=0,seed=1")
    monkeypatch.chdir(start)
    assert compose_with_hydra(f"resume={directory}").init.run == str(start)
    assert not identity.continues_run(cfg, directory)  # the same relative path is another directory here
    monkeypatch.chdir(tmp_path)
    assert identity.continues_run(cfg, directory)


def test_resume_uses_the_stored_config(stored_run: Callable[..., Path]) -> None:
    directory = stored_run("experiment=flooding", "b=0.3", "model.hidden=[7]", "seed=4", "dataset=digits")
    cfg = compose_with_hydra(f"resume={directory}")
    original = values(OmegaConf.load(directory / "config.yaml"))
    assert values(cfg) == original | {"resume": str(directory)}
    assert cfg.hydra.run.dir == str(directory)
    assert cfg.hydra.output_subdir is None
    assert cfg.hydra.job.name == "flooding"


def test_resume_may_change_epochs_and_data_dir(stored_run: Callable[..., Path]) -> None:
    directory = stored_run()
    original = values(compose_with_hydra(f"resume={directory}"))
    resumed = values(compose_with_hydra("trainer.epochs=50", f"resume={directory}", "data_dir=elsewhere"))
    assert resumed == original | {
        "data_dir": "elsewhere",
        "trainer": original["trainer"] | {"epochs": 50},
    }


def test_resume_accepts_a_relative_path(stored_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    directory = stored_run()
    monkeypatch.chdir(directory.parent)
    assert compose_with_hydra(f"resume={directory.name}").resume == str(directory)


@pytest.mark.parametrize("override", ["optimizer.lr=0.2", "model=cnn", "seed=0", "+b=1", "experiment=flooding"])
def test_other_overrides_are_invalid_with_resume(stored_run: Callable[..., Path], override: str) -> None:
    assert error_message(f"resume={stored_run()}", override) == (
        f"{override}: invalid with resume, because a resumed run keeps its config; "
        "expected only data_dir or trainer.epochs or logger"
    )


def test_resume_of_a_directory_without_a_config_is_an_error(tmp_path: Path) -> None:
    neither = "neither a run nor a sweep (no config.yaml, multirun.yaml or sweep.csv)"
    assert error_message(f"resume={tmp_path}") == f"resume={tmp_path}: {neither}"
    nowhere = tmp_path / "nowhere"
    assert error_message(f"resume={nowhere}") == (
        f"resume={nowhere}: no such directory; expected the directory of a run or sweep"
    )


def test_resume_cannot_change_epochs_if_the_schedule_depends_on_them(stored_run: Callable[..., Path]) -> None:
    directory = stored_run("scheduler=cosine", "trainer.epochs=10")
    assert error_message(f"resume={directory}", "trainer.epochs=20") == (
        "trainer.epochs=20: the learning-rate schedule of this run depends on its number of epochs; expected 10"
    )
    assert compose_with_hydra(f"resume={directory}", "trainer.epochs=10").scheduler.epochs == 10


def test_resume_validates_the_changed_values(stored_run: Callable[..., Path]) -> None:
    directory = stored_run()
    assert error_message(f"resume={directory}", "trainer.epochs=0") == "trainer.epochs=0: must be greater than 0"


def test_invalid_config_in_a_sweep_is_logged_and_is_not_the_same_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert identity.identity_of_run(tmp_path) is None
    assert not caplog.messages
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert identity.identity_of_run(tmp_path) is None
    assert caplog.messages[0].startswith(f"{tmp_path / 'config.yaml'}: not the config of a run (without name, ")


def test_differences_name_both_values_and_count_the_rest() -> None:
    one = {"seed": 1, "optimizer": {"lr": 0.1, "momentum": 0.9}, "model": {"hidden": [8]}}
    other = {"seed": 0, "optimizer": {"lr": 0.2}, "model": {"hidden": [9]}, "b": 1}
    assert identity.differences(one, one) == ""
    assert identity.differences(one, other) == (
        "seed: 1 instead of 0, optimizer.lr: 0.1 instead of 0.2, model.hidden: [8] instead of [9] and 2 more"
    )
