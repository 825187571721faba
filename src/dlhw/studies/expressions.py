"""Arithmetic read from a config: parsed without evaluating it, computed in floats or by torch, differentiated by rules.

Expressions are Python's syntax trees of numbers, names, + - * / ** and a list of functions, and nothing else.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dlhw.errors import UsageError

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
    "relu": lambda u: torch.where(u >= 0, u, torch.zeros_like(u)),  # with derivative 1 at 0; torch.relu has 0
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
