"""Decoding speed of a bundle against its engine's own loop, measured in turn in one run.

    python -m edge_distill_bench.decode BUNDLE [--tokens 128] [--rounds 5] [--threads N] [--json]

The reference for GGUF is a bare `llama_decode` loop over the same file, for ONNX the generator of
onnxruntime-genai on the same folder. Prints a table and one JSON line last. The engines' threads spin: on a
machine that does anything else the numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edge_distill_runtime import EdgeDistillError, InputError, MissingExtra, Model, load
from edge_distill_runtime.machine import usable_cpus

__all__ = ["DecodeResult", "compare_decoding", "main"]

# About 240 tokens of a small vocabulary: what a short problem and a piece of its solution take.
PROMPT = (
    "Anna bakes 24 rolls every morning. On Monday she sells 17 of them and gives 3 to her neighbour. On "
    "Tuesday she sells twice as many as she gave away on Monday, and on Wednesday she bakes a second tray. "
    "Her brother Ben brings 12 buns on Thursday, of which one in four is eaten by the children next door. "
    "On Friday the shop is closed, and on Saturday a guest buys half of all that is left. Let us work out "
    "step by step how many rolls and buns are left over at the end of the week.\n\n"
    "Step 1: On Monday there are 24 rolls. Anna sells 17 and gives away 3, so 24 - 17 - 3 = 4 are left.\n"
    "Step 2: On Tuesday she bakes 24 more, which makes 28. She sells twice 3, that is 6, so 22 are left.\n"
    "Step 3:"
)


@dataclass(frozen=True)
class DecodeResult:
    """Tokens per second of both loops in every round; the ratio is the median of the rounds' ratios."""

    bundle: str
    format: str
    precision: str
    reference_name: str
    prompt_tokens: int
    new_tokens: int
    threads: int
    tokens_per_second: list[float]
    reference_tokens_per_second: list[float]
    same_tokens: bool
    load_average: float
    """Of the last minute before the start; above 0.5 something else was running."""

    @property
    def ratio(self) -> float:
        pairs = zip(self.tokens_per_second, self.reference_tokens_per_second, strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)


@dataclass(frozen=True)
class _Run:
    tokens: list[int]
    seconds: float


Loop = Callable[[list[int], int], _Run]


def compare_decoding(
    bundle: Path | str, *, tokens: int = 128, rounds: int = 5, threads: int | None = None
) -> DecodeResult:
    """Decode `tokens` greedy tokens with the runtime and with the reference, `rounds` times in turn."""
    if tokens < 2 or rounds < 1:
        raise InputError("bad-options", f"{tokens} tokens and {rounds} rounds", "ask for at least 2 and 1")
    threads = threads or usable_cpus()
    load_average = os.getloadavg()[0]
    with ExitStack() as stack:
        model = stack.enter_context(load(bundle, threads=threads))
        prompt = model.encode(PROMPT, raw=True)
        context = len(prompt) + tokens
        if context > model.backend.context_length:
            raise InputError(
                "too-many-tokens", f"{context} tokens exceed the bundle's context", "ask for fewer"
            )
        make = _bare_llama if model.manifest.format == "gguf" else _genai
        reference = make(Path(bundle), model, threads, stack)
        ours = _runtime(model)
        loops: list[tuple[list[_Run], Loop]] = [([], ours), ([], reference)]
        for _, loop in loops:
            loop(prompt, min(tokens, 16))  # warm up
        for number in range(rounds):
            for results, loop in loops if number % 2 == 0 else loops[::-1]:
                results.append(loop(prompt, tokens))
        mine, theirs = (results for results, _ in loops)
        return DecodeResult(
            bundle=model.manifest.name,
            format=model.manifest.format,
            precision=model.manifest.precision.target,
            reference_name="bare llama_decode loop"
            if model.manifest.format == "gguf"
            else "onnxruntime-genai",
            prompt_tokens=len(prompt),
            new_tokens=tokens,
            threads=threads,
            # the first token comes from the prompt's logits
            tokens_per_second=[(tokens - 1) / run.seconds for run in mine],
            reference_tokens_per_second=[(tokens - 1) / run.seconds for run in theirs],
            same_tokens=all(run.tokens == mine[0].tokens for run in [*mine, *theirs]),
            load_average=load_average,
        )


def _runtime(model: Model) -> Loop:
    """What an app calls: text, events and all. Stop tokens are ignored, for every run to have one length."""
    endless = Model(replace(model.manifest, stop_ids=()), model.backend, model.tokenizer, model.detokenizer)

    def loop(prompt: list[int], count: int) -> _Run:
        result = endless.generate(PROMPT, raw=True, max_tokens=count, temperature=0.0)
        return _Run(list(result.tokens), result.seconds)

    return loop


def _bare_llama(bundle: Path, model: Model, threads: int, stack: ExitStack) -> Loop:
    """The least that can be written around llama_decode: one batch of one token, and numpy's argmax."""
    import numpy as np

    from edge_distill_runtime.llama import library

    llama = library()
    # the same weights in memory: two copies differ by some per cent, by where their pages happen to lie
    weights = model.backend._model  # type: ignore[attr-defined]
    parameters = llama.llama_context_default_params()
    parameters.n_ctx = model.backend.context_length
    parameters.n_threads = parameters.n_threads_batch = threads
    context = llama.llama_init_from_model(weights, parameters)
    stack.callback(llama.llama_free, context)
    batch = llama.llama_batch_init(512, 0, 1)
    stack.callback(llama.llama_batch_free, batch)
    memory, vocabulary = llama.llama_get_memory(context), model.backend.vocab_size

    def decode(tokens: list[int], position: int) -> int:
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = position + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = index == len(tokens) - 1
        if llama.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(context, -1), shape=(vocabulary,))
        return int(logits.argmax())

    def loop(prompt: list[int], count: int) -> _Run:
        llama.llama_memory_clear(memory, True)
        tokens = [decode(prompt, 0)]
        start = time.perf_counter()
        for position in range(len(prompt), len(prompt) + count - 1):
            tokens.append(decode(tokens[-1:], position))
        return _Run(tokens, time.perf_counter() - start)

    return loop


def _genai(bundle: Path, model: Model, threads: int, stack: ExitStack) -> Loop:
    """onnxruntime-genai's generate loop, with the same number of threads."""
    try:
        import onnxruntime_genai as genai
    except ImportError as exc:
        raise MissingExtra(
            "missing-genai", "onnxruntime-genai is not installed", 'pip install "edge-distill[bench]"'
        ) from exc
    config = genai.Config(str(bundle))
    overlay = {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
    config.overlay(json.dumps(overlay))
    engine = genai.Model(config)

    def loop(prompt: list[int], count: int) -> _Run:
        options = genai.GeneratorParams(engine)
        # min_length keeps it from stopping early; max_length stays the bundle's
        options.set_search_options(do_sample=False, min_length=len(prompt) + count)
        generator = genai.Generator(engine, options)
        generator.append_tokens(prompt)
        generator.generate_next_token()
        tokens = [int(generator.get_next_tokens()[0])]
        start = time.perf_counter()
        for _ in range(count - 1):
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
        return _Run(tokens, time.perf_counter() - start)

    return loop


def _document(result: DecodeResult) -> dict[str, Any]:
    """The JSON line: the result, the machine and the versions."""
    engine = "llama-cpp-python" if result.format == "gguf" else "onnxruntime"
    packages = ["edge-distill-runtime", engine, "numpy"]
    if result.format == "onnx":
        packages.append("onnxruntime-genai")
    return {
        "schema_version": 1,
        "benchmark": "decode",
        **asdict(result),
        "ratio": result.ratio,
        "machine": {"cpu": _cpu_name(), "usable_cpus": usable_cpus(), "system": platform.platform()},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _print_table(result: DecodeResult) -> None:
    print(f"{result.bundle} {result.format} {result.precision}, {result.threads} threads, tokens per second")
    print(f"{'round':>8} {'edge-distill':>14} {result.reference_name:>24} {'ratio':>7}")
    pairs = list(zip(result.tokens_per_second, result.reference_tokens_per_second, strict=True))
    for number, (ours, theirs) in enumerate(pairs, 1):
        print(f"{number:>8} {ours:>14.1f} {theirs:>24.1f} {ours / theirs:>7.3f}")
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{'median':>8} {ours:>14.1f} {theirs:>24.1f} {result.ratio:>7.3f}")
    if not result.same_tokens:
        print("the two loops chose different tokens")
    if result.load_average > 0.5:
        print(f"the machine was busy (load {result.load_average:.1f}): do not trust these numbers")


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `python -m edge_distill_bench.decode`."""
    parser = argparse.ArgumentParser(
        prog="python -m edge_distill_bench.decode", description=__doc__.split("\n")[0]
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tokens", type=int, default=128, help="new tokens in every round (128)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, both loops in each (5)")
    parser.add_argument("--threads", type=int, help="by default the CPUs that the process may use")
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    options = parser.parse_args(arguments)
    try:
        result = compare_decoding(
            options.bundle, tokens=options.tokens, rounds=options.rounds, threads=options.threads
        )
    except EdgeDistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if not options.json:
        _print_table(result)
    print(json.dumps(_document(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
