"""What the server takes from a request's body, and what it refuses."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import pytest

from edge_distill.server import request
from edge_distill.server.request import ChatRequest, RequestError, parse_body, parse_request

HELLO = [{"role": "user", "content": "Hello"}]


def parse(thinks: bool = True, **changes: Any) -> ChatRequest:
    body = {"model": "tiny", "messages": HELLO} | changes
    return parse_request(body, model="tiny", thinks=thinks, context=1000)


def test_the_least_that_is_needed() -> None:
    assert parse() == ChatRequest(HELLO, 1, {"max_tokens": 1000})


def test_every_supported_parameter_reaches_the_runtime() -> None:
    request = parse(
        max_completion_tokens=7,
        temperature=1,
        top_p=0.5,
        top_k=40,
        min_p=0.1,
        repetition_penalty=1.1,
        seed=3,
        stop="END",
        n=2,
        logprobs=True,
        top_logprobs=5,
        thinking_budget=4,
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
    )
    assert request.options == {
        "max_tokens": 7,
        "temperature": 1.0,
        "top_p": 0.5,
        "top_k": 40,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "seed": 3,
        "stop": ("END",),
        "logprobs": 5,
        "thinking_budget": 4,
    }
    assert (request.samples, request.stream, request.include_usage) == (2, True, True)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"n": 4}, {"max_tokens": 250}),
        ({"n": 4, "max_tokens": 900}, {"max_tokens": 900}),
        ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": False, "top_logprobs": 0}, {}),
        ({"seed": -1}, {"seed": (1 << 63) - 1}),
        ({"reasoning_effort": "none"}, {"thinking": False}),
        ({"reasoning_effort": "minimal"}, {"thinking": True, "thinking_budget": 125}),
        ({"reasoning_effort": "low"}, {"thinking": True, "thinking_budget": 250}),
        ({"reasoning_effort": "medium"}, {"thinking": True, "thinking_budget": 500}),
        (
            {"reasoning_effort": "high", "max_tokens": 100},
            {"thinking": True, "thinking_budget": 75, "max_tokens": 100},
        ),
        ({"response_format": {"type": "text"}}, {}),
        # what changes nothing
        ({"temperature": None, "stop": None, "tools": None, "strange": None}, {}),
        ({"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "tools": []}, {}),
        ({"tool_choice": "none", "modalities": ["text"], "verbosity": "medium"}, {}),
        ({"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"}, {}),
    ],
)
def test_meaning(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    assert parse(**changes).options == {"max_tokens": 1000} | expected


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": 1}, "strict": True}}, {"a": 1}),
    ],
)
def test_response_format(value: dict[str, Any], schema: dict[str, Any] | None) -> None:
    assert parse(response_format=value).schema == schema


def test_messages() -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "reasoning_content": "hm", "refusal": None, "tool_calls": None},
        {"role": "user", "content": "", "name": "Anna"},
    ]
    assert parse(messages=messages).messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": ""},
    ]


@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        ({"strange": 1}, "strange", "unknown parameter: 'strange'"),
        ({"x" * 1000: 1}, "x" * 64, "unknown parameter"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "not supported"),
        ({"frequency_penalty": False}, "frequency_penalty", "not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"tool_choice": "required"}, "tool_choice", "not supported"),
        ({"modalities": ["audio"]}, "modalities", "not supported"),
        ({"model": 5}, "model", "must be the name"),
        ({"temperature": "1"}, "temperature", "a number from 0 to 2"),
        ({"temperature": True}, "temperature", "a number from 0 to 2"),
        ({"temperature": 2.1}, "temperature", "a number from 0 to 2"),
        ({"temperature": float("inf")}, "temperature", "a number from 0 to 2"),
        ({"top_p": 0}, "top_p", "more than 0"),
        ({"top_k": 1.5}, "top_k", "an integer"),
        ({"seed": 10**400}, "seed", "an integer"),
        ({"max_tokens": 0}, "max_tokens", "an integer from 1"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens", "differs"),
        ({"n": 0}, "n", "from 1 to 16"),
        ({"n": 17}, "n", "from 1 to 16"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "from 0 to 20"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"logprobs": 5}, "logprobs", "true or false"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
        ({"stream": True, "stream_options": []}, "stream_options", "an object"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "not supported"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "true or"),
        ({"stop": ["a"] * 5}, "stop", "up to 4"),
        ({"stop": [""]}, "stop", "1 to 256"),
        ({"stop": ["a", 5]}, "stop", "up to 4"),
        ({"stop": {"a": 1}}, "stop", "up to 4"),
        ({"reasoning_effort": "ultra"}, "reasoning_effort", "one of none"),
        ({"reasoning_effort": ["low"]}, "reasoning_effort", "one of none"),
        ({"reasoning_effort": "low", "thinking_budget": 5}, "reasoning_effort", "give one"),
        ({"response_format": {"type": "xml"}}, "response_format", "of type text"),
        ({"response_format": "json"}, "response_format", "of type text"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "with name and schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": "{}"}}},
            "response_format.json_schema",
            "with name and schema",
        ),
        ({"messages": None}, "messages", "a list of 1 to 512"),
        ({"messages": []}, "messages", "a list of 1 to 512"),
        ({"messages": HELLO * 513}, "messages", "a list of 1 to 512"),
        ({"messages": ["Hello"]}, "messages[0]", "an object"),
        ({"messages": [*HELLO, {"role": "tool", "content": "x"}]}, "messages[1].role", "one of system"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role", "one of system"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "a string"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "text"),
        ({"messages": [HELLO[0] | {"tool_calls": [1]}]}, "messages[0].tool_calls", "not supported"),
    ],
)
def test_refused(changes: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(RequestError, match=message.replace("[", r"\[")) as caught:
        parse(**changes)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_model_without_markers_does_not_think_on_request() -> None:
    assert parse(thinks=False, reasoning_effort="none").options == {"max_tokens": 1000}
    for name, value in (("reasoning_effort", "low"), ("thinking_budget", 5)):
        with pytest.raises(RequestError, match="no reasoning markers") as caught:
            parse(thinks=False, **{name: value})
        assert caught.value.param == name


def test_another_model_is_not_found() -> None:
    with pytest.raises(RequestError, match="only the model 'tiny'") as caught:
        parse(model="gpt-4")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


def test_body() -> None:
    assert parse_body('{"a": ["é", 1.5, null, true]}'.encode()) == {"a": ["é", 1.5, None, True]}
    assert parse_body(b'{"a":' + b"[" * 62 + b"]" * 62 + b"}")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff{}", "not valid JSON"),
        (b'{"a": NaN}', "not valid JSON"),
        (b'{"a": -Infinity}', "not valid JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON"),
        (b"[" * 500_000, "not valid JSON"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not valid JSON"),
        (b'{"a":' + b"[" * 80 + b"]" * 80 + b"}", "nested more than 64"),
        (b"[]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b'{"a": "\\ud800"}', "lone surrogate"),
        (b'{"\\udfff": 1}', "lone surrogate"),
    ],
)
def test_bad_body(body: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        parse_body(body)
    assert caught.value.status == 400


def test_nothing_but_request_errors() -> None:
    """Every parameter with every odd value, and twenty thousand mixtures of them, seed 0."""
    odd: list[Any] = [
        None, True, False, 0, -1, 1, 2.5, 10**400, float("inf"), "", "none", "low", "auto", [], [None], ["a"], [[]],
        {}, {"type": "text"}, {"type": []}, {"type": "json_schema", "json_schema": []}, [{"role": {}}],
        [{"role": "user", "content": [[]]}], [{"role": "user", "content": [{"type": "text", "text": None}]}],
    ]  # fmt: skip
    names = sorted(request._LIMITS.keys() | request._ONLY.keys() | request._HARMLESS | request._OTHERS)
    draw = random.Random(0)
    bodies = [{name: value} for name in names for value in odd]
    bodies += [{name: draw.choice(odd) for name in draw.sample(names, 3)} for _ in range(20_000)]
    accepted = 0
    for body in bodies:
        with suppress(RequestError):
            parse(**body)
            accepted += 1
    assert 100 < accepted < len(bodies) // 2
