"""The rules that dlhw adds to the config composition of Hydra, each tested as a function."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from dlhw.cli import rules
from dlhw.errors import UsageError


def config(**content: Any) -> DictConfig:
    cfg = OmegaConf.create(content)
    OmegaConf.set_struct(cfg, True)  # as in a config that Hydra composed
    return cfg


def test_readers_lists_the_options_that_refer_to_each_key() -> None:
    cfg = config(trainer={"epochs": "${sizes.${size}.epochs}", "rates": ["${b}", 1]}, init={"d": "${b}", "f": r"\${g}"})
    assert rules.readers(cfg) == {
        "sizes": ["trainer.epochs"],
        "size": ["trainer.epochs"],
        "b": ["trainer.rates.0", "init.d"],
    }


def test_readers_resolves_relative_interpolations() -> None:
    assert rules.readers(config(init={"d": "${..b}", "e": "${.d}"})) == {"b": ["init.d"], "init": ["init.e"]}


def test_selections_are_mappings_indexed_by_a_key() -> None:
    cfg = config(a="${sizes.${size}.epochs}", b="${sizes.${size}.rates}", c="${sizes.quick}", d="${x.${y.z}}")
    assert rules.selections(cfg) == (("sizes", "size"),)


def test_replaced_groups_discard_the_values_of_the_experiment() -> None:
    experiment = config(name="e", model={"hidden": [5]}, optimizer={"lr": 1})
    choices = {"model": "mlp", "optimizer": "sgd", "loss": "mse"}
    assert rules.without_replaced_groups(experiment, choices, choices) == experiment
    kept = rules.without_replaced_groups(experiment, choices, choices | {"model": "cnn", "loss": "cross_entropy"})
    assert kept == {"name": "e", "optimizer": {"lr": 1}}
    assert "model" in experiment  # the argument is unchanged


def test_options_that_are_mappings_accept_new_keys() -> None:
    cfg = config(trainer={"rates": {}, "epochs": "${n}", "missing": "???"}, other={"rates": {}}, n=1)
    opened = rules.with_open_options(cfg, ["trainer"])
    opened.trainer.rates["fc.*"] = 0.1
    assert opened.trainer.rates == {"fc.*": 0.1}
    assert cfg.trainer.rates == {}
    with pytest.raises(AttributeError):
        opened.other.rates.a = 1
    with pytest.raises(AttributeError):
        opened.trainer.other = 1


def without_unread_keys(cfg: DictConfig, *overridden: str) -> DictConfig:
    return rules.without_unread_keys(
        cfg,
        known=["init"],
        overridden=overridden,
        experiment_readers={"d": ["init.d"], "width": ["model.hidden", "model.width"]},
        hint=lambda name: f"; no hint for {name}",
    )


def test_unread_keys_of_the_experiment_are_removed() -> None:
    read = config(init={"d": "${d}"}, d=1)
    assert without_unread_keys(read) is read
    unread = config(init={"x": 3}, d=1, width=5)
    assert without_unread_keys(unread) == {"init": {"x": 3}}
    assert "d" in unread  # the argument is unchanged
    assert OmegaConf.is_struct(without_unread_keys(unread))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("d", "d: unused key; the experiment reads it only in init.d, which is overridden"),
        (
            "width",
            "width: unused key; the experiment reads it only in model.hidden and model.width, which is overridden",
        ),
        ("b", "b: unused key; no value in this config reads it; no hint for b"),
    ],
)
def test_overridden_key_that_nothing_reads_is_an_error(name: str, line: str) -> None:
    with pytest.raises(UsageError) as raised:
        without_unread_keys(OmegaConf.create({"init": {"x": 3}, name: 1}), name)
    assert str(raised.value) == line


def test_selected_entry_that_does_not_exist_is_an_error() -> None:
    cfg = config(size="ful", sizes={"quick": 1, "full": 2})
    rules.require_listed_entries(cfg, [("others", "other")])
    with pytest.raises(UsageError, match=r"^size=ful: unknown size \(did you mean full\?\); expected one of"):
        rules.require_listed_entries(cfg, [("sizes", "size")])
    cfg.size = "full"
    rules.require_listed_entries(cfg, [("sizes", "size")])


def test_override_that_the_study_does_not_read_is_an_error() -> None:
    def require(*overridden: str) -> None:
        rules.require_read_by_study(
            "cost", overridden, groups=["model", "optimizer", "seed"], options=["study.width"], read=["model", "seed"]
        )

    require("model", "model.hidden", "seed", "study", "study.width", "comparison.curves", "name", "output_dir")
    with pytest.raises(UsageError) as raised:
        require("optimizer.lr", "model.hidden", "optimizer")
    assert str(raised.value) == (
        "optimizer.lr, optimizer: not read by the study cost; expected one of study.width, model, seed"
    )
