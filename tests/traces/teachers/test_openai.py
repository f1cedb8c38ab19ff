"""The teacher behind a URL, against a server that does everything a server can do wrong."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from email.utils import formatdate
from itertools import pairwise
from typing import Any

import pytest

from edge_distill.traces.teachers import client
from edge_distill.traces.teachers.openai import OpenAITeacher
from edge_distill.traces.teachers.opening import open_teacher
from edge_distill.traces.teachers.teacher import Request, Sampling, Teacher, Written
from edge_distill_runtime.errors import BackendError, EdgeDistillError, InputError
from tests.traces.teachers.fake_server import (
    Behaviour,
    FakeServer,
    Handler,
    answer,
    completion,
    cut,
    cut_unannounced,
    drip,
    drip_headers,
    endless,
    fail,
    hang_up,
    no_http,
    reset,
    serving,
    slowly,
)

KEY = "sk-only-for-tests-0123456789"
GOOD = Written("", r"\boxed{4}", "stop", 7)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between tries of a hundredth of a second; what a server asks for is waited in full."""
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(client, "JITTER", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def request(text: str = "2 + 2?", seed: int = 1) -> Request:
    return Request(({"role": "user", "content": text},), seed)


def open_at(server: FakeServer, *, at_once: int = 8, deadline: float = 5.0) -> OpenAITeacher:
    return OpenAITeacher(f"{server.url}?model=tiny", at_once=at_once, deadline=deadline)


def ask(server: FakeServer, count: int = 1, **options: Any) -> list[Written]:
    """The answers to `count` questions, in their order."""
    with closing(open_at(server, **options)) as teacher:
        answers = dict(teacher.write([request(str(i), i) for i in range(count)], Sampling()))
    assert sorted(answers) == list(range(count))
    return [answers[i] for i in range(count)]


def ask_one(*script: Behaviour, **options: Any) -> tuple[Written, FakeServer]:
    with serving(*script) as server:
        (written,) = ask(server, **options)
    return written, server


# -- what is asked -------------------------------------------------------------------------------------------


def test_what_is_sent() -> None:
    turns = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "q\ud800 日本"},
        {"role": "assistant", "content": "call", "reasoning_content": "hidden"},
        {"role": "tool", "content": "42"},
    )
    with serving(answer()) as server, closing(open_at(server)) as teacher:
        sampling = Sampling(temperature=0.5, top_p=0.9, max_tokens=33, stop=("\n\n",))
        assert list(teacher.write([Request(turns, seed=12)], sampling)) == [(0, GOOD)]
        assert teacher.name == "openai:tiny"
    (asked,) = server.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.body == {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "q\ud800 日本"},
            {"role": "assistant", "content": "call"},
            {"role": "user", "content": "42"},
        ],
        "max_tokens": 33,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 12,
        "stop": ["\n\n"],
    }


def test_without_a_key_none_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    written, server = ask_one(answer())
    assert written == GOOD
    assert "authorization" not in server.asked[0].headers
    assert "stop" not in server.asked[0].body


def test_the_only_model_is_found() -> None:
    models = answer({"data": [{"id": "org/name:7b"}]})
    with serving(models, answer()) as server, closing(open_teacher(f"openai:{server.url}/v1/")) as teacher:
        assert teacher.name == "openai:org/name:7b"
        assert list(teacher.write([request()], Sampling())) == [(0, GOOD)]
    assert [asked.path for asked in server.asked] == ["/v1/models", "/v1/chat/completions"]
    assert server.asked[1].body["model"] == "org/name:7b"


@pytest.mark.parametrize(
    ("models", "error"),
    [
        ({"data": [{"id": "a"}, {"id": "b"}]}, InputError),
        ({"data": []}, InputError),
        ({"nothing": 1}, BackendError),
    ],
)
def test_which_model_is_not_guessed(models: Any, error: type[EdgeDistillError]) -> None:
    with serving(answer(models)) as server, pytest.raises(error):
        OpenAITeacher(server.url, deadline=5.0)


# -- answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (completion("7", reasoning_content="3 + 4 = 7\n"), Written("3 + 4 = 7", "7", "stop", 7)),
        (completion("7", reasoning="3 + 4 = 7"), Written("3 + 4 = 7", "7", "stop", 7)),
        (completion("<think>\n3 + 4 = 7\n</think>\n\n7"), Written("3 + 4 = 7", "7", "stop", 7)),
        (completion("3 + 4 = 7\n</think>\n\n7"), Written("3 + 4 = 7", "7", "stop", 7)),
        (completion("7", reasoning_content=""), Written("", "7", "stop", 7)),
        (completion(None, reasoning_content="hm"), Written("hm", "", "stop", 7)),
        (completion("\ud83d\ude00 ok \ud83d!"), Written("", "\U0001f600 ok \ufffd!", "stop", 7)),
        (completion("日本 ÷ ½"), Written("", "日本 ÷ ½", "stop", 7)),
        ({**completion("7"), "usage": None}, Written("", "7", "stop", 0)),
        ({**completion("7"), "usage": {"completion_tokens": "many"}}, Written("", "7", "stop", 0)),
        ({"choices": [*completion("first")["choices"], *completion("second")["choices"]]},
         Written("", "first", "stop", 0)),
    ],
)  # fmt: skip
def test_answers_are_read(body: Any, expected: Written) -> None:
    written, server = ask_one(answer(body))
    assert written == expected
    assert written.is_usable
    json.dumps(written.text, ensure_ascii=False).encode("utf-8")  # can be stored
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("tool_calls", "tool_calls"),
        (None, "unknown"),
    ],
)
def test_what_did_not_stop_by_itself_is_not_usable(reason: Any, expected: str) -> None:
    written, server = ask_one(answer(completion("<think>\n3 + 4", reason)))
    assert written == Written("3 + 4", "", expected, 7)
    assert not written.is_usable
    assert len(server.asked) == 1  # it would be cut off again


def test_equal_answers_stay_apart() -> None:
    with serving(answer()) as server:
        assert ask(server, 5) == [GOOD] * 5
    assert sorted(asked.body["seed"] for asked in server.asked) == [0, 1, 2, 3, 4]


# -- trouble that goes away ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [
        *(pytest.param(fail(status), id=str(status)) for status in (408, 425, 429, 500, 502, 503, 504, 529)),
        cut,
        cut_unannounced,
        reset,
        hang_up,
        no_http,
        pytest.param(answer(b"\x00\xff\xfe garbage \x80"), id="garbage"),
        pytest.param(answer(b""), id="empty"),
        pytest.param(answer(b"<html>Bad gateway</html>"), id="html"),
        pytest.param(answer(b"[" * 100_000), id="nested"),
        pytest.param(answer([1, 2]), id="list"),
        pytest.param(answer({"object": "error", "message": "overloaded"}), id="error-200"),
        pytest.param(answer({"choices": []}), id="no-choices"),
        pytest.param(answer({"choices": [7]}), id="choice-number"),
        pytest.param(answer({"choices": [{"text": "a completion, no chat"}]}), id="no-message"),
        pytest.param(answer(completion(None)), id="null-content"),
        pytest.param(answer(completion(["parts"])), id="list-content"),
        pytest.param(answer(json.dumps(completion()).encode("utf-16")), id="utf-16"),
        pytest.param(answer(content_length="20"), id="length-too-small"),
        pytest.param(answer(content_length="2000"), id="length-too-large"),
        pytest.param(answer(content_length="many"), id="length-no-number"),
        pytest.param(answer(content_encoding="gzip"), id="compressed"),
        endless,
    ],
)  # fmt: skip
def test_a_second_try_helps(trouble: Behaviour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_BYTES", 1 << 20)
    written, server = ask_one(trouble, answer())
    assert written == GOOD
    assert len(server.asked) == 2


def waited(*script: Behaviour) -> float:
    """Seconds between the first and the second try."""
    written, server = ask_one(*script, deadline=8.0)
    assert written == GOOD
    return server.asked[1].time - server.asked[0].time


def test_retry_after_in_seconds_is_waited() -> None:
    assert 1.0 <= waited(fail(429, retry_after="1"), answer()) < 3.0


def test_retry_after_as_a_date_is_waited_by_the_servers_clock() -> None:
    then = 1_000_000_000  # a clock that is decades behind
    late = fail(503, retry_after=formatdate(then + 1, usegmt=True), date=formatdate(then, usegmt=True))
    assert 1.0 <= waited(late, answer()) < 3.0


def test_retry_after_as_a_date_by_our_clock_where_the_server_tells_none() -> None:
    later = formatdate(time.time() + 1.9, usegmt=True)  # at least 0.9 s from now: it has whole seconds
    assert 0.85 <= waited(fail(429, retry_after=later), answer()) < 3.0
    soon = formatdate(time.time() - 3600, usegmt=True)
    assert waited(fail(429, retry_after=soon), answer()) < 0.9


@pytest.mark.parametrize("value", ["soon", "", "-5", "nan", "Mon, 99 Foo 2026 00:00:00 GMT"])
def test_a_retry_after_that_is_none_means_the_usual_wait(value: str) -> None:
    if value == "nan":  # for ever
        written, _ = ask_one(fail(429, retry_after=value), answer())
        assert not written.is_usable
    else:
        assert waited(fail(429, retry_after=value), answer()) < 0.9


def gaps_of_three_failures() -> list[float]:
    _, server = ask_one(*[fail(500)] * 3, answer())
    return [after.time - before.time for before, after in pairwise(server.asked)]


def test_waits_grow_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT", 0.05)
    monkeypatch.setattr(client, "JITTER", 0.1)
    gaps, others = gaps_of_three_failures(), gaps_of_three_failures()
    assert [gap >= least for gap, least in zip(gaps, [0.05, 0.1, 0.2], strict=True)] == [True] * 3
    assert max(abs(a - b) for a, b in zip(gaps, others, strict=True)) > 0.002


# -- trouble that stays --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (fail(503, "loading the model"), "HTTP 503 loading the model"),
        (drip, "no answer within 0.6 s"),
        (drip_headers, "no answer within 0.6 s"),
        (slowly(answer(), 3.0), "no answer within 0.6 s"),
        (hang_up, "the connection failed"),
    ],
)
def test_the_deadline_ends_it(behaviour: Behaviour, said: str) -> None:
    with serving(behaviour) as server:
        started = time.monotonic()
        (written,) = ask(server, deadline=0.6)
        assert time.monotonic() - started < 4.0
    assert written.finish_reason == "error"
    assert not written.is_usable
    assert said in written.error


def test_a_wait_longer_than_the_deadline_is_not_begun() -> None:
    with serving(fail(429, "slow down", retry_after="3600")) as server:
        started = time.monotonic()
        (written,) = ask(server, deadline=5.0)
        assert time.monotonic() - started < 3.0
    assert written.error == "HTTP 429 slow down (tries: 1)"
    assert len(server.asked) == 1


@pytest.mark.parametrize("nonsense", [b"garbage", b'{"choices": []}', b"\xff\xfe"])
def test_nonsense_is_not_asked_for_for_ever(nonsense: bytes) -> None:
    written, server = ask_one(answer(nonsense), deadline=20.0)
    assert len(server.asked) == client.MOST_MALFORMED
    assert written.finish_reason == "error"
    assert "malformed" in written.error


def test_a_huge_body_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_BYTES", 1 << 20)
    written, _ = ask_one(answer(completion("a" * (2 << 20))))
    assert "more than 1048576 bytes" in written.error
    written, _ = ask_one(answer(completion("a" * 1_000_000)))
    assert len(written.text) == 1_000_000


def too_long(handler: Handler) -> None:
    """Refuses the third question only."""
    is_third = handler.last_question().find("'content': '2'") >= 0
    (fail(400, "This model's maximum context length is 8 tokens.") if is_third else answer())(handler)


def test_one_bad_request_does_not_lose_the_others() -> None:
    with serving(too_long) as server:
        answers = ask(server, 6, at_once=1)
    assert [written.is_usable for written in answers] == [True, True, False, True, True, True]
    assert answers[2].error == "HTTP 400 This model's maximum context length is 8 tokens."
    assert len(server.asked) == 6  # it is not asked again


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405])
def test_what_holds_for_all_requests_ends_them_at_once(status: int) -> None:
    with serving(answer(), fail(status, f"Incorrect API key provided: {KEY}")) as server:
        with closing(open_at(server, at_once=1)) as teacher:
            results = teacher.write([request(seed=i) for i in range(9)], Sampling())
            assert next(results) == (0, GOOD)
            with pytest.raises(InputError) as caught:
                next(results)
        assert len(server.asked) == 2
    assert caught.value.code == "teacher-refused"
    assert f"HTTP {status} Incorrect API key provided: ***" in str(caught.value)
    assert KEY not in str(caught.value)


def test_what_is_under_way_is_given_back_before_the_end() -> None:
    script = [slowly(answer(), 0.3), slowly(answer(), 0.3), fail(401)]
    with serving(*script) as server, closing(open_at(server, at_once=3)) as teacher:
        results = teacher.write([request(seed=i) for i in range(9)], Sampling())
        assert [next(results)[1], next(results)[1]] == [GOOD, GOOD]
        with pytest.raises(InputError):
            next(results)
        assert len(server.asked) == 3


def test_a_redirect_is_not_followed_with_the_key() -> None:
    with serving(answer()) as elsewhere:
        for status in (301, 302, 307, 308):
            with serving(answer(b"", status, location=f"{elsewhere.url}/v1/chat/completions")) as server:
                with pytest.raises(InputError, match="redirects to") as caught:
                    ask(server)
                assert caught.value.code == "teacher-redirects"
        assert elsewhere.asked == []


def test_a_server_that_is_gone_ends_the_run_and_not_each_request_by_itself() -> None:
    with serving(answer()) as server:
        gone = server.url
    with closing(OpenAITeacher(f"{gone}?model=tiny", at_once=2, deadline=0.2)) as teacher:
        started = time.monotonic()
        results = teacher.write([request(seed=i) for i in range(1000)], Sampling())
        finished = []
        with pytest.raises(BackendError, match="no answer to") as caught:
            finished += [written for _, written in results]
        assert time.monotonic() - started < 20
    assert caught.value.code == "teacher-unreachable"


def test_a_server_that_never_answered_is_given_up_long_before_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "CONTACT_SECONDS", 0.2)
    with serving(answer()) as server:
        gone = server.url
    started = time.monotonic()
    with pytest.raises(BackendError, match="the connection failed"):
        OpenAITeacher(gone, deadline=60.0)
    with closing(OpenAITeacher(f"{gone}?model=tiny", deadline=60.0)) as teacher:
        results = teacher.write([request()], Sampling())
        assert next(results)[1].finish_reason == "error"
        with pytest.raises(BackendError, match="no answer to 1 requests in a row: the connection failed"):
            next(results)
    assert time.monotonic() - started < 10


def test_failures_are_counted_over_several_calls() -> None:
    with serving(answer(), fail(503)) as server, closing(open_at(server, at_once=1, deadline=0.3)) as teacher:
        assert list(teacher.write([request()], Sampling())) == [(0, GOOD)]
        for _ in range(3):
            ((_, written),) = teacher.write([request()], Sampling())
            assert written.finish_reason == "error"
        with pytest.raises(BackendError, match="no answer to 4 requests in a row"):
            list(teacher.write([request()], Sampling()))


def test_a_server_that_comes_back_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CONTACT_SECONDS", 0.05)
    written, server = ask_one(fail(503, "loading"), *[slowly(hang_up, 0.05)] * 4, answer())
    assert written == GOOD
    assert len(server.asked) == 6


def test_neither_the_key_nor_a_question_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    ask_one(fail(500, f"key {KEY}"), answer())
    with pytest.raises(InputError):
        ask_one(fail(401, f"key {KEY}"))
    everything = " ".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "retry_scheduled" in everything
    assert KEY not in everything


# -- many at once --------------------------------------------------------------------------------------------


def test_as_many_at_once_as_allowed_and_no_more() -> None:
    with serving(slowly(answer(), 0.1)) as server:
        assert ask(server, 12, at_once=4) == [GOOD] * 12
        assert server.most_active == 4


def test_the_limit_holds_for_all_callers_together() -> None:
    with serving(slowly(answer(), 0.1)) as server, closing(open_at(server, at_once=2)) as teacher:
        first = teacher.write([request(seed=i) for i in range(4)], Sampling())
        second = teacher.write([request(seed=i) for i in range(4)], Sampling())
        assert len([*first, *second]) == 8
        assert server.most_active == 2


def test_results_come_as_they_are_finished() -> None:
    with serving(slowly(answer(), 0.5), answer()) as server, closing(open_at(server, at_once=2)) as teacher:
        order = [index for index, _ in teacher.write([request(seed=i) for i in range(4)], Sampling())]
    assert sorted(order) == [0, 1, 2, 3]
    slow = next(i for i, asked in enumerate(server.asked[:2]) if i == 0)
    assert order[-1] == server.asked[slow].body["seed"]


def test_leaving_early_ends_the_work() -> None:
    with serving(slowly(answer(), 0.1)) as server, closing(open_at(server, at_once=2)) as teacher:
        results = teacher.write([request(seed=i) for i in range(500)], Sampling())
        next(results)
        results.close()  # type: ignore[attr-defined]
        time.sleep(0.2)
        seen = len(server.asked)
        time.sleep(0.2)
        assert len(server.asked) == seen < 10


def test_closed_is_closed() -> None:
    with serving(slowly(answer(), 0.5)) as server:
        teacher = open_at(server)
        results = teacher.write([request()], Sampling())
        waiting = iter(results)
        threading.Timer(0.1, teacher.close).start()
        with pytest.raises(BackendError, match="closed"):
            next(waiting)
        teacher.close()
        with pytest.raises(BackendError, match="closed"):
            teacher.write([request()], Sampling())


# -- addresses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000", "ftp://host/v1", "http://", "http://user:secret@host/v1?model=a", "http://host:99999999/v1",
        "http://host/v1?modell=a", "http://host/v1?model=a&model2=b", "http://host/v1#x",
        "http://[::1/v1", "/etc/passwd",
    ],
)  # fmt: skip
def test_bad_addresses(url: str) -> None:
    with pytest.raises(InputError) as caught:
        open_teacher(f"openai:{url}")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("suffix", "path"),
    [
        ("", "/v1/chat/completions"),
        ("/", "/v1/chat/completions"),
        ("/v1", "/v1/chat/completions"),
        ("/api/v2/", "/api/v2/chat/completions"),
        ("/v1/chat/completions", "/v1/chat/completions"),
    ],
)
def test_addresses(suffix: str, path: str) -> None:
    with serving(answer()) as server:
        with closing(open_teacher(f"openai:{server.url}{suffix}?model=a")) as teacher:
            assert next(iter(teacher.write([request()], Sampling()))) == (0, GOOD)
        assert server.asked[0].path == path


def test_a_key_with_a_line_in_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "abc\r\nx-evil: 1")
    with pytest.raises(InputError, match="OPENAI_API_KEY") as caught:
        open_teacher("openai:http://127.0.0.1:1?model=a")
    assert "evil" not in str(caught.value)


def test_a_reasoning_cannot_be_begun() -> None:
    with closing(open_teacher("openai:http://127.0.0.1:1?model=a")) as teacher:
        begun = Request(({"role": "user", "content": "q"},), 0, reasoning="First,")
        with pytest.raises(InputError, match="cannot continue"):
            teacher.write([begun], Sampling())


def takes(teacher: Teacher) -> Iterator[Teacher]:
    """mypy: it is a `Teacher`."""
    yield teacher


def test_it_is_a_teacher() -> None:
    with closing(OpenAITeacher("http://127.0.0.1:1?model=a")) as teacher:
        assert next(takes(teacher)) is teacher
