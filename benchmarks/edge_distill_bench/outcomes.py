"""From graded samples to one outcome an item: a single sample's verdict, or the majority's of several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

from edge_distill_bench.answering import Row, read_rows
from edge_distill_bench.grading import Verdict
from edge_distill_bench.results import Role
from edge_distill_runtime.errors import InputError
from edge_distill_runtime.reasoning.answers import UNPARSED, normalize_answer
from edge_distill_runtime.reasoning.voting import Vote, tally

__all__ = ["Answered", "Flip", "Outcome", "flip", "majority", "read_answered"]

_read = lru_cache(maxsize=4096)(normalize_answer)  # majorities of 2, 3, ... read the same answers

Flip = Literal["same", "right to wrong", "wrong to right", "wrong to other"]


@dataclass(frozen=True)
class Outcome:
    """What a model made of one item."""

    id: str
    verdict: Verdict
    answer: str
    """As the first sample that gave it wrote it."""
    tokens: int
    """Of all its samples."""
    seconds: float
    """From the prompt to the end of the last sample."""

    @property
    def is_right(self) -> bool:
        return self.verdict == "right"


def majority(rows: Sequence[Row]) -> Outcome:
    """The outcome of one item's samples: the answer that most of them gave, the first one's of a tie.

    A sample that was cut off has no vote, whatever it says, nor has one without an answer. Where nobody votes, the
    verdict is what most samples are: "cut off" or "unparsed". A single sample keeps its own verdict.
    """
    if len(rows) == 1:
        verdict, answer = rows[0].verdict, "" if rows[0].verdict == "cut off" else rows[0].answer
    else:
        verdict, answer = _vote(rows)
    return Outcome(
        id=rows[0].id,
        verdict=verdict,
        answer=answer,
        tokens=sum(row.tokens for row in rows),
        seconds=max(row.prompt_seconds + row.seconds for row in rows),
    )


def _vote(rows: Sequence[Row]) -> tuple[Verdict, str]:
    votes = [UNPARSED if row.verdict == "cut off" else _read(row.answer) for row in rows]
    leader = tally(map(Vote, votes)).leader
    if leader is None:
        cut = sum(row.verdict == "cut off" for row in rows)
        return ("cut off" if 2 * cut >= len(rows) else "unparsed"), ""
    return next(row.verdict for row, vote in zip(rows, votes, strict=True) if vote == leader), leader.display


def flip(before: Outcome, after: Outcome) -> Flip:
    """What became of an item; "wrong" is all that is not right, "other" another answer or verdict."""
    if before.is_right or after.is_right:
        if before.is_right and after.is_right:
            return "same"
        return "right to wrong" if before.is_right else "wrong to right"
    same = before.verdict == after.verdict and (
        before.verdict != "wrong" or _read(before.answer) == _read(after.answer)
    )
    return "same" if same else "wrong to other"


@dataclass(frozen=True)
class Answered:
    """A model's rows over all items, budgets and samples; of rows that stand twice the last one counts."""

    name: str
    role: Role
    rows: tuple[Row, ...]

    @cached_property
    def _by_setting(self) -> dict[tuple[int | None, int], dict[str, dict[int, Row]]]:
        found: dict[tuple[int | None, int], dict[str, dict[int, Row]]] = {}
        for row in self.rows:
            items = found.setdefault((row.budget, row.samples), {})
            items.setdefault(row.id, {})[row.sample] = row
        return found

    @property
    def takes_budgets(self) -> bool:
        """Whether it was asked with budgets; a model without reasoning markers cannot be."""
        return any(row.budget is not None for row in self.rows)

    def samples(self, ids: Iterable[str], budget: int, count: int) -> list[list[Row]] | None:
        """The first `count` samples of every item, or None when some are missing.

        One sample is one that was drawn alone; several come from the smallest set that holds them. Without rows of
        this budget those without any budget stand in.
        """
        names, wanted = list(ids), set(range(count))
        for asked in (budget, None):
            sizes = sorted(size for given, size in self._by_setting if given == asked and size >= count)
            for size in sizes if count > 1 else [1]:
                items = self._by_setting.get((asked, size), {})
                if all(wanted <= items.get(name, {}).keys() for name in names):
                    return [[items[name][index] for index in range(count)] for name in names]
        return None

    def outcomes(self, ids: Iterable[str], budget: int, count: int) -> list[Outcome] | None:
        """One for each item, in order; None when rows are missing."""
        samples = self.samples(ids, budget, count)
        return None if samples is None else [majority(rows) for rows in samples]


def read_answered(
    path: Path, ids: Iterable[str], *, name: str, role: Role, budgets: Sequence[int]
) -> Answered:
    """The rows of a model that ran elsewhere, such as a teacher's for a device.

    Raises `InputError` when they hold no single samples of all these items, at one of the budgets at least.
    """
    answered = Answered(name, role, tuple(read_rows(path)))
    wanted = list(ids)
    if all(answered.samples(wanted, budget, 1) is None for budget in budgets):
        there = len({row.id for row in answered.rows} & set(wanted))
        raise InputError(
            "other-items",
            f"{path} has answers to {there} of {len(wanted)} items at no budget of {list(budgets)}",
            "ask this model with the same items, seed and budgets",
        )
    return answered
