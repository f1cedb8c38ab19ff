r"""What a step does for the reasoning, by rules that a reader can follow; the first that fits decides.

1. error: it takes something back or checks it ("wait", "that is wrong", "let me check"), or a statement is refuted;
2. structure: it derives a value: a statement with a number or letter on both sides of its relation, or a conclusion
   ("so", "therefore", "because", ...) that names a number;
3. decomposition: it says what is known or what is to be found: a plan ("first", "we need", "let x be", "to find",
   "step 2", a heading that ends in a colon), or a plain fact with a number ("There are 3 trays");
4. language: everything else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from edge_distill.traces.checker import Statement
from edge_distill.traces.trace import Role, Verdict

__all__ = ["role_of"]

_MAX_TEXT = 4_000

_ERROR = re.compile(
    r"""\b(?:wait|oops|hold\ on|(?:my|a|the)\ mistake|(?:is|was|are|'s)\ (?:wrong|incorrect|not\ right|a\ mistake)
    |(?:isn't|wasn't|aren't|not)\ (?:right|correct)|scratch\ that|i\ made\ an?\ error
    |let(?:'s|\ me|\ us)\ (?:re-?check|double-?check|check|verify|re-?do|re-?compute|re-?calculate|try\ again)
    |contradict\w*|to\ (?:check|verify)|(?:double-?)?check(?:ing)?:|verification:|correction:)""",
    re.VERBOSE | re.IGNORECASE,
)
_CONCLUSION = re.compile(
    r"\b(?:so|thus|therefore|hence|then|because|since|which means|this means|it follows|this gives|giving|leaving)\b",
    re.IGNORECASE,
)
_PLAN = re.compile(
    r"""\b(?:first|firstly|next|finally|step\ \d+|let(?:'s)?\ (?:\w\ (?:be|denote|stand)|us|solve|start|break|find)
    |let's|we\ (?:need|want|have\ to|must|will|are\ given|know|can\ (?:start|find|break))|i\ (?:need|want|have\ to|will)
    |to\ (?:find|get|solve|determine|calculate|compute|work\ out)|the\ (?:question|problem|goal)\ (?:is|asks)
    |given\ that|consider|assume|suppose|calculate\ (?:how|the|total)|find\ (?:how|the|out))\b""",
    re.VERBOSE | re.IGNORECASE,
)
_NUMBER = re.compile(r"\d")


def role_of(text: str, verdict: Verdict, statements: Sequence[Statement]) -> Role:
    """The role of a step with that verdict and those statements; see the module for the rules."""
    head = text[:_MAX_TEXT]
    if verdict == "refuted" or _ERROR.search(head):
        return "error"
    derives = any(
        (found.uses or found.variables) and (found.gives is not None or found.variables)
        for found in statements
        if not _is_binding(found)
    )
    has_number = bool(_NUMBER.search(head))
    if derives or (has_number and _CONCLUSION.search(head)):
        return "structure"
    if _PLAN.search(head) or head.rstrip().endswith(":") or has_number:
        return "decomposition"
    return "language"


def _is_binding(statement: Statement) -> bool:
    """`W = 5`: a letter is given a number, nothing is derived."""
    return bool(statement.variables) and not statement.uses and statement.verdict == "unknown"
