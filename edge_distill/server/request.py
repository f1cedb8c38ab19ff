"""From the bytes of a chat completion request to what the runtime is asked; everything is checked here.

https://platform.openai.com/docs/api-reference/chat/create. What would change the answer and is not supported
is an error, never ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_distill_runtime.generation.options import GenerationOptions

__all__ = ["ChatRequest", "RequestError", "parse_body", "parse_request"]

MOST_SAMPLES = 16
_MOST_MESSAGES = 512
_MOST_STOPS = 4
_DEEPEST = 64

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# Keys of a message that do not change the prompt: templates drop names and earlier reasoning.
_MESSAGE_KEYS = {"role", "content", "name", "refusal", "reasoning", "reasoning_content"}
_EFFORTS = {"minimal": 1 / 8, "low": 1 / 4, "medium": 1 / 2, "high": 3 / 4}
"""Share of max_tokens that the reasoning may take."""
_HARMLESS = {
    "metadata", "parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention", "safety_identifier", "service_tier", "store", "user",
}  # fmt: skip
_ONLY: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "verbosity": ("medium",),
}
"""Parameters of which only the value that does nothing is supported."""
_LIMITS: dict[str, tuple[type, float, float]] = {
    "temperature": (float, 0, 2),
    "top_p": (float, 0, 1),
    "min_p": (float, 0, 1),
    "top_k": (int, 0, 1 << 31),
    "repetition_penalty": (float, 0, 10),
    "seed": (int, -(1 << 63), (1 << 63) - 1),
    "max_tokens": (int, 1, 1 << 31),
    "max_completion_tokens": (int, 1, 1 << 31),
    "thinking_budget": (int, 0, 1 << 31),
    "n": (int, 1, MOST_SAMPLES),
    "top_logprobs": (int, 0, 20),
}
_OTHERS = {
    "logprobs", "messages", "model", "reasoning_effort", "response_format", "stop", "stream", "stream_options",
}  # fmt: skip


class RequestError(Exception):
    """What is wrong with a request, in the words of OpenAI's error object."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code


@dataclass(frozen=True)
class ChatRequest:
    """A checked request."""

    messages: list[dict[str, str]]
    samples: int
    options: GenerationOptions
    stream: bool = False
    include_usage: bool = False
    schema: dict[str, Any] | None = None
    """Of the answer; it may take a second to check, so that is left to the worker."""


def parse_body(body: bytes) -> dict[str, Any]:
    """The JSON object in a request's body: of bounded depth, with numbers and text that exist."""
    try:
        document = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:  # includes JSON and UTF-8 errors
        raise RequestError(400, "the body is not valid JSON in UTF-8") from exc
    level = [document]
    for _ in range(_DEEPEST):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, str):
                _check_text(value)
            elif isinstance(value, dict):
                inner += [*value, *value.values()]
            elif isinstance(value, list):
                inner += value
        level = inner
    if level:
        raise RequestError(400, f"the body is nested more than {_DEEPEST} levels deep")
    if not isinstance(document, dict):
        raise RequestError(400, "the body must be a JSON object")
    return document


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _check_text(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise RequestError(400, "the body holds a lone surrogate, which is no text") from exc


def parse_request(body: dict[str, Any], *, model: str, thinks: bool, context: int) -> ChatRequest:
    """What the runtime has to do for a request's JSON object; `RequestError` names the parameter at fault.

    `thinks` tells whether the model has reasoning markers; without a limit the answers may fill the `context`.
    """
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        if name in _ONLY:
            if not any(value == neutral and type(value) is not bool for neutral in _ONLY[name]):
                raise RequestError(400, f"{name} is not supported", param=name, code="unsupported_parameter")
        elif name not in _HARMLESS and name not in _LIMITS and name not in _OTHERS:
            raise RequestError(
                400, f"unknown parameter: {name[:64]!r}", param=name[:64], code="unknown_parameter"
            )
    if not isinstance(given.get("model"), str):
        raise _wrong("model", "must be the name of a model", missing="model" not in given)
    if given["model"] != model:
        raise RequestError(
            404, f"this server has only the model {model!r}", param="model", code="model_not_found"
        )
    numbers = {name: _number(name, given[name]) for name in _LIMITS if name in given}
    samples = numbers.pop("n", 1)
    stream = _boolean(given, "stream")
    # every request has room for one context: its samples share it unless they are told how much to take
    options = _options(given, numbers, thinks=thinks, most=max(1, context // samples))
    schema = _schema(given.get("response_format", {"type": "text"}))
    return ChatRequest(_messages(given), samples, options, stream, _include_usage(given, stream), schema)


def _options(given: dict[str, Any], numbers: dict[str, Any], *, thinks: bool, most: int) -> GenerationOptions:
    """The runtime's options; `numbers` are those of `given` that were checked."""
    alternatives = numbers.pop("top_logprobs", 0)
    limits = [numbers.pop(name) for name in ("max_tokens", "max_completion_tokens") if name in numbers]
    if len(set(limits)) > 1:
        raise _wrong("max_completion_tokens", "differs from max_tokens; give one of them")
    # A negative seed is allowed over there; numpy wants 0 or more, and sample i adds i.
    if "seed" in numbers:
        numbers["seed"] %= 1 << 63
    options: GenerationOptions = {"max_tokens": limits[0] if limits else most, **numbers}  # type: ignore[typeddict-item]
    if _boolean(given, "logprobs"):
        options["logprobs"] = alternatives
    elif alternatives:
        raise _wrong("top_logprobs", "needs logprobs to be true")
    if "stop" in given:
        options["stop"] = _stop(given["stop"])
    _set_thinking(given.get("reasoning_effort"), options, thinks)
    return options


def _set_thinking(effort: Any, options: GenerationOptions, thinks: bool) -> None:
    if "thinking_budget" in options and not thinks:
        raise _wrong("thinking_budget", "cannot be kept: this model has no reasoning markers")
    if effort is None:
        return
    if not isinstance(effort, str) or effort not in ("none", *_EFFORTS):
        raise _wrong("reasoning_effort", f"must be one of none, {', '.join(_EFFORTS)}")
    if "thinking_budget" in options:
        raise _wrong("reasoning_effort", "and thinking_budget say the same; give one of them")
    if effort == "none":
        if thinks:
            options["thinking"] = False
        return
    if not thinks:
        raise _wrong("reasoning_effort", "must be none: this model has no reasoning markers")
    options["thinking"] = True
    options["thinking_budget"] = int(options["max_tokens"] * _EFFORTS[effort])


def _schema(value: Any) -> dict[str, Any] | None:
    """The JSON schema that a response_format asks for."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        raise _wrong("response_format", "must be an object of type text, json_object or json_schema")
    schema = inner.get("schema") if isinstance(inner := value.get("json_schema"), dict) else None
    if not isinstance(schema, dict):
        raise _wrong("response_format.json_schema", "must be an object with name and schema, an object")
    return schema


def _messages(given: dict[str, Any]) -> list[dict[str, str]]:
    messages = given.get("messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= _MOST_MESSAGES:
        raise _wrong(
            "messages",
            f"must be a list of 1 to {_MOST_MESSAGES} messages",
            missing="messages" not in given,
        )
    return [_message(message, f"messages[{number}]") for number, message in enumerate(messages)]


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise _wrong(where, "must be an object with role and content")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise _wrong(f"{where}.role", f"must be one of {', '.join(_ROLES)}")
    for name, value in message.items():
        if name not in _MESSAGE_KEYS and value is not None:
            raise _wrong(f"{where}.{name[:64]}", "is not supported")
    return {"role": _ROLES[role], "content": _content(message.get("content"), f"{where}.content")}


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = []
    for part in parts:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise _wrong(where, "must be a string or a list of text parts")
        texts.append(part["text"])
    return "".join(texts)


def _stop(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    # 256: the longest one that the runtime takes
    if (
        not isinstance(texts, list)
        or len(texts) > _MOST_STOPS
        or not all(isinstance(text, str) and 1 <= len(text) <= 256 for text in texts)
    ):
        raise _wrong("stop", f"must be a string or up to {_MOST_STOPS}, of 1 to 256 characters each")
    return tuple(texts)


def _include_usage(given: dict[str, Any], stream: bool) -> bool:
    options = given.get("stream_options", {})
    if not isinstance(options, dict):
        raise _wrong("stream_options", "must be an object")
    if options and not stream:
        raise _wrong("stream_options", "needs stream to be true")
    if unknown := options.keys() - {"include_usage", "include_obfuscation"}:
        raise _wrong(f"stream_options.{min(unknown)[:64]}", "is not supported")
    return _boolean(options, "include_usage", "stream_options.include_usage")


def _boolean(given: Mapping[str, Any], name: str, where: str = "") -> bool:
    value = given.get(name)
    if value is not None and not isinstance(value, bool):
        raise _wrong(where or name, "must be true or false")
    return bool(value)


def _number(name: str, value: Any) -> Any:
    kind, low, high = _LIMITS[name]
    right_kind = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not right_kind or not low <= value <= high:
        word = "an integer" if kind is int else "a number"
        raise _wrong(name, f"must be {word} from {low} to {high}")
    if name in ("top_p", "repetition_penalty") and value == 0:
        raise _wrong(name, "must be more than 0")
    return kind(value)


def _wrong(param: str, what: str, *, missing: bool = False) -> RequestError:
    code = "missing_required_parameter" if missing else "invalid_value"
    return RequestError(400, f"{param} {what}", param=param, code=code)
