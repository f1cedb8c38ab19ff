"""Shorter reasoning by rules: which steps the answer, or a later step, depends on.

A step depends on the steps that produced the numbers and letters it uses. It produces what stands alone on the right
of a relation, or, without one, every number it names; a number is taken from the latest step before that produced it.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from edge_distill.traces.checker import Statement, find_statements
from edge_distill.traces.statement_tokens import clauses
from edge_distill.traces.trace import Step
from edge_distill_runtime.answers import normalize_answer

__all__ = ["Granularity", "compress"]

Granularity = Literal["full", "compact", "critical", "answer"]

_Key = Fraction | str  # a number, or a letter


class _Flow:
    """What a step uses and what it produces."""

    def __init__(self, step: Step) -> None:
        statements = find_statements(step.text)
        numbers = _numbers(step.text)
        self.derives = any(found.gives is not None or found.variables for found in statements)
        if self.derives:
            self.gives = {key for found in statements for key in _given(found)}
            derived = {found.gives for found in statements if found.gives is not None and found.uses}
            letters = {letter for found in statements for letter in found.variables}
            # what is used before it is derived in the same step comes from an earlier one only if it is used first
            self.uses: set[_Key] = {number for number in numbers if number not in derived} | letters
            self.uses |= _used_first(statements)
        else:
            self.gives = set(numbers)
            self.uses = set()


def compress(steps: Sequence[Step], answer: str, level: Granularity) -> tuple[Step, ...]:
    """The steps that a level of supervision keeps, in order.

    full: all; compact: those that the answer or any later step depends on; critical: the smallest chain that still
    derives the answer; answer: none. When no step produces the answer, nothing is known to be superfluous, and
    compact and critical keep all steps.
    """
    if level == "full":
        return tuple(steps)
    if level == "answer":
        return ()
    flows = [_Flow(step) for step in steps]
    last = _producer_of_answer(steps, flows, answer)
    if last is None:
        return tuple(steps)
    sources = _sources(flows)
    if level == "compact":
        kept = {last}.union(*sources)
    else:
        kept, waiting = set(), [last]
        while waiting:
            at = waiting.pop()
            if at not in kept:
                kept.add(at)
                waiting.extend(sources[at])
    return tuple(step for i, step in enumerate(steps) if i in kept)


def _sources(flows: Sequence[_Flow]) -> list[set[int]]:
    """Of each step, the latest steps before it that produced what it uses."""
    latest: dict[_Key, int] = {}
    sources = []
    for at, flow in enumerate(flows):
        sources.append({latest[key] for key in flow.uses if key in latest})
        latest.update(dict.fromkeys(flow.gives, at))
    return sources


def _producer_of_answer(steps: Sequence[Step], flows: Sequence[_Flow], answer: str) -> int | None:
    """The last step that derives the answer; if none does, the last that names it."""
    parsed = normalize_answer(answer)
    if parsed.kind == "number":
        value = Fraction(parsed.key[1])  # type: ignore[index]
        naming = [i for i, flow in enumerate(flows) if value in flow.gives]
        return next((i for i in reversed(naming) if flows[i].derives), naming[-1] if naming else None)
    wanted = answer.casefold().strip()
    if not wanted:
        return None
    return next((i for i in range(len(steps) - 1, -1, -1) if wanted in steps[i].text.casefold()), None)


def _given(statement: Statement) -> set[_Key]:
    keys: set[_Key] = set(statement.variables)
    if statement.gives is not None:
        keys.add(statement.gives)
    return keys


def _used_first(statements: Sequence[Statement]) -> set[_Key]:
    """Numbers that a statement uses before any in this step has derived them: the 5 of `5 + 0 = 5`."""
    derived: set[Fraction] = set()
    used: set[_Key] = set()
    for found in statements:
        used |= {number for number in found.uses if number not in derived}
        if found.gives is not None:
            derived.add(found.gives)
    return used


def _numbers(text: str) -> set[Fraction]:
    return {token.value for clause in clauses(text) for token in clause if token.kind == "number"}
