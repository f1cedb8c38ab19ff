"""Problems in other words: literal texts of every family."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from edge_distill.evaluate.siblings import SIBLINGS, siblings_of
from edge_distill.evaluate.styles import KINDS, STYLES, kind_of
from edge_distill.traces.solvers import solve
from edge_distill_bench.tasks import load_problems
from edge_distill_runtime.reasoning.answers import normalize_answer

GSM = (
    "Benjamin finds 12 eggs. William finds 2 times as many as Benjamin. He paints 1500 of them at $3.50 each, which "
    "is 40% of all. How many eggs are in the yard? Give the result as your final answer. Do not include units."
)
CHAIN_SUM = "State the final answer to the following arithmetic problem: 6 + 1234 - 7 ="
LEGS = (
    "Your task is to count how many legs there are in total when given a list of animals.\n\n"
    "Now, how many legs are there in total if you have 9 crickets, 21 tigers?\n"
)
ARITHMETIC = "Calculate -( -4934 + 20 / 5 ) + -2086."
EQUATION = "Find the value of q in the equation: 9016 - 3360*q = -108584"
GCD = "Find the Greatest Common Divisor (GCD) of these numbers: 1628, 5. Give only the GCD as your final answer."

FAMILIES = {
    "gsm_symbolic": GSM,
    "chain_sum": CHAIN_SUM,
    "leg_counting": LEGS,
    "basic_arithmetic": ARITHMETIC,
    "simple_equations": EQUATION,
    "gcd": GCD,
}


@pytest.mark.parametrize(
    ("style", "task", "expected"),
    [
        ("terse", "gsm_symbolic", GSM.partition(" Give the result")[0]),
        ("terse", "chain_sum", "6 + 1234 - 7 = ?"),
        ("terse", "leg_counting", "Legs of 9 crickets, 21 tigers?"),
        ("terse", "basic_arithmetic", "-( -4934 + 20 / 5 ) + -2086 = ?"),
        ("terse", "simple_equations", "9016 - 3360*q = -108584, q = ?"),
        ("terse", "gcd", "GCD of 1628, 5?"),
        (
            "reordered",
            "gsm_symbolic",
            "William finds 2 times as many as Benjamin. Benjamin finds 12 eggs. He paints"
            + GSM.partition("He paints")[2],
        ),
        (
            "reordered",
            "chain_sum",
            "State the final answer to the following arithmetic problem: 1234 - 7 + 6 =",
        ),
        ("reordered", "leg_counting", LEGS.replace("9 crickets, 21 tigers", "21 tigers, 9 crickets")),
        ("reordered", "basic_arithmetic", None),  # it begins with a sign
        (
            "reordered",
            "simple_equations",
            "Find the value of q in the equation: -108584 = 9016 - 3360*q",
        ),
        ("reordered", "gcd", GCD.replace("1628, 5", "5, 1628")),
        (
            "numbers",
            "gsm_symbolic",
            GSM.replace("12", "twelve").replace("2 times", "two times").replace("1500", "1,500"),
        ),
        ("numbers", "chain_sum", CHAIN_SUM.replace("6 + 1234 - 7", "six + 1,234 - seven")),
        ("numbers", "leg_counting", LEGS.replace("9", "nine")),
        ("numbers", "basic_arithmetic", ARITHMETIC.replace("20 / 5", "twenty / five")),
        ("numbers", "simple_equations", EQUATION.replace("9016", "9,016")),
        ("numbers", "gcd", GCD.replace("1628, 5", "1628, five")),
        ("lowercase", "simple_equations", "find the value of q in the equation: 9016 - 3360*q = -108584"),
        ("instruction", "gcd", f"{GCD.partition(' Give')[0]}\nWrite down how you get to the result."),
        ("instruction", "chain_sum", f"{CHAIN_SUM}\nWrite down how you get to the result."),
    ],
)
def test_literal_texts(style: str, task: str, expected: str | None) -> None:
    assert STYLES[style](FAMILIES[task], kind_of(task, generated=True)) == expected


def test_without_step_by_step() -> None:
    text = "Anna has 3 pens. How many is that? Let's think step by step."
    assert STYLES["instruction"](text, "prose") == (
        "Anna has 3 pens. How many is that?\nWrite down how you get to the result."
    )


def test_the_question_comes_first_where_no_facts_commute() -> None:
    text = "Anna has 3 pens. She buys 4 more. How many are there?"
    assert STYLES["reordered"](text, "prose") == "How many are there? Anna has 3 pens. She buys 4 more."
    assert STYLES["reordered"]("How many are 3 pens and 4 pens?", "prose") is None


@pytest.mark.parametrize("text", ["In 1995 there were 30% of 2.50 at 11:30, 1/2 and $20.", "Sum 007."])
def test_numbers_that_stay(text: str) -> None:
    assert STYLES["numbers"](text, "prose") is None


def test_a_distractor_stands_before_the_question() -> None:
    changed = STYLES["distractor"](GSM, "prose")
    assert changed is not None
    before, _, after = changed.partition("The park behind the station has ")
    assert before == GSM.partition("How many")[0]
    assert re.match(r"\d+ benches and \d+ lamps\. How many eggs are in the yard\?", after)
    assert STYLES["distractor"](GSM, "prose") == changed
    assert "library" in str(STYLES["distractor"](GSM.replace("eggs", "benches"), "prose"))


@pytest.mark.parametrize("task", FAMILIES)
def test_frames_keep_the_text(task: str) -> None:
    for name in ("verbose", "polite"):
        changed = STYLES[name](FAMILIES[task], KINDS[task])
        assert changed is not None
        assert FAMILIES[task].strip() in changed
        assert len(changed) > len(FAMILIES[task])


def test_unknown_families_are_only_framed() -> None:
    kind = kind_of("letter_counting", generated=True)
    text = 'How many times does the letter "E" appear in the text: "3 EELs"?'
    applied = {name for name, style in STYLES.items() if style(text, kind) is not None}
    assert applied == {"verbose", "instruction", "polite"}
    assert all(text in str(STYLES[name](text, kind)) for name in applied)
    assert kind_of("my-file", generated=False) == "prose"


def solved(task: str, text: str) -> str | None:
    try:
        return solve(task, text, {}).answer
    except Exception:
        return None


def swapped(text: str) -> str:
    left, right = text[text.index(": ") + 2 :].split(" = ")
    return f"Solve: {right} = {left}"


@pytest.mark.parametrize(
    ("task", "style", "undo"),
    [
        ("leg_counting", "reordered", None),
        ("gcd", "reordered", None),
        ("chain_sum", "reordered", None),
        ("chain_sum", "terse", lambda text: f"arithmetic problem: {text.removesuffix('?')}"),
        ("basic_arithmetic", "terse", lambda text: f"Calculate {text.removesuffix(' = ?')}."),
        ("simple_equations", "terse", lambda text: f"Solve: {text.partition(',')[0]}"),
        ("simple_equations", "reordered", swapped),
    ],
)  # fmt: skip
def test_a_program_still_finds_the_answer(task: str, style: str, undo: Callable[[str], str] | None) -> None:
    applied = 0
    for problem in load_problems(f"task:{task}", split="validation", count=60):
        text = STYLES[style](problem.problem, KINDS[task])
        if text is not None:
            applied += 1
            assert solved(task, undo(text) if undo else text) == problem.answer, text
    assert applied > 40


def test_siblings() -> None:
    assert siblings_of(["task:chain_sum?min_terms=3"]) == ("task:decimal_chain_sum", "task:basic_arithmetic")
    assert siblings_of(["task:chain_sum", "task:basic_arithmetic", "task:gcd"]) == (
        "task:decimal_chain_sum",
        "task:products",
        "task:lcm",
    )
    assert siblings_of(["problems.jsonl", "hf:gsm8k"]) == ()


def test_siblings_answer_with_a_number() -> None:
    for name in {sibling for group in SIBLINGS.values() for sibling in group}:
        for problem in load_problems(f"task:{name}", split="test", count=5):
            assert normalize_answer(problem.answer).kind == "number", (name, problem.answer)
