"""Self-consistency (Wang et al. 2023, arXiv:2203.11171): many samples of a chain of thought, their votes, the best one.

One sample is plain chain of thought.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from edge_distill.traces.elicitation import Candidate, Elicit, candidate_of, described, draw
from edge_distill.traces.few_shot import ExemplarPool, question
from edge_distill.traces.teachers.teacher import Request, Sampling, Teacher
from edge_distill.traces.trace import Trace
from edge_distill_bench.problem import Problem
from edge_distill_runtime.reasoning.answers import normalize_answer
from edge_distill_runtime.reasoning.voting import Vote, tally

__all__ = ["choose", "self_consistency", "with_votes"]


def self_consistency(
    *, samples: int, sampling: Sampling, seed: int = 0, exemplars: ExemplarPool | None = None
) -> Elicit:
    """Ask every problem `samples` times, with seeds from `seed` on, after its exemplars."""
    pool = exemplars or ExemplarPool()

    def elicit(problems: Sequence[Problem], teacher: Teacher) -> Iterator[tuple[int, list[Candidate]]]:
        shown = [pool.of(problem) for problem in problems]
        requests = [
            [Request(question(problem, own), seed + i, problem=problem) for i in range(samples)]
            for problem, own in zip(problems, shown, strict=True)
        ]
        for index, answers in draw(requests, teacher, sampling):
            ids = [exemplar.id for exemplar in shown[index]]
            how = described("chain", sampling, exemplars=ids)
            yield (
                index,
                [
                    candidate_of(request, written, problems[index], how)
                    for request, written in zip(requests[index], answers, strict=True)
                ],
            )

    return elicit


def with_votes(traces: Sequence[Trace]) -> list[Trace]:
    """All samples of a problem, each with the share of them that gave its answer.

    A sample without an answer, or one that was cut off, votes for none, and counts in the total. With the scores of a
    reward model in their notes, they count as much as these say.
    """
    answers = [normalize_answer(trace.answer if _is_whole(trace) else "") for trace in traces]
    count = tally(
        Vote(answer, trace.notes.get("score", 1.0)) for answer, trace in zip(answers, traces, strict=True)
    )
    weights = {answer.key: weight for answer, weight in count.ranking}
    shares = [weights.get(answer.key, 0.0) / (count.total or 1.0) for answer in answers]
    return [
        replace(trace, vote_share=share if _is_whole(trace) else None)
        for trace, share in zip(traces, shares, strict=True)
    ]


def choose(traces: Sequence[Trace]) -> Trace | None:
    """The most coherent of the right samples; None when none is right.

    The one with the fewest refuted steps, among those the one with the highest score of a reward model, if there was
    one, among those the one with the largest share of verified steps, among those the shortest; the first of equals.
    """

    def rank(trace: Trace) -> tuple[float, ...]:
        refuted, *rest = coherence(trace)
        return refuted, -trace.notes.get("score", 0.0), *rest

    return min((trace for trace in traces if trace.correct), key=rank, default=None)


def coherence(trace: Trace) -> tuple[int, float, int]:
    """Smaller is more coherent: refuted steps, share of steps that are not verified, characters."""
    verdicts = Counter(step.verdict for step in trace.steps)
    verified = verdicts["verified"] / len(trace.steps) if trace.steps else 0.0
    return verdicts["refuted"], 1 - verified, len(trace.reasoning)


def _is_whole(trace: Trace) -> bool:
    return "finish_reason" not in trace.notes
