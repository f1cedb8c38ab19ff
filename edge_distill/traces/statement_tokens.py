"""A step's text as tokens: numbers, operators, relations, words, and what must not be read as arithmetic."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

__all__ = ["RELATION", "Token", "clauses"]

Kind = Literal["number", "operator", "relation", "open", "close", "word", "money", "opaque"]

MAX_TEXT = 4_000  # characters of a step that are read; a longer one is no step
_MAX_DIGITS = 60

# LaTeX and typography in the plain form, before tokens are cut
_PLAIN = (
    (re.compile(r"\\d?frac\s*\{([-\d.]{1,30})\}\s*\{([-\d.]{1,30})\}"), r"((\1)/(\2))"),
    (re.compile(r"\\(?:boxed|text|mathrm|mathbf)\s*\{([^{}]{0,200})\}"), r"\1"),
    (re.compile(r"\\(?:times|cdot)\b"), "*"),
    (re.compile(r"\\div\b"), "÷"),
    (re.compile(r"\\approx\b"), "≈"),
    (re.compile(r"\\leq?\b"), "≤"),
    (re.compile(r"\\geq?\b"), "≥"),
    (re.compile(r"\\neq?\b"), "≠"),
    (re.compile(r"²"), "^2"),
    (re.compile(r"³"), "^3"),
    (re.compile(r"\\(?:left|right|quad|[,;! ])"), " "),
    (re.compile(r"\\([%$])"), r"\1"),
    (re.compile(r"<<[^<>]{0,100}>>"), ""),  # GSM8K's calculator marks
    (re.compile(r"(?<![\w)])\*\*(?=\S)((?:[^*]|\*(?!\*)){1,200})(?<=\S)\*\*(?!\s*[\d(])"), r"\1"),  # bold
)
_BULLET = re.compile(r"^\s*(?:[-*•–]\s+|\(?\d{1,2}[.)]\s+|[Ss]tep \d{1,2}[.:)]\s*|#{1,6}\s+|>\s*)*")
_MATH_MODE = re.compile(r"[\w})]\$|\$\$")  # $ as LaTeX's sign, not a currency's
_TOKEN = re.compile(
    r"""
    (?P<opaque>
        \d{4}[-/.]\d{1,2}[-/.]\d{1,2}(?!\d)          # a date
      | \d{1,2}[-/.]\d{1,2}[-/.]\d{4}(?!\d)
      | \d{1,2}:\d{2}(?::\d{2})?(?:\s?[ap]m\b)?      # a time or a ratio
      | \d+(?:\.\d+)?[–—]\d+(?:\.\d+)?               # a range
      | \d+(?:st|nd|rd|th)\b
      | (?<![\w.])\d+(?:\.\d+){2,}                   # a version
    )
  | (?P<mixed>\d{1,9}[ ]\d{1,9}/\d{1,9}(?![\d/.]))
  | (?P<number>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?P<exponent>[eE][-+]?\d{1,2}(?!\w))?
  | (?P<arrow>->|=>|-->|→|⇒|⟹|⇔)
  | (?P<relation><=|>=|!=|==|[=≈≅<>≤≥≠]|~=|≃)
  | (?P<operator>\*\*|//|[-+*/^×·⋅∙÷∕−–—%])
  | (?P<open>[(\[])|(?P<close>[)\]])
  | (?P<word>(?:(?<=\d)-(?=[^\W\d_]{2}))?[^\W\d_]+(?:['’\-][^\W\d_]+)*|°)
  | (?P<money>[$€£¥₹¢])
  | (?P<stop>[;?!…]|\.(?=\s|$)|,(?=\s|$)|:(?=\D|$)|\n)
  | (?P<space>\s+)
  | (?P<other>.)
    """,
    re.VERBOSE,
)
_OPERATORS = {"×": "*", "·": "*", "⋅": "*", "∙": "*", "∕": "/", "−": "-", "–": "-", "—": "-", "**": "^"}
RELATION = re.compile(r"[=≈≅≃<>≤≥≠]|\\(?:approx|[lgn]eq?)\b")
_RELATIONS = {"==": "=", "<=": "≤", ">=": "≥", "!=": "≠", "≅": "≈", "~=": "≈", "≃": "≈"}
_WORD_OPERATORS = {"mod": "mod", "times": "*", "plus": "+", "minus": "-", "of": "of"}
_WORD_OPERATORS |= {"x": "*", "X": "*"}


@dataclass(frozen=True)
class Token:
    """`spaced`: white space stands before it. Of a number: its value and how many decimals were written."""

    kind: Kind
    text: str
    spaced: bool = False
    value: Fraction = Fraction(0)
    decimals: int = 0


def clauses(text: str) -> list[list[Token]]:
    """The clauses of a step in order: what stands between full stops, commas, colons and arrows."""
    if len(text) > MAX_TEXT:
        return []
    if _MATH_MODE.search(text):
        text = text.replace("$", " ")
    for pattern, plain in _PLAIN:
        text = pattern.sub(plain, text)
    lines = [_BULLET.sub("", line) for line in text.splitlines()]
    found: list[list[Token]] = [[]]
    spaced = True
    for match in _TOKEN.finditer("\n".join(lines)):
        kind = match.lastgroup or ""
        if kind == "exponent":
            kind = "number"
        if match[0] == "," and _in_call(found[-1]):
            kind = "other"
        if kind in ("stop", "arrow"):
            found.append([])
            spaced = True
        elif kind == "space":
            spaced = True
        else:
            found[-1].append(_token(kind, match, spaced))
            spaced = False
    return [_with_word_operators(clause) for clause in found if clause]


def _in_call(clause: list[Token]) -> bool:
    """Whether the innermost open bracket, looked for a few tokens back, belongs to gcd( or lcm(."""
    for i in range(len(clause) - 1, max(0, len(clause) - 40), -1):
        if clause[i].kind == "close":
            return False
        if clause[i].kind == "open":
            return clause[i - 1].text.lower() in ("gcd", "lcm")
    return False


def _token(kind: str, match: re.Match[str], spaced: bool) -> Token:
    text = match[0]
    if kind == "mixed":
        whole, part, parts = map(int, re.split(r"[ /]", text))
        if part < parts:
            return Token("number", text, spaced, whole + Fraction(part, parts), 9)
        return Token("opaque", text, spaced)
    if kind == "number":
        digits = text.replace(",", "")
        if len(digits) > _MAX_DIGITS:
            return Token("opaque", text, spaced)
        decimals = len(match["number"].partition(".")[2])
        return Token("number", text, spaced, Fraction(digits), decimals)
    if kind == "relation":
        return Token("relation", _RELATIONS.get(text, text), spaced)
    if kind == "operator":
        return Token("operator", _OPERATORS.get(text, text), spaced)
    if kind in ("open", "close", "word", "money"):
        return Token(kind, text, spaced)  # type: ignore[arg-type]
    return Token("opaque", text, spaced)


def _with_word_operators(clause: list[Token]) -> list[Token]:
    """`times`, `of`, `mod` and `x` as operators where they stand between two quantities."""
    result = []
    for i, token in enumerate(clause):
        before = clause[i - 1] if i else None
        after = clause[i + 1] if i + 1 < len(clause) else None
        if token.kind == "word" and token.text in _WORD_OPERATORS and before and after:
            opens = after.kind in ("number", "open", "money")
            closes = (
                before.kind in ("number", "close") or before.text in ("%", "percent") or token.text in "xX"
            )
            if opens and closes and (token.text not in "xX" or _is_product(clause, i)):
                token = Token("operator", _WORD_OPERATORS[token.text], token.spaced)
        result.append(token)
    return result


def _is_product(clause: list[Token], at: int) -> bool:
    """Whether an x is a times: a quantity stands at most four words before it."""
    for token in reversed(clause[max(0, at - 5) : at]):
        if token.kind != "word":
            return token.kind in ("number", "close")
    return False
