"""Prompt-lookup decoding: draft tokens from n-grams of the prompt and of what was generated (Saxena 2023)."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["PromptLookup"]

_SHORTEST = 2
_LONGEST = 12


class PromptLookup:
    """Proposes what followed the last time that the present n-gram occurred.

    Checking a draft costs more than one step, so its length follows the luck of the drafts before: it doubles
    when a whole draft was right, shrinks to what was right when not, and after failures in a row it pauses.
    """

    def __init__(self, prompt: Sequence[int], *, ngram: int = 3) -> None:
        self._ngram = ngram
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}
        self._length = _SHORTEST * 2
        self._failures = 0
        self._resume_at = 0
        self.extend(prompt)

    def extend(self, tokens: Sequence[int]) -> None:
        """Take in the next tokens of the sequence."""
        for token in tokens:
            if len(self._tokens) >= self._ngram:
                # what ends here is found from the next token on, so that nothing finds itself
                self._ends[tuple(self._tokens[-self._ngram :])] = len(self._tokens)
            self._tokens.append(token)

    def truncate(self, length: int) -> None:
        """Forget what comes after the first `length` tokens."""
        del self._tokens[length:]
        self._ends = {key: end for key, end in self._ends.items() if end < length}

    def draft(self) -> list[int]:
        """Tokens that may follow; none when nothing matches or luck was bad."""
        if len(self._tokens) < max(self._ngram, self._resume_at):
            return []
        end = self._ends.get(tuple(self._tokens[-self._ngram :]))
        return [] if end is None else self._tokens[end : end + self._length]

    def report(self, drafted: int, accepted: int) -> None:
        """Learn how many of the drafted tokens were right."""
        if accepted == drafted:
            self._length = min(_LONGEST, self._length * 2)
            self._failures = 0
            return
        self._length = max(_SHORTEST, accepted + 1)
        self._failures = 0 if accepted > drafted // 2 else self._failures + 1
        if self._failures >= 2:
            self._resume_at = len(self._tokens) + min(128, 8 << self._failures)
