"""What a file of traces holds, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from edge_distill.traces.selection import open_scorer
from edge_distill.traces.trace import Role, Verdict, read_traces
from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from edge_distill.traces.best_of import BestOf

__all__ = ["Spread", "TraceStats", "summarize"]

_BINS = 10
_BAR = 40  # characters of the longest


@dataclass(frozen=True)
class Spread:
    """Quantiles and mean of a length or share; nearest rank, so each quantile is a value that occurs."""

    mean: float
    minimum: float
    median: float
    p95: float
    maximum: float


@dataclass(frozen=True)
class TraceStats:
    """Counts, lengths and shares of a file of traces.

    `correct`, `wrong` and `unjudged` add up to `traces`; `problems` are different ones. Lengths are in characters
    of reasoning and in steps a trace; `vote_share` is None when no trace has one. `histogram` counts reasoning by
    length: pairs of a bin's upper end in characters (inclusive) and how many. `selection` is there when a reward
    model was given.
    """

    path: str
    traces: int
    problems: int
    tasks: dict[str, int]
    teachers: dict[str, int]
    correct: int
    wrong: int
    unjudged: int
    reasoning: Spread
    steps: Spread
    vote_share: Spread | None
    roles: dict[str, int]
    verdicts: dict[str, int]
    verified: dict[str, int]
    histogram: tuple[tuple[int, int], ...] = field(default=())
    selection: BestOf | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self, console: Console) -> None:
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_row("traces", f"{self.traces:,} of {self.problems:,} problems")
        table.add_row(
            "answers", f"{self.correct:,} right, {self.wrong:,} wrong, {self.unjudged:,} not compared"
        )
        table.add_row("reasoning", f"{_spread(self.reasoning)} characters")
        table.add_row("steps", f"{_spread(self.steps)} a trace")
        if self.vote_share:
            table.add_row("vote share", _spread(self.vote_share, ".2f"))
        for name in ("tasks", "teachers", "roles", "verdicts", "verified"):
            counts = getattr(self, name)
            text = ", ".join(f"{key or '(none)'} {count:,}" for key, count in counts.items())
            table.add_row(name, escape(text or "none"))
        console.print(table)
        console.print("\nLength of the reasoning, up to so many characters")
        most = max((count for _, count in self.histogram), default=0)
        for end, count in self.histogram:
            console.print(f"{end:>8,} {'█' * -(-count * _BAR // most) if most else ''} {count:,}")
        if self.selection:
            self.selection.render(console)


def summarize(
    path: Annotated[Path, "The file of traces, JSON Lines"],
    *,
    scorer: Annotated[
        str | None, "prm:DIR, a reward model: how often the first sample, votes and its own choice are right"
    ] = None,
) -> TraceStats:
    """Read a file of traces and count; raises `InputError` for a bad line or when there are no traces."""
    stats = _count(path)
    return stats if scorer is None else replace(stats, selection=_selection(path, scorer))


def _selection(path: Path, spec: str) -> BestOf:
    from edge_distill.traces.best_of import measure_selection

    scorer = open_scorer(spec)
    if isinstance(scorer, str):
        raise InputError("bad-scorer", f"{scorer} scores no whole sample", "give prm:DIR, a reward model")
    return measure_selection(read_traces(path), scorer)


def _count(path: Path) -> TraceStats:
    counts: dict[str, Counter[str]] = {
        name: Counter() for name in ("task", "teacher", "correct", "verified", "role", "verdict")
    }
    problems, lengths, steps, votes = set(), [], [], []
    for trace in read_traces(path):
        problems.add(hash(trace.problem))
        lengths.append(len(trace.reasoning))
        steps.append(len(trace.steps))
        if trace.vote_share is not None:
            votes.append(trace.vote_share)
        counts["task"][trace.task] += 1
        counts["teacher"][trace.teacher] += 1
        counts["correct"][str(trace.correct)] += 1
        counts["verified"].update(trace.verified)
        counts["role"].update(step.role for step in trace.steps)
        counts["verdict"].update(step.verdict for step in trace.steps)
    if not lengths:
        raise InputError("no-traces", f"{path} holds no traces", "write one JSON object a line")
    return TraceStats(
        path=str(path),
        traces=len(lengths),
        problems=len(problems),
        tasks=dict(counts["task"].most_common()),
        teachers=dict(counts["teacher"].most_common()),
        correct=counts["correct"]["True"],
        wrong=counts["correct"]["False"],
        unjudged=counts["correct"]["None"],
        reasoning=spread(lengths),
        steps=spread(steps),
        vote_share=spread(votes) if votes else None,
        roles={role: counts["role"][role] for role in get_args(Role)},
        verdicts={verdict: counts["verdict"][verdict] for verdict in get_args(Verdict)},
        verified=dict(counts["verified"].most_common()),
        histogram=histogram(lengths),
    )


def spread(values: Sequence[float]) -> Spread:
    """The spread of some values, at least one."""
    ordered = sorted(values)

    def rank(share: float) -> float:
        return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]

    return Spread(sum(ordered) / len(ordered), ordered[0], rank(0.5), rank(0.95), ordered[-1])


def histogram(lengths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Ten bins of equal width from 0 to the longest (fewer when that is shorter than ten)."""
    width = max(1, -(-max(lengths) // _BINS))
    counts = Counter(max(0, (length - 1) // width) for length in lengths)
    return tuple(((index + 1) * width, counts[index]) for index in range(max(counts) + 1))


def _spread(values: Spread, form: str = ",.0f") -> str:
    median, p95, most = (format(value, form) for value in (values.median, values.p95, values.maximum))
    return f"median {median}, 95 % up to {p95}, at most {most}"
