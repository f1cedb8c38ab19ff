"""Problems through tiny models, and interrupted runs."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_distill_bench.answering import Row, answer_items, read_rows
from edge_distill_bench.problem import Problem
from edge_distill_runtime import InputError, Model
from edge_distill_runtime.reasoning.answers import parse_answer

PROBLEMS = [
    Problem(f"p{number}", "sums", f"Anna has {number} apples and buys {number + 2}.", str(2 * number + 2))
    for number in range(6)
]


def with_manifest(model: Model, **changes: Any) -> Model:
    """The same loaded model under a changed manifest."""
    return Model(replace(model.manifest, **changes), model.backend, model.tokenizer, model.detokenizer)


@pytest.fixture
def speaking(model: Model) -> Model:
    """It stops sometimes: at the tokens that it likes most."""
    said = [token for p in PROBLEMS for token in model.generate(p.problem, max_tokens=24).tokens[2:]]
    return with_manifest(model, stop_ids=tuple(token for token, _ in Counter(said).most_common(3)))


class Interrupted(Exception):
    pass


def interrupt_after(count: int) -> Any:
    def progress(done: int) -> None:
        if done >= count:
            raise Interrupted

    return progress


def lasting(rows: list[Row]) -> list[Row]:
    return [replace(row, seconds=0, prompt_seconds=0) for row in rows]


def test_rows_say_what_the_model_said(speaking: Model) -> None:
    done: list[int] = []
    rows = answer_items(speaking, PROBLEMS, max_tokens=24, at_once=1, progress=done.append)
    assert [row.id for row in rows] == [problem.id for problem in PROBLEMS]
    assert done == list(range(7))
    for row, problem in zip(rows, PROBLEMS, strict=True):
        expected = speaking.generate(problem.problem, temperature=0.0, max_tokens=24)
        assert (row.text, row.tokens, row.sample) == (expected.text, len(expected.tokens), 0)
        assert row.finish_reason == expected.finish_reason
        assert row.answer == parse_answer(expected.answer).display
        assert row.seconds > 0
        assert (row.verdict == "cut off") == (row.finish_reason == "length")
    assert any(row.finish_reason == "stop" for row in rows)


@pytest.mark.parametrize(
    ("answer", "finish_reason", "verdict"),
    [
        ("The answer is 2.", "stop", "right"),
        ("The answer is 3.", "stop", "wrong"),
        ("", "stop", "unparsed"),
        ("The answer is 2.", "length", "cut off"),  # it went on behind it, and would have said more
        ("The answer is 2.", "context", "cut off"),
    ],
)
def test_verdicts(
    model: Model, monkeypatch: pytest.MonkeyPatch, answer: str, finish_reason: str, verdict: str
) -> None:
    said = model.generate("x", max_tokens=1)
    said = replace(said, answer=answer, finish_reason=finish_reason)  # type: ignore[arg-type]
    monkeypatch.setattr(model, "sample", lambda prompt, n, **options: [said] * n)
    (row,) = answer_items(model, PROBLEMS[:1])
    assert (row.verdict, row.answer) == (verdict, parse_answer(answer).display)


def test_problems_share_steps(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    shared: list[int] = []
    step = model.backend.step

    def spy(sequences: Any, tokens: Any) -> Any:
        shared.append(len(sequences))
        time.sleep(0.01)  # as slow as a real model: else one may be done before the next begins
        return step(sequences, tokens)

    monkeypatch.setattr(model.backend, "step", spy)
    rows = answer_items(model, PROBLEMS, max_tokens=16, at_once=3)
    assert max(shared) > 1
    assert [row.id for row in rows] == [problem.id for problem in PROBLEMS]


def test_samples(model: Model) -> None:
    rows = answer_items(model, PROBLEMS[:2], samples=3, temperature=1.5, max_tokens=12, at_once=1)
    assert [(row.id, row.sample) for row in rows] == [(name, i) for name in ("p0", "p1") for i in range(3)]
    assert {(row.samples, row.budget) for row in rows} == {(3, None)}
    assert len({row.text for row in rows}) == 6
    with pytest.raises(InputError, match="3 samples at temperature 0 are all the same"):
        answer_items(model, PROBLEMS, samples=3, max_tokens=12)


def test_prompts_and_budgets(model: Model) -> None:
    terse = answer_items(
        model, PROBLEMS[:2], prompt=lambda problem: f"{problem.problem} Be brief.", max_tokens=8, at_once=1
    )
    assert terse[0].text == model.generate(f"{PROBLEMS[0].problem} Be brief.", max_tokens=8).text
    (budgeted,) = answer_items(model, PROBLEMS[:1], thinking=True, thinking_budget=4, max_tokens=30)
    assert (budgeted.budget, budgeted.samples) == (4, 1)
    assert budgeted.reasoning_tokens <= 16  # four, and what closes the reasoning
    assert "</think>" in budgeted.text


@pytest.mark.parametrize("samples", [1, 2])
def test_an_interrupted_run_goes_on(model: Model, tmp_path: Path, samples: int) -> None:
    path = tmp_path / "rows.jsonl"
    options: dict[str, Any] = {"samples": samples, "max_tokens": 8, "temperature": 1.0, "at_once": 1}
    whole = answer_items(model, PROBLEMS, **options, rows=tmp_path / "whole.jsonl")
    for stop in (1, 3, 6):
        with pytest.raises(Interrupted):
            answer_items(model, PROBLEMS, **options, rows=path, progress=interrupt_after(stop))
    assert len(read_rows(path)) == 6 * samples
    done: list[int] = []
    again = answer_items(model, PROBLEMS, **options, rows=path, progress=done.append)
    assert done == [6]  # nothing was asked
    assert lasting(again) == lasting(whole)
    assert lasting(read_rows(path)) == lasting(whole)
    row = json.loads(path.read_text().splitlines()[0])
    for change in ({"verdict": "splendid"}, {"seconds": "1"}, {"budget": 1.5}, {"sample": None}):
        path.write_text(json.dumps(row | change) + "\n")
        with pytest.raises(InputError, match=r"line 1 of .* is no row"):
            read_rows(path)


def test_a_torn_file_is_mended(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    options: dict[str, Any] = {"samples": 2, "max_tokens": 4, "temperature": 1.0, "at_once": 1, "rows": path}
    whole = lasting(answer_items(model, PROBLEMS[:3], **options))
    data = path.read_bytes()
    for cut in range(0, len(data), len(data) // 12):
        path.write_bytes(data[:cut])
        assert lasting(answer_items(model, PROBLEMS[:3], **options)) == whole
        texts = {(row.id, row.sample) for row in read_rows(path)}
        assert len(texts) == 6
    path.write_bytes(data[:10] + b"x" * 200_000)
    assert lasting(answer_items(model, PROBLEMS[:3], **options)) == whole


def test_other_runs_are_not_mixed_up(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    asked: list[list[int]] = []

    def run(model: Model, problem: Problem = PROBLEMS[0], **options: Any) -> None:
        asked.append([])
        merged: dict[str, Any] = {"max_tokens": 4, "rows": path} | options
        answer_items(model, [problem], **merged, progress=asked[-1].append)

    run(model)
    run(model)
    run(model, max_tokens=5)
    run(model, seed=1)
    run(model, thinking=True)
    run(model, prompt=lambda problem: problem.problem + "!")
    run(model, replace(PROBLEMS[0], answer="77"))
    run(with_manifest(model, chat=None))
    run(with_manifest(model, stop_ids=(1,)))
    run(model, model_hash="another")
    run(model)
    assert asked == [[0, 1], [1], *[[0, 1]] * 8, [1]]


def test_bad_requests(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    long = replace(PROBLEMS[0], id="long", problem="apples " * 2000)
    bad: list[tuple[list[Problem], dict[str, Any], str]] = [
        ([*PROBLEMS, long], {}, "do not fit"),
        ([PROBLEMS[0], PROBLEMS[0]], {}, "same id"),
        (PROBLEMS, {"at_once": 0}, "0 problems at once"),
        (PROBLEMS, {"deadline": 1.0}, "deadline cannot be given"),
        (PROBLEMS, {"tokens": 5}, "no option 'tokens'"),
        (PROBLEMS, {"max_tokens": 0}, "max_tokens is 0"),
    ]
    for problems, options, message in bad:
        with pytest.raises(InputError, match=message):
            answer_items(model, problems, rows=path, **options)
    assert not path.exists()  # found before anything was computed
    with pytest.raises(InputError, match="give model_hash"):
        answer_items(with_manifest(model, files=()), PROBLEMS, rows=path)


@pytest.mark.parametrize("line", ["{}", "[]", "x", '{"key": 1}', "[" * 100_000])
def test_files_that_hold_something_else(model: Model, tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    answer_items(model, PROBLEMS[:1], max_tokens=2, rows=path)
    row = json.loads(path.read_text())
    path.write_text(f"{json.dumps(row)}\n{line}\n{json.dumps(row)}\n")
    with pytest.raises(InputError, match=r"line 2 of .* is no row"):
        read_rows(path)
