"""Graphs of scalars: derivatives by hand, both cases of ReLU, expressions, and invalid graphs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dlhw.errors import UsageError
from dlhw.storage.answer import Answer
from dlhw.studies import computational_graph as study
from dlhw.studies import expressions
from dlhw.studies.computational_graph import by_autograd, computational_graph, make_graph
from support.composing import Ask

SHIPPED = {"a1": 13, "c4_2": 19, "c4_2_off": 19, "e1": 15}


def answer_for(inputs: dict[str, float], output: str = "f", **nodes: str) -> Answer:
    return computational_graph(inputs=inputs, nodes=nodes, output=output)


def column(answer: Answer, name: str) -> dict[str, Any]:
    return {str(row["name"]): row[name] for row in answer.tables["nodes"]}


@pytest.mark.parametrize("name", SHIPPED)
def test_all_checks_agree_for_shipped_graphs(ask: Ask, name: str) -> None:
    answer = ask("experiment=computational_graph", f"graph={name}")
    assert answer.disagreements == []
    assert len(answer.tables["nodes"]) == SHIPPED[name]
    assert set(answer.figures) == {"graph"}


def test_derivatives_of_the_default_graph_equal_those_by_hand(ask: Ask) -> None:
    derivatives = column(ask("experiment=computational_graph"), "derivative")
    z3 = 1 / (1 + math.exp(-1))
    s = 1 / (1 + math.exp(-(6 - 5 - z3)))
    slope = 2 * s * (1 - s)
    by_hand = {"h1": slope, "h2": -slope, "w3": -slope, "w4": s, "z1": slope * 3, "x1": slope * 3 * 2}
    by_hand["z2"] = slope * 2 - slope * z3 * (1 - z3)
    by_hand["x2"], by_hand["w2"] = by_hand["z2"], 3 * by_hand["z2"]
    assert {name: derivatives[name] for name in by_hand} == pytest.approx(by_hand, rel=1e-13)


@pytest.mark.parametrize(
    "text",
    [
        "(x + y + z) ** 100 + z",
        "(x * y + z) ** 200 + z",
        "(x + y + z) ** 60 * sin(x) + z",
        "exp(10 ** 9 * log((x + y) / z / 9)) + 0.5 ** 10 ** 9",
        "(((2 * x * y * z) ** 100) ** 100) + sqrt(10 ** 300 + 1) / 10 ** 150",
        "sin(" * 38 + "x*y*z" + ")" * 38,
    ],
)
def test_large_powers_and_deep_nesting_agree(text: str) -> None:
    assert answer_for({"x": 0.3, "y": 0.4, "z": 0.5}, f=text).disagreements == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x*((((2**100)**100)**100)**100)**100", "not a finite real number"),
        ("x*exp(exp(exp(exp(100))))", "not a finite real number"),
        ("x*sin(10**100*exp(100**100))", "not a finite real number"),
        ("exp(exp(exp(exp(x))))", "not a finite real number at x = 10"),
        ("x * 1" + 150 * "0" + " ** 3", "not a finite real number"),
        ("+".join("x" * 101), "has 201 characters; must have at most 200"),
        ("+".join("x" * 50), "must have at most 40 nested operations"),
        ("step(x)", "unknown function step"),
    ],
)
def test_overflowing_or_long_expressions_raise_a_one_line_usage_error(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        answer_for({"x": 10.0}, f=text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["(x + 1e16) - 1e16", "x * ((x + 1e16) - 1e16)", "sin(exp(x) * 1e17)", "(1 + sin(x) * 1e-4) ** 1e6",
     "(1e-200 * x) * (1e-200 * x) * 1e300 + x ** 0", "x ** x / (x - 0.2999999)"],
)  # fmt: skip
def test_rounding_errors_do_not_disagree(text: str) -> None:
    assert answer_for({"x": 0.3}, f=text).disagreements == []


def test_wrong_or_nan_values_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(expressions.NUMERIC, "sin", lambda u: torch.sin(u * (1 + 1e-12)))
    assert answer_for({"x": 0.7}, f="sin(x)").disagreements != []
    monkeypatch.setitem(expressions.NUMERIC, "sin", lambda u: u * torch.nan)
    assert len(answer_for({"x": 0.7}, f="sin(x)").disagreements) == 2


@pytest.mark.parametrize("name", ["c4_2", "c4_2_off"])
def test_derivatives_of_c4_2_equal_those_by_hand(ask: Ask, name: str) -> None:
    answer = ask("experiment=computational_graph", f"graph={name}")
    v, d = column(answer, "value"), column(answer, "derivative")
    y1, y2 = v["yhat1"], v["yhat2"]
    to_1, to_2 = -2 / (v["y1"] - y1), -2 / (v["y2"] - y2)
    slope = y1 * (1 - y1)
    to_z1 = to_1 * slope * 3 * v["m11"] * v["z1"] ** 2 + to_2 * v["m12"] * math.cos(v["z1"])
    to_z2 = -to_2 * v["m22"] * math.sin(v["z2"])
    on = v["w11"] * v["x1"] + v["w21"] * v["x2"] >= 0
    assert on == (name == "c4_2")
    by_hand = {
        "yhat1": to_1,
        "yhat2": to_2,
        "z1": to_z1,
        "z2": to_z2,
        "m11": to_1 * slope * v["z1"] ** 3,
        "m12": to_2 * math.sin(v["z1"]),
        "m22": to_2 * math.cos(v["z2"]),
        "c1": to_1 * slope,
        "w22": to_z2 * v["x2"] ** 2,
        "b2": to_z2,
        "w11": to_z1 * v["x1"] * on,
        "w21": to_z1 * v["x2"] * on,
    }
    assert {node: d[node] for node in by_hand} == pytest.approx(by_hand, rel=1e-12, abs=1e-15)


def test_derivatives_of_e1_equal_those_by_hand(ask: Ask) -> None:
    answer = ask("experiment=computational_graph", "graph=e1")
    v, d = column(answer, "value"), column(answer, "derivative")
    outer = 2 * (v["yhat"] - v["y"])
    assert d["v1"] == pytest.approx(outer * v["u1"])
    assert d["w12"] == pytest.approx(outer * v["v1"] * v["u1"] * (1 - v["u1"]) * v["x2"])
    formulas = column(answer, "derivative_expression")
    assert formulas["z1"] == "dL/du1 * u1 * (1 - u1)"
    assert formulas["w12"] == "dL/dz1 * x2"


def test_relu_has_derivative_1_at_0_with_a_message_about_torch_relu() -> None:
    answer = answer_for({"x": 0.0, "w": 2.0}, z="relu(w * x)", f="3 * z")
    assert answer.disagreements == []
    assert column(answer, "derivative")["x"] == 6.0
    assert "df/dx would be 0 with torch.relu, whose derivative at 0 is 0, not 1" in answer.messages
    off_kink = answer_for({"x": 0.1, "w": 2.0}, z="relu(w * x)", f="3 * z")
    assert not any("torch.relu" in line for line in off_kink.messages)


def test_derivatives_are_summed_over_all_uses_of_a_name() -> None:
    answer = answer_for({"x": 3.0}, a="x ** 2", b="-x", f="a * b + x")
    assert column(answer, "derivative") == {"x": -3 * 9 + 1, "a": -3.0, "b": 9.0, "f": 1.0}


@pytest.mark.parametrize("function", list(expressions.FUNCTIONS))
def test_derivatives_of_every_function_agree_with_autograd(function: str) -> None:
    answer = answer_for({"x": 0.7, "k": 1.5}, f=f"k * {function}(x / k) ** 2 - {function}(2.5e-1) + +1")
    assert answer.disagreements == []


def test_wrong_numeric_function_disagrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(expressions.NUMERIC, "sin", expressions.NUMERIC["cos"])
    assert len(answer_for({"x": 0.7}, f="sin(x)").disagreements) == 2


def test_constants_are_nodes() -> None:
    answer = answer_for({"x": 2.0}, c="1 / 4", f="c * x")
    assert column(answer, "derivative") == {"x": 0.25, "c": 2.0, "f": 1.0}
    assert by_autograd(make_graph({"x": 2.0}, {"c": "1 / 4", "f": "c * x"}, "f"))["c"] == (0.25, 2.0)


def test_boxes_and_passing_arrows_do_not_overlap() -> None:
    graph = make_graph({"x": 1.0, "y": 2.0}, {"a": "x * y", "b": "a + x", "f": "a * b"}, "f")
    heights = study.layout(graph)
    assert set(heights) == {("x", 0), ("y", 0), ("a", 1), ("x", 1), ("b", 2), ("a", 2), ("f", 3)}
    assert len({(index, y) for (_, index), y in heights.items()}) == len(heights)


@pytest.mark.parametrize(
    ("inputs", "nodes", "output", "message"),
    [
        ({"x": 1}, {"f": "x + q"}, "f", "study.nodes.f=x \\+ q: unknown name q; expected one of x"),
        ({"x": 1}, {"f": "g * x", "g": "x"}, "f", "g is not computed yet"),
        ({"x": 1}, {"f": "f + x"}, "f", "f is not computed yet"),
        ({"x": 1}, {"f": "erf(x)"}, "f", "unknown function erf; expected one of sigmoid, relu"),
        ({"x": 1}, {"f": "sin(x, x)"}, "f", "sin takes exactly one argument"),
        ({"x": 1}, {"f": "x +"}, "f", "must be an expression"),
        ({"x": 1}, {"f": ""}, "f", "must be an expression"),
        ({"x": 1}, {"f": "__import__('os').system('true')"}, "f", "must be a number, name"),
        ({"x": 1}, {"f": "x if x else 2"}, "f", "must be a number, name"),
        ({"x": 1}, {"f": "x % 2"}, "f", "x % 2: must be a number"),
        ({"x": 1}, {"f": "x + 1j"}, "f", "1j: must be a number"),
        ({"x": 1}, {"f": "x * 9 ** 9 ** 9"}, "f", "not a finite real number at x = 1"),
        ({"x": 1}, {"f": "x"}, "g", "study.output=g: must be a node; expected one of f"),
        ({"x": 1}, {"f": "x", "g": "x"}, "f", "study.nodes.g: unused; a node must use it, or study.output must be g"),
        ({"x": 1}, {"f": "x", "g": "f"}, "f", "study.nodes.g: unused"),
        ({"x": 1, "y": 2}, {"f": "x"}, "f", "study.inputs.y: unused"),
        ({"x": 1}, {"x": "1"}, "x", "study.nodes.x: must not have the name of an input"),
        ({"sin": 1}, {"f": "sin"}, "f", "study.inputs.sin: must be a name"),
        ({"a b": 1}, {"f": "1"}, "f", "study.inputs.a b: must be a name"),
        ({"x": 0}, {"f": "log(x)"}, "f", "study.nodes.f=log\\(x\\): not a finite real number at x = 0"),
        ({"x": -1}, {"f": "sqrt(x)"}, "f", "not a finite real number at x = -1"),
        ({"x": 0}, {"f": "1 / x"}, "f", "not a finite real number at x = 0"),
        ({"x": 1000}, {"f": "exp(x)"}, "f", "not a finite real number at x = 1000"),
        ({"x": 1}, {"f": "x / 0"}, "f", "not a finite real number"),
        ({"x": 0}, {"f": "sqrt(x)"}, "f", "no finite derivative by x"),
    ],
)
def test_invalid_graphs_raise_a_one_line_usage_error(
    inputs: dict[str, float], nodes: dict[str, str], output: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        computational_graph(inputs=inputs, nodes=nodes, output=output)
    assert "\n" not in str(caught.value)


def test_graph_can_be_given_on_the_command_line(ask: Ask) -> None:
    answer = ask(
        "experiment=computational_graph",
        "study.inputs={u: 2}",
        "study.nodes={g: 'u ** 3', f: 'log(g)'}",
        "study.output=f",
    )
    assert column(answer, "derivative")["u"] == pytest.approx(1.5)
    changed = ask("experiment=computational_graph", "graph=e1", "graphs.e1.inputs.y=2")
    assert column(changed, "value")["y"] == 2


@pytest.mark.parametrize("override", ["graph=c4", "study.inputs={x: one}", "study.inputs={}", "study.nodes={f: [x]}"])
def test_invalid_settings_raise_usage_error(ask: Ask, override: str) -> None:
    with pytest.raises(UsageError, match=override.partition("=")[0]):
        ask("experiment=computational_graph", override)
