"""Fine-tuning: which parameters are trained, frozen layers, learning rates by pattern."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dlhw
from dlhw import train as program
from dlhw.cli import assembly
from dlhw.errors import UsageError
from dlhw.models.convolutional import cnn
from dlhw.models.dense import mlp
from dlhw.models.dropout import Dropout
from dlhw.storage import checkpoint
from dlhw.storage.record import Record
from dlhw.training.finetuning import freeze, frozen_modules, head, parameter_groups
from dlhw.training.variants import Ensemble, NotVectorizable, Single
from support.composing import compose

SMALL = ("model=cnn", "model.channels=[3,4]", "model.kernel=3", "trainer.device=cpu", "trainer.precision=fp64",
         "trainer.batch_size=300", "trainer.epochs=2", "trainer.frozen_once=false")  # fmt: skip


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the figures and the summary at the end of a run, to save time."""
    monkeypatch.setattr("dlhw.cli.lifecycle.finish", lambda *parts: None)


def small_cnn() -> nn.Sequential:
    return cnn((1, 8, 8), 10, channels=[3, 4], kernel=3, hidden=[5], activation="ReLU", dropout=0.5, batch_norm=True)


def trained_parameters(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def rows_of(directory: Path) -> list[dict[str, float]]:
    with (directory / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def train(directory: Path, *overrides: str) -> list[dict[str, float]]:
    program.run(compose(*SMALL, *overrides), Record(directory))
    return rows_of(directory)


@pytest.mark.parametrize(
    ("trains", "expected"),
    [
        ("head", {"12.weight", "12.bias"}),
        (["9.*"], {"9.weight", "9.bias"}),
        (["4.*", "12.bias"], {"4.weight", "4.bias", "12.bias"}),
        (["*.bias"], {f"{layer}.bias" for layer in (0, 1, 4, 5, 9, 12)}),
    ],
)
def test_only_the_chosen_parameters_are_trained(trains: Any, expected: set[str]) -> None:
    model = small_cnn()
    freeze(model, trains)
    assert trained_parameters(model) == expected


def test_all_trains_every_parameter() -> None:
    model = small_cnn()
    freeze(model, "all")
    assert trained_parameters(model) == {name for name, _ in model.named_parameters()}


def test_the_head_is_the_last_layer_with_weights() -> None:
    assert head(small_cnn()) == "12"
    assert head(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1))) == "0"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["trainer.trains=[fc.*]"],
            "trainer.trains: fc.* matches none of the 6 parameters (0.weight ... 7.bias)",
        ),
        (
            ["trainer.trains=[]"],
            "trainer.trains=[]: no parameter would be trained; expected all, head or patterns of parameter names",
        ),
        (
            ["trainer.rates={fc.*: 0.1}"],
            "trainer.rates: fc.* matches none of the 6 parameters (0.weight ... 7.bias)",
        ),
        (
            ["trainer.trains=head", "trainer.rates={0.*: 0.1}"],
            "trainer.rates: 0.* matches only parameters that are frozen or have a rate already",
        ),
        (
            ["trainer.rates={7.*: 0.1, 7.bias: 0.5}"],
            "trainer.rates: 7.bias matches only parameters that are frozen or have a rate already",
        ),
        (["trainer.trains=some"], "trainer.trains=some: must be 'all' or 'head' or a list"),
    ],
)
def test_invalid_patterns_are_an_error(overrides: Sequence[str], message: str) -> None:
    cfg = compose(*SMALL, *overrides)
    with pytest.raises(UsageError) as raised:
        assembly.assemble(cfg)
    assert str(raised.value) == message


def test_rates_without_a_learning_rate_are_an_error() -> None:
    with pytest.raises(UsageError, match=r"^trainer\.rates: .* factors on optimizer\.lr, which is missing$"):
        parameter_groups(small_cnn(), lr=None, rates={"0.*": 0.1})


def test_frozen_modules_are_the_outermost_ones() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), Dropout(0.5)), Dropout(0.5), nn.Linear(2, 2)
    )
    freeze(model, "all")
    assert frozen_modules(model) == []
    freeze(model, "head")
    assert frozen_modules(model) == [model[0]]
    freeze(model, ["0.0.*"])
    assert frozen_modules(model) == [model[0][1], model[2]]  # type: ignore[index]


def single_variant(model: nn.Module) -> Single:
    groups = parameter_groups(model, lr=0.1, rates={})
    return Single(model, torch.optim.SGD(groups, lr=0.1), lambda epoch: 1.0)


def test_dropout_is_active_except_in_a_frozen_block() -> None:
    active, frozen = Dropout(0.5), Dropout(0.5)
    model = nn.Sequential(nn.Sequential(nn.Linear(9, 9), frozen), active, nn.Linear(9, 2))
    freeze(model, "head")
    single_variant(model).train()
    x = torch.ones(4, 9)
    assert torch.equal(frozen(x), x)
    assert (active(x) == 0).any()
    assert model.training


def test_frozen_parameters_and_statistics_do_not_change_and_the_others_do(tmp_path: Path) -> None:
    train(tmp_path, "model.batch_norm=true", "trainer.trains=[4.*,5.*]", "regularization.l2=0.01")
    after = checkpoint.load(tmp_path / "last.pt")["model"]
    before = assembly.assemble(compose(*SMALL, "model.batch_norm=true")).model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    statistics = {"5.running_mean", "5.running_var", "5.num_batches_tracked"}
    assert {"0.weight", "1.weight", "1.running_mean", "1.num_batches_tracked"} <= before.keys() - changed
    assert changed == {"4.weight", "4.bias", "5.weight", "5.bias"} | statistics


def test_weight_decay_of_the_optimizer_does_not_change_frozen_parameters(tmp_path: Path) -> None:
    train(tmp_path, "trainer.trains=head", "optimizer=adamw", "optimizer.weight_decay=0.5")
    after = checkpoint.load(tmp_path / "last.pt")["model"]
    before = assembly.assemble(compose(*SMALL)).model.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"7.weight", "7.bias"}


def test_penalties_are_zero_if_only_biases_are_trained(tmp_path: Path) -> None:
    row = train(tmp_path, "trainer.trains=['*.bias']", "regularization.l2=0.1", "regularization.l1=0.1")[-1]
    assert row["weight_norm"] == row["near_zero_percent"] == row["train_penalty"] == 0
    assert row["train_loss"] == row["train_objective"]


def test_penalty_and_norm_are_those_of_the_trained_weights(tmp_path: Path) -> None:
    (row,) = train(tmp_path, "trainer.trains=head", "regularization.l2=0.5", "optimizer.lr=0", "trainer.epochs=1")
    weight = checkpoint.load(tmp_path / "last.pt")["model"]["7.weight"]
    assert row["weight_norm"] == pytest.approx(float(weight.norm()), rel=1e-9)
    assert row["train_penalty"] == pytest.approx(0.5 * float(weight.square().sum()), rel=1e-9)


def test_the_layer_probe_has_no_gradients_of_frozen_layers(tmp_path: Path) -> None:
    for once in ("true", "false"):
        directory = tmp_path / once
        directory.mkdir()
        train(directory, "trainer.trains=[3.*]", "probe=layers", f"trainer.frozen_once={once}", "trainer.epochs=1")
    with (tmp_path / "false" / "probes" / "epoch_0001.csv").open() as file:
        whole = list(csv.DictReader(file))
    with (tmp_path / "true" / "probes" / "epoch_0001.csv").open() as file:
        rest = list(csv.DictReader(file))
    assert [row["name"] for row in whole] == ["0", "3", "7"]
    assert [row["name"] for row in rest] == ["3", "7"]
    assert [row["weight_gradient_norm"] == "" for row in whole] == [True, False, True]
    assert [row["activation_gradient_norm"] == "" for row in whole] == [True, False, False]
    for one, other in zip(whole[1:], rest, strict=True):
        numbers = [[float(row[name] or 0) for name in row if name not in ("layer", "name")] for row in (one, other)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-8)


def test_the_first_matching_pattern_sets_the_factor() -> None:
    model = small_cnn()
    base, first, second = parameter_groups(model, lr=0.2, rates={"0.*": 0.5, "*.bias": 0.25})
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(parameter)] for parameter in first["params"]} == {"0.weight", "0.bias"}
    assert {names[id(parameter)] for parameter in second["params"]} == {f"{i}.bias" for i in (1, 4, 5, 9, 12)}
    assert {names[id(parameter)] for parameter in base["params"]} == {f"{i}.weight" for i in (1, 4, 5, 9, 12)}
    assert ("lr" in base, first["lr"], second["lr"]) == (False, 0.1, 0.05)


def test_a_factor_of_zero_freezes_and_schedules_act_on_every_group(tmp_path: Path) -> None:
    cfg = compose(*SMALL, "scheduler=step", "trainer.rates={0.*: 0.5, 7.bias: 0}", "optimizer.lr=0.2")
    parts = assembly.assemble(cfg)
    single = Single(parts.trained, parts.optimizer, lambda epoch: 0.5**epoch)
    single.set_learning_rates(2.0)
    assert [group["lr"] for group in parts.optimizer.param_groups] == pytest.approx([0.05, 0.025, 0])
    assert single.learning_rate(0) == pytest.approx(0.05)
    rows = train(tmp_path, "trainer.rates={0.*: 0.5, 7.bias: 0}", "optimizer.lr=0.2")
    assert [row["lr"] for row in rows] == [0.2, 0.2]
    after, before = checkpoint.load(tmp_path / "last.pt")["model"], parts.model.state_dict()
    assert torch.equal(after["7.bias"], before["7.bias"])
    assert not torch.equal(after["7.weight"], before["7.weight"])


def test_a_step_of_sgd_is_proportional_to_the_factor(tmp_path: Path) -> None:
    weights = []
    for factor in (1.0, 0.125):
        directory = tmp_path / str(factor)
        directory.mkdir()
        train(directory, f"trainer.rates={{0.*: {factor}}}", "trainer.steps_per_epoch=1", "trainer.epochs=1")
        weights.append(checkpoint.load(directory / "last.pt")["model"]["0.weight"])
    before = assembly.assemble(compose(*SMALL)).model.state_dict()["0.weight"]
    torch.testing.assert_close(weights[1] - before, 0.125 * (weights[0] - before), rtol=1e-9, atol=1e-15)


def test_a_partly_frozen_model_is_not_vectorizable() -> None:
    models = [mlp((4,), 2, hidden=[3], activation="ReLU", dropout=0.0, batch_norm=False) for _ in range(2)]
    for model in models:
        freeze(model, "head")
    optimizers = [torch.optim.SGD(parameter_groups(model, lr=0.1, rates={}), lr=0.1) for model in models]
    with pytest.raises(NotVectorizable, match=r"^part of the model is frozen$"):
        Ensemble(models, optimizers, [lambda epoch: 1.0] * 2)


def test_the_head_of_a_by_hand_model_is_trained_as_in_torch(tmp_path: Path) -> None:
    by_hand = ("model=cnn_by_hand", "model.channels=[3,4]", "model.kernel=3", "trainer.trains=head")
    common = [override for override in SMALL if not override.startswith("model")]
    runs = []
    for name, model in (("by_hand", by_hand), ("torch", ("model=cnn", *by_hand[1:]))):
        (tmp_path / name).mkdir()
        program.run(compose(*common, *model, "trainer.frozen_once=true"), Record(tmp_path / name))
        runs.append(rows_of(tmp_path / name))
    for one, other in zip(*runs, strict=True):
        assert one == pytest.approx(other, rel=1e-8)


def test_a_run_from_the_weights_of_another_one_changes_its_head_only(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    train(tmp_path / "first", "trainer.precision=fp32")
    from_first = ("init=from_run", f"init.run={tmp_path / 'first'}", "trainer.precision=fp32")
    train(tmp_path / "second", *from_first, "trainer.trains=head", "trainer.frozen_once=true", "trainer.epochs=1")
    one, other = (dlhw.load_run(tmp_path / name).model().state_dict() for name in ("first", "second"))
    assert {name for name in one if not torch.equal(one[name], other[name])} == {"7.weight", "7.bias"}
