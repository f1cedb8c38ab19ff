"""When reasoning has to end."""

from __future__ import annotations

import pytest

from edge_distill_runtime.generation.budget import ThinkingControl, repeats


@pytest.mark.parametrize(
    ("tail", "ends"),
    [
        ("so 4 are left.", True),
        ('he said "four."', True),
        ("left. ", True),
        ("is it 4?", True),
        ("line\n", True),
        ("4 个。", True),
        ("3.", False),  # may go on as 3.5
        ("so 4 are", False),
        ("x", False),
    ],
)
def test_ends_at_a_sentence_in_the_last_quarter(tail: str, ends: bool) -> None:
    control = ThinkingControl(100, 0)
    tokens = list(range(200))
    assert control.must_close(tokens, 75, tail) is ends
    assert control.must_close(tokens, 74, tail) is False
    assert control.must_close(tokens, 100, tail) is True


def test_minimum() -> None:
    control = ThinkingControl(100, 90)
    assert control.too_short(89)
    assert not control.too_short(90)
    assert not control.must_close(list(range(200)), 80, "done.")  # the minimum wins over the sentence
    assert control.must_close(list(range(200)), 90, "done.")


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([7] * 24, True),
        ([7] * 23, False),
        ([1, 2, 3] * 8, True),
        ([1, 2, 3] * 7 + [1, 2], False),
        ([9, 9, 9, *list(range(20)) * 4], True),
        (list(range(20)) * 3, False),
        (list(range(64)) * 4, True),
        (list(range(65)) * 4, False),
        ([*[1, 2, 3] * 8, 4], False),
        (list(range(100)), False),
        ([], False),
    ],
)
def test_repeats(tokens: list[int], expected: bool) -> None:
    assert repeats(tokens) is expected


def test_loops_close_reasoning_without_a_budget() -> None:
    control = ThinkingControl(None, 0)
    assert control.must_close([1, 2] * 16, 32, "a b")
    assert not control.must_close(list(range(32)), 32, "a.")
    # only what was thought counts, not the prompt before it
    assert not control.must_close([1, 2] * 16, 8, "a b")
