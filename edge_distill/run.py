"""`edge-distill run`: ask a model one question, several times over, or talk with it."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from edge_distill_runtime import Model
    from edge_distill_runtime.generation.options import GenerationOptions

__all__ = ["Answer", "Conversation", "VotedAnswer", "run", "speak"]

# All control characters but tab and newline: a model must not be able to send codes to the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_MOST_QUESTION = 1 << 20
_CUT = {
    "length": "; cut at --max-tokens",
    "context": "; the context is full",
    "cancelled": "; interrupted",
}


@dataclass(frozen=True)
class Answer:
    """What the model said; `reasoning` is empty where its manifest knows no reasoning markers."""

    text: str
    """Reasoning and answer as they came, without the markers."""
    reasoning: str
    answer: str
    tokens: int
    seconds: float
    """Time to generate, the prompt not counted."""
    tokens_per_second: float
    finish_reason: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self, console: Console) -> None:
        """End the streamed text; what is worth knowing about it goes to stderr."""
        print(file=console.file, flush=True)
        cut = _CUT.get(self.finish_reason, "")
        print(f"{self.tokens} tokens, {self.tokens_per_second:.1f} tokens/s{cut}", file=sys.stderr)


@dataclass(frozen=True)
class VotedAnswer:
    """The answer that most of several samples gave."""

    answer: str
    confidence: float
    """The answer's share of the votes."""
    votes: dict[str, float]
    reasoning: str
    """Of the likeliest sample that gave the answer."""
    samples: list[str]
    """The answer text of every sample that was begun."""
    tokens: int
    tokens_saved: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self, console: Console) -> None:
        """The answer; the votes go to stderr."""
        if self.reasoning:
            console.out(_CONTROL.sub("", self.reasoning.strip()), style="dim", highlight=False)
        console.out(_CONTROL.sub("", self.answer) or "no sample gave an answer", highlight=False)
        shares = ", ".join(f"{_CONTROL.sub('', text)} {share:.0%}" for text, share in self.votes.items())
        saved = f", about {self.tokens_saved} saved" if self.tokens_saved else ""
        print(
            f"votes: {shares}; {len(self.samples)} samples, {self.tokens} tokens{saved}, {self.seconds:.1f} s",
            file=sys.stderr,
        )


@dataclass(frozen=True)
class Conversation:
    """What was said, reasoning left out."""

    messages: list[dict[str, str]]
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self, console: Console) -> None:
        """Everything has been shown already."""
        print(file=console.file, flush=True)


def run(
    bundle: Annotated[Path, "A bundle directory, a .gguf file or an onnxruntime-genai folder"],
    question: Annotated[str | None, "What to ask; - reads it from stdin; without one, a chat begins"] = None,
    *,
    samples: Annotated[int, "Answer so many times and vote"] = 1,
    think: Annotated[
        bool | None, "Open the reasoning, or close it at once; by default as the model likes"
    ] = None,
    hide_thinking: Annotated[bool, "Show the answer alone"] = False,
    max_thinking_tokens: Annotated[int | None, "Close the reasoning after so many tokens"] = None,
    max_tokens: Annotated[int, "Stop after this many tokens"] = 512,
    temperature: Annotated[float | None, "0 is greedy; by default what the bundle says"] = None,
    context: Annotated[
        int | None, "Tokens of prompt and answer; by default what the bundle was made for"
    ] = None,
    threads: Annotated[int | None, "By default the CPUs that this process may use"] = None,
    kv_cache: Annotated[str | None, "Precision of keys and values: f16, q8_0 or q4_0 (GGUF)"] = None,
    seed: Annotated[int | None, "Makes sampling repeatable"] = None,
    console: Console | None = None,
) -> Answer | VotedAnswer | Conversation:
    """Ask a model; the answer appears as it comes, reasoning dimmed, the speed at the end."""
    from edge_distill_runtime import load

    if question is None and (console is None or not sys.stdin.isatty()):
        raise InputError("no-question", "there is no question", "give one, or - to read it from stdin")
    text = sys.stdin.read(_MOST_QUESTION) if question == "-" else question
    options: GenerationOptions = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    if think is not None:
        options["thinking"] = think
    if max_thinking_tokens is not None:
        options["thinking_budget"] = max_thinking_tokens
    with load(bundle, context=context, threads=threads, kv_cache=kv_cache) as model:
        for note in model.notes:
            print(f"note: {_CONTROL.sub('', note)}", file=sys.stderr)
        if text is None:
            from edge_distill.chat import converse

            assert console is not None
            return converse(model, options, console, hide_thinking=hide_thinking)
        if samples > 1:
            return _vote(model, text, samples, options)
        return speak(model, text, options, console, hide_thinking=hide_thinking)


def speak(
    model: Model,
    prompt: str | list[dict[str, str]],
    options: GenerationOptions,
    console: Console | None,
    *,
    hide_thinking: bool = False,
) -> Answer:
    """Generate one answer and show it while it comes; Ctrl-C ends it and keeps what there is."""
    parts: dict[str, str] = {"reasoning": "", "answer": ""}
    text, kind = "", ""
    tokens, seconds, finish_reason = 0, 0.0, ""
    try:
        for event in model.stream(prompt, **options):
            shown = console is not None and not (hide_thinking and event.kind == "reasoning")
            if shown and event.text:
                turned = kind not in ("", event.kind) and not (
                    text.endswith("\n") or event.text.startswith("\n")
                )
                assert console is not None
                _show(event.kind, "\n" + event.text if turned else event.text, console)
                kind = event.kind
            parts[event.kind] += event.text
            text += event.text
            tokens, seconds = event.tokens, event.seconds
            finish_reason = event.finish_reason or finish_reason
    except KeyboardInterrupt:
        if not text:
            raise
        finish_reason = "cancelled"
    return Answer(
        text=text,
        reasoning=parts["reasoning"],
        answer=parts["answer"],
        tokens=tokens,
        seconds=seconds,
        tokens_per_second=tokens / seconds if seconds else 0.0,
        finish_reason=finish_reason,
    )


def _vote(model: Model, question: str, samples: int, options: GenerationOptions) -> VotedAnswer:
    import time

    before = time.perf_counter()
    result = model.reason(question, samples=samples, **options)
    return VotedAnswer(
        answer=result.answer,
        confidence=result.confidence,
        votes=result.votes,
        reasoning=result.reasoning,
        samples=[sample.answer for sample in result.samples],
        tokens=result.tokens,
        tokens_saved=result.tokens_saved,
        seconds=time.perf_counter() - before,
    )


def _show(kind: str, text: str, console: Console) -> None:
    if not console.is_terminal:
        console.file.write(text)
    elif kind == "reasoning":
        console.out(_CONTROL.sub("", text), style="dim", highlight=False, end="")
    else:
        console.file.write(_CONTROL.sub("", text))
    console.file.flush()
