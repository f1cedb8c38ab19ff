"""Thinking budgets, minimum, stop strings and log-probabilities, on scripted logits and on the tiny model."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from edge_distill_export.checkpoint import Checkpoint
from edge_distill_runtime import InputError, Model
from edge_distill_runtime.bundles.manifest import ReasoningLengths, SamplingDefaults
from edge_distill_runtime.generation.answer_format import AnswerFormat
from edge_distill_runtime.generation.decoding import Decoding, Language
from edge_distill_runtime.generation.options import GenerationOptions, resolve
from edge_distill_runtime.text.chat import ReasoningMarkers
from edge_distill_runtime.text.detokenizer import Detokenizer
from tests.runtime.bundles import CHAT
from tests.runtime.test_reader import DETOKENIZER, Bytes

MARKERS = ReasoningMarkers("<think>", "</think>")
END = 256  # the stop token; all others are bytes
QUESTION = "Anna has 7 apples. How many are left?"


def speak(
    manifest: Any, script: Iterator[int], *, inside: bool = True, room: int = 10_000, **options: Any
) -> Decoding:
    """A decoding to the end, whose logits always prefer the script's next token."""
    language = Language(DETOKENIZER, lambda text: list(text.encode()), frozenset([END]), MARKERS)
    settings = resolve(cast(GenerationOptions, options), replace(manifest, reasoning=MARKERS))
    decoding = Decoding(language, settings, [1], inside=inside, room=room)
    while not decoding.is_finished:
        logits = np.zeros(257, np.float32)
        logits[next(script)] = 9.0
        before = list(decoding.tokens)
        decoding.kept = len(before)
        decoding.next(logits)
        assert decoding.tokens[: decoding.kept] == before[: decoding.kept]
    return decoding


def say(text: str) -> Iterator[int]:
    yield from text.encode()
    while True:
        yield END


_RANDOM = random.Random(1)


def letters(count: int) -> str:
    """Text without sentences and without loops."""
    return "".join(_RANDOM.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(count))


def result(decoding: Decoding) -> tuple[str, str, str | None]:
    events = decoding.take_events()
    parts = {kind: "".join(e.text for e in events if e.kind == kind) for kind in ("reasoning", "answer")}
    assert parts == {kind: decoding.reader.given(kind) for kind in ("reasoning", "answer")}
    return parts["reasoning"], parts["answer"], decoding.finish_reason


def test_budget_ends_at_a_sentence(model: Model) -> None:
    endless = "".join(f"{letters(13)}. " for _ in range(100))
    decoding = speak(model.manifest, say(endless), thinking_budget=100, max_tokens=300)
    reasoning, answer, reason = result(decoding)
    # sentences take 15 tokens: the fifth ends just where the last quarter begins
    assert reasoning == endless[:75] + "\n"
    assert answer.startswith("\n\n")
    assert reason == "length"


def test_budget_without_sentences_and_an_answer_that_parses(model: Model) -> None:
    endless = letters(500)
    decoding = speak(model.manifest, say(endless), thinking_budget=100, max_tokens=400)
    reasoning, answer, _ = result(decoding)
    assert reasoning == endless[:100] + "\n"
    # close to the end the answer is called for
    assert answer.count("Final answer: \\boxed{") == 1
    assert len(decoding.tokens) == 400


def test_an_answer_that_is_there_is_not_called_for(model: Model) -> None:
    script = "Hm.</think>The answer is 7. " + "y" * 500
    assert "Final" not in result(speak(model.manifest, say(script), thinking_budget=50, max_tokens=120))[1]


def test_budget_leaves_tokens_for_the_answer(model: Model) -> None:
    decoding = speak(model.manifest, say(letters(500)), thinking_budget=1000, max_tokens=100)
    reasoning, answer, _ = result(decoding)
    assert 60 < len(reasoning) < 75
    assert len(answer) >= 25


def test_a_stop_token_inside_the_reasoning_with_a_budget(model: Model) -> None:
    def script() -> Iterator[int]:
        yield from b"Hm."
        yield END
        yield from b"7"
        yield END

    assert result(speak(model.manifest, script(), thinking_budget=50)) == ("Hm.\n", "\n\n7", "stop")
    assert result(speak(model.manifest, script())) == ("Hm.", "", "stop")


def test_minimum_makes_it_go_on(model: Model) -> None:
    script = "Four.</think>" + "So five it is.</think>5"
    decoding = speak(model.manifest, say(script), min_thinking=20)
    assert result(decoding) == ("Four.\nWait,So five it is.", "5", "stop")
    assert decoding.tokens == list(b"Four.\nWait,So five it is.</think>5")


def test_minimum_when_a_token_holds_the_marker_and_more(model: Model) -> None:
    """What stands behind the marker is taken back with it, and was never shown."""
    words = {1: "Four. <", 2: "/think>5", 3: " No.", 4: " Five it is, I am sure.", 5: "</think>", 6: "5"}

    class Words(Bytes):
        def id_to_token(self, token: int) -> str:
            return words.get(token, f"<0x{token:02X}>")

    detokenizer = Detokenizer(Words(), json.loads('{"decoder": {"type": "ByteFallback"}}'))
    language = Language(detokenizer, lambda text: list(text.encode()), frozenset([END]), MARKERS)
    settings = resolve({"min_thinking": 12}, replace(model.manifest, reasoning=MARKERS))
    decoding = Decoding(language, settings, [1], inside=True, room=1000)
    for token in (1, 2, 3, 4, 5, 6, END):
        logits = np.zeros(257, np.float32)
        logits[token] = 9.0
        decoding.next(logits)
    assert result(decoding) == ("Four. \nWait, No. Five it is, I am sure.", "5", "stop")


def test_a_stop_token_before_the_minimum(model: Model) -> None:
    def script() -> Iterator[int]:
        yield from b"Four."
        yield END
        yield from b" No, five.</think>5"
        yield END

    assert result(speak(model.manifest, script(), min_thinking=10))[0] == "Four.\nWait, No, five."


def test_loops_are_closed(model: Model) -> None:
    decoding = speak(model.manifest, say("I think so. " * 100), max_tokens=200)
    reasoning, _, _ = result(decoding)
    assert 48 <= len(reasoning) <= 70


def test_defaults_come_from_the_manifest(model: Model) -> None:
    manifest = replace(model.manifest, reasoning=MARKERS, reasoning_lengths=ReasoningLengths(10, 20, 40))
    assert resolve({}, manifest).thinking_budget == 40
    assert resolve({"thinking_budget": 7}, manifest).thinking_budget == 7
    assert resolve({"min_thinking": 60}, manifest).thinking_budget == 60
    sampled = replace(model.manifest, sampling=SamplingDefaults(0.5, 10, 0.9, 0.1, 1.2))
    assert resolve({"top_k": 3}, sampled).sampling.top_k == 3
    assert resolve({}, sampled).sampling.repetition_penalty == 1.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thinking": True}, "tiny has no reasoning markers"),
        ({"thinking_budget": 5}, "tiny has no reasoning markers"),
        ({"thinking_budget": -1}, "thinking_budget is -1"),
        ({"min_thinking": 9, "thinking_budget": 5}, "min_thinking is 9, thinking_budget is 5"),
        ({"logprobs": 21}, "logprobs is 21"),
        ({"deadline": 0}, "deadline is 0"),
        ({"stop": [""]}, "stop is 1 strings"),
        ({"temprature": 1}, "no option 'temprature'"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
    ],
)
def test_bad_options(model: Model, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(options, replace(model.manifest, reasoning=None))


def with_markers(model: Model, **changes: Any) -> Model:
    manifest = replace(model.manifest, reasoning=MARKERS, **changes)
    return Model(manifest, model.backend, model.tokenizer, model.detokenizer)


def test_budget_on_the_model(model: Model) -> None:
    """The engine follows what is taken back and put in: the text is what the tokens in its cache say."""
    thinker = with_markers(model)
    plain = thinker.generate(QUESTION, thinking=True, max_tokens=60, temperature=1.0, seed=3)
    limited = thinker.generate(
        QUESTION, thinking=True, thinking_budget=20, max_tokens=60, temperature=1.0, seed=3
    )
    assert plain.answer == ""
    assert plain.reasoning.startswith(limited.reasoning.rstrip("\n"))
    assert limited.answer.startswith("\n\n")
    assert limited.text == limited.reasoning + "</think>" + limited.answer
    closed = thinker.generate(QUESTION, thinking=False, max_tokens=20)
    assert (closed.reasoning, closed.reasoning_tokens) == ("", 0)
    # what follows the closing marker is what the model says to that prompt
    prompt = model.encode(QUESTION) + model.encode("<think>\n\n</think>\n\n", raw=True)
    assert closed.tokens == greedy(model, prompt, 20)


def greedy(model: Model, prompt: list[int], count: int) -> tuple[int, ...]:
    sequence = model.backend.prefill(prompt)
    tokens = [int(sequence.logits.argmax())]
    while len(tokens) < count:
        tokens.append(int(model.backend.step([sequence], tokens[-1:])[0].argmax()))
    model.backend.release(sequence)
    return tuple(tokens)


def test_minimum_on_the_model(model: Model) -> None:
    """The closing marker is chosen from what the random model says anyway."""
    chat = replace(CHAT, generation_prompt=CHAT.generation_prompt + "<think>\n")
    thinker = with_markers(model, chat=chat)
    options: dict[str, Any] = {"max_tokens": 40, "temperature": 1.0, "seed": 1}
    text = thinker.generate(QUESTION, **options).text
    closing = text[12:16]
    early = Model(
        replace(thinker.manifest, reasoning=ReasoningMarkers("<think>", closing)),
        model.backend,
        model.tokenizer,
        model.detokenizer,
    )
    assert early.generate(QUESTION, **options).answer
    long = early.generate(QUESTION, min_thinking=30, **options)
    assert "\nWait," in long.reasoning
    assert long.reasoning.startswith(text[: text.index(closing)] + "\nWait,")
    events = list(early.stream(QUESTION, min_thinking=30, **options))
    assert "".join(event.text for event in events if event.kind == "reasoning") == long.reasoning


def test_stop_strings_on_the_model(model: Model) -> None:
    plain = model.generate(QUESTION, max_tokens=40, temperature=1.0, seed=5)
    stop = plain.text[20:24]
    cut = model.generate(QUESTION, max_tokens=40, temperature=1.0, seed=5, stop=[stop])
    assert cut.text == plain.text[: plain.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert plain.tokens[: len(cut.tokens)] == cut.tokens


def test_logprobs_equal_transformers(model: Model, checkpoint: Checkpoint) -> None:
    result = model.generate(QUESTION, max_tokens=8, temperature=1.0, seed=2, logprobs=3)
    prompt = model.encode(QUESTION)
    with torch.inference_mode():
        logits = checkpoint.model(torch.tensor([[*prompt, *result.tokens]])).logits[0]
    expected = torch.log_softmax(logits.double(), dim=-1)[len(prompt) - 1 :]
    for position, entry in enumerate(result.logprobs):
        assert entry.token == result.tokens[position]
        # float16 keys and values in libllama's cache
        assert entry.logprob == pytest.approx(float(expected[position, entry.token]), abs=0.01)
        top = expected[position].topk(3)
        assert [value for _, _, value in entry.top] == pytest.approx(top.values.tolist(), abs=0.01)
    events = list(model.stream(QUESTION, max_tokens=8, temperature=1.0, seed=2, logprobs=3))
    assert tuple(entry for event in events for entry in event.logprobs) == result.logprobs


def test_formatted_answers_on_the_model(model: Model) -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"left": {"type": "integer", "minimum": 0, "maximum": 99}},
    }
    schema |= {"required": ["left"], "additionalProperties": False}
    thinker = with_markers(model)
    assert thinker.generate(QUESTION, answer_format=AnswerFormat.choices("yes", "no"), seed=2).answer in (
        "yes",
        "no",
    )
    formats = {
        r"yes|no|maybe": AnswerFormat.choices("yes", "no", "maybe"),
        r"-?[0-9]{1,3}": AnswerFormat.regex("-?[0-9]{1,3}"),
        r'\{"left": [0-9]{1,2}\}': AnswerFormat.json_schema(schema),
    }
    for pattern, answer_format in formats.items():
        options: dict[str, Any] = {"answer_format": answer_format, "temperature": 1.0, "seed": 1}
        plain = model.generate(QUESTION, **options)
        assert re.fullmatch(pattern, plain.answer), plain.answer
        assert plain.finish_reason == "stop"
        thought = thinker.generate(QUESTION, thinking_budget=20, **options)
        assert re.fullmatch(pattern, thought.answer), thought.answer
        assert thought.reasoning
        assert thought.text.endswith("</think>\n\n" + thought.answer)
        for sample in thinker.sample(QUESTION, 3, thinking_budget=12, **options):
            assert re.fullmatch(pattern, sample.answer), sample.answer
