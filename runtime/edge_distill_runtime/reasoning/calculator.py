"""A calculator that is safe to hand to a model: exact, bounded, and without `eval`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from decimal import (
    Context,
    Decimal,
    DecimalException,
    DivisionByZero,
    InvalidOperation,
    Overflow,
    Underflow,
    localcontext,
)
from fractions import Fraction

from edge_distill_runtime.errors import InputError

__all__ = ["calculate"]

# Fractions are exact; a Decimal is a root or a power that is not rational, with 50 digits.
Number = Fraction | Decimal

_MAX_LENGTH = 500
_MAX_DEPTH = 32  # of parentheses, calls and powers; six stack frames each
_MAX_BITS = 4096  # of a numerator or denominator: 1,233 digits
_MAX_FACTORIAL = 500
_MOST_DIGITS = 50  # of an exact decimal
_DIGITS = 12  # of any other
_SETTLED = Decimal("1e-30")  # inexact numbers are rounded to this before a floor: sqrt(2) ** 2 is 2

_SIGNS = str.maketrans("×·⋅∙÷∕−–—\u00a0\u2009\u202f", "****//---   ")
_TOKEN = re.compile(r"\s*([0-9]*\.?[0-9]+\.?(?:[eE][+-]?[0-9]+)?|[A-Za-z_]\w*|\*\*|//|[-+*/%^(),]|\S)")
_GROUPED = re.compile(r"\s*[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?")
_HINT = "use numbers, + - * / // % **, parentheses and the functions " + (
    "sqrt, abs, min, max, round, floor, ceil, gcd, lcm, factorial"
)


def calculate(expression: str) -> str:
    """Work out an arithmetic expression, for example (132 - 4) / 4 or sqrt(2) * 15%.

    Arithmetic is rational, so 0.1 + 0.2 is 0.3. A result is an integer, a decimal when that is exact, or else a
    decimal of 12 digits. `×`, `÷`, `−` and `^` (power) are read too, and thousands separators outside of calls;
    `round`, `//` and `%` follow Python. A `%` with no number behind it is a percentage. Every input is answered
    within milliseconds: `InputError` says what is wrong or too large.
    """
    if len(expression) > _MAX_LENGTH:
        raise InputError(
            "too-large",
            f"the expression has {len(expression)} characters, at most {_MAX_LENGTH} are allowed",
            "calculate it in parts",
        )
    traps = [DivisionByZero, InvalidOperation, Overflow, Underflow]
    try:
        with localcontext(Context(prec=50, Emin=-9999, Emax=9999, traps=traps)):
            return _format(_Parser(expression.translate(_SIGNS)).parse())
    except ZeroDivisionError as exc:  # also decimal.DivisionByZero
        raise InputError("division-by-zero", "division by zero") from exc
    except (DecimalException, OverflowError) as exc:
        raise _too_large() from exc


class _Parser:
    """Recursive descent, evaluated on the way."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._calls = 0
        self._token = ""
        self._advance()

    def parse(self) -> Number:
        value = self._sum()
        if self._token:
            raise _bad(f"{self._token!r} was not expected")
        return value

    def _advance(self) -> None:
        # in a call a comma separates arguments: max(1,234) has two
        match = None if self._calls else _GROUPED.match(self._text, self._at)
        if match:
            self._token = match[0].strip().replace(",", "")
        elif match := _TOKEN.match(self._text, self._at):
            self._token = match[1]
        else:
            self._token, self._at = "", len(self._text)
            return
        self._at = match.end()

    def _take(self, *tokens: str) -> str:
        """The current token if it is one of `tokens`, consumed; otherwise nothing."""
        token = self._token
        if token not in tokens:
            return ""
        self._advance()
        return token

    def _expect(self, token: str) -> None:
        if not self._take(token):
            found = repr(self._token) if self._token else "the end"
            raise _bad(f"{token!r} was expected, found {found}")

    def _sum(self) -> Number:
        value = self._product()
        while operator := self._take("+", "-"):
            value = _apply(operator, value, self._product())
        return value

    def _product(self) -> Number:
        value = self._signed()
        while operator := self._take("*", "/", "//", "%", "of"):
            value = _apply("*" if operator == "of" else operator, value, self._signed())
        return value

    def _signed(self) -> Number:
        negative = False
        while sign := self._take("+", "-"):
            negative ^= sign == "-"
        value = self._power()
        return -value if negative else value

    def _power(self) -> Number:
        value = self._percent()
        if self._take("**", "^"):
            self._enter()
            value = _power(value, self._signed())  # from the right: 2 ** 3 ** 2 is 512
            self._depth -= 1
        return value

    def _percent(self) -> Number:
        value = self._atom()
        while self._token == "%" and not self._operand_follows():
            self._advance()
            value = _apply("/", value, Fraction(100))
        return value

    def _operand_follows(self) -> bool:
        following = _TOKEN.match(self._text, self._at)
        if following is None or following[1] == "of":
            return False
        return following[1][0] in "(." or following[1][0].isalnum()

    def _atom(self) -> Number:
        token = self._token
        if self._take("("):
            self._enter()
            value = self._sum()
            self._depth -= 1
            self._expect(")")
            return value
        if not token:
            raise _bad("the expression ends where a number was expected")
        if token[0].isalpha() or token[0] == "_":
            return self._call(token)
        if not (token[0].isdigit() or token[0] == "."):
            raise _bad(f"a number was expected, found {token!r}")
        self._advance()
        return _number(token)

    def _call(self, name: str) -> Number:
        if name not in _FUNCTIONS:
            raise InputError("unknown-name", f"unknown name {name[:40]!r}", _HINT)
        fewest, most, function = _FUNCTIONS[name]
        self._enter()
        self._calls += 1
        self._advance()
        self._expect("(")
        values = [] if self._token == ")" else [self._sum()]
        while self._take(","):
            values.append(self._sum())
        self._calls -= 1
        self._depth -= 1
        self._expect(")")
        if not fewest <= len(values) <= most:
            takes = fewest if fewest == most else f"{fewest} or more" if most > 2 else f"{fewest} or {most}"
            raise _bad(f"{name} was given {len(values)} numbers, it takes {takes}")
        return function(values)

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise InputError("too-large", f"the expression is nested deeper than {_MAX_DEPTH}", "simplify it")


def _number(token: str) -> Fraction:
    mantissa, _, exponent = token.lower().partition("e")
    if len(exponent.lstrip("+-0")) > 4:
        raise _too_large()
    try:
        return _exact(Fraction(mantissa) * Fraction(10) ** int(exponent or "0"))
    except ValueError as exc:  # 1.2.
        raise _bad(f"{token[:40]!r} is no number") from exc


def _apply(operator: str, left: Number, right: Number) -> Number:
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        if operator == "+":
            return _exact(left + right)
        if operator == "-":
            return _exact(left - right)
        if operator == "*":
            return _exact(left * right)
        if operator == "/":
            return _exact(left / right)
        return _exact(Fraction(left // right) if operator == "//" else left % right)
    if operator in ("//", "%"):  # Decimal rounds these toward zero, Python downwards
        return _inexact(_apply(operator, _settled(left), _settled(right)))
    first, second = _inexact(left), _inexact(right)
    if operator == "+":
        return first + second
    if operator == "-":
        return first - second
    if operator == "*":
        return first * second
    if second == 0:
        raise ZeroDivisionError
    return first / second


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        return _integer_power(base, int(exponent))
    if base == 0:
        if exponent < 0:
            raise ZeroDivisionError
        return Fraction(exponent == 0)
    if exponent == Fraction(1, 2):
        return _sqrt([base])
    if base < 0 and exponent != int(exponent):
        raise InputError("not-real", "a negative number has no real power with a fraction as exponent")
    return _inexact(base) ** _inexact(exponent)


def _integer_power(base: Fraction, exponent: int) -> Fraction:
    if base == 0 and exponent < 0:
        raise ZeroDivisionError
    if abs(base) == 1 or base == 0:  # stays small, whatever the exponent
        return Fraction(exponent == 0) if base == 0 else Fraction(base ** (exponent % 2))
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if (bits - 1) * abs(exponent) > _MAX_BITS:
        raise _too_large()
    return _exact(Fraction(base**exponent))


def _sqrt(values: Sequence[Number]) -> Number:
    value = values[0]
    if value < 0:
        raise InputError("not-real", "a negative number has no real square root")
    if isinstance(value, Fraction):
        top, bottom = math.isqrt(value.numerator), math.isqrt(value.denominator)
        if top * top == value.numerator and bottom * bottom == value.denominator:
            return Fraction(top, bottom)
    return _inexact(value).sqrt()


def _round(values: Sequence[Number]) -> Number:
    digits = _integers(values[1:])
    if digits and abs(digits[0]) > 100:
        raise _too_large()
    return Fraction(round(_settled(values[0]), digits[0] if digits else 0))


def _factorial(values: Sequence[Number]) -> Number:
    value = _integers(values)[0]
    if value < 0:
        raise _bad("factorial needs an integer of 0 or more")
    if value > _MAX_FACTORIAL:
        raise InputError("too-large", f"factorial goes up to {_MAX_FACTORIAL}", "use a smaller number")
    return Fraction(math.factorial(value))


def _lcm(values: Sequence[Number]) -> Number:
    result = 1
    for value in _integers(values):
        result = int(_exact(Fraction(math.lcm(result, value))))
    return Fraction(result)


def _integers(values: Sequence[Number]) -> list[int]:
    settled = [_settled(value) for value in values]
    if any(value.denominator != 1 for value in settled):
        raise _bad("an integer is needed here")
    return [int(value) for value in settled]


_Function = Callable[[Sequence[Number]], Number]
_MANY = _MAX_LENGTH
_FUNCTIONS: dict[str, tuple[int, int, _Function]] = {
    # name: fewest and most arguments, function
    "sqrt": (1, 1, _sqrt),
    "abs": (1, 1, lambda values: _absolute(values[0])),
    "min": (1, _MANY, min),
    "max": (1, _MANY, max),
    "round": (1, 2, _round),
    "floor": (1, 1, lambda values: Fraction(math.floor(_settled(values[0])))),
    "ceil": (1, 1, lambda values: Fraction(math.ceil(_settled(values[0])))),
    "gcd": (1, _MANY, lambda values: Fraction(math.gcd(*_integers(values)))),
    "lcm": (1, _MANY, _lcm),
    "factorial": (1, 1, _factorial),
}


def _settled(value: Number) -> Fraction:
    """As a fraction; an inexact number without the error in its last digits."""
    if isinstance(value, Fraction):
        return value
    return _exact(Fraction(value.quantize(_SETTLED) if abs(value) < 10**19 else value))


def _absolute(value: Number) -> Number:
    return -value if value < 0 else value


def _inexact(value: Number) -> Decimal:
    return value if isinstance(value, Decimal) else Decimal(value.numerator) / Decimal(value.denominator)


def _exact(value: Fraction) -> Fraction:
    """`value`, unless it has grown too large."""
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
        raise _too_large()
    return value


def _format(value: Number) -> str:
    try:
        if isinstance(value, Decimal):
            return _plain(_rounded(value))
        if value.denominator == 1:
            return str(value.numerator)
    except ValueError as exc:  # sys.set_int_max_str_digits may be set lower
        raise _too_large() from exc
    scale = max(_multiplicity(value.denominator, 2), _multiplicity(value.denominator, 5))
    shifted = value * 10**scale
    if shifted.denominator == 1 and abs(shifted) < 10**_MOST_DIGITS:
        return _plain(Decimal(shifted.numerator).scaleb(-scale))
    return _plain(_rounded(value))


def _rounded(value: Number) -> Decimal:
    """To 12 digits, or to an integer when it has more digits before the point."""
    size = _absolute(value)
    before = len(str(int(size))) if size < 10**50 else 50
    with localcontext(prec=max(_DIGITS, before)):
        return +value if isinstance(value, Decimal) else _inexact(value)


def _plain(value: Decimal) -> str:
    """Without an exponent from a millionth up to 50 digits, and without zeros at the end."""
    if value == 0:
        return "0"
    if not -7 < value.adjusted() < _MOST_DIGITS:
        mantissa, _, exponent = f"{value:e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}"
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _multiplicity(number: int, prime: int) -> int:
    """How often `prime` divides `number`."""
    count = 0
    while number % prime == 0:
        number //= prime
        count += 1
    return count


def _bad(what: str) -> InputError:
    return InputError("bad-expression", what, _HINT)


def _too_large() -> InputError:
    return InputError(
        "too-large", f"a number passes {_MAX_BITS * 3010 // 10_000:,} digits", "calculate it in parts"
    )
