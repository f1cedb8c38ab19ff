"""ReAct (Yao et al. 2022, arXiv:2210.03629): the teacher thinks, calls tools, reads what they say, and answers.

Prompts, parsing and tools are those of the runtime's `run_tools`, so that a student learns the form in which it is
asked later. What a tool says is a user's turn of the trace, which the training masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from edge_distill.traces.elicitation import Candidate, Elicit, described
from edge_distill.traces.rounds import Ask, Talk, advance, derived_seed, plain_text
from edge_distill.traces.teachers.teacher import Request, Sampling, Teacher, Written
from edge_distill_bench.problem import Problem
from edge_distill_runtime.errors import InputError
from edge_distill_runtime.reasoning.calculator import calculate
from edge_distill_runtime.reasoning.functions import Tool, ToolFunction, tools_by_name
from edge_distill_runtime.reasoning.tools import STOP, Reply, exchange, observe, opening, parse_reply
from edge_distill_runtime.text.chat import Message

__all__ = ["react"]

_MOST_CALLS = 100


def react(
    *,
    sampling: Sampling,
    seed: int = 0,
    tools: Sequence[Tool] = (calculate,),
    max_calls: int = 8,
) -> Elicit:
    """One trace of each problem, worked out with Python functions as tools.

    The trace's first turn describes the tools and holds the problem; then come, turn about, what the teacher wrote up
    to its action and what it was told; last the answer. What it makes up after an action, be it an observation of its
    own, is dropped. After `max_calls` it must answer. Tools run with the rights of this process, and must give the
    same for the same argument, or a run that is resumed asks other things.

    Raises `InputError` for a function that cannot be a tool, and a number outside of 1 to 100.
    """
    if not 1 <= max_calls <= _MOST_CALLS:
        raise InputError("bad-max-calls", f"max_calls is {max_calls}", f"it must be from 1 to {_MOST_CALLS}")
    named = tools_by_name(tools)
    how = described("react", sampling, tools=list(named), max_calls=max_calls)
    stopping = replace(sampling, stop=(*sampling.stop, STOP))

    def talk(problem: Problem) -> Talk[Candidate]:
        messages, written, reply, notes = yield from _run(problem, named, stopping, seed, max_calls)
        last = messages[-1]
        reason = written.finish_reason if reply.answer or not written.is_usable else "length"
        return Candidate(messages, last["reasoning_content"], last["content"], reason, seed, how, notes)

    def elicit(problems: Sequence[Problem], teacher: Teacher) -> Iterator[tuple[int, list[Candidate]]]:
        for index, candidate in advance(map(talk, problems), teacher):
            yield index, [candidate]

    return elicit


def _run(
    problem: Problem, tools: dict[str, ToolFunction], sampling: Sampling, seed: int, max_calls: int
) -> Talk[tuple[tuple[dict[str, str], ...], Written, Reply, dict[str, Any]]]:
    """The loop: the trace's messages, the last that was written and what it says, notes."""
    start, turns = opening(tools, problem.problem), list[Message]()
    notes: dict[str, Any] = {"tool_calls": 0, "tool_errors": 0}
    for call in range(max_calls + 1):
        asked = tuple(dict(turn) for turn in (*start, *turns))
        request = Request(asked, derived_seed(seed, problem.id, "react", call), problem=problem)
        (written,) = yield [Ask(request, sampling)]
        reply = parse_reply(written.text, last=call == max_calls)
        if reply.answer is not None or not written.is_usable:
            break
        observation = observe(tools, reply, plain_text)
        notes["tool_calls"] += bool(reply.action)
        notes["tool_errors"] += observation.startswith("Error:")
        turns += exchange(reply.text, observation, last=call == max_calls - 1)
    if written.error:
        notes["error"] = written.error
    # the example before the task served the teacher
    messages = tuple(dict(turn) for turn in (start[-1], *turns, _final(written, reply)))
    return messages, written, reply, notes


def _final(written: Written, reply: Reply) -> dict[str, str]:
    """The last turn: what the teacher thought, by itself or in words, and the answer as it was asked for."""
    thought = f"Thought: {reply.thought}" if reply.thought else ""
    answer = f"Final Answer: {reply.answer}" if reply.marked and reply.answer else reply.answer or ""
    reasoning = "\n".join(part for part in (written.reasoning.strip(), thought) if part)
    return {"role": "assistant", "content": answer, "reasoning_content": reasoning}
