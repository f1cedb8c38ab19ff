"""One question to a short-lived process of our own, for work that a hostile file could make endless or deadly."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from typing import Any, Literal

from edge_distill_runtime.errors import BackendError

__all__ = ["ChildFailed", "ask_child", "interpreter", "serve"]

_MOST_OUTPUT = 1 << 26


class ChildFailed(Exception):
    """The process gave no answer: its time or memory ran out, or it died."""

    def __init__(self, reason: Literal["time", "memory", "died"], status: int | None = None) -> None:
        super().__init__(reason, status)
        self.reason = reason
        self.status = status
        """Exit status, negative for a signal; None when it was ended here."""


def ask_child(module: str, request: Any, *, seconds: float, memory_bytes: int | None = None) -> Any:
    """`module.answer(request)`, computed in a new process; request and answer are JSON.

    `seconds` limits wall-clock and CPU time, `memory_bytes` the address space (not on Windows). Raises
    `ChildFailed`, or `BackendError` where no process can be started.
    """
    code = f"from edge_distill_runtime.text.child import serve; serve({module!r}, {math.ceil(seconds)}, {memory_bytes})"
    try:
        process = subprocess.Popen(
            interpreter("-I", "-S", code=code),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
    except OSError as exc:
        raise BackendError(
            "no-process", f"a process cannot be started: {exc}", "use an exported bundle, which needs none"
        ) from exc
    with process:
        try:
            output, _ = process.communicate(json.dumps(request).encode(), timeout=seconds)
        except subprocess.TimeoutExpired:
            raise ChildFailed("time") from None
        finally:
            process.kill()
    return _answer(output, process.returncode)


def interpreter(*flags: str, code: str) -> list[str]:
    """Command line of a new interpreter that imports what this one does and runs `code`.

    Raises `OSError` in an app that is no interpreter.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        raise OSError("it takes a Python interpreter as sys.executable")
    # as multiprocessing does; relative entries mean this directory
    path = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]
    return [sys.executable, *flags, "-c", f"import sys; sys.path[:] = {path!r}\n{code}"]


def _answer(output: bytes, status: int) -> Any:
    if status == _OUT_OF_MEMORY:
        raise ChildFailed("memory")
    if status:
        raise ChildFailed("time" if -status in _TIME_SIGNALS else "died", status)
    try:
        return json.loads(output)
    except (ValueError, RecursionError):
        raise ChildFailed("died", status) from None


_OUT_OF_MEMORY = 77  # exit status
_TIME_SIGNALS = (24,)  # SIGXCPU; the number is the same on Linux and macOS


def serve(module: str, seconds: int, memory_bytes: int | None) -> None:
    """The process's side: limits, the question from stdin, the answer to stdout."""
    _limit(seconds, memory_bytes)
    # what a library prints must not stand in the answer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        request = json.loads(sys.stdin.buffer.read())
        answer = json.dumps(importlib.import_module(module).answer(request)).encode()
        status = 0 if len(answer) <= _MOST_OUTPUT else _OUT_OF_MEMORY
    except MemoryError:
        answer, status = b"", _OUT_OF_MEMORY
    answers.write(answer if not status else b"")
    answers.flush()
    os._exit(status)  # there is nothing to tidy up, and with little memory it could fail


def _limit(seconds: int, memory_bytes: int | None) -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limits: the parent's time limit holds
        return
    limits = [(resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)]
    if memory_bytes is not None:
        limits.append((resource.RLIMIT_AS, memory_bytes))
    for kind, value in limits:
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (value, hard))
        except (ValueError, OSError):  # macOS refuses an address space below what is mapped
            continue
