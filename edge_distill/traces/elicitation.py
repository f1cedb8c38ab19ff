"""Ways to get reasoning out of a teacher: what they return, and the plain one, a question and its samples.

An elicitation gets all the problems at once, so that a teacher may answer many of them side by side, and hands each
problem back as soon as all its attempts have ended. What it asks depends on the problems, its own settings and the
answers only, never on the order in which they come: so an interrupted run that has the answers goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge_distill.traces.teachers.teacher import Request, Sampling, Teacher, Written
from edge_distill.traces.trace import answer_turn
from edge_distill_bench.problem import Problem

__all__ = ["Candidate", "Elicit", "Scorer", "candidate_of", "described", "draw"]


@dataclass(frozen=True)
class Candidate:
    """One complete attempt at one problem.

    `messages` are what a student may learn from: the problem's turn, turns of tools, and last the assistant's with
    `reasoning` in its `reasoning_content`; exemplars and instructions for the teacher are not among them.
    """

    messages: tuple[dict[str, str], ...]
    reasoning: str
    text: str
    """The answer's text, the last message's content."""
    finish_reason: str
    """Only "stop" is usable."""
    seed: int
    sampling: dict[str, Any]
    """What goes into `Trace.sampling`: elicitation, temperature, exemplars, ...: all that was known beforehand."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What came out, for `Trace.notes`: size of the tree, tool calls, error, ..."""
    verified: tuple[str, ...] = ()
    """How the elicitation has checked it itself, for `Trace.verified`: ("teacher:verification",)."""


Elicit = Callable[[Sequence[Problem], Teacher], Iterator[tuple[int, list[Candidate]]]]
"""Problems and a teacher in; a problem's index and its attempts out, each problem once, in any order.

A factory that returns one takes keywords: `sampling`, and `seed`, the first sample's; sample i takes seed + i.
"""

Scorer = Callable[[str, Sequence[str]], float]
"""How good the steps of a problem are so far, from 0 to 1."""


def described(elicitation: str, sampling: Sampling, **more: Any) -> dict[str, Any]:
    """`Candidate.sampling` of an elicitation: its name, the sampling, and what else steers it, in JSON's types."""
    values = {"temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_tokens}
    stop = {"stop": list(sampling.stop)} if sampling.stop else {}
    return {"elicitation": elicitation, **values, **stop, **more}


def candidate_of(request: Request, written: Written, problem: Problem, sampling: dict[str, Any]) -> Candidate:
    """The attempt that a single answer is."""
    messages = (
        {"role": "user", "content": problem.problem},
        answer_turn(written.text, written.reasoning),
    )
    notes = {"error": written.error} if written.error else {}
    return Candidate(
        messages, written.reasoning, written.text, written.finish_reason, request.seed, sampling, notes
    )


def draw(
    requests: Sequence[Sequence[Request]],
    teacher: Teacher,
    sampling: Sampling,
) -> Iterator[tuple[int, list[Written]]]:
    """Ask groups of requests all at once; a group's index and its answers, in its order, when the last one is there."""
    places = [(group, place) for group, members in enumerate(requests) for place in range(len(members))]
    answers: list[dict[int, Written]] = [{} for _ in requests]
    flat = [requests[group][place] for group, place in places]
    for at, written in teacher.write(flat, sampling):
        group, place = places[at]
        answers[group][place] = written
        if len(answers[group]) == len(requests[group]):
            yield group, [answers[group][place] for place in range(len(requests[group]))]
