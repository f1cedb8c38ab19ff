"""Chain-of-verification of the teacher (Dhuliawala et al. 2023, arXiv:2309.11495), factored.

The teacher asks questions that check its draft, answers each one without sight of the draft, and solves the problem
again with those checks before it. Prompts and parsing are those of the runtime's `verify_answer`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from edge_distill.traces.elicitation import Candidate, Elicit, described
from edge_distill.traces.rounds import Ask, Talk, advance, derived_seed
from edge_distill.traces.teachers.teacher import Request, Sampling, Teacher, Written
from edge_distill_bench.problem import Problem
from edge_distill_runtime.errors import InputError
from edge_distill_runtime.reasoning.answers import UNPARSED, parse_answer
from edge_distill_runtime.reasoning.verification import (
    CHECK,
    PLAN,
    Check,
    answers_differ,
    parse_questions,
    revision_prompt,
)

__all__ = ["verified"]

_MOST_QUESTIONS = 32
_AT_ONCE = 64  # problems: their drafts are complete before any of them is checked


def verified(elicit: Elicit, *, sampling: Sampling, questions: int = 4) -> Elicit:
    """The attempts of `elicit`, each checked by the teacher, and revised where its answer changes.

    A draft that keeps its answer is kept word for word; a revised one has the reasoning of the revision. Both carry
    "teacher:verification" in `verified`, and `notes["verification"]` says what happened: `outcome` is "confirmed",
    "revised", or why the draft was not checked ("no-questions", "no-answer", "unfinished"), with the questions and
    their answers, and the draft's answer when it was revised. Drafts that cannot be used are left as they are.

    Raises `InputError` unless 1 to 32 questions are asked for.
    """
    if not 1 <= questions <= _MOST_QUESTIONS:
        raise InputError(
            "bad-questions", f"{questions} questions were asked for", f"ask for 1 to {_MOST_QUESTIONS}"
        )

    def elicit_verified(
        problems: Sequence[Problem], teacher: Teacher
    ) -> Iterator[tuple[int, list[Candidate]]]:
        for first in range(0, len(problems), _AT_ONCE):
            part = problems[first : first + _AT_ONCE]
            for index, candidates in _checked(
                part, dict(elicit(part, teacher)), teacher, sampling, questions
            ):
                yield first + index, candidates

    return elicit_verified


def _checked(
    problems: Sequence[Problem],
    drafts: dict[int, list[Candidate]],
    teacher: Teacher,
    sampling: Sampling,
    questions: int,
) -> Iterator[tuple[int, list[Candidate]]]:
    """All drafts side by side; a problem comes when the last of its own is checked."""
    yield from ((index, found) for index, found in drafts.items() if not found)
    places = [(index, at) for index, found in drafts.items() for at in range(len(found))]
    talks = (_verify(problems[index], drafts[index][at], sampling, questions) for index, at in places)
    results: dict[int, dict[int, Candidate]] = {index: {} for index in drafts}
    for number, candidate in advance(talks, teacher):
        index, at = places[number]
        results[index][at] = candidate
        if len(results[index]) == len(drafts[index]):
            yield index, [results[index][at] for at in range(len(drafts[index]))]


def _verify(problem: Problem, draft: Candidate, sampling: Sampling, questions: int) -> Talk[Candidate]:
    how = described("verification", sampling, questions=questions)
    draft = replace(draft, sampling={**draft.sampling, "verification": how})
    if draft.finish_reason != "stop":
        return draft
    return (yield from _Verifier(problem, draft, sampling).run(questions))


class _Verifier:
    def __init__(self, problem: Problem, draft: Candidate, sampling: Sampling) -> None:
        self._problem, self._draft, self._sampling = problem, draft, sampling
        self._working = f"{draft.reasoning.strip()}\n{draft.text}".strip()
        self._checks: list[Check] = []

    def run(self, count: int) -> Talk[Candidate]:
        plan = PLAN.format(problem=self._problem.problem, draft=self._working, count=count)
        (written,) = yield [self._ask(plan, "plan")]
        if not written.is_usable:
            return self._kept("unfinished", written)
        questions = parse_questions(written.text, count)
        if not questions:
            return self._kept("no-questions")
        answers = yield [
            self._ask(CHECK.format(problem=self._problem.problem, question=question), "check", i)
            for i, question in enumerate(questions)
        ]
        self._checks = [
            Check(question, answer.text.strip() if answer.is_usable else "")
            for question, answer in zip(questions, answers, strict=True)
        ]
        prompt = revision_prompt(self._problem.problem, self._working, self._checks)
        (revision,) = yield [self._ask(prompt, "revision")]
        return self._judged(revision)

    def _ask(self, prompt: str, *place: str | int) -> Ask:
        seed = derived_seed(self._draft.seed, self._problem.id, "verification", *place)
        return Ask(
            Request(({"role": "user", "content": prompt},), seed, problem=self._problem), self._sampling
        )

    def _judged(self, revision: Written) -> Candidate:
        if not revision.is_usable:
            return self._kept("unfinished", revision)
        if parse_answer(revision.text) == UNPARSED:
            return self._kept("no-answer")
        if not answers_differ(self._draft.text, revision.text):
            return self._result(self._draft, "confirmed")
        # not behind the turns of tools, which led to another answer
        messages = (
            {"role": "user", "content": self._problem.problem},
            {"role": "assistant", "content": revision.text, "reasoning_content": revision.reasoning},
        )
        revised = replace(self._draft, messages=messages, reasoning=revision.reasoning, text=revision.text)
        return self._result(revised, "revised", draft=self._draft.text)

    def _kept(self, outcome: str, written: Written | None = None) -> Candidate:
        """The draft, which nothing has confirmed."""
        error = {"error": written.error} if written and written.error else {}
        return replace(self._result(self._draft, outcome, **error), verified=self._draft.verified)

    def _result(self, candidate: Candidate, outcome: str, **more: str) -> Candidate:
        checks = [{"question": check.question, "answer": check.answer} for check in self._checks]
        found: dict[str, Any] = {"outcome": outcome, "checks": checks, **more}
        return replace(
            candidate,
            notes={**candidate.notes, "verification": found},
            verified=(*candidate.verified, "teacher:verification"),
        )
