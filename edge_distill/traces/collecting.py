"""From problems to traces: rounds of asking, checking and choosing, until a problem is solved or given up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from edge_distill.traces.checking import check
from edge_distill.traces.elicitation import Candidate, Elicit
from edge_distill.traces.granularity import Granularity, compress_trace
from edge_distill.traces.selection import TraceScorer
from edge_distill.traces.self_consistency import choose, with_votes
from edge_distill.traces.store import TraceStore
from edge_distill.traces.teachers.teacher import Teacher
from edge_distill.traces.trace import Trace, content_id
from edge_distill_bench.problem import Problem
from edge_distill_export.progress import stage
from edge_distill_runtime.errors import InputError

__all__ = ["Outcome", "Stores", "collect", "question_of"]


@dataclass(frozen=True)
class Stores:
    """Where traces go: every sample, and the chosen ones."""

    samples: TraceStore
    chosen: TraceStore


@dataclass
class Outcome:
    """What became of a problem."""

    problem: Problem
    samples: list[Trace] = field(default_factory=list)
    """What the teacher answered, all rounds; let go when the problem is solved."""
    answered: int = 0
    cut_off: int = 0
    failed: int = 0
    """Requests without an answer, and answers that no file can hold."""
    error: str = ""
    """Why the last failed one did."""
    solved_in: int | None = None
    """The round that solved it, the first one is 1."""


def collect(
    problems: Sequence[Problem],
    teacher: Teacher,
    elicitation: Callable[[int], Elicit],
    stores: Stores,
    *,
    tries: int,
    granularity: Granularity,
    scorer: TraceScorer | None = None,
    name: str = "Asking",
) -> list[Outcome]:
    """Ask all problems, then those that are not solved again, in up to `tries` rounds; `elicitation(r)` asks round r.

    A problem is solved when one of all its samples is right. Samples are stored as they come, chosen traces with the
    steps that `granularity` keeps, one for a problem, teacher and way of asking. What a `scorer` says of a sample
    stands in its notes, weighs its vote, and chooses among right ones.
    """
    outcomes = [Outcome(problem) for problem in problems]
    for turn in range(tries):
        waiting = [outcome for outcome in outcomes if outcome.solved_in is None]
        if not waiting:
            break
        label = name if turn == 0 else f"{name}, round {turn + 1} of {tries}"
        with stage(label, total=len(waiting)) as advance:
            asked = [outcome.problem for outcome in waiting]
            for index, candidates in elicitation(turn)(asked, teacher):
                _take(waiting[index], candidates, teacher.name, stores, scorer)
                _settle(waiting[index], stores, granularity, turn + 1)
                advance()
    return outcomes


def question_of(trace: Trace) -> str:
    """The content hash of problem, teacher and way of asking, whatever the seed."""
    return content_id(trace.problem, trace.teacher, trace.sampling, None)


def _take(
    outcome: Outcome,
    candidates: Sequence[Candidate],
    teacher: str,
    stores: Stores,
    scorer: TraceScorer | None,
) -> None:
    """Check and store what came in, with its share of all votes so far."""
    fresh = []
    for candidate in candidates:
        if candidate.finish_reason == "error":
            outcome.failed += 1
            outcome.error = str(candidate.notes.get("error", "")) or outcome.error
        else:
            fresh.append(check(candidate, outcome.problem, teacher))
            outcome.cut_off += candidate.finish_reason != "stop"
    outcome.answered += len(fresh)
    if scorer:
        fresh = [_scored(*pair) for pair in zip(fresh, scorer.score_traces(fresh), strict=True)]
    before = len(outcome.samples)
    outcome.samples = with_votes([*outcome.samples, *fresh])
    for trace in outcome.samples[before:]:
        try:
            stores.samples.add(trace)
        except InputError as exc:
            if exc.code not in ("bad-trace", "line-too-long"):
                raise
            outcome.samples.remove(trace)
            outcome.failed += 1
            outcome.error = exc.what


def _scored(trace: Trace, score: float) -> Trace:
    return replace(trace, notes={**trace.notes, "score": round(score, 6)})


def _settle(outcome: Outcome, stores: Stores, granularity: Granularity, turn: int) -> None:
    chosen = choose(outcome.samples)
    if chosen:
        stores.chosen.add(compress_trace(chosen, granularity))
        outcome.solved_in = turn
        outcome.samples = []
