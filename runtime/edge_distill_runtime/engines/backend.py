"""The step interface between engines and everything above them: token ids in, logits out."""

from __future__ import annotations

import math
import os
import struct
import threading
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as SequenceOf
from typing import Any, Protocol

import numpy as np

from edge_distill_runtime.errors import BackendError, InputError

__all__ = [
    "Backend",
    "EngineLock",
    "Sequence",
    "StateLayout",
    "check_draft",
    "check_finite",
    "check_room",
    "check_step",
    "check_tokens",
    "most_sequences",
]

Floats = np.ndarray[Any, np.dtype[np.float32]]
Integers = np.ndarray[Any, np.dtype[np.int32]]


class Sequence:
    """A handle on one sequence in an engine's key-value cache; only the engine that made it may change it."""

    __slots__ = ("_logits", "length", "slot")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        """The engine's number for it; -1 when it has been released."""
        self.length = 0
        """Tokens in the cache."""
        self._logits: Floats | None = None

    @property
    def logits(self) -> Floats:
        """float32 [vocab] for the token after the last one; valid until the engine's next call."""
        if self._logits is None:
            raise BackendError(
                "no-logits", "the logits of this sequence are gone", "step it or prefill it again"
            )
        return self._logits


class Backend(Protocol):
    """One loaded model. Calls are serialized by a lock; after `close` every call raises `BackendError`."""

    vocab_size: int
    context_length: int
    """Most tokens in one sequence."""
    max_sequences: int
    """Most sequences at one time, and in one step."""
    cache_tokens: int
    """Most tokens of all sequences together."""
    shares_prefix: bool
    """Whether what forks have in common counts once in `cache_tokens`."""

    def prefill(self, tokens: SequenceOf[int]) -> Sequence:
        """A new sequence over `tokens`, at least one; its `logits` are kept until its next step."""

    def extend(self, sequence: Sequence, tokens: SequenceOf[int]) -> None:
        """Append several tokens to a sequence."""

    def fork(self, sequence: Sequence, n: int) -> list[Sequence]:
        """`n` new sequences with the same past, which is not computed again."""

    def step(self, sequences: SequenceOf[Sequence], tokens: SequenceOf[int]) -> Floats:
        """One token for each sequence, in one batch: logits [n, vocab], valid until the next call."""

    def verify(self, sequence: Sequence, tokens: SequenceOf[int]) -> Floats:
        """Append up to `max_sequences` tokens: logits [n, vocab] behind each, valid until the next call.

        This is what speculation needs: rewind to the last token that was right.
        """

    def save(self, sequence: Sequence) -> bytes:
        """The sequence's keys and values, for `restore` in the same version of the same engine and model."""

    def restore(self, state: bytes, length: int) -> Sequence:
        """A new sequence with the past of `length` tokens that was saved; it has no logits before it is extended.

        Engines trust what they are given beyond sizes and layout: `state` must come from a trusted place.
        """

    def rewind(self, sequence: Sequence, length: int) -> None:
        """Forget what comes after the first `length` tokens; the logits are gone then."""

    def release(self, sequence: Sequence) -> None:
        """Give the cache back; releasing twice is allowed."""

    def teacher_force(self, tokens: SequenceOf[int], start: int = 0) -> Iterator[Floats]:
        """Logits [m, vocab] at the positions start, start + 1, ..., each predicting the token after it.

        Comes in chunks; each is valid until the next one is asked for.
        """

    def close(self) -> None:
        """Free the model; closing twice is allowed."""


class EngineLock:
    """One call at a time, and only in the process that loaded the model.

    An engine's threads do not live on in a forked child, where a call would wait for them for ever.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = os.getpid()

    @property
    def forked(self) -> bool:
        """Whether this process is a fork of the one that loaded the model."""
        return os.getpid() != self._process

    def __enter__(self) -> None:
        if os.getpid() != self._process:
            raise BackendError(
                "forked",
                f"the model was loaded in process {self._process}, this is its fork {os.getpid()}",
                "load it in the new process, or start processes with the method 'spawn'",
            )
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class StateLayout:
    """The header of a saved sequence: the engine, the shape of its cache and the tokens in it."""

    def __init__(self, engine: str, *shape: int) -> None:
        """`shape`: the numbers that a cache must share to take the keys and values."""
        self._engine, self._shape = engine.encode(), shape

    def header(self, length: int) -> bytes:
        return struct.pack(f"<8s{len(self._shape) + 1}I", self._engine, *self._shape, length)

    def payload(self, state: bytes, length: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """What follows the header, uint8 [bytes]; `InputError` when it is another model's or length's."""
        header = self.header(length)
        if state[: len(header)] != header:
            raise InputError(
                "bad-state",
                f"the saved state of {len(state)} bytes holds no {length} tokens of this model",
                "compute the prompt again",
            )
        return np.frombuffer(state, np.uint8, offset=len(header))


def most_sequences(vocab_size: int) -> int:
    """How many sequences an engine serves: their rows of logits should not take more than 8 MiB."""
    return max(16, min(64, (8 << 20) // (4 * vocab_size)))


def check_step(sequences: SequenceOf[Sequence], tokens: SequenceOf[int], backend: Backend) -> None:
    """`InputError` unless every sequence gets one token of the vocabulary and has room for it."""
    count = len(sequences)
    if not 0 < count <= backend.max_sequences or len(tokens) != count:
        raise InputError(
            "bad-batch",
            f"{count} sequences and {len(tokens)} tokens were given",
            f"give 1 to {backend.max_sequences} of both",
        )
    for sequence, token in zip(sequences, tokens, strict=True):
        if not 0 <= token < backend.vocab_size:
            check_tokens([token], backend.vocab_size)
        if sequence.length >= backend.context_length:
            check_room(sequence.length, 1, backend.context_length)
    if count > 1 and len({sequence.slot for sequence in sequences}) != count:
        raise InputError("bad-batch", "a sequence stands twice in one step", "fork it first")


def check_tokens(tokens: SequenceOf[int] | Iterable[int], vocab_size: int) -> Integers:
    """`tokens` as int32 [n], or `InputError` when there are none or one lies outside the vocabulary."""
    array = np.asarray(tokens, dtype=np.int64)
    if array.ndim != 1 or not array.size:
        raise InputError("no-tokens", "there are no tokens to compute", "the prompt must not be empty")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= vocab_size:
        bad = low if low < 0 else high
        raise InputError(
            "bad-token", f"token {bad} lies outside the vocabulary of {vocab_size}", "check the tokenizer"
        )
    return array.astype(np.int32)


def check_room(length: int, more: int, context_length: int) -> None:
    """`InputError` when `more` tokens after `length` do not fit the context."""
    if length + more > context_length:
        raise InputError(
            "context-full",
            f"{length + more} tokens do not fit the context of {context_length}",
            "shorten the prompt or load with a larger context",
        )


def check_draft(tokens: SequenceOf[int], backend: Backend) -> Integers:
    """`tokens` as int32 [n], or `InputError` when they are none, foreign or too many to verify at once."""
    array = check_tokens(tokens, backend.vocab_size)
    if len(array) > backend.max_sequences:
        raise InputError(
            "bad-batch",
            f"{len(array)} tokens are to be verified, {backend.max_sequences} can be",
            "verify fewer at once",
        )
    return array


def check_finite(logits: Floats) -> None:
    """`BackendError` when the logits hold NaN or infinity; one pass, as max() hands NaN on."""
    if not math.isfinite(logits.max()):
        wrong = logits.size - int(np.isfinite(logits).sum())
        raise BackendError(
            "bad-logits",
            f"the model computed NaN or infinity for {wrong} of {logits.size} logits",
            "its weights are damaged: verify or export it again",
        )
