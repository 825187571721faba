"""Datasets from CSV and Parquet files: reading, encoding, targets, and one line for each mistake."""

from __future__ import annotations

import gzip
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.compose import make_column_transformer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from dlhw.data import tables
from dlhw.data.table_encoding import TableEncoder
from dlhw.data.table_files import read_table
from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError
from support.datasets import options


def table(path: Path, **changed: Any) -> Dataset:
    return tables.table(data_dir=path.parent, **options("table", path=str(path), target="y") | changed)


def written(folder: Path, text: str, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def saved(folder: Path, columns: dict[str, Any], name: str = "table.csv") -> Path:
    """Write a table of 20 rows with the target y, which is 0 or 1, and these columns."""
    pd.DataFrame({"y": [0, 1] * 10, **columns}).to_csv(folder / name, index=False)
    return folder / name


def inputs_of(data: Dataset) -> list[str]:
    assert isinstance(data.prepare, TableEncoder)
    return data.prepare.inputs


NAMES = st.text("abcxyz ,;|\"'é", min_size=1, max_size=6).map(str.strip).filter(lambda name: name not in ("", "y"))


@given(
    names=st.lists(NAMES, min_size=1, max_size=4, unique=True),
    seed=st.integers(0, 99),
    delimiter=st.sampled_from(",;\t|"),
    data=st.data(),
)
def test_inputs_are_those_of_scikit_learn_fitted_on_the_training_rows(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], seed: int, delimiter: str, data: st.DataObject
) -> None:
    columns = {
        name: data.draw(st.lists(values, min_size=12, max_size=12))
        for name in names
        for values in [data.draw(st.sampled_from([st.floats(-1e6, 1e6), st.integers(-9, 9), st.sampled_from("abc")]))]
    }
    frame = pd.DataFrame(columns).round(3)
    path = tmp_path_factory.mktemp("tables") / "table.csv"
    frame.assign(y=["p", "q"] * 6).to_csv(path, sep=delimiter, index=False, encoding="utf-8-sig")
    result = table(path, seed=seed)
    transformers = [
        (
            StandardScaler() if pd.api.types.is_numeric_dtype(frame[name]) else OneHotEncoder(handle_unknown="ignore"),
            [name],
        )
        for name in names
    ]
    reference = make_column_transformer(*transformers, sparse_threshold=0)
    reference.fit(frame.iloc[result.train.rows.numpy()])
    expected = torch.from_numpy(reference.transform(frame).astype(float))
    torch.testing.assert_close(result.train.pool_x, expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(result.normalize(result.train.pool_x), result.train.pool_x)


def test_missing_values_get_an_input_and_the_median_of_the_training_part(tmp_path: Path) -> None:
    values = [1.0, np.nan, 3.0, 8.0] * 5
    path = saved(tmp_path, {"a": values, "b": ["u", None, "v", "u"] * 5})
    data = table(path)
    assert inputs_of(data) == ["a", "a is missing", "b=u", "b=v", "b is missing"]
    training = np.array(values)[data.train.rows.numpy()]
    fill = np.nanmedian(training)
    filled = np.where(np.isnan(training), fill, training)
    expected = (np.where(np.isnan(values), fill, values) - filled.mean()) / filled.std()
    pool = data.train.pool_x
    torch.testing.assert_close(pool[:, 0], torch.from_numpy(expected))
    assert pool[:4, 1:].tolist() == [[0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0]]
    assert data.about["missing_values"] == {"a": 5, "b": 5}


def test_the_encoder_is_restored_from_its_state(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a": range(20), "b": ["u", "v"] * 10})
    data = table(path)
    torch.save(data.prepare.state, tmp_path / "state.pt")
    encoder = TableEncoder.from_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert encoder == data.prepare
    assert torch.equal(encoder(read_table(path)), data.train.pool_x)
    unknown = encoder(pd.DataFrame({"b": ["new", None], "a": ["3", 4], "more": [0, 0]}))
    assert unknown[:, 1:].tolist() == [[0, 0], [0, 0]]
    with pytest.raises(UsageError, match=r"^column a: many is not a finite number, as in training$"):
        encoder(pd.DataFrame({"a": ["1", "many"], "b": ["u", "u"]}))
    with pytest.raises(UsageError, match=r"^no column a; the network was trained with it$"):
        encoder(pd.DataFrame({"b": ["u"]}))


def test_whole_numbers_in_a_column_of_texts_stay_the_same_category(tmp_path: Path) -> None:
    data = table(saved(tmp_path, {"size": ["1", "2", "x", "2"] * 5}))
    assert data.prepare(pd.DataFrame({"size": [1.0, np.nan, 2.0]})).tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("values", "inputs"),
    [
        ([True, False] * 10, ["c=False", "c=True"]),
        ([True, None] * 10, ["c=True", "c is missing"]),
        (["2024-01-01", "2024-01-02"] * 10, ["c=2024-01-01", "c=2024-01-02"]),
        ([1, "a"] * 10, ["c=1", "c=a"]),
        ([1, None] * 10, ["c", "c is missing"]),
        ([2**63, 2**64 - 1] * 10, ["c"]),
        ([0.1] * 20, ["c"]),
    ],
    ids=["booleans", "missing booleans", "dates", "mixed", "missing", "large", "constant"],
)
def test_types_of_columns(tmp_path: Path, values: list[Any], inputs: list[str]) -> None:
    data = table(saved(tmp_path, {"c": values}))
    assert inputs_of(data) == inputs
    assert data.train.pool_x.isfinite().all()


def test_a_constant_column_is_zero(tmp_path: Path) -> None:
    data = table(saved(tmp_path, {"c": [0.1] * 20}))
    torch.testing.assert_close(data.train.pool_x, torch.zeros(20, 1).double(), atol=1e-12, rtol=0)


def test_parquet_has_the_same_samples_as_csv(tmp_path: Path) -> None:
    frame = pd.DataFrame({"y": [0, 1] * 10, "a": [1, None, 3, 4] * 5, "b": [True, False] * 10, "c": list("uv") * 10})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.astype({"a": "Int64", "b": "boolean", "c": "category"}).to_parquet(tmp_path / "t.parquet")
    csv, parquet = table(tmp_path / "t.csv"), table(tmp_path / "t.parquet")
    assert inputs_of(csv) == inputs_of(parquet)
    assert torch.equal(csv.train.pool_x, parquet.train.pool_x)


def test_parquet_without_pyarrow_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise ImportError("Unable to find a usable engine")

    monkeypatch.setattr(pd, "read_parquet", fail)
    with pytest.raises(UsageError, match=r"t\.parquet: Parquet needs pyarrow; install it \(pip install pyarrow\)$"):
        read_table(written(tmp_path, "", "t.parquet"))


TEXT = 'y;"a;b,c";d\n0;1;x\n1;2;"p,q"\n'


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_csv_file_with_quotes_marks_and_compression(
    tmp_path: Path, compressed: bool, mark: str, newline: str
) -> None:
    content = (mark + "\n" + TEXT).replace("\n", newline).encode()
    path = tmp_path / ("t.csv.gz" if compressed else "t.csv")
    path.write_bytes(gzip.compress(content) if compressed else content)
    frame = read_table(path)
    assert [*frame] == ["y", "a;b,c", "d"]
    assert frame.to_numpy().tolist() == [[0, 1, "x"], [1, 2, "p,q"]]


def test_columns_without_a_name_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        frame = read_table(written(tmp_path, ",a,y,\n0,5,1,\n1,6,0,\n"))
    assert [*frame] == ["a", "y"]
    assert caplog.messages == [f"{tmp_path / 'table.csv'}: columns without a name are left out: 2"]


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        ([3, 1] * 10, "auto", ("1", "3")),
        ([3.0, 1.0] * 10, "auto", ("1", "3")),
        (range(20), "auto", tuple(map(str, range(20)))),
        ([3.5, 1.0] * 10, "auto", ()),
        ([3, 1] * 10, "regression", ()),
        (["a", "b"] * 10, "auto", ("a", "b")),
        ([True, False] * 10, "auto", ("False", "True")),
        ([1, "b"] * 10, "auto", ("1", "b")),
    ],
)
def test_the_target_decides_the_task(tmp_path: Path, values: Any, task: str, classes: tuple[str, ...]) -> None:
    data = table(saved(tmp_path, {"a": range(20), "y": values}), task=task)
    assert data.classes == classes
    if not classes:
        assert data.train.pool_y.tolist() == list(values)


def test_more_than_twenty_whole_numbers_are_a_regression(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": range(42), "y": [*range(21)] * 2})
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert table(tmp_path / "t.csv").classes == ()
    assert len(table(tmp_path / "t.csv", task="classification").classes) == 21


def test_what_was_read_is_logged_and_described(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns = {"y": ["p", "q", None, "p"] * 5, "id": range(20), "note 1": ["x"] * 20, "[k]": [1] * 20}
    path = saved(tmp_path, {**columns, "a": [0.5, 1.5] * 10, "c": ["u", None] * 10, "empty": [None] * 20})
    with caplog.at_level(logging.INFO):
        data = table(path, exclude=["id", "note*", "[k]"])
    assert caplog.messages[-1] == (
        f"{path}: 20 rows; left out 5 rows without y; left out id, note 1, [k] (excluded); left out empty (without "
        "values); numbers, standardized by the training part: a; categories: c (1); missing values: c (10); 3 inputs; "
        "target y: 2 classes: p, q; train 10, val 2, test 3"
    )
    assert data.description["rows_without_target"] == 5
    assert data.description["excluded"] == ["id", "note 1", "[k]"]
    assert (data.name, data.description["inputs"]) == ("table", 3)


def test_the_fingerprint_is_that_of_the_file_for_every_seed(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a": range(20)})
    one, two = table(path, seed=0), table(path, seed=1)
    assert one.sha256 == two.sha256
    assert one.train.rows.tolist() != two.train.rows.tolist()
    saved(tmp_path, {"a": range(1, 21)})
    assert table(path).sha256 != one.sha256


def test_a_relative_path_is_searched_in_the_data_directory(tmp_path: Path) -> None:
    saved(tmp_path, {"a": range(20)})
    assert tables.table(data_dir=tmp_path, **options("table", path="table.csv", target="y")).name == "table"
    with pytest.raises(UsageError, match=r"^dataset.path=no\.csv: no such file; looked for no\.csv and .*no\.csv$"):
        tables.table(data_dir=tmp_path, **options("table", path="no.csv", target="y"))


ROWS = "".join(f"{number},{number % 2}\n" for number in range(20))
DIFFERENT = "".join(f"day {number},{number % 2}\n" for number in range(300))
INVALID: dict[str, tuple[str, dict[str, Any], str]] = {
    "no such column": (f"size,kind\n{ROWS}", {"target": "knid"}, "dataset.target=knid: FILE has no such column (did "
                       "you mean kind?); expected one of size, kind"),
    "nothing excluded": (f"size,y\n{ROWS}", {"exclude": ["sizes"]}, "dataset.exclude=[sizes]: FILE has no such column "
                         "besides the target (did you mean size?); expected one of size"),
    "empty": ("", {}, "FILE: is empty; expected a line with the names of the columns"),
    "no rows": ("a,y\n", {}, "FILE: has no rows with a value in the column y"),
    "no targets": ("a,y\n1,\n2,\n", {}, "FILE: has no rows with a value in the column y"),
    "no features": ("y\n" + "0\n1\n" * 9, {}, "FILE: has no column with values besides the target y"),
    "all excluded": (f"a,y\n{ROWS}", {"exclude": ["*"]}, "FILE: has no column with values besides the target y"),
    "repeated": (f"a,y,a\n{ROWS}", {}, "FILE: two columns have the name a; rename one of them"),
    "too many cells": (f"a,y\n{ROWS}1,2,3\n", {}, "FILE: cannot be read as a table (Error tokenizing data. C error: "
                       "Expected 2 fields in line 22, saw 3)"),
    "no header for a column": ("a,y\n" + "1,0,5\n2,1,6\n" * 9, {}, "FILE: cannot be read as a table (*)"),
    "decimal commas": ("a;y\n" + "1,5;0\n2,5;1\n" * 9, {}, "FILE: column a has numbers with a comma, such as 1,5; "
                       "expected a decimal point and no separator of thousands"),
    "infinite": (f"a,y\n{ROWS}-inf,1\n", {}, "FILE: column a has the value -inf; expected at most 1e+100"),
    "texts": (f"a,y\n{DIFFERENT}", {}, "FILE: column a has 300 different texts in 300 cells, such as day 0; expected "
              "numbers, or at most 200 categories that occur several times; leave it out with dataset.exclude=[a]"),
    "percent": ("a,y\n" + "".join(f"{i}%,{i % 2}\n" for i in range(40)), {}, "FILE: column a has 40 different texts *"),
    "a text among numbers": (f"a,y\n{ROWS}x,1\n", {}, "FILE: column a has numbers, but also x; expected numbers or "
                             "empty cells; leave it out with dataset.exclude=[a]"),
    "infinite target": (f"a,y\n{ROWS}1,inf\n", {}, "FILE: column y: label 20, counted from 0, has a value that is "
                        "missing or not finite"),
    "texts to predict": ("a,y\n1,2\n" + "1,b\n" * 9, {"task": "regression"}, "dataset.task=regression: the column y "
                         "has the value b; expected numbers"),
    "fractions as classes": ("a,y\n" + "1,0.5\n1,1\n" * 9, {"task": "classification"}, "FILE: column y: the "
                             "label 0.5 is not whole; expected classes"),
    "few rows": ("a,y\n1,0\n2,1\n", {}, "dataset.test_fraction=0.2: leaves none of the 2 samples for training or test"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "changed", "message"), INVALID.values(), ids=INVALID)
def test_a_mistake_is_one_line(tmp_path: Path, text: str, changed: dict[str, Any], message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        table(path, **changed)
    line = str(caught.value).replace(str(path), "FILE")
    assert re.fullmatch(re.escape(message).replace(r"\*", r"[^\n]+"), line), line


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "größe,y\n1,2\n".encode("latin-1"), "is not UTF-8 text; expected a CSV file with this encoding"),
        ("t.parquet", b"PAR1", "cannot be read as a table ("),
        ("t.csv.gz", b"a,y\n1,2\n", "cannot be read as a table (Not a gzipped file"),
        ("t.csv.gz", gzip.compress(b"a,y\n" + b"1,2\n" * 99)[:-20], "cannot be read as a table ("),
        ("t.csv", b"a,y\n" + b'"' + b"1,2\n" * 9, "cannot be read as a table ("),
    ],
    ids=["Latin-1", "Parquet", "not gzip", "truncated gzip", "open quote"],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_table(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: {message}"), caught.value
    assert "\n" not in str(caught.value)


def test_whole_numbers_of_more_than_64_bits_are_numbers(tmp_path: Path) -> None:
    rows = "".join(f"{10**30 + i * 10**28},{i % 2}\n" for i in range(60))
    data = table(written(tmp_path, f"a,y\n{rows}"))
    assert data.about["numbers"] == ["a"]
    assert data.shape == (1,)


def test_digits_in_texts_of_parquet_are_categories(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    codes = [f"{i % 30:02d}" for i in range(120)]
    pd.DataFrame({"code": codes, "y": codes}).to_parquet(tmp_path / "t.parquet")
    data = table(tmp_path / "t.parquet")
    assert len(data.classes) == 30
    assert data.about["categories"] == {"code": 30}


def test_a_few_numbers_and_a_text_are_categories(tmp_path: Path) -> None:
    rows = "".join(f"{'3+' if i % 12 == 0 else i % 3},{i % 2}\n" for i in range(120))
    assert table(written(tmp_path, f"a,y\n{rows}")).about["categories"] == {"a": 4}
