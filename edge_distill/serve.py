"""`edge-distill serve`: a bundle behind OpenAI's chat completions, for the clients that speak it."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    from types import FrameType

    import uvicorn
    from rich.console import Console

    from edge_distill_runtime import Model

__all__ = ["Served", "serve"]

KEY_VARIABLE = "EDGE_DISTILL_API_KEY"
_DRAIN_SECONDS = 30
_SPARE_CONNECTIONS = 64


@dataclass(frozen=True)
class Served:
    """What a server did until it was stopped."""

    requests: int
    """Generations that were finished."""
    tokens: int
    """Tokens generated in them."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self, console: Console) -> None:
        console.print(f"served {self.requests} requests, {self.tokens} tokens in {self.seconds:.0f} s")


def serve(
    bundle: Annotated[
        Path, "A bundle directory; with --context also a GGUF file or an onnxruntime-genai folder"
    ],
    *,
    host: Annotated[
        str, f"Address to listen on; any but this computer's own needs {KEY_VARIABLE}"
    ] = "127.0.0.1",
    port: Annotated[int, "0 takes a free one"] = 8080,
    context: Annotated[
        int | None, "Tokens of prompt and answer of one request; by default what the bundle was made for"
    ] = None,
    threads: Annotated[int | None, "By default the CPUs that this process may use"] = None,
    kv_cache: Annotated[str | None, "Precision of keys and values: f16, q8_0 or q4_0 (GGUF)"] = None,
    parallel: Annotated[int, "Requests answered at once; each has memory for a whole context"] = 4,
    max_waiting: Annotated[int, "Requests that may wait for that; more are told to come back (429)"] = 32,
    timeout: Annotated[float, "Most seconds for a request, waiting included"] = 600.0,
    api_key: str | None = None,
) -> Served:
    """Answer OpenAI's chat completions over HTTP, until Ctrl-C.

    When the environment variable EDGE_DISTILL_API_KEY holds a key, clients must send it; on the command line it
    would stand in every list of processes. Ctrl-C and SIGTERM let running requests finish, for at most 30 seconds;
    a second Ctrl-C does not wait.
    """
    import uvicorn

    from edge_distill.server.app import make_app
    from edge_distill.server.jobs import Jobs
    from edge_distill.server.protocol import PatientProtocol

    _check(port=(port, 0, 65535), parallel=(parallel, 1, 64), max_waiting=(max_waiting, 0, 10_000))
    if not 1 <= timeout <= 86_400:
        raise InputError("bad-timeout", f"timeout is {timeout}", "it must be 1 to 86400 seconds")
    family, address, local = _resolve(host, port)
    api_key = api_key or os.environ.get(KEY_VARIABLE) or None
    if api_key is None and not local:
        raise InputError(
            "no-api-key",
            f"{host} can be reached from other computers, and there is no API key",
            f"put a secret into the environment variable {KEY_VARIABLE}, or listen on 127.0.0.1",
        )
    with (
        _bind(family, address) as listener,
        _load(bundle, context, threads, parallel, kv_cache) as model,
    ):
        jobs = Jobs(model, parallel=parallel, max_waiting=max_waiting, timeout=timeout)
        server = uvicorn.Server(
            uvicorn.Config(
                make_app(model, jobs, api_key=api_key, local_only=local, timeout=timeout),
                http=PatientProtocol,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=parallel + max_waiting + _SPARE_CONNECTIONS,
                timeout_graceful_shutdown=_DRAIN_SECONDS,
            )
        )
        listener.listen()  # from here on clients may connect
        print(f"{model.manifest.name} on {_url(listener)}/v1 (Ctrl-C ends)", file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            with _signals_end(server):
                server.run(sockets=[listener])
        finally:
            jobs.close()
        return Served(jobs.requests, jobs.tokens, time.monotonic() - began)


def _check(**values: tuple[int, int, int]) -> None:
    for name, (value, low, high) in values.items():
        if not low <= value <= high:
            what = name.replace("_", "-")
            raise InputError(f"bad-{what}", f"{what} is {value}", f"it must be {low} to {high}")


def _resolve(host: str, port: int) -> tuple[int, Any, bool]:
    """Address family, socket address, and whether only this computer can reach it."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as exc:
        raise InputError("bad-host", f"{host!r} is no address of a computer", "try 127.0.0.1") from exc
    return family, address, ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback


@contextmanager
def _bind(family: int, address: Any) -> Iterator[socket.socket]:
    """A bound socket, before the model is loaded: a port that is taken shows at once."""
    # with the protocol named asyncio sets TCP_NODELAY; otherwise every answer waits 40 ms for the client's ACK
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as exc:
            where = f"{address[0]} port {address[1]}"
            raise InputError(
                "bad-address", f"cannot listen on {where}: {exc.strerror}", "try --port 0"
            ) from exc
        yield listener


def _load(
    bundle: Path, context: int | None, threads: int | None, parallel: int, kv_cache: str | None
) -> Model:
    from edge_distill_runtime import load
    from edge_distill_runtime.bundles.manifest import MANIFEST_NAME, read_manifest

    if context is None:
        if bundle.exists() and not (bundle / MANIFEST_NAME).exists():
            raise InputError(
                "no-context", f"{bundle} is no bundle, so its context has to be chosen", "add --context 4096"
            )
        context = read_manifest(bundle).context_length
    return load(
        bundle,
        context=context,
        threads=threads,
        backend_options={"cache_tokens": parallel * context},
        kv_cache=kv_cache,
    )


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def _signals_end(server: uvicorn.Server) -> Iterator[None]:
    """Ctrl-C and SIGTERM stop the server and nothing else: uvicorn sends itself the signal again at its end."""

    def stop(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
