"""The interface for Python: train, sweep, list, plot, predict and evaluate without the command line."""

from __future__ import annotations

import logging
import shlex
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dlhw
from dlhw import inprocess
from dlhw.errors import TrainingFailed, UsageError
from dlhw.reading import Run, Sweep
from support.commands import RUN_FILES, files

SMALL = ("dataset=digits model.hidden=[8] trainer.device=cpu",)
TABLE = "size,kind,price\n" + "\n".join(f"{i % 7},{'ab'[i % 2]},{i % 7 * 10 + i % 2}" for i in range(60))


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("python")


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trained = dlhw.run(*SMALL, "experiment=flooding", b=0.02, **{"trainer.epochs": 3})
    assert isinstance(trained, Run)
    return trained


@pytest.fixture(scope="module")
def sweep(folder: Path) -> Sweep:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return dlhw.sweep(*SMALL, "experiment=flooding trainer.epochs=2", b=[0, 0.5], seed=range(2))


def test_run_equals_the_command(run: Run) -> None:
    assert (run.config.regularization.flood, run.config.trainer.epochs) == (0.02, 3)
    assert files(run.path) == RUN_FILES
    assert len(run.rows) == 3
    assert run.path.parent.name == "flooding"
    overrides = "dataset=digits model.hidden=[8] trainer.device=cpu experiment=flooding b=0.02 trainer.epochs=3"
    assert shlex.split(run.summary["command"]) == ["python", "-m", "dlhw.train", *overrides.split()]


def test_invalid_override_is_an_exception_and_leaves_no_directory(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(UsageError, match=r"^model.hidden=\[-1\]: "):
        dlhw.run("dataset=digits", **{"model.hidden": [-1]})
    with pytest.raises(UsageError, match=r"^experiment=floding: unknown experiment \(did you mean flooding\?\)"):
        dlhw.run("experiment=floding")
    assert sorted(folder.rglob("*")) == before


def test_failed_run_raises_its_error(folder: Path) -> None:
    with pytest.raises(TrainingFailed, match=r"^loss (nan|inf)"):
        dlhw.run(*SMALL, "optimizer.lr=1e30 name=diverged")
    assert dlhw.load_run("outputs/diverged").summary["status"] == "failed"


def test_process_is_as_before(run: Run) -> None:
    handlers, level, threads = list(logging.getLogger().handlers), logging.getLogger().level, torch.get_num_threads()
    torch.manual_seed(5)
    number = torch.rand(1)
    torch.manual_seed(5)
    signals, argv = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], list(sys.argv)
    dlhw.run(*SMALL, "trainer.epochs=1 trainer.threads=2")
    assert (logging.getLogger().handlers, sys.argv) == (handlers, argv)
    dlhw.model("model=cnn", shape=(1, 8, 8), outputs=2)
    assert torch.equal(torch.rand(1), number)
    assert (logging.getLogger().level, torch.get_num_threads()) == (level, threads)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == signals


def test_run_is_resumed(run: Run, folder: Path) -> None:
    first = dlhw.run(*SMALL, "trainer.epochs=1 name=resumed")
    again = dlhw.run(f"resume={first.path} trainer.epochs=2")
    assert again.path == first.path
    assert [row["epoch"] for row in again.rows] == [1, 2]


def test_predictions_and_evaluation_are_those_of_training(run: Run) -> None:
    x, y = run.data("test")
    assert tuple(x.shape) == (382, 1, 8, 8)
    predicted = run.predict(x)
    error = run.summary["best"]["test_error_percent"]
    assert 100 * (predicted != y).mean() == pytest.approx(error)
    evaluation = run.evaluate()
    assert 100 * (1 - evaluation.accuracy) == pytest.approx(error)
    assert evaluation.confusion.to_numpy().sum() == len(evaluation) == 382
    assert evaluation.interval[0] < evaluation.accuracy < evaluation.interval[1]
    shares = run.predict_proba(x[:5].numpy())
    assert shares.sum(1) == pytest.approx(np.ones(5))
    assert [run.dataset.classes[index] for index in shares.argmax(1)] == predicted[:5].tolist()
    assert run.evaluate(x[:10], y[:10]).confusion.to_numpy().trace() == (predicted[:10] == y[:10]).sum()


def test_mistakes_in_samples_and_labels_are_one_line(run: Run) -> None:
    with pytest.raises(UsageError, match=r"^samples of shape \(3, 64\); expected \(N, 1, 8, 8\), as in training$"):
        run.predict(np.zeros((3, 64)))
    with pytest.raises(UsageError, match=r"^1 samples, but 2 labels$"):
        run.evaluate(np.zeros((1, 1, 8, 8)), ["0", "1"])
    with pytest.raises(UsageError, match=r"^label ten: not a class of this run; expected one of 0, 1, 2"):
        run.evaluate(np.zeros((1, 1, 8, 8)), ["ten"])
    with pytest.raises(UsageError, match=r"^part=tset: not in the dataset \(did you mean test\?\)"):
        run.data("tset")


def test_plot_draws_the_rows(run: Run) -> None:
    (loss, error) = run.plot().axes
    assert (loss.get_ylabel(), error.get_ylabel()) == ("loss (cross entropy)", "error (%)")
    validation = next(line for line in error.get_lines() if line.get_label() == "validation")
    assert validation.get_ydata().tolist() == [row["val_error_percent"] for row in run.rows]


def test_card_has_the_results(run: Run) -> None:
    card = run._repr_html_()
    assert f"validation error {run.summary['best']['val_error_percent']:.2f}" in card
    assert str(run.path) in card


def test_sweep_has_jobs_settings_and_the_best(sweep: Sweep) -> None:
    assert sweep.jobs["b"].tolist() == [0, 0, 0.5, 0.5]
    assert sweep.settings["n"].tolist() == [2, 2]
    best = sweep.best
    assert best is not None
    assert float(best["settings"]["b"]) == sweep.settings["b"][0]
    assert [run.config.seed for run in sweep.runs] == [0, 1, 0, 1]


def test_sweep_is_drawn_against_a_key(sweep: Sweep) -> None:
    validation, _ = sweep.plot("b").axes
    assert validation.get_xlabel() == "b"
    with pytest.raises(UsageError, match=r"^c: does not vary in this sweep; expected one of b$"):
        sweep.plot("c")
    assert sweep.plot().axes


def test_runs_is_a_table_of_runs_and_sweeps(run: Run, sweep: Sweep) -> None:
    table = dlhw.runs().set_index("path")
    flooding = run.path.relative_to(Path.cwd()).as_posix()
    assert table.loc[flooding, "validation"] == run.summary["best"]["val_error_percent"]
    assert table["kind"].value_counts()["sweep"] == 1
    assert len(dlhw.runs(jobs=True)) == len(table) + 4
    with pytest.raises(UsageError, match=r"^nowhere: no such directory"):
        dlhw.runs("nowhere")


def test_last_is_the_newest_run(run: Run) -> None:
    newest = dlhw.run(*SMALL, "trainer.epochs=1")
    assert dlhw.load_run().path.resolve() == newest.path.resolve()
    assert dlhw.load_run("outputs/flooding").path.resolve() == run.path.resolve()


def test_model_is_that_of_a_run(run: Run) -> None:
    model = dlhw.model("experiment=flooding dataset=digits", **{"model.hidden": [8]})
    assert [tuple(p.shape) for p in model.parameters()] == [tuple(p.shape) for p in run.model().parameters()]
    given = dlhw.model("model=cnn dataset=mnist", shape=(1, 28, 28), outputs=10)  # does not load the dataset
    assert given(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_rows_of_a_table_are_predicted_as_in_training(folder: Path) -> None:
    (folder / "t.csv").write_text(TABLE)
    lines = ("dataset=table dataset.path=t.csv dataset.target=price trainer.epochs=3 optimizer.lr=0.01",)
    run = dlhw.run(*lines, "dataset.task=regression loss=mse trainer.monitor=val_mse")
    x, y = run.data("test")
    assert list(x.columns) == ["size", "kind"]
    assert ((run.predict(x) - y) ** 2).mean() == pytest.approx(run.summary["best"]["test_mse"], rel=1e-5)
    assert run.evaluate().numbers["mse"] == pytest.approx(run.summary["best"]["test_mse"], rel=1e-5)
    with pytest.raises(UsageError, match=r"^this run predicts numbers"):
        run.predict_proba(x)


def test_two_classes_with_one_output(folder: Path) -> None:
    run = dlhw.run("experiment=playground report=none probe=none trainer.epochs=2 dataset.points=80")
    assert 100 * (1 - run.evaluate().accuracy) == pytest.approx(run.summary["best"]["test_error_percent"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (0.02, "0.02"),
        (1e-5, "1e-05"),
        ("adam", "adam"),
        ("a b's", "'a b\\'s'"),
        ([1, [2, "x"]], "[1,[2,x]]"),
        ({"a": 1}, "{a:1}"),
        (Path("x/y"), "'x/y'"),
    ],
)
def test_values_are_written_as_on_the_command_line(value: object, text: str) -> None:
    assert inprocess.as_written(value) == text


def test_objects_are_not_values() -> None:
    with pytest.raises(UsageError, match=r"^a object; expected a number"):
        inprocess.as_written(object())


def test_lists_are_the_values_of_a_sweep() -> None:
    lines = inprocess.overrides(("a=1 b=2",), {"c": [0, 1], "d": [[8], [16]]}, sweep=True)
    assert list(lines) == ["a=1", "b=2", "c=0,1", "d=[8],[16]"]


def test_windows_paths_keep_their_backslashes() -> None:
    lines = inprocess.overrides((r"resume=C:\runs\a 'b=[1, 2]' name=x#y",), {})
    assert list(lines) == [r"resume=C:\runs\a", "b=[1, 2]", "name=x#y"]


@pytest.mark.parametrize("resume", ["last", "outputs/again", "keyword"])
def test_resumed_run_is_found_however_it_is_named(resume: str, folder: Path) -> None:
    first = dlhw.run(*SMALL, "trainer.epochs=1 name=again")
    (first.path / "summary.json").unlink()
    options = {"resume": str(first.path)} if resume == "keyword" else {"resume": resume}
    again = dlhw.run(**options, **{"trainer.epochs": 2})
    assert (again.path, len(again.rows)) == (first.path, 2)


def test_run_in_an_existing_empty_directory(folder: Path) -> None:
    (folder / "empty").mkdir()
    assert dlhw.run(*SMALL, "trainer.epochs=1 hydra.run.dir=empty").path == folder / "empty"


def test_sweep_with_a_failed_job_has_the_others(folder: Path) -> None:
    sweep = dlhw.sweep(*SMALL, "trainer.epochs=1", **{"optimizer.lr": [0.1, 1e30]})
    assert sweep.jobs["status"].tolist() == ["finished", "failed"]


def test_what_trains_nothing_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"^--cfg job: trains nothing; expected overrides, key=value$"):
        dlhw.run("--cfg job")


@pytest.mark.parametrize(
    ("lines", "values", "message"),
    [
        ((3,), {}, r"^3: a int; expected text, such as 'seed=1', or seed=1$"),
        ((["seed=1"],), {}, r"^\['seed=1'\]: a list; expected text"),
        (("name='x",), {}, r"^name='x: a quotation mark is not closed$"),
        ((), {"seed": {1, 2}}, r"^seed: a set; expected a number, text, list or mapping$"),
        ((), {"seed": []}, r"^seed: no values$"),
        ((), {"seed": range(0)}, r"^seed: no values$"),
    ],
)
def test_wrong_types_of_overrides_are_one_line(lines: tuple[Any, ...], values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dlhw.sweep(*lines, **values)


def test_numbers_of_numpy_are_values() -> None:
    values = {"seed": np.int64(3), "optimizer.lr": np.array([0.25, 0.5])}
    assert list(inprocess.overrides((), values, sweep=True)) == ["seed=3", "optimizer.lr=0.25,0.5"]
    assert list(inprocess.overrides((), values)) == ["seed=3", "optimizer.lr=[0.25,0.5]"]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (None, r"^samples are a NoneType; expected an array or tensor of numbers \(N, 1, 8, 8\)$"),
        ("cat.jpg", r"^samples are a str; expected an array"),
        (np.full((2, 1, 8, 8), np.nan), r"^sample 0, counted from 0, has a value that is missing or not finite$"),
    ],
)
def test_what_is_not_samples_is_one_line(run: Run, samples: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run.predict(samples)


def test_evaluation_needs_labels_and_no_part(run: Run) -> None:
    x, y = run.data("val")
    with pytest.raises(UsageError, match=r"^y: missing; expected labels$"):
        run.evaluate(x)
    with pytest.raises(UsageError, match=r"^part=val: invalid with x$"):
        run.evaluate(x, y, part="val")


def test_only_one_thread_at_a_time() -> None:
    refused: list[str] = []

    def other() -> None:
        try:
            dlhw.model("model=mlp", shape=(1,), outputs=2)
        except UsageError as error:
            refused.append(str(error))

    with inprocess.restored():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert refused == ["another thread of this process uses dlhw; start runs that train side by side as processes"]
    other()
    assert len(refused) == 1
