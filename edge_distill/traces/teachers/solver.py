"""`solver:`: a program that knows the task, and is never wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edge_distill.traces.solvers import solve
from edge_distill.traces.teachers.teacher import Request, Sampling, Written, check_requests
from edge_distill_runtime.errors import InputError

__all__ = ["SolverTeacher"]


class SolverTeacher:
    """Writes the solutions of `edge_distill.traces.solvers`: the same for every seed and sampling."""

    name = "solver"
    can_continue = False

    def write(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Written]]:
        """See `Teacher.write`; a problem that it does not know is an error of that request."""
        check_requests(self, requests)
        for index, request in enumerate(requests):
            yield index, _solved(request)

    def close(self) -> None:
        """Nothing is held."""


def _solved(request: Request) -> Written:
    problem = request.problem
    if problem is None:
        return Written("", "", "error", 0, "a solver needs the problem itself, not its words")
    metadata = {} if problem.solution is None else {"answer_cot": problem.solution}
    try:
        solution = solve(problem.task, problem.problem, metadata)
    except InputError as exc:
        return Written("", "", "error", 0, str(exc))
    return Written(solution.reasoning, rf"\boxed{{{solution.answer}}}", "stop", 0)
