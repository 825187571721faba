"""The config files of datasets: options and invalid values."""

from __future__ import annotations

import inspect
from typing import Any

import pydantic
import pytest
import yaml
from hydra.utils import get_object

from dlhw.data import idx
from dlhw.data.digits import digits
from dlhw.data.synthetic import separable
from support.config_files import CONF, option_names
from support.datasets import options

IMAGES = {"mnist": idx.mnist, "fashion_mnist": idx.fashion_mnist, "kmnist": idx.kmnist, "digits": digits}


@pytest.mark.parametrize("name", option_names("dataset"))
def test_config_has_exactly_the_options_of_its_target(name: str) -> None:
    target = yaml.safe_load((CONF / "dataset" / f"{name}.yaml").read_text())["_target_"]
    assert {*options(name), "data_dir", "seed"} == set(inspect.signature(get_object(target)).parameters)


@pytest.mark.parametrize(
    "invalid",
    [{"validation_fraction": 0}, {"validation_fraction": 1}, {"std": 0}, {"std": -1}, {"mean": "nan"}],
    ids=str,
)
@pytest.mark.parametrize("name", IMAGES)
def test_invalid_options_of_images_are_rejected_by_the_signature(name: str, invalid: dict[str, Any]) -> None:
    validated = pydantic.validate_call(IMAGES[name])
    with pytest.raises(pydantic.ValidationError, match=next(iter(invalid))):
        validated(data_dir="", **options(name) | invalid)


@pytest.mark.parametrize("invalid", [{"n": 1}, {"margin": 0}, {"noise": -1}, {"angle_degrees": "nan"}], ids=str)
def test_invalid_options_of_separable_are_rejected_by_the_signature(invalid: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(invalid))):
        pydantic.validate_call(separable)(data_dir="", **options("separable") | invalid)
