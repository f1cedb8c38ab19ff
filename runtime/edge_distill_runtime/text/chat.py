"""Chat prompts from stored segments, and the split of generated text into reasoning and answer.

Segments are rendered once, at export, from the checkpoint's Jinja template: a template from elsewhere
can loop for ever or ask for gigabytes, a device only joins strings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from edge_distill_runtime.errors import InputError

__all__ = [
    "ChatSegments",
    "Message",
    "Piece",
    "Prompt",
    "ReasoningMarkers",
    "ReasoningParser",
    "longest_overlap",
    "render",
]

Kind = Literal["reasoning", "answer"]
Message = Mapping[str, str]
"""Has `role` and `content`."""
Prompt = str | Sequence[Message]
"""A question, or a conversation."""


@dataclass(frozen=True)
class ChatSegments:
    """The strings around the contents of a conversation; special tokens are written as text."""

    prefix: str
    """Always first, e.g. the text of the beginning-of-sequence token."""
    default_system: str
    """What stands after the prefix when the conversation has no system message."""
    system: tuple[str, str] | None
    """Before and after a system message; None when the template has no system role."""
    user: tuple[str, str]
    assistant: tuple[str, str]
    generation_prompt: str
    """What invites the assistant to speak."""
    strips_content: bool
    """Whether the template trims white space around contents."""
    system_joins_user: bool = False
    """Gemma: the system message stands in the first user turn, user[0] system[0] text system[1] content."""


@dataclass(frozen=True)
class ReasoningMarkers:
    """The strings around the reasoning, e.g. `<think>` and `</think>`."""

    open: str
    close: str


def render(
    segments: ChatSegments, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
) -> str:
    """The prompt of a conversation; messages are `{"role": "system" | "user" | "assistant", "content": str}`.

    Tokenize the result with `add_special_tokens=False`. A system message may only come first.
    """
    turns = [_role_and_content(message, segments) for message in messages]
    if not turns:
        raise InputError("no-messages", "the conversation has no messages", "give at least one user message")
    text = segments.prefix
    pending = ""  # a system message on its way into the first user turn
    if turns[0][0] == "system":
        if segments.system is None:
            raise InputError(
                "no-system-role", "this model's chat form has no system role", "put it in the user message"
            )
        before, after = segments.system
        pending = before + turns[0][1] + after
        if not segments.system_joins_user:
            text, pending = text + pending, ""
        turns = turns[1:]
    else:
        text += segments.default_system
    for role, content in turns:
        if role == "system":
            raise InputError(
                "late-system", "a system message stands after other messages", "move it to the front"
            )
        before, after = segments.user if role == "user" else segments.assistant
        if role == "user":
            content, pending = pending + content, ""
        text += before + content + after
    return text + segments.generation_prompt if add_generation_prompt else text


def _role_and_content(message: Mapping[str, str], segments: ChatSegments) -> tuple[str, str]:
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant"):
        raise InputError("unknown-role", f"role {role!r} is unknown", "use system, user or assistant")
    if not isinstance(content, str):
        raise InputError("no-content", f"the {role} message has no text content", "content must be a string")
    return role, content.strip() if segments.strips_content else content


class Piece(NamedTuple):
    """A stretch of generated text of one kind."""

    kind: Kind
    text: str


class ReasoningParser:
    """Splits a stream of text at reasoning markers; the result does not depend on where the stream is cut.

    The markers themselves are dropped. Text that may still become a marker is held back until it is decided;
    `finish` releases it. With `inside`, the prompt has already opened the reasoning. With `once`, everything behind
    it is the answer, even a marker; without `inside` that is the whole text.
    """

    def __init__(self, markers: ReasoningMarkers | None, *, inside: bool = False, once: bool = False) -> None:
        self._once = once
        self._inside = inside and markers is not None
        self._markers = None if once and not inside else markers
        self._held = ""

    @property
    def kind(self) -> Kind:
        """The kind of text that comes next."""
        return "reasoning" if self._inside else "answer"

    def feed(self, text: str) -> list[Piece]:
        """The pieces decided so far, in order, none of them empty."""
        if self._markers is None:
            return [Piece("answer", text)] if text else []
        pieces = []
        text = self._held + text
        while True:
            marker = self._markers.close if self._inside else self._markers.open
            at = text.find(marker)
            if at < 0:
                break
            if at:
                pieces.append(Piece(self.kind, text[:at]))
            text = text[at + len(marker) :]
            self._inside = not self._inside
            if self._once:
                self._markers = None
                self._held = ""
                return pieces + ([Piece("answer", text)] if text else [])
        held = longest_overlap(text, marker)
        self._held = text[len(text) - held :]
        if len(text) > held:
            pieces.append(Piece(self.kind, text[: len(text) - held]))
        return pieces

    def finish(self) -> list[Piece]:
        """The text still held back, at the end of the stream."""
        held, self._held = self._held, ""
        return [Piece(self.kind, held)] if held else []


def longest_overlap(text: str, marker: str) -> int:
    """Length of the longest proper prefix of `marker` that ends `text`."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0
