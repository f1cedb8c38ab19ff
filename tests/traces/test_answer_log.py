"""The log of answers: asked once, found again, torn lines, what changes the key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from edge_distill.traces.answer_log import AnswerLog, LoggedTeacher, request_key
from edge_distill.traces.teachers.teacher import Request, Sampling, Written
from edge_distill_runtime import InputError, ResourceError
from tests.traces.small_teachers import ErringTeacher, sums


def requests(count: int) -> list[Request]:
    return [
        Request(({"role": "user", "content": problem.problem},), 3, problem=problem)
        for problem in sums(count)
    ]


def test_what_was_answered_is_found_again_and_errors_are_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    asked = requests(30)
    with AnswerLog(path) as log:
        first = dict(LoggedTeacher(ErringTeacher(), log).write(asked, Sampling()))
        again = dict(LoggedTeacher(ErringTeacher(), log).write(asked, Sampling()))
    failed = [index for index, written in first.items() if written.finish_reason == "error"]
    assert sorted(first) == list(range(30))
    assert again == first
    assert 0 < len(failed) < 30
    assert any(written.finish_reason == "length" for written in first.values())
    teacher = ErringTeacher()
    with AnswerLog(path) as log:
        assert len(log) == 30 - len(failed)
        logged = LoggedTeacher(teacher, log)
        assert dict(logged.write(asked, Sampling())) == first
    names = {request.problem.id for request in teacher.requests if request.problem}
    assert names == {f"sum-{index}" for index in failed}
    assert (logged.found, logged.asked) == (30 - len(failed), len(failed))


def test_an_answer_is_on_the_disk_before_it_is_handed_on(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerLog(path) as log:
        for number, _ in enumerate(
            LoggedTeacher(ErringTeacher(failing=0), log).write(requests(5), Sampling())
        ):
            assert path.read_bytes().count(b"\n") == number + 1


def test_all_that_steers_an_answer_is_in_the_key() -> None:
    base, sampling = requests(1)[0], Sampling()
    keys = {
        request_key("t", base, sampling),
        request_key("u", base, sampling),
        request_key("t", replace(base, seed=4), sampling),
        request_key("t", replace(base, reasoning="First"), sampling),
        request_key("t", replace(base, messages=(*base.messages, *base.messages)), sampling),
        request_key("t", replace(base, problem=None), sampling),
        request_key("t", base, replace(sampling, temperature=0.1)),
        request_key("t", base, replace(sampling, max_tokens=9)),
        request_key("t", base, replace(sampling, stop=("\n",))),
    }
    assert len(keys) == 9
    assert request_key("t", base, sampling) in keys


def test_texts_of_all_kinds_come_back(tmp_path: Path) -> None:
    written = Written("Größe ≈ „1“\n\n\x00", "\ud800 \\boxed{1}\u2028", "stop", 7)
    with AnswerLog(tmp_path / "answers.jsonl") as log:
        assert log.add("a", Written("", "", "stop", 0))
        assert log.add("b", written)
        assert not log.add("b", Written("other", "", "stop", 0))
        assert log.find("b") == written
        assert log.find("c") is None
    with AnswerLog(tmp_path / "answers.jsonl") as log:
        assert log.find("b") == written


def test_a_torn_last_line_is_cut_and_a_foreign_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerLog(path) as log:
        log.add("a", Written("", "1", "stop", 1))
        log.add("b", Written("", "2", "stop", 1))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with AnswerLog(path) as log:
        assert log.find("b") is None
        assert log.find("a") == Written("", "1", "stop", 1)
        log.add("b", Written("", "2", "stop", 1))
        with pytest.raises(ResourceError, match="another process"):
            AnswerLog(path)
    assert path.read_bytes() == whole
    for line in (
        b'{"key": 1}',
        b"[]",
        b'{"key": "a", "reasoning": 1, "text": "", "finish_reason": "", "tokens": 0}',
    ):
        path.write_bytes(line + b"\n" + whole)
        with pytest.raises(InputError, match="line 1"):
            AnswerLog(path)
        assert path.read_bytes() == line + b"\n" + whole


def test_leaving_early_ends_the_teachers_work(tmp_path: Path) -> None:
    ended = []

    class Slow(ErringTeacher):
        def write(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Written]]:
            try:
                yield from super().write(requests, sampling)
            finally:
                ended.append(True)

    with AnswerLog(tmp_path / "answers.jsonl") as log:
        answers = LoggedTeacher(Slow(), log).write(requests(5), Sampling())
        next(answers)
        answers.close()  # type: ignore[attr-defined]
    assert ended == [True]
