"""The application without a socket: what goes wrong in the model stays on this side, in whatever moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_distill.server.app import make_app
from edge_distill.server.jobs import Jobs
from edge_distill.server.request import ChatRequest, RequestError
from edge_distill_runtime import Model, load

MESSAGES = [{"role": "user", "content": "Hello"}]
INTERNAL = {
    "message": "the model failed; the server's log says why",
    "type": "server_error",
    "param": None,
    "code": "internal_error",
}


@pytest.fixture
def model(bundle: Path) -> Iterator[Model]:
    with load(bundle, context=1024, threads=1) as loaded:
        yield loaded


def post(model: Model, *, close_before: bool, **changes: Any) -> tuple[int, str]:
    """Status and body; the model is closed before the request, or after the first words of the answer."""
    body = json.dumps({"model": "tiny", "messages": MESSAGES} | changes).encode()
    status, sent = 0, ""

    async def run() -> None:
        jobs = Jobs(model, parallel=1, max_waiting=0, timeout=60)
        app = make_app(model, jobs, api_key=None, local_only=True, timeout=60)
        requests: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if requests:
                return requests.pop()
            await asyncio.sleep(60)

        async def send(message: Any) -> None:
            nonlocal status, sent
            status = message.get("status", status)
            sent += message.get("body", b"").decode()
            if "content" in sent:
                model.close()

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        path = "/v1/chat/completions"
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
        await app(scope, receive, send)
        jobs.close()

    if close_before:
        model.close()
    asyncio.run(run())
    return status, sent


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_cannot_answer(model: Model, caplog: pytest.LogCaptureFixture, stream: bool) -> None:
    status, body = post(model, close_before=True, stream=stream)
    assert (status, json.loads(body)) == (500, {"error": INTERNAL})
    assert "BackendError" in caplog.text  # the reason is in the log


def test_a_model_that_fails_in_the_middle(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    status, body = post(model, close_before=False, stream=True)
    assert status == 200
    *chunks, last = [json.loads(line.removeprefix("data: ")) for line in body.strip().split("\n\n")]
    assert last == {"error": INTERNAL}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert "BackendError" in caplog.text


def test_queue_and_time_are_limited(model: Model) -> None:
    request = ChatRequest(MESSAGES, 1, {"max_tokens": 500})

    async def run() -> None:
        jobs = Jobs(model, parallel=1, max_waiting=1, timeout=60)
        first, second = jobs.submit(request), jobs.submit(request)
        assert (jobs.active, jobs.waiting) == (1, 1)
        with pytest.raises(RequestError, match="1 requests are running and 1 are waiting") as caught:
            jobs.submit(request)
        assert caught.value.status == 429
        second.stop()  # before its turn: it does not begin
        assert [event async for event in second] == []
        assert jobs.waiting == 0
        first.stop()
        async for _ in first:
            pass
        late = Jobs(model, parallel=1, max_waiting=0, timeout=-1)
        with pytest.raises(TimeoutError):
            await anext(late.submit(request))
        jobs.close()
        late.close()

    asyncio.run(run())
