"""The executable step checker: finds arithmetic and unit statements in a step and works them out, exactly.

What it cannot read for certain is unknown, never refuted: a wrong refutation would throw a good trace away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from edge_distill.traces.evaluation import Linear, linear_value
from edge_distill.traces.expressions import Item, Unreadable, items_of, leading, trailing, variables_in
from edge_distill.traces.statement_tokens import RELATION, Token, clauses
from edge_distill.traces.trace import Verdict

__all__ = ["Statement", "check_step", "find_statements", "step_verdict"]

_FLOAT_DIGITS = 12  # a number written with so many digits is a program's float, and rounded
_FLOAT_ERROR = Fraction(1, 10**9)

# The expression behind these words may be half of one: "two and 3 = 5", "half of 30 + 4".
_JOINING = frozenset(
    {
        "and",
        "plus",
        "minus",
        "times",
        "by",
        "or",
        "of",
        "over",
        "to",
        "from",
        "divided",
        "multiplied",
        "less",
        "than",
    }
)
_SUMMING = frozenset({"total", "sum", "product", "difference", "quotient", "result", "cost", "rest"})
# A number with one of these may mean another value than the one that is written.
_MEASURING = frozenset(
    {
        "dozen", "dozens", "pair", "pairs", "half", "halves", "quarter", "quarters", "third", "thirds", "fourths",
        "fifths", "tenths", "score", "remainder", "rem", "tens", "hundreds", "hundredths", "thousands", "thousandths",
        "and", "a", "an", "one", "more", "less", "squared", "cubed",
    }
)  # fmt: skip
_REMAINDER = frozenset({"remainder", "rem", "r", "R"})
_OF_ORDER = {
    "<": lambda left, right: left < right,
    ">": lambda left, right: left > right,
    "≤": lambda left, right: left <= right,
    "≥": lambda left, right: left >= right,
    "≠": lambda left, right: left != right,
}  # fmt: skip


@dataclass(frozen=True)
class Statement:
    """A relation in a step, as `3 * 4 = 12`, and whether it holds.

    `uses` are the numbers on its left side, `gives` the one on its right when that is a single number; `variables`
    the letters on both sides.
    """

    text: str
    verdict: Verdict
    uses: tuple[Fraction, ...] = ()
    gives: Fraction | None = None
    variables: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Side:
    """An expression, the item outside of it, and its value."""

    items: tuple[Item, ...]
    outside: Item | None
    value: Linear

    @property
    def single(self) -> Item | None:
        """The number when it is nothing else, with its sign."""
        bare = [item for item in self.items if item.text != "-" or item.kind == "number"]
        return bare[0] if len(bare) == 1 and bare[0].kind == "number" else None


def check_step(text: str) -> Verdict:
    """The verdict on a step; never raises, and takes milliseconds on any text.

    refuted: a statement in it does not hold; verified: at least one holds and none is refuted; else unknown.
    """
    return step_verdict(find_statements(text))


def step_verdict(statements: Sequence[Statement]) -> Verdict:
    """One verdict from those of a step's statements."""
    verdicts = {statement.verdict for statement in statements}
    return "refuted" if "refuted" in verdicts else "verified" if "verified" in verdicts else "unknown"


def find_statements(text: str) -> list[Statement]:
    """The statements of a step, in order; never raises.

    Read are `+ - * / // % ^` and their typographic and LaTeX forms, brackets, decimals, thousands separators,
    percentages, currencies, units (convertible ones are converted), `gcd`, `lcm`, `sqrt`, chains `a = b = c`,
    `< > ≤ ≥ ≠`, `a / b = q remainder r`, and equations in one letter when a step holds two of them. `≈` holds when
    the left side rounds to the right one; so does `=` when the left side has no end: 10 / 3 = 3.33.
    """
    if not RELATION.search(text):  # most steps of prose
        return []
    parts = clauses(text)
    variables = variables_in(parts)
    found: list[Statement] = []
    equations: list[tuple[int, Linear, bool]] = []
    for clause in parts:
        relations = [i for i, token in enumerate(clause) if token.kind == "relation"]
        for n, at in enumerate(relations):
            start = relations[n - 1] + 1 if n else 0
            end = relations[n + 1] if n + 1 < len(relations) else len(clause)
            statement, equation = _statement(clause, start, at, end, variables)
            if equation:
                equations.append((len(found), *equation))
            found.append(statement)
    return _with_equations(found, equations)


def _statement(
    clause: list[Token], start: int, at: int, end: int, variables: frozenset[str]
) -> tuple[Statement, tuple[Linear, bool] | None]:
    """The statement at a relation; of an equation with a letter also left minus right, and whether it is `x = 5`."""
    relation = clause[at].text
    before, after = items_of(clause[start:at], variables), items_of(clause[at + 1 : end], variables)
    text = " ".join(token.text for token in clause[start:end])
    letters = frozenset(item.text for item in [*before, *after] if item.kind == "variable")
    sides: list[_Side | None] = []
    for items, is_left in ((before, True), (after, False)):
        try:
            sides.append(_side(items, is_left))
        except Unreadable:
            sides.append(None)
    left, right = sides
    uses = _signed_numbers(left.items) if left else ()
    gives = right.value.constant if right and right.single else None
    if not left or not right:
        return Statement(text, "unknown", uses, gives, letters), None
    difference = _difference(left.value, right.value)
    if difference is None:
        return Statement(text, "unknown", uses, gives, letters), None
    if left.value.factor or right.value.factor:
        if not difference.factor and relation == "=":
            return Statement(
                text, "unknown" if difference.constant else "verified", uses, gives, letters
            ), None
        bare = all(len(side.items) == 1 or side.single for side in (left, right))
        return Statement(text, "unknown", uses, gives, letters), (
            difference,
            bare,
        ) if relation == "=" else None
    if start and left.outside is before[0] and len(left.items) > 1:  # 5 + 5 = 10 and 10 + 2 = 12
        left = replace(left, outside=None)
    verdict = None
    if relation in ("=", "≈"):
        verdict = _by_units(left, relation, right) or _with_remainder(left, right)
    if verdict is None:
        verdict = _verdict(left, relation, right)
        if verdict == "refuted" and ((not start and _is_name(left)) or _is_doubtful(left, right)):
            verdict = "unknown"
    return Statement(text, verdict, uses, gives, letters), None


def _signed_numbers(items: Sequence[Item]) -> tuple[Fraction, ...]:
    """The numbers of an expression, with the minus of a negative one: 2 and -3 in `2 - -3`."""
    found = []
    for i, item in enumerate(items):
        if item.kind == "number":
            negative = (
                i and items[i - 1].text == "-" and (i == 1 or items[i - 2].kind in ("operator", "open"))
            )
            found.append(-item.value if negative else item.value)
    return tuple(found)


def _side(items: list[Item], is_left: bool) -> _Side:
    if is_left:
        start = trailing(items)
        part, outside = items[start:], items[max(0, start - 2) : start]
        joined = " ".join(item.text.lower() for item in outside)
        # "the total of 3 + 4 = 7" is whole, "half of 30 + 4 = 19" is not
        whole = joined.endswith(" of") and joined.split()[0] in _SUMMING
        return _Side(tuple(part), outside[-1] if outside and not whole else None, linear_value(part))
    end = leading(items)
    return _Side(tuple(items[:end]), items[end] if end < len(items) else None, linear_value(items[:end]))


def _difference(left: Linear, right: Linear) -> Linear | None:
    if left.factor and right.factor and left.name != right.name:
        return None
    name = left.name if left.factor else right.name
    return Linear(left.constant - right.constant, left.factor - right.factor, name)


def _verdict(left: _Side, relation: str, right: _Side) -> Verdict:
    a, b = left.value.constant, right.value.constant
    if relation in _OF_ORDER:
        return "verified" if _OF_ORDER[relation](a, b) else "refuted"
    if _equal(left, a, b) or (relation == "≈" and _rounds_to(a, b, right)):
        return "verified"
    if right.single and right.single.percent and _equal(left, a, right.single.value):
        # "15 / 20 * 100 = 75%": a percentage, though not so written
        return "verified" if any(item.value == 100 for item in left.items) else "unknown"
    try:
        if linear_value(left.items, tight_fractions=True) == right.value:
            return "verified"
    except Unreadable:
        pass
    if right.single and right.single.decimals and _rounds_to(a, b, right):
        return "unknown" if _ends(a) else "verified"
    return "refuted"


def _equal(left: _Side, a: Fraction, b: Fraction) -> bool:
    is_float = any(item.decimals and sum(map(str.isdigit, item.text)) >= _FLOAT_DIGITS for item in left.items)
    return a == b or (is_float and abs(a - b) <= _FLOAT_ERROR * abs(b))


def _rounds_to(value: Fraction, rounded: Fraction, right: _Side) -> bool:
    """Whether `value` is `rounded` to as many digits as that is written with: 298 is about 300."""
    last = Fraction(1)
    if right.single:
        last = Fraction(1, 10**right.single.decimals)
        last *= Fraction(1, 100) if right.single.percent else 1
        if not right.single.decimals and rounded.denominator == 1:
            digits = str(abs(int(rounded)))
            last *= 10 ** (len(digits) - len(digits.rstrip("0"))) if rounded else 1
    return abs(value - rounded) <= last / 2


def _ends(value: Fraction) -> bool:
    """Whether a decimal number can be exactly this."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def _with_remainder(left: _Side, right: _Side) -> Verdict | None:
    """`132 / 28 = 4 remainder 20`."""
    quotient, rest = right.single, right.outside
    is_division = len(left.items) == 3 and left.items[1].text in ("/", "÷")
    if not quotient or not rest or rest.kind != "number" or not _REMAINDER.intersection(quotient.words):
        return None
    if not is_division or not left.items[2].value:
        return "unknown"
    dividend, divisor = left.items[0].value, left.items[2].value
    holds = (dividend // divisor, dividend % divisor) == (quotient.value, rest.value)
    return "verified" if holds else "refuted"


def _by_units(left: _Side, relation: str, right: _Side) -> Verdict | None:
    """The verdict that units give: of sums of one dimension, of conversions; None when they say nothing."""
    measure, is_sum = _measure(left)
    result = _measure(right)[0] if right.single else None
    if not measure or not result or (left.outside and left.outside.kind == "number"):  # 1 hour 30 minutes
        return None
    (dimension, value), (other, written) = measure, result
    if dimension != other:
        return "refuted" if is_sum and len(left.items) > 1 else None
    if value == written or (
        relation == "≈" and _rounds_to(value / _factor(right), right.value.constant, right)
    ):
        return "verified"
    has_other_unit = _factor(right) not in {item.unit[1] for item in left.items if item.unit}
    if is_sum and has_other_unit and not (right.outside and right.outside.kind == "number"):
        return "refuted"
    return None


def _factor(side: _Side) -> Fraction:
    return side.single.unit[1] if side.single and side.single.unit else Fraction(1)


def _measure(side: _Side) -> tuple[tuple[str, Fraction] | None, bool]:
    """Dimension and value in its base unit, when every term has a unit (then it is a sum) or one factor has."""
    numbers = [item for item in side.items if item.kind == "number"]
    units = [item.unit for item in numbers]
    operators = {item.text for item in side.items if item.kind != "number"}
    known = [unit for unit in units if unit]
    if not known or any(item.kind == "variable" for item in side.items):
        return None, False
    if operators <= {"+", "-"}:
        if len(known) < len(numbers) or len({dimension for dimension, _ in known}) > 1:
            return None, False
        total, sign = Fraction(0), 1
        for item in side.items:
            if item.kind == "number":
                total += sign * item.value * (item.unit[1] if item.unit else 0)
                sign = 1
            elif item.text == "-":
                sign = -sign
        return (known[0][0], total), True
    others = [item for item in numbers if not item.unit]
    if operators <= {"*", "/"} and len(known) == 1 and units[0] and not any("/" in n.words for n in others):
        return (known[0][0], side.value.constant * known[0][1]), False
    return None, False


def _is_name(left: _Side) -> bool:
    """Whether a number that starts a clause may belong to what is counted: `Day 2 = 5 + 3`, `5 kg of tea = 5 * 3`."""
    number = left.single
    return number is not None and (left.outside is not None or any(map(str.isalpha, number.words)))


def _is_doubtful(left: _Side, right: _Side) -> bool:
    """Whether a statement that does not hold may have been read wrongly."""
    numbers = [item for item in (*left.items, *right.items) if item.kind == "number"]
    if left.single and right.single and (left.outside or left.single.words or right.single.words):
        return True  # "1 tray = 28 rolls", "cost = 5"
    if left.outside and _goes_on(left.outside):
        return True
    if right.outside and right.outside.kind in ("number", "open", "variable"):
        return True
    if any(_MEASURING.intersection(word.lower() for word in item.words) for item in numbers):
        return True
    units = {item.unit for item in numbers if item.unit}
    if len(units) > 1:
        return True  # 1 hour + 30 = 90 minutes
    if _has_percentage_term(left.items):
        return True  # $200 - 10% = $180
    return _looks_like_range(left.items)


def _goes_on(outside: Item) -> bool:
    """Whether the item before an expression joins it to something: `5 apples and 3 pears`, but not `5 because 3`."""
    if outside.kind == "number":
        return not outside.words or outside.words[-1].lower() in _JOINING
    return outside.text.lower() in _JOINING or outside.kind in ("variable", "close")


def _has_percentage_term(items: tuple[Item, ...]) -> bool:
    percents = {item.percent for item in items if item.kind == "number"}
    return percents == {True, False} and any(
        item.percent and items[i - 1].text in ("+", "-") for i, item in enumerate(items) if i
    )


def _looks_like_range(items: tuple[Item, ...]) -> bool:
    """`pages 10-20 = ...`: two integers, the second one larger, nothing between but the dash."""
    if len(items) != 3 or items[1].text != "-" or items[1].spaced or items[2].spaced:
        return False
    return items[0].kind == items[2].kind == "number" and items[0].value < items[2].value


def _with_equations(found: list[Statement], equations: list[tuple[int, Linear, bool]]) -> list[Statement]:
    """Equations in one letter, of which a step holds several, have the same solution: 2x + 3 = 11 -> x = 4."""
    result = list(found)
    for name in {equation.name for _, equation, _ in equations}:
        mine = [(at, eq, bare) for at, eq, bare in equations if eq.name == name]
        if len(mine) < 2 or all(bare for _, _, bare in mine):
            continue
        agree = len({-eq.constant / eq.factor for _, eq, _ in mine}) == 1
        for at, _, _ in mine:
            old = result[at]
            result[at] = Statement(
                old.text, "verified" if agree else "refuted", old.uses, old.gives, old.variables
            )
    return result
