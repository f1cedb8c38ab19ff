"""Traces as JSON Lines: what is written is read again, other spellings too, and 50,000 damaged lines."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from edge_distill.traces.trace import (
    Step,
    Trace,
    content_id,
    make_trace,
    parse_line,
    read_traces,
    scan_traces,
    to_line,
)
from edge_distill_export.calibration import read_traces as read_for_calibration
from edge_distill_runtime import InputError


def a_trace() -> Trace:
    return make_trace(
        "What is 3 * 4 + 5? Größe ≈ „1“",
        "3 * 4 = 12\n12 + 5 = 17",
        "17",
        task="basic_arithmetic",
        steps=(Step("3 * 4 = 12", "structure", "verified"), Step("12 + 5 = 17", "structure", "verified")),
        gold="17",
        correct=True,
        vote_share=0.75,
        teacher="solver:",
        sampling={"temperature": 0.7, "exemplars": ["a", "b"]},
        seed=3,
        verified=("answer:exact", "steps:checker"),
    )


def test_what_is_written_is_read_again() -> None:
    line = to_line(a_trace())
    assert "\n" not in line
    assert parse_line(line) == a_trace()
    item = json.loads(line)
    assert item["messages"][-1] == {
        "role": "assistant",
        "content": r"\boxed{17}",
        "reasoning_content": "3 * 4 = 12\n12 + 5 = 17",
    }
    assert item["steps"][0] == {"text": "3 * 4 = 12", "role": "structure", "verdict": "verified"}


def test_the_id_is_a_hash_of_what_was_asked() -> None:
    # printf '["p", "t", {"a": 1}, 7]' | sha256sum
    assert content_id("p", "t", {"a": 1}, 7) == "6c265538e42033bc79a4e8f7caa14290"
    ids = {
        content_id(*asked)
        for asked in [
            ("p", "t", {"a": 1, "b": 2}, 7),
            ("p", "t", {"b": 2, "a": 1}, 7),
            ("q", "t", {"a": 1, "b": 2}, 7),
            ("p", "u", {"a": 1, "b": 2}, 7),
            ("p", "t", {"a": 1}, 7),
            ("p", "t", {"a": 1, "b": 2}, 8),
            ("p", "t", {"a": 1, "b": 2}, None),
        ]
    }
    assert len(ids) == 6  # the order of keys is no difference
    assert a_trace().id == parse_line(to_line(a_trace())).id


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_a_conversation_of_another_tool(key: str) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "6 * 7?"},
        {"role": "assistant", "content": r"It is \boxed{42}.", key: "6 * 7 = 42"},
    ]
    trace = parse_line(json.dumps({"messages": turns, "source": "elsewhere"}))
    assert (trace.problem, trace.reasoning, trace.answer) == ("6 * 7?", "6 * 7 = 42", "42")
    assert trace.messages[-1]["reasoning_content"] == "6 * 7 = 42"
    assert trace.steps == ()
    assert trace.correct is trace.vote_share is trace.seed is None


def test_problem_reasoning_and_answer_are_enough() -> None:
    trace = parse_line('{"problem": "1 + 1?", "reasoning": "1 + 1 = 2", "answer": "2"}')
    assert [turn["role"] for turn in trace.messages] == ["user", "assistant"]
    assert trace.messages[-1] == {"role": "assistant", "content": "2", "reasoning_content": "1 + 1 = 2"}


def test_export_reads_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text(to_line(a_trace()) + "\n", encoding="utf-8")
    (trace,) = read_for_calibration(path)
    assert trace.reasoning == a_trace().reasoning
    assert trace.answer == r"\boxed{17}"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"id": "0" * 32}, "id:"),
        ({"seed": 2**63}, "seed:"),
        ({"seed": True}, "seed:"),
        ({"vote_share": 1.5}, "vote_share:"),
        ({"correct": 1}, "correct:"),
        ({"task": 3}, "task:"),
        ({"reasoning": "another"}, "reasoning: is not what"),
        ({"sampling": []}, "sampling:"),
        ({"verified": "yes"}, "verified:"),
        ({"steps": {}}, "steps:"),
        ({"steps": [{"text": "x", "role": "boss", "verdict": "verified"}]}, "steps[0].role"),
        ({"steps": [{"text": "x", "role": "error", "verdict": []}]}, "steps[0].verdict"),
        ({"steps": [{"text": None, "role": "error", "verdict": "unknown"}]}, "steps[0].text: is missing"),
        ({"steps": [{"text": "", "role": "error", "verdict": "unknown"}] * 10_001}, "at most 10000"),
        ({"messages": []}, "messages:"),
        ({"messages": [{"role": "assistant", "content": "1"}] * 2}, "messages: needs a user's"),
        ({"messages": [{"role": "user", "content": "1"}] * 2}, "messages: needs a user's before"),
        ({"messages": [{"role": "user", "content": "1", "thinking": "2"}]}, "only the assistant's"),
        ({"messages": [{"role": "narrator", "content": "1"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "assistant", "content": "", "thinking": "1", "reasoning": "2"}]},
            "two different",
        ),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], what: str) -> None:
    item = json.loads(to_line(a_trace())) | change
    with pytest.raises(InputError) as error:
        parse_line(json.dumps(item))
    assert error.value.code == "bad-trace"
    assert what in error.value.what


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[" * 100_000,
        b'{"problem": "a", "problem": "b", "reasoning": "", "answer": ""}',
        b'{"problem": "\\ud800", "reasoning": "", "answer": ""}',
        b'{"problem": "\xff", "reasoning": "", "answer": ""}',
        b'{"problem": "a", "reasoning": "", "answer": "", "vote_share": NaN}',
        b'{"problem": "a", "reasoning": "", "answer": "", "sampling": {"t": 1e999}}',
        b'{"problem": "a", "reasoning": "", "answer": "", "seed": ' + b"9" * 5000 + b"}",
        b'{"problem": "' + b"a" * (1 << 20) + b'", "reasoning": "", "answer": ""}',
    ],
)
def test_hostile_lines(line: bytes) -> None:
    with pytest.raises(InputError, match=r"."):
        parse_line(line)


def test_what_could_not_be_read_is_not_written() -> None:
    with pytest.raises(InputError):
        to_line(make_trace("\ud800", "", "1"))
    with pytest.raises(InputError):
        to_line(make_trace("a", "", "1", sampling={"temperature": float("nan")}))


def test_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    good = to_line(a_trace()).encode()
    long = b'{"problem": "' + b"a" * (3 << 20) + b'"}'
    path.write_bytes(b"\n".join([good, b"", b"{torn", good, long, good]))
    found = list(scan_traces(path))
    assert [number for number, _ in found] == [1, 3, 4, 5, 6]
    assert [isinstance(item, Trace) for _, item in found] == [True, False, True, False, True]
    assert isinstance(found[3][1], InputError)
    assert found[3][1].code == "line-too-long"
    with pytest.raises(InputError, match="line 3") as error:
        list(read_traces(path))
    assert error.value.data == {"line": 3}


def test_50_000_damaged_lines_give_only_typed_errors() -> None:
    generator = random.Random(4)
    original = to_line(a_trace()).encode()
    pieces = [
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"null",
        b"-1",
        b"1e999",
        b"\\ud800",
        b"\x00",
        b"true",
    ]
    typed = read = 0
    for _ in range(50_000):
        line = bytearray(original)
        for _ in range(generator.randint(1, 4)):
            at = generator.randrange(len(line) + 1)
            match generator.randrange(5):
                case 0:
                    line[at : at + 1] = bytes([generator.randrange(256)])
                case 1:
                    del line[at : at + generator.randint(1, 30)]
                case 2:
                    line[at:at] = generator.choice(pieces)
                case 3:
                    line[at:at] = line[generator.randrange(len(line) + 1) :][: generator.randint(1, 60)]
                case 4:
                    del line[max(1, at) :]
        try:
            trace = parse_line(bytes(line))
        except InputError:
            typed += 1
        else:
            assert parse_line(to_line(trace)) == trace
            read += 1
    assert typed > 40_000
    assert read > 100  # the damage can also be harmless
