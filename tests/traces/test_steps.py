"""Steps, their roles, and shorter forms of a reasoning: all by hand."""

from __future__ import annotations

import time
from importlib import import_module

import pytest

from edge_distill.traces.granularity import Granularity, compress
from edge_distill.traces.solvers import solve
from edge_distill.traces.steps import annotate, split_steps
from edge_distill.traces.trace import Role, Step

ROLLS = (
    "Let me think about this carefully.",
    "First we need to find how many rolls fit on the trays.",
    "There are 4 trays with 28 rolls each.",
    "4 trays * 28 rolls = 112 rolls",
    "By the way, 4 + 28 = 32.",
    "Half of the trays hold 2 * 28 = 56 rolls.",
    "Two halves are 56 + 56 = 112 rolls, as before.",
    "So 132 - 112 = 20 rolls are left over.",
    "The answer is 20.",
)


def kept(texts: tuple[str, ...], answer: str, level: Granularity) -> list[int]:
    steps = [Step(text) for text in texts]
    return [steps.index(step) for step in compress(steps, answer, level)]


def test_the_critical_chain() -> None:
    # 20 comes from step 7, its 112 last from step 6, whose 56 comes from step 5, whose 28 and 2 ... 28 from step 2
    assert kept(ROLLS, "20", "critical") == [2, 5, 6, 7]
    # without the second derivation the first one is the source
    shorter = ROLLS[:5] + ROLLS[7:]
    assert kept(shorter, "20", "critical") == [2, 3, 5]


def test_the_other_levels() -> None:
    assert kept(ROLLS, "20", "full") == list(range(9))
    assert kept(ROLLS, "20", "answer") == []
    # step 4 gives 32, which nothing uses; 3 gives 112, which is derived again before it is used
    assert kept(ROLLS, "20", "compact") == [2, 5, 6, 7]
    # what a dead end depends on stays in compact, and goes in critical
    dead_end = ("3 + 4 = 7", "5 * 6 = 30", "30 + 1 = 31", "31 + 1 = 32", "7 * 2 = 14")
    assert kept(dead_end, "14", "compact") == [0, 1, 2, 4]
    assert kept(dead_end, "14", "critical") == [0, 4]


def test_a_number_that_is_both_used_and_given() -> None:
    assert kept(("2 + 3 = 5", "5 + 0 = 5", "5 * 2 = 10"), "10", "critical") == [0, 1, 2]
    assert kept(
        ("10 - 7 = 3", "3 * 4 = 12, and 12 + 1 = 13", "12 = 12", "13 * 2 = 26"), "26", "critical"
    ) == [0, 1, 3]


def test_negative_numbers_are_others_than_positive_ones() -> None:
    texts = ("3 - 7 = -4", "2 + 2 = 4", "-4 - -9 = 5", "5 * 2 = 10")
    assert kept(texts, "10", "critical") == [0, 2, 3]
    assert kept(("2 - 10 = -8", "We owe -8, and 3 + -8 = -5."), "-5", "critical") == [0, 1]


def test_a_number_that_two_steps_produced() -> None:
    assert kept(("2 * 6 = 12", "3 * 4 = 12", "12 + 12 = 24"), "24", "critical") == [0, 1, 2]
    assert kept(("2 * 6 = 12", "3 * 4 = 12", "12 + 1 = 13", "13 + 12 = 25"), "25", "critical") == [0, 1, 2, 3]
    assert kept(("2 * 6 = 12", "12 + 12 = 24"), "24", "critical") == [0, 1]


@pytest.mark.parametrize("task", ["chain_sum", "basic_arithmetic", "leg_counting", "simple_equations", "gcd"])
def test_the_solvers_write_nothing_superfluous(task: str) -> None:
    data = import_module("reasoning_gym").create_dataset(task, size=100, seed=5)
    for entry in data:
        if not entry["question"].endswith("0 = 0"):
            solution = solve(task, entry["question"], {})
            steps = annotate(solution.reasoning)
            assert compress(steps, solution.answer, "critical") == steps, solution


def test_letters_carry_the_flow() -> None:
    texts = (
        "Let x be the number of rolls.",
        "2x + 70 = 272",
        "We subtract 70 and get 2x = 202.",
        "100 + 2 = 102 is of no use.",
        "So x = 101.",
    )
    assert kept(texts, "101", "critical") == [1, 2, 4]


def test_answers_of_other_forms() -> None:
    assert kept(("3 * 0.5 = 1.5", "1.5 + 1 = 2.5"), "2 1/2", "critical") == [0, 1]
    assert kept(("30 * 28 = 840", "840 + 400 = 1,240"), "$1,240.00", "critical") == [0, 1]
    assert kept(("Ann is taller than Bob.", "Bob is taller than Cy."), "Ann", "critical") == [0]


def test_an_answer_that_no_step_gives_keeps_all() -> None:
    assert kept(ROLLS, "999", "critical") == list(range(9))
    assert kept((), "1", "critical") == []
    assert kept(("3 + 4 = 7",), "", "critical") == [0]


def test_long_reasoning_takes_no_time() -> None:
    steps = [Step(f"{n} + {n + 1} = {2 * n + 1}") for n in range(3000)]
    started = time.perf_counter()
    compress(steps, "7", "critical")
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    ("text", "role"),
    [
        ("First we need to find the number of rolls.", "decomposition"),
        ("1. Initial amounts:", "decomposition"),
        ("Let x be the number of rolls.", "decomposition"),
        ("W = 5 episodes", "decomposition"),
        ("There are 3 trays with 28 rolls each.", "decomposition"),
        ("To find the rest, subtract.", "decomposition"),
        ("3 * 28 = 84", "structure"),
        ("First find the total: 42 spools + 65 spools = 107 spools", "structure"),
        ("So the total is 84.", "structure"),
        ("2x + 70 = 272", "structure"),
        ("Therefore, she has 20 left.", "structure"),
        ("Wait, that is wrong.", "error"),
        ("3 * 28 = 85", "error"),
        ("Let me check: 3 * 28 = 84.", "error"),
        ("That's not right, the trays hold 28.", "error"),
        ("Hmm, this is a nice problem.", "language"),
        ("Therefore it is so.", "language"),
        ("", "language"),
    ],
)
def test_roles(text: str, role: Role) -> None:
    (step,) = annotate(text) or (Step("", "language"),)
    assert step.role == role


def test_steps_are_lines_and_sentences() -> None:
    reasoning = "Mr. Lee has 3.5 kg. He buys 2 kg more.\n\n  3.5 + 2 = 5.5\n1. Then he eats. Done!\n"
    assert split_steps(reasoning) == [
        "Mr. Lee has 3.5 kg.",
        "He buys 2 kg more.",
        "3.5 + 2 = 5.5",
        "1. Then he eats.",
        "Done!",
    ]
    assert split_steps("") == []
    assert len(split_steps("a\n" * 50_000)) == 10_000


def test_annotate() -> None:
    assert annotate("There are 3 trays.\n3 * 28 = 84\n84 + 1 = 86") == (
        Step("There are 3 trays.", "decomposition", "unknown"),
        Step("3 * 28 = 84", "structure", "verified"),
        Step("84 + 1 = 86", "error", "refuted"),
    )
