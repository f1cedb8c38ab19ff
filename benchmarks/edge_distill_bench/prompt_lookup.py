"""Greedy decoding with drafts from the text so far against decoding without.

    python -m edge_distill_bench.prompt_lookup BUNDLE... [--tokens 128] [--rounds 5]

Half of the prompts ask for text that stands in them already, the others do not: there the drafts are to cost
nothing. Where a model repeats itself, drafts help as well; the column `repeats` says how much it did.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from edge_distill_bench.measure import (
    check_counts,
    command_line,
    endless,
    in_turn,
    median_ratio,
    print_table,
    report,
)
from edge_distill_bench.prompts import COPYING, ORDINARY
from edge_distill_runtime import Generation, Model, load
from edge_distill_runtime.generation.sampling import log_probabilities

__all__ = ["PromptLookupResult", "compare_prompt_lookup", "main"]

_NGRAM = 3
PROMPTS = {"copying": COPYING, "ordinary": ORDINARY}


@dataclass(frozen=True)
class Trace:
    """One prompt: tokens per second in every round."""

    kind: str
    prompt: str
    with_lookup: tuple[float, ...]
    without: tuple[float, ...]
    repeats: float
    """Share of the new 3-grams that stood in the text before them."""
    same_tokens: bool
    gap: float
    """Log-probability between both choices at the first difference; 0 without one."""

    @property
    def ratio(self) -> float:
        return median_ratio(self.with_lookup, self.without)


@dataclass(frozen=True)
class PromptLookupResult:
    bundle: str
    format: str
    new_tokens: int
    traces: tuple[Trace, ...]

    @property
    def summary(self) -> dict[str, Any]:
        """Geometric mean and least ratio of each kind of prompt, and the largest gap at a difference."""
        kinds: dict[str, list[float]] = {}
        for trace in self.traces:
            kinds.setdefault(trace.kind, []).append(trace.ratio)
        ratios = {kind: {"mean": geometric_mean(found), "least": min(found)} for kind, found in kinds.items()}
        return {"ratios": ratios, "largest_gap": max(trace.gap for trace in self.traces)}


def compare_prompt_lookup(
    bundle: Path | str,
    *,
    prompts: Mapping[str, Sequence[str]] = PROMPTS,
    tokens: int = 128,
    rounds: int = 5,
    threads: int,
) -> PromptLookupResult:
    """Every prompt with and without drafts, `rounds` times in turn."""
    check_counts(new_tokens=tokens - 1, rounds=rounds)
    with load(bundle, threads=threads) as model:
        forever = endless(model)
        traces = [
            _trace(forever, kind, prompt, tokens, rounds)
            for kind, group in prompts.items()
            for prompt in group
        ]
        return PromptLookupResult(model.manifest.name, model.manifest.format, tokens, tuple(traces))


def _trace(model: Model, kind: str, prompt: str, tokens: int, rounds: int) -> Trace:
    runs = [partial(_decode, model, prompt, tokens, lookup) for lookup in (True, False)]
    for run in runs:
        run()  # warm up
    drafted, plain = in_turn(runs, rounds)
    before = model.encode(prompt, raw=True)
    return Trace(
        kind=kind,
        prompt=prompt,
        with_lookup=tuple(_speed(result) for result in drafted),
        without=tuple(_speed(result) for result in plain),
        repeats=_repeats(before, plain[0].tokens),
        same_tokens=drafted[0].tokens == plain[0].tokens,
        gap=_gap(model, before, drafted[0].tokens, plain[0].tokens),
    )


def _decode(model: Model, prompt: str, tokens: int, lookup: bool) -> Generation:
    return model.generate(prompt, raw=True, max_tokens=tokens, temperature=0.0, prompt_lookup=lookup)


def _speed(result: Generation) -> float:
    return (len(result.tokens) - 1) / result.seconds  # the first one comes from the prompt's logits


def _repeats(prompt: Sequence[int], tokens: Sequence[int]) -> float:
    text, seen, found = [*prompt, *tokens], set(), 0
    for end in range(_NGRAM, len(text) + 1):
        ngram = tuple(text[end - _NGRAM : end])
        found += end > len(prompt) and ngram in seen
        seen.add(ngram)
    return found / len(tokens)


def _gap(model: Model, prompt: Sequence[int], ours: Sequence[int], others: Sequence[int]) -> float:
    """How much likelier the likelier of the two tokens is where they part, as a log-probability."""
    pairs = list(zip(ours, others, strict=True))
    at = next((at for at, (one, other) in enumerate(pairs) if one != other), None)
    if at is None:
        return 0.0
    sequence = model.backend.prefill([*prompt, *others[:at]])
    try:
        values = log_probabilities(sequence.logits, list(pairs[at]))
    finally:
        model.backend.release(sequence)
    return abs(values[0] - values[1])


def _show(result: PromptLookupResult) -> None:
    print_table(
        f"{result.bundle} {result.format}: tokens per second over {result.new_tokens} tokens, medians",
        ["prompt", "kind", "lookup", "without", "ratio", "repeats", "tokens"],
        [
            [
                trace.prompt.replace("\n", " ")[-36:],
                trace.kind,
                median(trace.with_lookup),
                median(trace.without),
                trace.ratio,
                trace.repeats,
                "same" if trace.same_tokens else f"gap {trace.gap:.4f}",
            ]
            for trace in result.traces
        ],
    )
    for kind, ratios in result.summary["ratios"].items():
        print(f"{kind}: ratio {ratios['mean']:.3f} on average, {ratios['least']:.3f} at least")


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `python -m edge_distill_bench.prompt_lookup`."""
    parser = command_line("prompt_lookup", __doc__, rounds=5)
    parser.add_argument("--tokens", type=int, default=128, help="new tokens in every round (128)")
    options = parser.parse_args(arguments)

    def measure() -> list[PromptLookupResult]:
        return [
            compare_prompt_lookup(
                bundle, tokens=options.tokens, rounds=options.rounds, threads=options.threads
            )
            for bundle in options.bundles
        ]

    return report("prompt_lookup", options, measure, _show)


if __name__ == "__main__":
    sys.exit(main())
