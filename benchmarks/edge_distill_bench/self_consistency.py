"""Self-consistency against the same samples drawn one after the other with llama-cpp-python.

    python -m edge_distill_bench.self_consistency GGUF_BUNDLE [BUNDLE...] [--samples 8] [--tokens 128] [--rounds 5]

Ours is `Model.reason` without an early stop, prompt and vote included. The others are calls of
`llama_cpp.Llama.create_completion` on the GGUF bundle's file: with that class's own number of threads, and with
ours. It keeps the prompt from the first call to the last, as it does by itself, and the sampling is its own
default for all.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
from edge_distill_bench.prompts import PROBLEM
from edge_distill_runtime import InputError, Model, load
from edge_distill_runtime.engines.llama import library

__all__ = ["SelfConsistencyResult", "compare_self_consistency", "main"]

# the defaults of create_completion, which samples are drawn with on both sides
_SAMPLING: Any = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.0}

THEIRS = "Llama, its threads"
THEIRS_MATCHED = "Llama, our threads"


@dataclass(frozen=True)
class SelfConsistencyResult:
    """New tokens per second over all samples, prompt included, of every contender in every round."""

    prompt_tokens: int
    samples: int
    new_tokens: int
    """Of each sample."""
    tokens_per_second: dict[str, tuple[float, ...]]
    """By format for ours, then `THEIRS` and `THEIRS_MATCHED`."""

    def ratios(self, against: str) -> dict[str, float]:
        """How many times as fast every bundle is, the median of the rounds."""
        speed = self.tokens_per_second
        ours = (name for name in speed if name not in (THEIRS, THEIRS_MATCHED))
        return {name: median_ratio(speed[name], speed[against]) for name in ours}

    @property
    def summary(self) -> dict[str, Any]:
        return {"ratios": {against: self.ratios(against) for against in (THEIRS, THEIRS_MATCHED)}}


def compare_self_consistency(
    bundles: Sequence[Path],
    *,
    prompt_tokens: int | None = None,
    samples: int = 8,
    tokens: int = 128,
    rounds: int = 5,
    threads: int,
) -> SelfConsistencyResult:
    """All bundles and both references in turn; one of the bundles must be GGUF.

    The prompt is a problem of some 300 tokens in the chat form, or a raw text of about `prompt_tokens`.
    """
    check_counts(samples=samples, new_tokens=tokens, rounds=rounds)
    with ExitStack() as stack:
        models = [stack.enter_context(load(bundle, threads=threads)) for bundle in bundles]
        files = {model.manifest.format: Path(bundle) for model, bundle in zip(models, bundles, strict=True)}
        if "gguf" not in files:
            raise InputError(
                "no-gguf", "none of the bundles is GGUF", "give one: the reference runs its file"
            )
        raw = prompt_tokens is not None
        text = text_of(models[0], PROBLEM, prompt_tokens) if prompt_tokens is not None else PROBLEM
        prompt = models[0].encode(text, raw=raw)
        runs: dict[str, Callable[[int, int], float]] = {
            model.manifest.format: partial(_reason, endless(model), text, raw) for model in models
        }
        file = files["gguf"] / "model.gguf"
        stack.enter_context(_llama_never_stops())
        for name, count in ((THEIRS, None), (THEIRS_MATCHED, threads)):
            llama = _open_llama(file, count, len(prompt) + tokens)
            stack.callback(llama.close)
            runs[name] = partial(_complete, llama, prompt)
        for run in runs.values():
            run(1, min(tokens, 8))  # warm up
        results = in_turn([partial(run, samples, tokens) for run in runs.values()], rounds)
        return SelfConsistencyResult(
            prompt_tokens=len(prompt),
            samples=samples,
            new_tokens=tokens,
            tokens_per_second={name: tuple(column) for name, column in zip(runs, results, strict=True)},
        )


def _reason(model: Model, text: str, raw: bool, samples: int, tokens: int) -> float:
    start = time.perf_counter()
    result = model.reason(
        text, samples=samples, stop_when=None, max_tokens=tokens, seed=1, raw=raw, **_SAMPLING
    )
    return result.tokens / (time.perf_counter() - start)


def _complete(llama: Any, prompt: list[int], samples: int, tokens: int) -> float:
    names = {"repetition_penalty": "repeat_penalty"}
    sampling = {names.get(name, name): value for name, value in _SAMPLING.items()}
    llama.reset()
    made = 0
    start = time.perf_counter()
    for seed in range(1, samples + 1):
        completion = llama.create_completion(prompt, max_tokens=tokens, seed=seed, **sampling)
        made += completion["usage"]["completion_tokens"]  # one or two more where a character was cut
    return made / (time.perf_counter() - start)


def _open_llama(file: Path, threads: int | None, context: int) -> Any:
    """llama-cpp-python's own class; None for its own number of threads."""
    from llama_cpp import Llama

    # 512 tokens are its own default
    return Llama(str(file), n_threads=threads, n_ctx=max(512, context), verbose=False)


@contextmanager
def _llama_never_stops() -> Iterator[None]:
    """No token ends a completion, for all to have one length: an option for that would slow every token down."""
    low_level = library()
    before = low_level.llama_vocab_is_eog
    low_level.llama_vocab_is_eog = lambda vocabulary, token: False
    try:
        yield
    finally:
        low_level.llama_vocab_is_eog = before


def _show(result: SelfConsistencyResult) -> None:
    columns = result.tokens_per_second
    print_table(
        f"{result.samples} samples of {result.new_tokens} tokens over a prompt of {result.prompt_tokens}: "
        "new tokens per second, prompt included",
        ["round", *columns],
        [
            *([number, *row] for number, row in enumerate(zip(*columns.values(), strict=True), 1)),
            ["median", *(median(column) for column in columns.values())],
        ],
    )
    for against in (THEIRS, THEIRS_MATCHED):
        for name, ratio in result.ratios(against).items():
            print(f"{name} is {ratio:.2f} times as fast as {against}")


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `python -m edge_distill_bench.self_consistency`."""
    parser = command_line("self_consistency", __doc__, rounds=5)
    parser.add_argument("--samples", type=int, default=8, help="samples of one prompt (8)")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of each sample (128)")
    options = parser.parse_args(arguments)

    def measure() -> list[SelfConsistencyResult]:
        return [
            compare_self_consistency(
                options.bundles,
                samples=options.samples,
                tokens=options.tokens,
                rounds=options.rounds,
                threads=options.threads,
            )
        ]

    return report("self_consistency", options, measure, _show)


if __name__ == "__main__":
    sys.exit(main())
