"""The settings of the trainer have the same names and defaults in Python and in the config file."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

import pytest
import yaml

from dlhw.cli import build
from dlhw.cli.build import SETTINGS, validate
from dlhw.cli.composition import conf_dir
from dlhw.cli.program import compose
from dlhw.errors import UsageError
from dlhw.training import settings
from support.commands import SMALL, dlhw
from support.composing import error_message


def test_defaults_in_python_equal_the_config_file() -> None:
    options = yaml.safe_load((conf_dir() / "trainer" / "default.yaml").read_text())
    assert options.pop("_target_") == "dlhw.training.settings.Trainer"
    assert asdict(settings.Trainer()) == options


def test_each_setting_is_in_exactly_one_group() -> None:
    groups = (settings.Duration, settings.Evaluation, settings.FineTuning, settings.Execution)
    names = [field.name for group in groups for field in fields(group)]
    assert sorted(names) == sorted(field.name for field in fields(settings.Trainer))


@pytest.mark.parametrize("name", ["device", "epochs", "monitor"])
def test_deleted_setting_is_an_error(name: str) -> None:
    with pytest.raises(UsageError, match=rf"^trainer\.{name}: missing"):
        validate(compose("dataset=digits", f"~trainer.{name}"))


@pytest.mark.parametrize(("group", "target"), SETTINGS.items())
@pytest.mark.parametrize("other", ["fractions.Fraction", "dlhw.models.convolutional.cnn"])
@pytest.mark.parametrize("sweep", [False, True])
def test_other_class_of_settings_is_an_error_before_training(group: str, target: str, other: str, sweep: bool) -> None:
    line = f"{group}._target_={other}"
    assert error_message("dataset=digits", line, sweep=sweep) == f"{line}: must be {target} or a subclass of it"


def test_missing_value_of_a_setting_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"^trainer.frozen_once: missing; expected trainer.frozen_once=VALUE$"):
        build.check_settings(compose("dataset=digits", "trainer.frozen_once=???"))


def test_settings_are_validated_once_for_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    check_settings = build.check_settings
    monkeypatch.setattr(build, "check_settings", lambda cfg: (calls.append(cfg), check_settings(cfg)))
    assert dlhw(*SMALL, "trainer.epochs=1", at=tmp_path).code == 0
    assert len(calls) == 1
