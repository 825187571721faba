"""The space of a search, from overrides in Hydra's syntax; and the study file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from dlhw.errors import UsageError
from dlhw.search.space import Interval, Parameter, Space, Values
from dlhw.search.study_file import StudyFile
from dlhw.sweeps.spaces import read_space

ADAM, SGD = ("optimizer", "adam"), ("optimizer", "sgd")


@pytest.mark.parametrize(
    ("line", "domain"),
    [
        ("k=interval(0,0.2)", Interval(0.0, 0.2)),
        ("k=tag(log,interval(1e-4,1))", Interval(1e-4, 1.0, log=True)),
        ("k=int(interval(1,64))", Interval(1, 64, integer=True)),
        ("k=tag(log,int(interval(1,64)))", Interval(1, 64, log=True, integer=True)),
        ("k=1,2,3", Values(("1", "2", "3"), ordered=True)),
        ("k=0.1,1e-3,1", Values(("0.001", "0.1", "1"), ordered=True)),
        ("k=range(0,0.2,0.05)", Values(("0.0", "0.05", "0.1", "0.15"), ordered=True)),
        ("k=choice([50],[100],[500])", Values(("[50]", "[100]", "[500]"), ordered=False)),
        ("k=adam,sgd", Values(("adam", "sgd"), ordered=False)),
        ("k=true,false", Values(("true", "false"), ordered=False)),
        ("k=null,0.1", Values(("null", "0.1"), ordered=False)),
    ],
)
def test_values_of_a_key(line: str, domain: Interval | Values) -> None:
    declaration = read_space({}, [line, "other=1"])
    assert declaration.space == Space([Parameter("k", domain)])
    assert declaration.fixed == ("other=1",)
    key, _, text = line.partition("=")
    assert read_space({key: text}, []).space == declaration.space


def test_command_line_replaces_declared_values() -> None:
    declared = {"a": "interval(0,1)", "b": "1,2", "c": "1,2", "seed": "0,1"}
    declaration = read_space(declared, ["a=3,4", "b=5", "seed=7,8,9"])
    assert [parameter.key for parameter in declaration.space.parameters] == ["a", "c"]
    assert declaration.fixed == ("b=5",)
    assert declaration.seeds == ("seed=7", "seed=8", "seed=9")


def test_conditions() -> None:
    declared = {
        "optimizer": "sgd,adam",
        "optimizer=sgd": {"lr": "interval(0,1)"},
        "optimizer=adam": {"lr": "interval(0,0.1)", "beta": "0.8,0.9"},
    }
    choice = Parameter("optimizer", Values(("sgd", "adam"), ordered=False))
    lr_of_sgd = Parameter("lr", Interval(0.0, 1.0), SGD)
    lr_of_adam, beta = Parameter("lr", Interval(0.0, 0.1), ADAM), Parameter("beta", Values(("0.8", "0.9"), True), ADAM)
    assert list(read_space(declared, []).space.parameters) == [choice, lr_of_sgd, lr_of_adam, beta]
    one = read_space(declared, ["optimizer=adam"])
    assert list(one.space.parameters) == [Parameter("lr", Interval(0.0, 0.1)), Parameter("beta", beta.domain)]
    assert one.fixed == ("optimizer=adam",)
    assert list(read_space(declared, ["lr=0.5"]).space.parameters) == [choice, beta]
    others = read_space(declared, ["optimizer=sgd,rmsprop"]).space.parameters
    assert others[1:] == [lr_of_sgd]


@pytest.mark.parametrize(
    ("declared", "lines", "message"),
    [
        ({}, ["a=1"], "hydra/sweeper=search: the space is empty; expected keys with several values, such as"),
        (
            {},
            ["a=interval(1,1)"],
            "a=interval(1,1): an empty or infinite interval; expected interval(a,b) with finite a < b",
        ),
        (
            {},
            ["a=interval(2,1)"],
            "a=interval(2,1): an empty or infinite interval; expected interval(a,b) with finite a < b",
        ),
        ({}, ["a=interval(-1e308,1e308)"], "a=interval(-1e308,1e308): an empty or infinite interval; expected"),
        ({}, ["a=int(interval(0,1e19))"], "a=int(interval(0,1e19)): whole numbers of an interval must be at most 1000"),
        ({"a": [1, 2]}, [], 'hydra.sweeper.space: a: a list of values must be text, such as "0.1,0.2"'),
        (
            {"a": "1,2", "a=1": {"b=3": {"c": "1,2"}}},
            [],
            "hydra.sweeper.space: b=3: a condition cannot be inside of another one",
        ),
        (
            {"a": "1,2", "b": "1,2", "a=1": {"c": "1,2"}, "b=1": {"c": "3,4"}},
            [],
            "hydra.sweeper.space: c is declared for b=1 and also for other points with this value",
        ),
        (
            {"a": "1,2", "a=1": {"b": "1,2"}, "b=1": {"c": "1,2"}},
            [],
            "hydra.sweeper.space: condition b=1: b never has this value; it has no list of values",
        ),
        ({}, ["a=tag(log,interval(0,1))"], "a=tag(log,interval(0,1)): an interval with the tag log must be above 0"),
        ({}, ["a=tag(sqrt,interval(0,1))"], "a=tag(sqrt,interval(0,1)): unknown tag sqrt; expected log"),
        ({}, ["a=tag(log,choice(1,2))"], "a=tag(log,choice(1,2)): log is invalid for a list; expected tag(log, "),
        ({}, ["seed=interval(0,1)"], "seed=interval(0,1): the seeds of a trial are not searched; expected a list such"),
        ({}, ["hydra.verbose=true,false"], "hydra.verbose=true,false: a setting of Hydra cannot vary in a search"),
        (
            {"a": "1,2", "a=3": {"b": "1,2"}},
            [],
            "hydra.sweeper.space: condition a=3: a never has this value; expected one of 1, 2",
        ),
        (
            {"a": "1,2", "b": "1,2", "a=1": {"b": "3,4"}},
            [],
            "hydra.sweeper.space: b is declared for a=1 and also for other points with this value",
        ),
    ],
)
def test_invalid_space_is_refused(declared: dict[str, Any], lines: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        read_space(declared, lines)
    assert str(error.value).startswith(message)


def test_values_of_intervals_are_rounded_but_stay_inside() -> None:
    interval = Interval(1 / 3, 2 / 3)
    assert interval.text(0.51234567) == "0.512346"
    assert float(interval.text(1 / 3)) >= 1 / 3
    assert float(interval.text(2 / 3)) <= 2 / 3
    assert Interval(1, 9, integer=True).text(4) == "4"


def opened(path: Path) -> optuna.Study:
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    return optuna.load_study(study_name=None, storage=storage)


SPACE = Space([Parameter("lr", Interval(0.1, 1.0, log=True)), Parameter("width", Values(("1", "2"), ordered=True))])


def test_study_file_is_read_by_optuna(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    file = StudyFile(path, name="n", declaration={"method": "tpe"})
    file.update(0, SPACE, {"lr": 0.5, "width": 1}, {1: 9.0, 2: 8.0}, state=TrialState.RUNNING, value=8.0)
    file.flush()
    assert [trial.state for trial in opened(path).trials] == [TrialState.RUNNING]
    for again in (file, StudyFile(path, name="n", declaration={"method": "tpe"})):  # the same entries once
        again.update(0, SPACE, {"lr": 0.5, "width": 1}, {1: 9.0, 2: 8.0, 3: 7.0}, state=TrialState.COMPLETE, value=7.0)
        again.update(1, SPACE, {"lr": 0.25, "width": 0}, {1: 9.5}, state=TrialState.PRUNED, value=9.5)
        again.update(2, SPACE, {"lr": 0.3, "width": 0}, {}, state=TrialState.FAIL, value=float("inf"))
        again.flush()
    study = opened(path)
    assert study.study_name == "n"
    assert study.best_params == {"lr": 0.5, "width": 2}
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "FAIL"]
    assert study.trials[0].intermediate_values == {1: 9.0, 2: 8.0, 3: 7.0}
    assert [trial.value for trial in study.trials] == [7.0, 9.5, None]


def test_line_that_a_crash_truncated_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    file = StudyFile(path, name="n", declaration={})
    file.flush()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 4, "wor')
    file = StudyFile(path, name="n", declaration={})
    file.update(0, SPACE, {"lr": 0.5, "width": 1}, {}, state=TrialState.RUNNING, value=1.0)
    file.flush()
    assert path.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert len(opened(path).trials) == 1


@pytest.mark.parametrize(
    ("content", "declaration", "message"),
    [
        (None, {"method": "gp"}, "the study of another search (method: gp instead of tpe); choose another directory"),
        (b"no journal\n", {"method": "tpe"}, "not a journal of Optuna; restore it, or remove it and resume"),
        (b"{}\n", {"method": "tpe"}, "not a journal of Optuna; restore it, or remove it and resume"),
        (b"5\n", {"method": "tpe"}, "not a journal of Optuna; restore it, or remove it and resume"),
        (b'{"op_code": 99}\n', {"method": "tpe"}, "not a journal of Optuna; restore it, or remove it and resume"),
    ],
)
def test_study_of_another_search_is_refused(
    content: bytes | None, declaration: dict[str, str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "study.journal"
    StudyFile(path, name="n", declaration={"method": "tpe"}).flush()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        StudyFile(path, name="n", declaration=declaration)
    assert str(error.value).startswith(f"{path}: {message}")


def test_other_values_of_a_trial_are_refused(tmp_path: Path) -> None:
    file = StudyFile(tmp_path / "study.journal", name="n", declaration={})
    file.update(0, SPACE, {"lr": 0.5, "width": 1}, {}, state=TrialState.RUNNING, value=1.0)
    with pytest.raises(UsageError, match="trial 0 has other values than this search proposes"):
        file.update(0, SPACE, {"lr": 0.6, "width": 1}, {}, state=TrialState.RUNNING, value=1.0)
