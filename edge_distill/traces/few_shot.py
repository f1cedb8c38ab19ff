"""Worked examples that show a teacher the form: which ones, chosen the same way in every run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from edge_distill.traces.solvers import SOLVERS, solve
from edge_distill_bench.problem import Problem, text_hash
from edge_distill_bench.tasks import load_problems
from edge_distill_runtime.errors import InputError

__all__ = ["Exemplar", "ExemplarPool", "choose_exemplars", "question"]

_SEED = 999  # the last seed of generated tasks: other problems than those of a run, mostly
_HASHES = re.compile(r"^####[^\n]*\s*\Z", re.MULTILINE)


@dataclass(frozen=True)
class Exemplar:
    """A problem of the training split and how it is solved."""

    id: str
    problem: str
    reasoning: str
    answer: str

    @property
    def turns(self) -> tuple[dict[str, str], ...]:
        """Question and worked answer; the reasoning stands in the text, for chat templates drop it elsewhere."""
        answer = f"{self.reasoning}\n\\boxed{{{self.answer}}}"
        return {"role": "user", "content": self.problem}, {"role": "assistant", "content": answer}


@dataclass(frozen=True)
class ExemplarPool:
    """`count` exemplars for every problem, and one in reserve: a problem is never shown its own solution."""

    exemplars: tuple[Exemplar, ...] = ()
    count: int = 0

    def of(self, problem: Problem) -> tuple[Exemplar, ...]:
        """Those that a problem is asked with, in their order."""
        own = text_hash(problem.problem)
        others = [exemplar for exemplar in self.exemplars if text_hash(exemplar.problem) != own]
        return tuple(others[: self.count])


def question(problem: Problem, exemplars: Sequence[Exemplar]) -> tuple[dict[str, str], ...]:
    """The conversation that asks a problem after its exemplars; without any, the problem alone."""
    shown = [turn for exemplar in exemplars for turn in exemplar.turns]
    return (*shown, {"role": "user", "content": problem.problem})


def choose_exemplars(source: str, count: int, *, curated: bool = False) -> ExemplarPool:
    """`count` exemplars from the training split of a source of problems, whatever the seed of the run is.

    A file's or data set's are ranked by a hash of their ids; of a `curated` file the first ones are taken. Fit is a
    problem that a solver knows or that comes with its solution. Raises `InputError` when there are too few.
    """
    if count < 0:
        raise InputError("bad-few-shot", f"{count} exemplars were asked for", "it must be 0 or more")
    if not count:
        return ExemplarPool()
    found = [exemplar for problem in _problems(source, count + 1, curated) if (exemplar := _worked(problem))]
    wanted = count if curated else count + 1
    if len(found) < wanted:
        raise InputError(
            "too-few-exemplars",
            f"{source} has {len(found)} problems with a solution, {count} exemplars take {wanted}",
            "ask for fewer, or name a file with problem, solution and answer by --exemplars",
        )
    return ExemplarPool(tuple(found[: count + 1]), count)


def _problems(source: str, count: int, curated: bool) -> list[Problem]:
    if source.startswith("task:"):
        return load_problems(source, split="train", count=count, seed=_SEED)
    if curated:
        return load_problems(source, split="all")
    problems = load_problems(source, split="train", on_bad_line=lambda _: None)
    return sorted(problems, key=lambda problem: hashlib.sha256(problem.id.encode()).digest())


def _worked(problem: Problem) -> Exemplar | None:
    if problem.task in SOLVERS:
        metadata = {} if problem.solution is None else {"answer_cot": problem.solution}
        try:
            reasoning = solve(problem.task, problem.problem, metadata).reasoning
        except InputError:  # another wording, from a file of that name
            reasoning = problem.solution or ""
    else:
        reasoning = problem.solution or ""
    reasoning = _HASHES.sub("", reasoning).strip()
    return Exemplar(problem.id, problem.problem, reasoning, problem.answer) if reasoning else None
