"""Arithmetic worked out one operation a line, and linear equations solved the way one does by hand."""

from __future__ import annotations

import ast
from fractions import Fraction

from edge_distill_runtime.errors import InputError

__all__ = ["evaluate", "solve_equation"]

_MAX_LENGTH = 2000
_MAX_DEPTH = 40
_MAX_BITS = 4096

_SYMBOLS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def evaluate(expression: str) -> tuple[list[str], int]:
    """The steps `a op b = c` of an expression over integers, and its value; `/` rounds down, which `//` then shows."""
    steps: list[str] = []
    value = _value(_parse(expression), steps, 0)
    return steps or [f"{expression} = {value}"], value


def solve_equation(equation: str) -> tuple[list[str], str]:
    """The steps that solve a linear equation in one letter, and the solution: `56 - 98*e = -1218` gives e.

        -98*e = -1218 - 56 = -1274
        e = -1274 / -98 = 13

    Only the left side may hold the letter; raises `InputError` otherwise, and when there is not one solution.
    """
    left, _, right = equation.partition("=")
    tree = _parse(left)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    if len(names) != 1:
        raise _bad(equation)
    (name,) = names
    factor, constant = _linear(tree, 0)
    no_factor, target = _linear(_parse(right), 0)
    if not factor or no_factor:
        raise _bad(equation)
    steps = []
    variable = {1: name, -1: f"-{name}"}.get(factor, f"{factor}*{name}")
    if constant:
        operation = f"{target} {'-' if constant > 0 else '+'} {abs(constant)}"
        steps.append(f"{variable} = {operation} = {target - constant}")
        target -= constant
    solution = Fraction(target, factor)
    if factor != 1:
        steps.append(f"{name} = {target} / {factor} = {solution}")
    return steps or [f"{name} = {solution}"], str(solution)


def _parse(expression: str) -> ast.expr:
    if len(expression) > _MAX_LENGTH:
        raise InputError(
            "too-large", f"an expression has {len(expression)} characters", f"at most {_MAX_LENGTH}"
        )
    try:
        return ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as exc:
        raise _bad(expression) from exc


def _value(node: ast.expr, steps: list[str], depth: int) -> int:
    """The value of a node; its operations are added to `steps`, the inner ones first."""
    if depth > _MAX_DEPTH:
        raise InputError("too-large", f"an expression is nested more than {_MAX_DEPTH} deep", "split it")
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _value(node.operand, steps, depth + 1)
        if not isinstance(node.operand, ast.Constant):
            steps.append(f"-({value}) = {-value}")
        return -value
    if isinstance(node, ast.BinOp) and type(node.op) in _SYMBOLS:
        left = _value(node.left, steps, depth + 1)
        right = _value(node.right, steps, depth + 1)
        symbol = _SYMBOLS[type(node.op)]
        if symbol == "/":
            if right == 0:
                raise InputError("division-by-zero", f"{left} is divided by zero", "leave the problem out")
            symbol = "//" if left % right else "/"
        value = {"+": left + right, "-": left - right, "*": left * right}.get(symbol, left // (right or 1))
        if value.bit_length() > _MAX_BITS:
            raise InputError("too-large", "a number passes 1,233 digits", "use smaller numbers")
        steps.append(f"{left} {symbol} {right} = {value}" + " (rounded down)" * (symbol == "//"))
        return value
    raise _bad(ast.unparse(node))


def _linear(node: ast.expr, depth: int) -> tuple[int, int]:
    """Factor of the letter, and constant."""
    if depth > _MAX_DEPTH:
        raise InputError("too-large", f"an equation is nested more than {_MAX_DEPTH} deep", "split it")
    if isinstance(node, ast.Name):
        return 1, 0
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return 0, node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        factor, constant = _linear(node.operand, depth + 1)
        return -factor, -constant
    if isinstance(node, ast.BinOp):
        (a, b), (c, d) = _linear(node.left, depth + 1), _linear(node.right, depth + 1)
        if isinstance(node.op, ast.Add):
            return a + c, b + d
        if isinstance(node.op, ast.Sub):
            return a - c, b - d
        if isinstance(node.op, ast.Mult) and not (a and c):
            return a * d + b * c, b * d
    raise _bad(ast.unparse(node))


def _bad(expression: str) -> InputError:
    return InputError("not-understood", f"{expression[:80]!r} cannot be worked out", "check the question")
