"""Opens tiny bundles in this process and in one of their own; fake processes that lie."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from edge_distill_runtime.bundles.manifest import KVLayout
from edge_distill_runtime.engines.backend import Backend
from edge_distill_runtime.engines.isolated import IsolatedBackend
from edge_distill_runtime.engines.llama import LlamaBackend
from edge_distill_runtime.engines.onnx import OnnxBackend
from tests.random_models import CONTEXT_LENGTH

Format = Literal["gguf", "onnx"]
LAYOUTS = {"gguf": KVLayout(2, 2, 32, 2), "onnx": KVLayout(2, 2, 32, 4)}


def open_isolated(bundles: dict[str, Path], kind: Format, **options: Any) -> IsolatedBackend:
    options.setdefault("context", CONTEXT_LENGTH)
    path = bundles[kind] / f"model.{kind}"
    return IsolatedBackend(path, format=kind, threads=1, kv=LAYOUTS[kind], **options)


def open_here(bundles: dict[str, Path], kind: Format, **options: Any) -> Backend:
    path = bundles[kind] / f"model.{kind}"
    if kind == "gguf":
        return LlamaBackend(path, context=CONTEXT_LENGTH, threads=1, **options)
    return OnnxBackend(path, context=CONTEXT_LENGTH, threads=1, head_dim=32, **options)


def is_gone(pid: int) -> bool:
    """Whether the process has ended; a zombie has, whoever has to reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


_LIAR = """
import mmap, os, socket, struct, sys
from edge_distill_runtime.engines.framing import *
channel = Channel(socket.socket(fileno=int(sys.argv[1])))
sizes = {"vocab_size": 8, "context_length": 64, "max_sequences": 4, "cache_tokens": 64}
channel.receive(0)
def opened(**changes):
    channel.send(Message(DONE, sizes | changes))
    return socket.recv_fds(channel.connection, 1, 1)[1][0]
def raw(*words, tail=b""):
    channel.connection.sendall(struct.pack("<III", *words) + tail)
def asked():
    return OPERATIONS[channel.receive(1 << 20).kind]
"""


def liar(code: str) -> Any:
    """In place of `start_process`: a process that says what `code` tells it to, on the real framing."""

    def start(ours: socket.socket, theirs: socket.socket) -> subprocess.Popen[bytes]:
        descriptor = theirs.fileno()
        return subprocess.Popen(
            [
                sys.executable,
                "-c",
                _LIAR + code + "\nwhile channel.connection.recv(99): pass",
                str(descriptor),
            ],
            pass_fds=(descriptor,),
            env=environment(),
        )

    return start
