"""Tree of thoughts: against exhaustive search, with teachers that err on purpose."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from edge_distill.traces.elicitation import Candidate
from edge_distill.traces.few_shot import Exemplar, ExemplarPool
from edge_distill.traces.refutation import refutation_of
from edge_distill.traces.steps import annotate
from edge_distill.traces.teachers.solver import SolverTeacher
from edge_distill.traces.teachers.teacher import Request, Sampling, Teacher, Written
from edge_distill.traces.trace import Trace, parse_line, to_line
from edge_distill.traces.tree import tree_of_thoughts
from edge_distill.traces.tree_nodes import normalized
from edge_distill_bench.problem import Problem
from edge_distill_bench.tasks import load_problems
from edge_distill_runtime.errors import InputError
from edge_distill_runtime.reasoning.answers import parse_answer
from tests.traces.adders import STEP, Adder, Scripted, addition

SAMPLING = Sampling(temperature=0.7, max_tokens=64)
SUMS = [addition(3, 5, 9), addition(20, 4, 7, 11, 30), addition(1, 2)]


def grow(teacher: Teacher, problems: Sequence[Problem] = SUMS, **options: Any) -> list[Candidate]:
    """The candidates in the order of the problems."""
    elicit = tree_of_thoughts(**{"sampling": SAMPLING, "branching": 6, **options})
    found = dict(elicit(problems, teacher))
    assert sorted(found) == list(range(len(problems)))
    assert all(len(candidates) == 1 for candidates in found.values())
    return [found[index][0] for index in range(len(problems))]


def one(teacher: Teacher, problem: Problem = SUMS[0], **options: Any) -> Candidate:
    return grow(teacher, [problem], **options)[0]


@pytest.mark.parametrize("form", ["markers", "plain", "prompted"])
@pytest.mark.parametrize("search", ["breadth", "best"])
def test_finds_the_way_past_mistakes(search: str, form: str) -> None:
    for problem, candidate in zip(SUMS, grow(Adder(0.5, form), search=search), strict=True):
        assert candidate.finish_reason == "stop"
        assert parse_answer(candidate.text).display == problem.answer
        steps = annotate(candidate.reasoning)
        assert len(steps) == problem.problem.count(",")
        assert {step.verdict for step in steps} == {"verified"}
        assert candidate.messages == (
            {"role": "user", "content": problem.problem},
            {"role": "assistant", "content": candidate.text, "reasoning_content": candidate.reasoning},
        )
        assert candidate.notes["value"] == 1.0
    assert candidate.sampling["elicitation"] == "tree"
    assert candidate.sampling["search"] == search


def test_the_whole_answer_is_asked_for_when_a_line_does_not_hold_it() -> None:
    assert one(Adder(0)).text == "The sum is\n\\boxed{17}"


@pytest.mark.parametrize("search", ["breadth", "best"])
def test_dead_ends_are_sampled_again(search: str) -> None:
    def reasons(nodes: int) -> list[str]:
        options = {"branching": 1, "nodes": nodes, "search": search}
        return [one(Adder(0.5), SUMS[1], **options, seed=seed).finish_reason for seed in range(20)]

    assert reasons(4).count("length") > 10  # a single mistake in four steps is one too many
    assert reasons(40) == ["stop"] * 20


# -- against exhaustive search --------------------------------------------------------------------------------


class Maze:
    """Three ways on from everywhere, three levels deep; a score for every path that its hash gives."""

    problem = Problem("maze", "maze", "Find the way.", "1")
    name = "maze"

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.teacher = Scripted(self._write)

    def __call__(self, problem: str, steps: Sequence[str]) -> float:
        digest = hashlib.sha256(f"{self._seed} {'/'.join(steps)}".encode()).digest()
        return (digest[0] % 10) / 10  # ties, and now and then a dead end

    def _write(self, request: Request) -> Written:
        steps = request.reasoning.splitlines()
        if len(steps) == 3:
            return Written("", f"\\boxed{{{' '.join(steps)}}}", "stop", 1)
        way = random.Random(request.seed).choice("abc")
        return Written(f"turn {way} at {len(steps)}\nand so on", "", "stop", 1)

    def best_value(self) -> float:
        return max(value for _, value in self._leaves(()))

    def _leaves(self, steps: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
        if len(steps) == 3:
            yield steps, self.value(steps)
            return
        for way in "abc":
            yield from self._leaves((*steps, f"turn {way} at {len(steps)}"))

    def value(self, steps: Sequence[str]) -> float:
        return min([1.0, *(self("", steps[: i + 1]) for i in range(len(steps)))])


@pytest.mark.parametrize("search", ["breadth", "best"])
@pytest.mark.parametrize("seed", range(12))
def test_as_good_as_exhaustive_search(seed: int, search: str) -> None:
    maze = Maze(seed)
    options: dict[str, Any] = {"branching": 24, "beam": 27, "nodes": 1_000, "scorer": maze, "search": search}
    candidate = one(maze.teacher, maze.problem, **options)
    best = maze.best_value()
    assert candidate.notes["value"] == best
    assert (candidate.finish_reason == "stop") == (best > 0)
    if best:
        assert maze.value(candidate.reasoning.splitlines()) == best


@pytest.mark.parametrize("seed", range(12))
def test_best_first_expands_nothing_that_is_worse_than_the_result(seed: int) -> None:
    maze = Maze(seed)
    candidate = one(maze.teacher, maze.problem, search="best", branching=24, nodes=1_000, scorer=maze)
    expanded = {request.reasoning for request in maze.teacher.requests}
    if candidate.finish_reason == "stop":
        assert candidate.notes["expanded"] == len(expanded)
        assert all(maze.value(path.splitlines()) >= candidate.notes["value"] for path in expanded)


def test_a_narrow_beam_keeps_the_best() -> None:
    maze = Maze(3)
    one(maze.teacher, maze.problem, beam=1, branching=24, nodes=10_000, scorer=maze)
    paths = sorted({tuple(request.reasoning.splitlines()) for request in maze.teacher.requests}, key=len)
    for before, after in pairwise(paths):
        assert after[:-1] == before
        assert maze.value(after) == max(
            maze.value((*before, f"turn {way} at {len(before)}")) for way in "abc"
        )


# -- nodes and limits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", ["breadth", "best"])
def test_without_mistakes_only_the_path_is_expanded(search: str) -> None:
    candidate = one(Adder(0), SUMS[1], search=search)
    # four steps, the answer behind the last; equal samples are one node
    assert {name: candidate.notes[name] for name in ("nodes", "expanded", "written", "pruned")} == {
        "nodes": 4,
        "expanded": 4,
        "written": 24,
        "pruned": 0,
    }


@pytest.mark.parametrize("search", ["breadth", "best"])
def test_of_equals_the_complete_goes_first(search: str) -> None:
    def write(request: Request) -> Written:
        ends = random.Random(request.seed).random() < 0.5
        return (
            Written("", "\\boxed{1}", "stop", 1) if ends else Written("1 + 1 = 2\n1 + 2 = 3", "", "stop", 1)
        )

    candidate = one(Scripted(write), branching=12, search=search)
    assert (candidate.text, candidate.notes["expanded"], candidate.notes["nodes"]) == ("\\boxed{1}", 1, 2)


def test_a_dead_end_is_one_node_however_often_it_is_sampled() -> None:
    candidate = one(Scripted(lambda _: Written("1 + 1 = 3\nso", "", "stop", 1)), nodes=20)
    assert candidate.finish_reason == "length"
    assert {name: candidate.notes[name] for name in ("nodes", "expanded", "written", "pruned")} == {
        "nodes": 1,
        "expanded": 4,
        "written": 20,
        "pruned": 1,
    }


def test_spelling_makes_no_new_node() -> None:
    assert normalized("Step 2: 3+5 = 8.") == normalized("- 3 +  5=8") == normalized("2) 3 + 5 = 8") == "3+5=8"
    assert normalized("3 + 5 = 8") != normalized("35 = 8")
    spellings = ["3 + 5 = 8", "3+5=8.", "Step 1: 3 + 5 = 8", "  3 +  5 = 8"]

    def write(request: Request) -> Written:
        if request.reasoning:
            return Written("", "\\boxed{8}", "stop", 1)
        return Written(random.Random(request.seed).choice(spellings), "", "stop", 1)

    teacher = Scripted(write)
    candidate = one(teacher, branching=12)
    assert candidate.notes["nodes"] == 2
    assert normalized(candidate.reasoning) == "3+5=8"


def test_a_step_that_goes_in_circles_is_no_step() -> None:
    teacher = Scripted(lambda request: Written("3 + 5 = 8\nagain", "", "stop", 1))
    candidate = one(teacher, search="best")
    assert (candidate.finish_reason, candidate.notes["nodes"]) == ("length", 1)


@pytest.mark.parametrize("search", ["breadth", "best"])
@pytest.mark.parametrize("nodes", [1, 7, 20])
def test_the_budget_holds(nodes: int, search: str) -> None:
    counter = iter(range(10**6))
    teacher = Scripted(lambda request: Written(f"Here is a {next(counter)}\nmore", "", "stop", 1))
    candidate = one(teacher, nodes=nodes, search=search, depth=200)
    assert len(teacher.requests) == candidate.notes["written"] == candidate.notes["nodes"] == nodes
    assert candidate.finish_reason == "length"
    assert candidate.text == ""
    assert candidate.reasoning.startswith("Here is a ")


def test_the_depth_holds() -> None:
    counter = iter(range(10**6))
    teacher = Scripted(lambda request: Written(f"Here is a {next(counter)}\nmore", "", "stop", 1))
    candidate = one(teacher, depth=3, nodes=1000)
    assert candidate.finish_reason == "length"
    assert len(candidate.reasoning.splitlines()) == 3


@pytest.mark.parametrize("search", ["breadth", "best"])
def test_all_problems_advance_together(search: str) -> None:
    problems = [addition(n, n + 1, n + 2) for n in range(40)]
    teacher = Adder(0)
    grow(teacher, problems, search=search)
    # two steps, and the answer's text; the problems are all in each batch
    assert [len(batch) for batch in teacher.batches] == [240, 240, 40]


@pytest.mark.parametrize("search", ["breadth", "best"])
def test_the_same_alone_together_and_again(search: str) -> None:
    problems = [addition(n, n + 1, n + 2, 2 * n) for n in range(9)]
    together = grow(Adder(0.5), problems, search=search, refutation=True, seed=4)
    assert together == grow(Adder(0.5), problems, search=search, refutation=True, seed=4)
    assert together == [
        one(Adder(0.5), problem, search=search, refutation=True, seed=4) for problem in problems
    ]
    assert together != grow(Adder(0.5), problems, search=search, refutation=True, seed=5)


def test_different_seeds_for_different_samples() -> None:
    teacher = Adder(0.5)
    grow(teacher)
    asked = [(request.messages, request.reasoning, request.seed) for request in teacher.requests]
    assert len({seed for *_, seed in asked}) == len(asked)
    assert all(0 <= seed < 2**31 for *_, seed in asked)


def test_exemplars_stand_before_the_problem() -> None:
    pool = ExemplarPool((Exemplar("e", "Add 1, 1.", "1 + 1 = 2", "2"),), 1)
    for form in ("markers", "prompted"):
        teacher = Adder(0, form)
        candidate = one(teacher, exemplars=pool)
        assert all(request.messages[0]["content"] == "Add 1, 1." for request in teacher.requests)
        assert len(candidate.messages) == 2
        assert candidate.sampling["exemplars"] == ["e"]


# -- scores ---------------------------------------------------------------------------------------------------


def test_the_teacher_rates_its_own_steps() -> None:
    teacher = Adder(0.5)
    candidate = one(teacher, SUMS[1], scorer="teacher", branching=8)
    assert parse_answer(candidate.text).display == "72"
    assert candidate.notes["value"] == 0.9
    rated = [r.messages[-1]["content"] for r in teacher.requests if "Write only a number" in str(r.messages)]
    assert rated
    assert not any(
        a + b != c for prompt in rated for a, b, c in _sums(prompt)
    )  # what is refuted is not asked


def _sums(prompt: str) -> list[tuple[int, ...]]:
    return [tuple(map(int, found)) for found in STEP.findall(prompt)]


@pytest.mark.parametrize(
    ("rating", "value"),
    [("8", 0.8), ("7/10", 0.7), ("I say 6.5.", 0.65), ("10", 1.0), ("99", 1.0), ("fine", 0.5), ("", 0.5)],
)
def test_ratings(rating: str, value: float) -> None:
    def write(request: Request) -> Written:
        if "Write only a number" in request.messages[-1]["content"]:
            return Written("", rating, "stop", 1)
        return Written("", "\\boxed{1}", "stop", 1) if request.reasoning else Written("So.", "", "stop", 1)

    assert one(Scripted(write), scorer="teacher").notes["value"] == value


def test_a_cut_rating_counts_for_none() -> None:
    def write(request: Request) -> Written:
        if "Write only a number" in request.messages[-1]["content"]:
            return Written("", "1", "length", 1)
        return Written("", "\\boxed{1}", "stop", 1) if request.reasoning else Written("So.", "", "stop", 1)

    assert one(Scripted(write), scorer="teacher").notes["value"] == 0.5


@pytest.mark.parametrize("value", [float("nan"), -0.1, 1.5, float("inf")])
def test_a_score_must_be_one(value: float) -> None:
    with pytest.raises(InputError, match="a scorer gave"):
        one(Adder(0), scorer=lambda problem, steps: value)


def test_what_can_be_checked_goes_first() -> None:
    def write(request: Request) -> Written:
        if request.reasoning:
            return Written("", "\\boxed{8}", "stop", 1)
        return Written(random.Random(request.seed).choice(["Let me see", "3 + 5 = 8"]), "", "stop", 1)

    candidate = one(Scripted(write), branching=12)
    assert (candidate.reasoning, candidate.notes["nodes"]) == ("3 + 5 = 8", 4)


def test_more_votes_break_a_tie() -> None:
    def write(request: Request) -> Written:
        if request.reasoning:
            return Written("", "\\boxed{8}", "stop", 1)
        often = random.Random(request.seed).random() < 0.8
        return Written("It is this" if often else "It is that", "", "stop", 1)

    for seed in range(5):
        assert one(Scripted(write), branching=20, beam=1, seed=seed).reasoning == "It is this"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"branching": 0}, "bad-branching"),
        ({"beam": 65}, "bad-beam"),
        ({"nodes": 10**9}, "bad-nodes"),
        ({"depth": 0}, "bad-depth"),
        ({"search": "depth"}, "bad-search"),
        ({"scorer": "oracle"}, "bad-scorer"),
        ({"sampling": Sampling(temperature=0)}, "greedy-branches"),
    ],
)
def test_bad_options(options: dict[str, Any], code: str) -> None:
    with pytest.raises(InputError) as raised:
        tree_of_thoughts(**{"sampling": SAMPLING, **options})
    assert raised.value.code == code


def test_greedy_with_one_branch() -> None:
    assert parse_answer(one(Adder(0), branching=1, sampling=Sampling(temperature=0)).text).display == "17"


# -- the trace ------------------------------------------------------------------------------------------------


def test_a_refuted_branch_and_its_refutation() -> None:
    kept = 0
    for seed in range(10):
        with_branch = one(Adder(0.5), SUMS[1], refutation=True, seed=seed)
        without = one(Adder(0.5), SUMS[1], seed=seed)
        assert "refutation" not in without.notes
        steps = annotate(with_branch.reasoning)
        wrong = [i for i, step in enumerate(steps) if step.verdict == "refuted"]
        if "refutation" not in with_branch.notes:
            assert with_branch.reasoning == without.reasoning
            continue
        kept += 1
        (at,) = wrong
        assert at == with_branch.notes["refutation"]
        assert steps[at].text.count(" = ") == 1
        assert steps[at + 1].text == f"Wait, that is wrong: {steps[at].text.replace('=', '!=')}."
        assert (steps[at + 1].role, steps[at + 1].verdict) == ("error", "verified")
        lines = with_branch.reasoning.splitlines()
        assert [*lines[:at], *lines[at + 2 :]] == without.reasoning.splitlines()
        assert with_branch.messages[-1]["reasoning_content"] == with_branch.reasoning
    assert kept >= 8


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("12 * 4 = 46", "12 * 4 != 46"),
        ("So he has 12 * 4 = 46 buns in total.", "12 * 4 != 46 buns in total"),
        ("3 + 4 = 7 and then 12×4=46.", "12 * 4 != 46"),
        ("x = 12*4=46", "12*4!=46"),
        ("The tip is ($12 + 4) * 2 = $30", "($12 + 4) * 2 != $30"),
        ("Of 7 trays 4 are left: gcd(12, 18) = 5", "gcd(12, 18) != 5"),
        ("1 hour = 50 minutes", "1 hour != 50 minutes"),
    ],
)
def test_refutations(step: str, said: str) -> None:
    assert refutation_of(step) == f"Wait, that is wrong: {said}."


@pytest.mark.parametrize("step", ["12 * 4 = 48", "10 < 3", "2x + 3 = 11 so x = 5", "He has 3.", "", "= = ="])
def test_what_cannot_be_refuted_in_words_is_not(step: str) -> None:
    assert refutation_of(step) is None


def test_what_a_scorer_prunes_is_not_called_wrong() -> None:
    def write(request: Request) -> Written:
        if request.reasoning:
            return Written("", "\\boxed{8}", "stop", 1)
        return Written(random.Random(request.seed).choice(["4 + 4 = 8", "3 + 5 = 8"]), "", "stop", 1)

    candidate = one(
        Scripted(write), branching=12, refutation=True, scorer=lambda _, steps: float(steps[0][0] == "3")
    )
    assert candidate.notes["pruned"] == 1
    assert candidate.reasoning == "3 + 5 = 8"


def test_a_trace_of_it_can_be_stored() -> None:
    candidate = one(Adder(0.5), SUMS[1], refutation=True)
    trace = Trace(
        "addition", SUMS[1].problem, candidate.messages, candidate.reasoning, "72", annotate(candidate.reasoning),
        teacher="adder", sampling=candidate.sampling, seed=candidate.seed,
    )  # fmt: skip
    assert parse_line(to_line(trace)) == trace


def test_a_solver_has_one_way_only() -> None:
    problem = load_problems("task:chain_sum", split="train", count=1)[0]
    candidate = one(SolverTeacher(), problem)
    assert candidate.text == f"\\boxed{{{problem.answer}}}"
    assert {step.verdict for step in annotate(candidate.reasoning)} == {"verified"}


def test_a_cut_answer_is_asked_for_again() -> None:
    def write(request: Request) -> Written:
        if not request.reasoning:
            return Written("40 + 2 = 42", "The answer is 4", "length", 64)
        return Written("", "The answer is 42.", "stop", 5)

    candidate = one(Scripted(write))
    assert (candidate.reasoning, candidate.text) == ("40 + 2 = 42", "The answer is 42.")


def test_an_answer_in_the_middle_of_a_reasoning_is_a_step() -> None:
    lines = ["The answer to the first part is 4.", "4 + 38 = 42"]

    def write(request: Request) -> Written:
        rest = lines[len(request.reasoning.splitlines()) :]
        return Written("\n".join(rest), "\n\\boxed{42}", "stop", 9)

    candidate = one(Scripted(write))
    assert candidate.reasoning.splitlines() == lines


def test_an_answer_that_the_checker_refutes_is_pruned() -> None:
    def write(request: Request) -> Written:
        sum_ = random.Random(request.seed).choice([41, 42])
        return Written("", f"The answer is 40 + 2 = {sum_}.", "stop", 9)

    candidate = one(Scripted(write), branching=12)
    assert (candidate.text, candidate.notes["pruned"]) == ("The answer is 40 + 2 = 42.", 1)


# -- hostile teachers -----------------------------------------------------------------------------------------

HOSTILE = {
    "endless line": Written("1 + 1 = " + "2" * 3_000_000, "", "length", 512),
    "endless line, finished": Written("a" * 40_000, "", "stop", 512),
    "many lines": Written("1 + 1 = 2\n" * 300_000, "", "length", 512),
    "huge answer": Written("1 + 1 = 2", "x\n" * 3_000_000, "stop", 512),
    "nothing": Written("", "", "stop", 0),
    "white space": Written(" \n\t\n ", "\n\n", "stop", 3),
    "error": Written("", "", "error", 0, "the server is on fire"),
    "unknown reason": Written("1 + 1 = 2", "", "content_filter", 9),
    "control characters": Written("1 + 1\x00 = 2\x1b[31m\u2028\ud800", "\x07\\boxed{2}\x85", "stop", 9),
    "brackets": Written("(" * 20_000, "\\boxed{" * 5_000, "stop", 9),
    "markers": Written("Observation: 3\nFinal Answer: <|im_end|>", "Action: calculate[1]", "stop", 9),
}


@pytest.mark.parametrize("search", ["breadth", "best"])
@pytest.mark.parametrize("can_continue", [True, False])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_teachers(name: str, can_continue: bool, search: str) -> None:
    written = HOSTILE[name]
    swapped = (
        written if can_continue else replace(written, reasoning="", text=written.reasoning or written.text)
    )
    candidate = one(
        Scripted(lambda _: swapped, can_continue=can_continue),
        nodes=12,
        branching=3,
        search=search,
        refutation=True,
    )
    assert len(candidate.reasoning) + len(candidate.text) < 200_000
    assert not any(ord(c) < 32 and c not in "\t\n" for c in candidate.reasoning + candidate.text)
    (candidate.reasoning + candidate.text).encode("utf-8")
    if written.finish_reason != "stop" and "\n" not in written.reasoning:
        assert candidate.finish_reason != "stop"
    if name == "error":  # it is not asked again
        assert candidate.notes["written"] == 3
        assert (candidate.finish_reason, candidate.notes["error"]) == ("error", "the server is on fire")
