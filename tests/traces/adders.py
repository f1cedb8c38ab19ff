"""Teachers that are small programs: they add numbers step by step, and err on purpose."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence

from edge_distill.traces.teachers.markers import cut_at_stop
from edge_distill.traces.teachers.teacher import Request, Sampling, Written, check_requests
from edge_distill_bench.problem import Problem

STEP = re.compile(r"^(\d+) \+ (\d+) = (\d+)$", re.MULTILINE)
_NUMBERS = re.compile(r"^(?:Problem: )?Add ([\d, ]+)\.$", re.MULTILINE)


def addition(*numbers: int) -> Problem:
    text = f"Add {', '.join(map(str, numbers))}."
    return Problem(f"add-{'-'.join(map(str, numbers))}", "addition", text, str(sum(numbers)))


class Scripted:
    """A teacher whose answers a function makes; it keeps what it was asked."""

    name = "scripted"

    def __init__(self, write: Callable[[Request], Written], *, can_continue: bool = True) -> None:
        self._write = write
        self.can_continue = can_continue
        self.batches: list[list[Request]] = []

    @property
    def requests(self) -> list[Request]:
        return [request for batch in self.batches for request in batch]

    def write(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Written]]:
        check_requests(self, requests)
        self.batches.append(list(requests))
        order = list(range(len(requests)))
        random.Random(len(requests)).shuffle(order)  # as they get finished
        for index in order:
            written = self._write(requests[index])
            parts = cut_at_stop(written.reasoning, written.text, sampling.stop)
            if parts is not None:
                written = Written(*parts, "stop", written.tokens)
            yield index, written

    def close(self) -> None:
        """Nothing is held."""


class Adder(Scripted):
    """Adds the numbers of the problem one after the other; each step is wrong by one with some probability.

    `form`: "markers" sets the reasoning apart, "plain" writes all as text, "prompted" cannot continue and writes
    the one step that it is asked for.
    """

    def __init__(self, mistakes: float, form: str = "markers") -> None:
        super().__init__(self._solve, can_continue=form != "prompted")
        self._mistakes, self._form = mistakes, form

    def _solve(self, request: Request) -> Written:
        rng = random.Random(request.seed)
        prompt = request.messages[-1]["content"]
        if "Write only a number" in prompt:
            return Written("", str(self._rating(prompt)), "stop", 1)
        numbers = _numbers(prompt)
        shown = prompt.partition("Steps so far:\n")[2] if self._form == "prompted" else request.reasoning
        done = list(STEP.finditer(shown))
        total = int(done[-1][3]) if done else numbers[0]
        lines = []
        for number in numbers[len(done) + 1 :]:
            wrong = rng.random() < self._mistakes
            lines.append(f"{total} + {number} = {total + number + wrong}")
            total += number + wrong
        if self._form == "markers":
            return Written("\n".join(lines), f"\n\nThe sum is\n\\boxed{{{total}}}", "stop", len(lines))
        text = [*lines, f"The answer is {total}."]
        if self._form == "prompted":
            text = [lines[0]] if lines else [f"Final Answer: {total}"]
        return Written("", "\n".join(text), "stop", len(text))

    @staticmethod
    def _rating(prompt: str) -> int:
        return 9 if all(int(a) + int(b) == int(c) for a, b, c in STEP.findall(prompt)) else 2


def _numbers(prompt: str) -> list[int]:
    match = _NUMBERS.search(prompt)
    assert match is not None, prompt
    return [int(number) for number in match[1].split(", ")]
