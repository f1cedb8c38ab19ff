"""Decoding speed of bundles against their engines' own loops, measured in turn in one run.

    python -m edge_distill_bench.decode BUNDLE... [--tokens 128] [--rounds 5] [--llama-bench PROGRAM]

The reference for ONNX is the generator of onnxruntime-genai on the same folder; for GGUF it is a bare
`llama_decode` loop over the same file and, where benchmarks/peers/build_llama_bench.sh has built it, llama-bench.
The engines' threads spin: on a machine that does anything else the numbers mean nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
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
from edge_distill_runtime import BackendError, InputError, MissingExtra, Model, load
from edge_distill_runtime.engines.llama import library

__all__ = ["DecodeResult", "compare_decoding", "main"]


@dataclass(frozen=True)
class DecodeResult:
    """Tokens per second of every loop, by its name, in every round; `edge-distill` is the first."""

    bundle: str
    format: str
    precision: str
    prompt_tokens: int
    new_tokens: int
    tokens_per_second: dict[str, tuple[float, ...]]
    same_tokens: bool
    """Whether all loops that choose tokens chose the same ones."""

    @property
    def ratios(self) -> dict[str, float]:
        """Ours to each of the others, the median of the rounds."""
        ours, *others = self.tokens_per_second
        speed = self.tokens_per_second
        return {name: median_ratio(speed[ours], speed[name]) for name in others}

    @property
    def summary(self) -> dict[str, Any]:
        return {"ratios": self.ratios}


@dataclass(frozen=True)
class _Run:
    tokens_per_second: float
    tokens: tuple[int, ...] | None
    """None where the loop does not choose them."""


Loop = Callable[[int], _Run]


def compare_decoding(
    bundle: Path | str,
    *,
    prompt_tokens: int = 200,
    tokens: int = 128,
    rounds: int = 5,
    threads: int,
    llama_bench: Path | None = None,
) -> DecodeResult:
    """Decode `tokens` greedy tokens with the runtime and with the references, `rounds` times in turn."""
    check_counts(prompt_tokens=prompt_tokens, new_tokens=tokens - 1, rounds=rounds)
    with ExitStack() as stack:
        model = stack.enter_context(load(bundle, threads=threads))
        text = text_of(model, TRACE, prompt_tokens)
        prompt = model.encode(text, raw=True)
        if len(prompt) + tokens > model.backend.context_length:
            raise InputError(
                "too-many-tokens",
                f"{len(prompt) + tokens} tokens exceed the bundle's context of {model.backend.context_length}",
                "ask for fewer",
            )
        loops: dict[str, Loop] = {"edge-distill": partial(_runtime, endless(model), text)}
        if model.manifest.format == "gguf":
            loops["llama_decode"] = _bare_llama(model, prompt, threads, stack)
            if llama_bench is not None:
                file = Path(bundle) / "model.gguf"
                loops["llama-bench"] = partial(_llama_bench, llama_bench, file, len(prompt), threads)
        else:
            ours = loops["edge-distill"](tokens).tokens or ()
            never = next(token for token in range(model.backend.vocab_size) if token not in ours)
            loops["onnxruntime-genai"] = _genai(Path(bundle), prompt, threads, end=never)
        for loop in loops.values():
            loop(min(tokens, 16))  # warm up
        runs = in_turn([partial(loop, tokens) for loop in loops.values()], rounds)
        chosen = {run.tokens for column in runs for run in column if run.tokens is not None}
        return DecodeResult(
            bundle=model.manifest.name,
            format=model.manifest.format,
            precision=model.manifest.precision.target,
            prompt_tokens=len(prompt),
            new_tokens=tokens,
            tokens_per_second={
                name: tuple(run.tokens_per_second for run in column)
                for name, column in zip(loops, runs, strict=True)
            },
            same_tokens=len(chosen) == 1,
        )


def _runtime(model: Model, text: str, count: int) -> _Run:
    """What an app calls: text, events and all."""
    result = model.generate(text, raw=True, max_tokens=count, temperature=0.0)
    return _Run((count - 1) / result.seconds, result.tokens)  # the first one comes from the prompt's logits


def _bare_llama(model: Model, prompt: list[int], threads: int, stack: ExitStack) -> Loop:
    """The least that can be written around llama_decode: one batch of one token, and numpy's argmax."""
    import numpy as np

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
            raise BackendError("decode-failed", "llama_decode failed in the bare loop")
        logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(context, -1), shape=(vocabulary,))
        return int(logits.argmax())

    def loop(count: int) -> _Run:
        llama.llama_memory_clear(memory, True)
        tokens = [decode(prompt, 0)]
        start = time.perf_counter()
        for position in range(len(prompt), len(prompt) + count - 1):
            tokens.append(decode(tokens[-1:], position))
        return _Run((count - 1) / (time.perf_counter() - start), tuple(tokens))

    return loop


def _llama_bench(program: Path, file: Path, depth: int, threads: int, count: int) -> _Run:
    """A process of llama-bench for every round: random tokens behind `depth` others, as many as ours."""
    sizes = {"-p": 0, "-n": count, "-d": depth, "-t": threads, "-r": 1}
    numbers = [str(part) for pair in sizes.items() for part in pair]
    try:
        done = subprocess.run(
            [program, "-m", file, *numbers, "-o", "json"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as exc:
        said = getattr(exc, "stderr", "") or ""
        raise InputError(
            "llama-bench-failed",
            f"{program} failed: {exc} {said[-200:]}",
            "build it with benchmarks/peers/build_llama_bench.sh",
        ) from exc
    return _Run(_generation_speed(done.stdout), None)


def _generation_speed(report: str) -> float:
    """Tokens per second from llama-bench's JSON."""
    (entry,) = (entry for entry in json.loads(report) if entry["n_gen"])
    return float(entry["avg_ts"])


def _genai(bundle: Path, prompt: list[int], threads: int, end: int) -> Loop:
    """onnxruntime-genai's generate loop, with the same number of threads; `end` is a token that ours never chooses.

    It cannot go on behind a token that ends a text, as the other loops do, but `min_length` keeps it from choosing it.
    """
    try:
        import onnxruntime_genai as genai
    except ImportError as exc:
        raise MissingExtra(
            "missing-genai", "onnxruntime-genai is not installed", 'pip install "edge-distill[bench]"'
        ) from exc
    config = genai.Config(str(bundle))
    session = {"session_options": {"intra_op_num_threads": threads}}
    overlay = {"model": {"eos_token_id": end, "decoder": session}}
    config.overlay(json.dumps(overlay))
    engine = genai.Model(config)

    def loop(count: int) -> _Run:
        options = genai.GeneratorParams(engine)
        # max_length stays the bundle's
        options.set_search_options(do_sample=False, min_length=len(prompt) + count)
        generator = genai.Generator(engine, options)
        generator.append_tokens(prompt)
        generator.generate_next_token()
        tokens = [int(generator.get_next_tokens()[0])]
        start = time.perf_counter()
        for _ in range(count - 1):
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
        return _Run((count - 1) / (time.perf_counter() - start), tuple(tokens))

    return loop


def _show(result: DecodeResult) -> None:
    columns = result.tokens_per_second
    ratios = {"edge-distill": 1.0} | result.ratios
    print_table(
        f"{result.bundle} {result.format} {result.precision}: decoding {result.new_tokens} tokens behind "
        f"{result.prompt_tokens}, tokens per second",
        ["round", *columns],
        [
            *([number, *row] for number, row in enumerate(zip(*columns.values(), strict=True), 1)),
            ["median", *(median(column) for column in columns.values())],
            ["ours is x times", *(ratios[name] for name in columns)],
        ],
    )
    if not result.same_tokens:
        print("the loops chose different tokens")


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `python -m edge_distill_bench.decode`."""
    parser = command_line("decode", __doc__, rounds=5)
    parser.add_argument("--tokens", type=int, default=128, help="new tokens in every round (128)")
    parser.add_argument("--llama-bench", type=Path, metavar="PROGRAM", help="a second reference for GGUF")
    options = parser.parse_args(arguments)

    def measure() -> list[DecodeResult]:
        return [
            compare_decoding(
                bundle,
                tokens=options.tokens,
                rounds=options.rounds,
                threads=options.threads,
                llama_bench=options.llama_bench,
            )
            for bundle in options.bundles
        ]

    return report("decode", options, measure, _show)


if __name__ == "__main__":
    sys.exit(main())
