"""From traces to tokens: what each token is, at every boundary, for byte-level and SentencePiece tokenizers."""

from __future__ import annotations

from functools import cache

import pytest
from transformers import PreTrainedTokenizerFast

from edge_distill.distil.kinds import ANSWER, OBSERVATION, PROMPT, REASONING
from edge_distill.distil.spans import (
    Example,
    Solution,
    Step,
    StepWeights,
    check_complete,
    collate,
    make_example,
)
from edge_distill_export.calibration import Style, Trace, render_trace
from edge_distill_export.chat_template import chat_segments
from edge_distill_runtime.errors import InputError
from edge_distill_runtime.text.chat import ChatSegments, ReasoningMarkers
from tests.random_tokenizers import BYTE_LEVEL_TOKENIZERS, CHAT_TEMPLATE, SPM_TOKENIZERS, random_tokenizer

KINDS = (*BYTE_LEVEL_TOKENIZERS, *SPM_TOKENIZERS)
MARKERS = ReasoningMarkers("<think>", "</think>")
PROBLEM = ({"role": "user", "content": "Anna has 12 apples.\nHow many are left?"},)
REASONED = "First, 12 - 5 = 7.  Then 7 - 2 = 5, größer 🙂.\n\nSo 5 are left."
TRACE = Trace(PROBLEM, REASONED, "It is \\boxed{5}.")
STEPS = (
    Step("First, 12 - 5 = 7.", "decomposition", "verified"),
    Step("Then 7 - 2 = 5, größer 🙂.", "structure", "refuted", critical=True),
    Step("So 5 are left.", "language", "unknown"),
)


@cache
def chat_of(kind: str) -> ChatSegments | None:
    return chat_segments(random_tokenizer(kind))


def style_of(kind: str, markers: ReasoningMarkers | None = MARKERS) -> Style:
    return Style(chat_of(kind), markers)


def example_of(kind: str, solution: Solution) -> tuple[Example, PreTrainedTokenizerFast]:
    tokenizer = random_tokenizer(kind)
    return make_example(solution, style_of(kind), tokenizer, 512), tokenizer


def text_of(example: Example, tokenizer: PreTrainedTokenizerFast, kind: int) -> str:
    """The tokens of a kind as text; sentencepiece's decoder drops a leading space, so spaces do not count."""
    tokens = [token for token, of in zip(example.tokens, example.kinds, strict=True) if of == kind]
    return without_spaces(tokenizer.decode(tokens))


def without_spaces(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind: str) -> None:
    example, tokenizer = example_of(kind, Solution(TRACE, steps=STEPS))
    prompt = f"<|im_start|>user\n{PROBLEM[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    assert text_of(example, tokenizer, PROMPT) == without_spaces(prompt)
    assert text_of(example, tokenizer, REASONING) == without_spaces(f"<think>{REASONED}</think>")
    assert text_of(example, tokenizer, ANSWER) == without_spaces(f"{TRACE.answer}<|im_end|>")
    assert example.first == example.kinds.index(REASONING)
    assert sorted(example.kinds) == list(example.kinds)  # prompt, reasoning, answer


@pytest.mark.parametrize("kind", KINDS)
def test_steps(kind: str) -> None:
    example, tokenizer = example_of(kind, Solution(TRACE, steps=STEPS))
    assert [span.step for span in example.steps] == list(STEPS)
    for span in example.steps:
        written = tokenizer.decode(example.tokens[span.start : span.stop])
        assert without_spaces(written) == without_spaces(span.step.text)
    # what lies between the steps is white space
    for before, after in zip(example.steps, example.steps[1:], strict=False):
        assert not tokenizer.decode(example.tokens[before.stop : after.start]).strip()


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_calibration(kind: str) -> None:
    """What the export measures on is rendered in the same way."""
    tokenizer = random_tokenizer(kind)
    for markers in (MARKERS, None):
        for trace in (TRACE, Trace(PROBLEM, "", "5"), Trace(PROBLEM, REASONED, "5")):
            style = style_of(kind, markers)
            text = render_trace(trace, style, tokenizer, 512)
            example = make_example(Solution(trace), style, tokenizer, 512)
            assert list(example.tokens) == text.tokens
            assert example.kinds.count(PROMPT) == text.prompt
            assert example.kinds.count(REASONING) == text.answer - text.prompt


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_is_what_a_device_tokenizes(kind: str) -> None:
    example, tokenizer = example_of(kind, Solution(TRACE))
    prompt = tokenizer.apply_chat_template(list(PROBLEM), tokenize=False, add_generation_prompt=True)
    expected = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert list(example.tokens[: example.first]) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_observations_are_masked(kind: str) -> None:
    turns = (
        {"role": "assistant", "content": "Thought: multiply.\nAction: calculator[6 * 7]"},
        {"role": "user", "content": "Observation: 42"},
        {"role": "assistant", "content": "Action: calculator[42 / 2]"},
        {"role": "user", "content": "Observation: 21"},
    )
    steps = (
        Step("Action: calculator[42 / 2]", "structure", "unknown"),
        Step("So it is 21.", "language", "refuted"),
    )
    trace = Trace(PROBLEM, "So it is 21.", "21")
    example, tokenizer = example_of(kind, Solution(trace, turns, steps))
    reasoning = turns[0]["content"] + "<|im_end|>" + turns[2]["content"] + "<|im_end|>"
    reasoning += "<think>So it is 21.</think>"
    assert text_of(example, tokenizer, REASONING) == without_spaces(reasoning)
    observed = "".join(
        f"<|im_start|>user\n{turn['content']}<|im_end|>\n<|im_start|>assistant\n" for turn in turns[1::2]
    )
    assert text_of(example, tokenizer, OBSERVATION) == without_spaces(observed)
    assert text_of(example, tokenizer, ANSWER) == "21<|im_end|>"
    for span in example.steps:
        written = tokenizer.decode(example.tokens[span.start : span.stop])
        assert without_spaces(written) == without_spaces(span.step.text)
    messages = [*PROBLEM, *turns[:2]]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    tokens = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert list(example.tokens[: len(tokens)]) == tokens  # what the device asks after the first observation


@pytest.mark.parametrize("kind", KINDS)
def test_without_chat_template(kind: str) -> None:
    tokenizer = random_tokenizer(kind)
    style = Style(None, None, start=tokenizer.bos_token or "", end=tokenizer.eos_token)
    turns = ({"role": "assistant", "content": "Action: x"}, {"role": "user", "content": "Observation: 8"})
    example = make_example(Solution(TRACE, turns), style, tokenizer, 512)
    prompt = (tokenizer.bos_token or "") + PROBLEM[0]["content"]
    assert text_of(example, tokenizer, PROMPT) == without_spaces(prompt)
    assert text_of(example, tokenizer, REASONING) == without_spaces("Action: x" + REASONED)
    assert text_of(example, tokenizer, OBSERVATION) == "Observation:8"
    assert text_of(example, tokenizer, ANSWER) == without_spaces(TRACE.answer + tokenizer.eos_token)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", [" 5", "5 ", "\n5", "é", "🙂", "e\u0301", "日"])
def test_hard_boundaries(kind: str, answer: str) -> None:
    """Every token has a kind, and the kinds stand in order whatever stands at the boundaries."""
    trace = Trace(PROBLEM, "🙂 So it is " + answer, answer)
    example, tokenizer = example_of(kind, Solution(trace))
    assert sorted(example.kinds) == list(example.kinds)
    written = text_of(example, tokenizer, ANSWER)
    # Qwen's tokenizer composes characters
    assert written in (without_spaces(f"{answer}<|im_end|>"), "é<|im_end|>")


def test_steps_by_hand() -> None:
    """Single characters: one byte-level token each, as no merge of the tokenizer joins them."""
    tokenizer = random_tokenizer("smollm")
    trace = Trace(PROBLEM, "1+2 3+4", "5")
    steps = (Step("1+2", "structure", "verified"), Step("3+4", "structure", "refuted"))
    example = make_example(Solution(trace, steps=steps), style_of("smollm"), tokenizer, 512)
    start = example.first + 2  # <think>, newline
    assert tokenizer.convert_ids_to_tokens(example.tokens[start : start + 7]) == list("1+2Ġ3+4")
    assert [(span.start - start, span.stop - start) for span in example.steps] == [(0, 3), (4, 7)]
    batch = collate([example], pad_id=0, weights=StepWeights(verified=2, refuted=-0.5))
    assert batch["weights"][0, start - 1 : start + 8].tolist() == [1, 2, 2, 2, 1, -0.5, -0.5, -0.5, 1]


def test_a_space_that_the_offsets_trim_is_not_of_the_step() -> None:
    """Llama 3's post-processor trims offsets, so that a lone space looks as if it were behind itself."""
    trace = Trace(PROBLEM, "1 x+4", "5")
    steps = (Step("x+4", "structure", "verified"),)
    example, tokenizer = example_of("llama3", Solution(trace, steps=steps))
    (span,) = example.steps
    assert tokenizer.convert_ids_to_tokens(example.tokens[span.start - 1 : span.stop]) == list("Ġx+4")


def test_repeated_steps_are_found_one_after_the_other() -> None:
    trace = Trace(PROBLEM, "1 + 1 = 2. 1 + 1 = 2.", "2")
    steps = (Step("1 + 1 = 2.", "structure", "verified"),) * 2
    example, _ = example_of("smollm", Solution(trace, steps=steps))
    first, second = example.steps
    assert first.stop <= second.start


def test_step_weights() -> None:
    weights = StepWeights(verified=1, unknown=0.5, refuted=-0.25, roles={"structure": 2}, critical=3)
    assert [weights.of(step) for step in STEPS] == [1, -1.5, 0.5]
    assert StepWeights().of(STEPS[1]) == 0


def test_collate() -> None:
    long, tokenizer = example_of("smollm", Solution(TRACE, steps=STEPS))
    short = make_example(Solution(Trace(PROBLEM, "", "5")), style_of("smollm"), tokenizer, 512)
    batch = collate([short, long], pad_id=7)
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "position_ids", "labels", "kinds", "weights"), (2, len(long.tokens))
    )
    length = len(short.tokens)
    assert batch["input_ids"][0].tolist() == [*short.tokens, *[7] * (len(long.tokens) - length)]
    assert batch["attention_mask"].sum(1).tolist() == [length, len(long.tokens)]
    assert batch["position_ids"][1].tolist() == list(range(len(long.tokens)))
    assert batch["kinds"][0, length:].unique().tolist() == [PROMPT]
    labels = batch["labels"][1].tolist()
    for label, token, kind in zip(labels, long.tokens, long.kinds, strict=True):
        assert label == (token if kind in (REASONING, ANSWER) else -100)
    assert batch["weights"][0].unique().tolist() == [1]


def test_a_template_that_drops_reasoning_is_named() -> None:
    tokenizer = random_tokenizer("smollm")
    messages = [*PROBLEM, {"role": "assistant", "reasoning_content": REASONED, "content": TRACE.answer}]
    dropping = tokenizer.apply_chat_template(messages, tokenize=False)
    with pytest.raises(InputError, match="the reasoning is not in the training text") as caught:
        check_complete(dropping, Solution(TRACE))
    assert caught.value.code == "dropped-from-text"
    tokenizer.chat_template = CHAT_TEMPLATE.replace(
        "message['content']", "message.get('reasoning_content', '') + message['content']"
    )
    check_complete(tokenizer.apply_chat_template(messages, tokenize=False), Solution(TRACE))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "message 0"),
        ("P", "turn 0"),
        ("P T", "the reasoning"),
        ("P T R", "the answer"),
        ("A R T P", "turn 0"),
        ("P R T A", "the reasoning"),
    ],
)
def test_each_dropped_part_is_named(text: str, named: str) -> None:
    trace = Trace(({"role": "user", "content": "P"},), "R\n", " A")
    solution = Solution(trace, ({"role": "assistant", "content": "T"},))
    check_complete("P T R A", solution)
    with pytest.raises(InputError, match=named):
        check_complete(text, solution)


def test_errors() -> None:
    tokenizer = random_tokenizer("smollm")
    style = style_of("smollm")

    def code(solution: Solution, context: int = 512) -> str:
        with pytest.raises(InputError) as caught:
            make_example(solution, style, tokenizer, context)
        return caught.value.code

    length = len(make_example(Solution(TRACE), style, tokenizer, 512).tokens)
    make_example(Solution(TRACE), style, tokenizer, length)
    assert code(Solution(TRACE), length - 1) == "trace-too-long"
    assert code(Solution(TRACE, steps=STEPS[::-1])) == "step-not-found"
    assert code(Solution(TRACE, steps=(Step("Never.", "error", "unknown"),))) == "step-not-found"
    assert code(Solution(TRACE, steps=(Step(" ", "error", "unknown"),))) == "step-not-found"
    assert code(Solution(TRACE, ({"role": "system", "content": "x"},))) == "unknown-role"
    for part in ("a </think> b", "<think>", "so<|im_end|>"):
        assert code(Solution(Trace(PROBLEM, part, "5"))) == "control-token"
        assert code(Solution(Trace(PROBLEM, "so", part))) == "control-token"
    plain = Style(None, None)
    glued = random_tokenizer("qwen2")  # joins newlines
    with pytest.raises(InputError) as caught:
        make_example(Solution(Trace(PROBLEM, "\n\nSo.", "5")), plain, glued, 512)
    assert caught.value.code == "straddling-token"


def test_a_step_inside_one_token_has_no_span() -> None:
    trace = Trace(PROBLEM, "a apples", "5")
    example, tokenizer = example_of("gpt2", Solution(trace, steps=(Step("pples", "language", "unknown"),)))
    assert "Ġapples" in tokenizer.convert_ids_to_tokens(list(example.tokens))
    assert not example.steps
