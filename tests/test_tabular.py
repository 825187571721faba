"""Tables of numbers: reading and downloading, invalid files, splits, standardization by the training part."""

from __future__ import annotations

import os
import pickle
import types
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dlhw.data import tabular
from dlhw.errors import UsageError

FRACTIONS: dict[str, Any] = {"test_fraction": 0.2, "validation_fraction": 0.25}


def boston_csv(folder: Path) -> Path:
    """Save a table in Boston's format with random numbers, and return its path."""
    table = np.random.default_rng(0).normal(3.0, 2.0, (506, 14))
    path = folder / "boston.csv"
    np.savetxt(path, table, delimiter=",", header=",".join(tabular.BOSTON), comments="", fmt="%.6f")
    return path


def test_boston_is_split_and_standardized_by_its_training_part(tmp_path: Path) -> None:
    table = np.loadtxt(boston_csv(tmp_path), delimiter=",", skiprows=1)
    data = tabular.boston(data_dir=tmp_path, seed=3, download=False, **FRACTIONS)
    assert (data.shape, data.outputs, data.classes) == ((13,), 1, ())
    assert [len(part) for part in (data.train, data.val, data.test)] == [304, 101, 101]
    x = data.normalize(data.train.x)
    torch.testing.assert_close(x.mean(0), torch.zeros(13).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(13).double())
    assert data.normalize(data.test.x).mean(0).abs().max() > 0.01  # the test part does not affect the means
    targets = torch.cat([part.y for part in (data.train, data.val, data.test)])
    assert torch.equal(targets.sort().values, torch.from_numpy(table[:, -1]).sort().values)


def test_sha256_depends_on_the_data_and_not_on_the_split(tmp_path: Path) -> None:
    boston_csv(tmp_path)
    one, two = (tabular.boston(data_dir=tmp_path, seed=seed, download=False, **FRACTIONS) for seed in (0, 1))
    assert one.sha256 == two.sha256
    assert not torch.equal(one.test.y, two.test.y)
    diabetes = tabular.diabetes(data_dir=tmp_path, seed=0, **FRACTIONS)
    assert diabetes.shape == (10,)
    assert diabetes.sha256 != one.sha256


def test_a_constant_column_becomes_zero(tmp_path: Path) -> None:
    path = boston_csv(tmp_path)
    table = np.loadtxt(path, delimiter=",", skiprows=1)
    table[:, 3] = 1.0
    np.savetxt(path, table, delimiter=",", header=",".join(tabular.BOSTON), comments="")
    data = tabular.boston(data_dir=tmp_path, seed=0, download=False, **FRACTIONS)
    assert data.train.x[:, 3].tolist() == [0.0] * len(data.train)


@pytest.mark.parametrize(
    "content", ["A,B\n1,2\n", "", ",".join(tabular.BOSTON) + "\n" + ",".join(["1"] * 14) + "\n", "a\nx\n", "\xff\xfe"]
)
def test_an_invalid_table_is_an_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "boston.csv").write_text(content, encoding="latin1")
    with pytest.raises(UsageError, match=r"boston\.csv: (cannot be read|must have the columns)") as raised:
        tabular.boston(data_dir=tmp_path, seed=0, download=False, **FRACTIONS)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("cell", ["nan", "inf", "-inf", "1e999"])
def test_the_error_for_a_cell_that_is_not_finite_names_it(cell: str, tmp_path: Path) -> None:
    path = boston_csv(tmp_path)
    lines = path.read_text().splitlines()
    lines[7] = ",".join([*lines[7].split(",")[:4], cell, *lines[7].split(",")[5:]])
    path.write_text("\n".join(lines))
    with pytest.raises(UsageError, match=r"boston\.csv: row 7, column NOX: -?(nan|inf) is not a finite number"):
        tabular.boston(data_dir=tmp_path, seed=0, download=False, **FRACTIONS)


def test_a_byte_order_mark_and_empty_lines_are_ignored(tmp_path: Path) -> None:
    path = boston_csv(tmp_path)
    plain = tabular.boston(data_dir=tmp_path, seed=0, download=False, **FRACTIONS)
    path.write_text("\ufeff" + path.read_text() + "\n\n", encoding="utf-8")
    assert tabular.boston(data_dir=tmp_path, seed=0, download=False, **FRACTIONS).sha256 == plain.sha256


@pytest.mark.parametrize("cell", ["1" * 200_000, "x" * 100_000])
def test_the_error_for_a_huge_cell_is_one_short_line(cell: str, tmp_path: Path) -> None:
    path = boston_csv(tmp_path)
    path.write_text(path.read_text() + cell + "\n")
    with pytest.raises(UsageError, match=r"boston\.csv: cannot be read as a table of numbers") as raised:
        tabular.boston(data_dir=tmp_path, seed=0, download=False, **FRACTIONS)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(("rows", "value", "message"), [(506, np.nan, "row 3, column RM"), (505, 1.0, "506 rows")])
def test_an_invalid_table_from_openml_is_an_error(
    rows: int, value: float, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pd.DataFrame(np.ones((rows, 14)), columns=list(tabular.BOSTON))
    frame.loc[2, "RM"] = value
    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda **_: types.SimpleNamespace(frame=frame))
    with pytest.raises(UsageError, match=f"dataset=boston from OpenML: .*{message}"):
        tabular.boston(data_dir=tmp_path, seed=0, download=True, **FRACTIONS)


def test_a_missing_boston_table_is_downloaded_from_openml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = (
        pd.read_csv(boston_csv(tmp_path))
        .astype({"CHAS": "str", "RAD": "str"})
        .astype({"CHAS": "category", "RAD": "category"})
    )
    from_file = tabular.boston(data_dir=tmp_path, seed=0, download=False, **FRACTIONS)
    (tmp_path / "boston.csv").unlink()
    request: dict[str, Any] = {}

    def fetch_openml(**options: Any) -> Any:
        request.update(options)
        return types.SimpleNamespace(frame=frame)

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch_openml)
    data = tabular.boston(data_dir=tmp_path, seed=0, download=True, **FRACTIONS)
    assert (request["data_id"], request["data_home"]) == (531, str(tmp_path))
    assert data.sha256 == from_file.sha256


@pytest.mark.parametrize("name", ["boston", "california_housing"])
def test_the_error_for_a_failed_download_gives_the_reason_and_an_alternative(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(**options: Any) -> Any:
        Path(options["data_home"], "openml", "api").mkdir(parents=True)
        raise OSError("<urlopen error [Errno -2] Name or\nservice not known>")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", unreachable)
    monkeypatch.setattr("sklearn.datasets.fetch_california_housing", unreachable)
    with pytest.raises(UsageError, match=r"Name or service not known.*dataset=diabetes") as raised:
        getattr(tabular, name)(data_dir=tmp_path, seed=0, download=True, **FRACTIONS)
    assert "\n" not in str(raised.value)
    assert name != "boston" or list(tmp_path.iterdir()) == []


def test_the_error_for_a_missing_file_says_that_download_is_false(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file .*boston\.csv, and dataset\.download=false; put it there"):
        tabular.boston(data_dir=tmp_path, seed=0, download=False, **FRACTIONS)


def test_regression_targets_have_the_dtype_of_the_inputs(tmp_path: Path) -> None:
    data = tabular.diabetes(data_dir=tmp_path, seed=0, **FRACTIONS).to("cpu", torch.float32)
    x, y = data.train[:2]
    assert data.normalize(x).dtype == y.dtype == torch.float32


@pytest.mark.real
def test_real_boston_has_the_published_least_squares_fit() -> None:
    root = Path(os.environ.get("DLHW_DATA", "data"))
    if not (root / "boston.csv").is_file():
        pytest.skip(f"no boston.csv in {root}")
    data = tabular.boston(data_dir=root, seed=0, download=False, **FRACTIONS)
    x, y = data.train.pool_x, data.train.pool_y
    assert (len(y), round(y.mean().item(), 4), int((y == 50).sum())) == (506, 22.5328, 16)
    design = torch.cat([x, torch.ones(506, 1, dtype=x.dtype)], dim=1)
    residual = y - design @ torch.linalg.lstsq(design, y.unsqueeze(1)).solution.squeeze(1)
    assert 1 - (residual.var() / y.var()).item() == pytest.approx(0.7406, abs=1e-4)  # R squared


PICKLE = zlib.compress(pickle.dumps(list(range(100))))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        b"\x80\x04]q",
        PICKLE[:-1],
        PICKLE[:-1] + b"?",
        zlib.compress(b"no pickle"),
        zlib.compress(b""),
    ],
)
def test_a_damaged_file_of_california_housing_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cal_housing_py3.pkz").write_bytes(content)
    with pytest.raises(UsageError, match=r"cal_housing_py3\.pkz: damaged \(.*delete it to download it again"):
        tabular.california_housing(data_dir=tmp_path, seed=0, download=False, **FRACTIONS)
