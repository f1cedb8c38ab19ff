"""An engine in a process of its own: a model that kills it does not kill the app.

The app checks everything that comes back, as a hostile model may have taken over that process.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import weakref
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Literal

import numpy as np

from edge_distill_runtime.bundles.manifest import KVLayout
from edge_distill_runtime.engines.backend import (
    EngineLock,
    Floats,
    Sequence,
    check_draft,
    check_finite,
    check_room,
    check_step,
    check_tokens,
    most_sequences,
)
from edge_distill_runtime.engines.framing import (
    DONE,
    ERROR,
    OPERATIONS,
    Channel,
    FramingError,
    Message,
    decode_error,
)
from edge_distill_runtime.engines.isolated_process import (
    how_it_ended,
    shared_memory,
    start_process,
    stop_process,
)
from edge_distill_runtime.errors import BackendCrashed, BackendError, InputError, ResourceError

__all__ = ["IsolatedBackend"]

_MOST_VOCABULARY = 1 << 22
_MOST_CACHE = 1 << 31


class IsolatedBackend:
    """`LlamaBackend` or `OnnxBackend` behind a socket; logits come through shared memory.

    A process that dies, does not answer in time or answers nonsense is ended; then this and every later call
    raises `BackendCrashed`. `memory_bytes` limits what the model may take, Linux only.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        format: Literal["gguf", "onnx"],
        context: int,
        threads: int,
        kv: KVLayout,
        cache_tokens: int | None = None,
        kv_cache: str = "f16",
        own_caches: bool = False,
        memory_bytes: int | None = None,
        call_timeout: float = 600.0,
    ) -> None:
        self._lock = EngineLock()
        self._kv = kv
        self._timeout = call_timeout
        self._ended: BackendError | None = None
        self._stepped: list[Sequence] = []  # whose logits point into `_rows`
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = start_process(ours, theirs)
        self._channel = Channel(ours)
        self._stop = weakref.finalize(self, stop_process, self._process, ours, os.getpid())
        fields = {
            "format": format,
            "path": os.path.abspath(path),
            "context": context,
            "threads": threads,
            "head_dim": kv.head_dim,
            "cache_tokens": cache_tokens,
            "kv_cache": kv_cache,
            "own_caches": own_caches,
            "memory_bytes": memory_bytes,
        }
        try:
            with self._crash_when_wrong():
                self._opened(self._exchange("open", fields), context)
        except BaseException:
            self._stop()
            raise

    def _opened(self, answer: Message, context: int) -> None:
        self.vocab_size = answer.integer("vocab_size", 1, _MOST_VOCABULARY)
        self.context_length = answer.integer("context_length", 1, context)
        self.max_sequences = answer.integer("max_sequences", 1, most_sequences(self.vocab_size))
        self.cache_tokens = answer.integer("cache_tokens", 1, _MOST_CACHE)
        self.shares_prefix = answer.fields.get("shares_prefix") is True
        shape = (self.max_sequences, self.vocab_size)
        descriptor = shared_memory(4 * shape[0] * shape[1])
        try:
            socket.send_fds(self._channel.connection, [b"\0"], [descriptor])
            memory = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
        self._shared: Floats = np.frombuffer(memory, np.float32).reshape(shape)
        self._rows: Floats = np.empty(shape, np.float32)
        self._free = list(range(self.max_sequences - 1, -1, -1))
        self._runs = 0

    def prefill(self, tokens: SequenceOf[int]) -> Sequence:
        array = check_tokens(tokens, self.vocab_size)
        check_room(0, len(array), self.context_length)
        with self._lock, self._new_sequence() as sequence:
            self._call("prefill", {"slot": sequence.slot}, array.tobytes())
            sequence.length = len(array)
            sequence._logits = self._take_rows(1)[0].copy()
        return sequence

    def extend(self, sequence: Sequence, tokens: SequenceOf[int]) -> None:
        array = check_tokens(tokens, self.vocab_size)
        check_room(sequence.length, len(array), self.context_length)
        with self._lock:
            self._call("extend", self._at(sequence), array.tobytes())
            sequence.length += len(array)
            sequence._logits = self._take_rows(1)[0].copy()

    def fork(self, sequence: Sequence, n: int) -> list[Sequence]:
        with self._lock, contextlib.ExitStack() as stack:
            at = self._at(sequence)
            children = [stack.enter_context(self._new_sequence()) for _ in range(n)]
            if children:
                self._call("fork", at, np.array([child.slot for child in children], np.int32).tobytes())
            for child in children:
                child.length = sequence.length
                child._logits = None if sequence._logits is None else sequence._logits.copy()
        return children

    def step(self, sequences: SequenceOf[Sequence], tokens: SequenceOf[int]) -> Floats:
        check_step(sequences, tokens, self)
        with self._lock:
            for sequence in sequences:
                self._check_live(sequence)
            slots, lengths = [s.slot for s in sequences], [s.length for s in sequences]
            self._call("step", {}, np.array([slots, lengths, tokens], np.int32).tobytes())
            rows = self._take_rows(len(sequences))
            for index, sequence in enumerate(sequences):
                sequence.length += 1
                sequence._logits = rows[index]
            self._stepped = list(sequences)
        return rows

    def verify(self, sequence: Sequence, tokens: SequenceOf[int]) -> Floats:
        array = check_draft(tokens, self)
        check_room(sequence.length, len(array), self.context_length)
        with self._lock:
            self._call("verify", self._at(sequence), array.tobytes())
            rows = self._take_rows(len(array))
            sequence.length += len(array)
            sequence._logits = rows[-1]
            self._stepped = [sequence]
        return rows

    def save(self, sequence: Sequence) -> bytes:
        with self._lock:
            at = self._at(sequence)
            return self._call("save", at, most_payload=self._most_state(sequence.length)).payload

    def restore(self, state: bytes, length: int) -> Sequence:
        check_room(0, length, self.context_length)
        if length < 1 or len(state) > self._most_state(length):
            raise InputError(
                "bad-state",
                f"the saved state of {len(state)} bytes holds no {length} tokens of this model",
                "compute the prompt again",
            )
        with self._lock, self._new_sequence() as sequence:
            self._call("restore", {"slot": sequence.slot, "length": length}, state)
            sequence.length = length
        return sequence

    def _most_state(self, length: int) -> int:
        """Bytes that a saved sequence may have: its keys and values, their positions, and headers."""
        return length * (self._kv.bytes_per_token + 64) + (1 << 16)

    def rewind(self, sequence: Sequence, length: int) -> None:
        with self._lock:
            self._check_live(sequence)
            if not 0 <= length <= sequence.length:
                raise InputError("bad-length", f"cannot rewind {sequence.length} tokens to {length}")
            self._call("rewind", {"slot": sequence.slot, "length": length})
            sequence.length, sequence._logits = length, None

    def release(self, sequence: Sequence) -> None:
        if self._lock.forked:
            return
        with self._lock:
            if sequence.slot >= 0:
                slot = sequence.slot
                sequence.slot, sequence.length, sequence._logits = -1, 0, None
                self._free.append(slot)
                # a dead process holds nothing; whoever asks it for more hears of it
                with contextlib.suppress(BackendError):
                    self._call("release", {"slot": slot})

    def teacher_force(self, tokens: SequenceOf[int], start: int = 0) -> Iterator[Floats]:
        array = check_tokens(tokens, self.vocab_size)
        check_room(0, len(array), self.context_length)
        with self._lock:
            run = self._runs = self._runs + 1
            self._call("force", {"run": run, "start": start}, array.tobytes())
        left = len(array) - max(0, start)
        try:
            while left > 0:
                with self._lock:
                    answer = self._call("next", {"run": run})
                    with self._crash_when_wrong():
                        rows = self._take_rows(answer.integer("rows", 1, min(left, self.max_sequences)))
                left -= len(rows)
                yield rows
        finally:
            # also of a generator that is dropped in a forked process, or after the model was closed
            with contextlib.suppress(BackendError), self._lock:
                self._call("drop", {"run": run})

    def close(self) -> None:
        if self._lock.forked:
            return
        with self._lock:
            self._end(BackendError("closed", "the model has been closed", "load it again"))

    @contextlib.contextmanager
    def _new_sequence(self) -> Iterator[Sequence]:
        """A sequence with a number of its own, which is free again when the block fails."""
        self._check_open()
        if not self._free:
            raise ResourceError(
                "too-many-sequences", f"all of {self.max_sequences} sequences are in use", "release some"
            )
        sequence = Sequence(self._free.pop())
        try:
            yield sequence
        except BaseException:
            self._free.append(sequence.slot)
            sequence.slot = -1
            raise

    def _check_open(self) -> None:
        if self._ended is not None:
            raise type(self._ended)(*self._ended.args)

    def _check_live(self, sequence: Sequence) -> None:
        self._check_open()
        if sequence.slot < 0:
            raise BackendError("released", "the sequence has been released", "prefill a new one")

    def _at(self, sequence: Sequence) -> dict[str, int]:
        self._check_live(sequence)
        return {"slot": sequence.slot, "length": sequence.length}

    def _take_rows(self, count: int) -> Floats:
        """The first `count` rows of logits, copied: in shared memory they could still change, under numpy's feet."""
        for sequence in self._stepped:
            sequence._logits = None
        self._stepped = []
        rows = self._rows[:count]
        np.copyto(rows, self._shared[:count])
        with self._crash_when_wrong():
            try:
                check_finite(rows)
            except BackendError as exc:  # the engine's process has checked them
                raise FramingError("its logits are not finite") from exc
        return rows

    def _call(
        self, operation: str, fields: dict[str, int], payload: bytes = b"", most_payload: int = 0
    ) -> Message:
        self._check_open()
        with self._crash_when_wrong():
            return self._exchange(operation, fields, payload, most_payload, self._timeout)

    def _exchange(
        self,
        operation: str,
        fields: Mapping[str, object],
        payload: bytes = b"",
        most_payload: int = 0,
        timeout: float | None = None,
    ) -> Message:
        """Send a request and wait for its answer; typed errors of the process are raised here."""
        interrupt = None
        try:
            self._channel.send(Message(OPERATIONS.index(operation), dict(fields), payload), timeout)
            try:
                answer = self._channel.receive(most_payload, timeout)
            except KeyboardInterrupt as exc:
                # as with an engine in this process, Ctrl-C waits for the call: no answer may stay behind
                interrupt = exc
                answer = self._channel.receive(most_payload, timeout)
        except (OSError, EOFError, FramingError):
            raise
        except BaseException:
            self._end(BackendCrashed("interrupted", "a call of the engine was interrupted", "load it again"))
            raise
        if interrupt is not None:
            raise interrupt
        if answer.kind == ERROR:
            raise decode_error(answer)
        if answer.kind != DONE:
            raise FramingError(f"an answer of the unknown kind {answer.kind}")
        return answer

    @contextlib.contextmanager
    def _crash_when_wrong(self) -> Iterator[None]:
        """End the process and raise `BackendCrashed` when it is gone, too slow, or sends nonsense."""
        try:
            yield
        except TimeoutError as exc:
            what = f"the engine's process did not answer within {self._timeout:g} seconds"
            raise self._end(BackendCrashed("timeout", what, "load it again")) from exc
        except (EOFError, OSError) as exc:
            self._stop()
            what = f"the engine's process {how_it_ended(self._process.returncode)}"
            hint = "load it again, with a smaller context if memory ran out"
            raise self._end(BackendCrashed("crashed", what, hint)) from exc
        except FramingError as exc:
            what = f"the engine's process sent nonsense: {exc}"
            hint = "the model may be hostile: load another one"
            raise self._end(BackendCrashed("bad-answer", what, hint)) from exc

    def _end(self, error: BackendError) -> BackendError:
        """Stop the process; `error` is what later calls raise, unless it had ended before."""
        self._stop()
        if self._ended is None:
            self._ended = type(error)(*error.args)  # `error` will hold the frames that it passes
            for sequence in self._stepped:
                sequence._logits = None
            self._stepped = []
            self._shared = np.empty((0, 0), np.float32)  # gives the memory back
        return error
