"""The calculator: numbers worked by hand, Python's own arithmetic, sympy, and input that would hang others."""

from __future__ import annotations

import ast
import contextlib
import math
import random
import sys
import time
from decimal import Decimal
from fractions import Fraction

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_distill_runtime import InputError
from edge_distill_runtime.reasoning.calculator import calculate


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("1 + 2 * 3", "7"),
        ("(132 - 4 * 28) / 4", "5"),
        ("2 ** 3 ** 2", "512"),
        ("2^10", "1024"),
        ("-2 ** 2", "-4"),
        ("(-2) ** -3", "-0.125"),
        ("- - + -3", "-3"),
        ("0.1 + 0.2", "0.3"),
        ("1.50 * 2", "3"),
        ("1.", "1"),
        (".5 + 1e3", "1000.5"),
        ("5 × 3 ÷ 2 − 1", "6.5"),
        ("5 · 3", "15"),
        ("1,234,567 + 1", "1234568"),
        ("1,234.5 * 2", "2469"),
        ("15% of 80", "12"),
        ("80 * 15%", "12"),
        ("50% - 3", "-2.5"),
        ("100%%", "0.01"),
        ("10 % 4", "2"),
        ("10 % (4)", "2"),
        ("-7 // 2", "-4"),
        ("-7 % 3", "2"),
        ("7.5 // -2", "-4"),
        ("1 / 8", "0.125"),
        ("1 / 3", "0.333333333333"),
        ("-2 / 3", "-0.666666666667"),
        ("100 / 7", "14.2857142857"),
        ("10 ** 20 / 3", "33333333333333333333"),
        ("1 - 10 ** -40", "0.9999999999999999999999999999999999999999"),
        ("1 / 10 ** 5", "0.00001"),
        ("1 / 10 ** 8", "1e-8"),
        ("1 / 3 / 10 ** 10", "3.33333333333e-11"),
        ("sqrt(144)", "12"),
        ("sqrt(1 / 4)", "0.5"),
        ("sqrt(2)", "1.41421356237"),
        ("sqrt(2) ** 2", "2"),
        ("floor(sqrt(3) ** 2)", "3"),
        ("sqrt(10 ** 400 + 1)", "1e200"),
        ("4 ** 0.5", "2"),
        ("27 ** (1 / 3)", "3"),
        ("0 ** 0.5", "0"),
        ("0 ** 0", "1"),
        ("sqrt(2) // 1", "1"),
        ("-sqrt(2) % 1", "0.585786437627"),
        ("sqrt(2) - sqrt(2)", "0"),
        ("abs(-3.5)", "3.5"),
        ("abs(-sqrt(2))", "1.41421356237"),
        ("max(1, 2.5, sqrt(7))", "2.64575131106"),
        ("min(3, 1, 2)", "1"),
        ("max(1,234)", "234"),  # in a call a comma separates
        ("max(1, 2) + 1,000", "1002"),
        ("round(2.5)", "2"),
        ("round(3.14159, 2)", "3.14"),
        ("round(1234, -2)", "1200"),
        ("floor(-1.5)", "-2"),
        ("ceil(-1.5)", "-1"),
        ("gcd(12, 18)", "6"),
        ("lcm(4, 6, 10)", "60"),
        ("factorial(20)", "2432902008176640000"),
        ("(-1) ** (10 ** 1000)", "1"),
        ("(-1) ** (10 ** 900 + 1)", "-1"),
        ("0 * -1", "0"),
    ],
)
def test_worked_by_hand(expression: str, result: str) -> None:
    assert calculate(expression) == result


@pytest.mark.parametrize(
    ("expression", "code", "message"),
    [
        ("1 / 0", "division-by-zero", "division by zero"),
        ("1 // (2 - 2)", "division-by-zero", "division by zero"),
        ("1 % 0", "division-by-zero", "division by zero"),
        ("0 ** -1", "division-by-zero", "division by zero"),
        ("0 ** -0.5", "division-by-zero", "division by zero"),
        ("sqrt(2) / 0", "division-by-zero", "division by zero"),
        ("(sqrt(2) - sqrt(2)) / (sqrt(2) - sqrt(2))", "division-by-zero", "division by zero"),
        ("x + 1", "unknown-name", "unknown name 'x'"),
        ("__import__('os')", "unknown-name", "unknown name '__import__'"),
        ("().__class__", "bad-expression", r"a number was expected, found '\)'"),
        ("", "bad-expression", "ends where a number was expected"),
        ("1 +", "bad-expression", "ends where a number was expected"),
        ("(1", "bad-expression", r"'\)' was expected, found the end"),
        ("1)", "bad-expression", r"'\)' was not expected"),
        ("2 (3)", "bad-expression", r"'\(' was not expected"),
        ("3 x 4", "bad-expression", "'x' was not expected"),
        ("1.2.3", "bad-expression", "'1.2.' is no number"),
        ("12,34", "bad-expression", "',' was not expected"),
        ("1,2345", "bad-expression", "',' was not expected"),
        ("1 = 1", "bad-expression", "'=' was not expected"),
        ("²", "bad-expression", "'²' is no number"),
        ("\x00", "bad-expression", "a number was expected"),
        ("sqrt 2", "bad-expression", r"'\(' was expected, found '2'"),
        ("sqrt(1, 2)", "bad-expression", "sqrt was given 2 numbers, it takes 1"),
        ("max()", "bad-expression", "max was given 0 numbers, it takes 1 or more"),
        ("round(1, 2, 3)", "bad-expression", "round was given 3 numbers, it takes 1 or 2"),
        ("gcd(1.5, 2)", "bad-expression", "an integer is needed"),
        ("factorial(-1)", "bad-expression", "0 or more"),
        ("sqrt(-1)", "not-real", "square root"),
        ("(-8) ** (1 / 3)", "not-real", "no real power"),
    ],
)
def test_errors_are_typed(expression: str, code: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        calculate(expression)
    assert caught.value.code == code


def result_or_code(expression: str) -> str:
    try:
        return calculate(expression)
    except InputError as exc:
        return exc.code


HOSTILE = [
    "9**9**9**9",
    "10**10000000",
    "10**-10000000",
    "factorial(10**9)",
    "factorial(factorial(100))",
    "(" * 10000,
    "(" * 499,
    "(" * 200 + "1" + ")" * 200,
    "abs(" * 100 + "1" + ")" * 100,
    "2**" * 160 + "2",
    "1e9999",
    "1e" + "9" * 400,
    "2**4096",
    "sqrt(2)**(10**9)",
    "sqrt(2)**(10**1000)",
    "0.5**(10**9 + 0.5)",
    "lcm(" + ",".join(map(str, range(10**30, 10**30 + 15))) + ")*" + "9**999",
    "(1/3+" * 30 + "1" + ")**3" * 30,
    "round(1, -10**9)",
    "round(1, 10**9)",
]


@pytest.mark.parametrize("expression", HOSTILE)
def test_what_is_too_large_is_refused_at_once(expression: str) -> None:
    before = time.thread_time()  # of this thread: the machine may be busy
    with pytest.raises(InputError) as caught:
        calculate(expression)
    assert time.thread_time() - before < 0.05
    assert caught.value.code == "too-large"


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("-" * 499 + "1", "-1"),
        ("9" * 500, "9" * 500),
        ("1e-5" + "0" * 490, "too-large"),
        ("/".join("7" * 250), "2.60427040998e-210"),  # 7 ** -248
        ("1/" * 249 + "4", "0.25"),
        ("10**-1200/7**3", "2.91545189504e-1203"),
    ],
)
def test_what_is_long_is_answered_at_once(expression: str, result: str) -> None:
    before = time.thread_time()
    assert result_or_code(expression) == result
    assert time.thread_time() - before < 0.05


def test_limit_on_digits_of_the_interpreter() -> None:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        with pytest.raises(InputError, match="digits"):
            calculate("10**1000")
    finally:
        sys.set_int_max_str_digits(before)


# Python reads these as the calculator does, when every number is a Fraction.
_numbers = st.one_of(
    st.integers(0, 10**6).map(str), st.decimals(0, 1000, places=3).map(lambda number: f"{number:f}")
)


def _combined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    # "% -3" is a percentage and a difference: what stands behind an operator is in parentheses
    return st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner).map(
            lambda parts: f"({parts[0]}) {parts[1]} ({parts[2]})"
        ),
        st.tuples(inner, st.integers(-4, 4)).map(lambda parts: f"({parts[0]}) ** {parts[1]}"),
        inner.map(lambda text: f"-({text})"),
        st.tuples(st.sampled_from(["abs", "floor", "ceil", "round"]), inner).map(
            lambda parts: f"{parts[0]}({parts[1]})"
        ),
        st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(
            lambda parts: f"{parts[0]}({parts[1]}, {parts[2]})"
        ),
    )


def _by_python(expression: str) -> Fraction:
    class Exact(ast.NodeTransformer):
        def visit_Constant(self, node: ast.Constant) -> ast.AST:
            text = ast.get_source_segment(expression, node)
            return ast.Call(ast.Name("Fraction", ast.Load()), [ast.Constant(text)], [])

    tree = ast.fix_missing_locations(Exact().visit(ast.parse(expression, mode="eval")))
    names = {"Fraction": Fraction, "floor": math.floor, "ceil": math.ceil}
    return Fraction(eval(compile(tree, "expression", "eval"), names))


@settings(max_examples=200, deadline=None)
@given(st.recursive(_numbers, _combined, max_leaves=8))
def test_equals_python_with_fractions(expression: str) -> None:
    result = result_or_code(expression)
    if result == "too-large":
        return
    if result == "division-by-zero":
        with pytest.raises(ZeroDivisionError):
            _by_python(expression)
        return
    expected, found = _by_python(expression), Fraction(result)
    if expected.denominator == 1:
        assert result == str(expected.numerator)
    elif _is_finite(expected) and len(str(expected.numerator)) < 20:
        assert found == expected
    else:  # 12 digits, or all digits before the point
        assert abs(found - expected) <= max(abs(expected) * Fraction(1, 2 * 10**11), Fraction(0))


def _is_finite(value: Fraction) -> bool:
    """Whether the decimal ends, in at most 20 places."""
    return 10**20 % value.denominator == 0


def test_equals_sympy_on_roots() -> None:
    generator = random.Random(4)
    for _ in range(60):
        a, b, c = (generator.randint(1, 999) for _ in range(3))
        expression = generator.choice(
            [
                f"sqrt({a}) + {b} / {c}",
                f"sqrt({a}/{b}) * sqrt({c})",
                f"{a} ** ({b} / {c * 100})",
                f"sqrt(sqrt({a}))",
            ]
        )
        exact = sympy.sympify(expression.replace("**", "^"), rational=True, convert_xor=True)
        expected = Decimal(str(sympy.N(exact, 12)))
        found = Decimal(calculate(expression))
        # sympy rounds to 12 digits as well: one unit apart at most
        assert abs(found - expected) <= abs(expected) * Decimal("1e-11"), expression


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=60), st.text("0123456789.,+-*/%^()e sqrtmaxfloorgcdlcm", max_size=120)))
def test_any_text_gives_a_number_or_a_typed_error(text: str) -> None:
    with contextlib.suppress(InputError):
        Decimal(calculate(text))
