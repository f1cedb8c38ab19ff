"""A teacher for tests, quick and real: what it writes depends on the request alone, as a sampling model's does."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from edge_distill.traces.solvers import solve
from edge_distill.traces.teachers.teacher import Request, Sampling, Written
from edge_distill_bench.problem import Problem

__all__ = ["ErringTeacher", "sums"]


def sums(count: int) -> list[Problem]:
    """Problems of three terms, the same in every run."""
    problems = []
    for n in range(count):
        text = f"State the final answer to the following arithmetic problem: {n} + {n + 2} + 5 ="
        problems.append(Problem(f"sum-{n}", "chain_sum", text, str(2 * n + 7), {"num_terms": 3}))
    return problems


class ErringTeacher:
    """Solves chain sums; by the hash of problem and seed it errs in one step, is cut off, or has no answer.

    Answers come in another order than the requests. Every request that is answered is written to `log`, and each
    takes `seconds`.
    """

    name = "erring"
    can_continue = False

    def __init__(
        self, log: Path | None = None, *, seconds: float = 0.0, cut_off: int = 1, failing: int = 1
    ) -> None:
        self._log, self._seconds = log, seconds
        self._cut_off, self._failing = cut_off, failing
        self.requests: list[Request] = []
        self.closed = False

    def write(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Written]]:
        for index in sorted(range(len(requests)), key=lambda at: _hash(requests[at])):
            time.sleep(self._seconds)
            written = self._written(requests[index])
            self.requests.append(requests[index])
            if self._log and written.finish_reason != "error":
                with self._log.open("a", encoding="utf-8") as file:
                    problem = requests[index].problem
                    assert problem is not None
                    file.write(json.dumps([problem.id, requests[index].seed]) + "\n")
            yield index, written

    def close(self) -> None:
        self.closed = True

    def _written(self, request: Request) -> Written:
        assert request.problem is not None
        solution = solve(request.problem.task, request.problem.problem, {})
        kind = _hash(request) % 8
        if kind < self._failing:
            return Written("", "", "error", 0, "the line was cut")
        if kind < self._failing + self._cut_off:
            return Written(solution.reasoning, "", "length", 9)
        if kind < 5:
            wrong = str(int(solution.answer) + kind)
            lines = solution.reasoning.splitlines()
            lines[-1] = lines[-1].rpartition("=")[0] + f"= {wrong}"
            return Written("\n".join(lines), rf"\boxed{{{wrong}}}", "stop", 20)
        extra = "Let me think.\n" * (kind - 5) * 3
        return Written(extra + solution.reasoning, rf"\boxed{{{solution.answer}}}", "stop", 20)


def _hash(request: Request) -> int:
    assert request.problem is not None
    text = f"{request.problem.id} {request.seed}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
