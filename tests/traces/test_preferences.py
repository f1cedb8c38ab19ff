"""Pairs and step labels: literal rows."""

from __future__ import annotations

from typing import Any

from edge_distill.traces.preferences import preference_pairs
from edge_distill.traces.step_labels import step_labels
from edge_distill.traces.steps import annotate
from edge_distill.traces.trace import Trace, make_trace


def sample(
    reasoning: str, answer: str, seed: int = 0, problem: str = "3 boxes of 4?", **fields: Any
) -> Trace:
    values = {"correct": answer == "12", **fields}
    return make_trace(
        problem, reasoning, answer, task="boxes", seed=seed, steps=annotate(reasoning), **values
    )


def test_right_against_wrong() -> None:
    samples = [
        sample("3 + 4 = 7", "7", 3),
        sample("3 * 4 = 12", "12", 1),
        sample("3 * 4 = 13", "7.0", 2),
        sample("cut", "", 4, correct=None),
        sample("3 + 3 = 6", "6", 5),
    ]
    first, second = preference_pairs(samples)
    assert first == {
        "prompt": [{"role": "user", "content": "3 boxes of 4?"}],
        "chosen": [
            {"role": "assistant", "content": r"\boxed{12}", "reasoning_content": "3 * 4 = 12"},
        ],
        "rejected": [
            {"role": "assistant", "content": r"\boxed{7.0}", "reasoning_content": "3 * 4 = 13"},
        ],
        "task": "boxes",
        "kind": "correct-wrong",
    }
    assert second["rejected"][0]["content"] == r"\boxed{6}"  # one of each wrong answer
    assert second["chosen"] == first["chosen"]


def test_short_against_long() -> None:
    short, middle = sample("3 * 4 = 12", "12", 1), sample("So 3 * 4 = 12", "12", 2)
    long = sample("First I think.\n3 * 4 = 12 boxes\nThat was all.", "12", 3)
    (pair,) = preference_pairs([long, middle, short])
    assert pair["kind"] == "short-long"
    assert pair["chosen"][0]["reasoning_content"] == "3 * 4 = 12"
    assert pair["rejected"][0]["reasoning_content"] == long.reasoning
    assert list(preference_pairs([middle, short])) == []  # about as long
    assert list(preference_pairs([sample("", "12"), middle])) == []  # no reasoning is not the better one


def test_a_short_one_with_a_wrong_step_is_not_preferred() -> None:
    refuted = sample("3 * 4 = 1", "12", 1)
    long = sample("First I think.\n3 * 4 = 12\nThat was all of it.", "12", 3)
    assert list(preference_pairs([refuted, long])) == []


def test_problems_are_not_mixed() -> None:
    samples = [sample("3 * 4 = 12", "12"), sample("3 + 4 = 7", "7", problem="3 and 4?")]
    assert list(preference_pairs(samples)) == []


def test_labels_end_at_the_first_mistake() -> None:
    samples = [
        sample("I multiply.\n3 * 4 = 12", "12", 1),
        sample("3 * 4 = 12\n12 + 1 = 12\nSo 12 * 2 = 24.", "24", 2),
        sample("3 + 4 = 7", "7", 3),  # wrong, but where?
        sample("3 * 4 = 12", "", 4, correct=None),  # cut off
        sample("I just know.", "12", 5),  # nothing to check
        sample("I multiply.\n3 * 4 = 12", "12", 6),  # once more
    ]
    assert list(step_labels(samples)) == [
        {
            "prompt": "3 boxes of 4?",
            "completions": ["I multiply.", "3 * 4 = 12"],
            "labels": [True, True],
        },
        {
            "prompt": "3 boxes of 4?",
            "completions": ["3 * 4 = 12", "12 + 1 = 12"],
            "labels": [True, False],
        },
    ]
