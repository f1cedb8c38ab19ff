"""Expressions on either side of an equals sign, found among the words around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from edge_distill.traces.statement_tokens import Token
from edge_distill.traces.units import Unit, unit_of

__all__ = ["Item", "Unreadable", "is_product", "items_of", "leading", "trailing", "variables_in"]

_UNIT_WORDS = 4  # behind a number: "14 balls of red wool"

_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_UNIT_LETTERS = frozenset("mgshlLVWNJCFACk")
_NO_VARIABLES = frozenset("aAI")
_FUNCTIONS = frozenset({"gcd", "lcm", "sqrt"})


class Unreadable(Exception):
    """An expression is not fully arithmetic, or too large; its statement stays unknown."""


@dataclass(frozen=True)
class Item:
    """A number with its unit, or an operator, bracket, letter, function or foreign word."""

    kind: Literal["number", "operator", "open", "close", "variable", "function", "comma", "foreign"]
    text: str
    spaced: bool = False
    value: Fraction = Fraction(0)
    decimals: int = 0
    percent: bool = False
    words: tuple[str, ...] = ()  # behind the number

    @property
    def unit(self) -> Unit | None:
        """The unit, when it is known and not one of a rate."""
        return (
            unit_of(self.words[0])
            if self.words and "/" not in self.words and "per" not in self.words
            else None
        )


def variables_in(clauses: Sequence[Sequence[Token]]) -> frozenset[str]:
    """Single letters that stand beside a relation or an operator and not behind a number."""
    found = set()
    for clause in clauses:
        for i, token in enumerate(clause):
            before = clause[i - 1].kind if i else ""
            after = clause[i + 1].kind if i + 1 < len(clause) else ""
            beside = {"relation", "operator"} & {before, after}
            if token.kind == "word" and len(token.text) == 1 and beside and before not in ("number", "close"):
                found.add(token.text)
    return frozenset(found - _NO_VARIABLES)


def items_of(tokens: Sequence[Token], variables: frozenset[str]) -> list[Item]:
    """Numbers with the words behind them as one item each, and so on."""
    items: list[Item] = []
    at = 0
    while at < len(tokens):
        token = tokens[at]
        following = tokens[at + 1] if at + 1 < len(tokens) else None
        if token.kind == "money" and following and following.kind == "number":
            item, at = _number(tokens, at + 1, variables, token.text)
            items.append(item)
            continue
        if token.kind == "number":
            item, at = _number(tokens, at, variables)
            items.append(item)
            continue
        at += 1
        if token.kind in ("operator", "open"):
            items.append(Item(token.kind, token.text, token.spaced))
        elif token.kind == "close":
            items.append(Item("close", token.text, token.spaced))
            _, at = _words(tokens, at, variables)
        elif (
            token.kind == "word" and token.text.lower() in _FUNCTIONS and following and following.text == "("
        ):
            items.append(Item("function", token.text.lower(), token.spaced))
        elif token.kind == "word" and _is_variable(tokens, at - 1, variables):
            items.append(Item("variable", token.text, token.spaced))
        else:
            items.append(Item("comma" if token.text == "," else "foreign", token.text, token.spaced))
    return items


def _is_variable(tokens: Sequence[Token], at: int, variables: frozenset[str]) -> bool:
    text = tokens[at].text
    if len(text) != 1 or not text.isascii() or text in _NO_VARIABLES:
        return False
    if at and tokens[at - 1].kind == "number":
        return text in variables or text not in _UNIT_LETTERS
    return text in variables


def _number(tokens: Sequence[Token], at: int, variables: frozenset[str], money: str = "") -> tuple[Item, int]:
    token = tokens[at]
    at += 1
    percent = False
    if at < len(tokens) and tokens[at].text == "%":
        after = tokens[at + 1].kind if at + 1 < len(tokens) else ""
        if after != "number":  # else it is a modulo
            percent, at = True, at + 1
    words, at = _words(tokens, at, variables)
    value = token.value
    if words and words[0].lower() in _SCALES:
        value *= _SCALES[words[0].lower()]
    if words and words[0].lower() in ("percent", "per") and words[:2] != ("per", "x"):
        percent = percent or words[0].lower() == "percent" or words[1:2] == ("cent",)
    words = (money, *words) if money else words
    return Item("number", token.text, token.spaced, value, token.decimals, percent, words), at


def _words(tokens: Sequence[Token], at: int, variables: frozenset[str]) -> tuple[tuple[str, ...], int]:
    """The unit behind a number: up to four words, `orders/day` among them."""
    words: list[str] = []
    while at < len(tokens) and len(words) < 2 * _UNIT_WORDS:
        token = tokens[at]
        if token.text == "/" and at + 1 < len(tokens) and tokens[at + 1].kind == "word":
            if len(tokens[at + 1].text) == 1 and tokens[at + 1].text in variables:
                break
            words.append("/")
        elif token.kind == "money":
            words.append(token.text)
        elif token.kind == "word":
            number_follows = at + 1 < len(tokens) and tokens[at + 1].kind == "number"
            if _is_variable(tokens, at, variables) and not (token.text in "rR" and number_follows):
                break
            words.append(token.text)
        else:
            break
        at += 1
    return tuple(words), at


_OPERANDS = ("number", "variable", "close")


def trailing(items: Sequence[Item]) -> int:
    """Where the expression starts that ends `items`; raises `Unreadable` when none does."""
    at = len(items)
    while True:
        at = _operand_before(items, at)
        while at and items[at - 1].text == "-":
            before = items[at - 2].kind if at > 1 else ""
            if before in _OPERANDS:
                break
            if before == "foreign" and items[at].spaced:
                raise Unreadable  # "Total - 5 = 3"
            at -= 1
        if not at:
            return at
        before = items[at - 1].kind
        if before == "operator":
            at -= 1
        elif not is_product(items[at - 1], items[at]):
            return at


def _operand_before(items: Sequence[Item], at: int) -> int:
    if not at or items[at - 1].kind not in _OPERANDS:
        raise Unreadable
    if items[at - 1].kind != "close":
        return at - 1
    depth = 0
    for i in range(at - 1, -1, -1):
        depth += (items[i].kind == "close") - (items[i].kind == "open")
        if not depth:
            return i - 1 if i and items[i - 1].kind == "function" else i
    raise Unreadable


def leading(items: Sequence[Item]) -> int:
    """Where the expression ends that starts `items`; raises `Unreadable` when none does."""
    at = 0
    while True:
        while at < len(items) and items[at].text in ("-", "+"):
            at += 1
        at = _operand_after(items, at)
        if at == len(items):
            return at
        if items[at].kind == "operator":
            following = items[at + 1] if at + 1 < len(items) else None
            is_dash = items[at].text == "-" and items[at].spaced
            if following and following.kind == "foreign" and is_dash and len(following.text) > 1:
                return at  # a dash between words
            at += 1
        elif not is_product(items[at - 1], items[at]):
            return at


def _operand_after(items: Sequence[Item], at: int) -> int:
    if at < len(items) and items[at].kind == "function":
        at += 1
    if at >= len(items) or items[at].kind not in ("number", "variable", "open"):
        raise Unreadable
    if items[at].kind != "open":
        return at + 1
    depth = 0
    for i in range(at, len(items)):
        depth += (items[i].kind == "open") - (items[i].kind == "close")
        if not depth:
            return i + 1
    raise Unreadable


def is_product(before: Item, after: Item) -> bool:
    """Whether two operands side by side are a product: 2x, 5(19), (2)(3); "5 (or so)" is none."""
    if after.spaced:
        return False
    if after.kind == "open":
        return before.kind in _OPERANDS and not before.words
    return after.kind == "variable" and before.kind in ("number", "close")
