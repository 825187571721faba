"""``dlhw evaluate``, and ``dlhw predict`` for tables: a finished run applied to labelled data and to new rows."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix

import dlhw
from dlhw import evaluate, predict
from dlhw.applying import Evaluation, Network
from dlhw.data.normalization import Normalization
from dlhw.errors import UsageError
from dlhw.evaluate import report
from dlhw.intervals import wilson
from dlhw.reading import Run
from dlhw.runtime.devices import Precision
from support.commands import files

ROWS = 90
FLOWERS = pd.DataFrame(
    {
        "width": [0.1 * (i % 3) + 0.01 * (i % 7) for i in range(ROWS)],
        "colour": [("red", "blue")[i % 2] for i in range(ROWS)],
        "kind": [("iris", "rose", "tulip")[i % 3] for i in range(ROWS)],
    }
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    FLOWERS.to_csv(folder / "flowers.csv", index=False)
    return folder


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    """A classifier of rows of a table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trained = dlhw.run(
            "dataset=table dataset.path=flowers.csv dataset.target=kind model.hidden=[8] optimizer=adam",
            **{"trainer.epochs": 20, "trainer.device": "cpu", "trainer.threads": 1},
        )
    assert isinstance(trained, Run)
    return trained


def test_test_part_by_default(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main([str(run.path), "--json"])
    content = json.loads(capsys.readouterr().out)
    assert 100 * (1 - content["accuracy"]) == pytest.approx(run.summary["best"]["test_error_percent"])
    assert content["n"] == sum(map(sum, content["confusion"])) == run.summary["data"]["test"]
    correct = round(content["accuracy"] * content["n"])
    assert (content["interval_low"], content["interval_high"]) == wilson(correct, content["n"], 0.95)


def test_other_part(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main([str(run.path), "--part", "train", "--json"])
    assert json.loads(capsys.readouterr().out)["n"] == run.summary["data"]["train"]


def test_other_data_uses_all_rows_and_writes_nothing(run: Run, folder: Path) -> None:
    """Also rows with one class only, of which no part could be stratified, and in another order."""
    roses = FLOWERS[FLOWERS["kind"] == "rose"].sample(frac=1, random_state=0)
    roses.to_csv(folder / "roses.csv", index=False)
    before = files(folder)
    result = evaluate.evaluate(run, ["dataset.path=roses.csv"])
    expected = (run.predict(roses[["width", "colour"]]) == "rose").mean()
    assert (len(result), result.accuracy) == (len(roses), pytest.approx(expected))
    assert files(folder) == before


def test_own_data_as_other_data_is_mentioned(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    result = evaluate.evaluate(run, ["dataset.path=flowers.csv"])
    assert len(result) == ROWS
    assert "these are the samples that the run was trained on" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.epochs=3"], r"^trainer.epochs=3: invalid here; expected dataset=NAME or dataset.KEY=VALUE$"),
        (["dataset.path=a.csv,b.csv"], r"^dataset.path=a.csv,b.csv: several values; expected one$"),
        (["nope"], r"^nope: invalid here; expected dataset=NAME or dataset.KEY=VALUE$"),
        (["dataset.path=["], r"^dataset.path=\[: "),
        (["dataset.path=nowhere.csv"], r"^dataset.path=nowhere.csv: "),
        (["dataset.paht=flowers.csv"], r"^dataset.paht: unknown option of dataset=table \(did you mean path\?\)"),
        (["dataset=digits"], r"^samples are a Tensor; this network was trained on a table"),
        (["dataset.path=weeds.csv"], r"^label weed: not a class of this run; expected one of iris, rose, tulip$"),
        (["dataset.path=narrow.csv"], r"^no column width; the network was trained with it$"),
    ],
)
def test_mistake_is_one_line(run: Run, folder: Path, overrides: list[str], message: str) -> None:
    FLOWERS.assign(kind=["weed", "iris"] * (ROWS // 2)).to_csv(folder / "weeds.csv", index=False)
    FLOWERS.drop(columns="width").to_csv(folder / "narrow.csv", index=False)
    with pytest.raises(UsageError, match=message) as raised:
        evaluate.evaluate(run, overrides)
    assert "\n" not in str(raised.value)


def test_a_part_of_other_data_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate.main([str(run.path), "dataset.path=flowers.csv", "--part", "val"])
    assert capsys.readouterr().err == "--part val: invalid with other data, of which all samples are used\n"


def test_pictures_of_another_folder_with_fewer_classes(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for part, counts in {"seen": {"cat": 10, "dog": 10, "owl": 10}, "new": {"dog": 3, "owl": 2}}.items():
        for name, count in counts.items():
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).save(
                    folder / part / name / f"{number}.png"
                )
    size = "dataset.resize=8 dataset.crop=8 dataset.mean=[0,0,0] dataset.std=[1,1,1]"
    run = dlhw.run(f"dataset=image_folder dataset.root=seen {size} model=mlp trainer.epochs=1 trainer.device=cpu")
    assert isinstance(run, Run)
    result = evaluate.evaluate(run, ["dataset.root=new"])
    assert result.confusion.sum(axis=1).to_dict() == {"cat": 0, "dog": 3, "owl": 2}


def test_confusion_matrix_equals_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(1)
    labels, predicted = generator.integers(0, 4, (2, 50))
    result = Evaluation(("a", "b", "c", "d"), labels, predicted)
    assert result.confusion.to_numpy().tolist() == confusion_matrix(labels, predicted).tolist()
    row = next(line for line in report(result).splitlines() if line.startswith("b "))
    of_class = labels == 1
    assert row.split()[-2] == f"{100 * (predicted[of_class] == 1).mean():.1f}"


def test_errors_of_a_regression() -> None:
    result = Evaluation((), np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 5.0]))
    assert result.numbers == pytest.approx({"n": 3, "mse": 4 / 3, "mae": 2 / 3, "r2": 1 - 4 / 2})
    assert report(result) == "3 samples: mean squared error 1.333, mean absolute error 0.6667, R^2 -1.0000"


def test_rows_of_new_tables_are_predicted(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the target, with a category that training did not have, and with a missing number."""
    new = pd.DataFrame({"colour": ["red", "green"], "width": [0.1, None]})
    new.to_csv(folder / "new.csv", index=False)
    predict.main([str(run.path), "new.csv", "new.csv", "--csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["table"], row["row"]) for row in rows] == [("new.csv", "1"), ("new.csv", "2")] * 2
    probabilities = run.predict_proba(new)
    assert [row["class"] for row in rows[:2]] == run.predict(new).tolist()
    assert [float(row["probability"]) for row in rows[:2]] == pytest.approx(probabilities.max(1).tolist())


def test_one_class_is_enough_to_evaluate_but_not_to_train(folder: Path) -> None:
    FLOWERS[FLOWERS["kind"] == "rose"].to_csv(folder / "one.csv", index=False)
    with pytest.raises(UsageError, match=r"^dataset=table: all labels are rose; expected at least two classes$"):
        dlhw.run("dataset=table dataset.path=one.csv dataset.target=kind")


def test_labels_may_be_a_column(run: Run) -> None:
    x, y = run.data("train")
    assert run.evaluate(x, y[:, None]).accuracy == run.evaluate(x, y).accuracy


def test_columns_of_numbers_are_not_broadcast(folder: Path) -> None:
    FLOWERS.assign(price=FLOWERS["width"] * 3)[["width", "price"]].to_csv(folder / "prices.csv", index=False)
    run = dlhw.run(
        "dataset=table dataset.path=prices.csv dataset.target=price dataset.task=regression loss=mse model.hidden=[4]",
        **{"trainer.monitor": "val_mse", "trainer.epochs": 1, "optimizer.lr": 0.01},
    )
    assert isinstance(run, Run)
    x, y = run.data("test")
    assert run.evaluate(x, y[:, None]).numbers == run.evaluate(x, y).numbers
    with pytest.raises(UsageError, match=r"^labels such as dear; expected numbers, as in training$"):
        run.evaluate(x, ["dear"] * len(y))


@pytest.mark.parametrize(
    ("classes", "labels", "indices"),
    [
        (("a", "b", "c"), [2, 0], [2, 0]),
        (("a", "b", "c"), ["c", "a"], [2, 0]),
        (("1", "2", "3"), [3, 1], [2, 0]),
        (("-1", "1"), [1, -1], [1, 0]),
        (("00", "01"), [1, 0], [1, 0]),
    ],
)
def test_whole_numbers_are_indices_unless_all_classes_are_numbers(
    classes: tuple[str, ...], labels: list[object], indices: list[int]
) -> None:
    assert network(classes).class_indices(np.array(labels)).tolist() == indices


def test_indices_are_not_taken_for_names() -> None:
    """Whatever labels the other samples have."""
    for labels in ([0, 1, 2], [0]):
        with pytest.raises(UsageError, match=r"^label 0: not a class of this run; expected one of 1, 2, 3$"):
            network(("1", "2", "3")).class_indices(np.array(labels))


def network(classes: tuple[str, ...]) -> Network:
    normalize = Normalization.identity(torch.device("cpu"), torch.float32)
    return Network(torch.nn.Identity(), (1,), classes, None, normalize, Precision("fp32", torch.device("cpu")))


def test_validation_part_is_named_if_there_is_no_test_part(
    folder: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "dataset=table dataset.path=flowers.csv dataset.target=kind dataset.test_fraction=0 trainer.epochs=1"
    run = dlhw.run(lines)
    evaluate.main([str(run.path)])
    assert "no test part: this is the validation part, which selects the best epoch" in caplog.text
    assert re.match(r"18 validation samples: accuracy ", capsys.readouterr().out)
    evaluate.main([str(run.path), "--json"])
    assert json.loads(capsys.readouterr().out)["part"] == "val"


def test_tables_that_could_not_be_trained_on_are_evaluated(run: Run, folder: Path) -> None:
    """A single row; a column without values; a column that is not a feature and has many texts."""
    FLOWERS[:1].to_csv(folder / "row.csv", index=False)
    assert len(evaluate.evaluate(run, ["dataset.path=row.csv"])) == 1
    FLOWERS.assign(width=None, note=[f"note {i}" for i in range(ROWS)]).to_csv(folder / "empty.csv", index=False)
    assert len(evaluate.evaluate(run, ["dataset.path=empty.csv"])) == ROWS


def test_bytes_without_standardization_are_predicted_as_in_training(folder: Path) -> None:
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    x[::2] //= 2
    np.savez(folder / "bytes.npz", x=x, y=np.arange(40) % 2)
    run = dlhw.run("dataset=npz dataset.path=bytes.npz dataset.standardize=false model=mlp optimizer.lr=1e-5")
    assert isinstance(run, Run)
    Image.fromarray(x[0]).save(folder / "first.png")
    (result,) = predict.predict(run, [folder / "first.png"], top=2, weights="best", device="cpu")
    best = result["predictions"][0]
    assert best["class"] == run.predict(x[:1, None])[0]
    assert best["probability"] == pytest.approx(run.predict_proba(x[:1, None]).max())


def test_table_without_rows_and_wrong_columns_name_the_file(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "header.csv").write_text("width,colour\n")
    (folder / "lacking.csv").write_text("colour\nred\n")
    for name, message in {
        "header.csv": "header.csv: has no rows",
        "lacking.csv": "lacking.csv: no column width; the network was trained with it",
        "none.csv": "none.csv: no such file",
    }.items():
        with pytest.raises(SystemExit):
            predict.main([str(run.path), name, "--csv"])
        assert capsys.readouterr() == ("", f"{message}\n")


def test_naming_the_dataset_of_the_run_keeps_its_options(run: Run) -> None:
    assert len(evaluate.evaluate(run, ["dataset=table", "dataset.path=flowers.csv"])) == ROWS


def test_own_function_that_reads_a_table(folder: Path) -> None:
    (folder / "own_table.py").write_text(
        "from dlhw.data.tables import table\n"
        "def flowers(seed, data_dir, *, path: str):\n"
        "    return table(seed=seed, data_dir=data_dir, path=path, target='kind', task='auto', exclude=[],\n"
        "                 validation_fraction=0.2, test_fraction=0.2)\n"
    )
    (folder / "own" / "dataset").mkdir(parents=True)
    (folder / "own" / "dataset" / "own.yaml").write_text("_target_: own_table.flowers\npath: flowers.csv\n")
    run = dlhw.run("dataset=own trainer.epochs=1 model.hidden=[4]", config_dir="own")
    assert isinstance(run, Run)
    FLOWERS[::2].to_csv(folder / "half.csv", index=False)
    assert len(evaluate.evaluate(run, ["dataset.path=half.csv"])) == ROWS // 2


def test_wrong_number_of_features_names_both_shapes(folder: Path) -> None:
    np.savez(folder / "features.npz", x=np.random.default_rng(0).normal(size=(40, 4)), y=np.arange(40) % 2)
    run = dlhw.run("dataset=npz dataset.path=features.npz trainer.epochs=1 model.hidden=[4]")
    assert isinstance(run, Run)
    with pytest.raises(UsageError, match=r"^samples of shape \(2, 5\); expected \(N, 4\), as in training$"):
        run.predict(np.zeros((2, 5)))
