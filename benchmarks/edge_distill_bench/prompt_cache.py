"""Time to the first token with a long beginning in the prompt cache, against computing all of it.

    python -m edge_distill_bench.prompt_cache BUNDLE... [--prefix 1000] [--rounds 5]

The prompt is a conversation of worked examples, which is remembered, and a question. Times are those of the whole
call, from text to token. The file lies in the operating system's page cache when it is read.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from edge_distill_bench.measure import (
    check_counts,
    command_line,
    in_turn,
    median_ratio,
    print_table,
    report,
)
from edge_distill_bench.prompts import EXAMPLES
from edge_distill_runtime import InputError, Model
from edge_distill_runtime.bundles.opening import Opened, open_model
from edge_distill_runtime.generation.prompt_cache import PromptCache

__all__ = ["PromptCacheResult", "compare_prompt_cache", "main"]

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class PromptCacheResult:
    """Seconds to the first token in every round."""

    bundle: str
    format: str
    prefix_tokens: int
    """In the cache."""
    prompt_tokens: int
    cold: tuple[float, ...]
    memory: tuple[float, ...]
    disk: tuple[float, ...]
    """By a new cache that has only the file."""
    same_token: bool

    @property
    def summary(self) -> dict[str, Any]:
        """How many times faster than cold, the median of the rounds."""
        return {
            "speedup": {
                "memory": median_ratio(self.cold, self.memory),
                "disk": median_ratio(self.cold, self.disk),
            }
        }


def compare_prompt_cache(
    bundle: Path | str, *, prefix_tokens: int = 1000, rounds: int = 5, threads: int
) -> PromptCacheResult:
    """The first token of one prompt: cold, from memory and from disk, `rounds` times in turn."""
    check_counts(prefix_tokens=prefix_tokens, rounds=rounds)
    opened = open_model(bundle, threads=threads)
    with _model(opened, None) as plain, tempfile.TemporaryDirectory() as folder:
        examples = _examples(plain, prefix_tokens)
        prompt = [*examples, {"role": "user", "content": EXAMPLES[0][0]}]
        make_cache = partial(PromptCache, opened.model_hash, format=opened.manifest.format)
        on_disk = partial(make_cache, directory=Path(folder) / "prompts")
        cached = _model(opened, on_disk())
        remembered = cached.cache_prefix(examples, disk=True)
        runs = (
            partial(_first_token, lambda: plain, prompt, 0),
            partial(_first_token, lambda: cached, prompt, remembered),
            partial(_first_token, lambda: _model(opened, on_disk()), prompt, remembered),
        )
        for run in runs:
            run()  # warm up
        cold, memory, disk = in_turn(runs, rounds)
        return PromptCacheResult(
            bundle=opened.manifest.name,
            format=opened.manifest.format,
            prefix_tokens=remembered,
            prompt_tokens=len(plain.encode(prompt)),
            cold=tuple(seconds for seconds, _ in cold),
            memory=tuple(seconds for seconds, _ in memory),
            disk=tuple(seconds for seconds, _ in disk),
            same_token=len({token for _, token in [*cold, *memory, *disk]}) == 1,
        )


def _model(opened: Opened, cache: PromptCache | None) -> Model:
    return Model(opened.manifest, opened.backend, opened.tokenizer, opened.detokenizer, cache=cache)


def _examples(model: Model, tokens: int) -> Messages:
    """A conversation of as many worked examples as `tokens` hold, at least one."""
    messages: Messages = []
    while True:
        question, solution = EXAMPLES[len(messages) // 2 % len(EXAMPLES)]
        longer = [
            *messages,
            {"role": "user", "content": question},
            {"role": "assistant", "content": solution},
        ]
        if messages and len(model.encode(longer)) > tokens:
            return messages
        messages = longer


def _first_token(make: Any, prompt: Sequence[dict[str, str]], expected: int) -> tuple[float, int | None]:
    """Seconds to the first token, and the token."""
    model: Model = make()
    start = time.perf_counter()
    result = model.generate(prompt, max_tokens=1, temperature=0.0)
    seconds = time.perf_counter() - start
    if result.cached_tokens != expected:
        raise InputError(
            "cache-missed",
            f"{result.cached_tokens} tokens came from the prompt cache, {expected} lie in it",
            "give a prefix that fits the prompt cache",
        )
    return seconds, result.tokens[0] if result.tokens else None


def _show(result: PromptCacheResult) -> None:
    columns = {"cold": result.cold, "memory": result.memory, "disk": result.disk}
    speedup = {"cold": 1.0} | result.summary["speedup"]
    print_table(
        f"{result.bundle} {result.format}: milliseconds to the first token, {result.prefix_tokens} of "
        f"{result.prompt_tokens} prompt tokens remembered",
        ["round", *columns],
        [
            *(
                [number, *(1000 * seconds for seconds in row)]
                for number, row in enumerate(zip(*columns.values(), strict=True), 1)
            ),
            ["median", *(1000 * median(column) for column in columns.values())],
            ["times faster", *(speedup[name] for name in columns)],
        ],
    )
    if not result.same_token:
        print("the first tokens differ")


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `python -m edge_distill_bench.prompt_cache`."""
    parser = command_line("prompt_cache", __doc__, rounds=5)
    parser.add_argument("--prefix", type=int, default=1000, help="tokens to remember (1000)")
    options = parser.parse_args(arguments)

    def measure() -> list[PromptCacheResult]:
        return [
            compare_prompt_cache(
                bundle, prefix_tokens=options.prefix, rounds=options.rounds, threads=options.threads
            )
            for bundle in options.bundles
        ]

    return report("prompt_cache", options, measure, _show)


if __name__ == "__main__":
    sys.exit(main())
