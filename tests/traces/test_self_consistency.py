"""Votes and the choice among samples, by hand."""

from __future__ import annotations

from edge_distill.traces.self_consistency import choose, self_consistency, with_votes
from edge_distill.traces.steps import annotate
from edge_distill.traces.teachers.teacher import Sampling
from edge_distill.traces.trace import Trace, make_trace
from tests.traces.small_teachers import ErringTeacher, sums


def sample(answer: str, reasoning: str = "", *, cut_off: bool = False) -> Trace:
    return make_trace(
        "p",
        reasoning,
        answer,
        steps=annotate(reasoning),
        gold="12",
        correct=None if cut_off else answer in ("12", "12.0"),
        notes={"finish_reason": "length"} if cut_off else {},
    )


def test_votes_are_counted_over_normalized_answers() -> None:
    traces = with_votes([sample("12"), sample("12.0"), sample("13"), sample("$12$"), sample("")])
    assert [trace.vote_share for trace in traces] == [0.6, 0.6, 0.2, 0.6, 0.0]


def test_what_was_cut_off_votes_for_none_and_counts() -> None:
    traces = with_votes([sample("12"), sample("12", cut_off=True)])
    assert [trace.vote_share for trace in traces] == [0.5, None]
    assert with_votes([]) == []


def test_the_most_coherent_right_sample_is_chosen() -> None:
    wrong = sample("13", "3 * 4 = 12")
    refuted = sample("12", "3 * 4 = 11\n3 * 4 = 12")
    vague = sample("12", "I know it.\n3 * 4 = 12")
    long = sample("12", "3 * 4 = 12\n12 + 0 = 12")
    short = sample("12", "3 * 4 = 12")
    bare = sample("12", "")
    for expected, among in (
        (short, [wrong, refuted, vague, long, short, bare]),
        (long, [wrong, refuted, vague, long, bare]),
        (vague, [wrong, refuted, vague, bare]),
        (bare, [wrong, refuted, bare]),
        (refuted, [refuted, wrong]),
        (None, [wrong, sample("12", "3 * 4 = 12", cut_off=True)]),
        (None, []),
    ):
        assert choose(among) is expected


def test_samples_have_seeds_of_their_own_whatever_the_order_of_the_answers() -> None:
    teacher = ErringTeacher()
    elicit = self_consistency(samples=3, sampling=Sampling(temperature=0.5, max_tokens=99), seed=7)
    found = dict(elicit(sums(5), teacher))
    assert sorted(found) == [0, 1, 2, 3, 4]
    for index, problem in enumerate(sums(5)):
        assert [candidate.seed for candidate in found[index]] == [7, 8, 9]
        for candidate in found[index]:
            assert candidate.messages[0] == {"role": "user", "content": problem.problem}
            assert candidate.sampling == {
                "elicitation": "chain",
                "temperature": 0.5,
                "top_p": 0.95,
                "max_tokens": 99,
                "exemplars": [],
            }
    assert len(teacher.requests) == 15
