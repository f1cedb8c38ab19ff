"""Self-consistency on scripted votes and on the tiny model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edge_distill_runtime import AnswerFormat, InputError, Model
from edge_distill_runtime.generation.decoding import TokenLogprob
from edge_distill_runtime.generation.result import Generation
from edge_distill_runtime.reasoning.answers import parse_answer
from edge_distill_runtime.reasoning.reason import _Poll

PROBLEM = "Anna has 7 apples and eats 3. How many are left?"


def said(answer: str, logprob: float = -0.5, tokens: int = 10) -> Generation:
    entries = (TokenLogprob(1, b"x", logprob),) * tokens
    return Generation(answer, "", answer, (1,) * tokens, 0, "stop", 5, 0, 0.1, 0.1, entries)


def poll(*answers: str, samples: int = 8, stop_when: float | None = 0.95) -> _Poll:
    result = _Poll(samples, stop_when)
    for answer in answers:
        result.add(said(answer), parse_answer(answer))
    return result


@pytest.mark.parametrize(
    ("answers", "decided", "wave"),
    [
        # unanimous: 1 - 1/2^(n + 1) passes 0.95 at 4
        ((), False, 4),
        (("4",), False, 3),
        (("4", "4", "4"), False, 1),
        (("4", "4", "4", "4"), True, None),
        (("4", "4", "4", "5"), False, None),
        (("nothing", "?"), False, None),
    ],
)
def test_waves_and_decisions(answers: tuple[str, ...], decided: bool, wave: int | None) -> None:
    state = poll(*answers)
    assert state.is_decided is decided
    if wave is not None:
        assert state.next_wave() == wave
    assert 1 <= state.next_wave() <= 8 - len(answers)


def test_without_early_stop_there_is_one_wave() -> None:
    state = poll(stop_when=None)
    assert state.next_wave() == 8
    assert not poll(*["4"] * 7, stop_when=None).is_decided


def test_result_by_hand() -> None:
    state = poll("The answer is 4.", r"\boxed{4}", "4.0", "I say 5", "no idea", samples=10)
    state.others.append(said("", tokens=4))
    result = state.result()
    assert (result.answer, result.stopped_early) == ("4", True)
    assert result.confidence == pytest.approx(3 / 5)
    assert result.votes == pytest.approx({"4": 3 / 5, "5": 1 / 5, "unparsed": 1 / 5})
    assert result.tokens == 5 * 10 + 4
    # four were never begun, and the cancelled one lacks six tokens
    assert result.tokens_saved == 4 * 10 + 6
    assert len(result.samples) == 6


def test_votes_weigh_their_likelihood() -> None:
    state = _Poll(3, None)
    for answer, logprob in (("4", -3.0), ("4", -3.0), ("5", -0.1)):
        state.add(said(answer, logprob), parse_answer(answer))
    assert state.result().answer == "5"
    assert state.result().reasoning == "5"


def test_choices_need_no_marker(model: Model) -> None:
    choices = AnswerFormat.choices("Paris", "Rome")
    result = model.reason(PROBLEM, samples=3, stop_when=None, seed=1, answer_format=choices)
    assert set(result.votes) <= {"Paris", "Rome"}
    assert result.answer in ("Paris", "Rome")


def test_no_answer_at_all() -> None:
    result = poll("dunno", "", samples=2).result()
    assert (result.answer, result.confidence, result.votes) == ("", 0.0, {"unparsed": 1.0})


def test_on_the_model(model: Model) -> None:
    result = model.reason(PROBLEM, samples=6, stop_when=None, max_tokens=20, seed=3)
    assert len(result.samples) == 6
    assert result.tokens == sum(len(sample.tokens) for sample in result.samples)
    assert not result.stopped_early
    assert sum(result.votes.values()) == pytest.approx(1)
    assert len({sample.tokens for sample in result.samples}) > 1  # not greedy
    again = model.reason(PROBLEM, samples=6, stop_when=None, max_tokens=20, seed=3)
    assert (again.answer, again.votes) == (result.answer, result.votes)
    assert model.engine.load == (0, 0)


def test_agreement_stops_early(model: Model) -> None:
    """Greedy samples all agree, whatever they say."""
    before = model.generate(PROBLEM, max_tokens=20)
    result = model.reason(PROBLEM, samples=12, temperature=0.0, max_tokens=20)
    if result.answer:
        assert (len(result.samples), result.tokens_saved) == (4, 8 * len(before.tokens))
    else:
        assert len(result.samples) == 12


def test_a_deadline_ends_it(model: Model) -> None:
    result = model.reason(PROBLEM, samples=4, deadline=1e-9)
    assert (result.answer, result.tokens) == ("", 0)
    assert model.engine.load == (0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "0 samples"),
        ({"samples": 10_000, "stop_when": None}, "10000 samples"),
        ({"stop_when": 0.5}, "stop_when is 0.5"),
        ({"stop_when": 1.0}, "stop_when is 1.0"),
    ],
)
def test_bad_requests(model: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.reason(PROBLEM, **options)


def test_taken_from_the_manifest(model: Model) -> None:
    """A manifest that recommends sampling is followed, one that is greedy gets a temperature."""
    warm = replace(model.manifest, sampling=replace(model.manifest.sampling, temperature=1.5))
    other = Model(warm, model.backend, model.tokenizer, model.detokenizer)
    options: dict[str, Any] = {"samples": 2, "stop_when": None, "max_tokens": 12, "seed": 1}
    hot = other.reason(PROBLEM, **options)
    explicit = model.reason(PROBLEM, temperature=1.5, **options)
    assert [s.tokens for s in hot.samples] == [s.tokens for s in explicit.samples]
