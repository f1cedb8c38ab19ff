"""Numbers as people, models and LaTeX write them, read exactly, with their units."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt

__all__ = ["NUMBER_IN_TEXT", "Quantity", "read_quantity"]

# Fractions beyond these would cost more to compute with than an answer is worth; such an answer stays text.
MAX_DIGITS = 300
MAX_EXPONENT = 300

# Groups of exactly three digits; the comma never is a decimal sign, so "1,5" is no number (it is the list 1, 5).
_GROUPED = r"[1-9]\d{0,2}(?:(?:,\d{3}(?!\d))++|(?:_\d{3}(?!\d))++|(?:[%s]\d{3}(?!\d))++)"
_DECIMAL = rf"(?:(?:{_GROUPED % ' '}|\d++)(?:\.\d++)?|\.\d++)"
_EXPONENT = r"(?:[eE](?P<e>[-+]?\d++)|\s*\*\s*10\s*\^\s*\(?(?P<power>[-+]?\d++)\)?)"
_CURRENCY = r"(?:[A-Z]{0,2}\$|[€£¥₹₽₩¢]|(?:USD|EUR|GBP|INR|Rs\.?)(?=\s))"
_QUANTITY = re.compile(
    rf"""(?:(?:a\ total\ of|only|just|exactly|about|around|roughly|nearly|almost|approx\.|approximately|[=≈~])\s*)?
    (?P<sign>[-+]|minus\ |negative\ )?\s*(?P<currency>{_CURRENCY})?\s*(?P<inner>[-+])?
    (?:
        (?P<whole>\d++)(?:\s+and)?\s+(?P<part>\d++)\s*/\s*(?P<parts>\d++)
      | (?P<above>\([-+]?{_DECIMAL}\)|{_DECIMAL})\s*/\s*(?P<below>\([-+]?{_DECIMAL}\)|[-+]?{_DECIMAL})
      | (?P<fixed>\d*+\.\d*+)\((?P<repeated>\d++)\)
      | 10\s*\^\s*\(?(?P<ten>[-+]?\d++)\)?
      | (?P<factor>\d*+)\s*\*?\s*sqrt\s*\((?P<square>\d++)\)
      | (?P<decimal>{_DECIMAL}){_EXPONENT}?
    )
    (?P<unit>.*)""",
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
# In running text only a no-break or thin space separates thousands, and a number does not continue a word or "v1.".
_IN_TEXT = _GROUPED % "\u00a0\u2009\u202f"
NUMBER_IN_TEXT = re.compile(
    rf"""(?<!\w)(?<!\w\.)(?:(?<![\w)\]}}.])[-+−])?
    (?:
        \\[dt]?frac\{{\d+\}}\{{\d+\}}
      | \d++\ \d++/\d++(?![/\d])
      | (?:(?:{_IN_TEXT}|\d++)(?:\.\d++)?|\.\d++)(?:/\d++(?![/\d]))?(?:[eE][-+]?\d++)?
    )
    (?:\s?\\?%)?""",
    re.VERBOSE,
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALE = re.compile(rf"\s*({'|'.join(_SCALES)})\b(.*)", re.DOTALL | re.IGNORECASE)

_WORD = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*\.?")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Units that are shorter than three letters or stand right behind the number; other short words are variables.
_SYMBOLS = _words(
    "% ° °c °f $ € £ ¥ ₹ ₽ ₩ ¢ usd eur gbp inr m cm mm km nm dm ft in yd mi g kg mg lb lbs oz l dl ml cl h hr hrs "
    "min mins s sec secs ms kj kw kwh kv mv hz khz mhz ghz kb mb gb tb mph kph sq cu st nd rd th"
)
# only after a space: 5 N is a force, 5N may be a product and 5K 5,000
_CAPITAL_SYMBOLS = frozenset("ACFJKLNVW")
_LITTLE_WORDS = _words("of per a an in on at by for the to as is")
# Words that change the value or belong to an expression: with one of them the answer is no plain number.
_NO_UNITS = _words(
    "and or plus minus not mod modulo pi sqrt root sin cos tan cot sec csc log exp infinity squared cubed factorial "
    "alpha beta gamma delta theta lambda sigma phi omega half halves quarter quarters third thirds fourth fourths "
    "fifth fifths sixth eighth tenth tenths hundredths one two three four five six seven eight nine ten eleven twelve "
    "thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty "
    "ninety hundred thousand million billion trillion remainder"
)


@dataclass(frozen=True)
class Quantity:
    """A number and what stands around it: a unit, a currency sign, `%`; empty when there is none."""

    value: Fraction
    unit: str


def read_quantity(text: str) -> Quantity | None:
    """The number that `text` is as a whole (see `latex.plain`), or None; exact.

    A percentage is a unit like any other: 12% is the number 12, not 0.12, for "what per cent" is answered by both
    "12%" and "12". Million and its like multiply; dozen and pair are units. Zero denominators and numbers over
    300 digits or beyond 10^±300 are no numbers.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None or (match["sign"] and match["inner"]) or sum(map(str.isdigit, text)) > MAX_DIGITS:
        return None
    value = _value(match)
    rest = match["unit"]
    if scale := _SCALE.fullmatch(rest):
        value = value and value * 10 ** _SCALES[scale[1].lower()]
        rest = scale[2]
    unit = _unit(rest)
    if value is None or unit is None:
        return None
    negative = (match["sign"] or match["inner"] or "+").strip() not in "+"
    return Quantity(-value if negative else value, " ".join(filter(None, (match["currency"], unit))))


def _value(match: re.Match[str]) -> Fraction | None:
    """The number without its sign."""
    if match["whole"]:
        part, parts = int(match["part"]), int(match["parts"])
        return int(match["whole"]) + Fraction(part, parts) if part < parts else None
    if match["above"]:
        below = _decimal(match["below"])
        return _decimal(match["above"]) / below if below else None
    if match["repeated"]:
        fixed, repeated = match["fixed"], match["repeated"]
        shift = 10 ** len(fixed.partition(".")[2])
        return _decimal("0" + fixed + "0") + Fraction(int(repeated), (10 ** len(repeated) - 1) * shift)
    if match["ten"]:
        return _power_of_ten(match["ten"])
    if match["square"]:
        root = isqrt(int(match["square"]))
        return Fraction(root * int(match["factor"] or 1)) if root * root == int(match["square"]) else None
    scale = _power_of_ten(match["e"] or match["power"] or "0")
    return _decimal(match["decimal"]) * scale if scale is not None else None


def _decimal(text: str) -> Fraction:
    return Fraction(re.sub(r"[,_ ()]", "", text))


def _power_of_ten(exponent: str) -> Fraction | None:
    return Fraction(10) ** int(exponent) if abs(int(exponent)) <= MAX_EXPONENT else None


def _unit(rest: str) -> str | None:
    """What follows the number, when it is a unit: `rolls of bread`, `km/h`, `cm^2`; None when it is anything else."""
    unit = re.sub(r"\s+\([^\W\d_]{2}[^()\d+*/^=<>]*\)$", "", rest)  # 20 (twenty), not 3 (x + 1)
    bare = re.sub(r"(?<=[a-z])\^\(?-?\d\)?", "", unit.casefold()).replace("°", " °").replace("%", " % ")
    words = re.findall(r"[^\s/*]+", bare)
    if not unit.strip():
        return ""
    if len(words) > 8 or _LITTLE_WORDS.issuperset(words):
        return None
    attached = unit[0].isalpha()
    if unit.strip() in _CAPITAL_SYMBOLS and not attached:
        return unit.strip()
    known = all(_is_unit_word(word, attached and index == 0) for index, word in enumerate(words))
    return unit.strip() if known else None


def _is_unit_word(word: str, attached: bool) -> bool:
    stem = word.rstrip(".")
    if stem in _SYMBOLS:
        return True
    if attached or not _WORD.fullmatch(word) or not _NO_UNITS.isdisjoint(stem.split("-")):
        return False
    return len(stem) > 2 or stem in _LITTLE_WORDS
