"""Composing a config: the precedence of group options, experiments and the command line."""

from __future__ import annotations

import pytest

from dlhw.cli import program
from dlhw.errors import UsageError
from dlhw.storage.identity import without_hydra
from support.composing import compose_with_hydra


def test_experiment_overrides_group_defaults() -> None:
    assert compose_with_hydra().trainer.epochs == 20
    cfg = compose_with_hydra("experiment=mnist_mlp")
    assert cfg.trainer.epochs == 500
    assert cfg.hydra.runtime.choices.dataset == "mnist"
    assert cfg.hydra.runtime.choices.optimizer == "momentum"
    assert (cfg.optimizer.lr, cfg.optimizer.momentum) == (0.1, 0.9)


def test_command_line_overrides_the_experiment_in_any_order() -> None:
    for overrides in (
        ("experiment=mnist_mlp", "trainer.epochs=3", "optimizer.lr=0.5", "dataset=digits"),
        ("trainer.epochs=3", "optimizer.lr=0.5", "dataset=digits", "experiment=mnist_mlp"),
    ):
        cfg = compose_with_hydra(*overrides)
        assert (cfg.trainer.epochs, cfg.optimizer.lr) == (3, 0.5)
        assert cfg.dataset._target_ == "dlhw.data.digits.digits"


def test_experiment_inherits_from_its_parent_and_has_an_alias_for_its_hyperparameter() -> None:
    parent, child = compose_with_hydra("experiment=mnist_mlp"), compose_with_hydra("experiment=flooding", "b=0.02")
    assert child.regularization.flood == 0.02
    assert compose_with_hydra("experiment=flooding").regularization.flood == 0.05
    for group in ("dataset", "model", "init", "loss", "optimizer", "scheduler", "trainer"):
        assert child[group] == parent[group]


def test_group_chosen_on_the_command_line_discards_the_values_of_the_experiment() -> None:
    swapped = compose_with_hydra("experiment=mnist_mlp", "optimizer=adam")
    assert swapped.optimizer == compose_with_hydra("optimizer=adam").optimizer
    assert swapped.optimizer.lr == 0.001
    assert swapped.model.hidden == [500]  # the values of other groups stay
    assert swapped.trainer.epochs == 500
    assert compose_with_hydra("experiment=mnist_mlp", "optimizer=adam", "optimizer.lr=0.3").optimizer.lr == 0.3


def test_group_chosen_on_the_command_line_discards_inherited_values() -> None:
    swapped = compose_with_hydra("experiment=flooding", "model=cnn")
    assert swapped.model == compose_with_hydra("model=cnn").model
    assert swapped.regularization.flood == 0.05
    assert compose_with_hydra("experiment=flooding", "regularization=none").regularization.flood == 0.0


def test_choosing_the_option_of_the_experiment_changes_nothing() -> None:
    plain = without_hydra(compose_with_hydra("experiment=mnist_mlp"))
    for option in ("model=mlp", "optimizer=momentum", "dataset=mnist", "trainer=default", "scheduler=none"):
        assert without_hydra(compose_with_hydra("experiment=mnist_mlp", option)) == plain


@pytest.mark.parametrize("overrides", [(), ("experiment=flooding", "b=0.2", "model=cnn")])
def test_program_compose_returns_the_config_of_the_command_line(overrides: tuple[str, ...]) -> None:
    assert program.compose(*overrides) == without_hydra(compose_with_hydra(*overrides))


def test_program_compose_raises_the_error_of_the_command_line() -> None:
    with pytest.raises(UsageError, match=r"^lr: unknown key; did you mean optimizer\.lr\?$"):
        program.compose("lr=0.1")
