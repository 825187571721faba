"""Reading runs and sweeps in Python: ``load_run`` and ``load_sweep``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from dlhw import load_run, load_sweep
from dlhw.cli import composition
from dlhw.cli.build import build
from dlhw.data.tensors import Dataset, Split
from dlhw.errors import UsageError
from dlhw.reading import Run
from dlhw.storage.record import Record
from dlhw.train import run as train
from support.run_directories import write_config

# With a learning rate 1000 times as large, the second epoch is worse than the first: best.pt and last.pt differ.
DIVERGING = ["scheduler=step", "scheduler.every_epochs=1", "scheduler.factor=1000", "trainer.epochs=2"]
SMALL = ["model.hidden=[16]", "model.batch_norm=true", "model.dropout=0.2", "trainer.device=cpu"]
CHECKPOINTS = ["trainer.checkpoint_seconds=1000"]  # only after the last epoch, even if training is slow


def train_digits(path: Path, overrides: list[str]) -> Path:
    """Train on digits in this process and return the run directory ``path``."""
    path.mkdir()
    composition.prepare()
    with initialize_config_dir(str(composition.conf_dir()), version_base="1.3"):
        cfg = compose(composition.CONFIG_NAME, overrides)
    train(cfg, Record(path))
    return path


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_digits(tmp_path_factory.mktemp("runs") / "run", [*SMALL, *DIVERGING, *CHECKPOINTS])


@pytest.fixture
def run(directory: Path) -> Run:
    return load_run(str(directory))


def load_data(run: Run) -> Dataset:
    """Return the dataset of a run."""
    data: Dataset = build(run.config, "dataset", data_dir=run.config.data_dir, seed=run.config.seed)
    return data.to("cpu", torch.float32)


def evaluate(model: nn.Module, data: Dataset, split: Split) -> tuple[float, float]:
    """Return the mean cross entropy and the error in percent."""
    with torch.no_grad():
        logits = model(data.normalize(split.x))
    wrong = (logits.argmax(1) != split.y).double().mean()
    return float(nn.functional.cross_entropy(logits.double(), split.y)), 100 * float(wrong)


def test_metrics_have_one_row_per_epoch(run: Run) -> None:
    assert run.metrics.index.tolist() == [1, 2]
    assert run.metrics.index.name == "epoch"
    assert run.metrics["lr"].tolist() == pytest.approx([0.1, 100.0])
    assert run.metrics.dtypes.map(pd.api.types.is_numeric_dtype).all()


def test_config_has_the_overrides_of_the_run(run: Run) -> None:
    assert run.config.model.hidden == [16]
    assert run.config.trainer.epochs == 2
    assert "hydra" not in run.config


def test_summary_equals_the_rows_of_the_metrics(run: Run) -> None:
    assert run.summary["status"] == "finished"
    for name in ("best", "final"):
        summary_row = dict(run.summary[name])
        row = run.metrics.loc[summary_row.pop("epoch")].to_dict()
        assert row == pytest.approx(summary_row, rel=1e-9)
    assert run.summary["best"]["epoch"] == run.metrics[run.summary["monitor"]].idxmin()
    assert run.summary["final"]["epoch"] == 2


def test_summary_has_the_number_of_parameters(run: Run) -> None:
    assert run.summary["parameters"] == (64 * 16 + 16) + 2 * 16 + (16 * 10 + 10)


@pytest.mark.parametrize("part", ["val", "test"])
@pytest.mark.parametrize(("weights", "epoch"), [("best", "best"), ("last", "final")])
def test_weights_reproduce_the_error_in_the_summary(run: Run, weights: str, epoch: str, part: str) -> None:
    data = load_data(run)
    loss, error = evaluate(run.model(weights), data, getattr(data, part))
    assert error == run.summary[epoch][f"{part}_error_percent"]
    assert loss == pytest.approx(run.summary[epoch][f"{part}_loss"], rel=1e-5)


def test_best_and_last_weights_differ(run: Run) -> None:
    # the test above needs this to tell them apart
    assert run.summary["best"]["epoch"] == 1
    assert run.summary["best"]["val_error_percent"] < run.summary["final"]["val_error_percent"]


def test_model_is_a_new_copy_in_evaluation_mode(run: Run) -> None:
    one, other = run.model(), run.model()
    assert not any(layer.training for layer in one.modules())
    with torch.no_grad():
        next(one.parameters()).zero_()
    assert next(other.parameters()).any()


def test_model_has_the_precision_of_the_run(tmp_path: Path) -> None:
    path = train_digits(tmp_path / "run", ["model.hidden=[]", "trainer.epochs=1", "trainer.precision=fp64", *SMALL[3:]])
    assert {value.dtype for value in load_run(path).model().parameters()} == {torch.float64}


def test_run_directory_has_all_files_and_no_leftovers(directory: Path) -> None:
    expected = ["best.pt", "config.yaml", "curves.png", "last.pt", "metrics.csv", "summary.json", "timing.csv"]
    names = sorted(file.name for file in directory.iterdir())
    assert set(names) >= set(expected)
    assert "previous.pt" not in names
    assert not any(name.endswith(".partial") for name in names)
    assert json.loads((directory / "summary.json").read_text())["data"]["name"] == "digits"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("previous", "weights=previous: invalid; expected one of best, last"),
        ("lats", "weights=lats: invalid (did you mean last?); expected one of best, last"),
        (None, "weights=None: invalid; expected one of best, last"),
    ],
)
@pytest.mark.parametrize("method", ["checkpoint", "model"])
def test_unknown_weights_give_a_one_line_error(run: Run, method: str, weights: Any, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        getattr(run, method)(weights)
    assert str(raised.value) == message


@pytest.mark.parametrize("read", [load_run, load_sweep])
@pytest.mark.parametrize("path", [None, 3, "", b"x"])
def test_what_is_not_a_path_is_an_error(read: Any, path: Any) -> None:
    with pytest.raises(UsageError, match=r"^.*: must be a path$"):
        read(path)


def test_repr_has_path_and_status(run: Run, directory: Path) -> None:
    assert repr(run) == f"Run({str(directory)!r}, status=finished)"


def test_unfinished_run_can_be_read(directory: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "metrics.csv"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    run = load_run(tmp_path)
    assert run.summary == {}
    assert len(run.metrics) == 2
    assert repr(run) == f"Run({str(tmp_path)!r}, status=unfinished)"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (".", "not a run directory (it has no config.yaml)"),
        ("nowhere", "no such directory; expected the directory of a run"),
        ("file", "not a directory; expected the directory of a run"),
    ],
)
def test_path_that_is_not_a_run_is_an_error(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError) as raised:
        load_run(tmp_path / name)
    assert str(raised.value) == f"{tmp_path / name}: {reason}"


def test_error_for_a_missing_file_has_the_reason_of_the_failed_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "summary.json").write_text('{"status": "failed", "reason": "TrainingFailed: loss nan"}')
    run = load_run(tmp_path)
    for name, read in (
        ("metrics.csv", lambda: run.metrics),
        ("best.pt", run.model),
        ("last.pt", lambda: run.model("last")),
    ):
        with pytest.raises(UsageError) as error:
            read()
        assert str(error.value) == f"{tmp_path}: has no {name} (failed: TrainingFailed: loss nan)"


def test_tilde_in_a_path_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_config(tmp_path)
    assert load_run("~").config.seed == 0


def test_load_sweep_returns_a_numeric_table_by_job(tmp_path: Path) -> None:
    text = "job,status,reason,b,best_val_error_percent\nb=0,finished,,0,2.5\nb=1,failed,no,1,\n"
    (tmp_path / "sweep.csv").write_text(text)
    table = load_sweep(tmp_path).jobs
    assert table.index.tolist() == ["b=0", "b=1"]
    assert table["b"].tolist() == [0, 1]
    assert table.loc["b=0", "best_val_error_percent"] == 2.5
    with pytest.raises(UsageError, match=r"none: no such directory; expected the directory of a sweep$"):
        load_sweep(tmp_path / "none")
