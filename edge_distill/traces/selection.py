"""Choosing among several samples of a problem by what a process reward model says of each (Lightman et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from edge_distill.traces.trace import Trace
from edge_distill_runtime.errors import InputError, MissingExtra
from edge_distill_runtime.reasoning.answers import Answer, normalize_answer
from edge_distill_runtime.reasoning.voting import Vote, tally

__all__ = ["ScorerName", "TraceScorer", "best_of_n", "open_scorer", "weighted_vote"]

ScorerName = Literal["checker", "teacher"]

_KIND = "prm:"
_T = TypeVar("_T")


class TraceScorer(Protocol):
    """A process reward model; see `edge_distill.distil.reward_model`."""

    @property
    def name(self) -> str:
        """Its kind and a short hash of its weights, for `Trace.sampling`."""

    def __call__(self, problem: str, steps: Sequence[str]) -> float:
        """How good the steps of a problem are so far, from 0 to 1."""

    def score_traces(self, traces: Sequence[Trace]) -> list[float]:
        """How likely each whole reasoning is right, from 0 to 1."""


def open_scorer(spec: str) -> ScorerName | TraceScorer:
    """The scorer that a specification names: checker, teacher, or prm:DIR, a trained reward model.

    Raises `InputError` for another one and for a folder without a reward model, `MissingExtra` without torch.
    """
    if spec == "checker":
        return "checker"
    if spec == "teacher":
        return "teacher"
    folder = spec.removeprefix(_KIND)
    if not spec.startswith(_KIND) or not folder:
        raise InputError(
            "unknown-scorer", f"there is no scorer {spec[:200]!r}", "give checker, teacher or prm:DIR"
        )
    try:
        from edge_distill.distil.reward_model import load_reward_model

        return load_reward_model(Path(folder))
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.startswith("edge_distill"):
            raise
        raise MissingExtra(
            "missing-extra",
            f"a reward model needs {exc.name.partition('.')[0]}, which is not installed",
            'pip install "edge-distill[distill]"',
        ) from exc


def best_of_n(candidates: Sequence[_T], scores: Sequence[float]) -> _T:
    """The candidate with the highest score; the first of equals. Raises `ValueError` when there is none."""
    pairs = zip(candidates, scores, strict=True)
    return max(pairs, key=lambda pair: pair[1])[0]


def weighted_vote(answers: Sequence[str], scores: Sequence[float]) -> Answer | None:
    """The answer whose samples have the highest sum of scores (Li et al. 2023, arXiv:2206.02336), the first of equals.

    Equal answers are those with the same key, "12" and "12.0". None when none can be read or all scores are 0. Scores
    of 1 make it the majority vote. Raises `InputError` for a score that is negative or not finite.
    """
    votes = [Vote(normalize_answer(answer), score) for answer, score in zip(answers, scores, strict=True)]
    return tally(votes).leader
