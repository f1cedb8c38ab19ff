"""A conversation in the terminal."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edge_distill.speaking import speak
from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from edge_distill_runtime import Model
    from edge_distill_runtime.generation.options import GenerationOptions

__all__ = ["Conversation", "converse"]

_HINT = "Ctrl-C ends an answer, Ctrl-D the chat; /new forgets what was said."


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


def converse(
    model: Model, options: GenerationOptions, console: Console, *, hide_thinking: bool = False
) -> Conversation:
    """Read questions until the end of input; what was said before is part of every prompt."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (makes input() editable, with a history)
    print(_HINT, file=sys.stderr)
    messages: list[dict[str, str]] = []
    tokens = 0
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            return Conversation(messages, tokens)
        except KeyboardInterrupt:
            print(file=sys.stderr)
            continue
        if question == "/new":
            messages.clear()
        elif question:
            tokens += _take_turn(model, question, messages, options, console, hide_thinking)


def _take_turn(
    model: Model,
    question: str,
    messages: list[dict[str, str]],
    options: GenerationOptions,
    console: Console,
    hide_thinking: bool,
) -> int:
    """One question and its answer, both added to `messages`; returns the tokens that it took."""
    asked = [*messages, {"role": "user", "content": question}]
    dropped = 0
    while True:
        try:
            answer = speak(model, asked, options, console, hide_thinking=hide_thinking)
            break
        except InputError as exc:
            if exc.code != "context-full" or len(asked) < 3:
                print(f"error: {exc}", file=sys.stderr)
                return 0
            del asked[:2]
            dropped += 1
        except KeyboardInterrupt:
            print(file=sys.stderr)
            return 0
    if dropped:
        print(f"\nnote: the first {dropped} turns no longer fit the context", file=sys.stderr, end="")
    answer.render(console)
    messages[:] = [*asked, {"role": "assistant", "content": answer.answer.strip()}]
    return answer.tokens
