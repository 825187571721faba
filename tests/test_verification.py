"""An intact checkpoint that is not the one that a run needs is refused in one line; nothing is changed then."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dlhw import load_run
from dlhw.errors import UsageError
from dlhw.storage import checkpoint
from dlhw.storage.checkpoint import State
from dlhw.storage.record import Record
from dlhw.train import run
from support.comparing import assert_same_run
from support.composing import compose

RUN = ["model.hidden=[8]", "model.batch_norm=true", "optimizer=adam", "trainer.epochs=2", "trainer.device=cpu",
       "trainer.checkpoint_seconds=0"]  # fmt: skip
Change = Callable[[State], Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two epochs: ``run`` and others with another seed, another optimizer and a wider net."""
    root = tmp_path_factory.mktemp("trained")
    for name, overrides in {
        "run": [],
        "seed": ["seed=1"],
        "sgd": ["optimizer=sgd"],
        "wide": ["model.hidden=[9]"],
    }.items():
        (root / name).mkdir()
        run(compose(*RUN, *overrides), Record(root / name))
    return root


@pytest.fixture
def unfinished(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run without its summary, so that it can be resumed."""
    shutil.copytree(trained / "run", tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "previous.pt").unlink()
    return tmp_path / "run"


def message_of_resuming(directory: Path) -> str:
    """Return the error of resuming. Assert that it is one line and that no file but the log has changed."""
    before = (directory / "metrics.csv").read_bytes()
    with pytest.raises(UsageError) as raised:
        run(compose(f"resume={directory}"), Record(directory))
    assert (directory / "metrics.csv").read_bytes() == before
    assert "\n" not in str(raised.value)
    return str(raised.value)


def edit(path: Path, change: Change) -> None:
    state = checkpoint.load(path)
    change(state)
    checkpoint.save(path, state)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ("seed", "seed: 1 instead of 0"),
        ("wide", "model.hidden: [9] instead of [8]"),
        ("sgd", "optimizer._target_: torch.optim.SGD instead of torch.optim.Adam, "),
    ],
)
@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_checkpoint_of_another_run_is_refused_with_the_differences(
    trained: Path, unfinished: Path, other: str, difference: str, name: str
) -> None:
    shutil.copy(trained / other / name, unfinished / name)
    message = message_of_resuming(unfinished)
    assert message.startswith(f"{unfinished / name}: a checkpoint of another run ({difference}")
    assert "; restore it, or " in message
    with pytest.raises(UsageError, match="a checkpoint of another run"):
        load_run(unfinished).model("best" if name == "best.pt" else "last")


def test_more_epochs_and_another_place_do_not_make_another_run(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "run", tmp_path / "moved")
    run(compose(f"resume={tmp_path / 'moved'}", "trainer.epochs=3"), Record(tmp_path / "moved"))
    (tmp_path / "long").mkdir()
    run(compose(*RUN, "trainer.epochs=3", "output_dir=elsewhere"), Record(tmp_path / "long"))
    assert_same_run(tmp_path / "moved", tmp_path / "long")


def test_best_and_last_are_not_mixed_up(unfinished: Path) -> None:
    best, last = (unfinished / name for name in ("best.pt", "last.pt"))
    content = best.read_bytes()
    shutil.copy(last, best)
    assert message_of_resuming(unfinished) == (
        f"{best}: not the best weights of a run (without epoch); restore it, or start a new run"
    )
    last.write_bytes(content)
    assert message_of_resuming(unfinished) == (
        f"{last}: not a checkpoint to resume from (without optimizer, rows); restore it, or delete it to start from "
        "the first epoch"
    )


def first_weight(state: State) -> str:
    return next(iter(state["model"]))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda state: state.pop("run"), "without run"),
        (lambda state: state.pop("data"), "without data"),
        (lambda state: state["model"].pop(first_weight(state)), "missing instead of float32 of 8x64"),
        (lambda state: state["model"].update({first_weight(state): torch.zeros(9, 64)}), "float32 of 9x64 instead of"),
        (lambda state: state["model"].update({first_weight(state): torch.zeros(8, 64).double()}), "float64 of 8x64"),
        (lambda state: state["model"].update({first_weight(state): 3}), "model must be a mapping of tensors"),
        (lambda state: state.update(shape=[10**6, 10**6]), "shape is [1000000, 1000000]"),
        (lambda state: state.update(shape=[63]), "weights of another model (for other inputs or outputs)"),
        (lambda state: state.update(outputs="ten"), "outputs is ten"),
        (lambda state: state.update(rows=3), "rows must be a list of mappings"),
        (lambda state: state["rows"][1].update(val_loss=float("nan")), "row 2 is not that of epoch 2"),
        (lambda state: state["rows"][1].update(val_loss="x"), "row 2 is not that of epoch 2"),
        (lambda state: state["rows"][1].update(epoch=7), "row 2 is not that of epoch 2"),
        (lambda state: state["rows"][1].pop("val_loss"), "row 2 has other columns than row 1"),
        (lambda state: [row.pop("val_error_percent") for row in state["rows"]], "rows do not have val_error_percent"),
        (lambda state: state.update(optimizer=[]), "optimizer must have state and param_groups"),
        (lambda state: state["optimizer"]["param_groups"].clear(), "another optimizer (other groups of parameters)"),
        (lambda state: state["optimizer"]["param_groups"][0].pop("betas"), "the state of another optimizer (betas)"),
        (lambda state: state["optimizer"]["param_groups"][0].update(eps="x"), "the state of another optimizer (eps)"),
        (lambda state: state["optimizer"]["state"][0].pop("exp_avg"), "Adam has step, exp_avg, exp_avg_sq"),
        (lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(3, 3)), "Adam has step, "),
        (lambda state: state["optimizer"]["state"].update({99: {}}), "(other numbers of parameters)"),
    ],
)  # fmt: skip
def test_forged_checkpoint_is_refused(unfinished: Path, change: Change, expected: str) -> None:
    edit(unfinished / "last.pt", change)
    message = message_of_resuming(unfinished)
    assert message.startswith(f"{unfinished / 'last.pt'}: ")
    assert expected in message


@pytest.mark.parametrize("epoch", [0, 3, "1", 10**12])
def test_best_weights_of_an_impossible_epoch_are_refused(unfinished: Path, epoch: object) -> None:
    edit(unfinished / "best.pt", lambda state: state.update(epoch=epoch))
    assert "best.pt" in message_of_resuming(unfinished)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_not_a_file_is_a_corrupt_checkpoint(unfinished: Path, trained: Path, kind: str) -> None:
    last = unfinished / "last.pt"
    last.unlink()
    {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](last)
    message = message_of_resuming(unfinished)
    assert message == (
        f"{last}: corrupt checkpoint (a {kind}, not a file); no other checkpoint to resume from; start a new run"
    )
    shutil.copy(trained / "run" / "last.pt", unfinished / "previous.pt")
    run(compose(f"resume={unfinished}"), Record(unfinished))
    assert Record(unfinished).finished


def test_checkpoint_of_another_version_is_used_with_a_warning(
    unfinished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(unfinished / "last.pt", lambda state: state["run"].update(dlhw="0.0.7"))
    with caplog.at_level(logging.WARNING):
        run(compose(f"resume={unfinished}"), Record(unfinished))
    assert any("written by dlhw 0.0.7, and this is dlhw" in record.getMessage() for record in caplog.records)


BY_NAME = ["Adagrad", "RMSprop", "Adadelta", "NAdam", "RAdam", "Adamax", "ASGD", "Rprop", "Adafactor"]


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw", "nesterov_by_hand", *BY_NAME])
def test_state_of_every_optimizer_can_be_resumed(tmp_path: Path, optimizer: str) -> None:
    choice = ["optimizer=torch", f"optimizer.name={optimizer}"] if optimizer in BY_NAME else [f"optimizer={optimizer}"]
    run(compose("model.hidden=[4]", "trainer.epochs=1", "trainer.device=cpu", *choice), Record(tmp_path))
    run(compose(f"resume={tmp_path}", "trainer.epochs=2"), Record(tmp_path))
    assert Record(tmp_path).finished
