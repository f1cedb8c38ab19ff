"""Conversations advanced together; a run that was interrupted goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from edge_distill.traces.answer_log import AnswerLog, LoggedTeacher
from edge_distill.traces.chain_of_verification import verified
from edge_distill.traces.elicitation import Candidate, Elicit
from edge_distill.traces.rounds import Ask, Talk, advance, derived_seed, plain_text
from edge_distill.traces.teachers.teacher import Request, Sampling, Written
from edge_distill.traces.tree import tree_of_thoughts
from edge_distill_runtime.errors import BackendError
from tests.traces.adders import Adder, Scripted, addition

SAMPLING = Sampling(max_tokens=64)


def ask(text: str, temperature: float = 0.7) -> Ask:
    return Ask(Request(({"role": "user", "content": text},), 0), Sampling(temperature=temperature))


def echo() -> Scripted:
    return Scripted(lambda request: Written("", request.messages[-1]["content"], "stop", 1))


def counting(turns: int) -> Talk[list[str]]:
    """Asks one thing, then two, then three, ..."""
    heard: list[str] = []
    for turn in range(turns):
        answers = yield [ask(f"{turn}.{i}", temperature=i) for i in range(turn + 1)]
        heard += [answer.text for answer in answers]
    return heard


def test_answers_come_in_the_order_of_the_asks() -> None:
    talks = [counting(3), counting(0), counting(1)]
    assert dict(advance(talks, echo())) == {
        0: ["0.0", "1.0", "1.1", "2.0", "2.1", "2.2"],
        1: [],
        2: ["0.0"],
    }


def test_a_batch_for_each_way_of_sampling() -> None:
    teacher = echo()
    list(advance([counting(2), counting(2)], teacher))
    assert [[r.messages[0]["content"] for r in batch] for batch in teacher.batches] == [
        ["0.0", "0.0"],
        ["1.0", "1.0"],
        ["1.1", "1.1"],
    ]


def test_so_many_at_a_time() -> None:
    teacher = echo()
    found = list(advance((counting(1) for _ in range(10)), teacher, together=4))
    assert [index for index, _ in found] == list(range(10))
    assert [len(batch) for batch in teacher.batches] == [4, 4, 2]
    assert list(advance([], teacher)) == []


def test_talks_that_ask_nothing() -> None:
    def silent() -> Talk[int]:
        yield []
        return 5

    assert dict(advance([silent()], echo())) == {0: 5}


def test_a_teacher_that_answers_not_all() -> None:
    class Forgetful(Scripted):
        def write(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Written]]:
            yield from list(super().write(requests, sampling))[1:]

    with pytest.raises(BackendError, match="left 1 of 1 requests without an answer"):
        list(advance([counting(1)], Forgetful(lambda _: Written("", "x", "stop", 1))))


def test_what_reaches_a_conversation_is_plain() -> None:
    assert plain_text("a\r\nb\x00c\x1b[0m\u2028d\x85e\ud800\tf") == "a\nbc[0m\nd\ne?\tf"
    assert plain_text("\x07" * 200_000) == ""
    heard = dict(advance([counting(1)], Scripted(lambda _: Written("", "y" * 60_000, "stop", 1))))
    assert heard == {0: ["y" * 50_000]}


def test_seeds_depend_on_everything() -> None:
    places: list[tuple[Any, ...]] = [
        (0, "a"),
        (1, "a"),
        (0, "b"),
        (0, "a", 0),
        (0, "a", 1),
        (0, ["a"]),
        (0, "\ud800"),
    ]
    seeds = [derived_seed(*place) for place in places]
    assert len(set(seeds)) == len(places)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert derived_seed(0, "a") == 622115948  # traces of earlier runs are found by it


class Interrupted(Exception):
    pass


class Breaking(Adder):
    """Stops for ever after so many answers."""

    def __init__(self, answers: int) -> None:
        super().__init__(0.5)
        self._left = answers

    def _solve(self, request: Request) -> Written:
        if not self._left:
            raise Interrupted
        self._left -= 1
        return super()._solve(request)


WAYS: dict[str, Elicit] = {
    "breadth": tree_of_thoughts(sampling=SAMPLING, branching=5),
    "best": tree_of_thoughts(sampling=SAMPLING, branching=5, search="best", scorer="teacher"),
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_an_interrupted_run_asks_nothing_twice(share: float, name: str, tmp_path: Path) -> None:
    problems = [addition(n, n + 1, n + 2, 2 * n) for n in range(6)]

    def run(teacher: Adder) -> dict[int, list[Candidate]]:
        with AnswerLog(tmp_path / "answers.jsonl") as log:
            return dict(WAYS[name](problems, LoggedTeacher(teacher, log)))

    whole = Adder(0.5)
    expected = dict(WAYS[name](problems, whole))
    answers = int(share * len(whole.requests))
    with pytest.raises(Interrupted):
        run(Breaking(answers))
    resumed = Adder(0.5)
    assert run(resumed) == expected
    assert len(resumed.requests) == len(whole.requests) - answers
    assert run(Breaking(0)) == expected


def test_verification_is_resumed_too(tmp_path: Path) -> None:
    elicit = verified(WAYS["breadth"], sampling=SAMPLING)

    class Asking(Breaking):
        def _solve(self, request: Request) -> Written:
            written = super()._solve(request)
            is_plan = "Write one question" in request.messages[-1]["content"]
            return Written("", "Is 1 + 1 = 2?", "stop", 1) if is_plan else written

    problems = [addition(1, 2, 3), addition(4, 5)]
    whole = Asking(10**6)
    expected = dict(elicit(problems, whole))
    with AnswerLog(tmp_path / "answers.jsonl") as log:
        with pytest.raises(Interrupted):
            dict(elicit(problems, LoggedTeacher(Asking(len(whole.requests) - 2), log)))
        assert dict(elicit(problems, LoggedTeacher(Asking(2), log))) == expected
        assert dict(elicit(problems, LoggedTeacher(Asking(0), log))) == expected
