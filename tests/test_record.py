"""The files that a run writes: metrics, times, tables, figures and the summary, also after an interruption."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dlhw.storage.record import Record, Row
from dlhw.storage.stored import read_summary

EPOCHS = 4


def make_row(epoch: int, *, loss: float | None = None) -> Row:
    return {
        "epoch": epoch,
        "step": 9 * epoch,
        "lr": 0.1,
        "val_loss": 1 / (3 * epoch) if loss is None else loss,
        "val_error_percent": 50.0 / epoch,
    }


def make_rows(epochs: int) -> list[Row]:
    return [make_row(epoch) for epoch in range(1, epochs + 1)]


def write_metrics(path: Path, rows: list[Row]) -> bytes:
    """Write metrics.csv as an uninterrupted run does, and return its content."""
    path.mkdir(exist_ok=True)
    record = Record(path)
    for row in rows:
        record.append(row, seconds=0.25)
    return (path / "metrics.csv").read_bytes()


@pytest.fixture
def interrupted_run(tmp_path: Path) -> Path:
    """The directory of a run that was interrupted after it wrote the rows of all epochs."""
    write_metrics(tmp_path, make_rows(EPOCHS))
    return tmp_path


def test_metrics_file_has_a_header_and_a_line_per_epoch(tmp_path: Path) -> None:
    assert write_metrics(tmp_path, make_rows(2)).decode() == (
        "epoch,step,lr,val_loss,val_error_percent\n1,9,0.1,0.3333333333,50\n2,18,0.1,0.1666666667,25\n"
    )


NUMBERS = st.floats(-1e300, 1e300, allow_subnormal=False) | st.just(math.nan) | st.integers(0, 2**53)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=5))
def test_pandas_reads_the_appended_rows(values: list[tuple[float, ...]]) -> None:
    rows: list[Row] = [
        {"epoch": epoch, "lr": lr, "loss": loss, "error": error} for epoch, (lr, loss, error) in enumerate(values, 1)
    ]
    with tempfile.TemporaryDirectory() as name:
        text = write_metrics(Path(name), rows)
    table = pd.read_csv(io.BytesIO(text))
    assert list(table.columns) == ["epoch", "lr", "loss", "error"]
    for row, (_, line) in zip(rows, table.iterrows(), strict=True):
        assert line.to_dict() == pytest.approx(row, rel=1e-9, abs=0, nan_ok=True)


@settings(deadline=None, max_examples=80)
@given(known=st.integers(0, EPOCHS), cut=st.integers(0, 200))
@example(known=0, cut=0)
@example(known=0, cut=3)  # a truncated header
@example(known=2, cut=3)
@example(known=0, cut=41)  # only a header
@example(known=2, cut=41)
@example(known=2, cut=200)  # nothing truncated
def test_metrics_file_truncated_anywhere_is_completed(known: int, cut: int) -> None:
    rows = make_rows(EPOCHS)
    with tempfile.TemporaryDirectory() as name:
        complete, path = write_metrics(Path(name), rows), Path(name, "metrics.csv")
        path.write_bytes(complete[:cut])
        record = Record(Path(name))
        record.restore(rows[:known])
        for row in rows[known:]:
            record.append(row, seconds=0.25)
        assert path.read_bytes() == complete
        assert record.rows == rows


def test_equal_rows_after_the_checkpoint_leave_the_metrics_file_unchanged(interrupted_run: Path) -> None:
    path = interrupted_run / "metrics.csv"
    complete = path.read_bytes()
    record = Record(interrupted_run)
    record.restore(make_rows(2))
    assert path.read_bytes() == complete
    for epoch in (3, 4):
        record.append(make_row(epoch), seconds=0.25)
        assert path.read_bytes() == complete


def test_rows_of_later_epochs_are_appended(interrupted_run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    record = Record(interrupted_run)
    record.restore(make_rows(3))
    for epoch in (4, 5, 6):
        record.append(make_row(epoch), seconds=0.25)
    assert (interrupted_run / "metrics.csv").read_bytes() == write_metrics(
        tmp_path_factory.mktemp("complete"), make_rows(6)
    )


def test_different_row_after_the_checkpoint_replaces_the_later_rows_with_a_warning(
    interrupted_run: Path, caplog: pytest.LogCaptureFixture, tmp_path_factory: pytest.TempPathFactory
) -> None:
    record, changed = Record(interrupted_run), make_row(3, loss=0.5)
    record.restore(make_rows(2))
    with caplog.at_level(logging.WARNING):
        record.append(changed, seconds=0.25)
    expected = write_metrics(tmp_path_factory.mktemp("complete"), [*make_rows(2), changed])
    assert (interrupted_run / "metrics.csv").read_bytes() == expected
    (warning,) = caplog.records
    assert warning.getMessage().startswith("epoch 3: the results differ from those before the interruption")


def test_different_first_row_replaces_all_rows(interrupted_run: Path) -> None:
    record = Record(interrupted_run)
    record.restore([])
    record.append(make_row(1, loss=0.5), seconds=0.25)
    assert pd.read_csv(interrupted_run / "metrics.csv")["val_loss"].tolist() == [0.5]


def test_equal_rows_after_the_checkpoint_give_no_warning(
    interrupted_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = Record(interrupted_run)
    record.restore(make_rows(2))
    record.append(make_row(3), seconds=0.25)
    assert not caplog.records


@pytest.mark.parametrize("known", range(EPOCHS + 1))
def test_missing_metrics_file_is_restored_from_the_checkpoint(interrupted_run: Path, known: int) -> None:
    path = interrupted_run / "metrics.csv"
    complete = path.read_bytes()
    path.unlink()
    record = Record(interrupted_run)
    record.restore(make_rows(known))
    for row in make_rows(EPOCHS)[known:]:
        record.append(row, seconds=0.25)
    assert path.read_bytes() == complete


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"epoch,loss\n1,2\n2,3\n", b"\n\n\n\n"], ids=repr)
def test_damaged_metrics_file_is_restored_from_the_checkpoint(interrupted_run: Path, damage: bytes) -> None:
    path = interrupted_run / "metrics.csv"
    complete = path.read_bytes()
    path.write_bytes(damage)
    record = Record(interrupted_run)
    record.restore(make_rows(EPOCHS))
    assert path.read_bytes() == complete


def test_repeated_epoch_keeps_the_last_time_and_metrics_contain_no_time(interrupted_run: Path) -> None:
    record = Record(interrupted_run)
    record.restore(make_rows(2))
    record.append(make_row(3), seconds=7.0)
    assert record.seconds() == [0.25, 0.25, 7.0, 0.25]
    assert b"7" not in (interrupted_run / "metrics.csv").read_bytes().partition(b"\n")[2][:20]


@pytest.mark.parametrize("cut", [14, 20, 23, 100])
def test_timing_file_with_a_truncated_line_is_continued(interrupted_run: Path, cut: int) -> None:
    path = interrupted_run / "timing.csv"
    path.write_bytes(path.read_bytes()[:cut])
    record = Record(interrupted_run)
    record.restore(make_rows(3))
    record.append(make_row(4), seconds=7.0)
    assert record.seconds()[-1] == 7.0


@pytest.mark.parametrize("cut", [0, 5])
def test_timing_file_with_a_truncated_header_is_replaced(interrupted_run: Path, cut: int) -> None:
    path = interrupted_run / "timing.csv"
    path.write_bytes(path.read_bytes()[:cut])
    record = Record(interrupted_run)
    record.restore(make_rows(3))
    record.append(make_row(4), seconds=7.0)
    assert record.seconds() == [7.0]


WORDS = st.text(st.characters(exclude_categories=["C"]), max_size=8)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(WORDS, st.integers(-10, 10)), min_size=1, max_size=4))
def test_tables_preserve_text_with_commas_and_quotes(values: list[tuple[str, int]]) -> None:
    rows = [{"layer": text, "count": number} for text, number in values]
    with tempfile.TemporaryDirectory() as name:
        path = Record(Path(name)).table("cost", rows)
        assert path == Path(name, "tables", "cost.csv")
        with path.open(newline="", encoding="utf-8") as file:
            read_rows = list(csv.DictReader(file))
    assert read_rows == [{"layer": text, "count": str(number)} for text, number in values]


def test_probes_are_written_to_their_own_folder(tmp_path: Path) -> None:
    path = Record(tmp_path).probe("epoch_0001", [{"parameter": "0.weight", "norm": 0.5}])
    assert path == tmp_path / "probes" / "epoch_0001.csv"
    assert path.read_text() == "parameter,norm\n0.weight,0.5\n"


@pytest.mark.parametrize("name", ["curves", "figures/weights"])
def test_figures_are_png_files(tmp_path: Path, name: str) -> None:
    from matplotlib.figure import Figure

    path = Record(tmp_path).figure(name, Figure(figsize=(1, 1)))
    assert path == tmp_path / f"{name}.png"
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_new_run_has_no_summary(tmp_path: Path) -> None:
    assert read_summary(tmp_path) == {}
    assert not Record(tmp_path).finished


def test_run_with_the_status_finished_is_finished(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.summary({"status": "finished", "seed": 3})
    assert record.finished
    assert read_summary(tmp_path) == json.loads((tmp_path / "summary.json").read_text())
    assert read_summary(tmp_path) == {"status": "finished", "seed": 3}


def test_numbers_that_are_not_finite_are_null_in_the_summary(tmp_path: Path) -> None:
    numbers = {"a": math.nan, "b": [math.inf, 1.5, (-math.inf, 2)], "c": {"mean": -math.inf, "n": 3, "name": "nan"}}
    Record(tmp_path).summary({"status": "finished", **numbers})
    expected = {"a": None, "b": [None, 1.5, [None, 2]], "c": {"mean": None, "n": 3, "name": "nan"}}
    assert read_summary(tmp_path) == {"status": "finished", **expected}


def test_failed_run_has_a_reason(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.fail(ValueError("no"))
    assert read_summary(tmp_path) == {"status": "failed", "reason": "ValueError: no"}
    assert not record.finished


def test_reopened_run_is_not_finished(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.summary({"status": "finished"})
    record.reopen()
    record.reopen()
    assert not record.finished


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_crash_while_writing_keeps_the_old_summary(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    record = Record(tmp_path)
    record.summary({"status": "finished", "seed": 3})
    before = (tmp_path / "summary.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, crash)
        with pytest.raises(KeyboardInterrupt):
            record.summary({"status": "failed"})
    assert (tmp_path / "summary.json").read_bytes() == before
    record.summary({"status": "failed"})
    assert read_summary(tmp_path) == {"status": "failed"}


def test_invalid_summary_is_logged_and_the_run_counts_as_incomplete(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "summary.json").write_text('{"status": "finished", "final": null}')
    assert not Record(tmp_path).finished
    assert caplog.messages == [
        f"{tmp_path / 'summary.json'}: best must be a row of metrics with its epoch; delete it, then resume the run, "
        "which writes it again (the run is completed again)"
    ]
