"""A graph of scalars written as named expressions: values, and derivatives by backpropagation (A1, C4.2, E1)."""

from __future__ import annotations

import ast
import functools
import keyword
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import networkx as nx
import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from dlhw.errors import UsageError
from dlhw.storage.answer import Answer, at_most
from dlhw.studies.expressions import (
    FUNCTIONS,
    NUMERIC,
    STEP,
    Algebra,
    Name,
    Rounded,
    derivative,
    dry_run,
    evaluate_tree,
    float_algebra,
    parse,
)
from dlhw.views.plots import COLORS, PALETTE, TEXT_POINTS, new_figure


@dataclass(frozen=True)
class Graph:
    """Inputs with their values, and nodes in the order of computation; the output feeds no other node."""

    inputs: dict[Name, float]
    trees: dict[Name, ast.expr]
    output: Name

    def parents(self, node: Name) -> list[Name]:
        """Return the names in the node's expression, in the order of appearance."""
        names = (part.id for part in ast.walk(self.trees[node]) if isinstance(part, ast.Name))
        return [name for name in dict.fromkeys(names) if name in self.inputs or name in self.trees]

    def consumers(self, name: Name) -> list[Name]:
        """Return the nodes whose expressions contain an input or a node."""
        return [node for node in self.trees if name in self.parents(node)]


def make_graph(inputs: dict[Name, float], nodes: dict[Name, str], output: Name) -> Graph:
    """Return the graph that a config describes. Raise UsageError with one line if it is invalid."""
    _check_names(inputs, nodes, output)
    trees: dict[Name, ast.expr] = {}
    for name, text in nodes.items():
        try:
            tree = parse(text)
            used = [part.id for part in ast.walk(tree) if isinstance(part, ast.Name) and part.id in nodes]
            for other in used:
                if other not in trees:
                    raise UsageError(
                        f"node {other} is not computed yet; nodes must be in the order of computation, without cycles"
                    )
            evaluate_tree(tree, dry_run((*inputs, *trees)))
        except UsageError as error:
            raise UsageError(f"study.nodes.{name}={text}: {error}") from error
        trees[name] = tree
    graph = Graph(inputs, trees, output)
    for name in (*inputs, *nodes):
        if name != output and not graph.consumers(name):
            kind = "inputs" if name in inputs else "nodes"
            raise UsageError(f"study.{kind}.{name}: unused; a node must use it, or study.output must be {name}")
    if graph.consumers(output):
        raise UsageError(
            f"study.output={output}: the output must not feed other nodes, but it feeds "
            f"{', '.join(graph.consumers(output))}"
        )
    return graph


def _check_names(inputs: dict[Name, float], nodes: dict[Name, str], output: Name) -> None:
    for group, names in (("inputs", inputs), ("nodes", nodes)):
        for name in names:
            if not name.isidentifier() or keyword.iskeyword(name) or name in FUNCTIONS | STEP:
                raise UsageError(
                    f"study.{group}.{name}: must be a name of letters, digits and _, and not that of a function"
                )
    for name in nodes:
        if name in inputs:
            raise UsageError(f"study.nodes.{name}: must not have the name of an input")
    if output not in nodes:
        raise UsageError(f"study.output={output}: must be a node; expected one of {', '.join(nodes)}")


def forward(graph: Graph) -> dict[Name, Rounded]:
    """Compute the value of each input and node. Raise UsageError if one is not a finite real number."""
    values = {name: Rounded(value) for name, value in graph.inputs.items()}
    for name, tree in graph.trees.items():
        try:
            values[name] = evaluate_tree(tree, float_algebra(values))
        except (ArithmeticError, ValueError) as error:
            at = ", ".join(f"{parent} = {values[parent].value:g}" for parent in graph.parents(name))
            text = ast.unparse(tree)
            raise UsageError(
                f"study.nodes.{name}={text}: not a finite real number{' at ' + at if at else ''}"
            ) from error
    return values


def local_derivatives(graph: Graph) -> dict[tuple[Name, Name], ast.expr]:
    """Return the derivative of each node by each of its parents as an expression, by (node, parent).

    If the derivative of a function contains the function's value, as for sigmoid and exp, it is written with the node's
    name: for yhat = sigmoid(u) it is yhat (1 - yhat) u'.
    """
    return {
        (node, parent): derivative(tree, parent, value=ast.Name(node))
        for node, tree in graph.trees.items()
        for parent in graph.parents(node)
    }


def backward(
    graph: Graph, values: Mapping[Name, Rounded], local: Mapping[tuple[Name, Name], Rounded]
) -> dict[Name, Rounded]:
    """Compute the derivative of the output J by each node and input, from the output backward.

    J depends on v through the nodes c that v feeds, so dJ/dv = sum_c dJ/dc dc/dv, and dJ/dJ = 1.
    """
    derivatives = {graph.output: Rounded(1.0)}
    for name in reversed([name for name in values if name != graph.output]):
        terms = [derivatives[node] * local[node, name] for node in graph.consumers(name)]
        derivatives[name] = functools.reduce(operator.add, terms)
    return {name: derivatives[name] for name in values}


def by_autograd(graph: Graph, relu_of: Callable[[Tensor], Tensor] = NUMERIC["relu"]) -> dict[Name, tuple[float, float]]:
    """Compute the value and derivative of each input and node with torch, from the same syntax trees in float64."""
    tensors = {
        name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in graph.inputs.items()
    }
    functions = {**NUMERIC, "relu": relu_of}
    for name, tree in graph.trees.items():
        node_value = evaluate_tree(
            tree, Algebra(tensors, functions, lambda value: torch.tensor(float(value), dtype=torch.float64))
        )
        tensors[name] = node_value if node_value.requires_grad else node_value.clone().requires_grad_()
    slopes = torch.autograd.grad(tensors[graph.output], list(tensors.values()), allow_unused=True)
    return {
        name: (tensor.item(), 0.0 if slope is None else slope.item())
        for (name, tensor), slope in zip(tensors.items(), slopes, strict=True)
    }


def chain_rule(graph: Graph, name: Name, local: Mapping[tuple[Name, Name], ast.expr]) -> str:
    """Return dJ/dname as a formula: a sum over the nodes that it feeds, of their derivatives times the local ones."""
    terms = []
    for node in graph.consumers(name):
        outer, tree, factor = f"d{graph.output}/d{node}", local[node, name], ast.unparse(local[node, name])
        if node == graph.output:
            terms.append(factor)
        elif factor == "1":
            terms.append(outer)
        else:
            needs_parentheses = factor.startswith("-") or (
                isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add | ast.Sub)
            )
            terms.append(f"{outer} * ({factor})" if needs_parentheses else f"{outer} * {factor}")
    return " + ".join(terms) or "1"


def computational_graph(
    *,
    inputs: Annotated[dict[Name, Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1, max_length=50)],
    nodes: Annotated[dict[Name, str], Field(min_length=1, max_length=50)],
    output: Name,
) -> Answer:
    """Compute values and derivatives of every node, compare them with autograd, and plot the graph."""
    graph = make_graph(inputs, nodes, output)
    values = forward(graph)
    local = local_derivatives(graph)
    slopes: dict[tuple[Name, Name], Rounded] = {}
    for (node, parent), tree in local.items():
        try:
            slopes[node, parent] = evaluate_tree(tree, float_algebra(values))
        except (ArithmeticError, ValueError) as error:
            raise UsageError(
                f"study.nodes.{node}={nodes[node]}: no finite derivative by {parent} at these values"
            ) from error
    try:
        derivatives = backward(graph, values, slopes)
    except ArithmeticError as error:
        raise UsageError(f"study.output={output}: one of its derivatives overflows float64 at these values") from error
    autograd = by_autograd(graph)
    with_torch_relu = by_autograd(graph, torch.relu)
    errors = torch.tensor(
        [[values[name].off(value), derivatives[name].off(slope)] for name, (value, slope) in autograd.items()]
    ).amax(0)  # nan if a value of torch's is nan
    at_kink = [name for name in values if with_torch_relu[name] != autograd[name]]

    rows = [
        {
            "name": name,
            "kind": "input" if name in inputs else "output" if name == output else "node",
            "expression": "" if name in inputs else ast.unparse(graph.trees[name]),
            "value": value.value,
            "derivative": derivatives[name].value,
            "derivative_expression": chain_rule(graph, name, local),
            "autograd": autograd[name][1],
        }
        for name, value in values.items()
    ]
    edges = [
        {
            "node": node,
            "parent": parent,
            "derivative_expression": ast.unparse(local[node, parent]),
            "derivative": slope.value,
        }
        for (node, parent), slope in slopes.items()
    ]
    lines = [f"{name} = {ast.unparse(graph.trees[name])} = {values[name].value:.6g}" for name in graph.trees]
    lines += [
        f"d{output}/d{row['name']} = {row['derivative_expression']} = {row['derivative']:.6g}" for row in reversed(rows)
    ]
    if any("step(" in ast.unparse(tree) for tree in local.values()):
        lines.append("step(u), the derivative of relu, is 1 for u >= 0, else 0")
    lines += [
        f"d{output}/d{name} would be {with_torch_relu[name][1]:.6g} with torch.relu, whose derivative at 0 is 0, not 1"
        for name in at_kink
    ]
    return Answer(
        numbers={output: values[output].value}
        | {f"d{output}_d{name}": derivatives[name].value for name in values if name != output},
        checks=[
            at_most(
                "largest difference between the values and torch's, relative to the rounding bound",
                errors[0].item(),
                1.0,
            ),
            at_most(
                "largest difference between the derivatives and autograd's, relative to the rounding bound",
                errors[1].item(),
                1.0,
            ),
        ],
        tables={"nodes": rows, "edges": edges},
        figures={"graph": plot_graph(graph, values, derivatives)},
        messages=lines,
    )


def layout(graph: Graph) -> dict[tuple[Name, int], float]:
    """Return heights by name and column, from left to right; a name is in the rightmost column before its consumers.

    A name that feeds a node beyond the next column keeps a height in every column between, to make room for the arrow.
    Names are sorted by where their arrows end, to avoid crossings.
    """
    backwards = nx.DiGraph([(node, parent) for node in graph.trees for parent in graph.parents(node)])
    backwards.add_node(graph.output)
    generations = list(nx.topological_generations(backwards))
    last = len(generations) - 1
    column = {name: last - index for index, names in enumerate(generations) for name in names}
    heights: dict[tuple[Name, int], float] = {(graph.output, last): 0.0}
    for index in reversed(range(last)):
        ends: dict[Name, list[float]] = {}
        for name in (*graph.inputs, *graph.trees):
            if column[name] <= index:
                next_nodes = [node for node in graph.consumers(name) if column[node] == index + 1]
                passing = [name] if (name, index + 1) in heights else []
                ends[name] = [heights[end, index + 1] for end in next_nodes + passing]
        names = sorted(filter(ends.get, ends), key=lambda name: -sum(ends[name]) / len(ends[name]))
        heights |= {(name, index): (len(names) - 1) / 2 - row for row, name in enumerate(names)}
    return heights


def plot_graph(graph: Graph, values: Mapping[Name, Rounded], derivatives: Mapping[Name, Rounded]) -> Figure:
    """Plot the graph from left to right; each box shows the name, its value, and the output's derivative by it."""
    heights = layout(graph)
    tallest = 2 * max(heights.values()) + 1
    column = {name: min(index for other, index in heights if other == name) for name in values}
    figure, (axes,) = new_figure(
        1,
        title=f"computational_graph: values and derivatives of {graph.output}",
        subtitle=f"each box: name, value, derivative of {graph.output} by it; inputs blue, nodes orange, output green",
        panel_inches=max(2.4, 0.62 * tallest),
    )
    axes.set_axis_off()
    axes.set(xlim=(-0.5, column[graph.output] + 0.5), ylim=(-tallest / 2, tallest / 2))
    line = {"color": COLORS["reference"], "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
    for (name, index), y in heights.items():
        left, right = index - 0.2, index + 0.2
        ends = [(heights[node, index + 1], "-|>") for node in graph.consumers(name) if column[node] == index + 1]
        if (name, index + 1) in heights:
            ends.append((heights[name, index + 1], "-"))
        for end, style in ends:
            axes.annotate("", (right + 0.6, end), (right, y), arrowprops={"arrowstyle": style, **line})
        if column[name] < index:
            axes.annotate("", (right, y), (left, y), arrowprops={"arrowstyle": "-", **line})
            continue
        color = PALETTE[0] if name in graph.inputs else PALETTE[2] if name == graph.output else PALETTE[1]
        axes.text(
            index,
            y,
            f"{name}\n{values[name].value:.4g}\nd: {derivatives[name].value:.4g}",
            ha="center",
            va="center",
            fontsize=TEXT_POINTS - 1.5,
            parse_math=False,
            linespacing=1.05,
            bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": color, "linewidth": 1.6},
            zorder=3,
        )
    return figure
