"""math-verify in processes that can be killed: sympy may compute for ever, and its own limit needs the main thread."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from importlib.util import find_spec
from typing import Any

from edge_distill_runtime.errors import BackendError, MissingExtra

__all__ = ["NoVerdict", "is_equal"]

_START_SECONDS = 120.0  # sympy is large, and the machine may be busy
_MEMORY = 4 << 30  # address space of a process
_MAX_ANSWER = 100  # bytes of a line from it


class NoVerdict(Exception):
    """The process hung or died over this question."""


def is_equal(gold: str, answer: str, *, seconds: float) -> bool:
    """Whether math-verify calls a LaTeX or plain answer equal to the right one.

    Any thread may call it; every thread that asks at the same time has a process, and idle ones are used again.
    Raises `NoVerdict` after `seconds` or when the process dies, `MissingExtra` without math-verify.
    """
    worker = _take()
    reply = worker.ask({"gold": gold, "answer": answer, "seconds": seconds}, seconds)
    if not isinstance(reply, bool):
        worker.close()
        raise NoVerdict(
            f"math-verify took over {seconds:g} s" if worker.is_late else "math-verify's process died"
        )
    with _lock:
        _idle.append(worker)
    return reply


_lock = threading.Lock()
_idle: list[_Worker] = []


def _take() -> _Worker:
    """An idle process that still lives, or a new one."""
    while True:
        with _lock:
            worker = _idle.pop() if _idle else None
        if worker is None:
            return _Worker()
        if worker.is_alive:
            return worker
        worker.close()


@atexit.register
def _close_all() -> None:
    with _lock:
        while _idle:
            _idle.pop().close()


class _Worker:
    """One process; a line of JSON in, a line of JSON out."""

    def __init__(self) -> None:
        if find_spec("math_verify") is None:
            raise MissingExtra(
                "missing-math-verify", "this answer takes math-verify", 'pip install "edge-distill[bench]"'
            )
        # as multiprocessing does; relative entries mean this directory
        path = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]
        code = f"import sys; sys.path[:] = {path!r}\nfrom edge_distill_bench.math_process import _serve; _serve()"
        self._owner = os.getpid()
        self.is_late = False
        """Whether it was killed because its time had passed."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        if self._read(_START_SECONDS) != "ready":
            self.close()
            raise BackendError(
                "no-process", "math-verify does not start in a process of its own", "reinstall math-verify"
            )

    @property
    def is_alive(self) -> bool:
        return self._owner == os.getpid() and self._process.poll() is None

    def ask(self, question: Any, seconds: float) -> Any:
        """The reply, None when there is none; the process is to be closed then."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return None
        return self._read(seconds)

    def _read(self, seconds: float) -> Any:
        assert self._process.stdout is not None
        timer = threading.Timer(seconds, self._kill_late)
        timer.daemon = True
        timer.start()
        try:
            line = self._process.stdout.readline(_MAX_ANSWER)
        finally:
            timer.cancel()
            timer.join()
        if self.is_late:
            return None
        try:
            return json.loads(line)
        except ValueError:
            return None

    def _kill_late(self) -> None:
        self.is_late = True
        self._process.kill()

    def close(self) -> None:
        if self._owner != os.getpid():  # in a fork it is not ours to end
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # what was not written yet
                pipe.close()


# -- in the process ------------------------------------------------------------------------------------------


def _serve() -> None:
    _limit()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not stand among the answers
    from math_verify import parse, verify

    print('"ready"', file=answers, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        _end_in(question["seconds"] + 1)
        gold, answer = (
            parse(f"\\boxed{{{question[name].strip().strip('$')}}}", parsing_timeout=None)
            for name in ("gold", "answer")
        )
        equal = bool(verify(gold, answer, timeout_seconds=None))
        _end_in(0)
        print(json.dumps(equal), file=answers, flush=True)


def _end_in(seconds: float) -> None:
    """End this process then, for a parent that is gone cannot; 0 is never."""
    import signal

    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)  # the signal that nobody handles


def _limit() -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    try:
        import resource
    except ImportError:  # Windows: the parent's time limit holds
        return
    for kind, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, _MEMORY)):
        hard = resource.getrlimit(kind)[1]
        with contextlib.suppress(ValueError, OSError):  # macOS refuses some
            resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
