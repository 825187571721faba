"""The trainer's settings: the defaults in Python and in the config file are the same."""

from __future__ import annotations

from dataclasses import asdict, fields

import pytest
import yaml

from dlhw.cli.build import validate
from dlhw.cli.composition import conf_dir
from dlhw.cli.program import compose
from dlhw.errors import UsageError
from dlhw.training import settings


def test_defaults_equal_those_of_the_config_file() -> None:
    options = yaml.safe_load((conf_dir() / "trainer" / "default.yaml").read_text())
    assert options.pop("_target_") == "dlhw.training.settings.Trainer"
    assert asdict(settings.Trainer()) == options


def test_no_two_groups_of_settings_share_a_name() -> None:
    groups = (settings.Duration, settings.Evaluation, settings.FineTuning, settings.Execution)
    names = [field.name for group in groups for field in fields(group)]
    assert sorted(names) == sorted(field.name for field in fields(settings.Trainer))


@pytest.mark.parametrize("name", ["device", "epochs", "monitor"])
def test_a_deleted_setting_is_missing(name: str) -> None:
    with pytest.raises(UsageError, match=rf"^trainer\.{name}: missing"):
        validate(compose("dataset=digits", f"~trainer.{name}"))
