"""Whether an answer is right: our exact parse first, math-verify for what is not a plain value."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from edge_distill_bench.math_process import NoVerdict, is_equal
from edge_distill_runtime.errors import InputError
from edge_distill_runtime.reasoning.answers import UNPARSED, Answer, extract_answer, normalize_answer

__all__ = ["Grade", "Verdict", "grade"]

Verdict = Literal["right", "wrong", "unparsed", "cut off"]
"""`cut off` is the caller's to decide: the generation ended at a limit, so the model never gave its answer."""

# Read exactly by our parser: nothing that it calls different can be equal.
_PLAIN = ("number", "time", "choice", "boolean")
_COMMAND = re.compile(
    r"\\[a-zA-Z]+|(?<![a-zA-Z])(?:sqrt|sin|cos|tan|cot|log|ln|exp|pi)(?![a-zA-Z])|\b(?:sin|cos|tan)(?=\()"
)
_WORD = re.compile(r"[^\W\d_]{3}")
_NUMBERS_IN_A_ROW = re.compile(r"\d\s+-?\d")


@dataclass(frozen=True)
class Grade:
    """The verdict, and the answer it is about."""

    verdict: Verdict
    answer: Answer
    reason: str = ""
    """Why there is no verdict, when math-verify hung or died."""
    judge: Literal["exact", "math-verify"] = "exact"


def grade(text: str, gold: str, *, seconds: float = 5.0) -> Grade:
    """Compare the final answer in a text (without its reasoning) with the right one.

    Numbers, times, choices, yes and no are compared exactly by `normalize_answer`. Where one side is anything else
    and both look like mathematics (expressions, equations, tuples, sets), math-verify decides, in a process of its
    own that is killed after `seconds`; a hang or a crash there is "unparsed" with a reason. Words are never
    handed to it: it would read them as products of letters, and "listen" would equal "silent".

    Raises `InputError` when the right answer is empty, `MissingExtra` without math-verify.
    """
    expected = normalize_answer(gold)
    if expected.kind == "unparsed":
        raise InputError("bad-gold", f"the right answer {gold[:40]!r} is empty", "give one to every problem")
    extracted = extract_answer(text)
    answer = normalize_answer(extracted.raw) if extracted else UNPARSED
    if extracted is None or answer.kind == "unparsed":
        return Grade("unparsed", UNPARSED)
    if answer == expected:
        return Grade("right", answer)
    if expected.kind in _PLAIN and answer.kind in _PLAIN:
        return Grade("wrong", answer)
    if not (_is_mathematics(gold) and _is_mathematics(extracted.raw)):
        return Grade("wrong", answer)
    try:
        equal = is_equal(gold, extracted.raw, seconds=seconds)
    except NoVerdict as exc:
        return Grade("unparsed", answer, str(exc), "math-verify")
    return Grade("right" if equal else "wrong", answer, judge="math-verify")


def _is_mathematics(text: str) -> bool:
    """Whether math-verify may read it: no words, and no rows of numbers, which it would join."""
    if len(text) > 1000 or _NUMBERS_IN_A_ROW.search(text):
        return False
    rest = _COMMAND.sub(" ", text)
    return not _WORD.search(rest) and bool(rest != text or re.search(r"[\d+*/^=<>]", text))
