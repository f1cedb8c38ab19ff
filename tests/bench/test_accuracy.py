"""Outcomes, cells and comparisons from rows counted by hand, and a tiny model through all of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from edge_distill_bench.accuracy import ask_model, count_questions, measure_accuracy
from edge_distill_bench.answering import read_rows
from edge_distill_bench.lines import append_lines
from edge_distill_bench.outcomes import Answered, flip, majority, read_answered
from edge_distill_bench.problem import Problem
from edge_distill_bench.results import AccuracyResult, Flips, LengthBin
from edge_distill_bench.statistics import Pairs, retention, wilson
from edge_distill_runtime import InputError, Model
from edge_distill_runtime.bundles.typed_json import typed
from tests.bench.answers import answered, problems, row


@pytest.mark.parametrize(
    ("said", "verdict", "answer"),
    [
        (["42"], "right", "42"),
        (["41"], "wrong", "41"),
        ([""], "unparsed", ""),
        (["..."], "cut off", ""),
        (["41", "42", "42"], "right", "42"),
        (["41", "42", "41.0"], "wrong", "41"),  # the same number
        (["41", "42"], "wrong", "41"),  # a tie is the first one's
        (["42", "41"], "right", "42"),
        (["...", "...", "42"], "right", "42"),  # who was cut off has no vote
        (["", "", "41"], "wrong", "41"),
        (["...", ""], "cut off", ""),
        (["", "", "..."], "unparsed", ""),
    ],
)
def test_majorities_by_hand(said: list[str], verdict: str, answer: str) -> None:
    rows = [row("x", each, samples=len(said), sample=i) for i, each in enumerate(said)]
    outcome = majority(rows)
    assert (outcome.verdict, outcome.answer) == (verdict, answer)
    assert outcome.tokens == 20 * len(said)


def test_a_cut_answer_has_no_vote_even_when_it_is_right() -> None:
    cut = replace(row("x", "42"), verdict="cut off")
    outcome = majority([cut, cut, row("x", "41")])
    assert (outcome.verdict, outcome.answer) == ("wrong", "41")


def test_an_item_takes_as_long_as_its_slowest_sample() -> None:
    rows = [row("x", "42", samples=2, sample=i, seconds=seconds) for i, seconds in enumerate((3.0, 2.0))]
    assert majority(rows).seconds == 3.25


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("42", "42", "same"),
        ("42", "41", "right to wrong"),
        ("42", "", "right to wrong"),
        ("42", "...", "right to wrong"),
        ("", "42", "wrong to right"),
        ("41", "42", "wrong to right"),
        ("41", "41.0", "same"),
        ("41", "40", "wrong to other"),
        ("41", "...", "wrong to other"),
        ("...", "...", "same"),
        ("", "...", "wrong to other"),
        ("", "", "same"),
    ],
)
def test_flips_by_hand(before: str, after: str, expected: str) -> None:
    assert flip(majority([row("x", before)]), majority([row("x", after)])) == expected


def measure(*models: Answered, items: int, samples: tuple[int, ...] = (1,), **more: Any) -> AccuracyResult:
    first, *others = models
    tasks = more.pop("tasks", {"sums": problems(items)})
    return measure_accuracy(
        first, tasks, budgets=more.pop("budgets", (64,)), samples=samples, against=others, **more
    )


def test_cells_count_every_class() -> None:
    result = measure(answered(["42", "41", "", "...", "42"]), items=5)
    (cell,) = result.cells
    assert (cell.task, cell.budget, cell.samples, cell.items) == ("all", 64, 1, 5)
    assert (cell.right, cell.wrong, cell.unparsed, cell.cut_off) == (2, 1, 1, 1)
    assert cell.accuracy == wilson(2, 5)
    assert (cell.seconds, cell.tokens) == (1.25, 20)
    assert result.lengths == (LengthBin(16, 32, 5, 2),)
    assert result.takes_budgets


def test_comparisons_by_hand() -> None:
    ours = answered(["42", "41", "42", "40", "...", "42"])
    teacher = answered(["42", "42", "41", "41", "...", "42"], name="t", role="teacher")
    (found,) = measure(ours, teacher, items=6).comparisons
    assert (found.against, found.role, found.items) == ("t", "teacher", 6)
    assert found.flips == Flips(right_to_wrong=1, wrong_to_right=1, wrong_to_other=1, same=3)
    assert found.retention == retention(Pairs(both=2, only_first=1, only_second=1, neither=2))
    assert found.difference.value == 0
    assert found.mcnemar_p == stats.binomtest(1, 2).pvalue
    assert found.equivalence.margin == 0.05
    assert not found.equivalence.is_shown


def test_no_retention_of_nothing() -> None:
    (found,) = measure(answered(["42", "41"]), answered(["", "41"]), items=2).comparisons
    assert found.retention is None
    assert found.flips.wrong_to_right == 1


def test_majorities_of_k_come_from_the_same_samples() -> None:
    several = answered([["41", "42", "42", "42"], ["42", "40", "40", "42"], ["", "", "", "42"]])
    single = answered(["41", "42", "42"])
    model = Answered("a", "artifact", several.rows + single.rows)
    result = measure(model, model, items=3, samples=(1, 4))
    # by hand: maj@2 is 41, 42, nothing; maj@3 is 42, 40, nothing; maj@4 is 42, 42 (a tie), 42
    assert [(cell.samples, cell.right, cell.unparsed) for cell in result.cells] == [
        (1, 2, 0),
        (2, 1, 1),
        (3, 1, 1),
        (4, 3, 0),
    ]
    assert [cell.tokens for cell in result.cells] == [20, 40, 60, 80]
    assert [(found.samples, found.flips.same) for found in result.comparisons] == [(1, 3), (4, 3)]


def test_tasks_are_told_apart_and_pooled() -> None:
    tasks = {"sums": problems(2), "more": problems(1, "more")}
    model = answered(["42", "41"])
    model = Answered("a", "artifact", (*model.rows, row("more0", "42")))
    cells = measure(model, items=0, tasks=tasks).cells
    assert [(cell.task, cell.items, cell.right) for cell in cells] == [
        ("all", 3, 2),
        ("sums", 2, 1),
        ("more", 1, 1),
    ]


def test_settings_that_were_not_asked_are_left_out() -> None:
    ours = answered(["42", "42"])
    longer = Answered("a", "artifact", ours.rows + answered(["41", "42"], budget=256).rows)
    without = answered(["42", "41"], name="t", budget=None)
    result = measure(longer, ours, without, items=2, budgets=(64, 256))
    assert [(cell.budget, cell.right) for cell in result.cells] == [(64, 2), (256, 1)]
    found = [(c.against, c.budget, c.flips.same) for c in result.comparisons]
    # a teacher that takes no budget stands at every one
    assert found == [("a", 64, 2), ("t", 64, 1), ("t", 256, 0)]
    assert not measure(without, items=2).takes_budgets


def test_lengths_double() -> None:
    sizes = [0, 15, 16, 31, 32, 100, 127, 128]
    rows = tuple(
        row(f"sums{i}", "42" if i % 2 else "41", tokens=tokens, budget=budget)
        for budget in (0, 256)
        for i, tokens in enumerate(sizes)
    )
    bins = measure(Answered("a", "artifact", rows), items=8, budgets=(0, 256)).lengths
    assert bins == (
        LengthBin(0, 16, 2, 1),
        LengthBin(16, 32, 2, 1),
        LengthBin(32, 64, 1, 0),
        LengthBin(64, 128, 2, 1),
        LengthBin(128, 256, 1, 1),
    )


def test_the_last_of_double_rows_counts() -> None:
    twice = Answered("a", "artifact", (row("sums0", "41"), row("sums0", "42")))
    assert measure(twice, items=1).cells[0].right == 1


def test_rows_from_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "teacher.jsonl"
    append_lines(path, map(asdict, answered(["42", "41"], budget=None).rows))
    ids = ["sums0", "sums1"]
    teacher = read_answered(path, ids, name="t", role="teacher", budgets=(0, 64))
    assert teacher.outcomes(ids, 64, 1) == teacher.outcomes(ids, 0, 1)
    with pytest.raises(InputError, match="answers to 1 of 2 items"):
        read_answered(path, ["sums1", "sums9"], name="t", role="teacher", budgets=(0, 64))


def test_results_survive_json() -> None:
    import json

    result = measure(answered(["42", ["42", "41"]]), answered(["42", "41"]), items=1)
    assert typed(AccuracyResult, json.loads(json.dumps(asdict(result))), "accuracy") == result


# -- a model ---------------------------------------------------------------------------------------------------


TASKS = {
    "a": [Problem(f"a{i}", "a", f"Anna has {i} apples.", str(i)) for i in range(3)],
    "b": [Problem("b0", "b", "Ben has none.", "0")],
}


def speaking(model: Model, **changes: Any) -> Model:
    """It ends sometimes: at the tokens that it likes most."""
    said = [
        token
        for task in TASKS.values()
        for problem in task
        for token in model.generate(problem.problem, max_tokens=24).tokens[2:]
    ]
    stops = tuple(token for token, _ in Counter(said).most_common(3))
    manifest = replace(model.manifest, stop_ids=stops, **changes)
    return Model(
        manifest, model.backend, model.tokenizer, model.detokenizer, model_hash=model.model_hash or "h"
    )


def test_a_model_through_all_of_it(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    spoken = speaking(model)
    done: list[int] = []
    asked: dict[str, Any] = {"budgets": (0, 6), "samples": (1, 3), "max_tokens": 24, "rows": path}
    found = ask_model(spoken, TASKS, name="m", role="student", **asked, progress=done.append)
    assert count_questions(spoken, TASKS, (0, 6), (1, 3)) == 16
    assert (done[0], done[-1], sorted(done)) == (0, 16, done)
    assert Counter((r.budget, r.samples) for r in found.rows) == {
        (0, 1): 4,
        (0, 3): 12,
        (6, 1): 4,
        (6, 3): 12,
    }
    closed = [r for r in found.rows if r.budget == 0]
    assert all(r.reasoning_tokens == 0 for r in closed)
    assert any(r.reasoning_tokens > 0 for r in found.rows)
    result = measure_accuracy(found, TASKS, budgets=(0, 6), samples=(1, 3), against=[found])
    assert [(c.task, c.budget, c.samples) for c in result.cells] == [
        (task, budget, count) for budget in (0, 6) for count in (1, 2, 3) for task in ("all", "a", "b")
    ]
    for cell in result.cells:
        assert cell.right + cell.wrong + cell.unparsed + cell.cut_off == cell.items
    assert all(c.flips.same == 4 and c.mcnemar_p == 1 for c in result.comparisons)
    # the same from the file, on another machine
    again = read_answered(path, [f"a{i}" for i in range(3)], name="m", role="student", budgets=(0, 6))
    assert sorted(again.rows, key=str) == sorted(found.rows, key=str)
    # nothing is asked twice
    done.clear()
    ask_model(spoken, TASKS, name="m", role="student", **asked, progress=done.append)
    assert done == [4, 8, 12, 16]
    assert len(read_rows(path)) == 32


@pytest.mark.parametrize("samples", [1, 2])
def test_what_a_smaller_budget_does_not_change_is_not_asked_again(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    spoken = speaking(model)
    sample, asked = Model.sample, []

    def counted(*args: Any, **more: Any) -> Any:
        asked.append(args)
        return sample(*args, **more)

    monkeypatch.setattr(Model, "sample", counted)
    options: dict[str, Any] = {
        "name": "m",
        "role": "student",
        "samples": (samples,),
        "max_tokens": 48,
        "at_once": 1,
    }
    alone = [ask_model(spoken, TASKS, budgets=(budget,), **options) for budget in (0, 24, 40)]
    assert len(asked) == 12
    asked.clear()
    path = tmp_path / "rows.jsonl"
    found = ask_model(spoken, TASKS, budgets=(0, 24, 40), rows=path, **options)
    assert 8 < len(asked) < 12
    text = {(r.id, r.budget, r.sample): (r.text, r.verdict, r.tokens) for r in found.rows}
    assert text == {
        (r.id, r.budget, r.sample): (r.text, r.verdict, r.tokens) for each in alone for r in each.rows
    }
    asked.clear()
    again = ask_model(spoken, TASKS, budgets=(24,), rows=path, **options)  # they have rows of their own
    assert not asked
    assert all(r.budget == 24 for r in again.rows)


def test_a_model_without_markers_is_asked_once(model: Model, tmp_path: Path) -> None:
    plain = speaking(model, reasoning=None, files=())
    asked: dict[str, Any] = {"budgets": (0, 6), "samples": (1,), "max_tokens": 12}
    found = ask_model(plain, TASKS, name="m", role="student", **asked, rows=tmp_path / "rows.jsonl")
    assert {r.budget for r in found.rows} == {None}
    assert len(found.rows) == count_questions(plain, TASKS, (0, 6), (1,)) == 4
    result = measure_accuracy(found, TASKS, budgets=(0, 6), samples=(1,))
    assert not result.takes_budgets
    zero, six = (cell for cell in result.cells if cell.task == "all")
    assert replace(zero, budget=6) == six


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budgets": ()}, "budgets"),
        ({"budgets": (-1,)}, "budgets"),
        ({"budgets": (0, 24)}, "at most 24 tokens"),
        ({"samples": ()}, "samples"),
        ({"samples": (0, 1)}, "samples"),
        ({"tasks": {"a": []}}, "no problems"),
        ({"tasks": {"a": TASKS["a"], "b": TASKS["a"][:1]}}, "'a0' stands twice"),
    ],
)
def test_bad_requests(model: Model, change: dict[str, Any], message: str) -> None:
    asked: dict[str, Any] = {"tasks": TASKS, "budgets": (0,), "samples": (1,), "max_tokens": 24} | change
    with pytest.raises(InputError, match=message):
        ask_model(model, asked.pop("tasks"), name="m", role="student", **asked)
