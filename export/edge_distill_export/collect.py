"""The calibration text of an export: the user's traces, or what the student writes by itself."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_distill_export.artifact import Source
from edge_distill_export.bundle import staged
from edge_distill_export.calibration import (
    OWN_BATCH,
    OWN_TOKENS,
    OWN_TRACES,
    Text,
    Trace,
    builtin_traces,
    own_traces,
    parse_trace,
    prompt_text,
    render_traces,
)
from edge_distill_export.families import embedding_names, linear_names
from edge_distill_export.grid import quantize_rtn
from edge_distill_export.unseen import unseen_traces
from edge_distill_runtime.bundles.manifest import ReasoningLengths
from edge_distill_runtime.engines.allocator import give_back_freed_memory
from edge_distill_runtime.engines.machine import usable_cpus
from edge_distill_runtime.errors import InputError

_FEWEST_TRACES = 20  # for quantiles
SOLVED_TRACES = 64
OWN_PROBLEMS = OWN_TRACES + SOLVED_TRACES
"""Of the built-in problems so many serve the student's own calibration; the rest are free."""
MAX_TOKENS = 24_000
"""More calibration text than this is thinned out evenly: time and memory grow with it, quality hardly does."""


@dataclass(frozen=True)
class Calibration:
    """Texts, and where they came from for the lineage."""

    texts: tuple[Text, ...]
    origin: str
    """`own` or the name of the user's file."""
    left_out: int = 0
    """The user's traces that share their wording with the held-out text."""

    def to_dict(self) -> dict[str, Any]:
        tokens = [text.tokens for text in self.texts]
        return {
            "origin": self.origin,
            "texts": len(tokens),
            "tokens": sum(map(len, tokens)),
            "sha256": hashlib.sha256(json.dumps(tokens).encode()).hexdigest(),
            "left_out": self.left_out,
        }

    @property
    def reasoning_lengths(self) -> ReasoningLengths | None:
        """Quantiles over the user's traces, what the student learned from; None when they tell too little."""
        lengths = sorted(text.answer - text.prompt for text in self.texts if text.answer > text.prompt)
        if self.origin == "own" or len(lengths) < _FEWEST_TRACES:
            return None
        # the smallest length that so many of a hundred do not pass
        return ReasoningLengths(*(lengths[-(-len(lengths) * p // 100) - 1] for p in (50, 90, 99)))


def calibration_texts(source: Source, path: Path | None, out: Path) -> Calibration:
    """Read `path`, or let the student write; its own traces are kept in `out` for reading and reuse.

    Of `path` without traces that share their wording with the held-out text: it would be no measure any more.

    To what the student writes come worked solutions of other built-in problems: its own text is what it will see
    in use, the solutions hold the steps that a small student leaves out.
    """
    tokenizer = source.checkpoint.tokenizer
    if path is not None:
        traces, left_out = unseen_traces(path)
        texts = render_traces(traces, source.style, tokenizer, source.context_length)
        return Calibration(_thinned(texts), path.name, left_out)
    problems = builtin_traces("calibration")
    own, solved = problems[:OWN_TRACES], problems[OWN_TRACES : OWN_TRACES + SOLVED_TRACES]
    texts = written_by_student(source, own, out)
    written = [
        parse_trace(trace.messages, text, source.style, tokenizer, source.stop_ids)
        for trace, text in zip(own, texts, strict=True)
    ]
    _save([*written, *solved], out / f"{source.checkpoint.name}-calibration.jsonl")
    texts += render_traces(solved, source.style, tokenizer, source.context_length)
    return Calibration(_thinned(texts), "own")


def _thinned(texts: Sequence[Text]) -> tuple[Text, ...]:
    """An even selection of at most `MAX_TOKENS` tokens, at least one text."""
    total = sum(len(text.tokens) for text in texts)
    keep = max(1, min(len(texts), int(len(texts) * MAX_TOKENS / total)))
    return tuple(texts[index * len(texts) // keep] for index in range(keep))


def written_by_student(source: Source, problems: Sequence[Trace], out: Path) -> list[Text]:
    """Sample the student's solutions of the built-in problems from an 8-bit GGUF of it."""
    from edge_distill_runtime.engines.llama import LlamaBackend

    checkpoint = source.checkpoint
    prompts = [
        checkpoint.tokenizer.encode(prompt_text(trace, source.style), add_special_tokens=False)
        for trace in problems
    ]
    longest = max(map(len, prompts))
    if longest >= source.context_length:
        raise InputError(
            "context-too-short",
            f"the built-in problems take up to {longest} tokens, the context {source.context_length}",
            "raise --context or give traces of your own with --calibrate",
        )
    with staged(out / "calibration") as directory:
        _write_8_bits(source, directory / "model.gguf")
        room = min(source.context_length, longest + OWN_TOKENS)
        backend = LlamaBackend(directory / "model.gguf", context=room * OWN_BATCH, threads=usable_cpus())
        try:
            return own_traces(backend, prompts, frozenset(source.stop_ids), room)
        finally:
            backend.close()
            give_back_freed_memory()  # GPTQ, which comes next, needs the most of all stages


def _write_8_bits(source: Source, path: Path) -> None:
    from edge_distill_export.gguf_writer import write_gguf

    checkpoint = source.checkpoint
    weights = dict(checkpoint.model.named_parameters())
    names = [*embedding_names(checkpoint.model), *linear_names(checkpoint.config)]
    quantized = {name: quantize_rtn(weights[name].data, 8, name) for name in names}
    write_gguf(checkpoint, path, float_type="f16", quantized=quantized, context_length=source.context_length)


def _save(traces: Sequence[Trace], path: Path) -> None:
    """The traces in the form that `--calibrate` reads, written atomically."""
    lines = []
    for trace in traces:
        turn = {"role": "assistant", "content": trace.answer}
        if trace.reasoning:
            turn = {"role": "assistant", "reasoning_content": trace.reasoning, "content": trace.answer}
        lines.append(json.dumps({"messages": [*trace.messages, turn]}, ensure_ascii=False))
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(partial, path)
