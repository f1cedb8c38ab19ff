"""The ways of asking that the command line names, each made for one round of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edge_distill.traces.chain_of_verification import verified
from edge_distill.traces.elicitation import Candidate, Elicit
from edge_distill.traces.few_shot import ExemplarPool
from edge_distill.traces.react import react
from edge_distill.traces.selection import ScorerName, TraceScorer
from edge_distill.traces.self_consistency import self_consistency
from edge_distill.traces.teachers.solver import SolverTeacher
from edge_distill.traces.teachers.teacher import Sampling, Teacher
from edge_distill.traces.tree import Search, tree_of_thoughts
from edge_distill_bench.problem import Problem
from edge_distill_runtime.errors import InputError

__all__ = ["Way", "WayName", "repeated"]

WayName = Literal["chain", "tree", "react"]


@dataclass(frozen=True)
class Way:
    """How problems are asked: `samples` attempts in a round, each with a seed of its own."""

    name: WayName = "chain"
    samples: int = 1
    sampling: Sampling = Sampling()  # noqa: RUF009 - frozen
    seed: int = 0
    exemplars: ExemplarPool = ExemplarPool()  # noqa: RUF009 - frozen
    verify: bool = False
    search: Search = "breadth"
    scorer: ScorerName | TraceScorer = "checker"
    """Of a tree's steps; a reward model also chooses among samples and weighs their votes, whatever the way."""
    refutation: bool = False

    @property
    def trace_scorer(self) -> TraceScorer | None:
        return None if isinstance(self.scorer, str) else self.scorer

    def check(self, teacher: Teacher) -> None:
        """What cannot work, before anything is asked; raises `InputError`."""
        solver = teacher.name == SolverTeacher.name
        if self.samples < 1:
            raise InputError("bad-samples", f"{self.samples} samples", "it must be at least 1")
        if self.samples > 1 and self.sampling.temperature == 0:
            raise InputError(
                "bad-temperature", f"{self.samples} samples at temperature 0 are all the same", "raise it"
            )
        if solver and (self.name != "chain" or self.verify):
            what = "--verify" if self.verify else f"--elicit {self.name}"
            raise InputError(
                "unfit-teacher", f"a solver cannot do {what}", "name a language model as teacher"
            )
        if self.name == "react" and self.exemplars.count:
            raise InputError("unused-few-shot", "--elicit react takes no exemplars", "leave --few-shot out")
        if self.name != "tree" and (self.search != "breadth" or self.scorer == "teacher" or self.refutation):
            raise InputError(
                "unused-tree-option",
                f"--elicit {self.name} grows no tree",
                "leave --search, --scorer teacher and --refutation out, or say --elicit tree",
            )
        self.elicitation(0)  # the ways refuse what they cannot do

    def rounds(self, teacher: Teacher, tries: int) -> int:
        """So many rounds make sense: one, where every round would bring the same."""
        always_same = teacher.name == SolverTeacher.name or self.sampling.temperature == 0
        return 1 if always_same else tries

    def elicitation(self, turn: int) -> Elicit:
        """The way for a round, the first one is 0; no two rounds share a seed."""
        first = self.seed + turn * self.samples
        elicit = self._drafts(range(first, first + self.samples))
        elicit = verified(elicit, sampling=self.sampling) if self.verify else elicit
        return _with_scorer(elicit, self.trace_scorer.name) if self.trace_scorer else elicit

    def _drafts(self, seeds: range) -> Elicit:
        if self.name == "chain":
            return self_consistency(
                samples=self.samples, sampling=self.sampling, seed=seeds[0], exemplars=self.exemplars
            )
        if self.name == "react":
            return repeated([react(sampling=self.sampling, seed=seed) for seed in seeds])
        return repeated([self._tree(seed) for seed in seeds])

    def _tree(self, seed: int) -> Elicit:
        return tree_of_thoughts(
            search=self.search,
            scorer=self.scorer,
            refutation=self.refutation,
            sampling=self.sampling,
            seed=seed,
            exemplars=self.exemplars,
        )


def repeated(ways: Sequence[Elicit]) -> Elicit:
    """Several elicitations, one after the other; a problem is handed back after the last, with all its attempts."""

    def elicit(problems: Sequence[Problem], teacher: Teacher) -> Iterator[tuple[int, list[Candidate]]]:
        found: list[list[Candidate]] = [[] for _ in problems]
        for way in ways[:-1]:
            for index, candidates in way(problems, teacher):
                found[index] += candidates
        for index, candidates in ways[-1](problems, teacher):
            yield index, [*found[index], *candidates]

    return elicit


def _with_scorer(way: Elicit, name: str) -> Elicit:
    """The same attempts; their `sampling` says who chooses among them."""

    def elicit(problems: Sequence[Problem], teacher: Teacher) -> Iterator[tuple[int, list[Candidate]]]:
        for index, candidates in way(problems, teacher):
            yield index, [replace(one, sampling={**one.sampling, "scorer": name}) for one in candidates]

    return elicit
