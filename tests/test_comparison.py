"""Comparing finished runs: settings, means and standard deviations, the winner, the files, the command."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dlhw.compare import compare, main
from dlhw.errors import UsageError
from dlhw.views.comparison import Comparison, compare_runs, figures
from dlhw.views.comparison.ranking import group_by_setting, spread
from dlhw.views.comparison.results import canonical, read
from support.caches import forget

PLAIN = Comparison(
    curves=["train_loss", "val_error_percent"], x="epoch", log_x=False, overlay=None, against=[], probes=[]
)
NOTHING = Comparison(curves=[], x="epoch", log_x=False, overlay=None, against=[], probes=[])


def make_run(
    path: Path,
    *overrides: str,
    val: float = 2.0,
    test: float = 3.0,
    monitor: str = "val_error_percent",
    status: str = "finished",
    config: Mapping[str, Any] | None = None,
    choices: Mapping[str, str] | None = None,
    epochs: int = 3,
    **summary: Any,
) -> Path:
    """Make a minimal run directory, with validation error ``val`` at the best epoch, the second."""
    (path / ".hydra").mkdir(parents=True)
    (path / ".hydra" / "overrides.yaml").write_text(json.dumps(list(overrides)))  # JSON is YAML
    (path / ".hydra" / "hydra.yaml").write_text(json.dumps({"hydra": {"runtime": {"choices": dict(choices or {})}}}))
    seed = next((int(line.partition("=")[2]) for line in overrides if line.startswith("seed=")), 0)
    (path / "config.yaml").write_text(json.dumps({"seed": seed, **(config or {})}))
    rows = [
        {
            "epoch": epoch,
            "train_loss": 1 / epoch,
            "val_loss": val / 10 + abs(epoch - 2),
            "val_error_percent": val + abs(epoch - 2),
            "test_loss": test / 10,
            "test_error_percent": test,
        }
        for epoch in range(1, epochs + 1)
    ]
    with (path / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    content: dict[str, Any] = {"status": status, "monitor": monitor, "best": rows[min(1, epochs - 1)]}
    content |= {"final": rows[-1], "seconds": 9.5, "seconds_per_epoch": 0.5, "experiment": "tiny", "seed": seed}
    content |= {"parameters": 7, **summary}
    if status == "failed":
        content = {"status": "failed", "reason": summary.get("reason", "TrainingFailed: loss nan")}
    if status != "unfinished":
        (path / "summary.json").write_text(json.dumps(content))
    return path


def make_sweep(path: Path, results: Mapping[str, Sequence[float]], *, test: float = 1.0, **run: Any) -> list[Path]:
    """Make a run per seed and setting: two for ``{"b=0.1": [2.0, 4.0]}``. The test error is 10 ``test`` - ``val``."""
    return [
        make_run(
            path / f"{overrides.replace(' ', ',')},seed={seed}",
            *overrides.split(),
            f"seed={seed}",
            val=val,
            test=10 * test - val,
            **run,
        )
        for overrides, seeds in results.items()
        for seed, val in enumerate(seeds)
    ]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- settings ---------------------------------------------------------------------------------------------


def test_settings_are_the_keys_that_vary_except_the_seed(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / f"{b},{seed}", "experiment=x", f"+b={b}", "++c=1", f"seed={seed}", f"data_dir=/{b}")
        for b in ("0", "0.05")
        for seed in (0, 1)
    ]
    results = read(runs)
    assert [result.settings for result in results] == [{"b": "0"}, {"b": "0"}, {"b": "0.05"}, {"b": "0.05"}]
    assert [result.seed for result in results] == [0, 1, 0, 1]
    assert [setting.label for setting in group_by_setting(results)] == ["b = 0", "b = 0.05"]


def test_without_an_override_the_value_comes_from_the_config(tmp_path: Path) -> None:
    runs = [
        make_run(
            tmp_path / "a",
            "optimizer=adam",
            "optimizer.lr=0.10",
            "model.hidden=[8, 8]",
            config={"optimizer": {"lr": 0.1}, "model": {"hidden": [8, 8]}, "trainer": {"patience": 3}},
        ),
        make_run(
            tmp_path / "b",
            "trainer.patience=3",
            config={"optimizer": {"lr": 0.1}, "model": {"hidden": [8, 8]}, "trainer": {"patience": 3}},
            choices={"optimizer": "sgd"},
        ),
    ]
    assert [result.settings for result in read(runs)] == [{"optimizer": "adam"}, {"optimizer": "sgd"}]


def test_a_missing_key_counts_as_another_value(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"{seed}", f"seed={seed}", config={"optimizer": {"lr": 1}}) for seed in (0, 1)]
    node = {"optimizer": {"lr": 1, "momentum_decay": 0.9}}
    runs.append(make_run(tmp_path / "d", "+optimizer.momentum_decay=0.9", "seed=2", config=node))
    settings = group_by_setting(read(runs))
    assert [setting.label for setting in settings] == ["without momentum_decay", "momentum_decay = 0.9"]
    assert [len(setting.runs) for setting in settings] == [2, 1]


def test_the_config_takes_precedence_over_the_overrides(tmp_path: Path) -> None:
    runs = [
        make_run(
            tmp_path / f"{b},{epochs}", f"b={b}", "trainer.epochs=2", config={"b": b, "trainer": {"epochs": epochs}}
        )
        for b, epochs in ((0, 2), (0, 6), (1, 2))
    ]
    settings = [{"b": "0", "trainer.epochs": "2"}, {"b": "0", "trainer.epochs": "6"}, {"b": "1", "trainer.epochs": "2"}]
    assert [result.settings for result in read(runs)] == settings


def test_runs_that_differ_only_in_their_configs_are_different_settings(tmp_path: Path) -> None:
    configs = [
        {"lr": lr, "optimizer": {"lr": lr}, "name": f"n{seed}", "dataset": {"seed": seed, "start": f"seed={seed}.pt"}}
        for lr, seed in ((0.1, 0), (0.1, 1), (0.3, 0))
    ]
    runs = [
        make_run(tmp_path / name, f"seed={config['dataset']['seed']}", config=config)  # type: ignore[index]
        for name, config in zip("xyz", configs, strict=True)
    ]
    (tmp_path / "z" / "config.yaml").write_text(
        "seed: 0\nlr: 0.3\noptimizer:\n  lr: 3e-1\nname: n\ndataset:\n  seed: 0\n  start: seed=0.pt\n"
    )
    results = read(runs)
    assert [result.settings for result in results] == [{"lr": "0.1"}, {"lr": "0.1"}, {"lr": "0.3"}]
    assert [result.repeats for result in results] == [None] * 3


def test_a_job_without_a_config_makes_the_matching_setting_incomplete(tmp_path: Path) -> None:
    never = tmp_path / "never"
    runs = [
        make_run(tmp_path / f"{b},{epochs}", f"b={b}", val=val, config={"b": b, "epochs": epochs})
        for b, epochs, val in ((0, 2, 5.0), (0, 6, 4.0), (1, 2, 3.0))
    ]
    conclusion = compare_runs(tmp_path, [never, *runs], comparison=NOTHING, overrides={never: ["b=1", "seed=1"]})
    assert conclusion.winner is not None
    assert conclusion.winner.values == {"b": "0", "epochs": "6"}
    assert [run.path.name for run in conclusion.settings[-1].runs] == ["never", "1,2"]
    assert conclusion.settings[-1].label == "b = 1, epochs = 2"


def test_many_differences_need_only_a_few_distinguishing_columns(tmp_path: Path) -> None:
    configs = [{f"key{i}": (i + 1) * (run % 2) for i in range(9)} | {"late.key": {"x": run // 2}} for run in range(4)]
    runs = [make_run(tmp_path / f"{i}", config=config) for i, config in enumerate(configs)]
    results = read(runs)
    assert list(results[0].settings) == ["key0", "key1", "key2", "key3", "key4", "late.key.x"]
    assert len(group_by_setting(results)) == 4


def test_an_interpolation_of_the_seed_is_not_a_setting(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / f"{seed}", f"seed={seed}", "dataset.seed=${seed}", config={"dataset": {"seed": seed}})
        for seed in (0, 1)
    ]
    assert [result.settings for result in read(runs)] == [{}, {}]


def test_a_repeated_run_is_not_counted(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, {"b=0": [2.0, 4.0], "b=1": [9.0]})
    runs.append(make_run(tmp_path / "again", "b=0", "seed=1", val=4.0))
    conclusion = compare_runs(tmp_path, runs, comparison=NOTHING)
    assert conclusion.winner is not None
    assert [run.path.name for run in conclusion.winner.runs] == ["b=0,seed=0", "b=0,seed=1"]
    assert "b = 0    3.00 ± 1.41" in str(conclusion)
    assert conclusion.notes == ("not counted, because another run has the same config and seed: again",)
    assert len(table(tmp_path / "sweep.csv")) == 4


def test_what_runs_share_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of runs are read in a second, as a part of a config that was parsed before is not parsed again."""
    text = "".join(f"part{i}:\n" + "".join(f"  key{j}: {i * j}\n" for j in range(9)) for i in range(12))
    runs = make_sweep(tmp_path, {f"optimizer.lr={lr}": [1.0] * 3 for lr in range(100)})
    for i, run in enumerate(runs):
        (run / "config.yaml").write_text(f"seed: {i % 3}\n{text}optimizer:\n  lr: {i // 3}\n")
    forget()
    parsed: list[str] = []
    load = yaml.load

    def noting(stream: Any, Loader: Any) -> Any:
        parsed.append(stream if isinstance(stream, str) else stream.decode())
        if yaml.__with_libyaml__:
            assert issubclass(Loader, yaml.CSafeLoader)  # ten times as quick as the parser in Python
        return load(stream, Loader)

    monkeypatch.setattr(yaml, "load", noting)
    assert len(group_by_setting(read(runs))) == 100
    counts = Counter(text for text in parsed if re.match(r"part\d+:", text))
    assert len(counts) == 12
    assert set(counts.values()) == {1}


def test_an_experiment_may_be_a_setting(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a", "experiment=flooding", "b=0.1", config={"b": 0.1}),
        make_run(tmp_path / "b", "experiment=flooding", "b=0.2", config={"b": 0.2}),
        make_run(tmp_path / "c", "experiment=mnist_mlp"),
    ]
    labels = [setting.label for setting in group_by_setting(read(runs))]
    assert labels == ["experiment = flooding, b = 0.1", "experiment = flooding, b = 0.2", "experiment = mnist_mlp"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("0.10", "1e-1", True),
        ("[8,8]", "[8.0, 8]", True),
        ("'a b'", "a b", True),
        ("null", "", True),
        ("true", "1", False),
        ("0.1", "0.11", False),
        ("nan", "nan", True),
        ("[8]", "8", False),
        ("a: [", "a: [", True),
    ],
)
def test_values_are_compared_after_parsing(one: str, other: str, same: bool) -> None:
    assert (canonical(one) == canonical(other)) is same


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_notations_of_a_number_are_equal(value: float) -> None:
    assert canonical(repr(value)) == canonical(f"{value:.17e}") == value


@given(st.text())
def test_any_text_has_a_hashable_value(text: str) -> None:
    assert {canonical(text)} == {canonical(text)}  # hashed, and equal to itself


def test_labels_have_the_last_part_of_keys_where_it_is_unique(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a", "optimizer.lr=1", "model.width=3", "init.width=1"),
        make_run(tmp_path / "b", "optimizer.lr=2", "model.width=4", "init.width=2"),
    ]
    assert group_by_setting(read(runs))[0].label == "lr = 1, model.width = 3, init.width = 1"


# --- numbers and the winner -------------------------------------------------------------------------------


def test_mean_standard_deviation_and_winner(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, {"b=0": [2.0, 4.0, 6.0], "b=0.1": [1.0, 2.0, 6.0], "b=0.2": [5.0, 5.0, 5.0]})
    conclusion = compare_runs(tmp_path, runs, comparison=NOTHING)
    assert conclusion.winner is not None
    assert conclusion.winner.values == {"b": "0.1"}
    assert [row["b"] for row in table(tmp_path / "tables" / "settings.csv")] == ["0.1", "0", "0.2"]
    first = table(tmp_path / "tables" / "settings.csv")[1]
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


def test_a_single_run_has_no_standard_deviation(tmp_path: Path) -> None:
    conclusion = compare_runs(tmp_path, make_sweep(tmp_path, {"b=0": [2.0], "b=1": [3.0]}), comparison=NOTHING)
    assert table(tmp_path / "tables" / "settings.csv")[0]["best_val_error_percent_std"] == ""
    assert json.loads((tmp_path / "summary.json").read_text())["winner"]["val_error_percent"]["sd"] is None
    assert "±" not in str(conclusion)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.lists(st.floats(0, 100), min_size=1, max_size=3),
        min_size=2,
        max_size=5,
    ),
    st.data(),
)
def test_the_winner_has_the_lowest_validation_mean_and_test_values_do_not_matter(
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
            conclusion = compare_runs(Path(name), runs, comparison=NOTHING)
            assert conclusion.winner is not None
            winners.append(int(conclusion.winner.values["b"]))
    assert winners[0] == winners[1]
    means = [statistics.fmean(seeds) for seeds in results]
    assert winners[0] == means.index(min(means))


@pytest.mark.parametrize("status", ["failed", "unfinished"])
def test_an_incomplete_setting_cannot_win(tmp_path: Path, status: str) -> None:
    runs = make_sweep(tmp_path, {"b=0": [5.0, 5.0], "b=1": [1.0]})
    runs.append(make_run(tmp_path / "late", "b=1", "seed=1", status=status))
    conclusion = compare_runs(tmp_path, runs, comparison=NOTHING)
    assert conclusion.winner is not None
    assert conclusion.winner.values == {"b": "0"}
    assert "b = 1    1                     9               1 of 2" in str(conclusion).splitlines()
    assert conclusion.status == status


def test_without_a_complete_setting_there_is_no_winner(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, {"b=0": [5.0], "b=1": [1.0]})
    runs += [make_run(tmp_path / b, f"b={b}", "seed=1", status="failed") for b in "01"]
    conclusion = compare_runs(tmp_path, runs, comparison=PLAIN)
    assert conclusion.winner is None
    lines = str(conclusion).splitlines()
    assert "no winner: no setting has only finished runs" in lines
    assert lines[-2:] == ["0: failed: TrainingFailed: loss nan", "1: failed: TrainingFailed: loss nan"]
    assert json.loads((tmp_path / "summary.json").read_text())["winner"] is None


def test_runs_with_different_monitors_have_no_winner(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / m, f"trainer.monitor={m}", monitor=m) for m in ("val_loss", "val_error_percent")]
    assert (
        "no winner: the runs have different values of trainer.monitor (val_error_percent, val_loss)"
        in str(compare_runs(tmp_path, runs, comparison=PLAIN)).splitlines()
    )


def test_studies_are_compared_by_their_numbers(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(width), f"model.width={width}", multiply_adds=10 * width) for width in (1, 2)]
    for run in runs:
        content = json.loads((run / "summary.json").read_text())
        for name in ("monitor", "best", "final", "seconds", "seconds_per_epoch"):
            del content[name]
        (run / "summary.json").write_text(json.dumps(content))
    conclusion = compare_runs(tmp_path, runs, comparison=PLAIN)
    assert [row["multiply_adds"] for row in table(tmp_path / "sweep.csv")] == ["10", "20"]
    assert [row["multiply_adds_mean"] for row in table(tmp_path / "tables" / "settings.csv")] == ["10", "20"]
    assert "width = 2  20" in str(conclusion)
    assert "no winner: no run trained a model" in str(conclusion)
    assert conclusion.notes == ()


def test_studies_are_drawn_against_a_numeric_key(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"{n}", f"model.hidden=[{n}]", multiply_adds=10 * n, bytes=n) for n in (1, 20, 300)]
    for run in runs:
        content = json.loads((run / "summary.json").read_text())
        for name in ("monitor", "best", "final", "seconds", "seconds_per_epoch"):
            del content[name]
        (run / "summary.json").write_text(json.dumps(content))
    assert compare_runs(tmp_path, runs, comparison=PLAIN).notes == ()
    assert (tmp_path / "figures" / "against_model.hidden.png").is_file()


def test_without_finite_numbers_there_is_no_standard_deviation(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, {"b=0": [2.0, 3.0]}, seconds_per_epoch=1.0)
    for run in runs:
        (run / "probes").mkdir()
        for epoch in (0, 3):
            (run / "probes" / f"epoch_000{epoch}.csv").write_text("layer,name,saturated_percent\n1,in,3\n2,out,nan\n")
    comparison = Comparison(curves=[], x="epoch", log_x=False, overlay=None, against=[], probes=["saturated_percent"])
    assert compare_runs(tmp_path, runs, comparison=comparison).notes == ()
    assert str(spread([1.0, math.inf])) == "inf"


def test_figures_of_an_earlier_comparison_are_removed(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, {f"b={b}": [float(b)] for b in range(3)})
    (tmp_path / "figures").mkdir()
    for name in ("comparison", "figures/against_lr", "figures/probe_norm", "figures/filters"):
        (tmp_path / f"{name}.png").write_text("old")
    compare_runs(tmp_path, runs, comparison=NOTHING)
    assert sorted(path.stem for path in tmp_path.glob("**/*.png")) == ["against_b", "filters"]


def test_at_most_thirty_settings_are_printed(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, {f"b={b}": [float(b)] for b in range(33)})
    lines = str(compare_runs(tmp_path, runs, comparison=NOTHING)).splitlines()
    assert len(lines) == 1 + 30 + 2
    assert lines[31] == "and 3 more in tables/settings.csv"
    assert len(table(tmp_path / "tables" / "settings.csv")) == 33


# --- files ------------------------------------------------------------------------------------------------


def test_equal_sweeps_have_equal_files(tmp_path: Path) -> None:
    texts = []
    for place, seconds in (("here", 1.0), ("there", 2.0)):
        runs = make_sweep(tmp_path / place, {"b=0": [2.0, 3.0], "b=0.5": [1.0]}, seconds=seconds)
        runs.append(make_run(tmp_path / place / "bad", "b=9", "seed=0", status="failed"))
        compare_runs(tmp_path / place, runs, comparison=NOTHING, about={"seconds": seconds})
        texts.append((tmp_path / place / "sweep.csv").read_bytes())
    assert texts[0] == texts[1]
    rows = table(tmp_path / "here" / "sweep.csv")
    assert [row["job"] for row in rows] == ["b=0,seed=0", "b=0,seed=1", "b=0.5,seed=0", "bad"]
    assert [row["status"] for row in rows] == ["finished"] * 3 + ["failed"]
    assert list(rows[0])[:7] == ["job", "status", "reason", "b", "seed", "epochs", "best_epoch"]
    assert rows[1] | {"epochs": "3", "best_epoch": "2", "best_val_error_percent": "3"} == rows[1]
    assert rows[1]["final_val_error_percent"] == "4"
    assert not any("seconds" in name for name in rows[0])


def test_jobs_without_a_directory_have_a_row(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, {"b=0": [2.0], "b=1": [1.0]})
    never = tmp_path / "b=1,seed=1"
    conclusion = compare_runs(
        tmp_path,
        [*runs, never],
        comparison=NOTHING,
        failures={never: "UsageError: b=1: no"},
        overrides={never: ["b=1", "seed=1"]},
        about={"command": "c"},
    )
    row = table(tmp_path / "sweep.csv")[2]
    assert (row["job"], row["status"], row["reason"]) == ("b=1,seed=1", "failed", "UsageError: b=1: no")
    assert (row["b"], row["seed"]) == ("1", "1")
    assert conclusion.winner is not None
    assert conclusion.winner.values == {"b": "0"}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary | {"status": "failed", "jobs": 3, "finished": 2, "failed": 1, "command": "c"} == summary


def test_a_comparison_of_no_runs_writes_its_files(tmp_path: Path) -> None:
    conclusion = compare_runs(tmp_path, [], comparison=PLAIN)
    assert (tmp_path / "sweep.csv").exists()
    assert "no winner: no run finished" in str(conclusion)


def test_figures_that_cannot_be_drawn_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise ValueError("out of ink")

    monkeypatch.setattr("dlhw.views.comparison.figures.compared_curves", broken)
    runs = make_sweep(tmp_path, {"b=0": [2.0], "b=1": [1.0]})
    comparison = Comparison(
        curves=["train_loss"], x="epoch", log_x=False, overlay="lr", against=["c"], probes=["weight_norm"]
    )
    conclusion = compare_runs(tmp_path, runs, comparison=comparison)
    assert conclusion.notes == (
        "comparison.overlay=lr: this key does not vary; expected one of b",
        "comparison.png: not drawn (ValueError: out of ink)",
        "figures/against_c.png: not drawn (c has fewer than two numeric values among the finished settings)",
        "figures/probe_weight_norm.png: not drawn (no run has two probes with the column weight_norm)",
    )
    assert conclusion.winner is not None
    assert len(table(tmp_path / "sweep.csv")) == 2


def test_requested_figures_are_drawn(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, {f"lr={lr} b={b}": [float(b) + lr] for lr in (1, 2) for b in (1, 2, 3)})
    for run in runs:
        (run / "probes").mkdir()
        for epoch in (0, 1, 3):
            (run / "probes" / f"epoch_000{epoch}.csv").write_text("layer,name,weight_norm\n1,in,3\n2,out,40\n")
    comparison = Comparison(
        curves=["val_loss"], x="epoch", log_x=False, overlay="lr", against=["b"], probes=["weight_norm"]
    )
    assert compare_runs(tmp_path, runs, comparison=comparison).notes == ()
    for name in ("comparison", "figures/against_b", "figures/probe_weight_norm"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("results", "drawn"),
    [
        ({"b=0": [1.0], "b=1": [2.0], "b=2": [2.0]}, ["against_b.png"]),
        ({"b=0": [1.0], "b=1": [2.0]}, []),
        ({f"b={b} c={c}": [1.0] for b in range(3) for c in range(3)}, []),
        ({f"b={b} c={c}": [1.0] for b in range(3) for c in range(2)}, ["against_b.png"]),
    ],
)
def test_by_default_the_only_key_with_three_numbers_is_drawn_against(
    tmp_path: Path, results: dict[str, list[float]], drawn: list[str]
) -> None:
    compare_runs(tmp_path, make_sweep(tmp_path, results), comparison=PLAIN)
    assert [path.name for path in (tmp_path / "figures").glob("*.png")] == drawn


# --- the command ------------------------------------------------------------------------------------------


def test_a_sweep_is_compared_in_place_in_its_own_order(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, {"b=10": [2.0], "b=9": [1.0]})
    never = tmp_path / "b=11,seed=0"
    compare_runs(
        tmp_path,
        [*runs, never],
        comparison=NOTHING,
        failures={never: "no"},
        overrides={never: ["b=11", "seed=0"]},
        about={"command": "kept"},
    )
    before = (tmp_path / "sweep.csv").read_bytes()
    assert "lowest mean validation error: b = 9" in compare([tmp_path])
    assert (tmp_path / "sweep.csv").read_bytes() == before
    assert json.loads((tmp_path / "summary.json").read_text())["command"] == "kept"


def test_jobs_without_results_stay_in_their_sweep(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, {"b=0.0": [5.0], "b=1": [1.0], "b=2": [0.5]}, config={"other": 1})
    never, refused = tmp_path / "b=1,seed=1", tmp_path / "b=3,seed=0"
    refused.mkdir()
    (refused / "summary.json").write_text('{"status": "failed", "reason": "UsageError: b=3: no"}')
    overrides = {never: ["b=1", "seed=1"], refused: ["b=3", "seed=0"]}
    compare_runs(tmp_path, [*runs[:2], never, refused, runs[2]], comparison=NOTHING, overrides=overrides)
    before = (tmp_path / "sweep.csv").read_bytes()
    assert "lowest mean validation error: b = 2" in compare([tmp_path])
    assert (tmp_path / "sweep.csv").read_bytes() == before
    shutil.rmtree(runs[2])
    for target in (None, tmp_path.parent / f"{tmp_path.name}-out"):
        assert "lowest mean validation error: b = 0.0" in compare([tmp_path], output=target)
        rows = table((target or tmp_path) / "sweep.csv")
        statuses = [(row["job"], row["status"], row["b"], row["seed"]) for row in rows]
        assert statuses == [
            ("b=0.0,seed=0", "finished", "0.0", "0"),
            ("b=1,seed=0", "finished", "1", "0"),
            ("b=1,seed=1", "unfinished", "1", "1"),
            ("b=3,seed=0", "failed", "3", "0"),
            ("b=2,seed=0", "unfinished", "2", "0"),
        ]
        assert rows[3]["reason"] == "UsageError: b=3: no"


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"status": ', b'{"status": 3, "best": 1}'])
def test_a_run_with_an_invalid_summary_is_unfinished(tmp_path: Path, content: bytes) -> None:
    runs = make_sweep(tmp_path, {"b=0": [5.0], "b=1": [1.0]})
    (runs[1] / "summary.json").write_bytes(content)
    compare_runs(tmp_path, runs, comparison=NOTHING)
    compare([tmp_path])
    assert [row["status"] for row in table(tmp_path / "sweep.csv")] == ["finished", "unfinished"]


def test_invalid_numbers_are_ignored(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, {"b=0": [5.0], "b=1": [1.0, 2.0]}, seconds_per_epoch="long", parameters=[])
    odd = {"status": "finished", "monitor": "val_error_percent", "best": {"val_error_percent": "x"}, "final": 10**400}
    (runs[0] / "summary.json").write_text(json.dumps(odd))
    (runs[1] / "summary.json").write_text(json.dumps(odd | {"best": {"val_error_percent": -math.inf}}))
    (runs[2] / "summary.json").write_text(json.dumps(odd | {"best": {"val_error_percent": math.inf}}))
    (runs[2] / "config.yaml").write_text("b: 2001-99-99\n")
    (runs[2] / ".hydra" / "hydra.yaml").write_text("hydra: null")
    conclusion = compare_runs(tmp_path, [*runs, tmp_path / "\udcff"], comparison=NOTHING)
    assert conclusion.winner is None
    assert len(table(tmp_path / "sweep.csv")) == 4


def test_a_file_in_place_of_a_job_directory(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, {"b=0": [5.0], "b=1": [1.0]})
    compare_runs(tmp_path, runs, comparison=NOTHING)
    shutil.rmtree(runs[1])
    runs[1].write_text("a file")
    assert "lowest mean validation error: b = 0" in compare([tmp_path])
    assert [row["status"] for row in table(tmp_path / "sweep.csv")] == ["finished", "unfinished"]


def test_sweeps_and_runs_can_be_compared_together(tmp_path: Path) -> None:
    make_sweep(tmp_path / "one", {"b=0": [2.0]})
    make_sweep(tmp_path / "two", {"b=1": [1.0]})
    single = make_run(tmp_path / "run", "b=2", "seed=0")
    compare([tmp_path / "one", tmp_path / "two", single, tmp_path / "two"], output=tmp_path / "out" / "all")
    rows = table(tmp_path / "out" / "all" / "sweep.csv")
    assert [row["job"] for row in rows] == ["one/b=0,seed=0", "two/b=1,seed=0", "run"]


def test_the_first_config_determines_the_figures_and_options_override_it(tmp_path: Path) -> None:
    node = {"comparison": {"_target_": "x", "curves": ["nope"], "overlay": None, "against": [], "probes": ["norm"]}}
    make_sweep(tmp_path, {"b=0": [2.0], "b=1": [1.0]}, config=node)
    assert "comparison.png: not drawn (no run has any of the columns nope)" in compare([tmp_path])
    lines = compare([tmp_path], figure_options={"curves": ["val_loss"]})
    assert "comparison.png" not in lines
    assert "figures/probe_norm.png: not drawn" in lines


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["{0}/none"], "{0}/none: neither a run nor a sweep (no config.yaml in it or in its subdirectories)"),
        (
            ["{0}/sweep", "{0}/run"],
            "--output: missing; expected a directory for the comparison of several directories",
        ),
        (["{0}/latin"], "{0}/latin/sweep.csv: not a CSV file in UTF-8; repair or delete it"),
        (["{0}/run"], "--output: missing; expected a directory for the comparison of a single run, {0}/run"),
        (
            ["{0}/sweep", "-o", "{0}/run"],
            "--output {0}/run: contains another run or sweep; expected another directory",
        ),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], answer: str
) -> None:
    make_sweep(tmp_path / "sweep", {"b=0": [2.0], "b=1": [1.0]})
    make_run(tmp_path / "run")
    make_sweep(tmp_path / "latin", {"b=0": [2.0]})
    (tmp_path / "latin" / "sweep.csv").write_bytes("job,größe\nx,1\n".encode("latin-1"))
    with pytest.raises(SystemExit) as exit:
        main([text.format(tmp_path) for text in arguments])
    assert exit.value.code == 1
    assert capsys.readouterr().err.strip() == answer.format(tmp_path)


def test_a_directory_without_runs_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a run nor a sweep"):
        compare([tmp_path])


def test_comparing_imports_neither_torch_nor_pandas(tmp_path: Path) -> None:
    make_sweep(tmp_path, {f"b={b}": [float(b)] for b in range(3)})
    code = "import sys, dlhw.compare; dlhw.compare.main(sys.argv[1:]); print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    loaded = set(ended.stdout.splitlines()[-1].split())
    assert "dlhw.views.comparison.figures" in loaded
    assert loaded.isdisjoint({"torch", "pandas", "sklearn", "matplotlib.pyplot"})


def test_help_imports_nothing_slow() -> None:
    code = "import sys, dlhw.compare, dlhw.views.comparison; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(ended.stdout.split()).isdisjoint({"torch", "pandas", "hydra", "matplotlib", "numpy"})


def test_curves_are_drawn_against_the_step_and_on_a_log_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    draw = figures.compared_curves

    def kept(panels: Any, **options: Any) -> Any:
        drawn.append((panels, draw(panels, **options)))
        return drawn[-1][1]

    monkeypatch.setattr(figures, "compared_curves", kept)
    runs = make_sweep(tmp_path, {"b=0.1": [2.0], "b=0.2": [3.0]})
    for run in runs:
        text = (run / "metrics.csv").read_text().splitlines()
        steps = ["step", *(str(7 * epoch) for epoch in range(1, len(text)))]
        (run / "metrics.csv").write_text("".join(f"{line},{step}\n" for line, step in zip(text, steps, strict=True)))
    comparison = Comparison(curves=["train_loss"], x="step", log_x=True, overlay=None, against=[], probes=[])
    compare_runs(tmp_path, runs, comparison=comparison)
    ((panels, figure),) = drawn
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_xscale()) == ("step", "log")
    assert [list(series.x) for series in panels[0].series] == [[7, 14, 21]] * 2
