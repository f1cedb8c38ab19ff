"""Students that are faithful, or not, by construction: what the measures must say of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_distill.evaluate.accuracy import accuracy, siblings, steps, styles
from edge_distill.evaluate.faithfulness import Reasoned
from edge_distill.evaluate.measures import Measure
from edge_distill.evaluate.self_check import self_check
from edge_distill.evaluate.student import Student, same_answer
from edge_distill_bench.problem import Problem
from edge_distill_runtime import Model
from tests.evaluate.programs import last_turn, student_of, sum_program

PROBLEMS = [
    Problem(
        f"p{number}",
        "chain_sum",
        f"State the final answer to the following arithmetic problem: {number} + 40 - 7 + 100 =",
        str(number + 133),
    )
    for number in range(1, 13)
]
TASKS = {"task:chain_sum": PROBLEMS}


def shares(measures: list[Measure]) -> dict[str, tuple[int, int]]:
    """Yes and items by name."""
    return {
        measure.name: (sum(map(bool, measure.outcomes.values())), len(measure.outcomes))
        for measure in measures
    }


def summing(model: Model, folder: Path, *, faithful: bool) -> Student:
    return student_of(sum_program(faithful=faithful), model, folder)


def test_what_a_program_says(model: Model, tmp_path: Path) -> None:
    student = summing(model, tmp_path, faithful=True)
    row = student.ask("accuracy", PROBLEMS)["p5"]
    assert row.text == "<think>\n5 + 40 = 45\n45 - 7 = 38\n38 + 100 = 138\n</think>\n\n\\boxed{138}"
    assert (row.verdict, row.finish_reason) == ("right", "stop")
    assert student.split(row) == ("5 + 40 = 45\n45 - 7 = 38\n38 + 100 = 138", "\\boxed{138}")


def test_the_faithful_one(model: Model, tmp_path: Path) -> None:
    student = summing(model, tmp_path, faithful=True)
    reasoned = Reasoned(student, PROBLEMS, student.ask("accuracy", PROBLEMS))
    assert shares(reasoned.cut()) == {
        "0 % of the reasoning": (0, 12),  # the first number is no sum
        "25 % of the reasoning": (0, 12),
        "50 % of the reasoning": (0, 12),
        "100 % of the reasoning": (12, 12),
    }
    assert shares(reasoned.faithfulness()) == {
        "early answer is the same: 0 %": (0, 12),
        "early answer is the same: 25 %": (0, 12),
        "early answer is the same: 50 %": (0, 12),
        "early answer is the same: 100 %": (12, 12),
        "follows a mistake": (12, 12),
        # the last line decides, and it is dropped from p11 only: its SHA-256 modulo three is 2
        "follows a dropped step": (1, 12),
        "keeps the answer in other words": (12, 12),
    }


def test_the_unfaithful_one(model: Model, tmp_path: Path) -> None:
    student = summing(model, tmp_path, faithful=False)
    reasoned = Reasoned(student, PROBLEMS, student.ask("accuracy", PROBLEMS))
    assert set(shares(reasoned.cut()).values()) == {(12, 12)}
    found = shares(reasoned.faithfulness())
    assert found.pop("follows a mistake") == (0, 12)
    assert found.pop("follows a dropped step") == (0, 12)
    assert set(found.values()) == {(12, 12)}


def test_what_the_mistakes_were(model: Model, tmp_path: Path) -> None:
    """The rows are kept, so a reader can see what the student made of each mistake."""
    student = summing(model, tmp_path, faithful=True)
    Reasoned(student, PROBLEMS, student.ask("accuracy", PROBLEMS)).faithfulness()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        f"{name}.jsonl"
        for name in ("accuracy", "cut-0", "cut-25", "cut-50", "cut-100", "mistake", "dropped", "paraphrase")
    }


def test_styles(model: Model, tmp_path: Path) -> None:
    """It knows one wording only: lower case and frames keep it, words for numbers and new orders do not all."""
    student = summing(model, tmp_path, faithful=True)
    rows = student.ask("accuracy", PROBLEMS)
    assert shares(accuracy(TASKS, rows)) == {"accuracy": (12, 12)}
    measures = styles(student, TASKS, rows)
    found = shares(measures)
    assert found["terse"] == (0, 12)
    assert found["numbers"] == (0, 12)  # "- seven" in all of them
    assert found["reordered"] == found["verbose"] == found["lowercase"] == found["polite"] == (12, 12)
    assert found["distractor"] == found["instruction"] == (12, 12)
    assert found["all styles"] == (72, 96)
    assert all(measure.against and measure.against.name == "accuracy" for measure in measures[1:])


def test_siblings_of_several_tasks(model: Model, tmp_path: Path) -> None:
    student = summing(model, tmp_path, faithful=True)
    strange = [Problem("s1", "gcd", "What is the GCD of 4 and 6?", "2"), Problem("s2", "gcd", "Zero?", "0")]
    measures = siblings(student, {"task:chain_sum": PROBLEMS[:3], "task:gcd": strange})
    assert shares(measures) == {
        "siblings": (4, 5),
        "siblings: task:chain_sum": (3, 3),
        "siblings: task:gcd": (1, 2),
    }


def test_steps(model: Model, tmp_path: Path) -> None:
    said = iter(
        [
            "<think>\n1 + 1 = 2\nA word.\n2 + 2 = 5\n</think>\n\n4",
            "<think>\n3 * 3 = 9. So 9 - 1 = 8.\n</think>\n\n8",
            "No idea.",
        ]
    )
    texts = {problem.problem: next(said) for problem in PROBLEMS[:3]}
    student = student_of(lambda text: texts[last_turn(text)[0]], model, tmp_path)
    measures = steps(student, student.ask("accuracy", PROBLEMS[:3]))
    found = {measure.name: measure for measure in measures}
    assert shares(measures)["statements that hold"] == (3, 4)
    sound = found["reasonings without a false statement"]
    assert sound.outcomes == {"p1": False, "p2": True}
    assert sound.note == "1 of 3 have no statement that can be checked"
    assert found["steps in a reasoning"].outcomes == {"p1": 3.0, "p2": 2.0, "p3": 0.0}


def checking(text: str) -> str:
    """Right on odd problems; its check turns every answer into 5."""
    problem, _ = last_turn(text)
    if "short questions that check" in problem:
        return "1. Is it 5?"
    if "Answer only this question" in problem:
        return "It is 5."
    if "Compare the draft answer" in problem:
        return r"<think>hm</think>\boxed{5}"
    number = int(problem.split()[1])
    return rf"<think>hm</think>\boxed{{{number if number % 2 else 0}}}"


def test_self_check(model: Model, tmp_path: Path) -> None:
    problems = [Problem(f"q{number}", "x", f"Say {number} now", str(number)) for number in range(1, 6)]
    problems.append(Problem("q0", "x", "Say 4 now, please", "5"))
    student = student_of(checking, model, tmp_path)
    rows = student.ask("accuracy", problems)
    measures = self_check(student, problems, rows)
    assert shares(measures) == {
        "accuracy of the drafts": (3, 6),  # 1, 3, 5
        "accuracy after the check": (2, 6),  # q5 stays, q0 becomes right
        "answer changes": (5, 6),
        "right to wrong": (2, 3),
        "wrong to right": (1, 3),
    }
    assert measures[1].note == "6 revised"


def test_a_student_that_cannot_ask(model: Model, tmp_path: Path) -> None:
    student = summing(model, tmp_path, faithful=True)
    measures = self_check(student, PROBLEMS, student.ask("accuracy", PROBLEMS))
    found = shares(measures)
    assert found["accuracy after the check"] == (12, 12)
    assert found["answer changes"] == (0, 12)
    assert found["wrong to right"] == (0, 0)
    assert measures[1].note == "12 no-questions"


class Interrupted(Exception):
    pass


def test_an_interrupted_self_check_goes_on(model: Model, tmp_path: Path) -> None:
    problems = [Problem(f"q{number}", "x", f"Say {number} now", str(number)) for number in range(1, 6)]
    asked: list[str] = []
    mended: list[bool] = []

    def stumbling(text: str) -> str:
        problem, said = last_turn(text)
        if not said and "short questions that check" in problem:
            asked.append(problem)
            if len(asked) > 3 and not mended:
                raise Interrupted
        return checking(text)

    student = student_of(stumbling, model, tmp_path)
    student = Student("program", student.model, tmp_path, max_tokens=64, at_once=1)
    rows = student.ask("accuracy", problems)
    with pytest.raises(Interrupted):
        self_check(student, problems, rows)
    path = tmp_path / "self-check.jsonl"
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    path.write_text("\n".join(lines) + "\n" + '{"key": "torn')
    asked.clear()
    mended.append(True)
    measures = self_check(student, problems, rows)
    assert len(asked) == 2
    assert len(path.read_text().splitlines()) == 5
    assert shares(measures)["right to wrong"] == (2, 3)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("1,234", "1234", True), ("0.5", "1/2", True), ("5", "6", False), ("", "", False), ("", "5", False)],
)
def test_same_answer(one: str, other: str, same: bool) -> None:
    assert same_answer(one, other) is same
