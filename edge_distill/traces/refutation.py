"""A wrong step's refutation in words: said only of what the step checker refutes, and true by the same checker."""

from __future__ import annotations

import re

from edge_distill.traces.checker import find_statements
from edge_distill.traces.roles import role_of

__all__ = ["refutation_of"]

_NUMBER = re.compile(r"[\d.,]*\d")
_OPENING = frozenset({"(", "[", "-", "$", "€", "£", "¥", "₹", "gcd", "lcm", "sqrt"})


def refutation_of(step: str) -> str | None:
    """`Wait, that is wrong: 12 * 4 != 46.` for a step that claims the equality; None when that cannot be said.

    The sentence has the role error and the verdict verified, so that it is learned where the wrong step is not.
    """
    for found in find_statements(step):
        if found.verdict != "refuted" or found.text.count("=") != 1:
            continue
        equality = _as_written(_expression(found.text, len(found.uses)), step)
        said = f"Wait, that is wrong: {equality.replace('=', '!=')}."
        statements = find_statements(said)
        verdicts = [statement.verdict for statement in statements]
        if verdicts == ["verified"] and role_of(said, "verified", statements) == "error":
            return said
    return None


def _as_written(statement: str, step: str) -> str:
    """A statement, whose tokens stand apart, as the step spells it; as it is when it stands there in other signs."""
    pattern = r"\s*".join(re.escape(token) for token in statement.split())
    match = re.search(pattern, step)
    return " ".join(match[0].split()) if match else statement


def _expression(statement: str, numbers: int) -> str:
    """A statement without what stands before its expression, which has so many numbers on the left."""
    tokens = statement.split()
    places = [i for i, token in enumerate(tokens[: tokens.index("=")]) if _NUMBER.fullmatch(token)]
    start = places[-numbers] if 0 < numbers <= len(places) else 0
    while start and tokens[start - 1] in _OPENING:
        start -= 1
    return " ".join(tokens[start:])
