"""A graph of scalars, written as named expressions: its values, and derivatives pulled back over it (A1, C4.2, E1)."""

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
from dlhw.runs.answer import Answer, at_most
from dlhw.studies.expressions import (
    FUNCTIONS,
    NUMERIC,
    STEP,
    Algebra,
    Name,
    Rounded,
    build,
    derivative,
    in_floats,
    nothing,
    parse,
)
from dlhw.views.plots import COLORS, PALETTE, TEXT_POINTS, new_figure


@dataclass(frozen=True)
class Graph:
    """Inputs with their values, and nodes in the order in which they are computed, the output last used by none."""

    inputs: dict[Name, float]
    trees: dict[Name, ast.expr]
    output: Name

    def parents(self, node: Name) -> list[Name]:
        """Names in the node's expression, as they come in it."""
        names = (each.id for each in ast.walk(self.trees[node]) if isinstance(each, ast.Name))
        return [name for name in dict.fromkeys(names) if name in self.inputs or name in self.trees]

    def consumers(self, name: Name) -> list[Name]:
        """Nodes that an input or a node feeds."""
        return [node for node in self.trees if name in self.parents(node)]


def graph(inputs: dict[Name, float], nodes: dict[Name, str], output: Name) -> Graph:
    """The graph that a config describes. Raises UsageError with one line for what is wrong with it."""
    _check_names(inputs, nodes, output)
    trees: dict[Name, ast.expr] = {}
    for name, text in nodes.items():
        try:
            tree = parse(text)
            later = [each.id for each in ast.walk(tree) if isinstance(each, ast.Name) and each.id in nodes]
            for other in later:
                if other not in trees:
                    raise UsageError(
                        f"{other} is not computed yet; nodes stand in the order of computing, without cycles"
                    )
            build(tree, nothing((*inputs, *trees)))
        except UsageError as error:
            raise UsageError(f"study.nodes.{name}={text}: {error}") from error
        trees[name] = tree
    found = Graph(inputs, trees, output)
    for name in (*inputs, *nodes):
        if name != output and not found.consumers(name):
            kind = "inputs" if name in inputs else "nodes"
            raise UsageError(f"study.{kind}.{name}: no node uses it, and the output is {output}")
    if found.consumers(output):
        raise UsageError(
            f"study.output={output}: the output must not feed other nodes, but it feeds "
            f"{', '.join(found.consumers(output))}"
        )
    return found


def _check_names(inputs: dict[Name, float], nodes: dict[Name, str], output: Name) -> None:
    for group, names in (("inputs", inputs), ("nodes", nodes)):
        for name in names:
            if not name.isidentifier() or keyword.iskeyword(name) or name in FUNCTIONS | STEP:
                raise UsageError(f"study.{group}.{name}: must be a name of letters, digits and _, and no function's")
    for name in nodes:
        if name in inputs:
            raise UsageError(f"study.nodes.{name}: there is an input of this name")
    if output not in nodes:
        raise UsageError(f"study.output={output}: must be a node; there are {', '.join(nodes)}")


def forward(found: Graph) -> dict[Name, Rounded]:
    """The value of each input and each node, node by node. Raises UsageError where one is not a finite real number."""
    values = {name: Rounded(value) for name, value in found.inputs.items()}
    for name, tree in found.trees.items():
        try:
            values[name] = build(tree, in_floats(values))
        except (ArithmeticError, ValueError) as error:
            at = ", ".join(f"{parent} = {values[parent].value:g}" for parent in found.parents(name))
            text = ast.unparse(tree)
            raise UsageError(
                f"study.nodes.{name}={text}: not a finite real number where {at or 'it stands'}"
            ) from error
    return values


def local_derivatives(found: Graph) -> dict[tuple[Name, Name], ast.expr]:
    """The derivative of each node by each of its parents as an expression: (node, parent) to d node / d parent.

    Where a function's derivative contains the function's own value, as sigmoid's and exp's do, it is written as the
    node: for yhat = sigmoid(u) it is yhat (1 - yhat) u'.
    """
    return {
        (node, parent): derivative(tree, parent, own=ast.Name(node))
        for node, tree in found.trees.items()
        for parent in found.parents(node)
    }


def backward(
    found: Graph, values: Mapping[Name, Rounded], local: Mapping[tuple[Name, Name], Rounded]
) -> dict[Name, Rounded]:
    """The derivative of the output by each node and input, from the output back.

    The output moves with v through the nodes c that v feeds, so dJ/dv = sum_c dJ/dc dc/dv, and dJ/dJ = 1.
    """
    derivatives = {found.output: Rounded(1.0)}
    for name in reversed([name for name in values if name != found.output]):
        terms = [derivatives[node] * local[node, name] for node in found.consumers(name)]
        derivatives[name] = functools.reduce(operator.add, terms)
    return {name: derivatives[name] for name in values}


def by_autograd(found: Graph, relu_of: Callable[[Tensor], Tensor] = NUMERIC["relu"]) -> dict[Name, tuple[float, float]]:
    """Value and derivative of each input and node, from torch's own pass over the same syntax trees in float64."""
    tensors = {
        name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in found.inputs.items()
    }
    functions = {**NUMERIC, "relu": relu_of}
    for name, tree in found.trees.items():
        made = build(tree, Algebra(tensors, functions, lambda value: torch.tensor(float(value), dtype=torch.float64)))
        tensors[name] = made if made.requires_grad else made.clone().requires_grad_()
    slopes = torch.autograd.grad(tensors[found.output], list(tensors.values()), allow_unused=True)
    return {
        name: (tensor.item(), 0.0 if slope is None else slope.item())
        for (name, tensor), slope in zip(tensors.items(), slopes, strict=True)
    }


def chain(found: Graph, name: Name, local: Mapping[tuple[Name, Name], ast.expr]) -> str:
    """dJ/dname in words: a sum over the nodes it feeds, of their derivatives times the local ones."""
    terms = []
    for node in found.consumers(name):
        outer, tree, factor = f"d{found.output}/d{node}", local[node, name], ast.unparse(local[node, name])
        if node == found.output:
            terms.append(factor)
        elif factor == "1":
            terms.append(outer)
        else:
            closed = factor.startswith("-") or (isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add | ast.Sub))
            terms.append(f"{outer} * ({factor})" if closed else f"{outer} * {factor}")
    return " + ".join(terms) or "1"


def computational_graph(
    *,
    inputs: Annotated[dict[Name, Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1, max_length=50)],
    nodes: Annotated[dict[Name, str], Field(min_length=1, max_length=50)],
    output: Name,
) -> Answer:
    """Values and derivatives of every node by our own passes, against autograd, as a table and a drawn graph."""
    found = graph(inputs, nodes, output)
    values = forward(found)
    local = local_derivatives(found)
    slopes: dict[tuple[Name, Name], Rounded] = {}
    for (node, parent), tree in local.items():
        try:
            slopes[node, parent] = build(tree, in_floats(values))
        except (ArithmeticError, ValueError) as error:
            raise UsageError(
                f"study.nodes.{node}={nodes[node]}: has no finite derivative by {parent} at these values"
            ) from error
    try:
        derivatives = backward(found, values, slopes)
    except ArithmeticError as error:
        raise UsageError(f"study.output={output}: a derivative of it is beyond float64 at these values") from error
    automatic = by_autograd(found)
    torchs_relu = by_autograd(found, torch.relu)
    worst = torch.tensor(
        [[values[name].off(value), derivatives[name].off(slope)] for name, (value, slope) in automatic.items()]
    ).amax(0)  # nan where torch has it
    at_kink = [name for name in values if torchs_relu[name] != automatic[name]]

    rows = [
        {
            "name": name,
            "kind": "input" if name in inputs else "output" if name == output else "node",
            "expression": "" if name in inputs else ast.unparse(found.trees[name]),
            "value": value.value,
            "derivative": derivatives[name].value,
            "derivative_expression": chain(found, name, local),
            "autograd": automatic[name][1],
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
    told = [f"{name} = {ast.unparse(found.trees[name])} = {values[name].value:.6g}" for name in found.trees]
    told += [
        f"d{output}/d{row['name']} = {row['derivative_expression']} = {row['derivative']:.6g}" for row in reversed(rows)
    ]
    if any("step(" in ast.unparse(tree) for tree in local.values()):
        told.append("step(u), the derivative of relu, is 1 where u >= 0, else 0")
    told += [
        f"d{output}/d{name} would be {torchs_relu[name][1]:.6g} with torch.relu, whose derivative at 0 is 0, not 1"
        for name in at_kink
    ]
    return Answer(
        numbers={output: values[output].value}
        | {f"d{output}_d{name}": derivatives[name].value for name in values if name != output},
        checks=[
            at_most("values against torch's, over the bound on what rounding does to them", worst[0].item(), 1.0),
            at_most("derivatives against autograd, over the bound on what rounding does to them", worst[1].item(), 1.0),
        ],
        tables={"nodes": rows, "edges": edges},
        figures={"graph": draw(found, values, derivatives)},
        messages=told,
    )


def places(found: Graph) -> dict[tuple[Name, int], float]:
    """Heights by name and column, from left to right: each name stands as near to the output as what it feeds allows.

    A name that feeds a node further right than the next column keeps a height in every column between, so that the
    arrow has room there. Names are sorted by where their arrows end, lest these cross.
    """
    backwards = nx.DiGraph([(node, parent) for node in found.trees for parent in found.parents(node)])
    backwards.add_node(found.output)
    generations = list(nx.topological_generations(backwards))
    last = len(generations) - 1
    column = {name: last - index for index, names in enumerate(generations) for name in names}
    heights: dict[tuple[Name, int], float] = {(found.output, last): 0.0}
    for index in reversed(range(last)):
        ends: dict[Name, list[float]] = {}
        for name in (*found.inputs, *found.trees):
            if column[name] <= index:
                next_ones = [node for node in found.consumers(name) if column[node] == index + 1]
                further = [name] if (name, index + 1) in heights else []
                ends[name] = [heights[each, index + 1] for each in next_ones + further]
        names = sorted(filter(ends.get, ends), key=lambda name: -sum(ends[name]) / len(ends[name]))
        heights |= {(name, index): (len(names) - 1) / 2 - row for row, name in enumerate(names)}
    return heights


def draw(found: Graph, values: Mapping[Name, Rounded], derivatives: Mapping[Name, Rounded]) -> Figure:
    """The graph from left to right; in each box the name, its value, and the output's derivative by it."""
    heights = places(found)
    tallest = 2 * max(heights.values()) + 1
    column = {name: min(index for each, index in heights if each == name) for name in values}
    figure, (axes,) = new_figure(
        1,
        title=f"computational_graph: values and derivatives of {found.output}",
        subtitle=f"each box: name, value, derivative of {found.output} by it; inputs blue, nodes orange, output green",
        panel_inches=max(2.4, 0.62 * tallest),
    )
    axes.set_axis_off()
    axes.set(xlim=(-0.5, column[found.output] + 0.5), ylim=(-tallest / 2, tallest / 2))
    line = {"color": COLORS["reference"], "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
    for (name, index), y in heights.items():
        left, right = index - 0.2, index + 0.2
        ends = [(heights[node, index + 1], "-|>") for node in found.consumers(name) if column[node] == index + 1]
        if (name, index + 1) in heights:
            ends.append((heights[name, index + 1], "-"))
        for end, style in ends:
            axes.annotate("", (right + 0.6, end), (right, y), arrowprops={"arrowstyle": style, **line})
        if column[name] < index:
            axes.annotate("", (right, y), (left, y), arrowprops={"arrowstyle": "-", **line})
            continue
        color = PALETTE[0] if name in found.inputs else PALETTE[2] if name == found.output else PALETTE[1]
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
