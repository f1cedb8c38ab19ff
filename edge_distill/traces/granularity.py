"""Shorter reasoning by rules: which steps the answer, or a later step, depends on.

A step depends on the steps that produced the numbers and letters it uses. It produces what stands alone on the right
of a relation, or, without one, every number it names. When several steps produced a number, a use takes the latest
that no use has taken yet: the two 12 of `12 + 12 = 24` come from two steps, if two steps gave 12.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Literal

from edge_distill.traces.checker import Statement, find_statements
from edge_distill.traces.statement_tokens import clauses
from edge_distill.traces.trace import Step, Trace, answer_turn
from edge_distill_runtime.reasoning.answers import normalize_answer

__all__ = ["Granularity", "compress", "compress_trace"]

Granularity = Literal["full", "compact", "critical", "answer"]

_Key = Fraction | str  # a number, or a letter


class _Flow:
    """What a step uses, how often, and what it produces."""

    def __init__(self, step: Step) -> None:
        statements = find_statements(step.text)
        numbers = _numbers(step.text)
        self.derives = any(found.gives is not None or found.variables for found in statements)
        self.gives: set[_Key] = set(numbers)
        self.uses: Counter[_Key] = Counter()
        if not self.derives:
            return
        self.gives = {letter for found in statements for letter in found.variables}
        self.gives |= {found.gives for found in statements if found.gives is not None}
        self.uses = _used(statements)
        derived = {found.gives for found in statements if found.uses}
        self.uses |= Counter(number for number in numbers if number not in derived)


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


def compress_trace(trace: Trace, level: Granularity) -> Trace:
    """The trace with the steps that a level keeps, in reasoning and messages too; `sampling` says which level.

    Turns with tools are kept, for what a tool said is needed later, save for `answer`, which has only the problem and
    the answer. The steps of the trace must be those of its text.
    """
    acting = any(turn["role"] == "assistant" for turn in trace.messages[:-1])
    before = trace.messages[:-1]
    steps = trace.steps if acting else compress(trace.steps, trace.answer, level)
    if level == "answer":
        steps = ()
        before = ({"role": "user", "content": trace.problem},) if acting else before
    reasoning = trace.reasoning
    if len(steps) < len(trace.steps) or level == "answer":
        reasoning = _text_of(steps, trace.reasoning)
    return replace(
        trace,
        steps=tuple(steps),
        reasoning=reasoning,
        messages=(*before, answer_turn(trace.messages[-1]["content"], reasoning)),
        sampling=trace.sampling | {"granularity": level},
    )


def _text_of(steps: Sequence[Step], reasoning: str) -> str:
    """The steps as they stand in a reasoning: on one line where no line ended between them."""
    text, at = "", 0
    for step in steps:
        start = reasoning.index(step.text, at)
        if text:
            text += "\n" if "\n" in reasoning[at:start] else " "
        text += step.text
        at = start + len(step.text)
    return text


def _sources(flows: Sequence[_Flow]) -> list[set[int]]:
    """Of each step, the steps before it that produced what it uses."""
    producers: dict[_Key, list[int]] = {}  # that no use has taken
    latest: dict[_Key, int] = {}
    sources = []
    for at, flow in enumerate(flows):
        found = set()
        for key, count in flow.uses.items():
            for _ in range(count if key in latest else 0):
                free = producers[key]
                found.add(free.pop() if free else latest[key])
        sources.append(found)
        for key in flow.gives:
            producers.setdefault(key, []).append(at)
            latest[key] = at
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


def _used(statements: Sequence[Statement]) -> Counter[_Key]:
    """What statements use before one of this step has derived it: the 5 of `5 + 0 = 5`, but not that of a chain."""
    derived: set[Fraction] = set()
    used: Counter[_Key] = Counter()
    for found in statements:
        used |= Counter(number for number in found.uses if number not in derived)
        used |= Counter(found.variables)
        if found.gives is not None:
            derived.add(found.gives)
    return used


def _numbers(text: str) -> set[Fraction]:
    """The numbers of a text, negative where a minus belongs to them."""
    found = set()
    for clause in clauses(text):
        for i, token in enumerate(clause):
            if token.kind != "number":
                continue
            minus = i > 0 and clause[i - 1].text == "-" and not token.spaced
            before = clause[i - 2].kind if i > 1 else "operator"
            negative = minus and (
                before in ("operator", "open", "relation") or (before == "word" and clause[i - 1].spaced)
            )
            found.add(-token.value if negative else token.value)
    return found
