"""Exemplars: from the training split, never the problem itself, the same in every run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_distill.traces.few_shot import Exemplar, ExemplarPool, choose_exemplars, question
from edge_distill.traces.self_consistency import self_consistency
from edge_distill.traces.teachers.teacher import Sampling
from edge_distill_bench.tasks import load_problems, split_of
from edge_distill_runtime import InputError
from tests.traces.small_teachers import ErringTeacher, sums


@pytest.mark.parametrize("source", ["task:gsm_symbolic", "task:chain_sum?min_terms=3"])
def test_exemplars_of_a_family_are_its_training_problems(source: str) -> None:
    pool = choose_exemplars(source, 3)
    assert pool == choose_exemplars(source, 3)
    ids = [exemplar.id for exemplar in pool.exemplars]
    assert len(set(ids)) == 4
    for split in ("validation", "test"):
        problems = load_problems(source, split=split, count=50, seed=999)
        assert not {problem.id for problem in problems} & set(ids)
    for exemplar in pool.exemplars:
        assert "####" not in exemplar.reasoning
        assert exemplar.turns[1]["content"].endswith(f"\n\\boxed{{{exemplar.answer}}}")


def test_no_problem_is_shown_its_own_solution() -> None:
    pool = choose_exemplars("task:chain_sum", 2)
    problems = load_problems("task:chain_sum", split="train", count=3, seed=999)
    assert [[exemplar.id for exemplar in pool.of(problem)] for problem in problems] == [
        [problems[1].id, problems[2].id],
        [problems[0].id, problems[2].id],
        [problems[0].id, problems[1].id],
    ]


def test_a_file_gives_those_of_its_training_part_that_are_solved(tmp_path: Path) -> None:
    path = tmp_path / "words.jsonl"
    items = [
        {"problem": f"How many are {n} and {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"}
        if n % 2
        else {"problem": f"How many are {n} and {n}?", "answer": str(2 * n)}
        for n in range(40)
    ]
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    pool = choose_exemplars(str(path), 3)
    assert len(pool.exemplars) == 4
    for exemplar in pool.exemplars:
        assert split_of(exemplar.problem) == "train"
        number = int(exemplar.answer) // 2
        assert number % 2 == 1
        assert exemplar.reasoning == f"{number} + {number} = {2 * number}"
    curated = choose_exemplars(str(path), 2, curated=True)
    assert [exemplar.answer for exemplar in curated.exemplars] == ["2", "6", "10"]
    with pytest.raises(InputError, match="40 exemplars take 41"):
        choose_exemplars(str(path), 40)


def test_the_conversation() -> None:
    pool = ExemplarPool((Exemplar("a", "1 + 1?", "1 + 1 = 2", "2"), Exemplar("b", "2?", "2", "2")), 1)
    problem = sums(1)[0]
    assert question(problem, pool.of(problem)) == (
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "1 + 1 = 2\n\\boxed{2}"},
        {"role": "user", "content": problem.problem},
    )


def test_exemplars_are_recorded_and_not_learned_from() -> None:
    teacher = ErringTeacher(failing=0)
    pool = choose_exemplars("task:chain_sum", 2)
    elicit = self_consistency(samples=1, sampling=Sampling(), exemplars=pool)
    ((_, (candidate,)),) = elicit(sums(1), teacher)
    assert len(teacher.requests[0].messages) == 5
    assert candidate.sampling["exemplars"] == [exemplar.id for exemplar in pool.exemplars[:2]]
    assert [turn["role"] for turn in candidate.messages] == ["user", "assistant"]


def test_bad_requests() -> None:
    assert choose_exemplars("task:no_such_family", 0) == ExemplarPool()
    with pytest.raises(InputError, match="-1"):
        choose_exemplars("task:chain_sum", -1)
    with pytest.raises(InputError, match="has 0 problems with a solution"):
        choose_exemplars("task:letter_counting", 2)
