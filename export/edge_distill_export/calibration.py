"""Reasoning traces as token ids: read from JSON Lines, rendered in the student's own chat form, or written by it.

The same rendering serves calibration and the held-out text of the post-condition; which tokens are reasoning and
which are the answer is kept, so that both can be measured apart.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_distill_export.progress import stage
from edge_distill_runtime.errors import InputError
from edge_distill_runtime.text.chat import ChatSegments, ReasoningMarkers, ReasoningParser, render
from edge_distill_runtime.text.solution import solution_parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from edge_distill_runtime.engines.backend import Backend

_MAX_LINE = 1 << 20
_MAX_TRACES = 100_000
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")

MIN_HELDOUT = 8

# How the student writes its own calibration traces.
OWN_TRACES = 16
OWN_TOKENS = 256
OWN_BATCH = 16
_OWN_TEMPERATURE = 0.7
_OWN_TOP_P = 0.95


@dataclass(frozen=True)
class Trace:
    """A problem with its reasoning and answer; `messages` are the turns before the assistant's last one."""

    messages: tuple[dict[str, str], ...]
    reasoning: str
    answer: str


@dataclass(frozen=True)
class Text:
    """A rendered trace: `tokens[:prompt]` are the prompt, up to `answer` the reasoning, then the answer."""

    tokens: list[int]
    prompt: int
    answer: int


@dataclass(frozen=True)
class Style:
    """How a student writes: its chat segments and reasoning markers, None where it has none.

    Without chat segments a problem is plain text between `start` and `end`, the texts of special tokens.
    """

    chat: ChatSegments | None
    markers: ReasoningMarkers | None
    start: str = ""
    end: str = ""


def read_traces(path: Path) -> list[Trace]:
    """The traces of a JSON Lines file; raises `InputError` with the line number of the first bad one.

    A line holds `messages` (the last one the assistant's, its reasoning in `reasoning_content`, `reasoning` or
    `thinking`), or `problem`, `reasoning` and `answer`.
    """
    traces = []
    for number, line in _lines(path):
        try:
            traces.append(_trace(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            reason = f"lacks {exc}" if isinstance(exc, KeyError) else str(exc)
            raise InputError(
                "bad-trace",
                f"{path}, line {number}: {reason}",
                'a line looks like {"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}',
            ) from exc
    if not traces:
        raise InputError("no-traces", f"{path} holds no traces", "write one JSON object a line")
    return traces


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and lines, empty ones left out; bounded in length and number."""
    from edge_distill_runtime.bundles.files import open_regular

    with open_regular(path, allow_links=True) as file:
        for number in range(1, _MAX_TRACES + 1):
            data = file.readline(_MAX_LINE + 1)
            if not data:
                return
            if len(data) > _MAX_LINE:
                raise InputError(
                    "line-too-long", f"{path}, line {number}: more than {_MAX_LINE} bytes", "one trace a line"
                )
            try:
                line = data.decode("utf-8").strip()
            except UnicodeDecodeError as exc:
                raise InputError("not-utf8", f"{path}, line {number}: {exc}", "save it as UTF-8") from exc
            if line:
                yield number, line
        if file.read(1):
            raise InputError(
                "too-many-traces", f"{path} has more than {_MAX_TRACES} lines", "take a part of it"
            )


def _trace(item: Any) -> Trace:
    if not isinstance(item, dict):
        raise ValueError(f"holds {type(item).__name__}, not an object")
    if "messages" not in item:
        turn = {"role": "assistant", "content": str(item["answer"]), "reasoning": str(item["reasoning"])}
        item = {"messages": [{"role": "user", "content": str(item["problem"])}, turn]}
    *before, last = item["messages"]
    if last["role"] != "assistant":
        raise ValueError(f"the last message is of role {last['role']!r}, not assistant")
    reasoning = next((last[key] for key in _REASONING_KEYS if last.get(key)), "")
    messages = tuple({"role": str(turn["role"]), "content": turn["content"]} for turn in before)
    contents = [turn["content"] for turn in messages] + [last["content"], reasoning]
    if not messages or not all(isinstance(content, str) for content in contents):
        raise ValueError("needs a user's message before the assistant's, all contents as text")
    return Trace(messages, reasoning, last["content"])


def builtin_traces(name: str) -> list[Trace]:
    """The problems that come with the package, each with a worked solution.

    `calibration` and `repair` share their templates; those of `deciding` and of `heldout` are others.
    """
    path = files("edge_distill_export") / "problems" / f"{name}.jsonl"
    return [_trace(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def prompt_text(trace: Trace, style: Style) -> str:
    """The prompt, ready for the assistant to go on."""
    if style.chat is None:
        return style.start + "\n".join(message["content"] for message in trace.messages) + "\n"
    return render(style.chat, trace.messages)


def render_trace(trace: Trace, style: Style, tokenizer: PreTrainedTokenizerFast, context: int) -> Text:
    """Token ids of a trace; raises `InputError` when it does not fit the context."""
    prompt = prompt_text(trace, style)
    reasoning, answer = solution_parts(
        prompt, trace.reasoning, trace.answer, chat=style.chat, markers=style.markers, end=style.end
    )
    encoded = tokenizer(
        prompt + reasoning + answer,
        add_special_tokens=False,
        return_offsets_mapping=True,
    )
    tokens, starts = encoded["input_ids"], [start for start, _ in encoded["offset_mapping"]]
    if len(tokens) > context:
        raise InputError(
            "trace-too-long",
            f"a trace has {len(tokens)} tokens, the context {context}: {trace.messages[-1]['content'][:40]!r}",
            "raise --context or shorten the trace",
        )
    first, second = np.searchsorted(starts, [len(prompt), len(prompt) + len(reasoning)])
    return Text(tokens, int(first), int(second))


def parse_trace(
    messages: tuple[dict[str, str], ...],
    text: Text,
    style: Style,
    tokenizer: PreTrainedTokenizerFast,
    stop_ids: Container[int],
) -> Trace:
    """What a student wrote after `messages`, taken apart at its markers: the inverse of `render_trace`."""
    tokens = text.tokens[text.prompt :]
    if tokens and tokens[-1] in stop_ids:
        tokens = tokens[:-1]
    # with special tokens, as markers and calls of tools often are
    written = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
    prompt = prompt_text(Trace(messages, "", ""), style)
    parser = ReasoningParser(style.markers, inside=_is_open(prompt, style))
    pieces = parser.feed(written) + parser.finish()
    reasoning = "".join(piece.text for piece in pieces if piece.kind == "reasoning").strip("\n")
    answer = "".join(piece.text for piece in pieces if piece.kind == "answer")
    return Trace(messages, reasoning, answer.lstrip("\n") if reasoning else answer)


def _is_open(prompt: str, style: Style) -> bool:
    """Whether the prompt itself opens the reasoning."""
    return style.markers is not None and prompt.rstrip().endswith(style.markers.open)


def render_traces(
    traces: Iterable[Trace], style: Style, tokenizer: PreTrainedTokenizerFast, context: int
) -> list[Text]:
    """All traces rendered."""
    return [render_trace(trace, style, tokenizer, context) for trace in traces]


def heldout_texts(style: Style, tokenizer: PreTrainedTokenizerFast, context: int) -> list[Text]:
    """The built-in held-out traces that fit the context; raises `InputError` when hardly any does."""
    texts = []
    for trace in builtin_traces("heldout"):
        try:
            texts.append(render_trace(trace, style, tokenizer, context))
        except InputError:
            continue
    if len(texts) < MIN_HELDOUT:
        raise InputError(
            "context-too-short",
            f"{len(texts)} of the held-out traces fit a context of {context} tokens, {MIN_HELDOUT} are needed",
            "raise --context",
        )
    return texts


def own_traces(
    backend: Backend, prompts: list[list[int]], stop_ids: frozenset[int], context: int, *, seed: int = 0
) -> list[Text]:
    """What the student itself writes after `prompts`, sampled in batches: the text that it will see in use.

    The backend must hold `OWN_BATCH` sequences of `context` tokens.
    """
    from edge_distill_runtime.generation.sampling import Sampler, SamplingOptions

    texts = []
    with stage("Writing calibration traces", len(prompts)) as advance:
        for start in range(0, len(prompts), OWN_BATCH):
            batch = prompts[start : start + OWN_BATCH]
            options = [
                SamplingOptions(_OWN_TEMPERATURE, top_p=_OWN_TOP_P, seed=seed + start + i)
                for i in range(len(batch))
            ]
            samplers = [Sampler(option).sample for option in options]
            written = _generate(backend, batch, samplers, stop_ids, context)
            texts += [Text(p + w, len(p), len(p) + len(w)) for p, w in zip(batch, written, strict=True)]
            advance(len(batch))
    return texts


def _generate(
    backend: Backend, prompts: list[list[int]], samplers: list[Any], stops: frozenset[int], context: int
) -> list[list[int]]:
    """Sample all prompts side by side, one batched step a token; the stop token is kept."""
    sequences = []
    written: list[list[int]] = []
    for prompt, sample in zip(prompts, samplers, strict=True):
        sequences.append(backend.prefill(prompt))
        written.append([sample(sequences[-1].logits)])

    def is_open(index: int) -> bool:
        room = context - len(prompts[index]) - len(written[index])
        return written[index][-1] not in stops and len(written[index]) < OWN_TOKENS and room > 0

    active = [index for index in range(len(prompts)) if is_open(index)]
    while active:
        logits = backend.step([sequences[i] for i in active], [written[i][-1] for i in active])
        for row, index in enumerate(active):
            written[index].append(samplers[index](logits[row]))
        active = [index for index in active if is_open(index)]
    for sequence in sequences:
        backend.release(sequence)
    return written
