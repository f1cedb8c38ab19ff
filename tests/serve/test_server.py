"""The real server, asked by the official client; what it says is compared with the model in this process."""

from __future__ import annotations

import json
import math
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from openai import OpenAI

from edge_distill_runtime import Model
from tests.serve.processes import Server

QUESTION = "Anna has 7 apples. How many are left?"
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
ASK: Any = {"model": "tiny", "messages": MESSAGES, "max_tokens": 24}
SAMPLING: Any = {"temperature": 1.5, "seed": 3}


def test_answer(client: OpenAI, reference: Model) -> None:
    completion = client.chat.completions.create(**ASK)
    expected = reference.generate(QUESTION, max_tokens=24)
    choice = completion.choices[0]
    assert choice.message.content == expected.answer != ""
    assert (choice.message.role, choice.finish_reason, choice.logprobs) == ("assistant", "length", None)
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == expected.prompt_tokens == len(reference.encode(QUESTION))
    assert completion.usage.completion_tokens == 24
    assert completion.usage.total_tokens == 24 + expected.prompt_tokens
    assert (completion.model, completion.object) == ("tiny", "chat.completion")
    assert client.chat.completions.create(**ASK).id != completion.id


def test_messages_reach_the_prompt(client: OpenAI, reference: Model) -> None:
    messages: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": QUESTION},
    ]
    completion = client.chat.completions.create(**ASK | {"messages": messages})
    messages[1]["content"] = "Hello"
    assert completion.choices[0].message.content == reference.generate(messages, max_tokens=24).answer


def test_stream_is_the_answer_in_pieces(client: OpenAI) -> None:
    whole = client.chat.completions.create(**ASK, **SAMPLING)
    with client.chat.completions.create(**ASK, **SAMPLING, stream=True) as stream:
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    )
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert all(chunk.usage is None for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(chunks) > 10


def test_stream_ends_with_the_usage_and_done(server: Server, client: OpenAI) -> None:
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    with client.chat.completions.create(**ASK, **options) as stream:
        *_, before, last = stream
    assert before.choices[0].finish_reason == "length"
    assert last.choices == []
    assert last.usage is not None
    whole = client.chat.completions.create(**ASK).usage
    assert last.usage == whole
    response = server.post(json=ASK | options)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.text.endswith("}\n\ndata: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
def test_samples_are_drawn_with_seeds_of_their_own(client: OpenAI, stream: bool) -> None:
    texts = {0: "", 1: ""}
    if stream:
        with client.chat.completions.create(**ASK, **SAMPLING, n=2, stream=True) as chunks:
            for chunk in chunks:
                texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    else:
        completion = client.chat.completions.create(**ASK, **SAMPLING, n=2)
        texts = {choice.index: choice.message.content or "" for choice in completion.choices}
        assert completion.usage is not None
        assert completion.usage.completion_tokens == 48
    for index, text in texts.items():
        single = client.chat.completions.create(**ASK, temperature=1.5, seed=3 + index)
        # steps of two samples may round differently than steps of one: a late token may be another
        assert text[:8] == (single.choices[0].message.content or "")[:8]
    assert texts[0][:8] != texts[1][:8]


def test_logprobs(client: OpenAI, reference: Model) -> None:
    completion = client.chat.completions.create(**ASK, logprobs=True, top_logprobs=3)
    choice = completion.choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    entries = choice.logprobs.content
    assert len(entries) == 24
    spoken = b"".join(bytes(entry.bytes or ()) for entry in entries)
    assert spoken.decode("utf-8", "replace") == choice.message.content
    sequence = reference.backend.prefill(reference.encode(QUESTION))
    logits = sequence.logits.astype(np.float64)
    reference.backend.release(sequence)
    expected = sorted(logits - np.log(np.exp(logits).sum()), reverse=True)[:3]
    # float32 logits, twice from the same engine
    np.testing.assert_allclose([top.logprob for top in entries[0].top_logprobs], expected, atol=1e-4)
    assert entries[0].logprob == entries[0].top_logprobs[0].logprob
    with client.chat.completions.create(**ASK, logprobs=True, stream=True) as stream:
        parts = [chunk.choices[0].logprobs for chunk in stream]
    streamed = [entry.token for part in parts if part is not None for entry in part.content or ()]
    assert streamed == [entry.token for entry in entries]


def test_stop(client: OpenAI) -> None:
    text = client.chat.completions.create(**ASK).choices[0].message.content
    assert text is not None
    stop = text[10:13]
    for value in (stop, ["no such text", stop]):
        choice = client.chat.completions.create(**ASK, stop=value).choices[0]
        assert choice.message.content == text[: text.index(stop)]
        assert choice.finish_reason == "stop"


def test_reasoning_has_fields_of_its_own(client: OpenAI) -> None:
    none = client.chat.completions.create(**ASK, reasoning_effort="none")
    assert none.choices[0].message.reasoning is None
    ask = ASK | {"max_tokens": 400}
    completion = client.chat.completions.create(**ask, reasoning_effort="minimal")
    message: Any = completion.choices[0].message
    assert message.reasoning == message.reasoning_content != ""
    assert message.content
    assert completion.usage is not None
    assert completion.usage.completion_tokens_details is not None
    # 400 / 8, and the marker that closes it
    assert 0 < (completion.usage.completion_tokens_details.reasoning_tokens or 0) <= 60
    parts = {"reasoning": "", "reasoning_content": "", "content": ""}
    with client.chat.completions.create(**ask, reasoning_effort="minimal", stream=True) as stream:
        for chunk in stream:
            for name in parts:
                parts[name] += getattr(chunk.choices[0].delta, name, None) or ""
    assert parts["reasoning"] == parts["reasoning_content"] == message.reasoning
    assert parts["content"] == message.content
    budget = client.chat.completions.create(**ask, extra_body={"thinking_budget": 0})
    assert budget.choices[0].finish_reason == "length"


def test_json_schema(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"left": {"enum": [3, 4, 5]}},
        "required": ["left"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    ask = ASK | {"max_tokens": 120, "reasoning_effort": "minimal"}
    choice = client.chat.completions.create(**ask, response_format=form).choices[0]
    assert json.loads(choice.message.content or "")["left"] in (3, 4, 5)
    assert choice.finish_reason == "stop"
    form["json_schema"]["schema"] = {"type": "nothing"}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ask, response_format=form)
    assert caught.value.param == "response_format"


def test_two_clients_at_once_get_their_own_answers(server: Server) -> None:
    def ask(number: int) -> str | None:
        with server.client() as client:
            messages: Any = [{"role": "user", "content": f"What is {number} times {number}?"}]
            return client.chat.completions.create(**ASK | {"messages": messages}).choices[0].message.content

    alone = [ask(number) for number in range(6)]
    assert len(set(alone)) > 1
    with ThreadPoolExecutor(2) as executor:
        together = list(executor.map(ask, range(6)))
    # batched kernels may round differently, but greedy near-ties are rare: most are the same to the letter
    assert sum(a == b for a, b in zip(alone, together, strict=True)) >= 5


def test_models_and_health(server: Server, client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "edge-distill")
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    server.wait_for(0, 0)
    assert server.health() == {"status": "ok", "model": "tiny", "active": 0, "waiting": 0}


def test_small_answers_come_at_once(server: Server) -> None:
    """Without TCP_NODELAY each of them waits for the client's delayed ACK, 40 ms on Linux."""
    with httpx2.Client(trust_env=False) as http:
        took = []
        for _ in range(20):
            began = time.perf_counter()
            http.get(f"{server.url}/health")
            took.append(time.perf_counter() - began)
    assert sorted(took)[10] < 0.03


@pytest.mark.parametrize(
    ("changes", "error", "param", "code"),
    [
        ({"temperature": 5}, openai.BadRequestError, "temperature", "invalid_value"),
        ({"frequency_penalty": 1}, openai.BadRequestError, "frequency_penalty", "unsupported_parameter"),
        ({"extra_body": {"strange": 1}}, openai.BadRequestError, "strange", "unknown_parameter"),
        ({"model": "other"}, openai.NotFoundError, "model", "model_not_found"),
        (
            {"messages": [{"role": "user", "content": "apples " * 40_000}]},
            openai.BadRequestError,
            "messages",
            "context_length_exceeded",
        ),
        (
            {"messages": [*MESSAGES, {"role": "system", "content": "late"}]},
            openai.BadRequestError,
            None,
            "late_system",
        ),
        (
            {"messages": [{"role": "user", "content": "x" * (1 << 20)}]},
            openai.APIStatusError,
            None,
            "body_too_large",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors(
    client: OpenAI, changes: dict[str, Any], error: type[openai.APIStatusError], param: Any, code: Any,
    stream: bool,
) -> None:  # fmt: skip
    with pytest.raises(error) as caught:
        client.chat.completions.create(**ASK | changes, stream=stream)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.type == "invalid_request_error"
    assert "/" not in caught.value.message.replace("application/json", "")  # no path


def test_http_errors_are_in_the_same_form(server: Server) -> None:
    def error(response: httpx2.Response) -> tuple[int, str]:
        return response.status_code, response.json()["error"]["message"]

    body = json.dumps(ASK)
    assert error(server.post(content=body))[0] == 415
    assert error(server.post(content=body, headers={"content-type": "text/plain"}))[0] == 415
    headers = {"content-type": "application/json"}
    assert error(server.post(content="{", headers=headers)) == (400, "the body is not valid JSON in UTF-8")
    assert error(server.post(content="[" * 100_000, headers=headers))[0] == 400
    with httpx2.Client(trust_env=False) as http:
        assert error(http.get(f"{server.url}/v1/chat/completions")) == (405, "Method Not Allowed")
        assert error(http.get(f"{server.url}/nothing")) == (404, "Not Found")


def test_body_of_unknown_length_is_bounded_too(server: Server) -> None:
    def parts() -> Any:
        for _ in range(40):
            yield b" " * 65_536

    response = server.post(content=parts(), headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")


def test_web_pages_stay_outside(server: Server) -> None:
    """A name rebound to 127.0.0.1 is refused by its Host header; other origins get no CORS headers."""
    with httpx2.Client(trust_env=False) as http:
        for host in (
            "evil.example",
            f"evil.example:{server.port}",
            "127.0.0.1.evil.example",
            "localhost.",
            "",
        ):
            response = http.get(f"{server.url}/health", headers={"host": host})
            assert response.status_code == 403, host
        for host in ("localhost", f"LOCALHOST:{server.port}", f"[::1]:{server.port}", "127.0.0.1"):
            assert http.get(f"{server.url}/health", headers={"host": host}).status_code == 200, host
        origin = {"origin": "http://evil.example", "access-control-request-method": "POST"}
        preflight = http.options(f"{server.url}/v1/chat/completions", headers=origin)
        assert preflight.status_code == 405
        assert not [name for name in preflight.headers if name.startswith("access-control")]


def long_stream(http: httpx2.Client, server: Server, **changes: Any) -> Any:
    """A request that takes far longer than a test."""
    body = {"model": "tiny", "messages": MESSAGES, "stream": True} | changes
    return http.stream("POST", f"{server.url}/v1/chat/completions", json=body)


def test_a_stream_that_is_dropped_ends(server: Server) -> None:
    with httpx2.Client(trust_env=False) as http:
        with long_stream(http, server, n=2) as response:
            lines = response.iter_lines()  # dropping it would close the connection
            assert next(lines).startswith("data: {")
            server.wait_for(1, 0)
        server.wait_for(0, 0)


def test_a_client_that_hangs_up_ends_its_request(server: Server) -> None:
    timeout = httpx2.Timeout(5, read=0.5)
    with httpx2.Client(trust_env=False, timeout=timeout) as http, pytest.raises(httpx2.ReadTimeout):
        http.post(f"{server.url}/v1/chat/completions", json={"model": "tiny", "messages": MESSAGES})
    server.wait_for(0, 0)


def test_a_reader_that_does_not_read_does_not_hold_the_model(server: Server) -> None:
    body = json.dumps({"model": "tiny", "messages": MESSAGES, "stream": True}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        server.wait_for(1, 0)
        with server.client() as client:  # somebody else is served meanwhile
            assert client.chat.completions.create(**ASK).choices[0].finish_reason == "length"
    server.wait_for(0, 0)


def test_full_queue(server: Server, client: OpenAI) -> None:
    with httpx2.Client(trust_env=False) as http, ThreadPoolExecutor(1) as executor:
        with long_stream(http, server) as first, long_stream(http, server) as second:
            lines = [first.iter_lines(), second.iter_lines()]
            assert all(next(each).startswith("data: {") for each in lines)
            waits = executor.submit(lambda: client.chat.completions.create(**ASK))
            server.wait_for(2, 1)
            with pytest.raises(openai.RateLimitError) as caught:
                client.chat.completions.create(**ASK)
            assert caught.value.code == "queue_full"
            assert caught.value.response.headers["retry-after"] == "1"
        assert waits.result(30).choices[0].finish_reason == "length"  # its turn came
    server.wait_for(0, 0)


def test_numbers_in_answers_are_finite(server: Server) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in the answer")

    text = server.post(json=ASK | {"logprobs": True, "top_logprobs": 20}).text
    document = json.loads(text, parse_constant=refuse)
    entries = document["choices"][0]["logprobs"]["content"]
    assert all(math.isfinite(top["logprob"]) for entry in entries for top in entry["top_logprobs"])
