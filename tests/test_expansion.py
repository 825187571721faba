"""The grid of a sweep: values and ranges expand to jobs, and each job has a label."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hydra._internal.utils import create_config_search_path
from hypothesis import given, settings
from hypothesis import strategies as st

from dlhw.cli import composition
from dlhw.errors import UsageError
from dlhw.storage.record import directory_name
from dlhw.sweeps.expansion import expand


def jobs(*lines: str, params: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    return [plan.overrides for plan in expand(params, lines)]


def labels(*lines: str, params: tuple[str, ...] = ()) -> list[str]:
    return [plan.label for plan in expand(params, lines)]


def test_grid_has_all_combinations_with_the_last_key_varying_fastest() -> None:
    assert jobs("dataset=digits", "b=0.1,0.2", "seed=range(2)") == [
        ("dataset=digits", "b=0.1", "seed=0"),
        ("dataset=digits", "b=0.1", "seed=1"),
        ("dataset=digits", "b=0.2", "seed=0"),
        ("dataset=digits", "b=0.2", "seed=1"),
    ]
    assert labels("dataset=digits", "b=0.1,0.2", "seed=range(2)")[1] == "b=0.1,seed=1"


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ("range(0,0.21,0.01)", 21, {3: "0.03", 7: "0.07", 20: "0.2"}),
        ("range(0,0.2,0.01)", 20, {3: "0.03", 19: "0.19"}),
        ("range(0.3,0,-0.1)", 3, {0: "0.3", 2: "0.1"}),
        ("range(1e-6,4e-6,1e-6)", 3, {1: "2e-06"}),
        ("range(1,10,3)", 3, {2: "7"}),
        ("range(0,1,0.3)", 4, {3: "0.9"}),
        ("range(0,1,0.3333333333333333)", 3, {1: "0.333333333333", 2: "0.666666666667"}),
    ],
)
def test_range_excludes_its_stop_and_has_no_rounding_errors(text: str, count: int, expected: dict[int, str]) -> None:
    values = [line.removeprefix("b=") for (line,) in jobs(f"b={text}")]
    assert len(values) == count
    assert {index: values[index] for index in expected} == expected


@settings(max_examples=200, deadline=None)
@given(start=st.integers(-50, 50), count=st.integers(1, 60), step=st.integers(1, 99), digits=st.integers(1, 6))
def test_decimal_range_equals_the_scaled_integer_range(start: int, count: int, step: int, digits: int) -> None:
    scale = 10**digits
    first, last, width = (f"{number / scale:.{digits}f}" for number in (start, start + count * step, step))
    values = [float(line.removeprefix("b=")) for (line,) in jobs(f"b=range({first},{last},{width})")]
    assert values == [(start + index * step) / scale for index in range(count)]


def test_equal_values_give_one_job() -> None:
    assert jobs("b=0.1,0.10,1e-1") == [("b=0.1",)]
    assert jobs("b=1,1.0") == [("b=1",)]
    assert jobs("b=0.0,-0.0,0") == [("b=0.0",)]
    assert jobs("b=[1,x],[1.0,'x']") == [("b=[1,x]",)]
    assert jobs("b=1,true,'1',[1]") == [("b=1",), ("b=true",), ("b='1'",), ("b=[1]",)]


def test_command_line_overrides_replace_params() -> None:
    params = ("b=0,0.05", "seed=range(3)")
    assert len(jobs(params=params)) == 6
    assert jobs("seed=7", params=params) == [("b=0", "seed=7"), ("b=0.05", "seed=7")]
    assert labels("b=0.5", "seed=7", params=params) == ["b=0.5,seed=7"]
    assert jobs("b=1,2,3,4", "seed=0", "name=x", params=params)[3] == ("b=4", "seed=0", "name=x")
    assert labels("b=1,2", "seed=0", "name=x", params=("b=0,0.05", "seed=0")) == ["b=1", "b=2"]


def test_params_that_a_job_does_not_read_are_omitted_from_it() -> None:
    def unread_params(overrides: Sequence[str]) -> frozenset[str]:
        return frozenset({"d", "seed"} if "init=he" in overrides else ())

    plans = expand(["d=1,2", "seed=0"], ["init=he,uniform", "seed=7"], unread_params=unread_params)
    assert [plan.overrides for plan in plans] == [
        ("seed=7", "init=he"),  # seed=7 stays, because it is from the command line
        ("d=1", "seed=7", "init=uniform"),
        ("d=2", "seed=7", "init=uniform"),
    ]
    assert [plan.label for plan in plans] == ["init=he", "d=1,init=uniform", "d=2,init=uniform"]


def test_label_contains_all_overrides_but_data_dir_if_no_key_varies() -> None:
    assert labels("seed=3", "data_dir=x", "b=1") == ["seed=3,b=1"]
    assert labels() == ["defaults"]


def test_directory_name_is_limited_in_bytes() -> None:
    assert directory_name(["name=" + "é" * 50]) == "name=" + "é" * 50
    assert re.fullmatch("seed=1-[0-9a-f]{8}", directory_name(["seed=1", "name=" + "é" * 60]))
    assert max(len(directory_name(["seed=1", "name=" + "é" * count]).encode()) for count in range(40, 70)) <= 120


def test_quoted_values_lists_and_choices_are_expanded() -> None:
    (first,), (second,) = jobs(r"name='a,b','it\'s'")
    assert first == "name='a,b'"
    assert composition.parsed(second).value() == "it's"
    assert jobs("model.hidden=[5,4],[]") == [("model.hidden=[5,4]",), ("model.hidden=[]",)]
    assert jobs("optimizer=choice(sgd,adam)", "seed=1") == [("optimizer=sgd", "seed=1"), ("optimizer=adam", "seed=1")]


def test_lists_may_contain_ranges_and_patterns() -> None:
    assert jobs("seed=range(2),5,1") == [("seed=0",), ("seed=1",), ("seed=5",)]
    loader = composition.Loader(create_config_search_path(str(composition.conf_dir())))
    lines = [plan.overrides for plan in expand([], ["loss=glob(cross*),mse"], loader=loader)]
    assert lines == [("loss=cross_entropy",), ("loss=cross_entropy_by_hand",), ("loss=mse",)]


def test_sweep_has_a_largest_number_of_jobs() -> None:
    message = r"^b=range\(0,300\) seed=range\(1000\): 300000 jobs; expected at most 100000$"
    with pytest.raises(UsageError, match=message):
        expand(["b=range(0,300)"], ["seed=range(1000)", "name=x"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "b=interval(0,1)",
            "b=interval(0,1): invalid in a grid; expected values such as b=0.1,0.2 or b=range(0,1,0.1)",
        ),
        ("b=range(3,1)", "b=range(3,1): must have at least one value"),
        ("b=range(0,1,0)", "b=range(0,1,0): must have finite limits and a step other than 0"),
        ("seed=range(1e9)", "seed=range(1e9): 1000000000 values; expected at most 100000"),
        ("seed=1,interval(0,1)", "seed=1,interval(0,1): a list must not contain interval(...)"),
        ("b=[1,range(2)],[3]", "b=[1,range(2)],[3]: a list or mapping must not contain range(...) or choice(...)"),
        ("b=[", "b=[: invalid values of a sweep; expected a list such as 1,2,3 or range(3)"),
    ],
)
def test_invalid_values_are_usage_errors(line: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        expand([], [line])
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        expand([line], [])


def test_params_with_a_hydra_setting_are_usage_errors() -> None:
    with pytest.raises(UsageError, match=r"^hydra\.job\.num=1,2: a setting of Hydra cannot vary in a sweep; expected"):
        expand(["hydra.job.num=1,2"], [])


def test_keys_that_vary_one_at_a_time_are_not_combined_with_each_other() -> None:
    params = ("kind=a,b", "lr=1,2", "depth=3,4")

    def expanded(*lines: str) -> list[tuple[str, ...]]:
        return [plan.overrides for plan in expand(params, lines, one_at_a_time=["lr", "depth"])]

    of_a = [("kind=a",), ("kind=a", "lr=1"), ("kind=a", "lr=2"), ("kind=a", "depth=3"), ("kind=a", "depth=4")]
    assert expanded() == [*of_a, *(("kind=b", *lines[1:]) for lines in of_a)]
    plans = expand(params, ["kind=a"], one_at_a_time=["lr", "depth"])
    assert [plan.label for plan in plans] == [
        "kind=a",
        "kind=a,lr=1",
        "kind=a,lr=2",
        "kind=a,depth=3",
        "kind=a,depth=4",
    ]
    fixed = [("kind=a", "lr=9"), ("kind=a", "lr=9", "depth=3"), ("kind=a", "lr=9", "depth=4")]
    assert expanded("kind=a", "lr=9") == fixed, "a single value on the command line is that of every job"
    assert expanded("kind=a", "lr=7,8")[1:3] == [("kind=a", "lr=7"), ("kind=a", "lr=8")]


def test_number_of_jobs_that_vary_one_at_a_time_is_limited_before_they_are_made() -> None:
    many = ["a=range(60000)", "b=range(60000)"]
    with pytest.raises(UsageError, match="120001 jobs; expected at most 100000"):
        expand(many, [], one_at_a_time=["a", "b"])
