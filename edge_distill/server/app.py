"""The endpoints, and who may use them."""
# ruff: noqa: TID253 - the one module that imports starlette; `serve` imports it when it is called

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from edge_distill.server.jobs import Job, Jobs
from edge_distill.server.request import ChatRequest, RequestError, parse_body, parse_request
from edge_distill.server.response import Completion, error_document, to_json
from edge_distill_runtime import Model
from edge_distill_runtime.errors import EdgeDistillError, InputError, ResourceError

__all__ = ["make_app"]

MAX_BODY_BYTES = 1 << 20
_DRAINED_BYTES = 8 << 20
"""So much of a larger body is read and forgotten: a client that still sends does not see the answer."""
_BODY_SECONDS = 30.0
_SPARE_SECONDS = 5.0
"""After its deadline a generation has so long to end by itself."""

_log = logging.getLogger(__name__)


def make_app(model: Model, jobs: Jobs, *, api_key: str | None, local_only: bool, timeout: float) -> ASGIApp:
    """The server's ASGI application.

    With `local_only`, the Host header must name this computer: a page whose name was rebound to 127.0.0.1 is refused.
    """
    started = int(time.time())
    name = model.manifest.name

    def card() -> dict[str, Any]:
        length = model.backend.context_length
        return {
            "id": name,
            "object": "model",
            "created": started,
            "owned_by": "edge-distill",
            "max_model_len": length,
        }

    async def models(request: Request) -> Response:
        return _json({"object": "list", "data": [card()]})

    async def one_model(request: Request) -> Response:
        if request.path_params["name"] != name:
            raise RequestError(404, f"this server has only the model {name!r}", code="model_not_found")
        return _json(card())

    async def health(request: Request) -> Response:
        return _json({"status": "ok", "model": name, "active": jobs.active, "waiting": jobs.waiting})

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", _Chat(model, jobs, timeout), methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", one_model),
            Route("/health", health),
        ],
        exception_handlers={
            RequestError: _request_error,
            EdgeDistillError: _request_error,
            HTTPException: _http_error,
            Exception: _internal_error,
        },
    )
    return _Guard(app, api_key, local_only)


class _Guard:
    """Lets a request in by its Host header and its key."""

    def __init__(self, app: ASGIApp, api_key: str | None, local_only: bool) -> None:
        self._app = app
        self._key = None if api_key is None else api_key.encode()
        self._local_only = local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope["path"], Headers(scope=scope))
        await (self._app if refusal is None else refusal)(scope, receive, send)

    def _refusal(self, path: str, headers: Headers) -> Response | None:
        host = headers.get("host", "")
        if self._local_only and not re.fullmatch(
            r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", host.lower()
        ):
            return _error(
                403, "the Host header must be localhost, 127.0.0.1 or [::1]", code="host_not_allowed"
            )
        if self._key is None or path == "/health":
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # headers are latin-1 text
        if scheme.lower() == "bearer" and hmac.compare_digest(key.strip().encode("latin-1"), self._key):
            return None
        refusal = _error(401, "the API key is missing or wrong", code="invalid_api_key")
        refusal.headers["www-authenticate"] = "Bearer"
        return refusal


class _Chat:
    """POST /v1/chat/completions."""

    def __init__(self, model: Model, jobs: Jobs, timeout: float) -> None:
        self._model = model
        self._jobs = jobs
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await _read_body(Request(scope, receive))
        except ClientDisconnect:
            return
        manifest = self._model.manifest
        request = parse_request(
            parse_body(body),
            model=manifest.name,
            thinks=manifest.reasoning is not None,
            context=self._model.backend.context_length,
        )
        job = self._jobs.submit(request)
        watcher = asyncio.create_task(_stop_when_gone(receive, job))
        try:
            async with asyncio.timeout(self._timeout + _SPARE_SECONDS):
                await self._answer(request, job, scope, receive, send)
        except TimeoutError as exc:
            what = f"the request was not done within {self._timeout:g} seconds, waiting included"
            raise RequestError(504, what, code="timeout") from exc
        finally:
            job.stop()
            watcher.cancel()

    async def _answer(
        self, request: ChatRequest, job: Job, scope: Scope, receive: Receive, send: Send
    ) -> None:
        logprobs = "logprobs" in request.options
        completion = Completion(self._model.manifest.name, request.samples, logprobs=logprobs)
        if request.stream:
            await _stream(request, job, completion, send)
            return
        async for events in job:
            for event in events:
                completion.add(event)
        completion.prompt_tokens = job.prompt_tokens
        await _json(completion.document())(scope, receive, send)


async def _read_body(request: Request) -> bytes:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        # a web page can send anything else to this computer without asking
        raise RequestError(415, "the Content-Type must be application/json", code="unsupported_media_type")
    body, length = bytearray(), 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                length += len(part)
                if length <= MAX_BODY_BYTES:
                    body += part
                elif length > _DRAINED_BYTES:
                    break
    except TimeoutError as exc:
        raise RequestError(408, f"the body did not arrive within {_BODY_SECONDS:g} seconds") from exc
    if length > MAX_BODY_BYTES:
        raise RequestError(413, f"the body has more than {MAX_BODY_BYTES} bytes", code="body_too_large")
    return bytes(body)


async def _stop_when_gone(receive: Receive, job: Job) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    job.stop()


async def _stream(request: ChatRequest, job: Job, completion: Completion, send: Send) -> None:
    """Server-sent events; an error before the first one is still an ordinary error response."""
    first = await anext(job, None)
    if first is None:  # the client went away while it waited
        return
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(*documents: dict[str, Any]) -> None:
        data = b"".join(b"data: " + to_json(document) + b"\n\n" for document in documents)
        await send({"type": "http.response.body", "body": data, "more_body": True})

    await write(*completion.first_chunks(), *completion.chunks(first))
    try:
        async for events in job:
            await write(*completion.chunks(events))
    except Exception as exc:
        error = _translate(exc)
        await write(error_document(error.status, error.message, code=error.code))
    else:
        completion.prompt_tokens = job.prompt_tokens
        if request.include_usage:
            await write(completion.usage_chunk())
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _translate(exc: Exception) -> RequestError:
    """An error of the runtime for the client; what is not about the request stays on this side."""
    if isinstance(exc, RequestError):
        return exc
    if isinstance(exc, InputError):
        if exc.code == "context-full":
            return RequestError(400, exc.what, param="messages", code="context_length_exceeded")
        param = "response_format" if "answer-format" in exc.code else None
        return RequestError(400, exc.what, param=param, code=exc.code.replace("-", "_"))
    if isinstance(exc, ResourceError):
        status = 429 if exc.code == "queue-full" else 503
        return RequestError(status, "there is no room for this request now", code=exc.code.replace("-", "_"))
    _log.error("a generation failed", exc_info=exc)
    return RequestError(500, "the model failed; the server's log says why", code="internal_error")


def _json(document: dict[str, Any], status: int = 200) -> Response:
    return Response(to_json(document), status, media_type="application/json")


def _error(status: int, message: str, *, param: str | None = None, code: str | None = None) -> Response:
    return _json(error_document(status, message, param=param, code=code), status)


async def _request_error(request: Request, exc: Exception) -> Response:
    error = _translate(exc)
    response = _error(error.status, error.message, param=error.param, code=error.code)
    if error.status in (429, 503):
        response.headers["retry-after"] = "1"
    if error.status in (408, 413):  # there may be more of the body: do not read it as the next request
        response.headers["connection"] = "close"
    return response


async def _http_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    response = _error(exc.status_code, exc.detail)
    response.headers.update(exc.headers or {})
    return response


async def _internal_error(request: Request, exc: Exception) -> Response:
    return _error(500, "the server failed; its log says why", code="internal_error")
