"""A graph of scalars, written as named expressions: its values, and derivatives pulled back over it (A1, C4.2, E1)."""

from __future__ import annotations

import ast
import functools
import keyword
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import networkx as nx
import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from dlhw import UsageError
from dlhw.answer import Answer, at_most
from dlhw.plots import COLORS, PALETTE, TEXT_POINTS, new_figure

Name = str
LONGEST, DEEPEST = 200, 40
"""Characters of an expression, and operations inside each other: derivatives grow with their product at most."""
ULPS = 4 * torch.finfo(torch.float64).eps
"""What one operation, ours or torch's, may be off by, as a part of its result: functions are good to 1 ulp or 2."""
TINY = torch.finfo(torch.float64).tiny
"""The same where results are so small that float64 has fewer digits."""


def _sigmoid(u: float) -> float:
    small = math.exp(-abs(u))
    return (1.0 if u >= 0 else small) / (1 + small)


FUNCTIONS: dict[Name, Callable[[float], float]] = {
    "sigmoid": _sigmoid,
    "relu": lambda u: max(u, 0.0),
    "sin": math.sin,
    "cos": math.cos,
    "tanh": math.tanh,
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
}
STEP: dict[Name, Callable[[float], float]] = {"step": lambda u: float(u >= 0)}
"""The derivative of relu as C4.2 defines it, 1 at 0."""
DERIVATIVES = {
    "sigmoid": "own * (1 - own)",
    "relu": "step(u)",
    "sin": "cos(u)",
    "cos": "-sin(u)",
    "tanh": "1 - own ** 2",
    "exp": "own",
    "log": "1 / u",
    "sqrt": "1 / (2 * own)",
}
"""Of each function by its argument u; own is the function's value."""
NUMERIC: dict[Name, Callable[..., Any]] = {
    **{name: getattr(torch, name) for name in FUNCTIONS},
    "relu": lambda u: torch.where(
        u >= 0, u, torch.zeros_like(u)
    ),  # whose derivative at 0 is 1, that of torch.relu is 0
}
OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


@dataclass(frozen=True)
class Rounded:
    """A float and how far off rounding may have put it: the bound that every operation passes on and adds to.

    Operations raise ArithmeticError or ValueError where their result is not a finite real number.
    """

    value: float
    error: float = 0.0

    @staticmethod
    def result(value: float, error: float) -> Rounded:
        """Of an operation whose operands' errors move it by ``error``."""
        if math.isinf(value):
            raise OverflowError
        error = error + ULPS * abs(value) + (TINY if value else 0.0)
        return Rounded(value, math.inf if math.isnan(error) else error)

    @staticmethod
    def of(function: Callable[..., float], *arguments: Rounded) -> Rounded:
        """A function's value, its error by moving each argument by its own."""
        at = [each.value for each in arguments]
        value, error = function(*at), 0.0
        for index, each in enumerate(arguments):
            for moved in {each.value - each.error, each.value + each.error} - {each.value}:
                try:
                    error = max(error, abs(function(*at[:index], moved, *at[index + 1 :]) - value))
                except (ArithmeticError, ValueError):
                    error = math.inf
        return Rounded.result(value, len(arguments) * error)

    def __add__(self, other: Rounded) -> Rounded:
        return Rounded.result(self.value + other.value, self.error + other.error)

    def __sub__(self, other: Rounded) -> Rounded:
        return self + -other

    def __mul__(self, other: Rounded) -> Rounded:
        moved = abs(self.value) * other.error + abs(other.value) * self.error + self.error * other.error
        underflow = TINY if self.value and other.value else 0.0
        return Rounded.result(self.value * other.value, moved + underflow)

    def __truediv__(self, other: Rounded) -> Rounded:
        value, room = self.value / other.value, abs(other.value) - other.error
        return Rounded.result(value, (self.error + abs(value) * other.error) / room if room > 0 else math.inf)

    def __pow__(self, other: Rounded) -> Rounded:
        return Rounded.of(math.pow, self, other)

    def __neg__(self) -> Rounded:
        return Rounded(-self.value, self.error)

    def __pos__(self) -> Rounded:
        return self

    def off(self, other: float) -> float:
        """How far another way to the same number is from it, over the bound; nan if it is no number."""
        apart = abs(self.value - other)
        return apart / (self.error or TINY) if apart else 0.0


@dataclass(frozen=True)
class Algebra:
    """What an expression is made of: numbers with a bound on their rounding, or torch's tensors, and functions."""

    names: Mapping[Name, Any]
    functions: Mapping[str, Callable[..., Any]]
    number: Callable[[float], Any]


def in_floats(values: Mapping[Name, Rounded]) -> Algebra:
    """Our own arithmetic, in the order in which an expression is written."""
    functions = {name: functools.partial(Rounded.of, each) for name, each in (FUNCTIONS | STEP).items()}
    return Algebra(values, functions, lambda value: Rounded(float(value)))


def nothing(names: Iterable[Name]) -> Algebra:
    """Where nothing is computed: for a trial that finds names and functions that are not there."""
    nan = Rounded(math.nan)
    return Algebra(dict.fromkeys(names, nan), dict.fromkeys(FUNCTIONS, operator.pos), lambda value: nan)


def parse(text: str) -> ast.expr:
    """The expression's syntax tree; nothing is evaluated. Raises UsageError."""
    if len(text) > LONGEST:
        raise UsageError(f"has {len(text)} characters, at most {LONGEST}; make nodes of its parts")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError("not an expression of numbers, names, + - * / ** ( ) and functions") from error
    level: list[ast.AST] = [tree]
    for _ in range(DEEPEST + 2):  # one more for names and numbers, one for what names and operations are made of
        level = [child for each in level for child in ast.iter_child_nodes(each)]
    if level:
        raise UsageError(f"more than {DEEPEST} operations inside each other; make nodes of its parts")
    return tree


def build(tree: ast.AST, algebra: Algebra) -> Any:
    """The expression in an algebra. Raises UsageError for whatever is not on the list."""
    match tree:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return algebra.number(value)
        case ast.Name(id=name):
            if name not in algebra.names:
                raise UsageError(f"{name} is no input and no node; there are {', '.join(algebra.names)}")
            return algebra.names[name]
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in OPERATORS:
            return OPERATORS[type(sign)](build(operand, algebra))
        case ast.BinOp(left=left, op=kind, right=right) if type(kind) in OPERATORS:
            return OPERATORS[type(kind)](build(left, algebra), build(right, algebra))
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in algebra.functions:
            return algebra.functions[name](build(argument, algebra))
        case ast.Call(func=ast.Name(id=name)):
            known = name in algebra.functions
            wrong = f"{name} takes one argument" if known else f"{name} is no function"
            raise UsageError(wrong if known else f"{wrong}; there are {', '.join(algebra.functions)}")
    raise UsageError(f"{ast.unparse(tree)}: not a number, name, + - * / ** or function")


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


def number_of(tree: ast.expr) -> float | None:
    """Of a tree that is a number."""
    return tree.value if isinstance(tree, ast.Constant) else None  # type: ignore[return-value]  # parsed as a number


def negative(tree: ast.expr) -> ast.expr:
    """Minus a tree."""
    match tree:
        case ast.Constant(value=int() | float() as value):
            return ast.Constant(-value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return operand
    return ast.UnaryOp(ast.USub(), tree)


def joined(left: ast.expr, kind: ast.operator, right: ast.expr) -> ast.expr:
    """An operation on two trees, without zeros and ones that make no difference."""
    found: ast.expr = ast.BinOp(left, kind, right)
    match number_of(left), kind, number_of(right):
        case (0, ast.Mult() | ast.Div(), _) | (_, ast.Mult(), 0):
            found = ast.Constant(0)
        case (0, ast.Add(), _) | (1, ast.Mult(), _):
            found = right
        case (_, ast.Add() | ast.Sub(), 0) | (_, ast.Mult() | ast.Div() | ast.Pow(), 1):
            found = left
        case (0, ast.Sub(), _) | (-1, ast.Mult(), _):
            found = negative(right)
        case _, ast.Mult(), -1:
            found = negative(left)
        case _, ast.Add(), _ if isinstance(right, ast.UnaryOp) and isinstance(right.op, ast.USub):
            found = ast.BinOp(left, ast.Sub(), right.operand)
    return found


class Filled(ast.NodeTransformer):
    """A formula with trees in the places of its names."""

    def __init__(self, trees: Mapping[Name, ast.expr]) -> None:
        self.trees = trees

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """The tree, if it is one of these names."""
        return self.trees.get(node.id, node)


def derivative(tree: ast.expr, by: Name, own: ast.expr | None = None) -> ast.expr:
    """The tree's derivative by a name, rule by rule; ``own`` stands for the tree's value where a rule has it."""
    plus, minus, times, over, power = ast.Add(), ast.Sub(), ast.Mult(), ast.Div(), ast.Pow()
    found: ast.expr = ast.Constant(0)
    match tree:
        case ast.Name(id=name):
            found = ast.Constant(int(name == by))
        case ast.UnaryOp(op=sign, operand=u):
            slope = derivative(u, by)
            found = negative(slope) if isinstance(sign, ast.USub) else slope
        case ast.Call(func=ast.Name(id=name), args=[u]):
            rule = Filled({"u": u, "own": own or tree}).visit(parse(DERIVATIVES[name]))
            found = joined(rule, times, derivative(u, by))
        case ast.BinOp(left=u, op=kind, right=v):
            of_u, of_v = derivative(u, by), derivative(v, by)
            match kind:
                case ast.Add() | ast.Sub():
                    found = joined(of_u, kind, of_v)
                case ast.Mult():
                    found = joined(joined(of_u, times, v), plus, joined(u, times, of_v))
                case ast.Div():
                    square = joined(v, power, ast.Constant(2))
                    found = joined(joined(of_u, over, v), minus, joined(joined(u, times, of_v), over, square))
                case ast.Pow():
                    number = number_of(v)
                    less = joined(v, minus, ast.Constant(1)) if number is None else ast.Constant(number - 1)
                    outer = joined(v, times, joined(u, power, less)) if number != 0 else ast.Constant(0)
                    growth = joined(tree, times, ast.Call(ast.Name("log"), [u], []))
                    found = joined(joined(outer, times, of_u), plus, joined(growth, times, of_v))
    return found


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
        told=told,
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
