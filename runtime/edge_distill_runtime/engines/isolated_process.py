"""Starting and ending the process of an isolated engine, and the memory shared with it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile

from edge_distill_runtime.errors import BackendError
from edge_distill_runtime.text.child import interpreter

__all__ = ["how_it_ended", "shared_memory", "start_process", "stop_process"]

# libllama would start a debugger on its way to abort(), and numpy's algebra a thread for every CPU
_ENVIRONMENT = {"GGML_NO_BACKTRACE": "1", "OPENBLAS_NUM_THREADS": "1"}
_PATIENCE = 1.0  # seconds for the process to leave before it is killed


def start_process(ours: socket.socket, theirs: socket.socket) -> subprocess.Popen[bytes]:
    """A new interpreter with this one's import path, in a session of its own: Ctrl-C reaches only the app."""
    try:
        if not hasattr(socket, "send_fds"):
            raise OSError("it takes a POSIX system")
        code = f"from edge_distill_runtime.engines.isolated_worker import main; main({theirs.fileno()})"
        return subprocess.Popen(
            interpreter("-P", code=code),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
            env=os.environ | _ENVIRONMENT,
        )
    except OSError as exc:
        ours.close()
        raise BackendError(
            "no-process", f"a process for the engine cannot be started: {exc}", "load without isolate"
        ) from exc


def stop_process(process: subprocess.Popen[bytes], connection: socket.socket, owner: int) -> None:
    """Hang up, which makes the process leave, or kill it; nothing in a fork of the app, whose it is not."""
    if os.getpid() != owner:
        return
    with contextlib.suppress(OSError):  # it is gone already
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def how_it_ended(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:  # real-time signals have no name
        name = f"signal {-status}"
    return f"was killed by {name} (exit status {status})"


def shared_memory(size: int) -> int:
    """Descriptor of `size` zero bytes that no file name leads to."""
    if sys.platform == "linux":
        import fcntl

        descriptor = os.memfd_create("edge-distill-logits", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, size)
        # else the other process could cut it short, and reading it would kill this one with SIGBUS
        fcntl.fcntl(
            descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        )
        return descriptor
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        return os.dup(file.fileno())
