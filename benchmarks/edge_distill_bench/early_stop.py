"""What an early stop of the vote saves: tokens and time with `stop_when=0.95` against all samples.

    python -m edge_distill_bench.early_stop BUNDLE... [--samples 8] [--tokens 96]

Short problems that a small model solves; the numbers that count are those of the problems on which the model
agrees with itself: three quarters of the full vote, or more, went to one answer.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_distill_bench.measure import check_counts, command_line, print_table, report
from edge_distill_bench.prompts import EASY, EASY_SHOTS
from edge_distill_runtime import load

__all__ = ["EarlyStopResult", "compare_early_stop", "main"]

_AGREES = 0.75
_STOP_WHEN = 0.95


@dataclass(frozen=True)
class Problem:
    """One problem, with the same seed for both; tokens are those generated over all samples."""

    text: str
    agreement: float
    """The leading answer's share of the full vote."""
    answer: str
    early_answer: str
    tokens: int
    early_tokens: int
    seconds: float
    early_seconds: float

    @property
    def is_agreed(self) -> bool:
        return self.answer != "" and self.agreement >= _AGREES


@dataclass(frozen=True)
class EarlyStopResult:
    bundle: str
    format: str
    samples: int
    problems: tuple[Problem, ...]

    @property
    def agreed(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.is_agreed)

    @property
    def summary(self) -> dict[str, Any]:
        """Of the agreed problems and of all: how many, tokens and seconds as a ratio, same answers."""
        return {"agreed": _totals(self.agreed), "all": _totals(self.problems)}


def _totals(problems: Sequence[Problem]) -> dict[str, Any]:
    if not problems:
        return {"problems": 0}
    return {
        "problems": len(problems),
        "same_answer": sum(problem.answer == problem.early_answer for problem in problems),
        "tokens_ratio": sum(p.tokens for p in problems) / sum(p.early_tokens for p in problems),
        "seconds_ratio": sum(p.seconds for p in problems) / sum(p.early_seconds for p in problems),
    }


def compare_early_stop(
    bundle: Path | str,
    *,
    problems: Sequence[str] = EASY,
    samples: int = 8,
    tokens: int = 96,
    threads: int,
) -> EarlyStopResult:
    """Every problem with and without an early stop, in turn; `tokens` is the most of one sample."""
    check_counts(problems=len(problems), samples=samples, tokens=tokens)
    found = []
    with load(bundle, threads=threads) as model:
        for seed, text in enumerate(problems):
            runs: dict[float | None, tuple[Any, float]] = {}
            for stop_when in (None, _STOP_WHEN) if seed % 2 == 0 else (_STOP_WHEN, None):
                start = time.perf_counter()
                result = model.reason(
                    _messages(text), samples=samples, stop_when=stop_when, max_tokens=tokens, seed=1000 * seed
                )
                runs[stop_when] = result, time.perf_counter() - start
            (full, seconds), (early, early_seconds) = runs[None], runs[_STOP_WHEN]
            found.append(
                Problem(
                    text,
                    agreement=full.confidence,
                    answer=full.answer,
                    early_answer=early.answer,
                    tokens=full.tokens,
                    early_tokens=early.tokens,
                    seconds=seconds,
                    early_seconds=early_seconds,
                )
            )
        return EarlyStopResult(model.manifest.name, model.manifest.format, samples, tuple(found))


def _messages(text: str) -> list[dict[str, str]]:
    messages = []
    for question, answer in EASY_SHOTS:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": text}]


def _show(result: EarlyStopResult) -> None:
    fields = ("agreement", "answer", "early_answer", "tokens", "early_tokens", "seconds", "early_seconds")
    rows = [[getattr(problem, name) for name in fields] for problem in result.problems]
    print_table(
        f"{result.bundle} {result.format}: {result.samples} samples against an early stop",
        ["problem", *(name.replace("_", " ") for name in fields)],
        [[problem.text[:40], *row] for problem, row in zip(result.problems, rows, strict=True)],
    )
    for name, totals in result.summary.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in totals.items()))


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `python -m edge_distill_bench.early_stop`."""
    parser = command_line("early_stop", __doc__, rounds=None)
    parser.add_argument("--samples", type=int, default=8, help="samples of every problem (8)")
    parser.add_argument("--tokens", type=int, default=96, help="most new tokens of a sample (96)")
    options = parser.parse_args(arguments)

    def measure() -> list[EarlyStopResult]:
        return [
            compare_early_stop(
                bundle, samples=options.samples, tokens=options.tokens, threads=options.threads
            )
            for bundle in options.bundles
        ]

    return report("early_stop", options, measure, _show)


if __name__ == "__main__":
    sys.exit(main())
