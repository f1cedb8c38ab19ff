"""Chain-of-verification of the teacher: drafts with planted mistakes, and what the checks make of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from edge_distill.traces.chain_of_verification import verified
from edge_distill.traces.checking import check
from edge_distill.traces.elicitation import Candidate, Elicit
from edge_distill.traces.self_consistency import self_consistency
from edge_distill.traces.teachers.teacher import Request, Sampling, Teacher, Written
from edge_distill.traces.trace import parse_line, to_line
from edge_distill.traces.tree import tree_of_thoughts
from edge_distill_bench.problem import Problem
from edge_distill_runtime.errors import InputError
from edge_distill_runtime.reasoning.verification import verify_answer
from tests.runtime.scripted import ScriptedModel
from tests.traces.adders import Adder, Scripted, addition

SAMPLING = Sampling(max_tokens=64)
PROBLEM = addition(12, 30, 7)


class Checker(Scripted):
    """Drafts a wrong sum when asked for the whole, adds two numbers rightly, and believes its checks."""

    def __init__(self, draft: int = 50, **said: Written | str) -> None:
        super().__init__(self._answer, can_continue=False)
        self._draft = draft
        self._said = {
            kind: text if isinstance(text, Written) else Written("", text, "stop", 1)
            for kind, text in said.items()
        }

    def kind(self, request: Request) -> str:
        prompt = request.messages[-1]["content"]
        for kind, words in (
            ("plan", "Write one question"),
            ("check", "Answer only"),
            ("revision", "Checks:"),
        ):
            if words in prompt:
                return kind
        return "draft"

    def _answer(self, request: Request) -> Written:
        kind, prompt = self.kind(request), request.messages[-1]["content"]
        if kind in self._said:
            return self._said[kind]
        if kind == "draft":
            return Written("12 + 30 = 42\n42 + 7 = 50", f"\\boxed{{{self._draft}}}", "stop", 5)
        if kind == "plan":
            return Written("I ask.", "1. What is 12 + 30?\n2. What is 42 + 7?", "stop", 5)
        if kind == "check":
            first, second = map(int, re.findall(r"What is (\d+) \+ (\d+)", prompt)[0])
            return Written("", f"It is {first + second}.", "stop", 3)
        total = re.findall(r"A: It is (\d+)", prompt)[-1]
        return Written(f"12 + 30 = 42\n42 + 7 = {total}", f"\\boxed{{{total}}}", "stop", 5)


def run(teacher: Teacher, problems: Sequence[Problem] = (PROBLEM,), samples: int = 1, **options: Any) -> Any:
    elicit = self_consistency(samples=samples, sampling=SAMPLING, seed=7)
    found = dict(verified(elicit, **{"sampling": SAMPLING, **options})(problems, teacher))
    assert sorted(found) == list(range(len(problems)))
    return [found[index] for index in range(len(problems))]


def one(teacher: Teacher, **options: Any) -> Candidate:
    (candidates,) = run(teacher, **options)
    (candidate,) = candidates
    assert isinstance(candidate, Candidate)
    return candidate


def test_a_wrong_draft_is_revised() -> None:
    candidate = one(Checker())
    assert candidate.reasoning == "12 + 30 = 42\n42 + 7 = 49"
    assert candidate.text == "\\boxed{49}"
    assert candidate.messages == (
        {"role": "user", "content": PROBLEM.problem},
        {"role": "assistant", "content": candidate.text, "reasoning_content": candidate.reasoning},
    )
    assert candidate.notes["verification"] == {
        "outcome": "revised",
        "draft": "\\boxed{50}",
        "checks": [
            {"question": "What is 12 + 30?", "answer": "It is 42."},
            {"question": "What is 42 + 7?", "answer": "It is 49."},
        ],
    }
    assert candidate.verified == ("teacher:verification",)
    trace = check(candidate, PROBLEM, "checker")
    assert (trace.correct, trace.verified[0]) == (True, "teacher:verification")
    assert parse_line(to_line(trace)) == trace


def test_a_confirmed_draft_is_kept_word_for_word() -> None:
    candidate = one(Checker(draft=49))
    assert candidate.reasoning == "12 + 30 = 42\n42 + 7 = 50"
    assert candidate.notes["verification"]["outcome"] == "confirmed"
    assert candidate.verified == ("teacher:verification",)


def test_checks_do_not_see_the_draft() -> None:
    teacher = Checker()
    one(teacher)
    prompts = [r.messages[-1]["content"] for r in teacher.requests if teacher.kind(r) == "check"]
    assert len(prompts) == 2
    assert all(PROBLEM.problem in prompt and "50" not in prompt for prompt in prompts)


def test_asks_what_the_runtime_asks() -> None:
    teacher = Checker()
    one(teacher)
    asked = sorted(r.messages[-1]["content"] for r in teacher.requests if teacher.kind(r) != "draft")
    model = ScriptedModel(
        ["1. What is 12 + 30?\n2. What is 42 + 7?", "It is 42.", "It is 49.", "\\boxed{49}"]
    )
    verify_answer(model, PROBLEM.problem, "12 + 30 = 42\n42 + 7 = 50\n\\boxed{50}")
    assert sorted(prompt[-1]["content"] for prompt in model.prompts) == asked


def test_all_drafts_advance_together() -> None:
    teacher = Checker()
    problems = [replace(PROBLEM, id=str(n)) for n in range(5)]
    found = run(teacher, problems, samples=3)
    assert [[candidate.seed for candidate in candidates] for candidates in found] == [[7, 8, 9]] * 5
    assert [len(batch) for batch in teacher.batches] == [15, 15, 30, 15]
    assert len({r.seed for batch in teacher.batches[1:] for r in batch}) == 60
    assert found == [run(Checker(), [problem], samples=3)[0] for problem in problems]


def test_more_problems_than_run_at_once() -> None:
    problems = [replace(PROBLEM, id=str(n)) for n in range(130)]
    found = run(Checker(), problems)
    assert all(candidates[0].text == "\\boxed{49}" for candidates in found)


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        ({"plan": "All is well."}, "no-questions"),
        ({"plan": ""}, "no-questions"),
        ({"plan": Written("", "What is 1 + 1?", "length", 64)}, "unfinished"),
        ({"plan": Written("", "", "error", 0, "no connection")}, "unfinished"),
        ({"revision": "I do not know."}, "no-answer"),
        ({"revision": ""}, "no-answer"),
        ({"revision": Written("", "\\boxed{4", "length", 64)}, "unfinished"),
    ],
)
def test_a_draft_that_could_not_be_checked_is_kept(said: dict[str, Any], outcome: str) -> None:
    candidate = one(Checker(**said))
    assert candidate.text == "\\boxed{50}"
    assert candidate.notes["verification"]["outcome"] == outcome
    assert candidate.verified == ()
    if isinstance(said.get("plan"), Written):
        assert candidate.notes["verification"].get("error", "") == said["plan"].error


def test_a_cut_check_counts_for_none() -> None:
    candidate = one(Checker(check=Written("", "It is 4", "length", 64), revision="\\boxed{49}"))
    assert [check["answer"] for check in candidate.notes["verification"]["checks"]] == ["", ""]


@pytest.mark.parametrize(
    "text", ["?\n" * 20_000, "What is \x00\ud8001 + 1?\u2028" * 3_000, "a" * 3_000_000, "?" * 400]
)
def test_hostile_questions(text: str) -> None:
    teacher = Checker(plan=text, check=text[:2000], revision=text)
    candidate = one(teacher, questions=3)
    assert len(teacher.requests) <= 6
    assert candidate.text == "\\boxed{50}" or candidate.notes["verification"]["outcome"] == "revised"
    to_line(check(candidate, PROBLEM, "checker"))


def test_unusable_drafts_are_left_as_they_are() -> None:
    teacher = Checker(draft=0, **{})
    teacher._said["draft"] = Written("12 +", "", "length", 64)
    candidate = one(teacher)
    assert (candidate.finish_reason, candidate.verified) == ("length", ())
    assert "verification" not in candidate.notes
    how = candidate.sampling["verification"]
    assert (how["questions"], how["max_tokens"], how["temperature"]) == (4, 64, 0.7)


def test_a_tree_can_be_verified() -> None:
    elicit = verified(tree_of_thoughts(sampling=SAMPLING), sampling=SAMPLING)

    class Both(Adder):
        def _solve(self, request: Request) -> Written:
            if re.search("Write one question|Checks:", request.messages[-1]["content"]):
                return Written("", "What is 12 + 30? 49", "stop", 1)
            return Written("", "42", "stop", 1) if "Answer only" in str(request) else super()._solve(request)

    ((index, (candidate,)),) = elicit([PROBLEM], Both(0))
    assert (index, candidate.notes["verification"]["outcome"]) == (0, "confirmed")
    assert candidate.notes["nodes"] == 2


def test_a_problem_without_drafts_comes_back() -> None:
    def nothing(problems: Sequence[Problem], teacher: Teacher) -> Iterator[tuple[int, list[Candidate]]]:
        yield from ((index, []) for index in range(len(problems)))

    elicit: Elicit = verified(nothing, sampling=SAMPLING)
    assert list(elicit([PROBLEM], Checker())) == [(0, [])]


@pytest.mark.parametrize("questions", [0, 33])
def test_bad_options(questions: int) -> None:
    with pytest.raises(InputError, match="questions were asked for"):
        verified(self_consistency(samples=1, sampling=SAMPLING), sampling=SAMPLING, questions=questions)
