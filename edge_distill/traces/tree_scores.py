"""How good the steps of a problem are so far: by the step checker, a process reward model, or the teacher itself."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from edge_distill.traces.checker import check_step
from edge_distill.traces.elicitation import Scorer
from edge_distill.traces.rounds import Ask, Talk, derived_seed
from edge_distill.traces.teachers.teacher import Request, Sampling, Written
from edge_distill_bench.problem import Problem
from edge_distill_runtime.errors import InputError

__all__ = ["Score", "by_scorer", "by_teacher", "checker_score"]

Score = Callable[[Problem, Sequence[tuple[str, ...]]], Talk[list[float]]]
"""A problem and several beginnings of a reasoning in; a number from 0 to 1 for each out."""

RATE = """Problem: {problem}

Steps so far:
{steps}

How likely is it that these steps are right and lead to the answer?
Write only a number, from 0 (impossible) to 10 (sure)."""

_UNCHECKED = 0.9  # for a step that cannot be checked: of two paths the one that can be goes first
_UNRATED = 0.5
_RATING = re.compile(r"(?<![\w.-])(\d{1,2}(?:\.\d{1,3})?)(?:\s*/\s*10)?(?![\w.]*\d)")


def checker_score(problem: str, steps: Sequence[str]) -> float:
    """0 when the checker refutes a step, else 0.9 to the power of how many it cannot check."""
    verdicts = [check_step(step) for step in steps]
    return 0.0 if "refuted" in verdicts else _UNCHECKED ** verdicts.count("unknown")


def by_scorer(scorer: Scorer) -> Score:
    """The score of a function; `InputError` for one that is no number from 0 to 1."""

    def score(problem: Problem, paths: Sequence[tuple[str, ...]]) -> Talk[list[float]]:
        yield from ()  # nothing is asked
        values = [float(scorer(problem.problem, steps)) for steps in paths]
        for value in values:
            if not 0 <= value <= 1 or math.isnan(value):
                raise InputError("bad-score", f"a scorer gave {value}", "it must be from 0 to 1")
        return values

    return score


def by_teacher(sampling: Sampling, seed: int) -> Score:
    """The teacher's own rating, greedily; 0.5 when none can be read."""
    greedy = replace(sampling, temperature=0.0)

    def score(problem: Problem, paths: Sequence[tuple[str, ...]]) -> Talk[list[float]]:
        asks = []
        for steps in paths:
            prompt = RATE.format(problem=problem.problem, steps="\n".join(steps))
            messages = ({"role": "user", "content": prompt},)
            request = Request(messages, derived_seed(seed, problem.id, steps, "rating"), problem=problem)
            asks.append(Ask(request, greedy))
        answers = (yield asks) if asks else []
        return [_rating(answer) for answer in answers]

    return score


def _rating(written: Written) -> float:
    match = _RATING.search(written.text) if written.is_usable else None
    return min(1.0, float(match[1]) / 10) if match else _UNRATED
