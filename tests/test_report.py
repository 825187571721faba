"""The report on a trained classifier: its tables, numbers, files and options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.text import Text
from omegaconf import open_dict

from dlhw import load_run
from dlhw.cli.build import build
from dlhw.data.tensors import Dataset, Split
from dlhw.errors import UsageError
from dlhw.intervals import wilson
from dlhw.storage.answer import Answer
from dlhw.storage.record import Record
from dlhw.train import run as train
from dlhw.views import report
from dlhw.views.report.classification import subject_of
from support.classifiers import CLASSES, OPTIONS, model_with_mistakes, not_needed, random_pictures, small_cnn
from support.composing import compose_with_hydra


@pytest.fixture(scope="module")
def data() -> Dataset:
    return random_pictures()


@pytest.fixture(scope="module")
def answer(data: Dataset) -> Answer:
    return report.classifier(small_cnn(data), data, **OPTIONS)


def test_tables_agree_with_each_other_and_with_the_numbers(data: Dataset, answer: Answer) -> None:
    assert data.test is not None
    for part, split in (("val", data.val), ("test", data.test)):
        confusion, by_class, mistakes = (
            answer.tables[f"{name}_{part}"] for name in ("confusion", "per_class", "mistakes")
        )
        assert [list(row) for row in confusion] == [["true_class", *(f"predicted {name}" for name in CLASSES)]] * 3
        counts = [[int(str(row[f"predicted {name}"])) for name in CLASSES] for row in confusion]
        right = sum(counts[i][i] for i in range(3))
        assert sum(map(sum, counts)) == len(split)
        assert answer.numbers[f"{part}_accuracy"] == right / len(split)
        assert len(mistakes) == len(split) - right
        for i, row in enumerate(by_class):
            assert (row["pictures"], row["right"]) == (sum(counts[i]), counts[i][i])
            assert (row["accuracy_low"], row["accuracy_high"]) == wilson(counts[i][i], sum(counts[i]), 0.95)
        for row in mistakes:
            index = data.names.index(str(row["picture"]))
            assert data.classes[split.pool_y[index]] == row["true_class"] != row["predicted_class"]


def test_figures_are_titled_by_the_folder_of_the_users_own_pictures(data: Dataset) -> None:
    own = replace(data, name="image_folder", about={"root": "/photos/animals"})
    assert (subject_of(own), subject_of(replace(data, name="mnist"))) == ("animals", "mnist")
    figure = report.classifier(small_cnn(data), own, **OPTIONS).figures["confusion"]
    assert any(text.get_text().startswith("animals: confusion matrix") for text in figure.findobj(Text))


def test_report_without_test_part_has_only_validation_results(data: Dataset) -> None:
    answer = report.classifier(small_cnn(data), replace(data, test=None), **OPTIONS)
    assert set(answer.numbers) == {"val_accuracy", "val_accuracy_low", "val_accuracy_high"}
    assert set(answer.tables) == {"confusion_val", "per_class_val", "mistakes_val"}


def test_report_without_mistakes_has_a_message_and_no_figure(data: Dataset) -> None:
    answer = report.classifier(
        model_with_mistakes(data, wrong=0), replace(data, test=None), **OPTIONS | {"saliency": "none"}
    )
    assert answer.messages[-1] == "mistakes: none among 12 validation pictures"
    assert "mistakes" not in answer.figures
    assert answer.tables["mistakes_val"] == []


def test_repeated_report_writes_the_same_files(data: Dataset, answer: Answer, tmp_path: Path) -> None:
    repeated = report.classifier(small_cnn(data), data, **OPTIONS)
    first, second = tmp_path / "first", tmp_path / "second"
    for directory, result in ((first, answer), (second, repeated)):
        directory.mkdir()
        result.write(Record(directory))
    files = sorted(path.relative_to(first) for path in first.rglob("*.*"))
    assert len(files) == 10
    assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files)


def test_accuracy_equals_that_of_the_best_epoch(tmp_path: Path) -> None:
    """The best epoch is the first, because the learning rate of the second is 1000 times larger."""
    diverging = ["trainer.epochs=2", "scheduler=step", "scheduler.every_epochs=1", "scheduler.factor=1000"]
    small = ["model=mlp", "model.hidden=[16]", "model.batch_norm=true", "dataset=digits", "trainer.device=cpu"]
    cfg = compose_with_hydra("report=classifier", *small, *diverging)
    with open_dict(cfg):
        del cfg.hydra
    train(cfg, Record(tmp_path))
    summary = load_run(tmp_path).summary
    assert summary["best"]["epoch"] == 1
    for part in ("val", "test"):
        assert summary[f"{part}_accuracy"] == pytest.approx(summary["best"][f"{part}_accuracy"], rel=1e-12)
        assert summary[f"{part}_accuracy"] != pytest.approx(summary["final"][f"{part}_accuracy"], rel=0.1)
    assert len(list((tmp_path / "figures").iterdir())) == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"classes": ()},
            "report=classifier: dataset=random has numeric targets and no class labels; expected report=none",
        ),
        (
            {part: Split(torch.zeros(3, 5), torch.zeros(3, dtype=torch.long)) for part in ("train", "val", "test")},
            "report=classifier: the samples of dataset=random have shape 5, not that of pictures; expected report=none",
        ),
    ],
)
def test_dataset_without_pictures_or_classes_raises_usage_error(
    data: Dataset, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as raised:
        report.check(replace(data, **changed))
    assert str(raised.value) == message


def test_report_is_built_from_the_config(data: Dataset) -> None:
    cfg = compose_with_hydra("report=classifier", "trainer.evaluation_batch_size=9")
    assert cfg.report.evaluation_batch_size == 9
    assert isinstance(build(cfg, "report", model=small_cnn(data), data=data, untrained=not_needed), Answer)
    assert compose_with_hydra("report=none").report == compose_with_hydra().report == {"_target_": None}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("report.mistakes=0", "must be greater than 0"),
        ("report.views=1.5", "must be a whole number"),
        ("report.confidence_percent=100", "must be less than 100"),
        ("report.filters=3", "must be a string"),
        ("report.saliency=cam", "must be 'grad_cam', 'gradient' or 'none'"),
    ],
)
def test_invalid_option_raises_a_one_line_usage_error(option: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        build(compose_with_hydra("report=classifier", option), "report", model=None, data=None, untrained=None)
    assert str(raised.value).startswith(f"{option}: {message}")
    assert "\n" not in str(raised.value)
