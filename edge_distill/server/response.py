"""Events of the runtime as OpenAI's chat completion objects, whole or in chunks.

https://platform.openai.com/docs/api-reference/chat/object. Reasoning stands in `reasoning` and, for older clients,
in `reasoning_content`.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_distill_runtime import Event

__all__ = ["Completion", "error_document", "to_json"]

_IMPOSSIBLE = -9999.0  # what OpenAI writes for a log-probability of minus infinity, which JSON cannot hold


class Completion:
    """Collects the events of one request; every choice is one sample."""

    def __init__(self, model: str, samples: int, *, logprobs: bool) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._choices = [_Choice() for _ in range(samples)]
        self._logprobs = logprobs
        self.prompt_tokens = 0

    @property
    def completion_tokens(self) -> int:
        return sum(choice.tokens for choice in self._choices)

    def add(self, event: Event) -> None:
        """Put an event to its choice."""
        self._choices[event.index].add(event)

    def document(self) -> dict[str, Any]:
        """The finished completion."""
        choices = []
        for index, choice in enumerate(self._choices):
            reasoning = "".join(choice.text["reasoning"]) or None
            message = {
                "role": "assistant",
                "content": "".join(choice.text["answer"]),
                "reasoning": reasoning,
                "reasoning_content": reasoning,
                "refusal": None,
            }
            logprobs = {"content": choice.logprobs, "refusal": None} if self._logprobs else None
            choices.append({"index": index, "message": message, "logprobs": logprobs, **choice.end()})
        return {"object": "chat.completion", **self._head, "choices": choices, "usage": self.usage()}

    def first_chunks(self) -> list[dict[str, Any]]:
        """What a stream begins with: the role, for every choice."""
        delta = {"role": "assistant", "content": ""}
        return [self._chunk(index, delta, None) for index in range(len(self._choices))]

    def chunks(self, events: Sequence[Event]) -> list[dict[str, Any]]:
        """What events add to a stream; they are collected as well, for the usage."""
        made = []
        for event in events:
            self.add(event)
            made += self._chunks(event)
        return made

    def _chunks(self, event: Event) -> list[dict[str, Any]]:
        made = []
        answers = event.kind == "answer"
        entries = [_logprob(entry) for entry in event.logprobs] if self._logprobs and answers else []
        if event.text or entries:
            names = ("content",) if answers else ("reasoning", "reasoning_content")
            made.append(self._chunk(event.index, dict.fromkeys(names, event.text), entries or None))
        if event.finish_reason is not None:
            last = self._chunk(event.index, {}, None)
            last["choices"][0].update(self._choices[event.index].end())
            made.append(last)
        return made

    def usage_chunk(self) -> dict[str, Any]:
        """What ends a stream with `include_usage`."""
        return {"object": "chat.completion.chunk", **self._head, "choices": [], "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        reasoning = sum(choice.reasoning_tokens for choice in self._choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        }

    def _chunk(self, index: int, delta: dict[str, Any], logprobs: list[Any] | None) -> dict[str, Any]:
        content = None if logprobs is None else {"content": logprobs, "refusal": None}
        choice = {"index": index, "delta": delta, "logprobs": content, "finish_reason": None}
        return {"object": "chat.completion.chunk", **self._head, "choices": [choice]}


class _Choice:
    def __init__(self) -> None:
        self.text: dict[str, list[str]] = {"reasoning": [], "answer": []}
        self.logprobs: list[dict[str, Any]] = []
        self.tokens = self.reasoning_tokens = 0
        self._finish_reason = "cancelled"

    def add(self, event: Event) -> None:
        self.text[event.kind].append(event.text)
        if event.kind == "reasoning":
            self.reasoning_tokens += event.tokens - self.tokens
        else:
            self.logprobs += map(_logprob, event.logprobs)
        self.tokens = event.tokens
        self._finish_reason = event.finish_reason or self._finish_reason

    def end(self) -> dict[str, str]:
        """OpenAI knows only `stop` and `length`; what cut a text short stands beside it."""
        openai = "stop" if self._finish_reason == "stop" else "length"
        return {"finish_reason": openai, "finish_detail": self._finish_reason}


def _logprob(entry: Any) -> dict[str, Any]:
    top = [_token(text, logprob) for _, text, logprob in entry.top]
    return {**_token(entry.text, entry.logprob), "top_logprobs": top}


def _token(text: bytes, logprob: float) -> dict[str, Any]:
    return {
        "token": text.decode("utf-8", "replace"),
        "logprob": max(logprob, _IMPOSSIBLE),
        "bytes": list(text),
    }


def error_document(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status)
    kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def to_json(document: dict[str, Any]) -> bytes:
    """ASCII, so that nothing a client sent back to itself can fail to encode."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii")
