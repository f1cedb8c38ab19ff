"""Choosing among samples by scores, worked by hand; and through the verb's files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from edge_distill.traces.best_of import measure_selection, select_answers
from edge_distill.traces.selection import best_of_n, open_scorer, weighted_vote
from edge_distill.traces.self_consistency import choose, with_votes
from edge_distill.traces.stats import summarize
from edge_distill.traces.steps import annotate
from edge_distill.traces.teachers.teacher import Request, Written
from edge_distill.traces.trace import Trace, make_trace, read_traces
from edge_distill.traces.ways import Way
from edge_distill.traces.writing import Part, write_traces
from edge_distill_runtime.errors import InputError
from tests.traces.adders import Scripted, addition
from tests.traces.small_teachers import ErringTeacher, sums


class CheckerOfAnswers:
    """Scores what it is told to by the answer; a reward model's interface without one."""

    name = "prm:00000000"

    def __init__(self, scores: dict[str, float]) -> None:
        self.scores, self.scored = scores, 0

    def __call__(self, problem: str, steps: Sequence[str]) -> float:
        return 1.0

    def score_traces(self, traces: Sequence[Trace]) -> list[float]:
        self.scored += len(traces)
        return [self.scores.get(trace.answer, 0.5) for trace in traces]


def sample(
    answer: str, *, problem: str = "p", seed: int = 0, cut_off: bool = False, score: float = -1
) -> Trace:
    notes = {"finish_reason": "length"} if cut_off else {}
    scored = {"score": score} if score >= 0 else {}
    correct = None if cut_off else answer in ("12", "12.0")
    return make_trace(problem, "a", answer, correct=correct, seed=seed, notes={**notes, **scored})


def test_best_of_n_takes_the_highest_and_the_first_of_equals() -> None:
    assert best_of_n("abc", [0.2, 0.9, 0.9]) == "b"
    assert best_of_n([7], [0.0]) == 7
    with pytest.raises(ValueError, match="shorter"):
        best_of_n("abc", [1.0])
    with pytest.raises(ValueError, match="empty"):
        best_of_n([], [])


@pytest.mark.parametrize(
    ("answers", "scores", "expected"),
    [
        (["12", "13", "13"], [0.9, 0.4, 0.4], "12"),  # 0.9 against 0.8
        (["12", "13", "13"], [0.9, 0.5, 0.5], "13"),  # 0.9 against 1.0
        (["12", "13", "12.0"], [0.3, 0.5, 0.3], "12"),  # equal answers are one
        (["12", "13"], [0.5, 0.5], "12"),
        (["12", "", ""], [0.1, 0.9, 0.9], "12"),  # what is no answer never wins
        (["", ""], [0.9, 0.9], None),
        (["12", "13"], [0.0, 0.0], None),
        ([], [], None),
    ],
)
def test_weighted_votes(answers: list[str], scores: list[float], expected: str | None) -> None:
    found = weighted_vote(answers, scores)
    assert (found and found.display) == expected


@pytest.mark.parametrize("score", [-0.1, float("nan"), float("inf")])
def test_scores_that_are_none(score: float) -> None:
    with pytest.raises(InputError, match="weighs"):
        weighted_vote(["12"], [score])


def test_shares_of_weighted_votes() -> None:
    samples = [
        sample("12", score=0.9),
        sample("13", score=0.3),
        sample("13", score=0.3),
        sample("", score=0.5),
    ]
    shares = [trace.vote_share for trace in with_votes(samples)]
    assert shares == pytest.approx([0.45, 0.3, 0.3, 0.0])
    assert [trace.vote_share for trace in with_votes([sample("12", score=0)])] == [0.0]


def test_the_best_right_sample_is_chosen_unless_the_checker_refutes_it() -> None:
    low, high = sample("12", seed=1, score=0.2), sample("12", seed=2, score=0.8)
    refuted = replace(sample("12", seed=3, score=0.99), steps=annotate("3 * 4 = 11"))
    wrong = sample("13", seed=4, score=1.0)
    assert choose([low, wrong, refuted, high]) is high
    assert choose([refuted, wrong]) is refuted


def test_each_way_of_choosing_by_hand() -> None:
    samples = [sample("13"), sample("13"), sample("12"), sample("12", cut_off=True)]
    scores = [0.3, 0.4, 0.8, 1.0]
    # first 13; 13 has two votes; the best of those that ended is 12; 12 has 0.8 against 0.7
    assert select_answers(samples, scores) == (False, False, True, True, True)
    assert select_answers(samples, [0.9, 0.4, 0.8, 1.0]) == (False, False, False, False, True)
    assert select_answers([sample("12", cut_off=True)] * 2, [1, 1]) == (False,) * 5


def test_accuracies_of_a_file(tmp_path: Path) -> None:
    """Three problems; the first one's third sample is from a second round, and does not count."""
    samples = [
        sample("13", problem="a", seed=1),
        sample("12", problem="a", seed=0),
        sample("12", problem="a", seed=2),
        sample("13", problem="b", seed=0),
        sample("12", problem="b", seed=1),
        sample("14", problem="c", seed=0),
        sample("13", problem="c", seed=1),
    ]
    scorer = CheckerOfAnswers({"12": 0.9, "13": 0.1, "14": 0.2})
    found = measure_selection(samples, scorer)
    assert (found.problems, found.samples, scorer.scored) == (3, 2, 6)
    values = [found.first, found.majority, found.best_of_n, found.weighted_vote, found.any_right]
    assert [estimate.value for estimate in values] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3])
    # Wilson's interval for 2 of 3, from its formula: (0.6667 + 0.6403 -+ ...) / 2.2805
    assert (found.best_of_n.low, found.best_of_n.high) == pytest.approx((0.2077, 0.9385), abs=1e-4)
    console = Console(record=True, width=100)
    found.render(console)
    assert "2 samples of each of 3 problems, by prm:00000000" in console.export_text()


def test_what_cannot_be_measured() -> None:
    scorer = CheckerOfAnswers({})
    with pytest.raises(InputError, match="only one sample"):
        measure_selection([sample("12")], scorer)
    with pytest.raises(InputError, match="no answer was compared"):
        measure_selection([make_trace("p", "", "1", seed=seed) for seed in range(2)], scorer)


def test_a_scorer_chooses_among_the_samples_of_a_run(tmp_path: Path) -> None:
    out = tmp_path / "traces.jsonl"
    scorer = CheckerOfAnswers({})

    def write(way: Way) -> list[Trace]:
        write_traces([Part("sums", sums(20), way)], ErringTeacher(failing=0), out, tries=1)
        return list(read_traces(tmp_path / "traces.samples.jsonl"))

    plain = write(Way(samples=3))
    scored = write(Way(samples=3, scorer=scorer))[len(plain) :]
    assert len(scored) == len(plain) == scorer.scored == 60
    assert {trace.sampling["scorer"] for trace in scored} == {"prm:00000000"}
    assert {trace.notes["score"] for trace in scored} == {0.5}
    assert all("scorer" not in trace.sampling and "score" not in trace.notes for trace in plain)


def test_a_scorer_of_a_tree_chooses_among_trees_too(tmp_path: Path) -> None:
    def answer(request: Request) -> Written:
        return Written("1 + 2 = 3", r"\boxed{3}", "stop", 5)

    out = tmp_path / "traces.jsonl"
    way = Way("tree", samples=2, scorer=CheckerOfAnswers({"3": 0.7}))
    write_traces([Part("additions", [addition(1, 2)], way)], Scripted(answer), out, tries=1)
    (trace,) = read_traces(out)
    assert (trace.sampling["elicitation"], trace.sampling["scorer"]) == ("tree", "prm:00000000")
    assert (trace.notes["score"], trace.notes["value"]) == (0.7, 1.0)


def test_only_trees_take_the_teacher_as_scorer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="grows no tree"):
        Way(scorer="teacher").check(ErringTeacher())
    Way(scorer=CheckerOfAnswers({})).check(ErringTeacher())


def test_the_verbs_option(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps({"problem": "p", "reasoning": "r", "answer": "1"}) + "\n")
    assert open_scorer("checker") == "checker"
    for spec in ("prm:", "nobody", "PRM:x"):
        with pytest.raises(InputError, match="there is no scorer"):
            open_scorer(spec)
    with pytest.raises(InputError, match="scores no whole sample"):
        summarize(path, scorer="checker")
