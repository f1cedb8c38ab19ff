"""Expressions evaluated exactly, as numbers or as linear ones in one letter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from edge_distill.traces.expressions import Item, Unreadable, is_product

__all__ = ["Linear", "linear_value"]

_MAX_BITS = 2048  # of a numerator or denominator
_MAX_EXPONENT = 64
_MAX_DEPTH = 30


@dataclass(frozen=True)
class Linear:
    """factor * name + constant; a number when the factor is 0."""

    constant: Fraction
    factor: Fraction = Fraction(0)
    name: str = ""


def linear_value(items: Sequence[Item], *, tight_fractions: bool = False) -> Linear:
    """The exact value; `tight_fractions` reads `13 ÷ 2/3` as `13 ÷ (2/3)`. Raises `Unreadable`."""
    parser = _Parser(_grouped(items) if tight_fractions else items)
    try:
        value = parser.sum()
    except (ZeroDivisionError, OverflowError, ValueError) as exc:
        raise Unreadable from exc
    if parser.at != len(items) and not tight_fractions:
        raise Unreadable
    return value


def _grouped(items: Sequence[Item]) -> list[Item]:
    result: list[Item] = []
    at = 0
    while at < len(items):
        part = items[at : at + 3]
        is_fraction = len(part) == 3 and part[1].text == "/" and not part[1].spaced and not part[2].spaced
        if is_fraction and part[0].kind == part[2].kind == "number" and part[2].value and not part[0].words:
            result.append(Item("number", "", part[0].spaced, part[0].value / part[2].value))
            at += 3
        else:
            result.append(items[at])
            at += 1
    return result


class _Parser:
    def __init__(self, items: Sequence[Item]) -> None:
        self._items = items
        self.at = 0
        self._depth = 0

    def _text(self) -> str:
        if self.at < len(self._items) and self._items[self.at].kind in ("operator", "comma"):
            return self._items[self.at].text
        return ""

    def sum(self) -> Linear:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise Unreadable
        value = self._product()
        while (operator := self._text()) in ("+", "-"):
            self.at += 1
            value = _add(value, self._product(), -1 if operator == "-" else 1)
        self._depth -= 1
        return value

    def _product(self) -> Linear:
        value = self._signed()
        while True:
            operator = self._text()
            if operator in ("*", "/", "÷", "//", "mod", "%", "of"):
                self.at += 1
                value = _multiply(operator, value, self._signed())
            elif 0 < self.at < len(self._items) and is_product(
                self._items[self.at - 1], self._items[self.at]
            ):
                value = _multiply("*", value, self._power())
            else:
                return value

    def _signed(self) -> Linear:
        sign = 1
        while (operator := self._text()) in ("+", "-"):
            sign = -sign if operator == "-" else sign
            self.at += 1
        value = self._power()
        return Linear(sign * value.constant, sign * value.factor, value.name)

    def _power(self) -> Linear:
        bases = [self._atom()]
        signs = [1]
        while self._text() == "^":
            self.at += 1
            signs.append(1)
            while self._text() == "-":
                signs[-1] = -signs[-1]
                self.at += 1
            bases.append(self._atom())
        value = bases.pop()
        while bases:
            value = _raise(bases.pop(), _number_in(value) * signs.pop())
        return value

    def _atom(self) -> Linear:
        if self.at >= len(self._items):
            raise Unreadable
        item = self._items[self.at]
        self.at += 1
        if item.kind == "number":
            return Linear(item.value / 100 if item.percent else item.value)
        if item.kind == "variable":
            return Linear(Fraction(0), Fraction(1), item.text)
        if item.kind == "function":
            self.at += 1
            return Linear(_call(item.text, self._arguments()))
        if item.kind == "open":
            value = self.sum()
            self._close()
            return value
        raise Unreadable

    def _arguments(self) -> list[Fraction]:
        values = [_number_in(self.sum())]
        while self._text() == ",":
            self.at += 1
            values.append(_number_in(self.sum()))
        self._close()
        return values

    def _close(self) -> None:
        if self.at >= len(self._items) or self._items[self.at].kind != "close":
            raise Unreadable
        self.at += 1


def _number_in(value: Linear) -> Fraction:
    if value.factor:
        raise Unreadable
    return value.constant


def _add(left: Linear, right: Linear, sign: int) -> Linear:
    name = left.name or right.name
    if left.name and right.name and left.name != right.name:
        raise Unreadable
    factor = _small(left.factor + sign * right.factor)
    return Linear(_small(left.constant + sign * right.constant), factor, name)


def _multiply(operator: str, left: Linear, right: Linear) -> Linear:
    if operator in ("*", "of"):
        if right.factor:
            left, right = right, left
        by = _number_in(right)
    elif operator in ("/", "÷"):
        by = 1 / _number_in(right)
    else:
        first, second = _number_in(left), _number_in(right)
        return Linear(Fraction(first // second) if operator == "//" else first % second)
    return Linear(_small(left.constant * by), _small(left.factor * by), left.name)


def _raise(base: Linear, exponent: Fraction) -> Linear:
    number = _number_in(base)
    if exponent.denominator != 1 or abs(exponent) > _MAX_EXPONENT:
        raise Unreadable
    bits = max(number.numerator.bit_length(), number.denominator.bit_length())
    if bits * abs(exponent) > _MAX_BITS:
        raise Unreadable
    return Linear(number ** int(exponent))


def _call(name: str, values: list[Fraction]) -> Fraction:
    if name == "sqrt":
        (value,) = values
        root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
        if root * root != value:
            raise Unreadable
        return root
    if any(value.denominator != 1 for value in values):
        raise Unreadable
    numbers = [int(value) for value in values]
    return _small(Fraction(math.gcd(*numbers) if name == "gcd" else math.lcm(*numbers)))


def _small(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
        raise Unreadable
    return value
