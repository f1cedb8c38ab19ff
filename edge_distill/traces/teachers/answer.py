"""What a server of chat completions is asked, and what its answer says."""

from __future__ import annotations

import json
from typing import Any

from edge_distill.traces.teachers.markers import split_reasoning, tidy
from edge_distill.traces.teachers.teacher import Request, Sampling, Written
from edge_distill_runtime.bundles.files import strict_json
from edge_distill_runtime.text.chat import ReasoningMarkers

__all__ = ["error_message", "model_names", "payload", "read_completion"]

_MARKERS = ReasoningMarkers("<think>", "</think>")
_MAX_MESSAGE = 300


def payload(model: str, request: Request, sampling: Sampling) -> bytes:
    """The body of `POST /v1/chat/completions`; ASCII, so that no character of a problem can break it."""
    body: dict[str, Any] = {
        "model": model,
        "messages": request.turns,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": request.seed,
    }
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    return json.dumps(body).encode("ascii")


def read_completion(data: bytes) -> Written:
    """The first choice of a completion; `ValueError` when it is none.

    The reasoning stands in `reasoning_content` (llama-server, older vLLM), in `reasoning` (vLLM, Ollama), or between
    markers in the text itself.
    """
    completion = strict_json(data)
    choices = completion.get("choices") if isinstance(completion, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError(f"it has no choices: {error_message(data) or 'JSON of another shape'}")
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise ValueError("its choice has no message")
    content = _text(message, "content")
    reasoning = _text(message, "reasoning_content") or _text(message, "reasoning")
    if content is None and reasoning is None:
        raise ValueError("its message has no content")
    content = content or ""
    if not reasoning:
        reasoning, content = split_reasoning(content, _MARKERS, inside=_is_opened_by_prompt(content))
    reason = choices[0].get("finish_reason")
    usage = completion.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return Written(
        *tidy(reasoning, content, continued=False),
        reason[:40] if isinstance(reason, str) and reason else "unknown",
        tokens if type(tokens) is int and tokens >= 0 else 0,
    )


def model_names(data: bytes) -> list[str]:
    """The models of `GET /v1/models`; `ValueError` when it is no such list."""
    listing = strict_json(data)
    models = listing.get("data") if isinstance(listing, dict) else None
    if not isinstance(models, list):
        raise ValueError("it lists no models")
    return [str(model["id"])[:200] for model in models if isinstance(model, dict) and model.get("id")]


def error_message(data: bytes) -> str:
    """What a server says of its error, in one line."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    for key in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(key):
            body = body[key]
    text = body if isinstance(body, str) else ""
    if isinstance(body, dict):
        text = str(body.get("message", ""))
    printable = "".join(character if character.isprintable() else " " for character in text)
    return printable[:_MAX_MESSAGE].strip()


def _text(message: dict[str, Any], key: str) -> str | None:
    """A text, with U+FFFD for halves of surrogate pairs, which no file could hold."""
    value = message.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"its {key} is {type(value).__name__}, not text")
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _is_opened_by_prompt(content: str) -> bool:
    """Templates like DeepSeek-R1's open the reasoning themselves: the text then has only the end of it."""
    close = content.find(_MARKERS.close)
    return close >= 0 and _MARKERS.open not in content[:close]
