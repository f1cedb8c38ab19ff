"""A reasoning taken apart into steps, each with its verdict and role."""

from __future__ import annotations

import re

from edge_distill.traces.checker import find_statements, step_verdict
from edge_distill.traces.roles import role_of
from edge_distill.traces.trace import Step

__all__ = ["annotate", "split_steps"]

_MAX_STEPS = 10_000
# A sentence ends before white space and a capital or a digit, not after an abbreviation nor after "1."
_SENTENCE = re.compile(
    r"(?<=[.!?])(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\bNo\.)(?<!\bvs\.)(?<!^\d\.)(?<!^\d\d\.)"
    r"\s+(?=[\"'“(*]?[A-Z0-9$€£])"
)


def split_steps(reasoning: str) -> list[str]:
    """The lines of a reasoning, those of several sentences at their ends; each stands in `reasoning` as it is."""
    lines = (line.strip() for line in reasoning.splitlines())
    steps = [part for line in lines if line for part in _SENTENCE.split(line)]
    if len(steps) > _MAX_STEPS:
        steps = [*steps[: _MAX_STEPS - 1], "\n".join(steps[_MAX_STEPS - 1 :])]
    return steps


def annotate(reasoning: str) -> tuple[Step, ...]:
    """The steps of a reasoning, checked and with their roles."""
    steps = []
    for text in split_steps(reasoning):
        statements = find_statements(text)
        verdict = step_verdict(statements)
        steps.append(Step(text, role_of(text, verdict, statements), verdict))
    return tuple(steps)
