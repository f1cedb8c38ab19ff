"""Chain-of-verification (Dhuliawala et al. 2023, arXiv:2309.11495), factored.

The model asks questions that check a draft, answers each one without sight of the draft, so that it cannot
repeat its mistake, and then writes the answer again with those checks before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Unpack

from edge_distill_runtime.errors import InputError
from edge_distill_runtime.reasoning.answers import UNPARSED, parse_answer
from edge_distill_runtime.reasoning.prompting import (
    Conversation,
    Interrupted,
    PlainText,
    Speaker,
    last_message,
)

if TYPE_CHECKING:
    from edge_distill_runtime.generation.options import GenerationOptions
    from edge_distill_runtime.generation.result import Generation
    from edge_distill_runtime.text.chat import Message, Prompt

__all__ = ["Check", "Verification", "answers_differ", "parse_questions", "revision_prompt", "verify_answer"]

Outcome = Literal["revised", "no-questions", "no-answer", "context", "cancelled", "deadline"]

PLAN = """Problem: {problem}

Draft answer: {draft}

Write {count} short questions that check the facts and the numbers of the draft answer. Write one question per line."""
CHECK = """{problem}

Do not solve all of it. Answer only this question, in one sentence: {question}"""
REVISE = """Problem: {problem}

Draft answer: {draft}

Checks:
{checks}

Compare the draft answer with the checks and correct its mistakes. Then solve the problem and write the final answer."""

_MOST_QUESTIONS = 32
_LONGEST_QUESTION = 300  # characters
_NUMBERING = re.compile(
    r"^[\s>*_#-]*(?:(?:Q|Question)?\s?\(?\d{1,3}[.):]+|(?:Q|Question)\s?:|[•–—])?[\s*_]*", re.I
)


@dataclass(frozen=True)
class Check:
    """A question about the draft, and what the model answered without seeing the draft."""

    question: str
    answer: str
    """Empty when it gave none."""


@dataclass(frozen=True)
class Verification:
    """A draft, its checks, and the answer after them."""

    draft: str
    checks: tuple[Check, ...]
    revised: str
    """The draft again when the outcome is not `revised`."""
    changed: bool
    """Whether the final answer in the revised text says something else than that in the draft."""
    outcome: Outcome
    """`revised`, or why the draft was kept. `no-questions`: none could be read. `no-answer`: the revision had none.
    `context`: the prompt did not fit. `cancelled`, `deadline`: as in a generation."""
    tokens: int
    """Generated over all steps, reasoning included; those of the draft are not counted."""
    revision: Generation | None = None
    """The generation that the revised answer comes from."""


def verify_answer(
    model: Speaker,
    problem: Prompt,
    draft: Generation | str,
    *,
    max_questions: int = 4,
    **options: Unpack[GenerationOptions],
) -> Verification:
    """Check `draft`, an answer to `problem`, and correct it.

    Takes up to `max_questions` + 2 generations, with `options` as in `generate`; generation i uses `seed` + i, and
    the deadline holds for all together. An `answer_format` holds for the revised answer only.
    """
    if not 1 <= max_questions <= _MOST_QUESTIONS:
        raise InputError(
            "bad-max-questions", f"max_questions is {max_questions}", f"ask for 1 to {_MOST_QUESTIONS}"
        )
    answer = draft if isinstance(draft, str) else draft.answer
    working = draft if isinstance(draft, str) else f"{draft.reasoning.strip()}\n{draft.answer}".strip()
    return _Verifier(model, problem, answer, working, options).run(max_questions)


class _Verifier:
    def __init__(
        self, model: Speaker, problem: Prompt, answer: str, working: str, options: GenerationOptions
    ) -> None:
        self._conversation = Conversation(model, options)
        self._plain = PlainText(model)
        self._earlier, self._problem = last_message(problem)
        self._answer = answer
        self._working = self._plain(working)
        self._checks: list[Check] = []

    def run(self, max_questions: int) -> Verification:
        try:
            questions = self._questions(max_questions)
            if not questions:
                return self._kept("no-questions")
            for question in questions:
                self._checks.append(self._check(question))
            return self._revised()
        except Interrupted as exc:
            return self._kept(exc.reason)

    def _questions(self, count: int) -> list[str]:
        prompt = PLAN.format(problem=self._problem, draft=self._working, count=count)
        plan = self._conversation.ask(self._messages(prompt), answer_format=None)
        return parse_questions(self._plain(plan.answer), count)

    def _check(self, question: str) -> Check:
        prompt = CHECK.format(problem=self._problem, question=question)
        reply = self._conversation.ask(self._messages(prompt), answer_format=None)
        return Check(question, self._plain(reply.answer).strip())

    def _revised(self) -> Verification:
        prompt = revision_prompt(self._problem, self._working, self._checks)
        revision = self._conversation.ask(self._messages(prompt))
        revised = revision.answer.strip()
        if not revised:
            return self._kept("no-answer")
        return self._result(revised, answers_differ(self._answer, revised), "revised", revision)

    def _kept(self, outcome: Outcome) -> Verification:
        return self._result(self._answer, False, outcome, None)

    def _result(
        self, revised: str, changed: bool, outcome: Outcome, revision: Generation | None
    ) -> Verification:
        tokens = self._conversation.tokens
        return Verification(self._answer, tuple(self._checks), revised, changed, outcome, tokens, revision)

    def _messages(self, prompt: str) -> list[Message]:
        return [*self._earlier, {"role": "user", "content": prompt}]


def revision_prompt(problem: str, draft: str, checks: Sequence[Check]) -> str:
    """What asks for the answer again, with the checks of the draft before it."""
    answered = "\n".join(f"Q: {check.question}\nA: {check.answer}" for check in checks)
    return REVISE.format(problem=problem, draft=draft, checks=answered)


def answers_differ(draft: str, revised: str) -> bool:
    """Whether two texts end in different answers; without any, whether they are different texts."""
    first, second = parse_answer(draft), parse_answer(revised)
    if first == second == UNPARSED:
        return draft.casefold().split() != revised.casefold().split()
    return first != second


def parse_questions(text: str, count: int) -> list[str]:
    """The lines that are questions, without numbers and bullets, each one once."""
    questions: dict[str, str] = {}
    for line in text.splitlines():
        question = _NUMBERING.sub("", line.strip(), count=1)
        question = question[: question.rfind("?") + 1].strip()  # what stands behind it may be an answer
        if len(question) <= _LONGEST_QUESTION and any(map(str.isalnum, question)):
            questions.setdefault(" ".join(question.casefold().split()), question)
    return list(questions.values())[:count]
