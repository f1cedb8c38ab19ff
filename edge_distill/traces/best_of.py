"""What choosing among samples is worth: the same samples, and four ways to get one answer out of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edge_distill.traces.selection import TraceScorer, best_of_n, weighted_vote
from edge_distill.traces.trace import Trace
from edge_distill_bench.statistics import Estimate, wilson
from edge_distill_export.progress import stage
from edge_distill_runtime.errors import InputError
from edge_distill_runtime.reasoning.answers import normalize_answer

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["BestOf", "measure_selection", "select_answers"]

_CHUNK = 64  # samples that are scored together


@dataclass(frozen=True)
class BestOf:
    """Accuracies with Wilson's 95 % intervals, all on the same samples.

    `any_right` is the part of the problems with a right sample: what no way of choosing among them can exceed.
    """

    scorer: str
    problems: int
    samples: int
    """Of each problem: as many as the one with the fewest has, so that all ways choose among equally many."""
    first: Estimate
    majority: Estimate
    best_of_n: Estimate
    weighted_vote: Estimate
    any_right: Estimate

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self, console: Console) -> None:
        from rich.table import Table

        console.print(
            f"\nOne answer out of {self.samples} samples of each of {self.problems:,} problems, by {self.scorer}"
        )
        table = Table(box=None, pad_edge=False)
        for name in ("choice", "accuracy", "95 % interval"):
            table.add_column(name, justify="left" if name == "choice" else "right")
        for name in ("first", "majority", "best_of_n", "weighted_vote", "any_right"):
            found: Estimate = getattr(self, name)
            interval = f"{found.low:.1%} to {found.high:.1%}"
            table.add_row(name.replace("_", " "), f"{found.value:.1%}", interval)
        console.print(table)


def measure_selection(traces: Iterable[Trace], scorer: TraceScorer) -> BestOf:
    """Score the samples of a file and choose among them, problem by problem.

    A problem that was asked again, because no sample was right, has more samples than others; of each the first ones
    by seed are taken. Raises `InputError` when answers were not compared, or a problem has a single sample.
    """
    groups = _groups(traces)
    size = min(len(group) for group in groups)
    if size < 2:
        raise InputError(
            "too-few-samples",
            "a problem has only one sample: there is nothing to choose from",
            "give the file of samples, NAME.samples.jsonl, of a run with --samples 2 or more",
        )
    groups = [sorted(group, key=_seed)[:size] for group in groups]
    scores = _scores([trace for group in groups for trace in group], scorer)
    verdicts = [select_answers(group, scores[at * size : (at + 1) * size]) for at, group in enumerate(groups)]
    counts = [sum(column) for column in zip(*verdicts, strict=True)]
    return BestOf(scorer.name, len(groups), size, *(wilson(count, len(groups)) for count in counts))


def select_answers(samples: Sequence[Trace], scores: Sequence[float]) -> tuple[bool, bool, bool, bool, bool]:
    """Whether the answer is right that each way chooses: first, majority, best-of-N, weighted vote; and if any is.

    A sample that was cut off or has no answer is never chosen by best-of-N, and votes for none.
    """
    right = {normalize_answer(sample.answer).key for sample in samples if sample.correct}
    answers = ["" if "finish_reason" in sample.notes else sample.answer for sample in samples]
    whole = [i for i, answer in enumerate(answers) if normalize_answer(answer).kind != "unparsed"]
    best = best_of_n(whole, [scores[i] for i in whole]) if whole else None
    votes = (weighted_vote(answers, [1.0] * len(samples)), weighted_vote(answers, scores))
    majority, weighted = (vote is not None and vote.key in right for vote in votes)
    return (
        bool(samples[0].correct),
        majority,
        best is not None and bool(samples[best].correct),
        weighted,
        bool(right),
    )


def _groups(traces: Iterable[Trace]) -> list[list[Trace]]:
    groups: dict[tuple[str, str], list[Trace]] = {}
    judged = False
    for trace in traces:
        groups.setdefault((trace.task, trace.problem), []).append(trace)
        judged |= trace.correct is not None
    if not judged:
        raise InputError(
            "no-verdicts", "no answer was compared with a right one", "take a file that `traces` has written"
        )
    return list(groups.values())


def _scores(traces: Sequence[Trace], scorer: TraceScorer) -> list[float]:
    scores: list[float] = []
    with stage("Scoring samples", total=len(traces)) as advance:
        for start in range(0, len(traces), _CHUNK):
            chunk = traces[start : start + _CHUNK]
            scores += scorer.score_traces(chunk)
            advance(len(chunk))
    return scores


def _seed(trace: Trace) -> int:
    return 0 if trace.seed is None else trace.seed
