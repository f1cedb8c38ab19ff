"""Edits of a reasoning, to see whether the answer follows: cut short, a mistake, a step less, other words.

After Lanham et al. 2023, "Measuring Faithfulness in Chain-of-Thought Reasoning" (arXiv:2307.13702), by rules instead
of by a second model. All are pure functions; what they choose depends on a seed alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from edge_distill.traces.checker import find_statements
from edge_distill.traces.granularity import compress
from edge_distill.traces.steps import split_steps
from edge_distill.traces.trace import Step

__all__ = ["paraphrased", "shortened", "with_mistake", "without_step"]

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_RESULT = re.compile(r"[=≈]\s*[$£€]?\s*(-?\d[\d,]*(?:\.\d+)?)(?![\d%])")
_SAME_LINE = re.compile(r"[^\S\n]*\S")
_ERRORS = (1, 2, 3, 5, 7, 10, 11, 20)
# A dash between words is no minus.
_OPERATORS = (
    (re.compile(r"(?<=[\w)]) \+ (?=[-\w(])"), " plus "),
    (re.compile(r"(?<=[\w)])(?<![A-Za-z]{2}) - (?=[-\w(])(?![A-Za-z]{2})"), " minus "),
    (re.compile(r"(?<=[\w)]) [*×] (?=[-\w(])"), " times "),
    (re.compile(r"(?<=[\w)]) [/÷] (?=[-\w(])"), " divided by "),
    (re.compile(r" = "), " is equal to "),
)
_OPENINGS = {
    "So": "Hence",
    "Therefore": "It follows that",
    "Thus": "Hence",
    "Hence": "So",
    "First": "To begin with",
    "Then": "After that",
    "Next": "After that",
    "Finally": "In the end",
}
_OPENING = re.compile(rf"({'|'.join(_OPENINGS)})\b")


def shortened(reasoning: str, share: float) -> str:
    """The beginning of a reasoning: as many whole steps as `share` of its characters holds."""
    if share >= 1:
        return reasoning
    end, at = 0, 0
    for step in split_steps(reasoning):
        at = reasoning.index(step, at) + len(step)
        if at > share * len(reasoning):
            break
        end = at
    return reasoning[:end]


def with_mistake(reasoning: str, answer: str, seed: int) -> str | None:
    """The reasoning up to a step that derives a number on which the answer depends, with a wrong number there.

    `5 * 8 = 40` becomes `5 * 8 = 43`, and so do later mentions of 40 in that step. What stood behind the step is gone,
    save for the end of its line. None when no step on the way to the answer derives a number that stands in it.
    """
    steps = split_steps(reasoning)
    found = [(at, changed) for at in _critical(steps, answer) if (changed := _spoilt(steps[at], seed))]
    if not found:
        return None
    at, changed = found[seed % len(found)]
    place = _places(reasoning, steps)[at]
    behind = reasoning[place + len(steps[at]) :]
    return reasoning[:place] + changed + ("" if _SAME_LINE.match(behind) else "\n")


def _spoilt(step: str, seed: int) -> str | None:
    """The step with another result of its last statement."""
    derived = [found.gives for found in find_statements(step) if found.uses and found.gives is not None]
    if not derived:
        return None
    value = derived[-1]
    places = [match.start(1) for match in _RESULT.finditer(step) if _value(match[1]) == value]
    if not places:
        return None
    wrong = value + _ERRORS[seed // 64 % len(_ERRORS)]

    def changed(match: re.Match[str]) -> str:
        return _like(match[0], wrong) if _value(match[0]) == value else match[0]

    return step[: places[-1]] + _NUMBER.sub(changed, step[places[-1] :])


def without_step(reasoning: str, answer: str, seed: int) -> str | None:
    """The reasoning without one of the steps on which the answer depends; None when it has a single step."""
    steps = split_steps(reasoning)
    critical = _critical(steps, answer)
    if len(steps) < 2 or not critical:
        return None
    at = critical[seed % len(critical)]
    places = _places(reasoning, steps)
    if at + 1 == len(steps):
        return reasoning[: places[at]].rstrip()
    return reasoning[: places[at]] + reasoning[places[at + 1] :]


def paraphrased(reasoning: str) -> str:
    """The same steps in other words: operators are written out, connectives replaced, the numbers kept."""
    return "\n".join(map(_reworded, split_steps(reasoning)))


def _reworded(step: str) -> str:
    text = step
    for pattern, words in _OPERATORS:
        text = pattern.sub(words, text)
    text = _OPENING.sub(lambda match: _OPENINGS[match[1]], text, count=1) if _OPENING.match(text) else text
    return text if text != step else f"Note: {step}"


def _critical(steps: Sequence[str], answer: str) -> list[int]:
    """The steps that the answer was derived from; all of them when none is known to be superfluous."""
    marked = [Step(text) for text in steps]
    kept = {id(step) for step in compress(marked, answer, "critical")}
    return [at for at, step in enumerate(marked) if id(step) in kept]


def _places(reasoning: str, steps: Sequence[str]) -> list[int]:
    """Where each step begins."""
    places, at = [], 0
    for step in steps:
        places.append(reasoning.index(step, at))
        at = places[-1] + len(step)
    return places


def _value(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def _like(written: str, value: Fraction) -> str:
    """A number in the form of another: with its decimals and separators."""
    decimals = len(written.partition(".")[2])
    comma = "," if "," in written else ""
    return f"{float(value):{comma}.{decimals}f}" if decimals else f"{int(value):{comma}}"
