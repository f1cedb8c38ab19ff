"""Drafts from n-grams."""

from __future__ import annotations

from edge_distill_runtime.generation.lookup import PromptLookup


def test_proposes_what_followed_last_time() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert lookup.draft() == []
    lookup.extend([20, 2, 3])
    assert lookup.draft() == []
    lookup.extend([4])
    assert lookup.draft() == [5, 6, 7, 8]
    lookup.extend([5, 30, 3, 4, 5])  # the newest occurrence counts
    assert lookup.draft() == [30, 3, 4, 5]


def test_a_loop_finds_itself() -> None:
    assert PromptLookup([5, 5, 5, 5]).draft() == [5]


def test_truncated_tokens_are_forgotten() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5])
    lookup.extend([6, 7, 8, 9])
    lookup.truncate(5)
    lookup.extend([9, 6, 7, 8])
    assert lookup.draft() == []  # 6 7 8 was taken back
    lookup.extend([1, 2, 3])
    assert lookup.draft() == [4, 5, 9, 6]


def test_length_follows_luck_and_bad_luck_pauses() -> None:
    tokens = list(range(30))
    lookup = PromptLookup([*tokens, 0, 1, 2])
    assert len(lookup.draft()) == 4
    lookup.report(4, 4)
    assert len(lookup.draft()) == 8
    lookup.report(8, 8)
    lookup.report(12, 12)
    assert len(lookup.draft()) == 12  # the most
    lookup.report(12, 3)
    assert len(lookup.draft()) == 4
    lookup.report(4, 0)
    assert lookup.draft() == []  # twice in a row
    lookup.extend([*range(100, 200), 0, 1, 2])
    assert lookup.draft() == [100, 101]
