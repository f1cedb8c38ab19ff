"""What both engines do alike: sequences that begin, grow, shrink and end, each call whole or undone."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from typing import Any

from edge_distill_runtime.engines.backend import (
    Backend,
    EngineLock,
    Floats,
    Integers,
    Sequence,
    StateLayout,
    check_draft,
    check_finite,
    check_room,
    check_tokens,
)
from edge_distill_runtime.errors import BackendError, InputError

__all__ = ["LocalBackend"]


class LocalBackend(Backend, ABC):
    """An engine in this process. The methods with an underscore are called with the lock held."""

    _lock: EngineLock
    _layout: StateLayout
    _stepped: list[Sequence]
    """Whose logits point into the engine's buffer."""

    @property
    @abstractmethod
    def _is_open(self) -> bool: ...

    @abstractmethod
    def _new_sequence(self) -> Sequence: ...

    @abstractmethod
    def _extend(self, sequence: Sequence, tokens: Integers) -> None:
        """Append tokens and keep a copy of the last one's logits."""

    @abstractmethod
    def _verify(self, sequence: Sequence, tokens: Integers) -> Floats:
        """Append tokens; logits [n, vocab] after each of them, a view."""

    @abstractmethod
    def _restore(self, sequence: Sequence, payload: Any, length: int) -> None:
        """Fill a new sequence with what `save` wrote behind the header."""

    @abstractmethod
    def _cut(self, sequence: Sequence, length: int) -> None:
        """Forget what comes after the first `length` tokens."""

    @abstractmethod
    def _release(self, sequence: Sequence) -> None: ...

    def prefill(self, tokens: SequenceOf[int]) -> Sequence:
        array = check_tokens(tokens, self.vocab_size)
        check_room(0, len(array), self.context_length)
        with self._lock, self._begun() as sequence:
            self._extend(sequence, array)
        return sequence

    def extend(self, sequence: Sequence, tokens: SequenceOf[int]) -> None:
        array = check_tokens(tokens, self.vocab_size)
        check_room(sequence.length, len(array), self.context_length)
        with self._lock:
            self._check_live(sequence)
            with self._undone_on_error(sequence):
                self._extend(sequence, array)

    def verify(self, sequence: Sequence, tokens: SequenceOf[int]) -> Floats:
        array = check_draft(tokens, self)
        check_room(sequence.length, len(array), self.context_length)
        with self._lock:
            self._check_live(sequence)
            with self._undone_on_error(sequence):
                rows = self._verify(sequence, array)
                check_finite(rows)
            sequence._logits = rows[-1]
            self._stepped = [sequence]
        return rows

    def restore(self, state: bytes, length: int) -> Sequence:
        payload = self._layout.payload(state, length)
        check_room(0, length, self.context_length)
        with self._lock, self._begun() as sequence:
            self._restore(sequence, payload, length)
        return sequence

    def rewind(self, sequence: Sequence, length: int) -> None:
        with self._lock:
            self._check_live(sequence)
            if not 0 <= length <= sequence.length:
                raise InputError("bad-length", f"cannot rewind {sequence.length} tokens to {length}")
            self._cut(sequence, length)
            sequence._logits = None

    def release(self, sequence: Sequence) -> None:
        if not self._lock.forked:  # a generator dropped in a forked child must not complain
            with self._lock:
                self._release(sequence)

    @contextlib.contextmanager
    def _begun(self) -> Iterator[Sequence]:
        """A new sequence, released when what is done with it fails."""
        sequence = self._new_sequence()
        try:
            yield sequence
        except BaseException:
            self._release(sequence)
            raise

    @contextlib.contextmanager
    def _undone_on_error(self, sequence: Sequence) -> Iterator[None]:
        length = sequence.length
        try:
            yield
        except BaseException:
            self._cut(sequence, length)
            raise

    def _forget_stepped(self) -> None:
        for sequence in self._stepped:
            sequence._logits = None
        self._stepped = []

    def _check_open(self) -> None:
        if not self._is_open:
            raise BackendError("closed", "the model has been closed", "load it again")

    def _check_live(self, sequence: Sequence) -> None:
        self._check_open()
        if sequence.slot < 0:
            raise BackendError("released", "the sequence has been released", "prefill a new one")
