"""Attempts become traces: answers graded, steps checked, cut-off ones marked."""

from __future__ import annotations

from typing import Any

import pytest

from edge_distill.traces.checking import check, split_answer
from edge_distill.traces.elicitation import Candidate
from edge_distill.traces.trace import parse_line, to_line
from edge_distill_bench.problem import Problem


def candidate(reasoning: str, text: str, **fields: Any) -> Candidate:
    messages = (
        {"role": "user", "content": "How many are 3 boxes of 4?"},
        {"role": "assistant", "content": text, "reasoning_content": reasoning},
    )
    values = {"finish_reason": "stop", "seed": 5, "sampling": {"elicitation": "chain"}, **fields}
    return Candidate(values.pop("messages", messages), reasoning, text, **values)


def problem(answer: str = "12") -> Problem:
    return Problem("boxes-1", "boxes", "How many are 3 boxes of 4?", answer, {"terms": 2})


def test_a_right_attempt() -> None:
    trace = check(candidate("There are 3 boxes.\n3 * 4 = 12", r"\boxed{12}"), problem(), "t")
    assert (trace.answer, trace.gold, trace.correct, trace.seed) == ("12", "12", True, 5)
    assert [step.verdict for step in trace.steps] == ["unknown", "verified"]
    assert trace.verified == ("answer:exact", "steps:checker")
    assert trace.notes == {"problem": "boxes-1", "difficulty": {"terms": 2}}
    assert parse_line(to_line(trace)) == trace


def test_a_wrong_one_with_a_wrong_step() -> None:
    trace = check(candidate("3 * 4 = 11", "The answer is 11."), problem(), "t")
    assert (trace.answer, trace.correct) == ("11", False)
    assert [step.verdict for step in trace.steps] == ["refuted"]


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_what_did_not_end_by_itself_is_marked_and_not_judged(reason: str) -> None:
    trace = check(candidate("3 * 4 = 12", r"\boxed{12}", finish_reason=reason), problem(), "t")
    assert trace.correct is None
    assert trace.answer == ""
    assert trace.notes["finish_reason"] == reason
    assert trace.verified == ("steps:checker",)


def test_math_verify_judges_what_is_no_plain_value() -> None:
    trace = check(candidate("x", r"\boxed{1 + x}"), problem("x + 1"), "t")
    assert trace.correct is True
    assert trace.verified == ("answer:math-verify",)


def test_no_answer_is_wrong() -> None:
    trace = check(candidate("Hm.", ""), problem(), "t")
    assert (trace.answer, trace.correct, trace.verified) == ("", False, ("answer:exact",))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("3 * 4 = 12 pears. The answer is 12.", ("3 * 4 = 12 pears.", "The answer is 12.")),
        ("3 * 4 = 12\n\n\\boxed{12}", ("3 * 4 = 12", "\\boxed{12}")),
        (
            "3 * 4 = 12\nSo it is \\boxed{12}.\nI hope that this helps!",
            ("3 * 4 = 12", "So it is \\boxed{12}.\nI hope that this helps!"),
        ),
        ("3 * 4 = 12\n#### 12", ("3 * 4 = 12", "#### 12")),
        ("12", ("", "12")),
        ("I do not know.", ("", "I do not know.")),
        ("", ("", "")),
        ("12 12 12\n12 12", ("12 12 12", "12 12")),
    ],
)
def test_reasoning_in_the_text_is_told_from_the_answer(text: str, parts: tuple[str, str]) -> None:
    assert split_answer(text) == parts


def test_a_teacher_without_reasoning_of_its_own() -> None:
    trace = check(candidate("", "3 * 4 = 12\nThe answer is 12."), problem(), "t")
    assert trace.reasoning == trace.messages[-1]["reasoning_content"] == "3 * 4 = 12"
    assert trace.messages[-1]["content"] == "The answer is 12."
    assert [step.text for step in trace.steps] == ["3 * 4 = 12"]
    assert parse_line(to_line(trace)) == trace


def test_steps_of_turns_with_tools_come_first() -> None:
    messages = (
        {"role": "user", "content": "How many are 3 boxes of 4?"},
        {"role": "assistant", "content": "I multiply.\ncalculator(3 * 4)"},
        {"role": "tool", "content": "12"},
        {"role": "assistant", "content": r"\boxed{12}", "reasoning_content": "3 * 4 = 12"},
    )
    attempt = candidate("3 * 4 = 12", r"\boxed{12}", messages=messages, verified=("teacher:verification",))
    trace = check(attempt, problem(), "t")
    assert [step.text for step in trace.steps] == ["I multiply.", "calculator(3 * 4)", "3 * 4 = 12"]
    assert trace.verified[0] == "teacher:verification"
    assert trace.messages == messages
