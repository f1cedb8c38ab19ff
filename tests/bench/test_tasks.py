"""Problems from generated families, JSON lines and data sets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_distill_bench.grading import grade
from edge_distill_bench.problem import Problem
from edge_distill_bench.tasks import BadLine, Split, load_problems, split_of
from edge_distill_runtime import BundleError, InputError, MissingExtra

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        ("task:gsm_symbolic", 200),
        (
            "task:chain_sum?min_terms=2&max_terms=2&max_digits=1",
            40,
        ),  # 200 texts in all: every seed meets them
        ("task:chain_sum?min_terms=3&max_terms=5", 200),
        ("task:basic_arithmetic", 200),
        ("task:leg_counting", 200),
        ("task:gcd", 100),
        ("task:calendar_arithmetic", 100),
        ("task:coin_flip", 20),
    ],
)
def test_splits_share_no_text(spec: str, count: int) -> None:
    texts = [
        {problem.problem for problem in load_problems(spec, split=split, count=count)} for split in SPLITS
    ]
    assert [len(each) for each in texts] == [count] * 3  # all different within a split
    assert len(set.union(*texts)) == 3 * count
    for split, seen in zip(SPLITS, texts, strict=True):  # other seeds neither
        more = {problem.problem for problem in load_problems(spec, split=split, count=count // 2, seed=7)}
        assert all(more.isdisjoint(other) for other in texts if other is not seen)


def test_seeds_give_other_problems_and_counts_a_beginning() -> None:
    first, second = (load_problems("task:gsm_symbolic", split="test", count=50, seed=seed) for seed in (0, 1))
    assert not {problem.id for problem in first} & {problem.id for problem in second}
    assert load_problems("task:gsm_symbolic", split="test", count=20) == first[:20]


def test_gsm_symbolic_has_its_solution() -> None:
    for problem in load_problems("task:gsm_symbolic", split="train", count=100):
        assert problem.task == "gsm_symbolic"
        assert problem.solution is not None
        assert grade(problem.solution, problem.answer).verdict == "right"
        assert problem.difficulty == {"difficulty": 1.0}


def test_difficulty_is_the_problems_own() -> None:
    for problem in load_problems("task:chain_sum?min_terms=3&max_terms=5", split="train", count=60):
        expression = problem.problem.partition(": ")[2].removesuffix(" =")
        assert problem.difficulty["num_terms"] == len(expression.split()) // 2 + 1
        assert 3 <= problem.difficulty["num_terms"] <= 5
        assert eval(expression) == int(problem.answer)  # digits, + and - that reasoning-gym wrote
        assert problem.solution is None


_PRINT = """
import sys
from dataclasses import astuple
from edge_distill_bench.tasks import load_problems
for name in sys.argv[1:]:
    print([astuple(problem) for problem in load_problems(f"task:{name}", split="validation", count=15, seed=3)])
"""


def test_every_process_draws_the_same() -> None:
    families = ["gsm_symbolic", "chain_sum", "family_relationships", "knights_knaves", "word_sorting", "acre"]
    printed = [
        subprocess.run(
            [sys.executable, "-c", _PRINT, *families],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert printed[0] == printed[1]
    assert len(printed[0].splitlines()) == len(families)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("task:chain_summ", r"no task 'chain_summ' \(did you mean chain_sum"),
        ("task:", "no task ''"),
        ("task:chain_sum?min_term=3", "no option 'min_term' .*did you mean min_terms"),
        ("task:chain_sum?seed=3", "no option 'seed'"),
        ("task:chain_sum?min_terms=many", "min_terms='many' is of the wrong type"),
        ("task:chain_sum?min_terms=2.5", "min_terms='2.5' is of the wrong type"),
        ("task:chain_sum?min_terms=9", "does not take these options: max_terms must be >= min_terms"),
        ("task:chain_sum?min_terms", "options of 'task:chain_sum.min_terms' cannot be read"),
        ("task:gsm_symbolic?difficulty=2", "does not take these options"),
        ("task:composite", "does not take these options"),
        ("task:countdown", "many right answers"),
        ("task:ransom_note", "other problems in every process"),
        (
            "task:chain_sum?max_terms=2&max_digits=1",
            r"has about \d\d different problems in the split 'test', 500",
        ),
    ],
)
def test_bad_tasks(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_problems(spec, split="test", count=500)


def test_options_have_their_types() -> None:
    (problem,) = load_problems(
        "task:chain_sum?min_terms=4&max_terms=4&allow_negation=True", split="train", count=1
    )
    assert problem.difficulty["num_terms"] == 4
    assert load_problems("task:dice?num_dice=3&max_dice_size=8", split="train", count=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev", "count": 1}, "split is 'dev'"),
        ({"split": "all", "count": 1}, "a generated task has no end"),
        ({"split": "test"}, "ask for a count"),
        ({"split": "test", "count": 0}, "0 problems were asked for"),
        ({"split": "test", "count": 1, "seed": 1000}, "seed is 1000"),
        ({"split": "test", "count": 1, "seed": -1}, "seed is -1"),
    ],
)
def test_bad_requests(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_problems("task:chain_sum", **options)


# -- JSON lines ----------------------------------------------------------------------------------------------


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_file_of_problems(tmp_path: Path) -> None:
    spec = write(
        tmp_path / "mine.jsonl",
        {"problem": "1 + 1?", "answer": 2},
        {
            "id": "b",
            "task": "sums",
            "problem": "2 + 2?",
            "answer": "4",
            "difficulty": {"terms": 2},
            "solution": "Count.",
        },
        {"question": "3 + 3?", "answer": "3 + 3 = <<3+3=6>>6\n#### 6"},
    )
    first, second, third = load_problems(spec, split="all")
    assert (first.task, first.problem, first.answer, first.solution) == ("mine", "1 + 1?", "2", None)
    assert second == Problem("b", "sums", "2 + 2?", "4", {"terms": 2}, "Count.")
    assert (third.answer, third.solution) == ("6", "3 + 3 = <<3+3=6>>6")


def test_a_file_is_split_by_its_texts(tmp_path: Path) -> None:
    rows = [{"problem": f"What is {number} + 1?", "answer": number + 1} for number in range(1000)]
    spec = write(tmp_path / "sums.jsonl", *rows)
    texts = {split: {problem.problem for problem in load_problems(spec, split=split)} for split in SPLITS}
    assert sum(map(len, texts.values())) == len(set.union(*texts.values())) == 1000
    assert 750 <= len(texts["train"]) <= 850
    assert 70 <= len(texts["test"]) <= 130
    # it is a property of the text, not of the file or its white space
    assert all(split_of(f"  {text.replace(' ', chr(10))} ") == "test" for text in texts["test"])
    other = write(tmp_path / "other.jsonl", *reversed(rows[:500]))
    assert {problem.problem for problem in load_problems(other, split="test")} <= texts["test"]


def test_a_choice_from_a_file(tmp_path: Path) -> None:
    spec = write(tmp_path / "a.jsonl", *({"problem": f"{i}?", "answer": i} for i in range(100)))
    chosen = load_problems(spec, split="all", count=30, seed=1)
    assert chosen == load_problems(spec, split="all", count=30, seed=1)
    assert chosen[:10] == load_problems(spec, split="all", count=10, seed=1)
    assert {p.id for p in chosen} != {p.id for p in load_problems(spec, split="all", count=30, seed=2)}
    with pytest.raises(InputError, match="has 100 problems in the split 'all', 101 were asked for"):
        load_problems(spec, split="all", count=101)


BAD = [
    (b"{", "not JSON"),
    (b"[" * 50_000, "not JSON"),
    (b"\xff{}", "not UTF-8"),
    (b"[]", "not an object"),
    (b"null", "not an object"),
    (b"{}", "'question' is missing or empty"),
    (b'{"problem": "x"}', "'answer' is missing or empty"),
    (b'{"problem": " ", "answer": 1}', "'problem' is no text"),
    (b'{"problem": ["x"], "answer": 1}', "'problem' is no text"),
    (b'{"problem": "x", "answer": true}', "'answer' is no text"),
    (b'{"problem": "x", "answer": "..."}', "the answer '...' is empty, punctuation"),
    (b'{"problem": "x", "answer": "steps ####"}', "the answer '' is empty, punctuation"),
    (b'{"problem": "\\ud800", "answer": 1}', "'problem' holds lone surrogates"),
    (b'{"problem": "good", "answer": 2}', "the same problem as in line 1"),
    (b'{"id": "one", "problem": "y", "answer": 2}', "the same id as in line 2"),
    (b'{"id": 5, "problem": "z", "answer": 2}', None),
    (b'{"problem": "' + b"x" * 100_001 + b'", "answer": 2}', "'problem' has 100001 characters"),
    (b'{"problem": "' + b"x" * (1 << 20) + b'", "answer": 2}', "longer than 1048576 bytes"),
]


def test_bad_lines_have_a_number_and_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    good = [b'{"problem": "good", "answer": 1}', b'{"id": "one", "problem": "two", "answer": 1}', b"  "]
    path.write_bytes(b"\n".join([*good, *(line for line, _ in BAD)]))
    rejects: list[BadLine] = []
    problems = load_problems(str(path), split="all", on_bad_line=rejects.append)
    assert [problem.problem for problem in problems] == ["good", "two", "z"]
    expected = [(number, reason) for number, (_, reason) in enumerate(BAD, 4) if reason]
    assert [reject.line for reject in rejects] == [number for number, _ in expected]
    for reject, (_, reason) in zip(rejects, expected, strict=True):
        assert reason in reject.reason
    with pytest.raises(InputError, match=f"{len(rejects)} lines of .* line 4: not JSON") as caught:
        load_problems(str(path), split="all")
    assert caught.value.data["lines"] == [number for number, _ in expected]


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_problems(str(tmp_path / "none.jsonl"), split="all")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises((BundleError, InputError)):
            load_problems(str(path), split="all")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with pytest.raises(InputError, match="has 0 problems"):
        load_problems(str(tmp_path / "empty.jsonl"), split="all")


@pytest.mark.parametrize(
    ("module", "spec", "extra"),
    [
        ("reasoning_gym.factory", "task:chain_sum", r'pip install "edge-distill\[bench\]"'),
        ("datasets", "hf:openai/gsm8k?config=main", "pip install datasets"),
    ],
)
def test_missing_libraries(monkeypatch: pytest.MonkeyPatch, module: str, spec: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # what an import finds then raises ImportError
    with pytest.raises(MissingExtra, match=extra):
        load_problems(spec, split="train", count=1)
