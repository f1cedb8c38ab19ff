"""A trace at the levels of granularity: steps, reasoning and messages agree."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge_distill.traces.granularity import Granularity, compress_trace
from edge_distill.traces.steps import annotate
from edge_distill.traces.trace import Trace, make_trace, parse_line, to_line

TEXT = "Let me think. There are 3 trays. 3 * 4 = 12 rolls.\n\n  The trays are red.\n12 + 5 = 17 rolls"


def trace() -> Trace:
    return make_trace("p", TEXT, "17", steps=annotate(TEXT), sampling={"temperature": 0.5}, seed=1)


@pytest.mark.parametrize(
    ("level", "reasoning"),
    [
        ("full", TEXT),
        ("critical", "There are 3 trays. 3 * 4 = 12 rolls.\n12 + 5 = 17 rolls"),
        ("answer", ""),
    ],
)
def test_levels(level: Granularity, reasoning: str) -> None:
    short = compress_trace(trace(), level)
    assert short.reasoning == short.messages[-1].get("reasoning_content", "") == reasoning
    assert short.steps == annotate(reasoning)
    assert short.messages[0] == trace().messages[0]
    assert short.messages[-1]["content"] == r"\boxed{17}"
    assert short.sampling == {"temperature": 0.5, "granularity": level}
    assert short.id != trace().id
    assert parse_line(to_line(short)) == short


def test_turns_with_tools_stay_save_for_the_answer_alone() -> None:
    turns = (
        {"role": "system", "content": "You have a calculator."},
        {"role": "user", "content": "p"},
        {"role": "assistant", "content": "I look.\ncalculator(3 * 4)"},
        {"role": "tool", "content": "12"},
        trace().messages[-1],
    )
    acting = replace(trace(), messages=turns, steps=(*annotate(turns[2]["content"]), *trace().steps))
    for level in ("full", "compact", "critical"):
        short = compress_trace(acting, level)
        assert (short.messages, short.steps, short.reasoning) == (turns, acting.steps, TEXT)
    bare = compress_trace(acting, "answer")
    assert bare.messages == (
        {"role": "user", "content": "p"},
        {"role": "assistant", "content": r"\boxed{17}"},
    )
    assert (bare.reasoning, bare.steps) == ("", ())
    assert parse_line(to_line(bare)) == bare
