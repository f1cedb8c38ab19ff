"""Items that two models answered differently, with both texts side by side and the differences marked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from edge_distill_bench.answering import Row, read_rows
from edge_distill_bench.items import ITEMS_NAME, read_tasks
from edge_distill_bench.report.entries import Entry
from edge_distill_bench.report.escape import shortened
from edge_distill_bench.results import rows_path

__all__ = ["Flip", "Span", "flips_of", "marked"]

_MOST = 6
"""Shown for each model: the report is for reading."""
_LONGEST = 6000
"""Characters of a text; a model that runs wild writes megabytes."""
_WORDS = 1500
"""Compared of a text: the comparison takes quadratic time."""
_SHORT_MATCH = 3
"""Equal words between differences that are too few to mean anything."""

Span = tuple[bool, str]
"""Whether the text differs, and the text."""


@dataclass(frozen=True)
class Flip:
    """One item; `right` of the two rows tells the direction."""

    id: str
    before: Row
    """Of the model compared with."""
    after: Row
    problem: str = ""
    gold: str = ""

    @property
    def direction(self) -> str:
        if self.before.verdict == "right":
            return "right to wrong"
        return "wrong to right" if self.after.verdict == "right" else "wrong to other"


def flips_of(folder: Path, entries: Sequence[Entry]) -> dict[str, list[Flip]]:
    """By the model's name the first of them, those that turned wrong before those that turned right.

    Empty without rows of both. Only single samples: of a majority no one text is the answer.
    """
    problems = _problems(folder)
    names = {entry.name for entry in entries} | {
        entry.comparison.against for entry in entries if entry.comparison
    }
    rows = {name: _single_rows(rows_path(folder, name)) for name in names}
    return {entry.name: _flips(entry, rows, problems) for entry in entries}


def _flips(
    entry: Entry, rows: Mapping[str, Sequence[Row]], problems: Mapping[str, tuple[str, str]]
) -> list[Flip]:
    comparison = entry.comparison
    if comparison is None or comparison.samples != 1:
        return []
    after = _at(rows[entry.name], comparison.budget)
    before = _at(rows[comparison.against], comparison.budget)
    found = [
        Flip(name, before[name], after[name], *problems.get(name, ("", "")))
        for name in sorted(before.keys() & after.keys())
        if (before[name].verdict == "right") != (after[name].verdict == "right")
    ]
    return sorted(found, key=lambda flip: flip.direction != "right to wrong")[:_MOST]


def _single_rows(path: Path) -> list[Row]:
    return [row for row in read_rows(path) if row.samples == 1] if path.exists() else []


def _at(rows: Sequence[Row], budget: int) -> dict[str, Row]:
    """Those of a budget, or of none where the model takes none; the last of an item counts."""
    asked = [row for row in rows if row.budget == budget] or [row for row in rows if row.budget is None]
    return {row.id: row for row in asked}


def _problems(folder: Path) -> dict[str, tuple[str, str]]:
    """Text and right answer by id, where the run has kept them."""
    if not (folder / ITEMS_NAME).exists():
        return {}
    tasks = read_tasks(folder)
    return {problem.id: (problem.problem, problem.answer) for found in tasks.values() for problem in found}


def marked(first: str, second: str) -> tuple[list[Span], list[Span]]:
    """Both texts in spans: what only one of them says is True. Long texts lose their middle."""
    one, two = (re.findall(r"\s*\S+", shortened(text, _LONGEST)) for text in (first, second))
    rests = ["".join(words[_WORDS:]) for words in (one, two)]
    one, two = one[:_WORDS], two[:_WORDS]
    left: list[Span] = []
    right: list[Span] = []
    # a leading space is no difference
    matcher = SequenceMatcher(
        None, [word.strip() for word in one], [word.strip() for word in two], autojunk=False
    )
    for same, a, b, c, d in _runs(matcher, len(one), len(two)):
        left.append((not same, "".join(one[a:b])))
        right.append((not same, "".join(two[c:d])))
    left.append((False, rests[0]))
    right.append((False, rests[1]))
    return _joined(left), _joined(right)


def _runs(matcher: SequenceMatcher[str], one: int, two: int) -> Iterator[tuple[bool, int, int, int, int]]:
    """Equal and different runs in turn, without the short matches in the middle of differences."""
    a = c = 0
    for match in matcher.get_matching_blocks():
        begins = match.a == 0 and match.b == 0
        ends = match.a + match.size == one and match.b + match.size == two
        if match.size < _SHORT_MATCH and not (begins or ends):
            continue
        if match.a > a or match.b > c:
            yield False, a, match.a, c, match.b
        if match.size:
            yield True, match.a, match.a + match.size, match.b, match.b + match.size
        a, c = match.a + match.size, match.b + match.size


def _joined(spans: list[Span]) -> list[Span]:
    result: list[Span] = []
    for differs, words in spans:
        if not words:
            continue
        if result and result[-1][0] == differs:
            result[-1] = (differs, result[-1][1] + words)
        else:
            result.append((differs, words))
    return result
