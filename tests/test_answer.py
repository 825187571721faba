"""The answer of a study: checks, files, summary, and runs that fail because a check disagrees."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from dlhw import train
from dlhw.cli import failures
from dlhw.errors import ChecksFailed
from dlhw.storage import answer
from dlhw.storage.answer import Answer, Check
from dlhw.storage.record import Record
from dlhw.storage.stored import read_summary
from dlhw.views.plots import new_figure
from support.composing import compose

NAN = math.nan


@pytest.mark.parametrize(
    ("check", "agrees", "expected"),
    [
        (answer.equal("x", 3, 3), True, "3"),
        (answer.equal("x", "3x2", "3x2"), True, "3x2"),
        (answer.equal("x", True, False), False, "false"),
        (answer.equal("x", NAN, NAN), False, "nan"),
        (answer.close("x", 0.4477, 0.45, within=0.005), True, "0.45 +- 0.005"),
        (answer.close("x", 0.44, 0.45, within=0.005), False, "0.45 +- 0.005"),
        (answer.close("x", NAN, 0.45, within=0.005), False, "0.45 +- 0.005"),
        (answer.at_most("x", 1e-12, 1e-12), True, "at most 1e-12"),
        (answer.at_most("x", 1.1e-12, 1e-12), False, "at most 1e-12"),
        (answer.at_most("x", NAN, 1e-12), False, "at most 1e-12"),
        (answer.at_least("x", 0.98, 0.98), True, "at least 0.98"),
        (answer.at_least("x", NAN, 0.98), False, "at least 0.98"),
    ],
)
def test_check_agrees_or_disagrees_and_formats_its_expectation(check: Check, agrees: bool, expected: str) -> None:
    assert (check.agrees, check.expected) == (agrees, expected)


def answer_with(*checks: Check) -> Answer:
    """Return an answer with numbers, a table, a figure, a message and these checks."""
    figure, _ = new_figure(1, title="a figure")
    return Answer(
        numbers={"widest": 0.44774, "missing": NAN, "name": "xavier"},
        checks=checks,
        tables={"rows": [{"a": 1, "b": 2.5}]},
        figures={"drawn": figure},
        messages=["a matrix"],
    )


def test_answer_writes_tables_figures_and_checks(tmp_path: Path) -> None:
    answer_with(answer.equal("x, y", 3, 4)).write(Record(tmp_path))
    assert (tmp_path / "tables" / "rows.csv").read_text() == "a,b\n1,2.5\n"
    assert (tmp_path / "figures" / "drawn.png").read_bytes()[:4] == b"\x89PNG"
    with (tmp_path / "tables" / "checks.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"what": "x, y", "computed": "3", "expected": "4", "agrees": "False"}]


def test_answer_without_checks_has_no_checks_table_or_summary_entry(tmp_path: Path) -> None:
    answer_with().write(Record(tmp_path))
    assert not (tmp_path / "tables" / "checks.csv").exists()
    assert "checks" not in answer_with().summary()


def test_summary_has_the_numbers_and_counts_the_checks(tmp_path: Path) -> None:
    summary = answer_with(answer.equal("x", 3, 4), answer.equal("y", 3, 3)).summary()
    Record(tmp_path).summary({"status": "finished", **summary})
    expected = {"widest": 0.44774, "missing": None, "name": "xavier", "checks_agreed": 1, "checks": 2}
    assert read_summary(tmp_path) == {"status": "finished", **expected}


def test_lines_contain_messages_numbers_and_checks() -> None:
    assert answer_with(answer.equal("x", 3, 4), answer.at_most("y", 0.5, 1.0)).lines() == [
        "a matrix",
        "widest = 0.44774",
        "missing = nan",
        "name = xavier",
        "DISAGREES: x: 3, expected 4",
        "agrees: y: 0.5, expected at most 1",
    ]


def study(*, seed: int, largest: Annotated[int, Field(gt=0)]) -> Answer:
    return answer_with(answer.at_most("seed", seed, largest), answer.at_most("one", 1, 1))


def study_config(tmp_path: Path, *overrides: str) -> Any:
    """Return the config of a run of ``study`` above, with 5 as the largest seed whose check agrees."""
    return compose("study=sigmoid_window", "name=checked", f"study._target_={__name__}.study", "~study.points",
                   "~study.largest_weight", "+study.largest=5", f"output_dir={tmp_path}", *overrides)  # fmt: skip


def test_study_whose_checks_agree_is_finished(tmp_path: Path) -> None:
    train.run(study_config(tmp_path), Record(tmp_path))
    summary = read_summary(tmp_path)
    assert (summary["status"], summary["checks_agreed"], summary["checks"]) == ("finished", 2, 2)
    assert summary["experiment"] == "checked"
    assert "parameters" not in summary  # a study has no model
    assert "data" not in summary
    assert (tmp_path / "config.yaml").is_file()


def test_study_with_a_disagreement_fails_after_writing_its_files(tmp_path: Path) -> None:
    with pytest.raises(ChecksFailed, match=r"^1 of 2 checks disagree: seed$"):
        train.run(study_config(tmp_path, "seed=7"), Record(tmp_path))
    summary = read_summary(tmp_path)
    assert (summary["status"], summary["reason"]) == ("failed", "1 of 2 checks disagree: seed")
    assert summary["widest"] == 0.44774
    assert (tmp_path / "figures" / "drawn.png").is_file()


def test_run_with_a_disagreement_exits_with_code_1_and_keeps_its_summary(tmp_path: Path) -> None:
    record, cfg = Record(tmp_path), study_config(tmp_path, "seed=7")
    with pytest.raises(SystemExit) as raised, failures.recorded(cfg, record, in_sweep=False):
        train.run(cfg, record)
    assert raised.value.code == 1
    assert read_summary(tmp_path)["widest"] == 0.44774


def test_resume_rejects_a_finished_study_and_repeats_an_interrupted_one(tmp_path: Path) -> None:
    cfg = study_config(tmp_path)
    train.run(cfg, Record(tmp_path))
    cfg.resume = str(tmp_path)
    with pytest.raises(ValueError, match="already finished"):
        train.run(cfg, Record(tmp_path))
    (tmp_path / "summary.json").unlink()
    train.run(cfg, Record(tmp_path))
    assert read_summary(tmp_path)["status"] == "finished"
