"""Edits of reasonings, by literal texts."""

from __future__ import annotations

import pytest

from edge_distill.traces.checker import check_step
from edge_distill.traces.edits import paraphrased, shortened, with_mistake, without_step
from edge_distill.traces.steps import split_steps

SUM = "6 + 4 = 10\n10 - 7 = 3\n3 + 8 = 11"
WORDS = "There are 3 trays with 28 rolls each. So 3 * 28 = 84 rolls, and 84 is even. Bob is 9. In total 84 - 4 = 80."


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0, ""),
        (0.25, ""),  # 8 of 32 characters; the first step has 10
        (0.32, "6 + 4 = 10"),
        (0.5, "6 + 4 = 10"),
        (0.66, "6 + 4 = 10\n10 - 7 = 3"),
        (0.99, "6 + 4 = 10\n10 - 7 = 3"),
        (1, SUM),
    ],
)
def test_shortened(share: float, expected: str) -> None:
    assert shortened(SUM, share) == expected


def test_shortened_keeps_what_lies_between_steps() -> None:
    text = "  First.  Second one.\n\n Third one is a longer step."
    assert shortened(text, 0.5) == "  First.  Second one."
    assert shortened("", 0.5) == ""


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (0, "6 + 4 = 11\n"),  # the first step, 1 more
        (1, "6 + 4 = 10\n10 - 7 = 4\n"),
        (2, "6 + 4 = 10\n10 - 7 = 3\n3 + 8 = 12\n"),
        (64 * 2 + 1, "6 + 4 = 13\n"),  # 129 is 0 of 3 steps, and the third error
        (64 * 7 + 2, "6 + 4 = 30\n"),
    ],
)
def test_a_mistake(seed: int, expected: str) -> None:
    assert with_mistake(SUM, "11", seed) == expected


def test_a_mistake_is_made_on_the_way_to_the_answer_only() -> None:
    text = "5 + 5 = 10\n2 * 3 = 6\n6 + 1 = 7"
    found = {with_mistake(text, "7", seed) for seed in range(50)}
    assert found == {"5 + 5 = 10\n2 * 3 = 7\n", "5 + 5 = 10\n2 * 3 = 6\n6 + 1 = 8\n"}


def test_later_mentions_in_the_step_are_changed_with_it() -> None:
    found = {with_mistake(WORDS, "80", seed) for seed in range(2)}
    assert found == {
        "There are 3 trays with 28 rolls each. So 3 * 28 = 85 rolls, and 85 is even.",
        "There are 3 trays with 28 rolls each. So 3 * 28 = 84 rolls, and 84 is even. Bob is 9. In total 84 - 4 = 81.\n",
    }


@pytest.mark.parametrize(
    ("reasoning", "answer", "expected"),
    [
        ("1000 + 234 = 1,234", "1234", "1000 + 234 = 1,235\n"),
        ("$2.50 * 3 = $7.50", "7.5", "$2.50 * 3 = $8.50\n"),
        ("3 - 8 = -5", "-5", "3 - 8 = -4\n"),
        ("e = -1274 / -98 = 13", "13", "e = -1274 / -98 = 14\n"),
        ("I like trains.", "4", None),
        ("", "4", None),
        ("100 / 3 = 33 1/3", "4", None),  # what is derived does not stand there as one number
    ],
)
def test_mistakes_in_other_numbers(reasoning: str, answer: str, expected: str | None) -> None:
    assert with_mistake(reasoning, answer, 0) == expected


def test_every_mistake_is_one() -> None:
    for seed in range(200):
        spoilt = with_mistake(SUM, "11", seed)
        assert spoilt is not None
        assert check_step(split_steps(spoilt)[-1]) == "refuted"


@pytest.mark.parametrize(
    ("seed", "expected"),
    [(0, "10 - 7 = 3\n3 + 8 = 11"), (1, "6 + 4 = 10\n3 + 8 = 11"), (2, "6 + 4 = 10\n10 - 7 = 3")],
)
def test_a_step_less(seed: int, expected: str) -> None:
    assert without_step(SUM, "11", seed) == expected


def test_a_step_that_does_not_matter_is_not_dropped() -> None:
    assert {without_step("5 + 5 = 10\n6 + 1 = 7", "7", seed) for seed in range(9)} == {"5 + 5 = 10"}
    assert without_step("6 + 1 = 7", "7", 0) is None
    assert without_step("", "7", 0) is None


def test_other_words() -> None:
    assert paraphrased(SUM) == ("6 plus 4 is equal to 10\n10 minus 7 is equal to 3\n3 plus 8 is equal to 11")
    assert paraphrased("So x - 2 = (3 + 1) * -2 / 4.\nA well - known fact.\nTherefore it is 4.") == (
        "Hence x minus 2 is equal to (3 plus 1) times -2 divided by 4.\nNote: A well - known fact.\n"
        "It follows that it is 4."
    )
    assert paraphrased("Some step.") == "Note: Some step."
