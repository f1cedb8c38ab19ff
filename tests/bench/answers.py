"""Rows as models would have left them, without a model."""

from __future__ import annotations

from collections.abc import Sequence

from edge_distill_bench.answering import Row
from edge_distill_bench.grading import Verdict
from edge_distill_bench.outcomes import Answered
from edge_distill_bench.problem import Problem
from edge_distill_bench.results import Role

GOLD = "42"


def problems(count: int, task: str = "sums") -> list[Problem]:
    return [Problem(f"{task}{number}", task, f"Problem {number}", GOLD) for number in range(count)]


def row(
    name: str,
    said: str,
    *,
    budget: int | None = 64,
    samples: int = 1,
    sample: int = 0,
    tokens: int = 20,
    seconds: float = 1.0,
    text: str = "",
) -> Row:
    """`said` is an answer, "" for none, or "..." for one that was cut off."""
    verdict: Verdict = (
        "cut off" if said == "..." else "unparsed" if not said else "right" if said == GOLD else "wrong"
    )
    return Row(
        key="k",
        id=name,
        budget=budget,
        samples=samples,
        sample=sample,
        text=text or said,
        answer="" if said == "..." else said,
        verdict=verdict,
        reason="",
        finish_reason="length" if said == "..." else "stop",
        tokens=tokens,
        reasoning_tokens=tokens // 2,
        prompt_tokens=10,
        prompt_seconds=0.25,
        seconds=seconds,
    )


def answered(
    said: Sequence[str | Sequence[str]], *, name: str = "a", role: Role = "artifact", budget: int | None = 64
) -> Answered:
    """One entry an item: its answer, or those of its samples."""
    rows = []
    for number, entry in enumerate(said):
        each = [entry] if isinstance(entry, str) else entry
        rows += [
            row(f"sums{number}", answer, budget=budget, samples=len(each), sample=index)
            for index, answer in enumerate(each)
        ]
    return Answered(name, role, tuple(rows))
