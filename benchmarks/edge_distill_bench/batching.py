"""Requests of many threads that share one model, against the same requests of one thread.

    python -m edge_distill_bench.batching BUNDLE... [--clients 16] [--tokens 64] [--rounds 5]

Tokens per second over all requests, their prompts included, from the first request to the last answer.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from edge_distill_bench.measure import (
    check_counts,
    command_line,
    endless,
    in_turn,
    median_ratio,
    print_table,
    report,
    text_of,
)
from edge_distill_bench.prompts import TRACE
from edge_distill_runtime import Model, load
from edge_distill_runtime.engines.llama import CACHE_STEP

__all__ = ["BatchingResult", "compare_batching", "main"]


@dataclass(frozen=True)
class BatchingResult:
    """New tokens per second over all requests in every round."""

    bundle: str
    format: str
    clients: int
    """As many threads, and requests."""
    prompt_tokens: int
    """Of each request, about."""
    new_tokens: int
    together: tuple[float, ...]
    alone: tuple[float, ...]
    """One thread, one request after the other."""

    @property
    def summary(self) -> dict[str, Any]:
        return {"ratio": median_ratio(self.together, self.alone)}


def compare_batching(
    bundle: Path | str,
    *,
    clients: int = 16,
    prompt_tokens: int = 64,
    tokens: int = 64,
    rounds: int = 5,
    threads: int,
) -> BatchingResult:
    """`clients` different requests, by as many threads and by one, `rounds` times in turn."""
    check_counts(clients=clients, prompt_tokens=prompt_tokens, new_tokens=tokens, rounds=rounds)
    # every prompt gets a number in front, which takes a few tokens more
    context = CACHE_STEP * -(-(prompt_tokens + 16 + tokens) // CACHE_STEP)
    cache = {"cache_tokens": clients * context, "own_caches": True}
    with load(bundle, context=context, threads=threads, backend_options=cache) as model:
        text = text_of(model, TRACE, prompt_tokens)
        prompts = [f"Problem {number}: {text}" for number in range(clients)]
        forever = endless(model)
        runs = [partial(_ask, forever, prompts, tokens, workers) for workers in (clients, 1)]
        runs[0]()  # warm up
        together, alone = in_turn(runs, rounds)
        return BatchingResult(
            bundle=model.manifest.name,
            format=model.manifest.format,
            clients=clients,
            prompt_tokens=prompt_tokens,
            new_tokens=tokens,
            together=tuple(together),
            alone=tuple(alone),
        )


def _ask(model: Model, prompts: Sequence[str], tokens: int, workers: int) -> float:
    """All prompts by `workers` threads; tokens per second."""

    def answer(prompt: str) -> int:
        return len(model.generate(prompt, raw=True, max_tokens=tokens, temperature=0.0).tokens)

    with ThreadPoolExecutor(workers) as pool:
        start = time.perf_counter()
        made = sum(pool.map(answer, prompts))
        return made / (time.perf_counter() - start)


def _show(result: BatchingResult) -> None:
    columns = {f"{result.clients} threads": result.together, "one thread": result.alone}
    pairs = zip(result.together, result.alone, strict=True)
    print_table(
        f"{result.bundle} {result.format}: {result.clients} requests of {result.prompt_tokens} and "
        f"{result.new_tokens} tokens, new tokens per second",
        ["round", *columns, "ratio"],
        [
            *([number, one, other, one / other] for number, (one, other) in enumerate(pairs, 1)),
            ["median", median(result.together), median(result.alone), result.summary["ratio"]],
        ],
    )


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `python -m edge_distill_bench.batching`."""
    parser = command_line("batching", __doc__, rounds=5)
    parser.add_argument("--clients", type=int, default=16, help="threads that ask at the same time (16)")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of every request (64)")
    options = parser.parse_args(arguments)

    def measure() -> list[BatchingResult]:
        return [
            compare_batching(
                bundle,
                clients=options.clients,
                tokens=options.tokens,
                rounds=options.rounds,
                threads=options.threads,
            )
            for bundle in options.bundles
        ]

    return report("batching", options, measure, _show)


if __name__ == "__main__":
    sys.exit(main())
