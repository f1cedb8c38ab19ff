"""Teacher forcing of one text after the other: what two of them begin with stays in the engine's cache."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from itertools import takewhile

from edge_distill_runtime.engines.backend import Backend, Floats, Sequence

__all__ = ["Forcing"]


class Forcing:
    """Logits of given texts in one sequence of a backend; close it, or use `contextlib.closing`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._sequence: Sequence | None = None
        self._past: list[int] = []

    def logits(self, tokens: SequenceOf[int], prompt: int) -> Iterator[Floats]:
        """float32 [m, vocab] in chunks, together a row for each token after the first `prompt`, which predicts it.

        Each chunk is valid until the next. `prompt` is at least 1 and less than the number of tokens.
        """
        backend = self._backend
        sequence = self._after(list(tokens[:prompt]))
        yield sequence.logits[None]
        for start in range(prompt, len(tokens) - 1, backend.max_sequences):
            chunk = tokens[start : min(start + backend.max_sequences, len(tokens) - 1)]
            yield backend.verify(sequence, chunk)
        self._past = list(tokens[:-1])

    def _after(self, prompt: list[int]) -> Sequence:
        """The sequence holding just `prompt`, whose last token is always computed: its logits are wanted."""
        same = (old == new for old, new in zip(self._past, prompt[:-1], strict=False))
        shared = sum(takewhile(bool, same))
        if self._sequence is None or not shared:
            self.close()
            self._sequence = self._backend.prefill(prompt)
        else:
            self._backend.rewind(self._sequence, shared)
            self._backend.extend(self._sequence, prompt[shared:])
        return self._sequence

    def close(self) -> None:
        """Give the sequence back; closing twice is allowed."""
        if self._sequence is not None:
            self._backend.release(self._sequence)
            self._sequence = None
