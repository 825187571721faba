"""The config files of datasets: their factories, options and invalid values."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pydantic
import pytest
import yaml

from dlhw.data import cifar, folders, idx, tabular
from dlhw.data.digits import digits
from dlhw.data.synthetic import clusters, separable
from support.datasets import CONF, options

IMAGES = {"mnist": idx.mnist, "fashion_mnist": idx.fashion_mnist, "kmnist": idx.kmnist, "digits": digits}
SYNTHETIC = {"separable": separable, "clusters": clusters}
PICTURES = {"cifar10": cifar.cifar10} | {
    name: getattr(folders, name) for name in ("image_folder", "face_mask", "hymenoptera")
}
TABLES = {name: getattr(tabular, name) for name in ("boston", "diabetes", "california_housing")}


def test_every_config_names_its_factory_and_has_exactly_its_options() -> None:
    factories = IMAGES | SYNTHETIC | TABLES | PICTURES
    assert sorted(path.stem for path in CONF.glob("*.yaml")) == sorted(factories)
    for name, factory in factories.items():
        config = yaml.safe_load((CONF / f"{name}.yaml").read_text())
        module, _, attribute = config["_target_"].rpartition(".")
        assert getattr(importlib.import_module(module), attribute) is factory
        assert {*options(name), "data_dir", "seed"} == set(inspect.signature(factory).parameters)


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
