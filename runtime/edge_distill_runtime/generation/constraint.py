"""Answers of a given form: choices, a regular expression or a JSON schema, kept token by token by llguidance.

The answer must have the form from its first character: white space that models write between `</think>` and the
answer is no part of it. So the constraint starts with the first token of the answer, and it lets no such white
space through.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from typing import Any

import numpy as np

from edge_distill_runtime.engines.backend import Floats
from edge_distill_runtime.errors import InputError, MissingExtra
from edge_distill_runtime.generation.answer_format import GRAMMAR_LIMITS, AnswerFormat

__all__ = ["AnswerFormat", "Constraint", "ConstraintCompiler"]


class ConstraintCompiler:
    """Makes constraints for one model's vocabulary; costs nothing before the first one.

    `bytes_of` gives the bytes of a token id (none for special tokens), `encode` the ids of a text, without special
    tokens. `vocab_size` is the number of logits: there may be more of them than tokens. The answer never holds
    `stop_ids`, nor `special_ids`: tokens with bytes that are no part of an answer, such as reasoning markers.
    """

    def __init__(
        self,
        bytes_of: Callable[[int], bytes],
        encode: Callable[[str], SequenceOf[int]],
        *,
        vocab_size: int,
        stop_ids: Iterable[int],
        special_ids: Iterable[int] = (),
    ) -> None:
        self._bytes_of = bytes_of
        self._encode = encode
        self._vocab_size = vocab_size
        self._stop_ids = tuple(sorted({token for token in stop_ids if 0 <= token < vocab_size}))
        self._never = {*special_ids, *self._stop_ids}
        self._tokenizer: Any = None
        self._lock = threading.Lock()

    def compile(self, answer_format: AnswerFormat) -> Constraint:
        """A constraint at the answer's first character.

        Raises `MissingExtra` without llguidance, `InputError` when no tokens can write such an answer.
        """
        try:
            import llguidance
        except ImportError as exc:
            raise MissingExtra(
                "missing-constrain",
                f"answer formats need llguidance, which cannot be imported: {exc}",
                'pip install "edge-distill-runtime[constrain]"',
            ) from exc
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._make_tokenizer(llguidance)
        limits = llguidance.LLParserLimits(**GRAMMAR_LIMITS)
        grammar = answer_format.grammar(llguidance)
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        return Constraint(matcher, answer_format, self._vocab_size, self._stop_ids)

    def _make_tokenizer(self, llguidance: Any) -> Any:
        """The vocabulary for llguidance, with one token of our own behind it that stands for the end."""
        tokens = [b"" if t in self._never else self._bytes_of(t) for t in range(self._vocab_size)]
        # 0xFF marks special tokens there; no UTF-8 text holds this byte, so a token with it can never be used
        tokens = [b"" if token.startswith(b"\xff") else token for token in tokens]
        wrapper = llguidance.TokenizerWrapper(_Vocabulary([*tokens, b"\xff<end>"], self._encode))
        return llguidance.LLTokenizer(wrapper)


class Constraint:
    """Where one sequence stands in its answer."""

    def __init__(
        self, matcher: Any, answer_format: AnswerFormat, vocab_size: int, stop_ids: tuple[int, ...]
    ) -> None:
        self._matcher = matcher
        self._format = answer_format
        self._end = vocab_size
        self._stop_ids = stop_ids
        self._ended = False
        self._cached: Any = None
        self._allowed()

    def copy(self) -> Constraint:
        """The same place in the same answer, for a forked sequence."""
        other = copy.copy(self)
        other._matcher = self._matcher.deep_copy()
        return other

    @property
    def is_complete(self) -> bool:
        """The answer may end here; stop tokens are allowed."""
        return self._ended or bool(self._matcher.is_accepting())

    @property
    def is_finished(self) -> bool:
        """The answer must end here: no token may follow."""
        return self.is_complete and not self._allowed()[1]

    def mask(self, logits: Floats) -> Floats:
        """A copy of the logits [vocab] with -inf for every token that may not come next.

        Where only one text can follow, the tokenizer's own tokens for it are all that is allowed.
        """
        allowed, _ = self._allowed()
        if logits.shape != allowed.shape:
            raise InputError("bad-logits", f"logits of shape {logits.shape}", f"they must be {allowed.shape}")
        return np.where(allowed, logits, np.float32(-np.inf))

    def accept(self, token: int) -> None:
        """Go one token on; `InputError`, and no change, when the answer cannot go on with it."""
        if token in self._stop_ids:
            valid = self._ended = self.is_complete
        else:
            known = 0 <= token < self._end and not self._ended
            valid = known and self._matcher.try_consume_tokens([token]) == 1
            self._check()
        if not valid:
            raise InputError(
                "forbidden-token", f"token {token} cannot come here in the answer", "choose by `mask`"
            )
        self._cached = None

    def forced_tokens(self) -> list[int]:
        """Tokens that must come next, as the tokenizer writes them; `accept` each. Often empty."""
        if self._ended:
            return []
        tokens: list[int] = self._matcher.compute_ff_tokens()
        return tokens

    def _allowed(self) -> tuple[Any, bool]:
        """Which tokens may come next, bool [vocab], and whether any of them goes on with the answer."""
        if self._cached is None:
            allowed = np.zeros(self._end, np.bool_)
            if not self._ended:
                bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
                self._check()
                allowed = np.unpackbits(bits, count=self._end, bitorder="little").view(np.bool_)
            goes_on = bool(allowed.any())
            if self.is_complete:
                allowed[list(self._stop_ids)] = True
            elif not goes_on:
                raise self._format.refused("NoExtension")
            self._cached = allowed, goes_on
        return self._cached[0], self._cached[1]

    def _check(self) -> None:
        if message := self._matcher.get_error():
            raise self._format.refused(message)


class _Vocabulary:
    """A tokenizer as `llguidance.TokenizerWrapper` wants it."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], encode: Callable[[str], SequenceOf[int]]) -> None:
        self.tokens = tokens
        self.eos_token_id = len(tokens) - 1
        self.special_token_ids = [self.eos_token_id]
        self._encode = encode

    def __call__(self, text: str) -> list[int]:
        """Ids whose bytes are exactly the text's: llguidance lets no others through where a text is forced."""
        if not isinstance(text, str):
            raise TypeError("text, not bytes")
        data = text.encode("utf-8")
        # some tokenizers put a space before every text: behind a newline they write it as in the middle of one
        for before in ("", "\n"):
            tokens, rest = list(self._encode(before + text)), data
            for index in range(len(tokens), -1, -1):
                if not rest:
                    return tokens[index:]
                piece = self.tokens[tokens[index - 1]] if index else b""
                if not piece or not rest.endswith(piece):
                    break
                rest = rest[: -len(piece)]
        return self._longest_matches(data)  # normalized, or it spells a special token

    def _longest_matches(self, data: bytes) -> list[int]:
        ids = {piece: token for token, piece in enumerate(self.tokens) if piece}
        found, start = [], 0
        while start < len(data):
            length = next((n for n in range(len(data) - start, 0, -1) if data[start : start + n] in ids), 0)
            if not length:
                break
            found.append(ids[data[start : start + length]])
            start += length
        return found
