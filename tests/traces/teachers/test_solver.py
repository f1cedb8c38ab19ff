"""`solver:` on every family that it knows, graded by reasoning-gym and by the step checker."""

from __future__ import annotations

from contextlib import closing

import pytest

from edge_distill.traces.checker import check_step
from edge_distill.traces.solvers import SOLVERS
from edge_distill.traces.teachers.opening import open_teacher
from edge_distill.traces.teachers.teacher import Request, Sampling
from edge_distill_bench.grading import grade
from edge_distill_bench.problem import Problem
from edge_distill_bench.tasks import load_problems
from edge_distill_runtime.errors import InputError


def request(problem: Problem, seed: int = 0) -> Request:
    return Request(({"role": "user", "content": "as the elicitation words it"},), seed, problem=problem)


@pytest.mark.parametrize(
    "family", [*sorted(SOLVERS), "chain_sum?min_terms=5&max_terms=8&allow_negation=true"]
)
def test_it_solves_what_load_problems_gives(family: str) -> None:
    problems = load_problems(f"task:{family}", split="train", count=40)
    with closing(open_teacher("solver:")) as teacher:
        found = dict(teacher.write([request(problem) for problem in problems], Sampling()))
        assert teacher.name == "solver"
    assert len(found) == 40
    refuted = []
    for index, problem in enumerate(problems):
        written = found[index]
        assert written.is_usable, written.error
        assert grade(written.text, problem.answer).verdict == "right", (problem.problem, written)
        refuted += [line for line in written.reasoning.split("\n") if check_step(line) == "refuted"]
    # some templates of gsm_symbolic round products down
    assert len(refuted) <= (2 if family == "gsm_symbolic" else 0)


def test_what_it_does_not_know_is_an_error_of_that_request() -> None:
    (known,) = load_problems("task:gcd", split="test", count=1)
    unknown = Problem("a", "sudoku", "Solve this Sudoku", "1")
    unworded = Problem("b", "chain_sum", "How are you?", "1")
    chainless = Problem("c", "gsm_symbolic", "A question", "1")
    requests = [request(unknown), request(known), request(unworded), request(chainless)]
    requests.append(Request(requests[0].messages, 0))
    with closing(open_teacher("solver:")) as teacher:
        found = dict(teacher.write(requests, Sampling()))
    assert [found[i].finish_reason for i in range(5)] == ["error", "stop", "error", "error", "error"]
    assert "sudoku" in found[0].error
    assert all(found[i].error for i in (0, 2, 3, 4))


def test_it_does_not_continue() -> None:
    teacher = open_teacher("solver:")
    assert not teacher.can_continue
    with pytest.raises(InputError, match="cannot continue"):
        list(teacher.write([Request(({"role": "user", "content": "q"},), 0, reasoning="First")], Sampling()))
