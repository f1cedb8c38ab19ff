"""Steering the length of reasoning: a budget, a minimum, and an end to loops."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["ThinkingControl", "repeats", "soft_budget"]

_SENTENCE_END = re.compile(r"""((?<!\d)\.|[!?。！？])["'”’)\]]*\s*\Z|\n\s*\Z""")
_LONGEST_CYCLE = 64
_FEWEST_REPEATED = 24
_CHECK_EVERY = 8


class ThinkingControl:
    """Decides after every token of reasoning whether it has to end.

    `budget` is the most tokens of reasoning: in its last quarter the reasoning ends with the first sentence that
    does, at the budget it ends anywhere. `minimum` is the fewest (s1, Muennighoff et al. 2025).
    """

    def __init__(self, budget: int | None, minimum: int) -> None:
        self.budget = budget
        self.minimum = minimum
        self._soft = None if budget is None else max(minimum, soft_budget(budget))

    def must_close(self, tokens: Sequence[int], reasoning_tokens: int, tail: str) -> bool:
        """Whether the reasoning must end behind `tokens`; `tail` is the end of its text."""
        if self.budget is not None and self._soft is not None:
            if reasoning_tokens >= self.budget:
                return True
            if reasoning_tokens >= self._soft and _SENTENCE_END.search(tail):
                return True
        if reasoning_tokens % _CHECK_EVERY or self.too_short(reasoning_tokens):
            return False
        return repeats(tokens[-reasoning_tokens:])

    def too_short(self, reasoning_tokens: int) -> bool:
        """Whether a model that wants to end its reasoning must go on."""
        return reasoning_tokens < self.minimum


def soft_budget(budget: int) -> int:
    """From so many tokens of reasoning on a budget may end it; what ends before is the same without the budget."""
    return max(0, budget - max(8, budget // 4))


def repeats(tokens: Sequence[int]) -> bool:
    """Whether `tokens` end in a cycle of up to 64 that was gone through four times, 24 tokens at least."""
    for period in range(1, min(_LONGEST_CYCLE, len(tokens) // 4) + 1):
        if tokens[-1] != tokens[-1 - period]:
            continue
        span = max(4, -(-_FEWEST_REPEATED // period)) * period
        if len(tokens) >= span and tokens[-span + period :] == tokens[-span:-period]:
            return True
    return False
