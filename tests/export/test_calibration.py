"""Traces: reading, rendering with spans, and what a bad line says."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from edge_distill_export.calibration import (
    Style,
    Text,
    Trace,
    builtin_traces,
    parse_trace,
    prompt_text,
    read_traces,
    render_trace,
)
from edge_distill_export.chat_template import chat_segments
from edge_distill_export.collect import MAX_TOKENS, _save, _thinned
from edge_distill_runtime.errors import InputError
from edge_distill_runtime.text.chat import ReasoningMarkers
from tests.random_tokenizers import CHAT_TEMPLATE, random_tokenizer

USER = {"role": "user", "content": "What is 2 + 2?"}


def write(path: Path, *lines: object) -> Path:
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8"
    )
    return path


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reads_every_name_of_the_reasoning(tmp_path: Path, key: str) -> None:
    path = write(
        tmp_path / "t", {"messages": [USER, {"role": "assistant", "content": "4", key: "2 + 2 = 4"}]}, "", ""
    )
    assert read_traces(path) == [Trace((USER,), "2 + 2 = 4", "4")]


def test_reads_problem_reasoning_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "t", {"problem": "What is 2 + 2?", "reasoning": "2 + 2 = 4", "answer": 4})
    assert read_traces(path) == [Trace((USER,), "2 + 2 = 4", "4")]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "Expecting property name"),
        ("[]", "holds list, not an object"),
        ('{"problem": "p"}', "lacks 'answer'"),
        ('{"messages": []}', "not enough values"),
        ('{"messages": [{"role": "user", "content": "p"}]}', "not assistant"),
        ('{"messages": [{"role": "assistant", "content": "p"}]}', "needs a user's message"),
        ('{"messages": [{"role": "user", "content": 3}, {"role": "assistant", "content": "p"}]}', "as text"),
        ('{"messages": 3}', "not iterable|cannot unpack"),
        ("[" * 100_000, "recursion|nested|Expecting"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, why: str) -> None:
    good = {"problem": "p", "reasoning": "r", "answer": "a"}
    with pytest.raises(InputError, match=rf"line 2: .*({why})"):
        read_traces(write(tmp_path / "t", good, line))


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b'{"problem": "\xff"}\n')
    with pytest.raises(InputError, match=r"line 1: .*utf-8"):
        read_traces(tmp_path / "t")


def test_missing_empty_and_endless_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_traces(tmp_path / "none")
    with pytest.raises(InputError, match="holds no traces"):
        read_traces(write(tmp_path / "empty"))
    with pytest.raises(InputError, match="line 1: more than 1048576 bytes"):
        read_traces(write(tmp_path / "long", "x" * (2 << 20)))


@pytest.mark.parametrize("markers", [None, ReasoningMarkers("<think>", "</think>")])
def test_spans_cut_between_prompt_reasoning_and_answer(markers: ReasoningMarkers | None) -> None:
    tokenizer = random_tokenizer("qwen2")
    style = Style(chat_segments(tokenizer), markers)
    text = render_trace(Trace((USER,), "2 and 2 are 4.", "The answer is 4."), style, tokenizer, 256)

    def decode(part: list[int]) -> str:
        return tokenizer.decode(part)

    assert decode(text.tokens[: text.prompt]).endswith("assistant\n")
    reasoning = decode(text.tokens[text.prompt : text.answer])
    assert reasoning.strip("\n") == ("<think>\n2 and 2 are 4.\n</think>" if markers else "2 and 2 are 4.")
    assert decode(text.tokens[text.answer :]).startswith("The answer is 4.<|im_end|>")


SPECIAL = ("<|reason|>", "<|answer|>")
OPENED = CHAT_TEMPLATE.replace("assistant\n'", "assistant\n<|reason|>\n'")


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, OPENED], ids=["opens", "opened by the prompt"])
@pytest.mark.parametrize("markers", [None, ReasoningMarkers(*SPECIAL)], ids=["plain", "markers"])
def test_what_the_student_wrote_comes_back_as_the_same_tokens(
    markers: ReasoningMarkers | None, template: str, tmp_path: Path
) -> None:
    tokenizer = copy.deepcopy(random_tokenizer("qwen2"))
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|tool|>", *SPECIAL]})
    tokenizer.chat_template = template
    style = Style(chat_segments(tokenizer), markers)
    prompt = prompt_text(Trace((USER,), "", ""), style)
    opening = "" if template == OPENED else "<|reason|>\n"
    written = "2 + 2 <|tool|>= 4<|im_end|>"
    if markers:
        written = f"{opening}Two and two.\n\n<|tool|> 4\n<|answer|>\n\n{written}"
    tokens = tokenizer.encode(prompt + written, add_special_tokens=False)
    text = Text(tokens, len(tokenizer.encode(prompt, add_special_tokens=False)), len(tokens))

    trace = parse_trace((USER,), text, style, tokenizer, [tokenizer.convert_tokens_to_ids("<|im_end|>")])
    assert trace.answer == "2 + 2 <|tool|>= 4"
    assert trace.reasoning == ("Two and two.\n\n<|tool|> 4" if markers else "")
    _save([trace], tmp_path / "traces.jsonl")
    (read,) = read_traces(tmp_path / "traces.jsonl")
    assert read == trace
    assert render_trace(read, style, tokenizer, 256).tokens == tokens


def test_reasoning_that_never_ended_is_kept() -> None:
    tokenizer = random_tokenizer("qwen2")
    style = Style(chat_segments(tokenizer), ReasoningMarkers("<think>", "</think>"))
    tokens = tokenizer.encode("<think>\nTwo and", add_special_tokens=False)
    assert parse_trace((USER,), Text(tokens, 0, len(tokens)), style, tokenizer, [0]) == Trace(
        (USER,), "Two and", ""
    )


def test_plain_text_style_for_a_student_without_a_chat_template() -> None:
    tokenizer = random_tokenizer("llama2")
    style = Style(None, None, start=tokenizer.bos_token, end=tokenizer.eos_token)
    text = render_trace(Trace((USER,), "", "4"), style, tokenizer, 256)
    assert text.tokens[0] == tokenizer.bos_token_id
    assert text.tokens[-1] == tokenizer.eos_token_id
    assert text.answer == text.prompt


def test_a_trace_longer_than_the_context_is_refused() -> None:
    tokenizer = random_tokenizer("qwen2")
    style = Style(chat_segments(tokenizer), None)
    with pytest.raises(InputError, match=r"a trace has \d+ tokens, the context 64.*raise --context"):
        render_trace(Trace((USER,), "so " * 100, "4"), style, tokenizer, 64)


def test_builtin_problems_share_no_sentence() -> None:
    heldout, calibration = builtin_traces("heldout"), builtin_traces("calibration")
    assert len(heldout) == 32
    assert len(calibration) == 128

    def sentences(traces: list[Trace]) -> set[str]:
        texts = [part for trace in traces for part in (trace.messages[-1]["content"], trace.reasoning)]
        return {
            sentence.strip() for text in texts for sentence in text.split(". ") if len(sentence.split()) > 6
        }

    assert not sentences(heldout) & sentences(calibration)


def test_long_calibration_is_thinned_evenly() -> None:
    texts = [Text([index] * 1000, 0, 1000) for index in range(100)]
    kept = _thinned(texts)
    assert sum(len(text.tokens) for text in kept) <= MAX_TOKENS
    positions = [text.tokens[0] for text in kept]
    assert positions == sorted(positions)
    assert positions[0] < 5
    assert positions[-1] > 90
