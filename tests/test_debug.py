"""``debug=true``: a run of a few batches in a folder of its own, with a check of the gradients."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from dlhw.cli.assembly import assemble
from dlhw.data.tensors import Split
from dlhw.errors import TrainingFailed
from dlhw.storage.identity import identity
from dlhw.storage.listing import entries, newest
from dlhw.training.debugging import check_gradients, shortened
from support.commands import RUN_FILES, SMALL, dlhw, files, only, summary
from support.composing import compose, error_message
from support.run_directories import write_config


def test_a_run_takes_four_steps_and_writes_all_files_into_the_debug_folder(tmp_path: Path) -> None:
    result = dlhw("debug=true", *SMALL, at=tmp_path)
    assert result.code == 0, result.err
    run = only(list(tmp_path.glob("outputs/debug/train/*")))
    assert files(run) == RUN_FILES
    assert pd.read_csv(run / "metrics.csv")["step"].tolist() == [2, 4]
    assert summary(run)["debug"] is True
    assert summary(run)["status"] == "finished"


def test_runs_in_the_debug_folder_are_listed_only_if_it_is_named(tmp_path: Path) -> None:
    for folder in ("outputs/debug/train/a", "outputs/train/b"):
        (tmp_path / folder).mkdir(parents=True)
        write_config(tmp_path / folder)
    assert [entry.path.name for entry in entries(tmp_path / "outputs")] == ["b"]
    assert [entry.path.name for entry in entries(tmp_path / "outputs" / "debug")] == ["a"]
    assert newest(tmp_path, "run") == tmp_path / "outputs" / "train" / "b"


def test_each_part_has_two_batches_and_the_config_keeps_its_epochs() -> None:
    cfg = compose("debug=true", "trainer.batch_size=16", "scheduler=cosine", "scheduler.warmup_epochs=5", *SMALL)
    parts = assemble(cfg)
    assert {name: len(part) for name, part in parts.trained_on.parts.items()} == {"train": 32, "val": 32, "test": 32}
    assert (parts.trainer.epochs, parts.trainer.evaluation_batch_size) == (2, 16)
    assert cfg.trainer.epochs == 20
    assert parts.schedule(2.5) == 0.5


def test_small_parts_and_few_epochs_stay() -> None:
    parts = assemble(compose(*SMALL, "trainer.batch_size=1000", "trainer.epochs=1"))
    trainer, data = shortened(parts.trainer, parts.data)
    assert trainer.epochs == 1
    assert torch.equal(data.train.x, parts.data.train.x)


def test_samples_that_are_sorted_by_class_keep_all_classes() -> None:
    parts = assemble(compose(*SMALL, "trainer.batch_size=10"))
    labels = parts.data.train.y
    part = Split(parts.data.train.pool_x, parts.data.train.pool_y, parts.data.train.all_rows()[0][labels.argsort()])
    _, data = shortened(parts.trainer, parts.data.with_parts({"train": part}))
    assert data.train.y.unique().tolist() == list(range(10))


class Unused(nn.Module):
    """A linear function of the input; ``unused`` does not matter, and ``masked`` has the gradient 0."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.masked, self.unused, self.frozen = (nn.Parameter(torch.ones(2)) for _ in range(4))
        self.frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = (self.used * x).sum() + (self.masked * 0).sum() + self.frozen.sum()
        return result


def test_parameters_that_do_not_train_are_named(caplog: pytest.LogCaptureFixture) -> None:
    model = Unused()
    model(torch.tensor([1.0, 0.0])).backward()
    with caplog.at_level(logging.WARNING, "dlhw"):
        check_gradients(model)
    assert caplog.messages == [
        "debug: the gradient of masked is zero, so it does not train",
        "debug: unused has no gradient: the loss does not depend on it",
    ]


def test_a_gradient_that_is_not_finite_fails() -> None:
    model = Unused()
    model(torch.tensor([1.0, float("inf")])).backward()
    with pytest.raises(TrainingFailed, match=r"^the gradient of used is not finite$"):
        check_gradients(model)


def test_a_network_of_zeros_is_reported(tmp_path: Path) -> None:
    result = dlhw("debug=true", "init=constant", "init.value=0", *SMALL, at=tmp_path)
    assert result.code == 0, result.err
    assert "debug: the gradient of 1.weight is zero, so it does not train" in result.lines


def test_a_grid_checks_every_job(tmp_path: Path) -> None:
    result = dlhw("-m", "debug=true", "seed=0,1", "hydra/launcher=vectorized", *SMALL, at=tmp_path)
    assert result.code == 0, result.err
    assert "2 jobs are trained one at a time: with debug=true, each job is checked by itself" in result.lines
    jobs = sorted(tmp_path.glob("outputs/debug/train/*/*/summary.json"))
    assert [summary(path.parent)["debug"] for path in jobs] == [True, True]
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["debug"]


def test_a_run_is_not_resumed_with_the_other_value(tmp_path: Path) -> None:
    assert dlhw("debug=true", *SMALL, "hydra.run.dir=short", at=tmp_path).code == 0
    assert dlhw("trainer.epochs=1", *SMALL, "hydra.run.dir=run", at=tmp_path).code == 0
    result = dlhw("resume=short", at=tmp_path)
    assert result.err == f"resume={tmp_path / 'short'}: a run with debug=true is not resumed; start it again\n"
    result = dlhw("resume=run", "debug=true", at=tmp_path)
    assert result.err.startswith("debug=true: invalid with resume, because a resumed run keeps its config; ")


def test_identity_has_debug_only_if_it_is_true() -> None:
    short, full = identity(compose("debug=true")), identity(compose())
    assert short is not None
    assert short == {**(full or {}), "debug": True}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["debug=3"], "debug=3: must be true or false"),
        (["name=debug"], "name=debug: the folder of runs with debug=true; expected another name"),
        (
            ["debug=true", "study=cost"],
            "debug=true: invalid for a study, whose own options set its size; expected debug=false",
        ),
    ],
)
def test_mistakes(overrides: list[str], message: str) -> None:
    assert error_message(*overrides) == message


def test_a_search_is_refused(tmp_path: Path) -> None:
    result = dlhw("-m", "debug=true", "hydra/sweeper=search", "optimizer.lr=interval(0.1,0.2)", *SMALL, at=tmp_path)
    assert result.code == 1
    assert result.err == "debug=true: invalid with hydra/sweeper=search; expected one run, or a grid\n"
    assert files(tmp_path) == set()
