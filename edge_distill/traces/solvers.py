"""Programs that know a task and write down how it is solved, one step a line: teachers that are never wrong.

Each reads the question as reasoning-gym words it, and only that; `gsm_symbolic` comes with a chain of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_distill.traces.arithmetic_steps import evaluate, solve_equation
from edge_distill_runtime.errors import InputError

__all__ = ["SOLVERS", "Solution", "solve"]

_MAX_QUESTION = 20_000

# As reasoning-gym counts legs.
_LEGS = {
    0: ("snake", "sea slug", "jellyfish", "flatworm", "leech"),
    2: ("chicken", "bird", "human", "duck"),
    4: ("dog", "cat", "cow", "horse", "lion", "elephant", "giraffe", "tiger", "deer", "sheep"),
    5: ("starfish",),
    6: (
        "insect", "ant", "butterfly", "beetle", "bee", "wasp", "grasshopper", "cricket", "cockroach",
        "praying mantis", "firefly",
    ),
    8: ("spider", "scorpion"),
    10: ("crab", "lobster", "shrimp"),
    14: ("woodlouse",),
}  # fmt: skip
_LEGS_OF = {animal: legs for legs, animals in _LEGS.items() for animal in animals}

_SUM = re.compile(r"arithmetic problem: ([-+\d\s]+)=")
_EXPRESSION = re.compile(r"(?:Calculate|What is|Solve|Compute|Evaluate:)([-+*/()\d\s]+)[.?]")
_EQUATION = re.compile(r"([-+*()\d\sa-z]+=[-+*()\d\sa-z]+)")
_ANIMALS = re.compile(r"if you have ([^?]+)\?")
_NUMBERS = re.compile(r"numbers: (\d+(?:, \d+)+)")
_HASHES = re.compile(r"^#### *(\S+)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Solution:
    """A reasoning with one step a line, and the answer it leads to."""

    reasoning: str
    answer: str


def solve(task: str, question: str, metadata: Mapping[str, Any]) -> Solution:
    """Solve a problem of reasoning-gym's family `task`; raises `InputError` when it is not known or not understood."""
    if task not in SOLVERS:
        known = ", ".join(sorted(SOLVERS))
        raise InputError("unknown-solver", f"no solver knows {task[:40]!r}", f"they know {known}")
    if len(question) > _MAX_QUESTION:
        raise InputError(
            "too-large", f"a question has {len(question)} characters", f"at most {_MAX_QUESTION}"
        )
    return SOLVERS[task](question, metadata)


def _chain_sum(question: str, _: Mapping[str, Any]) -> Solution:
    return _lines(*evaluate(_found(_SUM, question)))


def _basic_arithmetic(question: str, _: Mapping[str, Any]) -> Solution:
    # "/" rounds down there, as Python's // does
    return _lines(*evaluate(_found(_EXPRESSION, question)))


def _simple_equations(question: str, _: Mapping[str, Any]) -> Solution:
    return _lines(*solve_equation(_found(_EQUATION, question.rpartition(":")[2])))


def _leg_counting(question: str, _: Mapping[str, Any]) -> Solution:
    steps, counts = [], []
    for entry in _found(_ANIMALS, question).split(","):
        number, _space, animal = entry.strip().partition(" ")
        name = animal if animal in _LEGS_OF else animal.removesuffix("s")
        if not number.isdecimal() or name not in _LEGS_OF:
            raise _not_understood(entry)
        legs = _LEGS_OF[name]
        counts.append(int(number) * legs)
        steps.append(f"{number} {animal} * {legs} legs = {counts[-1]} legs")
    total = counts[0]
    for count in counts[1:]:
        steps.append(f"{total} + {count} = {total + count} legs")
        total += count
    return _lines(steps, total)


def _gcd(question: str, _: Mapping[str, Any]) -> Solution:
    first, *others = map(int, _found(_NUMBERS, question).split(","))
    steps = []
    for other in others:
        steps += _euclid(first, other)
        first = math.gcd(first, other)
    return _lines(steps, first)


def _euclid(first: int, second: int) -> list[str]:
    """Euclid's algorithm: what is left of the larger number takes its place, until nothing is."""
    steps = []
    large, small = max(first, second), min(first, second)
    while small:
        steps.append(f"{large} - {large // small} * {small} = {large % small}")
        large, small = small, large % small
    return [*steps, f"gcd({first}, {second}) = gcd({large}, 0) = {large}"]


def _gsm_symbolic(_: str, metadata: Mapping[str, Any]) -> Solution:
    chain = metadata.get("answer_cot")
    if not isinstance(chain, str):
        raise InputError("no-chain", "the problem has no chain of thought", "its metadata needs answer_cot")
    steps = [line.strip() for line in _HASHES.sub("", chain).splitlines()]
    return _lines([step for step in steps if step], _found(_HASHES, chain))


def _lines(steps: Sequence[str], answer: object) -> Solution:
    return Solution("\n".join(steps), str(answer))


def _found(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    if match is None:
        raise _not_understood(text)
    return match[1].strip()


def _not_understood(text: str) -> InputError:
    return InputError(
        "not-understood", f"{text[:80]!r} is not worded as expected", "give a question of reasoning-gym"
    )


SOLVERS: dict[str, Callable[[str, Mapping[str, Any]], Solution]] = {
    "basic_arithmetic": _basic_arithmetic,
    "chain_sum": _chain_sum,
    "gcd": _gcd,
    "gsm_symbolic": _gsm_symbolic,
    "leg_counting": _leg_counting,
    "simple_equations": _simple_equations,
}
