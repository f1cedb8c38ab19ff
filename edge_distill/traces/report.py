"""What a run of `edge-distill traces` did: how many problems it kept, and which kinds it dropped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edge_distill.traces.collecting import Outcome

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Group", "TracesWritten", "groups_of"]

_MOST_ROWS = 20


@dataclass(frozen=True)
class Group:
    """Problems of the same task and difficulty."""

    task: str
    difficulty: dict[str, Any]
    problems: int
    dropped: int

    @property
    def drop_rate(self) -> float:
        return self.dropped / self.problems


@dataclass(frozen=True)
class TracesWritten:
    """A run's result. `requests_found` had been answered in an earlier run, `requests` were asked in this one.

    `dropped` counts the `unanswered` too, of which no request brought an answer: another run asks them again.
    `kept_in_round[r]` problems were solved in round r + 1. `cut_off` and `failed` are samples: those that ended at a
    limit, and those that brought no answer. `bad_lines` of the sources stand in `rejects.jsonl`.
    """

    out: str
    samples_file: str
    teacher: str
    problems: int
    kept: int
    dropped: int
    unanswered: int
    kept_in_round: tuple[int, ...]
    samples: int
    cut_off: int
    failed: int
    last_error: str
    requests: int
    requests_found: int
    tokens: int
    seconds: float
    groups: tuple[Group, ...]
    bad_lines: int = 0
    pairs_file: str | None = None
    pairs: int = 0
    labels_file: str | None = None
    labels: int = 0

    def to_dict(self) -> dict[str, Any]:
        groups = [{**asdict(group), "drop_rate": group.drop_rate} for group in self.groups]
        return {**asdict(self), "drop_rate": self.dropped / self.problems, "groups": groups}

    def render(self, console: Console) -> None:
        rounds = " + ".join(map(str, self.kept_in_round)) or "0"
        console.print(f"{self.kept:,} traces of {self.problems:,} problems (round by round {rounds})")
        console.print(
            f"{self.samples:,} samples, {self.cut_off:,} cut off, {self.failed:,} failed; "
            f"{self.requests:,} requests to {self.teacher} ({self.requests_found:,} known from before), "
            f"{self.tokens:,} tokens in {self.seconds:.0f} s"
        )
        if self.last_error:
            console.print(f"{self.unanswered:,} problems without any answer; last failure: {self.last_error}")
        if self.bad_lines:
            console.print(f"{self.bad_lines:,} bad lines, see rejects.jsonl")
        if self.dropped:
            self._render_groups(console)
        console.print(self.out)
        console.print(self.samples_file)
        for path, count, what in (
            (self.pairs_file, self.pairs, "preference pairs"),
            (self.labels_file, self.labels, "samples with step labels"),
        ):
            if path:
                console.print(f"{path}: {count:,} {what}")

    def _render_groups(self, console: Console) -> None:
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for name in ("task", "difficulty"):
            table.add_column(name)
        for name in ("problems", "dropped", "rate"):
            table.add_column(name, justify="right")
        for group in self.groups[:_MOST_ROWS]:
            table.add_row(
                escape(group.task),
                escape(_words(group.difficulty)),
                f"{group.problems:,}",
                f"{group.dropped:,}",
                f"{group.drop_rate:.0%}",
            )
        console.print(table)
        if len(self.groups) > _MOST_ROWS:
            console.print(f"and {len(self.groups) - _MOST_ROWS:,} more kinds; --json has all")


def groups_of(outcomes: Sequence[Outcome]) -> tuple[Group, ...]:
    """Counts by task and difficulty, the highest drop rate first."""
    members: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        key = outcome.problem.task, json.dumps(outcome.problem.difficulty, sort_keys=True)
        members.setdefault(key, []).append(outcome)
    groups = [
        Group(task, json.loads(difficulty), len(found), sum(one.solved_in is None for one in found))
        for (task, difficulty), found in members.items()
    ]
    return tuple(sorted(groups, key=lambda group: (-group.drop_rate, -group.problems, group.task)))


def _words(difficulty: dict[str, Any]) -> str:
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in difficulty.items())
