"""`edge-distill serve`: how it starts, whom it lets in, how it ends."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import uvicorn

from edge_distill.serve import serve
from edge_distill.server.protocol import PatientProtocol
from edge_distill_runtime import InputError

MESSAGES: Any = [{"role": "user", "content": "Hello"}]


def test_help_loads_neither_server_nor_engine() -> None:
    code = (
        "import sys; from edge_distill.cli import main; main(['serve', '--help']);"
        "print(*{'starlette', 'uvicorn', 'anyio', 'torch', 'numpy', 'llama_cpp'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    *text, loaded = done.stdout.splitlines()
    assert loaded == ""
    assert "EDGE_DISTILL_API_KEY" in "".join(text)
    assert "--api-key" not in done.stdout


def test_key(start: Callable[..., Any]) -> None:
    with start(EDGE_DISTILL_API_KEY="sé-cret") as server:
        url = f"{server.url}/v1/models"
        with httpx2.Client(trust_env=False) as http:
            assert http.get(f"{server.url}/health").status_code == 200
            good = {b"authorization": "Bearer sé-cret".encode()}
            assert http.get(url, headers=good).status_code == 200
            for wrong in (
                b"",
                b"Bearer",
                b"Bearer x",
                b"Bearer s\xc3\xa9-cre",
                b"Basic s\xc3\xa9-cret",
                b"\xff",
            ):
                response = http.get(url, headers={b"authorization": wrong})
                assert response.status_code == 401, wrong
                assert response.headers["www-authenticate"] == "Bearer"
                assert response.json()["error"]["code"] == "invalid_api_key"
        with server.client("wrong") as client, pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model="tiny", messages=MESSAGES)
        # so large a body is not even read before the key is known
        refused = server.post(content=b" " * (2 << 20), headers={"content-type": "application/json"})
        assert refused.status_code == 401


def test_sigterm_lets_running_requests_finish(start: Callable[..., Any]) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "stream": True, "max_tokens": 1500}
    with start() as server, httpx2.Client(trust_env=False, timeout=60) as http:
        with http.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert len(rest) > 100
        assert server.process.wait(30) == 0
        assert server.process.stdout.read().startswith("served 1 requests, 1500 tokens in ")
        with pytest.raises(httpx2.ConnectError):
            http.get(f"{server.url}/health")


def test_ctrl_c_ends_at_once_and_quietly(start: Callable[..., Any]) -> None:
    with start() as server:
        server.health()
        assert server.stop(signal.SIGINT) == 0
        assert server.errors.read_text().count("\n") == 1  # the URL


def test_ctrl_c_twice_does_not_wait_for_requests(start: Callable[..., Any]) -> None:
    with start() as server, httpx2.Client(trust_env=False, timeout=60) as http:
        body = {"model": "tiny", "messages": MESSAGES, "stream": True}
        with http.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            began = time.monotonic()
            server.process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            assert server.process.poll() is None
            assert server.stop(signal.SIGINT) == 0
            assert time.monotonic() - began < 8


def test_a_request_has_a_deadline(start: Callable[..., Any]) -> None:
    with start("--timeout", "1") as server:
        began = time.monotonic()
        choice = server.post(json={"model": "tiny", "messages": MESSAGES}).json()["choices"][0]
        assert 0.9 < time.monotonic() - began < 5
        assert (choice["finish_reason"], choice["finish_detail"]) == ("length", "deadline")
        assert choice["message"]["content"]


def test_port_that_is_taken(bundle: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(InputError, match=r"cannot listen on 127\.0\.0\.1 port"),
    ):
        serve(bundle, port=taken.getsockname()[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "0.0.0.0"}, "can be reached from other computers, and there is no API key"),
        ({"host": "::"}, "can be reached from other computers"),
        ({"host": "no such host"}, "is no address of a computer"),
        ({"host": ""}, "is no address of a computer"),
        ({"port": 65536}, "port is 65536"),
        ({"port": -1}, "port is -1"),
        ({"parallel": 0}, "parallel is 0"),
        ({"max_waiting": -1}, "max-waiting is -1"),
        ({"timeout": 0.0}, "timeout is 0"),
        ({"timeout": float("nan")}, "timeout is nan"),
    ],
)
def test_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.delenv("EDGE_DISTILL_API_KEY", raising=False)
    with pytest.raises(InputError, match=message):
        serve(bundle, **options)


def test_a_bare_file_needs_a_context(bundle: Path) -> None:
    with pytest.raises(InputError, match=r"model\.gguf is no bundle, so its context has to be chosen"):
        serve(bundle / "model.gguf", port=0)
    with pytest.raises(InputError, match="does not exist"):
        serve(bundle / "nothing", port=0)


def test_slow_heads_are_cut_off() -> None:
    """One byte now and then does not hold a connection; a slow answer does not lose one."""

    class Hasty(PatientProtocol):
        head_seconds = 0.4

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.8)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        config = uvicorn.Config(app, http=Hasty, ws="none", lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with (
                socket.create_connection(address, timeout=10) as silent,
                socket.create_connection(address, timeout=10) as slow,
            ):
                for byte in b"GET / H":
                    slow.sendall(bytes([byte]))
                    time.sleep(0.03)
                began = time.monotonic()
                assert slow.recv(100) == b""
                assert silent.recv(100) == b""
                assert time.monotonic() - began < 2
            with socket.create_connection(address, timeout=10) as patient:
                for _ in range(2):  # and again on the same connection
                    patient.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    answer = b""
                    while not answer.endswith(b"\r\n\r\nok"):
                        part = patient.recv(1000)
                        assert part
                        answer += part
        finally:
            server.should_exit = True
            thread.join()
