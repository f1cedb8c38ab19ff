"""A server of chat completions that behaves as its script says, one entry for each request, the last one for ever."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[["Handler"], None]


@dataclass(frozen=True)
class Asked:
    """What came in."""

    path: str
    headers: dict[str, str]
    body: Any
    time: float


@dataclass
class FakeServer:
    url: str
    script: list[Behaviour]
    asked: list[Asked] = field(default_factory=list)
    active: int = 0
    most_active: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeServer

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        data = self.rfile.read(int(self.headers.get("content-length", 0)))
        fake = self.fake
        with fake.lock:
            headers = {name.lower(): value for name, value in self.headers.items()}
            fake.asked.append(Asked(self.path, headers, json.loads(data or b"null"), time.monotonic()))
            behaviour = fake.script.pop(0) if len(fake.script) > 1 else fake.script[0]
            fake.active += 1
            fake.most_active = max(fake.most_active, fake.active)
        try:
            behaviour(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with fake.lock:
                fake.active -= 1

    do_POST = _serve
    do_GET = _serve

    def last_question(self) -> str:
        with self.fake.lock:
            return str(self.fake.asked[-1].body)


@contextmanager
def serving(*script: Behaviour) -> Iterator[FakeServer]:
    """A server on a free port of this machine."""
    handler = type("Scripted", (Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    handler.fake = FakeServer(f"http://127.0.0.1:{server.server_port}", list(script))  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield handler.fake  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# -- behaviours ----------------------------------------------------------------------------------------------


def completion(content: Any = r"\boxed{4}", reason: Any = "stop", **message: Any) -> dict[str, Any]:
    """The body of an answer."""
    message = {"role": "assistant", "content": content, **message}
    return {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": {"completion_tokens": 7},
    }


def answer(body: Any = None, status: int = 200, **headers: str) -> Behaviour:
    """A whole answer; bytes are sent as they are, all else as JSON. `_` in a header's name stands for `-`."""

    def behave(handler: Handler) -> None:
        chosen = completion() if body is None else body
        data = chosen if isinstance(chosen, bytes) else json.dumps(chosen).encode()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        handler.send_response_only(status)
        for name, value in ({"content-length": str(len(data))} | given).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)
        if "content-length" in given:
            handler.close_connection = True

    return behave


def fail(status: int, message: str = "", **headers: str) -> Behaviour:
    return answer({"error": {"message": message}}, status, **headers)


def slowly(behaviour: Behaviour, seconds: float) -> Behaviour:
    def behave(handler: Handler) -> None:
        time.sleep(seconds)
        behaviour(handler)

    return behave


def drip(handler: Handler) -> None:
    """A byte every 50 ms, for ever: no pause is long."""
    handler.send_response_only(200)
    handler.send_header("transfer-encoding", "chunked")
    handler.end_headers()
    while True:
        handler.wfile.write(b"1\r\n \r\n")
        time.sleep(0.05)


def drip_headers(handler: Handler) -> None:
    """The same before the body begins."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nx-padding: ")
    while True:
        handler.wfile.write(b"a")
        time.sleep(0.05)


def endless(handler: Handler) -> None:
    """A body without an end, as fast as it can be."""
    handler.send_response_only(200)
    handler.end_headers()
    handler.close_connection = True
    while True:
        handler.wfile.write(b" " * 65536)


def cut(handler: Handler) -> None:
    """Half of the body that was announced."""
    data = json.dumps(completion()).encode()
    handler.send_response_only(200)
    handler.send_header("content-length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.close_connection = True


def cut_unannounced(handler: Handler) -> None:
    """Half of a body whose length nobody knew: it looks whole."""
    handler.send_response_only(200)
    handler.end_headers()
    handler.wfile.write(json.dumps(completion()).encode()[:60])
    handler.close_connection = True


def reset(handler: Handler) -> None:
    """A TCP reset in the middle of the body."""
    handler.send_response_only(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.rfile.close()  # it holds the socket, too
    handler.connection.close()


def hang_up(handler: Handler) -> None:
    """The connection closes before a byte of the answer."""
    handler.close_connection = True


def no_http(handler: Handler) -> None:
    handler.wfile.write(b"\x16\x03\x01\x02\x00 this is no HTTP\r\n\r\n")
    handler.close_connection = True
