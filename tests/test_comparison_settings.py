"""Read the settings that vary among runs, and group the runs by setting."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dlhw.views.comparison import compare_runs
from dlhw.views.comparison.ranking import group_by_setting
from dlhw.views.comparison.results import read
from dlhw.views.comparison.settings import canonical
from support.caches import forget
from support.run_directories import NO_CURVES, make_run, make_sweep


def test_settings_are_the_varying_overrides_except_seed_and_data_dir(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / f"{b},{seed}", "experiment=x", f"+b={b}", "++c=1", f"seed={seed}", f"data_dir=/{b}")
        for b in ("0", "0.05")
        for seed in (0, 1)
    ]
    results = read(runs)
    assert [result.settings for result in results] == [{"b": "0"}, {"b": "0"}, {"b": "0.05"}, {"b": "0.05"}]
    assert [result.seed for result in results] == [0, 1, 0, 1]
    assert [setting.label for setting in group_by_setting(results)] == ["b = 0", "b = 0.05"]


def test_key_without_an_override_takes_its_value_from_the_config(tmp_path: Path) -> None:
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


def test_run_without_a_key_is_a_separate_setting(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"{seed}", f"seed={seed}", config={"optimizer": {"lr": 1}}) for seed in (0, 1)]
    node = {"optimizer": {"lr": 1, "momentum_decay": 0.9}}
    runs.append(make_run(tmp_path / "d", "+optimizer.momentum_decay=0.9", "seed=2", config=node))
    settings = group_by_setting(read(runs))
    assert [setting.label for setting in settings] == ["without momentum_decay", "momentum_decay = 0.9"]
    assert [len(setting.runs) for setting in settings] == [2, 1]


def test_config_takes_precedence_over_overrides(tmp_path: Path) -> None:
    runs = [
        make_run(
            tmp_path / f"{b},{epochs}", f"b={b}", "trainer.epochs=2", config={"b": b, "trainer": {"epochs": epochs}}
        )
        for b, epochs in ((0, 2), (0, 6), (1, 2))
    ]
    expected = [{"b": "0", "trainer.epochs": "2"}, {"b": "0", "trainer.epochs": "6"}, {"b": "1", "trainer.epochs": "2"}]
    assert [result.settings for result in read(runs)] == expected


def test_runs_that_differ_only_in_config_are_different_settings(tmp_path: Path) -> None:
    configs = [
        {"lr": lr, "optimizer": {"lr": lr}, "name": f"n{seed}", "dataset": {"seed": seed, "start": f"seed={seed}.pt"}}
        for lr, seed in ((0.1, 0), (0.1, 1), (0.3, 0))
    ]
    runs = [
        make_run(tmp_path / name, f"seed={config['dataset']['seed']}", config=config)  # type: ignore[index]
        for name, config in zip("xyz", configs, strict=True)
    ]
    text = yaml.safe_dump(yaml.safe_load((tmp_path / "z" / "config.yaml").read_text()))
    assert "\noptimizer:\n  _target_: null\n  lr: 0.3\n" in text
    (tmp_path / "z" / "config.yaml").write_text(text.replace("  lr: 0.3", "  lr: 3e-1"))
    results = read(runs)
    assert [result.settings for result in results] == [{"lr": "0.1"}, {"lr": "0.1"}, {"lr": "0.3"}]
    assert [result.repeats for result in results] == [None] * 3


def test_job_without_a_config_makes_the_matching_setting_incomplete(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    runs = [
        make_run(tmp_path / f"{b},{epochs}", f"b={b}", val=val, config={"b": b, "epochs": epochs})
        for b, epochs, val in ((0, 2, 5.0), (0, 6, 4.0), (1, 2, 3.0))
    ]
    conclusion = compare_runs(tmp_path, [missing, *runs], comparison=NO_CURVES, overrides={missing: ["b=1", "seed=1"]})
    assert conclusion.winner is not None
    assert conclusion.winner.values == {"b": "0", "epochs": "6"}
    assert [run.path.name for run in conclusion.settings[-1].runs] == ["missing", "1,2"]
    assert conclusion.settings[-1].label == "b = 1, epochs = 2"


def test_runs_that_differ_in_many_keys_get_a_few_distinguishing_columns(tmp_path: Path) -> None:
    configs = [{f"key{i}": (i + 1) * (run % 2) for i in range(9)} | {"late.key": {"x": run // 2}} for run in range(4)]
    runs = [make_run(tmp_path / f"{i}", config=config) for i, config in enumerate(configs)]
    results = read(runs)
    assert list(results[0].settings) == ["key0", "key1", "key2", "key3", "key4", "late.key.x"]
    assert len(group_by_setting(results)) == 4


def test_interpolation_of_the_seed_is_not_a_setting(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / f"{seed}", f"seed={seed}", "dataset.seed=${seed}", config={"dataset": {"seed": seed}})
        for seed in (0, 1)
    ]
    assert [result.settings for result in read(runs)] == [{}, {}]


def test_experiment_is_a_setting_if_it_varies(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a", "experiment=flooding", "b=0.1", config={"b": 0.1}),
        make_run(tmp_path / "b", "experiment=flooding", "b=0.2", config={"b": 0.2}),
        make_run(tmp_path / "c", "experiment=mnist_mlp"),
    ]
    labels = [setting.label for setting in group_by_setting(read(runs))]
    assert labels == ["experiment = flooding, b = 0.1", "experiment = flooding, b = 0.2", "experiment = mnist_mlp"]


def test_labels_show_only_the_last_part_of_a_key_where_it_is_unique(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a", "optimizer.lr=1", "model.width=3", "init.width=1"),
        make_run(tmp_path / "b", "optimizer.lr=2", "model.width=4", "init.width=2"),
    ]
    assert group_by_setting(read(runs))[0].label == "lr = 1, model.width = 3, init.width = 1"


@pytest.mark.parametrize(
    ("first", "second", "equal"),
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
def test_values_are_compared_after_parsing(first: str, second: str, equal: bool) -> None:
    assert (canonical(first) == canonical(second)) is equal


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_notations_of_the_same_number_are_equal(value: float) -> None:
    assert canonical(repr(value)) == canonical(f"{value:.17e}") == value


@given(st.text())
def test_canonical_value_of_any_text_is_hashable(text: str) -> None:
    assert {canonical(text)} == {canonical(text)}  # a set requires a hash and equality


def test_shared_parts_of_configs_are_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsing each distinct part of the configs once lets hundreds of runs be read in a second."""
    text = "".join(f"part{i}:\n" + "".join(f"  key{j}: {i * j}\n" for j in range(9)) for i in range(12))
    runs = make_sweep(tmp_path, {f"optimizer.lr={lr}": [1.0] * 3 for lr in range(100)})
    for i, run in enumerate(runs):
        (run / "config.yaml").write_text(f"seed: {i % 3}\n{text}optimizer:\n  lr: {i // 3}\n")
    forget()
    parsed: list[str] = []
    load = yaml.load

    def recording_load(stream: Any, Loader: Any) -> Any:
        parsed.append(stream if isinstance(stream, str) else stream.decode())
        if yaml.__with_libyaml__:
            assert issubclass(Loader, yaml.CSafeLoader)  # ten times faster than the parser in Python
        return load(stream, Loader)

    monkeypatch.setattr(yaml, "load", recording_load)
    assert len(group_by_setting(read(runs))) == 100
    counts = Counter(text for text in parsed if re.match(r"part\d+:", text))
    assert len(counts) == 12
    assert set(counts.values()) == {1}
