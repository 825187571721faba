"""Run directories: claimed once, written atomically, and after an interruption equal to an uninterrupted run's."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dlhw.errors import UsageError
from dlhw.runs.record import Record, Row, claim_directory, directory_name, read_summary

EPOCHS = 4


def row_of(epoch: int, *, loss: float | None = None) -> Row:
    return {
        "epoch": epoch,
        "step": 9 * epoch,
        "lr": 0.1,
        "val_loss": 1 / (3 * epoch) if loss is None else loss,
        "val_error_percent": 50.0 / epoch,
    }


def rows_of(epochs: int) -> list[Row]:
    return [row_of(epoch) for epoch in range(1, epochs + 1)]


def written(path: Path, rows: list[Row]) -> bytes:
    """Write metrics.csv of an uninterrupted run, and return its content."""
    path.mkdir(exist_ok=True)
    record = Record(path)
    for row in rows:
        record.append(row, seconds=0.25)
    return (path / "metrics.csv").read_bytes()


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A run directory with all epochs in its metrics.csv."""
    written(tmp_path, rows_of(EPOCHS))
    return tmp_path


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


# Directories


def test_a_free_name_is_used_unchanged(tmp_path: Path) -> None:
    requested = tmp_path / "outputs" / "run"
    assert claim_directory(requested, exact=False) == requested
    assert requested.is_dir()


def test_a_taken_name_gets_a_number(tmp_path: Path) -> None:
    names = [claim_directory(tmp_path / "run", exact=False).name for _ in range(3)]
    assert names == ["run", "run-2", "run-3"]


def test_concurrent_claims_get_different_directories(tmp_path: Path) -> None:
    count = 16
    barrier, claimed = threading.Barrier(count), []

    def claim() -> None:
        barrier.wait()
        claimed.append(claim_directory(tmp_path / "run", exact=False))

    threads = [threading.Thread(target=claim) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in claimed) == sorted(["run", *(f"run-{n}" for n in range(2, count + 1))])


def test_a_file_of_that_name_gives_the_next_number(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    assert claim_directory(tmp_path / "run", exact=False).name == "run-2"


def test_an_existing_run_is_never_overwritten(tmp_path: Path) -> None:
    written(tmp_path / "run", rows_of(1))
    with pytest.raises(UsageError, match=r"run: already exists, .* resume="):
        claim_directory(tmp_path / "run", exact=True)


def test_an_exact_name_may_be_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert claim_directory(tmp_path / "run", exact=True) == tmp_path / "run"


@pytest.mark.parametrize("exact", [False, True])
def test_a_path_below_a_file_is_an_error(tmp_path: Path, exact: bool) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"run: the run directory cannot be created \("):
        claim_directory(tmp_path / "file" / "run", exact=exact)


# metrics.csv


def test_metrics_have_a_header_and_a_line_per_epoch(tmp_path: Path) -> None:
    assert written(tmp_path, rows_of(2)).decode() == (
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
        text = written(Path(name), rows)
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
def test_a_file_truncated_anywhere_is_completed(known: int, cut: int) -> None:
    rows = rows_of(EPOCHS)
    with tempfile.TemporaryDirectory() as name:
        whole, path = written(Path(name), rows), Path(name, "metrics.csv")
        path.write_bytes(whole[:cut])
        record = Record(Path(name))
        record.restore(rows[:known])
        for row in rows[known:]:
            record.append(row, seconds=0.25)
        assert path.read_bytes() == whole
        assert record.rows == rows


def test_equal_rows_after_the_checkpoint_leave_the_file_unchanged(interrupted: Path) -> None:
    path = interrupted / "metrics.csv"
    whole = path.read_bytes()
    record = Record(interrupted)
    record.restore(rows_of(2))
    assert path.read_bytes() == whole
    for epoch in (3, 4):
        record.append(row_of(epoch), seconds=0.25)
        assert path.read_bytes() == whole


def test_epochs_beyond_the_existing_rows_are_appended(
    interrupted: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    record = Record(interrupted)
    record.restore(rows_of(3))
    for epoch in (4, 5, 6):
        record.append(row_of(epoch), seconds=0.25)
    assert (interrupted / "metrics.csv").read_bytes() == written(tmp_path_factory.mktemp("whole"), rows_of(6))


def test_different_rows_after_the_checkpoint_are_replaced_with_a_warning(
    interrupted: Path, caplog: pytest.LogCaptureFixture, tmp_path_factory: pytest.TempPathFactory
) -> None:
    record, changed = Record(interrupted), row_of(3, loss=0.5)
    record.restore(rows_of(2))
    with caplog.at_level(logging.WARNING):
        record.append(changed, seconds=0.25)
    expected = written(tmp_path_factory.mktemp("whole"), [*rows_of(2), changed])
    assert (interrupted / "metrics.csv").read_bytes() == expected
    (warning,) = caplog.records
    assert warning.getMessage().startswith("epoch 3: the results differ from those before the interruption")


def test_different_rows_are_replaced_from_the_first_epoch_on(interrupted: Path) -> None:
    record = Record(interrupted)
    record.restore([])
    record.append(row_of(1, loss=0.5), seconds=0.25)
    assert pd.read_csv(interrupted / "metrics.csv")["val_loss"].tolist() == [0.5]


def test_equal_rows_after_the_checkpoint_give_no_warning(interrupted: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = Record(interrupted)
    record.restore(rows_of(2))
    record.append(row_of(3), seconds=0.25)
    assert not caplog.records


@pytest.mark.parametrize("known", range(EPOCHS + 1))
def test_a_missing_file_is_restored_from_the_checkpoint(interrupted: Path, known: int) -> None:
    path = interrupted / "metrics.csv"
    whole = path.read_bytes()
    path.unlink()
    record = Record(interrupted)
    record.restore(rows_of(known))
    for row in rows_of(EPOCHS)[known:]:
        record.append(row, seconds=0.25)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"epoch,loss\n1,2\n2,3\n", b"\n\n\n\n"], ids=repr)
def test_a_damaged_file_is_restored_from_the_checkpoint(interrupted: Path, damage: bytes) -> None:
    path = interrupted / "metrics.csv"
    whole = path.read_bytes()
    path.write_bytes(damage)
    record = Record(interrupted)
    record.restore(rows_of(EPOCHS))
    assert path.read_bytes() == whole


# timing.csv


def test_the_last_time_of_an_epoch_counts_and_is_not_in_metrics(interrupted: Path) -> None:
    record = Record(interrupted)
    record.restore(rows_of(2))
    record.append(row_of(3), seconds=7.0)
    assert record.seconds() == [0.25, 0.25, 7.0, 0.25]
    assert b"7" not in (interrupted / "metrics.csv").read_bytes().partition(b"\n")[2][:20]


@pytest.mark.parametrize("cut", [14, 20, 23, 100])
def test_timing_with_a_truncated_line_continues(interrupted: Path, cut: int) -> None:
    path = interrupted / "timing.csv"
    path.write_bytes(path.read_bytes()[:cut])
    record = Record(interrupted)
    record.restore(rows_of(3))
    record.append(row_of(4), seconds=7.0)
    assert record.seconds()[-1] == 7.0


@pytest.mark.parametrize("cut", [0, 5])
def test_timing_with_a_truncated_header_continues(interrupted: Path, cut: int) -> None:
    path = interrupted / "timing.csv"
    path.write_bytes(path.read_bytes()[:cut])
    record = Record(interrupted)
    record.restore(rows_of(3))
    record.append(row_of(4), seconds=7.0)
    assert record.seconds() == [7.0]


# Tables, probes, figures


WORDS = st.text(st.characters(exclude_categories=["C"]), max_size=8)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(WORDS, st.integers(-10, 10)), min_size=1, max_size=4))
def test_tables_keep_text_with_commas_and_quotes(values: list[tuple[str, int]]) -> None:
    rows = [{"layer": text, "count": number} for text, number in values]
    with tempfile.TemporaryDirectory() as name:
        path = Record(Path(name)).table("cost", rows)
        assert path == Path(name, "tables", "cost.csv")
        with path.open(newline="", encoding="utf-8") as file:
            back = list(csv.DictReader(file))
    assert back == [{"layer": text, "count": str(number)} for text, number in values]


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


# summary.json


def test_a_new_run_has_no_summary(tmp_path: Path) -> None:
    assert read_summary(tmp_path) == {}
    assert not Record(tmp_path).finished


def test_status_finished_in_the_summary_means_finished(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.summary({"status": "finished", "seed": 3})
    assert record.finished
    assert read_summary(tmp_path) == json.loads((tmp_path / "summary.json").read_text())
    assert read_summary(tmp_path) == {"status": "finished", "seed": 3}


def test_a_failed_run_has_a_reason(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.fail(ValueError("no"))
    assert read_summary(tmp_path) == {"status": "failed", "reason": "ValueError: no"}
    assert not record.finished


def test_a_reopened_run_is_no_longer_finished(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.summary({"status": "finished"})
    record.reopen()
    record.reopen()
    assert not record.finished


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_crash_leaves_the_old_summary(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


# Runs that never started


def test_discard_removes_a_run_that_never_started(tmp_path: Path) -> None:
    path = tmp_path / "experiment" / "run"
    path.mkdir(parents=True)
    Record(path).write_config("seed: 0\n", new=True)
    (path / "train.log").write_text("x")
    Record(path).discard()
    assert list(tmp_path.iterdir()) == []


def test_discard_keeps_other_runs(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "experiment" / name).mkdir(parents=True)
    Record(tmp_path / "experiment" / "one").discard()
    assert [path.name for path in (tmp_path / "experiment").iterdir()] == ["two"]


@pytest.mark.parametrize("name", ["metrics.csv", "last.pt", "summary.json"])
def test_discard_keeps_a_run_with_results(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / name).write_text("x")
    Record(path).write_config("seed: 0\n", new=True)
    Record(path).discard()
    assert sorted(file.name for file in path.iterdir()) == sorted(["config.yaml", name])


# Directory names of a sweep's jobs


FORBIDDEN = set('<>:"/\\|?*\0') | {chr(code) for code in range(32)}  # on Windows; other systems forbid fewer
KEYS = st.sampled_from(["seed", "b", "optimizer.lr", "+optimizer.momentum_decay", "model"])
PLAIN_VALUES = st.integers(-1000, 1000).map(str) | st.floats(1e-6, 1e6).map(repr) | st.sampled_from(["mlp", "cnn"])
OVERRIDES = st.dictionaries(KEYS, PLAIN_VALUES, min_size=1, max_size=5).map(
    lambda chosen: [f"{key}={value}" for key, value in chosen.items()]
)


@given(st.lists(st.text(max_size=60), max_size=6), st.integers(10, 100))
def test_directory_names_are_safe_and_short(overrides: list[str], longest: int) -> None:
    name = directory_name(overrides, longest=longest)
    assert 0 < len(name) <= longest
    assert not FORBIDDEN & set(name)
    assert not name.startswith(".")
    assert not name.endswith((".", " "))


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(OVERRIDES, OVERRIDES)
def test_directory_names_of_distinct_jobs_are_distinct(one: list[str], other: list[str]) -> None:
    plain = [[line.removeprefix("+") for line in lines] for lines in (one, other)]
    assert (directory_name(one) == directory_name(other)) == (plain[0] == plain[1])


def test_long_directory_names_are_shortened_and_stay_distinct() -> None:
    one, other = (directory_name([f"model.hidden={'1' * 200}{end}", "seed=0"]) for end in "12")
    assert one != other
    for name in (one, other):
        assert re.fullmatch(r"seed=0-[0-9a-f]{8}", name)
    many = [f"model.channels={n}" for n in range(100)]
    assert len(directory_name(many)) <= 120
    assert re.fullmatch(r"(model\.channels=\d+,)*model\.channels=\d+-[0-9a-f]{8}", directory_name(many))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["b=0.05", "seed=3"], "b=0.05,seed=3"),
        (["experiment=flooding", "b=0.05"], "experiment=flooding,b=0.05"),
        (["+optimizer.weight_decay=1e-4"], "optimizer.weight_decay=1e-4"),
        (["model.hidden=[500,200]"], "model.hidden=_500,200-c97e5ed5"),
        (["data_dir=/tmp/my data"], "data_dir=_tmp_my_data-f983826f"),
        ([], "defaults"),
    ],
    ids=str,
)
def test_directory_names_by_example(overrides: list[str], expected: str) -> None:
    assert directory_name(overrides) == expected
