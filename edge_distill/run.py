"""`edge-distill run`: ask a model one question, several times over, or talk with it."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from edge_distill.chat import Conversation, converse
from edge_distill.speaking import CONTROL, Answer, speak
from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from edge_distill_runtime import Model
    from edge_distill_runtime.generation.options import GenerationOptions

__all__ = ["Answer", "Conversation", "VotedAnswer", "run"]

_MOST_QUESTION = 1 << 20


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
            console.out(CONTROL.sub("", self.reasoning.strip()), style="dim", highlight=False)
        console.out(CONTROL.sub("", self.answer) or "no sample gave an answer", highlight=False)
        shares = ", ".join(f"{CONTROL.sub('', text)} {share:.0%}" for text, share in self.votes.items())
        saved = f", about {self.tokens_saved} saved" if self.tokens_saved else ""
        print(
            f"votes: {shares}; {len(self.samples)} samples, {self.tokens} tokens{saved}, {self.seconds:.1f} s",
            file=sys.stderr,
        )


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
            print(f"note: {CONTROL.sub('', note)}", file=sys.stderr)
        if text is None:
            assert console is not None
            return converse(model, options, console, hide_thinking=hide_thinking)
        if samples > 1:
            return _vote(model, text, samples, options)
        return speak(model, text, options, console, hide_thinking=hide_thinking)


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
