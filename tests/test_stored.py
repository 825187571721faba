"""The files of a run or sweep are read back, or refused in one line that names the file and what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from dlhw.cli.build import PROGRAM_ARGUMENTS
from dlhw.storage import stored
from dlhw.storage.schemas import GROUPS, Invalid
from dlhw.storage.stored import Unreadable
from support.run_directories import CONFIG, MULTIRUN, make_run, write_config

VALID = {"seed": 0, **CONFIG}
READERS: dict[str, Callable[[Path], Any]] = {
    "config.yaml": stored.read_config,
    "multirun.yaml": stored.read_multirun,
    "summary.json": stored.read_summary,
    "metrics.csv": stored.read_metrics,
    "sweep.csv": stored.read_sweep,
}


def reason(name: str, directory: Path) -> str:
    """Return what the error for this file says is wrong. Assert that it names the file and what to do."""
    with pytest.raises(Unreadable) as raised:
        READERS[name](directory)
    message = str(raised.value)
    assert message.startswith(f"{directory / name}: ")
    assert "; " in message
    assert "\n" not in message
    return message.removeprefix(f"{directory / name}: ").partition(";")[0]


# What is not a text file


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (os.mkfifo, "a pipe, not a file"),
        (os.mkdir, "a folder, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "a device, not a file"),
        (lambda path: path.symlink_to("nowhere"), "a link to a file that does not exist"),
        (lambda path: path.write_bytes(b"\xff"), "not UTF-8 text (byte 0)"),
        (lambda path: path.write_bytes(b"a\0"), "not a text file (it contains a null character)"),
    ],
    ids=["pipe", "folder", "device", "dangling link", "bytes", "null"],
)
def test_what_is_not_a_text_file_is_refused(tmp_path: Path, name: str, make: Any, expected: str) -> None:
    make(tmp_path / name)
    assert reason(name, tmp_path) == expected


@pytest.mark.parametrize("name", READERS)
def test_file_that_is_too_large_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("LARGEST_CONFIG", "LARGEST_SUMMARY", "LARGEST_TABLE"):
        monkeypatch.setattr(stored, limit, 1000)
    (tmp_path / name).write_text("a" * 1001)
    assert reason(name, tmp_path) == "too large (more than 1,000 bytes)"


@pytest.mark.parametrize(("name", "expected"), [*dict.fromkeys(READERS).items(), ("summary.json", {})])
def test_missing_file_is_no_error(tmp_path: Path, name: str, expected: Any) -> None:
    assert READERS[name](tmp_path) in (expected, {})
    (tmp_path / "file").touch()
    assert READERS[name](tmp_path / "file") in (expected, {})


# YAML


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &x [1]\nb: *x", "YAML anchors and aliases are not supported"),
        ("a: &x {b: 1}\nc: {<<: [*x, *x]}", "YAML anchors and aliases are not supported"),
        ("- " * 100_000 + "x", "nested more than 50 levels deep"),
        ("[" * 100_000, "nested more than 50 levels deep"),
        ("a: {" * 2000, "nested more than 50 levels deep"),
        ("a: 1\na: 2", "not valid YAML (found duplicate key a in line 1)"),
        ("a: 2001-99-99", "not valid YAML (month must be in 1..12)"),
        ("a:\n\t- 1", "not valid YAML (found character that cannot start any token in line 2)"),
    ],
    ids=["alias", "merge", "block", "flow", "mappings", "repeated", "date", "tab"],
)
def test_yaml_that_could_hang_or_crash_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(Invalid) as raised:
        stored.parse_yaml(text)
    assert str(raised.value) == expected
    (tmp_path / "config.yaml").write_text(text)
    assert reason("config.yaml", tmp_path) == expected


@pytest.mark.parametrize("text", ["a: 1e-5", "a: 1.0e-05", "a: '1e-5'", "a: -1E3", "a: 12:30", "a: .5", "a: [yes, on]"])
def test_yaml_is_read_as_omegaconf_reads_it(text: str) -> None:
    assert stored.parse_yaml(text)["a"] == OmegaConf.create(text).a or text.endswith("on]")


def test_config_has_the_groups_that_the_program_builds() -> None:
    assert set(GROUPS) == set(PROGRAM_ARGUMENTS)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"hydra": {}}, "not the config of a run (it has the key hydra)"),
        ({"seed": None}, "seed must be a whole number from 0 to 9223372036854775807"),
        ({"seed": -1}, "seed must be a whole number from 0 to 9223372036854775807"),
        ({"seed": 2**63}, "seed must be a whole number from 0 to 9223372036854775807"),
        ({"name": 3}, "name must be text"),
        ({"data_dir": None}, "data_dir must be text"),
        ({"output_dir": ""}, "output_dir must be text"),
        ({"model": None}, "model must be a mapping"),
        ({"trainer": {"epochs": 10**12}}, "trainer.epochs must be a whole number from 1 to 1000000000"),
        ({"trainer": {"epochs": "3"}}, "trainer.epochs must be a whole number from 1 to 1000000000"),
        ({"b": "${b}"}, "b must be a value without ${...} or ???"),
        ({"model": {"hidden": ["${b}"]}}, "model.hidden must be a value without ${...} or ???"),
    ],
    ids=repr,
)
def test_invalid_value_of_a_config_is_named(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    write_config(tmp_path)
    assert stored.read_config(tmp_path) == VALID
    (tmp_path / "config.yaml").write_text(json.dumps({**VALID, **change}))
    assert reason("config.yaml", tmp_path) == expected


@pytest.mark.parametrize("name", ["seed", "name", "data_dir", "output_dir", "trainer"])
def test_missing_key_of_a_config_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.yaml").write_text(json.dumps({key: value for key, value in VALID.items() if key != name}))
    assert reason("config.yaml", tmp_path) == f"not the config of a run (without {name})"


@pytest.mark.parametrize(
    ("overrides", "choices", "expected"),
    [
        ({"hydra": [], "task": "seed=1"}, {}, "hydra.overrides.task must be a list of overrides"),
        ({"hydra": [["a=1"]], "task": []}, {}, "hydra.overrides.hydra must be a list of overrides"),
        ({"hydra": [], "task": [3]}, {}, "hydra.overrides.task must be a list of overrides"),
        ({"hydra": []}, {}, "hydra.overrides.task must be a list of overrides"),
        (None, {}, "hydra.overrides.hydra must be a list of overrides"),
        ({"hydra": [], "task": []}, None, "hydra.runtime.choices must be a mapping"),
    ],
)
def test_invalid_overrides_of_a_sweep_are_named(tmp_path: Path, overrides: Any, choices: Any, expected: str) -> None:
    content = {**MULTIRUN, "hydra": {"overrides": overrides, "runtime": {"choices": choices}}}
    (tmp_path / "multirun.yaml").write_text(json.dumps(content))
    assert reason("multirun.yaml", tmp_path) == expected


# JSON


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[" * 100_000, "nested too deep"),
        ("[" * 99 + "]" * 99, "nested more than 50 levels deep"),
        ('{"status": NaN}', "not valid JSON (NaN is not a number)"),
        ("[]", "not the summary of a run"),
        ('{"status": "done"}', "status must be one of finished, failed, unfinished"),
        ('{"status": "failed", "reason": {}}', "reason must be text"),
        ('{"status": "finished", "data": []}', "data must be a mapping"),
        ('{"status": "finished", "data": {"classes": [1]}}', "data.classes must be a list of names"),
        ('{"status": "finished", "final": null}', "best must be a row of metrics with its epoch"),
        ('{"status": "finished", "best": {"epoch": 0}}', "best must be a row of metrics with its epoch"),
        ('{"status": "finished", "best": {"epoch": 1, "a": "x"}}', "best.a must be a number"),
    ],
    ids=lambda text: text[:50],
)
def test_invalid_summary_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    assert reason("summary.json", tmp_path) == expected


@pytest.mark.parametrize("name", ["best", "final", "stopped", "monitor"])
def test_finished_run_has_best_and_final_row_monitor_and_why_it_stopped(tmp_path: Path, name: str) -> None:
    content = stored.read_summary(make_run(tmp_path / "run"))
    (tmp_path / "summary.json").write_text(json.dumps({**content, name: None}))
    assert reason("summary.json", tmp_path).startswith(f"{name} must be ")


# CSV


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epoch,val_loss\n1,nan\n", "row 1 is not that of epoch 1, with numbers only"),
        ("epoch,val_loss\n2,0.5\n", "row 1 is not that of epoch 1, with numbers only"),
        ("epoch,val_loss\n1,x\n", "x is not a number"),
        ("epoch,val_loss\n1,0.5\n2\n", "row 3 has 1 columns, and the header 2"),
        ("epoch,epoch\n1,1\n", "a column name is repeated"),
    ],
)
def test_invalid_rows_of_metrics_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    assert reason("metrics.csv", tmp_path) == expected


def test_truncated_last_row_of_metrics_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,val_loss\n1,0.5\n2,0.")
    assert stored.read_metrics(tmp_path) == [{"epoch": 1, "val_loss": 0.5}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name,size\na,1\n", "not the table of a sweep (its first columns must be job, status, reason)"),
        ("job,status,reason\n/etc,finished,\n", "job /etc is not a directory in it"),
        ("job,status,reason\n../x,finished,\n", "job ../x is not a directory in it"),
        ("job,status,reason\na,good,\n", "the status of job a must be one of finished, failed, unfinished"),
    ],
)
def test_table_that_is_not_of_a_sweep_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "sweep.csv").write_text(text)
    assert reason("sweep.csv", tmp_path) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"epoch,seconds\n1,0.5\n2,0.25\n1,0.75\n", {1: 0.75, 2: 0.25}),
        (b"epoch,seconds\n1,0.5\nx,y\n2,nan\n3,-1\n4\n5,0.5,1\n6,1\n7,0.", {1: 0.5, 6: 1.0}),
        (b"\xff\n1,2\n", {}),
        (b"", {}),
    ],
)
def test_damaged_times_are_left_out(tmp_path: Path, content: bytes, expected: dict[int, float]) -> None:
    (tmp_path / "timing.csv").write_bytes(content)
    assert stored.read_seconds(tmp_path) == expected
