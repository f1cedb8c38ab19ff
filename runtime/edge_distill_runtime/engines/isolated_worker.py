"""The process that runs an engine for `IsolatedBackend`: it may die, the app lives on."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import select
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edge_distill_runtime.engines.backend import Backend, Floats, Sequence
from edge_distill_runtime.engines.framing import (
    DONE,
    OPERATIONS,
    Channel,
    FramingError,
    Message,
    encode_error,
)
from edge_distill_runtime.engines.huge_pages import in_huge_pages
from edge_distill_runtime.errors import BundleError, EdgeDistillError, ResourceError

__all__ = ["main"]

_MOST_FILES = 64
_NO_NEW_PRIVILEGES = 38  # PR_SET_NO_NEW_PRIVS of prctl(2)
_OUT_OF_MEMORY_SCORE = 500  # of 1000: where memory runs out, the kernel should end this process, not the app
_MIB = 1 << 20
# Address space is more than memory: the engine's code, and each thread's stack (8 MiB) and malloc arena (64 MiB).
_ENGINE_ROOM, _THREAD_ROOM = 256 * _MIB, 72 * _MIB


def main(descriptor: int) -> None:
    """Serve the app at the other end of the socket `descriptor` until it goes away."""
    connection = socket.socket(fileno=descriptor)
    threading.Thread(target=_watch, args=(descriptor, os.getppid()), daemon=True).start()
    status = 1
    try:
        _restrict()
        _serve(Channel(connection))
    except (EOFError, ConnectionError):
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)  # what the engine would tidy up is gone with the process


def _watch(descriptor: int, parent: int) -> None:
    """End this process with the app, also in the middle of a call.

    Not by PR_SET_PDEATHSIG: that fires when the thread ends that loaded the model. The parent's id is for
    other children of the app, forked, that hold its end of the socket open.
    """
    hangup = select.poll()
    hangup.register(descriptor, 0)  # POLLHUP is always reported
    while not hangup.poll(1000) and os.getppid() == parent:
        pass
    os._exit(0)


def _restrict() -> None:
    """No core files, few open files, no new privileges, and first in line when memory runs out."""
    import resource  # not on Windows

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = hard if 0 <= hard < _MOST_FILES else _MOST_FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        with contextlib.suppress(OSError):  # /proc may be missing or read-only
            Path("/proc/self/oom_score_adj").write_text(str(_OUT_OF_MEMORY_SCORE))


def _limit_memory(memory_bytes: int, threads: int) -> None:
    """Limit the address space to what is in use now, `memory_bytes`, and room for code, stacks and arenas."""
    import resource

    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    except OSError:
        used = 0  # only Linux has it
    limit = used + memory_bytes + _ENGINE_ROOM + threads * _THREAD_ROOM
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard < 0 or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _serve(channel: Channel) -> None:
    request = channel.receive(0)
    try:
        backend = _open(**request.fields)
    except EdgeDistillError as error:
        channel.send(encode_error(error))
        return
    names = ("vocab_size", "context_length", "max_sequences", "cache_tokens", "shares_prefix")
    channel.send(Message(DONE, {name: getattr(backend, name) for name in names}))
    worker = _Worker(backend, _shared_rows(channel, backend))
    while True:
        request = channel.receive((1 << 32) - 1)  # the app may send what it saved
        try:
            answer = worker.answer(request)
        except EdgeDistillError as error:
            answer = encode_error(error)
        except MemoryError:
            answer = encode_error(ResourceError("memory", "the engine's process has no memory left"))
        channel.send(answer)


def _open(
    *,
    format: str,
    path: str,
    context: int,
    threads: int,
    head_dim: int,
    cache_tokens: int | None,
    kv_cache: str,
    own_caches: bool,
    memory_bytes: int | None,
) -> Backend:
    if memory_bytes is not None:
        _limit_memory(memory_bytes, threads)
    options: dict[str, Any] = {"context": context, "threads": threads, "cache_tokens": cache_tokens}
    try:
        if format == "gguf":
            from edge_distill_runtime.bundles.gguf_check import validate_gguf
            from edge_distill_runtime.engines.llama import LlamaBackend

            validate_gguf(path, allow_links=True)  # whether links are allowed was the app's to decide
            with in_huge_pages():
                return LlamaBackend(path, kv_cache=kv_cache, own_caches=own_caches, **options)
        from edge_distill_runtime.engines.onnx import OnnxBackend

        with in_huge_pages():
            return OnnxBackend(path, head_dim=head_dim, **options)
    except MemoryError:
        problem = "it has no memory left"
    except BundleError as error:
        # both engines call a failed allocation a file that cannot be loaded
        if memory_bytes is None or error.code != "load-failed":
            raise
        problem = error.what
    raise ResourceError(
        "memory",
        f"the engine's process, limited to {(memory_bytes or 0) >> 20} MiB for the model, gave up: {problem}",
        "load with a smaller context or a larger limit, or export it again if it is damaged",
    )


def _shared_rows(channel: Channel, backend: Backend) -> Floats:
    """float32 [max_sequences, vocab] in memory that the app sends, for logits."""
    _, descriptors, _, _ = socket.recv_fds(channel.connection, 1, 1)
    if not descriptors:
        raise EOFError
    shape = (backend.max_sequences, backend.vocab_size)
    memory = mmap.mmap(descriptors[0], 4 * shape[0] * shape[1])
    os.close(descriptors[0])
    return np.frombuffer(memory, np.float32).reshape(shape)


class _Worker:
    """One method for each operation; the app numbers the sequences and knows their lengths."""

    def __init__(self, backend: Backend, rows: Floats) -> None:
        self._backend = backend
        self._rows = rows
        self._sequences: dict[int, Sequence] = {}
        self._runs: dict[int, Iterator[Floats]] = {}

    def answer(self, request: Message) -> Message:
        if request.kind >= len(OPERATIONS) or OPERATIONS[request.kind] == "open":
            raise FramingError(f"request {request.kind} is unknown")
        result: Message | None = getattr(self, "_" + OPERATIONS[request.kind])(
            request.payload, **request.fields
        )
        return result or Message(DONE)

    def _at(self, slot: int, length: int) -> Sequence:
        """The sequence; where a call failed or was interrupted, the app's length is the one that counts."""
        sequence = self._sequences[slot]
        if sequence.length > length:
            self._backend.rewind(sequence, length)
        return sequence

    def _release(self, payload: bytes, slot: int) -> None:
        if sequence := self._sequences.pop(slot, None):
            self._backend.release(sequence)

    def _prefill(self, payload: bytes, slot: int) -> None:
        self._release(b"", slot)
        sequence = self._sequences[slot] = self._backend.prefill(_tokens(payload))
        self._rows[0] = sequence.logits

    def _extend(self, payload: bytes, slot: int, length: int) -> None:
        sequence = self._at(slot, length)
        self._backend.extend(sequence, _tokens(payload))
        self._rows[0] = sequence.logits

    def _fork(self, payload: bytes, slot: int, length: int) -> None:
        slots = _tokens(payload)
        for child in slots:
            self._release(b"", child)
        children = self._backend.fork(self._at(slot, length), len(slots))
        self._sequences.update(zip(slots, children, strict=True))

    def _step(self, payload: bytes) -> None:
        slots, lengths, tokens = np.frombuffer(payload, np.int32).reshape(3, -1).tolist()
        sequences = [self._at(slot, length) for slot, length in zip(slots, lengths, strict=True)]
        self._rows[: len(slots)] = self._backend.step(sequences, tokens)

    def _verify(self, payload: bytes, slot: int, length: int) -> None:
        rows = self._backend.verify(self._at(slot, length), _tokens(payload))
        self._rows[: len(rows)] = rows

    def _rewind(self, payload: bytes, slot: int, length: int) -> None:
        self._backend.rewind(self._sequences[slot], length)

    def _save(self, payload: bytes, slot: int, length: int) -> Message:
        return Message(DONE, payload=self._backend.save(self._at(slot, length)))

    def _restore(self, payload: bytes, slot: int, length: int) -> None:
        self._release(b"", slot)
        self._sequences[slot] = self._backend.restore(payload, length)

    def _force(self, payload: bytes, run: int, start: int) -> None:
        self._runs[run] = self._pieces(_tokens(payload), start)

    def _pieces(self, tokens: list[int], start: int) -> Iterator[Floats]:
        """As `teacher_force`, at most as many rows at a time as fit the shared memory."""
        most = len(self._rows)
        for chunk in self._backend.teacher_force(tokens, start):
            # another call may come between two pieces and overwrite the engine's rows
            rows = chunk.copy() if len(chunk) > most else chunk
            for at in range(0, len(rows), most):
                yield rows[at : at + most]

    def _next(self, payload: bytes, run: int) -> Message:
        rows = next(self._runs[run], self._rows[:0])
        self._rows[: len(rows)] = rows
        return Message(DONE, {"rows": len(rows)})

    def _drop(self, payload: bytes, run: int) -> None:
        self._runs.pop(run, None)  # a dropped generator releases its sequence


def _tokens(payload: bytes) -> list[int]:
    tokens: list[int] = np.frombuffer(payload, np.int32).tolist()
    return tokens
