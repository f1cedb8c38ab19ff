"""`openai:URL`: any server with `/v1/chat/completions`, several requests at once.

An event loop in a thread of its own talks to the server, so that answers come in while the caller checks others.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from edge_distill.traces.teachers.answer import model_names, payload, read_completion
from edge_distill.traces.teachers.client import Client, RequestFailed
from edge_distill.traces.teachers.teacher import Request, Sampling, Written, check_requests
from edge_distill_runtime.errors import BackendError, InputError

__all__ = ["OpenAITeacher"]

KEY = "OPENAI_API_KEY"
_FEWEST_FAILURES = 4  # in a row, before a server counts as gone
_HINT = "write openai:http://HOST:PORT/v1?model=NAME"


T = TypeVar("T")


class OpenAITeacher:
    """A model behind a URL; see `open_teacher`. Threads may share it."""

    can_continue = False  # no field of the interface begins a reasoning

    def __init__(self, url: str, *, at_once: int = 8, deadline: float = 600.0) -> None:
        """Without `?model=NAME` the server is asked which one it has; it must have one only."""
        if not deadline > 0:
            raise InputError("bad-deadline", f"deadline is {deadline}", "it must be more than 0 seconds")
        base, model = _parse(url)
        self._at_once = at_once
        self._health = _Health(max(at_once, _FEWEST_FAILURES))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="teacher", daemon=True)
        self._thread.start()
        self._closed = False
        try:
            self._client, self._slots = self._run(_open(base, at_once, deadline)).result()
            self._model = model or self._only_model(base)
        except BaseException:
            self.close()
            raise
        self.name = f"openai:{self._model}"

    def write(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Written]]:
        """See `Teacher.write`.

        Raises `InputError` when the server refuses the key or the model, `BackendError` when it was never there or
        as many requests as run at once, at least 4, have had no answer in a row, also over several calls; what was
        under way until then is given back before.
        """
        check_requests(self, requests)
        if self._closed:
            raise BackendError("closed", f"{self.name} is closed", "open it again")
        return self._results(requests, sampling)

    def close(self) -> None:
        """End the connections and the thread; may be called twice."""
        if self._closed:
            return
        self._closed = True
        self._run(self._shut_down()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _shut_down(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if hasattr(self, "_client"):
            await self._client.close()

    def _results(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Written]]:
        finished: queue.SimpleQueue[tuple[int, Written] | BaseException | None] = queue.SimpleQueue()
        work = self._run(self._ask_all(requests, sampling, finished))
        try:
            while (item := finished.get()) is not None:
                if isinstance(item, asyncio.CancelledError):
                    raise BackendError("closed", f"{self.name} was closed", "open it again") from item
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            work.cancel()

    async def _ask_all(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        finished: queue.SimpleQueue[tuple[int, Written] | BaseException | None],
    ) -> None:
        run = _Run(self._client, self._slots, self._health)
        pending = iter(enumerate(requests))

        async def worker() -> None:
            for index, request in pending:
                if run.error is not None:
                    return
                body = payload(self._model, request, sampling)
                if (written := await run.ask(body)) is not None:
                    finished.put((index, written))

        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(min(self._at_once, len(requests))):
                    workers.create_task(worker())
            finished.put(run.error)
        except BaseExceptionGroup as group:  # the caller waits for the queue, whatever happens here
            finished.put(group.exceptions[0])
        except BaseException as exc:
            finished.put(exc)
            raise

    def _only_model(self, base: str) -> str:
        try:
            names = self._run(self._client.ask("GET", "/models", None, model_names)).result()
        except RequestFailed as exc:
            raise BackendError(
                "teacher-unreachable", f"{base}: {exc.what}", "is the server running?"
            ) from exc
        if len(names) != 1:
            known = ", ".join(names[:20]) or "none"
            raise InputError(
                "which-model", f"{base} has {len(names)} models", f"add ?model=NAME; known: {known}"
            )
        return names[0]

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)


class _Run:
    """One call of `write`: it stops asking when no request can have an answer."""

    def __init__(self, client: Client, slots: asyncio.Semaphore, health: _Health) -> None:
        self._client = client
        self._slots = slots
        self._health = health
        self.error: Exception | None = None

    async def ask(self, body: bytes) -> Written | None:
        """What came of a request; None when `error` ends all."""
        try:
            async with self._slots:
                written = await self._client.ask("POST", "/chat/completions", body, read_completion)
        except RequestFailed as exc:
            self.error = self.error or self._health.worse(exc, self._client.is_reached)
            return Written("", "", "error", 0, exc.what)
        except InputError as exc:
            self.error = self.error or exc
            return None
        self._health.failures = 0
        return written


@dataclass
class _Health:
    """How many requests in a row, of all calls, the server did not take."""

    most: int
    failures: int = 0

    def worse(self, failure: RequestFailed, is_reached: bool) -> BackendError | None:
        """What it means for the others: nothing, or that the server is gone or was never there."""
        self.failures = self.failures + 1 if failure.unanswered else 0
        if self.failures < self.most and (is_reached or not failure.unanswered):
            return None
        what = f"no answer to {self.failures} requests in a row: {failure.what}"
        return BackendError("teacher-unreachable", what, "is the server running?")


async def _open(base: str, at_once: int, deadline: float) -> tuple[Client, asyncio.Semaphore]:
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError("bad-key", f"{KEY} holds characters that no key has", "set it again")
    return Client(base, key, at_once=at_once, deadline=deadline), asyncio.Semaphore(at_once)


def _parse(url: str) -> tuple[str, str]:
    """The address that `/chat/completions` is added to, and the model's name, empty when there is none."""
    try:
        parts = urlsplit(url)
        options = parse_qs(parts.query, strict_parsing=bool(parts.query), max_num_fields=1)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError as exc:
        raise InputError("bad-url", f"{url[:200]!r} is no URL: {exc}", _HINT) from exc
    if parts.username is not None or parts.password is not None:
        raise InputError("bad-url", "the URL holds a name or a password", f"give the key as {KEY}")
    if not valid or parts.fragment or options.keys() - {"model"}:
        raise InputError("bad-url", f"{url[:200]!r} is no address of a server", _HINT)
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}", options.get("model", [""])[0]
