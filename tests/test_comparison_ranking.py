"""Rank settings by their mean validation metric, and choose the winner."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlhw.views.comparison import compare_runs
from dlhw.views.comparison.ranking import spread
from support.run_directories import CURVES, NO_CURVES, make_run, make_study_run, make_sweep, read_rows


def test_means_standard_deviations_and_winner_are_written_and_printed(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, {"b=0": [2.0, 4.0, 6.0], "b=0.1": [1.0, 2.0, 6.0], "b=0.2": [5.0, 5.0, 5.0]})
    conclusion = compare_runs(tmp_path, runs, comparison=NO_CURVES)
    assert conclusion.winner is not None
    assert conclusion.winner.values == {"b": "0.1"}
    assert [row["b"] for row in read_rows(tmp_path / "tables" / "settings.csv")] == ["0.1", "0", "0.2"]
    first = read_rows(tmp_path / "tables" / "settings.csv")[1]
    assert (first["n"], first["failed"]) == ("3", "0")
    assert (first["best_val_error_percent_mean"], first["best_val_error_percent_std"]) == ("4", "2")
    assert (first["best_test_error_percent_mean"], first["best_test_error_percent_std"]) == ("6", "2")
    assert (first["best_epoch_mean"], first["final_val_error_percent_mean"]) == ("2", "5")
    assert (first["parameters_mean"], first["seconds_per_epoch_mean"]) == ("7", "0.5")
    winner = json.loads((tmp_path / "summary.json").read_text())["winner"]
    assert winner["val_error_percent"] == {"mean": 3.0, "sd": pytest.approx(7.0**0.5)}
    assert winner["test_error_percent"] == {"mean": 7.0, "sd": pytest.approx(7.0**0.5)}
    assert str(conclusion).splitlines() == [
        "setting  validation error (%)  test error (%)  n",
        "b = 0.1  3.00 ± 2.65           7.00 ± 2.65     3",
        "b = 0    4.00 ± 2.00           6.00 ± 2.00     3",
        "b = 0.2  5.00 ± 0.00           5.00 ± 0.00     3",
        "lowest mean validation error: b = 0.1 (3.00 ± 2.65 %, n = 3), test error 7.00 ± 2.65 %",
    ]


def test_single_run_has_no_standard_deviation(tmp_path: Path) -> None:
    conclusion = compare_runs(tmp_path, make_sweep(tmp_path, {"b=0": [2.0], "b=1": [3.0]}), comparison=NO_CURVES)
    assert read_rows(tmp_path / "tables" / "settings.csv")[0]["best_val_error_percent_std"] == ""
    assert json.loads((tmp_path / "summary.json").read_text())["winner"]["val_error_percent"]["sd"] is None
    assert "±" not in str(conclusion)


def test_infinite_mean_has_no_standard_deviation() -> None:
    assert str(spread([1.0, math.inf])) == "inf"


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.floats(0, 100), min_size=1, max_size=3), min_size=2, max_size=5),
    st.data(),
)
def test_winner_has_the_lowest_validation_mean_for_any_test_values(
    results: list[list[float]], data: st.DataObject
) -> None:
    winners = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as name:
            runs = [
                make_run(
                    Path(name) / f"{b}-{seed}", f"b={b}", f"seed={seed}", val=val, test=data.draw(st.floats(0, 100))
                )
                for b, seeds in enumerate(results)
                for seed, val in enumerate(seeds)
            ]
            conclusion = compare_runs(Path(name), runs, comparison=NO_CURVES)
            assert conclusion.winner is not None
            winners.append(int(conclusion.winner.values["b"]))
    assert winners[0] == winners[1]
    means = [statistics.fmean(seeds) for seeds in results]
    assert winners[0] == means.index(min(means))


@pytest.mark.parametrize("status", ["failed", "unfinished"])
def test_incomplete_setting_cannot_win(tmp_path: Path, status: str) -> None:
    runs = make_sweep(tmp_path, {"b=0": [5.0, 5.0], "b=1": [1.0]})
    runs.append(make_run(tmp_path / "incomplete", "b=1", "seed=1", status=status))
    conclusion = compare_runs(tmp_path, runs, comparison=NO_CURVES)
    assert conclusion.winner is not None
    assert conclusion.winner.values == {"b": "0"}
    assert "b = 1    1                     9               1 of 2" in str(conclusion).splitlines()
    assert conclusion.status == status


def test_no_winner_without_a_complete_setting(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, {"b=0": [5.0], "b=1": [1.0]})
    runs += [make_run(tmp_path / b, f"b={b}", "seed=1", status="failed") for b in "01"]
    conclusion = compare_runs(tmp_path, runs, comparison=CURVES)
    assert conclusion.winner is None
    lines = str(conclusion).splitlines()
    assert "no winner: no setting has only finished runs" in lines
    assert lines[-2:] == ["0: failed: TrainingFailed: loss nan", "1: failed: TrainingFailed: loss nan"]
    assert json.loads((tmp_path / "summary.json").read_text())["winner"] is None


def test_no_winner_among_runs_with_different_monitors(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / name, f"trainer.monitor={name}", monitor=name) for name in ("val_loss", "val_error_percent")
    ]
    assert (
        "no winner: the runs have different values of trainer.monitor (val_error_percent, val_loss)"
        in str(compare_runs(tmp_path, runs, comparison=CURVES)).splitlines()
    )


def test_studies_are_compared_by_their_numbers_without_a_winner(tmp_path: Path) -> None:
    runs = [make_study_run(tmp_path / str(width), f"model.width={width}", multiply_adds=10 * width) for width in (1, 2)]
    conclusion = compare_runs(tmp_path, runs, comparison=CURVES)
    assert [row["multiply_adds"] for row in read_rows(tmp_path / "sweep.csv")] == ["10", "20"]
    assert [row["multiply_adds_mean"] for row in read_rows(tmp_path / "tables" / "settings.csv")] == ["10", "20"]
    assert "width = 2  20" in str(conclusion)
    assert "no winner: no run trained a model" in str(conclusion)
    assert conclusion.notes == ()


def test_repeated_run_is_noted_and_not_counted(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, {"b=0": [2.0, 4.0], "b=1": [9.0]})
    runs.append(make_run(tmp_path / "again", "b=0", "seed=1", val=4.0))
    conclusion = compare_runs(tmp_path, runs, comparison=NO_CURVES)
    assert conclusion.winner is not None
    assert [run.path.name for run in conclusion.winner.runs] == ["b=0,seed=0", "b=0,seed=1"]
    assert "b = 0    3.00 ± 1.41" in str(conclusion)
    assert conclusion.notes == ("not counted, because another run has the same config and seed: again",)
    assert len(read_rows(tmp_path / "sweep.csv")) == 4


def test_at_most_thirty_settings_are_printed(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, {f"b={b}": [float(b)] for b in range(33)})
    lines = str(compare_runs(tmp_path, runs, comparison=NO_CURVES)).splitlines()
    assert len(lines) == 1 + 30 + 2
    assert lines[31] == "and 3 more in tables/settings.csv"
    assert len(read_rows(tmp_path / "tables" / "settings.csv")) == 33


def test_settings_with_exactly_the_lowest_mean_are_reported_as_tied(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, {"b=0": [2.0, 3.0], "b=1": [3.0, 2.0], "b=2": [2.5, 2.5], "b=3": [4.0, 4.0]})
    conclusion = compare_runs(tmp_path, runs, comparison=NO_CURVES)
    assert conclusion.verdict.startswith("lowest mean validation error: b = 0 (")
    assert conclusion.verdict.endswith("; tied with b = 1, b = 2")
    assert json.loads((tmp_path / "summary.json").read_text())["tied"] == ["b = 1", "b = 2"]


def test_models_of_different_datasets_have_no_winner(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / name, f"dataset={name}", val=val, choices={"dataset": name}, data={"name": name})
        for name, val in (("digits", 1.0), ("mnist", 2.0))
    ]
    conclusion = compare_runs(tmp_path, runs, comparison=NO_CURVES)
    assert conclusion.winner is None
    assert conclusion.verdict == "no winner: the runs have different datasets (digits, mnist)"


def test_picture_folders_with_different_paths_are_different_datasets(tmp_path: Path) -> None:
    runs = [
        make_run(
            tmp_path / name,
            f"dataset.root=/{name}",
            config={"dataset": {"root": f"/{name}"}},
            data={"name": "image_folder"},
        )
        for name in ("cats", "dogs")
    ]
    assert compare_runs(tmp_path, runs, comparison=NO_CURVES).verdict == (
        "no winner: the runs have different datasets (image_folder /cats, image_folder /dogs)"
    )
