"""One question to a server over HTTP, asked again until there is an answer or its time is up.

What comes back is not trusted: the whole exchange, waits and all tries included, ends at a deadline that no slow
drip of bytes can move, bodies are bounded, and redirects are not followed, as the key would go along.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx
import stamina

from edge_distill.traces.teachers.answer import error_message
from edge_distill_runtime.errors import InputError

__all__ = ["Client", "RequestFailed"]

MAX_BYTES = 16 << 20  # of a body
FIRST_WAIT, LONGEST_WAIT, JITTER = 0.5, 30.0, 1.0  # seconds between two tries; the wait doubles
CONNECT_SECONDS = 10.0
CONTACT_SECONDS = 30.0  # for the first sign of life: a wrong port should not take the whole deadline
MOST_MALFORMED = 3  # a server that answers nonsense will go on doing so

_RETRIED = {408, 425, 429}  # and those from 500 on
_OF_ALL_REQUESTS = {401, 402, 403, 404, 405, 407}  # not what was asked, but how

T = TypeVar("T")


class RequestFailed(Exception):
    """A question has no answer, and why; `unanswered`: the server did not take it, whatever it was."""

    def __init__(self, what: str, *, unanswered: bool = False) -> None:
        super().__init__(what)
        self.what = what
        self.unanswered = unanswered


class _TryAgain(Exception):
    """One try failed. `wait`: the seconds that the server asks for; `malformed`: there was an answer, but a bad one."""

    def __init__(self, what: str, *, wait: float | None = None, malformed: bool = False) -> None:
        super().__init__(what)
        self.what = what
        self.wait = wait
        self.malformed = malformed


class Client:
    """A server and the key for it. Belongs to the event loop that it was made in."""

    def __init__(self, url: str, key: str, *, at_once: int, deadline: float) -> None:
        self._url = url
        self._key = key
        self._deadline = deadline
        self.is_reached = False
        """Whether there ever was a connection."""
        logger = logging.getLogger("stamina")
        if (
            not logger.handlers
        ):  # every wait is a warning there: without a handler it breaks into the progress
            logger.addHandler(logging.NullHandler())
        # compressed bodies could be larger than what is read of them
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        if key:
            headers["authorization"] = f"Bearer {key}"
        self._http = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once),
            follow_redirects=False,
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self, method: str, path: str, body: bytes | None, read: Callable[[bytes], T]) -> T:
        """What `read` makes of the answer; it raises `ValueError` for one that is none, and is then asked again.

        Raises `RequestFailed` when this question has no answer, `InputError` when none will have one.
        """
        tries = _Tries(self._deadline, lambda: self.is_reached)
        try:
            async with asyncio.timeout(self._deadline):
                async for attempt in stamina.retry_context(
                    on=tries.wait_after,
                    attempts=None,
                    timeout=None,
                    wait_initial=FIRST_WAIT,
                    wait_max=LONGEST_WAIT,
                    wait_jitter=JITTER,
                ):
                    with attempt:
                        return await self._try(method, path, body, read)
        except TimeoutError:
            what = f"no answer within {self._deadline:g} s{tries.history}"
            raise RequestFailed(self._masked(what), unanswered=not tries.malformed) from None
        except _TryAgain as exc:
            what = self._masked(f"{exc.what} (tries: {tries.count})")
            raise RequestFailed(what, unanswered=not exc.malformed) from exc.__cause__
        raise AssertionError("a retry context ends with an answer or an error")

    async def _try(self, method: str, path: str, body: bytes | None, read: Callable[[bytes], T]) -> T:
        headers = {"content-type": "application/json"} if body is not None else {}
        try:
            async with self._http.stream(
                method, self._url + path, content=body, headers=headers, extensions={"trace": self._trace}
            ) as response:
                data = await _body(response)
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.LocalProtocolError) as exc:
            raise InputError("bad-url", f"{self._url} cannot be asked: {exc}", "check the URL") from exc
        except httpx.TransportError as exc:
            reason = str(exc) or type(exc).__name__
            raise _TryAgain(f"the connection failed: {reason[:200]}") from exc
        if response.status_code != 200:
            self._refuse(response, data)
        try:
            return read(data)
        except ValueError as exc:
            raise _TryAgain(f"the answer is malformed: {str(exc)[:200]}", malformed=True) from exc

    async def _trace(self, event: str, info: object) -> None:
        if event == "connection.connect_tcp.complete":
            self.is_reached = True

    def _refuse(self, response: httpx.Response, data: bytes) -> None:
        """Raise what a status other than 200 means."""
        status = response.status_code
        what = self._masked(f"HTTP {status} {error_message(data)}".rstrip())
        if status in _RETRIED or status >= 500:
            raise _TryAgain(what, wait=_retry_after(response.headers))
        if status in _OF_ALL_REQUESTS:
            hint = "set OPENAI_API_KEY" if status in (401, 403) else "check the URL and ?model=NAME"
            raise InputError("teacher-refused", f"{response.url}: {what}", hint)
        if 300 <= status < 400:
            target = response.headers.get("location", "")[:200]
            raise InputError(
                "teacher-redirects",
                f"{self._url} redirects to {target!r}",
                "give the URL that answers itself; the key is not sent elsewhere",
            )
        raise RequestFailed(what)

    def _masked(self, text: str) -> str:
        """Servers like to quote a wrong key."""
        return text.replace(self._key, "***") if self._key else text


class _Tries:
    """The tries of one question: whether there shall be another one, and when."""

    def __init__(self, deadline: float, is_reached: Callable[[], bool]) -> None:
        self._began = time.monotonic()
        self._ends = self._began + deadline
        self._is_reached = is_reached
        self.count = 0
        self.malformed = 0
        self._last = ""

    def wait_after(self, exc: Exception) -> bool | float:
        """stamina's hook: False ends, True waits as it likes, a number so many seconds."""
        if not isinstance(exc, _TryAgain):
            return False
        self.count += 1
        self.malformed += exc.malformed
        self._last = exc.what
        if self.malformed >= MOST_MALFORMED:
            return False
        if not self._is_reached() and time.monotonic() - self._began > CONTACT_SECONDS:
            return False
        if exc.wait is None:
            return True
        return exc.wait if time.monotonic() + exc.wait < self._ends else False

    @property
    def history(self) -> str:
        return f" (failed tries: {self.count}; the last one: {self._last})" if self.count else ""


async def _body(response: httpx.Response) -> bytes:
    """All of a body; a part of one, and one over `MAX_BYTES`, is malformed."""
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise _TryAgain(f"the answer is compressed ({encoding[:40]}), unasked", malformed=True)
    parts, size = [], 0
    async for part in response.aiter_raw():
        size += len(part)
        if size > MAX_BYTES:
            raise _TryAgain(f"the answer has more than {MAX_BYTES} bytes", malformed=True)
        parts.append(part)
    return b"".join(parts)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from `Retry-After`, a number or a date (RFC 9110, 10.2.3), which is read by the server's own clock."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            until = parsedate_to_datetime(value).timestamp()
            now = parsedate_to_datetime(headers["date"]).timestamp() if "date" in headers else time.time()
            seconds = until - now
        except (ValueError, TypeError, OverflowError, OSError):
            return None
    if not seconds < 1e9:  # NaN, too
        return 1e9
    return max(0.0, seconds)
