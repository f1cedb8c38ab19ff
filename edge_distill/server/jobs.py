"""Generations in worker threads: a bounded queue in front, back-pressure behind."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from edge_distill.server.request import ChatRequest, RequestError
from edge_distill_runtime.generation.answer_format import AnswerFormat

if TYPE_CHECKING:
    from edge_distill_runtime import Event, Model

__all__ = ["Job", "Jobs"]

_AHEAD = 64
"""Events that a generation may be ahead of its reader."""


class Job:
    """One generation; `async for` gives its events, all there are at a time, and raises the worker's error."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        """Known with the first event."""
        self.cancel = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._room = threading.Semaphore(_AHEAD)
        self._events: deque[Event] = deque()
        self._news = asyncio.Event()
        self._future: Future[None] = Future()

    def follow(self, future: Future[None]) -> None:
        """`future` is the work: its end is the end of the events."""
        self._future = future
        future.add_done_callback(lambda _: self._tell())

    def __aiter__(self) -> Job:
        return self

    async def __anext__(self) -> list[Event]:
        while not (self._events or self._future.done()):
            self._news.clear()
            await self._news.wait()
        events = [self._events.popleft() for _ in range(len(self._events))]
        if events:
            self._room.release(len(events))
            return events
        if not self._future.cancelled() and (error := self._future.exception()):
            raise error
        raise StopAsyncIteration

    def put(self, event: Event) -> None:
        """In the worker: hand an event over; waits for a reader that is slow."""
        if not self.cancel.is_set():
            self._room.acquire()  # stop() releases it
        self._events.append(event)
        self._tell()

    def stop(self) -> None:
        """Nobody reads any more: the generation ends within one token, or does not begin."""
        self.cancel.set()
        self._room.release()
        self._future.cancel()

    def _tell(self) -> None:
        with suppress(RuntimeError):  # the server was forced to quit and its loop is closed
            self._loop.call_soon_threadsafe(self._news.set)


class Jobs:
    """At most `parallel` generations at once and `max_waiting` behind them, first come first served."""

    def __init__(self, model: Model, *, parallel: int, max_waiting: int, timeout: float) -> None:
        self._model = model
        self._parallel = parallel
        self._most = parallel + max_waiting
        self._timeout = timeout
        self._executor = ThreadPoolExecutor(parallel, thread_name_prefix="generate")
        self._lock = threading.Lock()
        self._pending = 0
        self.requests = self.tokens = 0
        """Finished, and generated, so far."""

    @property
    def active(self) -> int:
        return min(self._pending, self._parallel)

    @property
    def waiting(self) -> int:
        return self._pending - self.active

    def submit(self, request: ChatRequest) -> Job:
        """Start or queue a generation; 429 when the queue is full."""
        if self._pending >= self._most:
            raise RequestError(
                429,
                f"{self.active} requests are running and {self.waiting} are waiting; try again later",
                code="queue_full",
            )
        job = Job()
        ends = time.monotonic() + self._timeout
        with self._lock:
            self._pending += 1
        future = self._executor.submit(self._generate, job, request, ends)
        future.add_done_callback(self._leave)
        job.follow(future)
        return job

    def close(self) -> None:
        """Wait for the workers; their jobs have been stopped."""
        self._executor.shutdown(cancel_futures=True)

    def _leave(self, future: Future[None]) -> None:
        with self._lock:
            self._pending -= 1

    def _generate(self, job: Job, request: ChatRequest, ends: float) -> None:
        remaining = ends - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        options = request.options.copy()
        options["cancel"], options["deadline"] = job.cancel, remaining
        if request.schema is not None:
            options["answer_format"] = AnswerFormat.json_schema(request.schema)
        job.prompt_tokens = len(self._model.encode(request.messages))
        tokens = [0] * request.samples
        events = self._model.stream(request.messages, samples=request.samples, **options)
        for event in events:
            tokens[event.index] = event.tokens
            job.put(event)
        with self._lock:
            self.requests += 1
            self.tokens += sum(tokens)
