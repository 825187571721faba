"""The evaluation of a classifier: probabilities, confusion matrix, accuracy, and the pictures that a report shows."""

from __future__ import annotations

import pytest
import torch

from dlhw.data.tensors import Dataset
from dlhw.views.report.classification import select_examples
from dlhw.views.report.evaluation import EvaluatedPart, evaluate_part
from support.classifiers import model_with_mistakes, random_pictures, small_cnn


@pytest.fixture(scope="module")
def data() -> Dataset:
    return random_pictures()


@pytest.mark.parametrize("batch_size", [1, 5, 1000])
def test_evaluation_equals_direct_computation(data: Dataset, batch_size: int) -> None:
    model = small_cnn(data).eval()
    assert data.test is not None
    for part, split in (("val", data.val), ("test", data.test)):
        evaluated = evaluate_part(model, data, part, split, batch_size=batch_size)
        probabilities = model(data.normalize(split.x)).detach().softmax(1)
        expected = torch.zeros(3, 3, dtype=torch.long)
        for i, (label, row) in enumerate(zip(split.y.tolist(), probabilities, strict=True)):
            expected[label, int(row.argmax())] += 1
            assert float(evaluated.probability[i]) == pytest.approx(float(row.max()), rel=1e-9)
            assert float(evaluated.probability_of_true[i]) == pytest.approx(float(row[label]), rel=1e-9)
        assert evaluated.confusion.equal(expected)
        assert evaluated.rows.equal(split.all_rows()[0])


def test_summary_notes_a_wide_interval(data: Dataset) -> None:
    model = model_with_mistakes(data, wrong=1)
    evaluated = evaluate_part(model, data, "val", data.val, batch_size=100)
    assert (
        evaluated.summary(0.95)
        == "validation, 12 pictures: accuracy 91.7 %, 95 % interval 64.6 to 98.5 % (wide: few pictures)"
    )
    many = EvaluatedPart(
        "test", ("a",), *(torch.zeros(9999, dtype=torch.long) for _ in range(3)), *(torch.ones(2, 9999))
    )
    assert many.summary(0.9) == "test, 9,999 pictures: accuracy 100.00 %, 90 % interval 99.97 to 100.00 %"


def test_mistakes_are_sorted_by_confidence(data: Dataset) -> None:
    evaluated = evaluate_part(model_with_mistakes(data, wrong=5), data, "val", data.val, batch_size=100)
    assert evaluated.mistakes == [4, 3, 2, 1, 0]
    assert evaluated.accuracy(0.95).right == len(data.val) - 5


def test_confident_correct_predictions_cover_all_classes(data: Dataset) -> None:
    evaluated = evaluate_part(model_with_mistakes(data, wrong=2), data, "val", data.val, batch_size=100)
    first, second = evaluated.most_confident_correct(3), evaluated.most_confident_correct(6)[3:]
    assert sorted(int(evaluated.labels[position]) for position in first) == [0, 1, 2]
    for position in first:
        same_class = [i for i in range(2, len(data.val)) if evaluated.labels[i] == evaluated.labels[position]]
        assert position == max(same_class)
    assert not set(first) & set(second)


@pytest.mark.parametrize(("wrong", "right_shown", "wrong_shown"), [(12, 0, 5), (1, 4, 1), (0, 5, 0), (5, 3, 2)])
def test_half_of_the_examples_are_mistakes_if_there_are_enough(
    data: Dataset, wrong: int, right_shown: int, wrong_shown: int
) -> None:
    evaluated = evaluate_part(model_with_mistakes(data, wrong=wrong), data, "val", data.val, batch_size=100)
    right = [bool(evaluated.predicted[i] == evaluated.labels[i]) for i in select_examples(evaluated, 5)]
    assert right == [True] * right_shown + [False] * wrong_shown
