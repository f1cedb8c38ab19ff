"""Chat prompts, and the parser of reasoning markers at every cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_distill_export.checkpoint import Checkpoint
from edge_distill_runtime import InputError
from edge_distill_runtime.text.chat import ChatSegments, Piece, ReasoningMarkers, ReasoningParser, render
from tests.runtime.bundles import CHAT

MARKERS = ReasoningMarkers("<think>", "</think>")
GEMMA = ChatSegments(
    prefix="<bos>",
    default_system="",
    system=("", "\n\n"),
    user=("<start_of_turn>user\n", "<end_of_turn>\n"),
    assistant=("<start_of_turn>model\n", "<end_of_turn>\n"),
    generation_prompt="<start_of_turn>model\n",
    strips_content=True,
    system_joins_user=True,
)


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CONVERSATIONS = [
    [message("user", "hi")],
    [message("system", "be brief"), message("user", " hi \n")],
    [message("user", "a"), message("assistant", "b"), message("user", "")],
    [message("system", "s"), message("user", "a"), message("assistant", "b"), message("user", "c")],
]


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("prompt", [True, False])
def test_render_equals_the_template(
    checkpoint: Checkpoint, messages: list[dict[str, str]], prompt: bool
) -> None:
    expected = checkpoint.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=prompt
    )
    assert render(CHAT, messages, add_generation_prompt=prompt) == expected


def test_default_system_message() -> None:
    segments = replace(CHAT, prefix="<s>", default_system="<|im_start|>system\nhelp<|im_end|>\n")
    assert render(segments, [message("user", "hi")], False) == (
        "<s><|im_start|>system\nhelp<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
    )
    assert render(segments, [message("system", "s"), message("user", "hi")], False) == (
        "<s><|im_start|>system\ns<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
    )


def test_system_message_inside_the_first_user_turn() -> None:
    """As Gemma's template does it; contents are trimmed."""
    messages = [
        message("system", "be brief"),
        message("user", " hi "),
        message("assistant", "x"),
        message("user", "y"),
    ]
    assert render(GEMMA, messages) == (
        "<bos><start_of_turn>user\nbe brief\n\nhi<end_of_turn>\n<start_of_turn>model\nx<end_of_turn>\n"
        "<start_of_turn>user\ny<end_of_turn>\n<start_of_turn>model\n"
    )


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "no messages"),
        ([message("tool", "x")], "role 'tool' is unknown"),
        ([{"role": "user"}], "no text content"),
        ([message("user", "a"), message("system", "b")], "system message stands after"),
        ([message("system", "a"), message("system", "b")], "system message stands after"),
    ],
)
def test_bad_conversations(messages: list[dict[str, str]], error: str) -> None:
    with pytest.raises(InputError, match=error):
        render(CHAT, messages)


def test_no_system_role() -> None:
    with pytest.raises(InputError, match="no system role"):
        render(replace(CHAT, system=None), [message("system", "a"), message("user", "b")])


def pieces_of(
    parts: list[str], markers: ReasoningMarkers | None = MARKERS, inside: bool = False
) -> list[Piece]:
    """Parse a stream, neighbouring pieces of one kind joined."""
    parser = ReasoningParser(markers, inside=inside)
    joined: list[Piece] = []
    for piece in [piece for part in parts for piece in parser.feed(part)] + parser.finish():
        assert piece.text
        if joined and joined[-1].kind == piece.kind:
            joined[-1] = Piece(piece.kind, joined[-1].text + piece.text)
        else:
            joined.append(piece)
    return joined


TEXTS = {
    "<think>a</think>b": [("reasoning", "a"), ("answer", "b")],
    "x<think>a</think>b": [("answer", "x"), ("reasoning", "a"), ("answer", "b")],
    "<think></think>": [],
    "<think>no end": [("reasoning", "no end")],
    "plain < text <thin": [("answer", "plain < text <thin")],
    "<<think>a<</think>b": [("answer", "<"), ("reasoning", "a<"), ("answer", "b")],
    "<think>1 <think> 2</think></think>": [("reasoning", "1 <think> 2"), ("answer", "</think>")],
    "<think>a</think>b<think>c</think>d": [
        ("reasoning", "a"),
        ("answer", "b"),
        ("reasoning", "c"),
        ("answer", "d"),
    ],
    "<thi<think>é</thin</think>🙂": [("answer", "<thi"), ("reasoning", "é</thin"), ("answer", "🙂")],
}


@pytest.mark.parametrize("text", TEXTS)
def test_every_cut_of_a_stream(text: str) -> None:
    assert pieces_of([text]) == TEXTS[text]
    assert pieces_of(list(text)) == TEXTS[text]
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            assert pieces_of([text[:first], text[first:second], text[second:]]) == TEXTS[text]


def test_prompt_that_has_opened_the_reasoning() -> None:
    assert pieces_of(["a</think>b"], inside=True) == [("reasoning", "a"), ("answer", "b")]
    assert pieces_of(["a</think>b"], None) == [("answer", "a</think>b")]


def test_text_is_held_back_no_longer_than_needed() -> None:
    parser = ReasoningParser(MARKERS)
    assert parser.feed("so <th") == [("answer", "so ")]
    assert parser.feed("e") == [("answer", "<the")]
    assert parser.feed("<think>") == []
    assert parser.kind == "reasoning"


@given(
    st.lists(st.sampled_from(["a", "<", "b>", "<a", "<ab>", "/", "</ab>", "<<", "é"]), max_size=12), st.data()
)
def test_cuts_do_not_matter(parts: list[str], data: st.DataObject) -> None:
    markers = ReasoningMarkers("<ab>", "</ab>")
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    chunks = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert pieces_of(chunks, markers) == pieces_of([text], markers)
    # an independent way to the same result
    kinds = {"answer": "", "reasoning": ""}
    kind, rest = "answer", text
    while True:
        before, marker, rest = rest.partition("<ab>" if kind == "answer" else "</ab>")
        kinds[kind] += before
        if not marker:
            break
        kind = "reasoning" if kind == "answer" else "answer"
    for kind, expected in kinds.items():
        assert "".join(piece.text for piece in pieces_of(chunks, markers) if piece.kind == kind) == expected
