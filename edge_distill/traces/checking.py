"""From an attempt to a trace: steps found, checked and tagged, the answer graded, and how all that was done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge_distill.traces.elicitation import Candidate
from edge_distill.traces.steps import annotate, split_steps
from edge_distill.traces.trace import Step, Trace, answer_turn
from edge_distill_bench.grading import Grade, grade
from edge_distill_bench.problem import Problem
from edge_distill_runtime.reasoning.answers import extract_answer, normalize_answer

__all__ = ["check", "split_answer"]

_MAX_TRIED = 20  # last steps of a text that may belong to its answer


def check(candidate: Candidate, problem: Problem, teacher: str) -> Trace:
    """The trace of an attempt.

    One that did not end by itself keeps `correct` None and its finish reason in `notes`: it is never used. `verified`
    names what has judged it: "answer:exact" or "answer:math-verify", and "steps:checker" where that read a step.
    Raises `MissingExtra` when an answer takes math-verify and there is none.
    """
    reasoning, text = candidate.reasoning, candidate.text
    if not reasoning.strip():
        reasoning, text = split_answer(text)
    messages = (*candidate.messages[:-1], answer_turn(text, reasoning))
    steps = _steps(messages[:-1], reasoning)
    whole = candidate.finish_reason == "stop"
    extracted = extract_answer(text) if whole else None
    graded = grade(text, problem.answer) if whole else None
    return Trace(
        task=problem.task,
        problem=problem.problem,
        messages=messages,
        reasoning=reasoning,
        answer=extracted.raw if extracted else "",
        steps=steps,
        gold=problem.answer,
        correct=_is_right(graded),
        teacher=teacher,
        sampling=candidate.sampling,
        seed=candidate.seed,
        verified=(*candidate.verified, *_checks(graded, steps)),
        notes=_notes(candidate, problem, graded),
    )


def split_answer(text: str) -> tuple[str, str]:
    """Reasoning and answer of a text that holds both: the answer is as many of the last steps as it takes to read it.

    "3 * 4 = 12 pears. The answer is 12." -> ("3 * 4 = 12 pears.", "The answer is 12.")
    """
    whole = extract_answer(text)
    if whole is None:
        return "", text
    end = len(text)
    for step in reversed(split_steps(text)[-_MAX_TRIED:]):
        end = text.rindex(step, 0, end)
        found = extract_answer(text[end:])
        if found and normalize_answer(found.raw) == normalize_answer(whole.raw):
            return text[:end].strip(), text[end:].strip()
    return "", text


def _steps(before: Sequence[dict[str, str]], reasoning: str) -> tuple[Step, ...]:
    """The steps in the order of the text: of the turns that called tools, then of the reasoning."""
    acting = [turn["content"] for turn in before if turn["role"] == "assistant"]
    return tuple(step for part in (*acting, reasoning) for step in annotate(part))


def _is_right(graded: Grade | None) -> bool | None:
    if graded is None or graded.reason:  # cut off, or the judge hung
        return None
    return graded.verdict == "right"


def _checks(graded: Grade | None, steps: tuple[Step, ...]) -> tuple[str, ...]:
    checks = []
    if graded and not graded.reason:
        checks.append(f"answer:{graded.judge}")
    if any(step.verdict != "unknown" for step in steps):
        checks.append("steps:checker")
    return tuple(checks)


def _notes(candidate: Candidate, problem: Problem, graded: Grade | None) -> dict[str, Any]:
    notes: dict[str, Any] = {"problem": problem.id, "difficulty": problem.difficulty, **candidate.notes}
    if candidate.finish_reason != "stop":
        notes["finish_reason"] = candidate.finish_reason
    if graded and graded.reason:
        notes["ungraded"] = graded.reason
    return notes
