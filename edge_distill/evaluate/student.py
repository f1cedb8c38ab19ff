"""A student that is being evaluated: its model, and every answer that it gave, kept in files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from edge_distill_bench.answering import Row, answer_items
from edge_distill_bench.problem import Problem
from edge_distill_export.progress import stage
from edge_distill_runtime import Model
from edge_distill_runtime.errors import InputError
from edge_distill_runtime.generation.options import GenerationOptions
from edge_distill_runtime.reasoning.answers import UNPARSED, normalize_answer
from edge_distill_runtime.text.chat import ReasoningMarkers, ReasoningParser, render

__all__ = ["Student", "same_answer"]

_ANSWER_TOKENS = 128  # of an answer whose reasoning stands there already


@dataclass(frozen=True)
class Student:
    """A loaded student; all it says is greedy. `folder` holds a file of rows for each condition."""

    name: str
    model: Model
    folder: Path
    max_tokens: int
    at_once: int

    def ask(
        self,
        condition: str,
        problems: Sequence[Problem],
        prompt: Callable[[Problem], str] = lambda problem: problem.problem,
        **options: Unpack[GenerationOptions],
    ) -> dict[str, Row]:
        """The graded answers by problem; those that `folder` holds from an earlier run are not asked again."""
        asked: GenerationOptions = {"max_tokens": self.max_tokens, "temperature": 0.0, **options}
        with stage(f"{self.name}: {condition}", len(problems)) as advance:
            counted = 0

            def progress(done: int) -> None:
                nonlocal counted
                advance(done - counted)
                counted = done

            rows = answer_items(
                self.model,
                problems,
                prompt=prompt,
                # a bare file has no manifest of hashes
                model_hash=None if self.model.manifest.files else self.model.model_hash,
                rows=self.folder / f"{condition}.jsonl",
                at_once=self.at_once,
                progress=progress,
                **asked,
            )
        return {row.id: row for row in rows}

    def ask_after(
        self, condition: str, problems: Sequence[Problem], reasoning: Callable[[Problem], str]
    ) -> dict[str, Row]:
        """The answers behind a reasoning that is given, and closed."""
        return self.ask(
            condition,
            problems,
            lambda problem: self._inside(problem, reasoning(problem)),
            raw=True,
            thinking=False,
            thinking_budget=0,  # the runtime then asks for the answer, should there be none
            max_tokens=min(_ANSWER_TOKENS, self.max_tokens),
        )

    def go_on(
        self, condition: str, problems: Sequence[Problem], reasoning: Callable[[Problem], str]
    ) -> dict[str, Row]:
        """The answers after a reasoning whose beginning is given, and which goes on."""
        return self.ask(
            condition, problems, lambda problem: self._inside(problem, reasoning(problem)), raw=True
        )

    @property
    def markers(self) -> ReasoningMarkers | None:
        """None: its reasoning cannot be told from its answer, nor be given."""
        return self.model.manifest.reasoning

    def split(self, row: Row) -> tuple[str, str]:
        """Reasoning and answer of what it said to a problem."""
        inside = self.markers is not None and self._prompt("x").rstrip().endswith(self.markers.open)
        parser = ReasoningParser(self.markers, inside=inside)
        pieces = parser.feed(row.text) + parser.finish()
        reasoning = "".join(piece.text for piece in pieces if piece.kind == "reasoning").strip("\n")
        return reasoning, "".join(piece.text for piece in pieces if piece.kind == "answer").strip("\n")

    def _prompt(self, problem: str) -> str:
        chat = self.model.chat
        return problem if chat is None else render(chat, [{"role": "user", "content": problem}])

    def _inside(self, problem: Problem, reasoning: str) -> str:
        """The prompt with the reasoning behind it, opened as the student does."""
        if self.markers is None:
            raise InputError(
                "no-markers", f"{self.name} has no reasoning markers", "its reasoning cannot be given"
            )
        text = self._prompt(problem.problem)
        if not text.rstrip().endswith(self.markers.open):
            text += self.markers.open
        return text + ("" if text.endswith("\n") else "\n") + reasoning


def same_answer(one: str, other: str) -> bool:
    """Whether two answers that were read say the same; no answer is like nothing."""
    first, second = normalize_answer(one), normalize_answer(other)
    return first == second != UNPARSED
