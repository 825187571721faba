"""Datasets from arrays: types of samples and labels, parts, standardization, and one line for each mistake."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.preprocessing import StandardScaler

import dlhw
from dlhw.data import preparation
from dlhw.data.arrays import from_arrays
from dlhw.data.preparation import Standardization
from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError


def features(count: int = 20, width: int = 3) -> npt.NDArray[np.float64]:
    return np.random.default_rng(0).normal(5.0, 3.0, (count, width))


def labels_of(data: Dataset) -> list[str]:
    """Return the names of the classes of all samples, in the order of the pool."""
    return [data.classes[index] for index in data.train.pool_y.tolist()]


def test_the_package_exports_the_function() -> None:
    assert dlhw.from_arrays is from_arrays
    with pytest.raises(AttributeError, match=r"^module 'dlhw' has no attribute 'from_array'$"):
        dlhw.from_array  # noqa: B018


@pytest.mark.parametrize(
    ("labels", "classes", "first"),
    [
        (np.arange(20, dtype=np.uint8) % 3, ("0", "1", "2"), "0"),
        (np.arange(20, dtype=np.uint64) % 2 + np.uint64(2**63), (str(2**63), str(2**63 + 1)), str(2**63)),
        (np.arange(20) % 2 - 5, ("-5", "-4"), "-5"),
        (np.arange(20) % 2 == 0, ("False", "True"), "True"),
        ([["b", "a"][number % 2] for number in range(20)], ("a", "b"), "b"),
        (np.array([[b"b", b"a"][number % 2] for number in range(20)]), ("a", "b"), "b"),
        (np.array(["b", "a"] * 10, object), ("a", "b"), "b"),
        (torch.arange(20)[:, None] % 3, ("0", "1", "2"), "0"),
    ],
    ids=["uint8", "uint64", "negative", "boolean", "texts", "bytes", "objects", "tensor (N, 1)"],
)
def test_labels_become_classes(labels: Any, classes: tuple[str, ...], first: str) -> None:
    data = from_arrays(features(), labels, seed=0)
    assert (data.classes, labels_of(data)[0], data.train.pool_y.dtype) == (classes, first, torch.int64)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f8"])
def test_labels_of_floating_point_numbers_are_a_regression(dtype: Any) -> None:
    values = (np.arange(20) / 4).astype(dtype)
    data = from_arrays(features(), values, seed=0)
    assert (data.classes, data.outputs) == ((), 1)
    assert data.train.pool_y.tolist() == values.tolist()


def test_the_task_decides_what_numbers_are() -> None:
    whole = np.arange(20) % 4
    assert from_arrays(features(), whole.astype(float), seed=0, task="classification").classes == ("0", "1", "2", "3")
    regression = from_arrays(features(), whole, seed=0, task="regression")
    assert (regression.classes, regression.train.pool_y.tolist()) == ((), whole.tolist())


def test_names_of_classes_belong_to_the_labels_0_1_and_so_on() -> None:
    data = from_arrays(features(), np.arange(20) % 2 * 2, seed=0, classes=["cat", "cow", "dog"])
    assert data.classes == ("cat", "cow", "dog")
    assert labels_of(data)[:2] == ["cat", "dog"]


def test_a_class_without_training_samples_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        data = from_arrays(features(), np.arange(20) % 2, seed=0, val=(features(2), [1, 2]), test=(features(2), [3, 3]))
    assert data.classes == ("0", "1", "2", "3")
    assert caplog.messages == ["no training samples of the classes 2, 3"]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (bool, torch.float32),
        (np.int8, torch.float32),
        (np.uint16, torch.float32),
        (np.float16, torch.float32),
        (">f4", torch.float32),
        (np.float64, torch.float64),
        (np.int64, torch.float64),
        (np.uint32, torch.float64),
        (np.uint8, torch.uint8),
    ],
)
def test_samples_keep_their_values(dtype: Any, expected: torch.dtype) -> None:
    x = (np.arange(40) % 3).reshape(20, 2).astype(dtype)
    data = from_arrays(x, np.arange(20) % 2, seed=0, standardize=False)
    assert data.train.pool_x.dtype == expected
    assert data.normalize(data.train.pool_x).tolist() == x.astype(float).tolist()


def test_bytes_are_not_copied_and_standardized_per_channel_when_a_batch_needs_them() -> None:
    x = np.random.default_rng(0).integers(0, 256, (30, 3, 4, 5), np.uint8)
    data = from_arrays(x, np.arange(30) % 2, seed=0)
    assert data.train.pool_x.data_ptr() == x.ctypes.data
    inputs = data.normalize(data.train.x)
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(inputs.std((0, 2, 3), correction=0), torch.ones(3).double())
    assert data.prepare is None


@pytest.mark.parametrize(("dtype", "shape"), [(np.uint8, (1, 4, 5)), (np.float32, (4, 5))])
def test_grey_bytes_get_a_channel(dtype: Any, shape: tuple[int, ...]) -> None:
    assert from_arrays(np.ones((9, 4, 5), dtype), np.arange(9) % 2, seed=0).shape == shape


def test_a_read_only_array_is_copied() -> None:
    x = np.zeros((9, 2), np.uint8)
    x.flags.writeable = False
    assert from_arrays(x, np.arange(9) % 2, seed=0).train.pool_x.data_ptr() != x.ctypes.data


@given(seed=st.integers(0, 99), x=hnp.arrays(float, st.tuples(st.integers(5, 40), st.integers(1, 4)),
                                             elements=st.floats(-1e6, 1e6)))  # fmt: skip
def test_standardization_is_that_of_the_training_part(seed: int, x: npt.NDArray[np.float64]) -> None:
    x = np.round(x, 3)
    data = from_arrays(x, np.arange(len(x), dtype=float), seed=seed, test_fraction=0.2)
    raw = torch.from_numpy(x)
    scaler = StandardScaler().fit(raw[data.train.rows])
    assert isinstance(data.prepare, Standardization)
    expected = torch.from_numpy(scaler.transform(x))
    for part in data.parts.values():
        torch.testing.assert_close(part.x, expected[part.rows], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(data.prepare(raw[part.rows]), part.x, atol=0, rtol=0)


def test_standardization_does_not_depend_on_the_number_of_values_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, rows = torch.randn(50, 3, 4, 4), torch.randperm(50)[:31]
    whole = Standardization.of(x, rows)
    monkeypatch.setattr(preparation, "VALUES_AT_ONCE", 100)
    parts = Standardization.of(x, rows)
    torch.testing.assert_close(parts.mean, x[rows].double().mean((0, 2, 3)).view(3, 1, 1))
    torch.testing.assert_close(parts.std, x[rows].double().std((0, 2, 3), correction=0).view(3, 1, 1))
    torch.testing.assert_close(parts(x), whole(x))
    restored = Standardization.from_state(whole.state)
    assert torch.equal(restored(x), whole(x))


def test_constant_features_become_zero() -> None:
    x = features()
    x[:, 1] = 0.1
    data = from_arrays(x, np.arange(20) % 2, seed=0)
    torch.testing.assert_close(data.train.x[:, 1], torch.zeros(len(data.train)).double(), atol=1e-12, rtol=0)


def test_the_split_depends_on_the_seed_and_not_on_the_features() -> None:
    labels = np.arange(40, dtype=float)
    one, wide, other = (
        from_arrays(features(40, width), labels, seed=seed, test_fraction=0.25)
        for seed, width in ((3, 1), (3, 9), (4, 9))
    )
    assert [len(part) for part in one.parts.values()] == [24, 6, 10]
    assert {name: part.y.tolist() for name, part in one.parts.items()} == {
        name: part.y.tolist() for name, part in wide.parts.items()
    }
    assert other.test.y.tolist() != wide.test.y.tolist()
    assert other.sha256 == wide.sha256 != one.sha256


def test_given_parts_are_kept() -> None:
    val, test = (features(4), [0, 1, 0, 1]), (features(6), [0] * 6)
    data = from_arrays(features(), np.arange(20) % 2, seed=0, val=val, test=test, validation_fraction=0.9)
    assert {name: part.y.tolist() for name, part in data.parts.items() if name != "train"} == {
        "val": val[1],
        "test": test[1],
    }
    assert data.train.rows is None
    assert from_arrays(features(), np.arange(20) % 2, seed=0).test is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_have_the_precision_of_the_run(dtype: torch.dtype) -> None:
    data = from_arrays(features(), np.arange(20.0), seed=0).to("cpu", dtype)
    x, y = data.train[:2]
    assert (data.normalize(x).dtype, y.dtype) == (dtype, dtype)


INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "vectors": ({"x": np.zeros(20)}, r"train: samples of type float64 and shape \(20,\); expected numbers of shape"),
    "texts": ({"x": np.full((20, 2), "a")}, r"train: samples of type <U1 and shape \(20, 2\)"),
    "no samples": ({"x": np.zeros((0, 2)), "y": []}, r"train: samples of type float64 and shape \(0, 2\)"),
    "no features": ({"x": np.zeros((20, 0))}, r"train: samples of type float64 and shape \(20, 0\)"),
    "not finite": (
        {"x": np.r_[features(19), [[1, np.inf, 1]]]},
        "train: sample 19, counted from 0, has a value that is",
    ),
    "lengths": ({"y": [0, 1]}, "20 samples in train, but 2 labels$"),
    "shapes": ({"val": (features(3, 2), [0, 1, 0])}, r"samples of shape \(2,\) in val, but \(3,\) in train$"),
    "types": (
        {"val": (np.zeros((3, 3), np.uint8), [0, 1, 0])},
        r"samples of type torch.uint8 in val, but",
    ),
    "one-hot": ({"y": np.eye(20)}, r"train: labels of type float64 and shape \(20, 20\); expected one number or text"),
    "dates": ({"y": np.zeros(20, "M8[s]")}, r"train: labels of type datetime64\[s\]"),
    "NaN": ({"y": [*range(19), np.nan]}, "train: label 19, counted from 0, has a value that is missing or not finite$"),
    "None": ({"y": [*"ab" * 9, None, "a"]}, "train: label 18, counted from 0, is missing$"),
    "mixed": (
        {"y": np.array([1, "a"] * 10, object)},
        "labels of different types: int, str; expected only texts",
    ),
    "mixed parts": ({"val": (features(2), ["a", "b"])}, "labels of different types: int, str"),
    "fractions": (
        {"y": np.arange(20) / 2, "task": "classification"},
        "train: the label 0.5 is not whole",
    ),
    "texts to predict": ({"y": ["a", "b"] * 10, "task": "regression"}, "train: labels of type <U1; expected numbers"),
    "unknown class": ({"classes": ["a"]}, "label 1: expected whole numbers from 0 to 0, one for each of the classes"),
    "fraction": (
        {"validation_fraction": 1.0},
        "dataset.validation_fraction=1.0: must be greater than 0 and less than 1",
    ),
    "empty part": (
        {"test_fraction": 0.01},
        "dataset.test_fraction=0.01: leaves none of the 20 samples for",
    ),
}


@pytest.mark.parametrize(("options", "message"), INVALID.values(), ids=INVALID)
def test_a_mistake_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}") as caught:
        from_arrays(**{"x": features(), "y": np.arange(20) % 2, "seed": 0} | options)
    assert "\n" not in str(caught.value)
