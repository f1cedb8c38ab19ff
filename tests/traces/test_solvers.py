"""Solvers: reasoning-gym's own scores say that they are right, and every step holds."""

from __future__ import annotations

from fractions import Fraction
from importlib import import_module
from typing import Any

import pytest

from edge_distill.traces.arithmetic_steps import evaluate, solve_equation
from edge_distill.traces.checker import check_step
from edge_distill.traces.solvers import SOLVERS, solve
from edge_distill_runtime import InputError

reasoning_gym = import_module("reasoning_gym")  # has no types

PROBLEMS = 200

CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("chain_sum", {}),
    ("chain_sum", {"allow_negation": True, "min_terms": 1, "max_terms": 12}),
    ("basic_arithmetic", {}),
    ("basic_arithmetic", {"format_style": "natural", "whitespace": "random", "max_terms": 10}),
    # without brackets its answers ignore precedence (985 + 384 * 129 = 176601): sums only
    ("basic_arithmetic", {"allow_parentheses": False, "operators": ["+", "-"]}),
    ("leg_counting", {}),
    ("leg_counting", {"max_animals": 37, "max_instances": 1024}),
    ("simple_equations", {}),
    ("simple_equations", {"min_terms": 3, "max_terms": 6, "operators_weights": [0.2, 0.2, 0.6]}),
    ("gcd", {}),
    ("gcd", {"min_numbers": 3, "max_numbers": 5, "max_value": 100_000}),
]


@pytest.mark.parametrize(("task", "config"), CONFIGS)
def test_answers_are_right_and_steps_hold(task: str, config: dict[str, Any]) -> None:
    data = reasoning_gym.create_dataset(task, size=PROBLEMS, seed=77, **config)
    solved = 0
    for entry in data:
        if entry["question"].endswith("0 = 0"):  # an equation of which every number is a solution
            continue
        solution = solve(task, entry["question"], {})
        assert data.score_answer(solution.answer, entry) == 1.0, (entry["question"], solution)
        lines = solution.reasoning.split("\n")
        for line in lines:
            trivial = line.endswith(f"= {solution.answer}") and len(lines) == 1  # x = 4, 57 = 57
            assert check_step(line) == "verified" or trivial, line
        assert solution.answer in lines[-1]
        solved += 1
    assert solved >= PROBLEMS - 5


def test_the_chains_of_gsm_symbolic() -> None:
    data = reasoning_gym.create_dataset("gsm_symbolic", size=PROBLEMS, seed=77)
    verdicts = []
    for entry in data:
        solution = solve("gsm_symbolic", entry["question"], entry["metadata"])
        assert data.score_answer(solution.answer, entry) == 1.0
        assert "####" not in solution.reasoning
        verdicts += [check_step(line) for line in solution.reasoning.split("\n")]
    # its templates round some products down (0.68 * 40 = 27): the checker's business, not the solver's
    assert verdicts.count("refuted") / len(verdicts) < 0.01
    assert verdicts.count("verified") / len(verdicts) > 0.8


@pytest.mark.parametrize(
    ("expression", "steps", "value"),
    [
        ("4 - 1 - 7", ["4 - 1 = 3", "3 - 7 = -4"], -4),
        ("2 + 3 * 4", ["3 * 4 = 12", "2 + 12 = 14"], 14),
        ("( 2 + 3 ) * 4", ["2 + 3 = 5", "5 * 4 = 20"], 20),
        ("-( 3 + 4 ) / 2", ["3 + 4 = 7", "-(7) = -7", "-7 // 2 = -4 (rounded down)"], -4),
        ("8 / 2 * 4", ["8 / 2 = 4", "4 * 4 = 16"], 16),
        ("57", ["57 = 57"], 57),
    ],
)
def test_expressions_by_hand(expression: str, steps: list[str], value: int) -> None:
    assert evaluate(expression) == (steps, value)


@pytest.mark.parametrize(
    ("equation", "steps"),
    [
        ("56 - 98*e = -1218", ["-98*e = -1218 - 56 = -1274", "e = -1274 / -98 = 13"]),
        ("20*h + 65 = 1485", ["20*h = 1485 - 65 = 1420", "h = 1420 / 20 = 71"]),
        ("34*z - 1190 = 2040", ["34*z = 2040 + 1190 = 3230", "z = 3230 / 34 = 95"]),
        ("4465*b = 178600", ["b = 178600 / 4465 = 40"]),
        ("x + 3 = 5", ["x = 5 - 3 = 2"]),
        ("3 - x = 5", ["-x = 5 - 3 = 2", "x = 2 / -1 = -2"]),
        ("2*(x + 1) - x = 5", ["x = 5 - 2 = 3"]),
        ("3*x = 5", ["x = 5 / 3 = 5/3"]),
        ("x = 4", ["x = 4"]),
    ],
)
def test_equations_by_hand(equation: str, steps: list[str]) -> None:
    found, answer = solve_equation(equation)
    assert found == steps
    assert Fraction(answer) == Fraction(steps[-1].split(" = ")[-1])


@pytest.mark.parametrize(
    ("task", "question"),
    [
        ("chain_sum", "State the final answer"),
        ("basic_arithmetic", "Calculate 3 / 0."),
        ("basic_arithmetic", "Calculate " + "(" * 500 + "1" + ")" * 500 + "."),
        ("basic_arithmetic", "Calculate " + "-" * 1500 + "1."),
        ("basic_arithmetic", "Calculate 1 + ."),
        ("basic_arithmetic", "Calculate 3 ** 999999999."),
        ("basic_arithmetic", "Calculate " + "9" * 1900 + " * 9."),
        ("simple_equations", "Solve for i: 0 = 0"),
        ("simple_equations", "Solve for x: x*x = 4"),
        ("simple_equations", "Solve for x: x = x"),
        ("leg_counting", "legs if you have 3 dragons?"),
        ("gcd", "of these numbers: x"),
        ("gsm_symbolic", "A question"),
        ("sudoku", "A question"),
        ("chain_sum", "arithmetic problem: " + "1 + " * 20_000 + "1 ="),
    ],
)
def test_what_is_not_understood_is_a_typed_error(task: str, question: str) -> None:
    with pytest.raises(InputError):
        solve(task, question, {})


def test_two_names_in_an_equation_are_refused() -> None:
    with pytest.raises(InputError):
        solve_equation("x + y = 4")


def test_the_families_of_the_issue_are_there() -> None:
    assert set(SOLVERS) == {
        "gsm_symbolic", "chain_sum", "basic_arithmetic", "leg_counting", "simple_equations", "gcd",
    }  # fmt: skip
