"""Back-pressure between a generation and its reader, and the text of chunks, worked by hand."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from edge_distill.server import jobs
from edge_distill.server.jobs import Job
from edge_distill.server.response import Completion, error_document, to_json
from edge_distill_runtime import Event
from edge_distill_runtime.generation.decoding import TokenLogprob


def events(count: int) -> Iterator[Event]:
    return (Event("answer", str(number), number, 0.0) for number in range(count))


def follow(job: Job, executor: ThreadPoolExecutor, count: int, made: list[int]) -> None:
    def work() -> None:
        for event in events(count):
            job.put(event)
            made.append(event.tokens)

    job.follow(executor.submit(work))


def test_events_come_in_order_and_end() -> None:
    async def read() -> list[int]:
        job = Job()
        follow(job, executor, 500, [])
        return [event.tokens async for events in job for event in events]

    with ThreadPoolExecutor(1) as executor:
        assert asyncio.run(read()) == list(range(500))


def test_a_generation_waits_for_its_reader_and_ends_without_one() -> None:
    made: list[int] = []

    async def read() -> None:
        job = Job()
        follow(job, executor, 500, made)
        read = len(await anext(job))
        await asyncio.sleep(0.2)
        assert len(made) == jobs._AHEAD + read
        job.stop()

    with ThreadPoolExecutor(1) as executor:
        began = time.monotonic()
        asyncio.run(read())
    assert time.monotonic() - began < 5  # the worker ended: leaving the executor waits for it
    assert len(made) == 500


def test_an_error_of_the_worker_reaches_the_reader() -> None:
    async def read() -> str:
        job = Job()
        job.follow(executor.submit(lambda: 1 // 0))  # type: ignore[arg-type]
        try:
            await anext(job)
        except ZeroDivisionError as exc:
            return str(exc)
        return "none"

    with ThreadPoolExecutor(1) as executor:
        assert "by zero" in asyncio.run(read())


HALF = TokenLogprob(5, b"ab", math.log(0.5), ((5, b"ab", math.log(0.5)), (6, b"\xff", -math.inf)))
EVENTS = [
    Event("reasoning", "so", 2, 0.1, logprobs=(HALF,)),
    Event("answer", "ab", 5, 0.2, logprobs=(HALF,)),
    Event("answer", "", 5, 0.3, "context"),
]
ENTRY = {
    "token": "ab",
    "logprob": math.log(0.5),
    "bytes": [97, 98],
    "top_logprobs": [
        {"token": "ab", "logprob": math.log(0.5), "bytes": [97, 98]},
        {"token": "\ufffd", "logprob": -9999.0, "bytes": [255]},
    ],
}


def test_whole_completion() -> None:
    completion = Completion("tiny", 1, logprobs=True)
    for event in EVENTS:
        completion.add(event)
    completion.prompt_tokens = 3
    document = completion.document()
    assert document["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "ab",
                "reasoning": "so",
                "reasoning_content": "so",
                "refusal": None,
            },
            "logprobs": {"content": [ENTRY], "refusal": None},
            "finish_reason": "length",
            "finish_detail": "context",
        }
    ]
    assert document["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 5,
        "total_tokens": 8,
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    assert document["object"] == "chat.completion"


def test_chunks() -> None:
    completion = Completion("tiny", 2, logprobs=True)

    def choices(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert len({chunk["id"] for chunk in chunks}) == 1
        return [choice for chunk in chunks for choice in chunk["choices"]]

    def chunk(index: int, delta: dict[str, Any], **changes: Any) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None} | changes

    role = {"role": "assistant", "content": ""}
    assert choices(completion.first_chunks()) == [chunk(0, role), chunk(1, role)]
    assert choices(completion.chunks(EVENTS)) == [
        chunk(0, {"reasoning": "so", "reasoning_content": "so"}),
        chunk(0, {"content": "ab"}, logprobs={"content": [ENTRY], "refusal": None}),
        chunk(0, {}, finish_reason="length", finish_detail="context"),
    ]
    assert completion.usage()["completion_tokens"] == 5


def test_errors_name_their_class() -> None:
    kinds = {status: error_document(status, "")["error"]["type"] for status in (400, 401, 404, 429, 500, 503)}
    assert kinds == {
        400: "invalid_request_error",
        401: "authentication_error",
        404: "invalid_request_error",
        429: "rate_limit_error",
        500: "server_error",
        503: "server_error",
    }
    assert to_json({"error": "\ud800é"}) == b'{"error":"\\ud800\\u00e9"}'
