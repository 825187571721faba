"""Arithmetic expressions from a config: parsed without eval, computed in floats or torch, differentiated by rules.

An expression is a Python syntax tree of numbers, names, + - * / ** and a fixed set of functions, and nothing else.
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
"""Maximum number of characters, and of nested operations: derivatives grow at most with their product."""
ULPS = 4 * torch.finfo(torch.float64).eps
"""Bound on the relative error of one operation, ours or torch's: functions are accurate to 1 or 2 ulp."""
TINY = torch.finfo(torch.float64).tiny
"""Bound on the absolute error of results so small that float64 has fewer digits."""


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
"""The derivative of relu as defined in C4.2, 1 at 0."""
DERIVATIVES = {
    "sigmoid": "value * (1 - value)",
    "relu": "step(u)",
    "sin": "cos(u)",
    "cos": "-sin(u)",
    "tanh": "1 - value ** 2",
    "exp": "value",
    "log": "1 / u",
    "sqrt": "1 / (2 * value)",
}
"""The derivative of each function by its argument u; ``value`` is the function's value."""
NUMERIC: dict[Name, Callable[..., Any]] = {
    **{name: getattr(torch, name) for name in FUNCTIONS},
    "relu": lambda u: torch.where(u >= 0, u, torch.zeros_like(u)),  # its derivative at 0 is 1, torch.relu's is 0
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
    """A float and a bound on its rounding error, which every operation propagates.

    Operations raise ArithmeticError or ValueError if their result is not a finite real number.
    """

    value: float
    error: float = 0.0

    @staticmethod
    def result(value: float, error: float) -> Rounded:
        """Return the result of an operation whose operands' errors change it by at most ``error``."""
        if math.isinf(value):
            raise OverflowError
        error = error + ULPS * abs(value) + (TINY if value else 0.0)
        return Rounded(value, math.inf if math.isnan(error) else error)

    @staticmethod
    def of(function: Callable[..., float], *arguments: Rounded) -> Rounded:
        """Return a function's value; its error is found by moving each argument by its error."""
        at = [argument.value for argument in arguments]
        value, error = function(*at), 0.0
        for index, argument in enumerate(arguments):
            for moved in {argument.value - argument.error, argument.value + argument.error} - {argument.value}:
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
        """Return the distance to another result for the same number, relative to the bound; nan if either is nan."""
        apart = abs(self.value - other)
        return apart / (self.error or TINY) if apart else 0.0


@dataclass(frozen=True)
class Algebra:
    """The objects that an expression is evaluated with: values of names, functions, and the conversion of numbers."""

    names: Mapping[Name, Any]
    functions: Mapping[str, Callable[..., Any]]
    number: Callable[[float], Any]


def float_algebra(values: Mapping[Name, Rounded]) -> Algebra:
    """Return the algebra of floats with a bound on their rounding."""
    functions = {name: functools.partial(Rounded.of, function) for name, function in (FUNCTIONS | STEP).items()}
    return Algebra(values, functions, lambda value: Rounded(float(value)))


def dry_run(names: Iterable[Name]) -> Algebra:
    """Return an algebra that computes nothing, to find unknown names and functions."""
    nan = Rounded(math.nan)
    return Algebra(dict.fromkeys(names, nan), dict.fromkeys(FUNCTIONS, operator.pos), lambda value: nan)


def parse(text: str) -> ast.expr:
    """Return the syntax tree of an expression, without evaluating it. Raise UsageError if it is invalid."""
    if len(text) > LONGEST:
        raise UsageError(f"has {len(text)} characters; must have at most {LONGEST}; split it into several nodes")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError("must be an expression of numbers, names, + - * / ** ( ) and functions") from error
    level: list[ast.AST] = [tree]
    for _ in range(DEEPEST + 2):  # one level more for names and numbers, one for the nodes inside these
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    if level:
        raise UsageError(f"must have at most {DEEPEST} nested operations; split it into several nodes")
    return tree


def evaluate_tree(tree: ast.AST, algebra: Algebra) -> Any:
    """Return the value of an expression in an algebra. Raise UsageError for anything else than an expression."""
    match tree:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return algebra.number(value)
        case ast.Name(id=name):
            if name not in algebra.names:
                raise UsageError(f"unknown name {name}; expected one of {', '.join(algebra.names)}")
            return algebra.names[name]
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in OPERATORS:
            return OPERATORS[type(sign)](evaluate_tree(operand, algebra))
        case ast.BinOp(left=left, op=kind, right=right) if type(kind) in OPERATORS:
            return OPERATORS[type(kind)](evaluate_tree(left, algebra), evaluate_tree(right, algebra))
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in algebra.functions:
            return algebra.functions[name](evaluate_tree(argument, algebra))
        case ast.Call(func=ast.Name(id=name)):
            if name in algebra.functions:
                raise UsageError(f"{name} takes exactly one argument")
            raise UsageError(f"unknown function {name}; expected one of {', '.join(algebra.functions)}")
    raise UsageError(f"{ast.unparse(tree)}: must be a number, name, + - * / ** or function")


def number_of(tree: ast.expr) -> float | None:
    """Return the number if the tree is one, else None."""
    return tree.value if isinstance(tree, ast.Constant) else None  # type: ignore[return-value]  # parsed as a number


def negated(tree: ast.expr) -> ast.expr:
    """Return the tree of minus a tree."""
    match tree:
        case ast.Constant(value=int() | float() as value):
            return ast.Constant(-value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return operand
    return ast.UnaryOp(ast.USub(), tree)


def simplified(left: ast.expr, kind: ast.operator, right: ast.expr) -> ast.expr:
    """Return an operation on two trees, without redundant zeros and ones."""
    result: ast.expr = ast.BinOp(left, kind, right)
    match number_of(left), kind, number_of(right):
        case (0, ast.Mult() | ast.Div(), _) | (_, ast.Mult(), 0):
            result = ast.Constant(0)
        case (0, ast.Add(), _) | (1, ast.Mult(), _):
            result = right
        case (_, ast.Add() | ast.Sub(), 0) | (_, ast.Mult() | ast.Div() | ast.Pow(), 1):
            result = left
        case (0, ast.Sub(), _) | (-1, ast.Mult(), _):
            result = negated(right)
        case _, ast.Mult(), -1:
            result = negated(left)
        case _, ast.Add(), _ if isinstance(right, ast.UnaryOp) and isinstance(right.op, ast.USub):
            result = ast.BinOp(left, ast.Sub(), right.operand)
    return result


class Substitution(ast.NodeTransformer):
    """Replace names in a formula by trees."""

    def __init__(self, trees: Mapping[Name, ast.expr]) -> None:
        self.trees = trees

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Return the tree for a name, if there is one."""
        return self.trees.get(node.id, node)


def derivative(tree: ast.expr, by: Name, value: ast.expr | None = None) -> ast.expr:
    """Return the derivative of a tree by a name; ``value`` replaces the tree's value where a rule contains it."""
    plus, minus, times, over, power = ast.Add(), ast.Sub(), ast.Mult(), ast.Div(), ast.Pow()
    result: ast.expr = ast.Constant(0)
    match tree:
        case ast.Name(id=name):
            result = ast.Constant(int(name == by))
        case ast.UnaryOp(op=sign, operand=u):
            slope = derivative(u, by)
            result = negated(slope) if isinstance(sign, ast.USub) else slope
        case ast.Call(func=ast.Name(id=name), args=[u]):
            rule = Substitution({"u": u, "value": value or tree}).visit(parse(DERIVATIVES[name]))
            result = simplified(rule, times, derivative(u, by))
        case ast.BinOp(left=u, op=kind, right=v):
            du, dv = derivative(u, by), derivative(v, by)
            match kind:
                case ast.Add() | ast.Sub():
                    result = simplified(du, kind, dv)
                case ast.Mult():
                    result = simplified(simplified(du, times, v), plus, simplified(u, times, dv))
                case ast.Div():
                    square = simplified(v, power, ast.Constant(2))
                    result = simplified(
                        simplified(du, over, v), minus, simplified(simplified(u, times, dv), over, square)
                    )
                case ast.Pow():
                    number = number_of(v)
                    less = simplified(v, minus, ast.Constant(1)) if number is None else ast.Constant(number - 1)
                    outer = simplified(v, times, simplified(u, power, less)) if number != 0 else ast.Constant(0)
                    growth = simplified(tree, times, ast.Call(ast.Name("log"), [u], []))
                    result = simplified(simplified(outer, times, du), plus, simplified(growth, times, dv))
    return result
