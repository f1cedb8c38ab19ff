"""What the loops over several generations share: the model's turns, and text that is only data."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, Unpack

from edge_distill_runtime.errors import InputError
from edge_distill_runtime.text.detokenizer import encode

if TYPE_CHECKING:
    from edge_distill_runtime.generation.options import GenerationOptions
    from edge_distill_runtime.generation.result import Generation
    from edge_distill_runtime.text.chat import ChatSegments, Message, Prompt

__all__ = ["Conversation", "Interrupted", "PlainText", "Speaker", "last_message"]

Reason = Literal["cancelled", "deadline", "context"]

_SHORTEST_SEGMENT = 3  # a chat form's "\n" or ":" is no marker


class Speaker(Protocol):
    """What the loops need of a `Model`."""

    @property
    def manifest(self) -> Any: ...
    @property
    def tokenizer(self) -> Any: ...
    def generate(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> Generation: ...


def last_message(prompt: Prompt) -> tuple[Sequence[Message], str]:
    """The messages before the last one, and the text of the last one, which is the user's."""
    if isinstance(prompt, str):
        return [], prompt
    if not prompt or prompt[-1].get("role") != "user":
        raise InputError(
            "no-question", "the conversation does not end with the user", "let a user message come last"
        )
    return prompt[:-1], prompt[-1].get("content", "")


class PlainText:
    """Makes text that others wrote safe to stand in a prompt: no part of it can become a special token.

    A prompt is tokenized with special tokens written out, so `<|im_end|>` in a web page would end the turn.
    Special tokens, reasoning markers and the strings of the chat form get a space after their first character.
    """

    def __init__(self, model: Speaker) -> None:
        markers, chat = model.manifest.reasoning, model.manifest.chat
        strings = {markers.open, markers.close} if markers else set()
        added = model.tokenizer.get_added_tokens_decoder()
        self._special = {token for token, entry in added.items() if entry.special or entry.content in strings}
        strings |= {added[token].content for token in self._special} | _segments(chat)
        # longest first, or <s> would hide <s>[INST]; a normalizer may fold case
        choices = sorted((re.escape(string) for string in strings if string), key=len, reverse=True)
        self._pattern = re.compile("|".join(choices), re.IGNORECASE) if choices else None
        self._tokenizer = model.tokenizer

    def __call__(self, text: str) -> str:
        """`text` with every marker broken, and lone surrogates as "?"."""
        text = text.encode("utf-8", "replace").decode("utf-8")
        if self._pattern:
            text = self._pattern.sub(lambda match: _broken(match[0]), text)
        if self._special.intersection(encode(self._tokenizer, text)):
            # a normalizer made one of other characters: leave it nothing to join
            text = " ".join(text)
        return text


def _broken(marker: str) -> str:
    return f"{marker[0]} {marker[1:]}" if len(marker) > 1 else "?"


def _segments(chat: ChatSegments | None) -> set[str]:
    """The strings around contents, for chat forms that write them as ordinary text."""
    if chat is None:
        return set()
    pairs = [chat.user, chat.assistant, *([chat.system] if chat.system else [])]
    strings = {string.strip() for pair in pairs for string in pair} | {chat.generation_prompt.strip()}
    return {string for string in strings if len(string) >= _SHORTEST_SEGMENT}


class Interrupted(Exception):
    """No further generation is possible; `reason` says why. It never leaves the loops."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


class Conversation:
    """Generations that share one set of options.

    Generation i uses `seed` + i; `deadline` and `cancel` hold for all of them together.
    """

    def __init__(self, model: Speaker, options: GenerationOptions) -> None:
        self._model = model
        self._options = options
        self._started = time.monotonic()
        self._count = 0
        self.tokens = 0
        """Generated so far, reasoning included."""
        self.last: Generation | None = None

    def ask(self, messages: Sequence[Message], **changes: Unpack[GenerationOptions]) -> Generation:
        """One generation; `changes` replace the shared options. Raises `Interrupted`."""
        options: GenerationOptions = {**self._options, **changes}
        seed, deadline, cancel = options.get("seed"), options.get("deadline"), options.get("cancel")
        if cancel is not None and cancel.is_set():
            raise Interrupted("cancelled")
        if seed is not None:
            options["seed"] = seed + self._count
        if deadline is not None and self._count:
            options["deadline"] = left = deadline - (time.monotonic() - self._started)
            if left <= 0:
                raise Interrupted("deadline")
        self._count += 1
        try:
            generation = self._model.generate(self._prompt(messages), **options)
        except InputError as exc:
            if exc.code == "context-full":
                raise Interrupted("context") from exc
            raise
        self.last = generation
        self.tokens += len(generation.tokens)
        if generation.finish_reason in ("cancelled", "deadline"):
            raise Interrupted(generation.finish_reason)
        return generation

    def _prompt(self, messages: Sequence[Message]) -> Prompt:
        if self._model.manifest.chat is None or self._options.get("raw"):  # a base model continues a text
            return "".join(f"{message['content']}\n" for message in messages)
        return messages
